"""What masks beside photographs leave out: of training and of figures, at every size and turn."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import SAMPLERS

from nerftrain.cli import main
from nerftrain.errors import UserError
from nerftrain.scenes import Scene
from nerftrain.scenes.demo import render_folder
from nerftrain.scenes.images import read_header
from nerftrain.scenes.masks import check_mask, read_valid
from nerftrain.scenes.transforms import load_scene

SIZE = 32


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A capture of 12 photographs, all but the last with a mask that is black in one quarter."""
    folder = tmp_path / "capture"
    folder.mkdir()
    render_folder(folder, SIZE, 10, 2)
    frames = []
    for split in ("train", "test"):
        file = folder / f"transforms_{split}.json"
        content = json.loads(file.read_text())
        file.unlink()
        for frame in content["frames"]:
            with Image.open(folder / f"{frame['file_path']}.png") as image:
                image.convert("RGB").save(folder / f"{len(frames):02d}.png")
            frames.append(frame | {"file_path": f"{len(frames):02d}.png"})
    for number, frame in enumerate(frames[:-1]):
        frame["mask_path"] = f"masks/{number}.png"
        write_mask(folder / frame["mask_path"], quarter(number))
    angle = content["camera_angle_x"]
    (folder / "transforms.json").write_text(
        json.dumps({"camera_angle_x": angle, "aabb_scale": 1, "frames": frames})
    )
    return folder


def quarter(number: int) -> np.ndarray:
    """What counts, [H, W] bool: all but one quarter, another one from image to image."""
    valid = np.ones((2, 2), bool)
    valid.flat[number % 4] = False
    return valid.repeat(SIZE // 2, 0).repeat(SIZE // 2, 1)


def write_mask(path: Path, valid: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(valid.astype(np.uint8) * 255).save(path)


def load(root: Path, downscale: float = 1.0) -> Scene:
    placed = {"contraction": "auto", "center": True, "up": True, "scale": True}
    reach = {"near": 0.05, "far": 100.0}
    return load_scene("masked", str(root), downscale, False, 6, **placed, **reach)


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("downscale", [1.0, 2.0, 1.5])
def test_a_pixel_counts_where_all_of_its_area_does(root: Path, downscale: float):
    size = round(SIZE / downscale)
    scene = load(root, downscale)
    for split in scene.splits.values():
        for index, name in enumerate(split.names):
            number = int(Path(name).stem)
            whole = quarter(number) if number < 11 else np.ones((SIZE, SIZE), bool)
            edges = np.arange(size + 1) * SIZE / size
            spans = [
                slice(int(np.floor(low)), int(np.ceil(high)))
                for low, high in itertools.pairwise(edges)
            ]
            expected = [[whole[rows, columns].all() for columns in spans] for rows in spans]
            valid = split.valid_of(index)
            assert valid is not None
            assert valid.tolist() == expected


@pytest.mark.parametrize("known", [False, True])
def test_only_what_counts_is_drawn(root: Path, known: bool):
    train = load(root).splits["train"]
    assert train.valid is not None
    live = torch.arange(0, len(train.pixels), 3, dtype=torch.int32) if known else None
    left = train.drawable(live)
    assert left is not None
    assert left.dtype == torch.int32
    expected = train.valid.clone()
    if live is not None:
        expected &= torch.arange(len(expected)) % 3 == 0
    assert left.tolist() == expected.nonzero().squeeze(1).tolist()
    with pytest.raises(UserError, match="masks leave nothing to train on"):
        train.drawable((~train.valid).nonzero().squeeze(1).to(torch.int32))


def test_frames_without_masks_have_none(root: Path):
    path = root / "transforms.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        frame.pop("mask_path", None)
    path.write_text(json.dumps(content))
    train = load(root).splits["train"]
    assert train.valid is None
    assert train.valid_of(0) is None
    assert train.drawable(None) is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_masks_hide_has_no_say_in_training_and_figures(
    root: Path, tmp_path: Path, sampler: str
):
    figures = []
    for color in (0, 255):
        for number, frame in enumerate(
            json.loads((root / "transforms.json").read_text())["frames"]
        ):
            path = root / frame["file_path"]
            with Image.open(path) as image:
                pixels = np.array(image)
            if number < 11:
                pixels[~quarter(number)] = color
            Image.fromarray(pixels).save(path)
        run = tmp_path / f"run{color}"
        command = ["scene=transforms", f"scene.root={root}", f"sampler={sampler}", "model=ngp"]
        command += ["scene.test_every=6", "scene.hints.grid_levels=1", *SAMPLERS[sampler]]
        command += ["model.encoding.log2_table_size=10", "trainer.steps=40", "logger=none"]
        command += ["trainer.max_seconds=null", "trainer.orbit_frames=0", "runtime.threads=1"]
        assert main([*command, "trainer.sample_budget=2048", f"run_dir={run}"]) == 0
        found = json.loads((run / "metrics.json").read_text())
        figures.append((found["psnr"], found["ssim"]))
    assert figures[0] == figures[1]


# What is refused


def test_a_mask_that_is_missing_or_of_another_shape_or_black_is_refused(root: Path, capsys):
    (root / "masks/3.png").unlink()
    assert "its mask 'masks/3.png' is missing: restore it, or take mask_path out" in refused(root)
    write_mask(root / "masks/3.png", np.ones((SIZE, SIZE + 4), bool))
    assert f"{SIZE + 4}x{SIZE}, but its photograph" in refused(root)
    assert main(["data", "check", str(root)]) == 2
    assert f"{SIZE + 4}x{SIZE}, but its photograph" in "".join(capsys.readouterr())
    write_mask(root / "masks/3.png", np.zeros((SIZE, SIZE), bool))
    assert "leaves nothing of" in refused(root)
    (root / "masks/3.png").write_bytes(b"no image")
    assert "3.png is truncated or no image" in refused(root)


@pytest.mark.parametrize("stored", [True, False])
def test_masks_of_photographs_on_their_side_lie_as_these_or_upright(tmp_path: Path, stored: bool):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise makes it upright
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png", exif=exif)
    valid = np.zeros((40, 30), bool)
    valid[:10, :5] = True  # at the top left of what is upright
    write_mask(tmp_path / "mask.png", np.rot90(valid) if stored else valid)
    photo = read_header(tmp_path / "photo.png", heed_exif=True)
    with ThreadPoolExecutor(1) as pool:
        found = read_valid([tmp_path / "mask.png"], [photo], [photo.shown], pool)
        assert found is not None
        assert found.view(40, 30).tolist() == valid.tolist()
        assert read_valid([None], [photo], [photo.shown], pool) is None
    assert check_mask(tmp_path / "mask.png", photo) == (1 if stored else 0)
