"""Depth maps beside photographs: read in their units, and told along rays."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerftrain.cameras import image_rays, look_at
from nerftrain.config import scene_plan
from nerftrain.errors import UserError
from nerftrain.scenes import Scene
from nerftrain.scenes.world import scale_of

WIDTH, HEIGHT, FOCAL = 40, 30, 35.0
NUM_VIEWS, NUM_TRAIN = 9, 7
FLOOR = -0.5  # height of what cameras see, which is level


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path / "cache"))


def capture(root: Path, unit: float = 0.001, fisheye: bool = False, **content) -> Path:
    """Write a capture of a floor, with 16-bit maps of how far it is as nerfstudio tells it."""
    angles = torch.arange(NUM_VIEWS).double() * (2 * math.pi / NUM_VIEWS)
    places = torch.stack([2 * angles.cos(), 2 * angles.sin(), torch.ones(NUM_VIEWS)], 1).double()
    up = torch.tensor([0.0, 0, 1]).double()
    poses = look_at(places, torch.tensor([0.1, 0.0, FLOOR]).double(), up)
    frames = []
    for folder in ("images", "depth"):
        (root / folder).mkdir(parents=True)
    for i, pose in enumerate(poses):
        Image.new("RGB", (WIDTH, HEIGHT), (i, 80, 90)).save(root / f"images/{i}.png")
        save_map(root / f"depth/{i}.png", floor_depths(pose, fisheye) / unit)
        matrix = torch.cat([pose, torch.tensor([[0.0, 0, 0, 1]]).double()]).tolist()
        frames.append(
            {
                "file_path": f"images/{i}.png",
                "transform_matrix": matrix,
                "depth_file_path": f"depth/{i}.png",
            }
        )
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "w": WIDTH, "h": HEIGHT}
    lens |= {"camera_model": "OPENCV_FISHEYE"} if fisheye else {}
    (root / "transforms.json").write_text(json.dumps({**lens, **content, "frames": frames}))
    return root


def floor_depths(pose: torch.Tensor, fisheye: bool) -> np.ndarray:
    """Find how far the floor is, along the axis of a pinhole or the rays of a fisheye, by hand."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    right, down = (x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL
    ahead = np.ones_like(right)
    if fisheye:
        angle = np.hypot(right, down)
        across = np.sin(angle) / np.maximum(angle, 1e-9)
        right, down, ahead = right * across, down * across, np.cos(angle)
    directions = np.stack([right, -down, -ahead], -1) @ pose[:, :3].numpy().T
    along = (FLOOR - float(pose[2, 3])) / directions[..., 2]  # directions are 1 long ahead, or 1
    return np.where((along > 0) & (along < 30), along, 0)


def save_map(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.round().clip(0, 65535).astype(np.uint16)).save(path)


def load(root: Path, **changes) -> Scene:
    plan = scene_plan("transforms")
    values = {**plan.values, "root": str(root), "depths": "maps"}
    return replace(plan, values=values | changes).build()


def refused(root: Path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(root: Path, change) -> None:
    content = json.loads((root / "transforms.json").read_text())
    change(content)
    (root / "transforms.json").write_text(json.dumps(content))


def heights_of_ends(scene: Scene) -> torch.Tensor:
    """Follow all rays of the training images to their depths: heights above the floor."""
    train, ends = scene.splits["train"], []
    assert train.depths is not None
    assert scene.world is not None
    for index in range(len(train)):
        rays = image_rays(train.cameras, index, 0.0, 1.0)
        its = train.depths.values[int(train.offsets[index]) : int(train.offsets[index + 1])].float()
        places = rays.origins + its[:, None] * rays.directions
        ends.append(places[its > 0])
    back = torch.linalg.inv(scene.world)
    return torch.cat(ends).double() @ back[2, :3] + back[2, 3] - FLOOR


@pytest.mark.parametrize("fisheye", [False, True])
@pytest.mark.parametrize(
    ("unit", "content"),
    [
        (0.001, {}),
        (0.0005, {"depth_unit_scale_factor": 0.0005}),
        (0.0005, {"integer_depth_scale": 0.0005}),
    ],
)
def test_rays_end_on_what_the_maps_show(tmp_path: Path, fisheye: bool, unit: float, content: dict):
    scene = load(capture(tmp_path / "scene", unit, fisheye, **content))
    heights = heights_of_ends(scene)
    assert len(heights) > 0.9 * NUM_TRAIN * WIDTH * HEIGHT * (0.9 if fisheye else 1)
    # float16 and the map's unit, at up to 30 away; most is about 2.5 away
    assert heights.abs().quantile(0.9) < 0.003
    assert heights.abs().max() < 0.03
    assert scene.splits["test"].depths is None
    assert load(tmp_path / "scene", depths="none").splits["train"].depths is None


def test_instant_ngps_key_and_arrays_are_read(tmp_path: Path):
    root = capture(tmp_path / "scene")
    whole = load(root).splits["train"].depths
    for i in range(NUM_VIEWS):
        with Image.open(root / f"depth/{i}.png") as image:
            np.save(root / f"depth/{i}.npy", np.array(image).astype(np.float32)[..., None])

    def rename(content: dict) -> None:
        for i, frame in enumerate(content["frames"]):
            frame["depth_path"] = f"depth\\{i}.npy"
            del frame["depth_file_path"]

    edit(root, rename)
    found = load(root).splits["train"].depths
    assert found is not None
    assert whole is not None
    assert torch.equal(found.values, whole.values)


def test_maps_of_other_sizes_give_the_nearest_pixels_depth(tmp_path: Path):
    root = capture(tmp_path / "scene")
    for i in range(NUM_VIEWS):
        steps = np.repeat(np.repeat(np.array([[1, 2], [3, 4]]), 3, 0), 4, 1)  # 6 x 8 of 30 x 40
        save_map(root / f"depth/{i}.png", 1000 * steps)
    train = load(root).splits["train"]
    assert train.depths is not None
    scene_units = scale_of(load(root).world)  # type: ignore[arg-type]
    depths = train.depths.values.float().view(-1, HEIGHT, WIDTH)
    for index in range(len(train)):
        directions = image_rays(train.cameras, index, 0.0, 1.0).directions
        ahead = (directions @ -train.cameras.poses[index, :, 2]).view(HEIGHT, WIDTH)
        expected = torch.ones(HEIGHT, WIDTH)
        expected[:, WIDTH // 2 :] += 1
        expected[HEIGHT // 2 :] += 2
        torch.testing.assert_close(depths[index] * ahead / scene_units, expected, rtol=1e-3, atol=0)
    shrunk = load(root, downscale=2.0).splits["train"].depths
    assert shrunk is not None
    assert len(shrunk.values) == NUM_TRAIN * WIDTH * HEIGHT // 4


def test_what_is_no_depth_is_unknown(tmp_path: Path):
    root = capture(tmp_path / "scene")
    values = np.full((HEIGHT, WIDTH), 2000.0, np.float32)
    values[0, :4] = [np.nan, np.inf, -1.0, 0.0]
    values[1, 0] = 1e12
    np.save(root / "depth/1.npy", values)

    def change(content: dict) -> None:
        content["frames"][1]["depth_file_path"] = "depth/1.npy"
        del content["frames"][2]["depth_file_path"]

    edit(root, change)
    train = load(root).splits["train"]
    assert train.depths is not None
    assert train.names[:2] == ("1.png", "2.png")
    first, second = train.depths.values.view(-1, HEIGHT * WIDTH)[:2]
    assert first.isfinite().all()
    assert (first == 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3, WIDTH]
    assert not second.any()


def drop_all(content: dict) -> None:
    for frame in content["frames"]:
        del frame["depth_file_path"]


def name_a_folder(content: dict) -> None:
    content["frames"][3]["depth_file_path"] = "depth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_all, "no frame of PATH that is trained on names one, by depth_file_path or"),
        (name_a_folder, "PATH: frame 3 ('images/3.png'): its depth map 'depth' is missing"),
        (
            lambda c: c.update(depth_unit_scale_factor=0),
            "depth_unit_scale_factor = 0: must be more",
        ),
        (lambda c: c.update(integer_depth_scale="mm"), "integer_depth_scale = 'mm': must be more"),
    ],
)
def test_what_the_file_lacks_is_told(tmp_path: Path, change, message: str):
    root = capture(tmp_path / "scene")
    edit(root, change)
    assert message.replace("PATH", str(root / "transforms.json")) in refused(root)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no image"), "is truncated or no image"),
        (lambda path: Image.new("L", (40, 30), 9).save(path), "is no depth map: give one channel"),
        (lambda path: Image.new("RGB", (40, 30)).save(path), "is no depth map: give one channel"),
        (lambda path: save_map(path, np.ones((40, 30))), "is 30x40, but its photograph"),
    ],
)
def test_maps_that_are_none_are_told(tmp_path: Path, write, message: str):
    root = capture(tmp_path / "scene")
    write(root / "depth/4.png")
    said = refused(root)
    assert str(root / "depth/4.png") in said
    assert message in said


def test_a_damaged_array_and_maps_of_nothing_are_told(tmp_path: Path):
    root = capture(tmp_path / "scene")
    edit(root, lambda content: content["frames"][4].update(depth_file_path="depth/4.npy"))
    (root / "depth/4.npy").write_bytes(b"nothing")
    assert "depth/4.npy is no array of numpy's" in refused(root)
    np.save(root / "depth/4.npy", np.zeros((HEIGHT, WIDTH), np.float32))
    for i in range(NUM_VIEWS):
        save_map(root / f"depth/{i}.png", np.zeros((HEIGHT, WIDTH)))
    assert "hold nothing above 0: leave it out" in refused(root)


def test_rays_know_the_depths_of_their_pixels(tmp_path: Path):
    scene = load(capture(tmp_path / "scene"))
    train = scene.splits["train"]
    generator = torch.Generator().manual_seed(0)
    batch = scene.batch(generator, 500, torch.ones(500, 3))
    assert batch.depths is not None
    ends = batch.rays.origins + batch.depths[:, None] * batch.rays.directions
    assert scene.world is not None
    back = torch.linalg.inv(scene.world)
    heights = (ends.double() @ back[2, :3] + back[2, 3] - FLOOR)[batch.depths > 0]
    assert len(heights) > 400
    assert heights.abs().quantile(0.9) < 0.003
    assert load(tmp_path / "scene", train_views=3).splits["train"].names == (
        train.names[0],
        train.names[2],
        train.names[4],
    )
