"""The matrix: every kind of scene with every model, every sampler and every background trains."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import SAMPLERS, frames_of, make_dynamic

from nerftrain.composition import compose
from nerftrain.config import assemble, create_run_dir
from nerftrain.errors import UserError
from nerftrain.report import read_curve
from nerftrain.scenes.demo import render_folder
from nerftrain.trainer import Run, train

MODELS = {
    "mlp": ["model.depth=2", "model.width=32", "model.skip=1", "optimizer.lr=0.004"],
    "ngp": ["model.encoding.log2_table_size=12", "model.encoding.finest_resolution=64"],
}
COMMON = [
    "trainer.steps=60",
    "trainer.max_seconds=null",
    "trainer.sample_budget=2048",
    "trainer.orbit_frames=0",
    "trainer.intervals.log=3",
    "scheduler.warmup_steps=10",
    "logger=none",
    "runtime.threads=1",
]


def make_photographs(folder: Path) -> tuple[float, list[tuple[str, np.ndarray]]]:
    """Turn all views of a Blender folder into photographs without alpha; give names and poses."""
    views = []
    (folder / "images").mkdir()
    angle = 0.0
    for split in ("train", "test"):
        angle, frames = frames_of(folder, split)
        for frame in frames:
            image = Image.open((folder / frame["file_path"]).with_suffix(".png"))
            name = f"{split}_{Path(frame['file_path']).stem}.png"
            backdrop = Image.new("RGBA", image.size, "orange")
            Image.alpha_composite(backdrop, image).convert("RGB").save(folder / "images" / name)
            views.append((name, np.array(frame["transform_matrix"])))
        (folder / f"transforms_{split}.json").unlink()
        shutil.rmtree(folder / split)
    return angle, views


def make_transforms(folder: Path) -> None:
    """Turn a Blender folder into a capture with one transforms.json."""
    angle, views = make_photographs(folder)
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": pose.tolist()} for name, pose in views
    ]
    content = {"camera_angle_x": angle, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))


def make_colmap(folder: Path) -> None:
    """Turn a Blender folder into a capture with a COLMAP model in text."""
    pycolmap = pytest.importorskip("pycolmap", reason="COLMAP models: pip install pycolmap")
    angle, views = make_photographs(folder)
    size = Image.open(next((folder / "images").iterdir())).width
    focal = 0.5 * size / math.tan(0.5 * angle)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    center = size / 2
    (model / "cameras.txt").write_text(f"1 PINHOLE {size} {size} {focal} {focal} {center} {center}")
    lines = []
    for number, (name, pose) in enumerate(views, 1):
        inverse = np.linalg.inv(pose @ np.diag([1, -1, -1, 1]))  # COLMAP looks along +z, y down
        x, y, z, w = pycolmap.Rotation3d(inverse[:3, :3]).quat
        numbers = " ".join(map(str, (w, x, y, z, *inverse[:3, 3])))
        lines += [f"{number} {numbers} 1 {name}", ""]
    (model / "images.txt").write_text("\n".join(lines))
    (model / "points3D.txt").write_text("")


SCENES: dict[str, Callable[[Path], None]] = {
    "blender": lambda folder: None,
    "dnerf": make_dynamic,
    "colmap": make_colmap,
    "transforms": make_transforms,
}


@pytest.fixture(scope="session")
def scene_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes one tiny folder for each kind of scene."""

    @functools.cache
    def make(kind: str) -> Path:
        root = tmp_path_factory.mktemp(kind)
        render_folder(root, 24, 7, 2)
        SCENES[kind](root)
        return root

    return make


@pytest.mark.parametrize("background", ["auto", "random", "white", "black"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scene", SCENES)
def test_every_combination_trains_or_is_refused_in_a_sentence(
    scene_root: Callable[[str], Path],
    tmp_path: Path,
    scene: str,
    model: str,
    sampler: str,
    background: str,
):
    choices = [f"scene={scene}", f"model={model}", f"sampler={sampler}", f"background={background}"]
    folders = [f"scene.root={scene_root(scene)}", f"run_dir={tmp_path / 'run'}"]
    cfg = compose([*choices, *folders, *MODELS[model], *SAMPLERS[sampler], *COMMON])
    if background == "random" and scene in ("colmap", "transforms"):
        with pytest.raises(UserError, match=r"needs images with alpha, .*: leave it out, or add"):
            assemble(cfg)
        return
    run = create_run_dir(assemble(cfg))
    final = train(run)
    losses = [row["loss/color"] for row in read_curve(run.run_dir) if "loss/color" in row]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert math.isfinite(final["psnr"])
    assert final["psnr"] > 8


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scene", ["dnerf", "colmap"])
def test_a_resumed_run_is_the_same_bit_for_bit(
    scene_root: Callable[[str], Path], tmp_path: Path, scene: str, sampler: str
):
    def make(name: str, steps: int) -> Run:
        choices = [f"scene={scene}", "model=ngp", f"sampler={sampler}", *MODELS["ngp"]]
        folders = [f"scene.root={scene_root(scene)}", f"run_dir={tmp_path / name}"]
        # A constant rate: how far a run is on its way must not matter where it is stopped.
        rates = [f"trainer.steps={steps}", "scheduler=constant", "scheduler.warmup_steps=10"]
        return assemble(compose([*choices, *folders, *SAMPLERS[sampler], *COMMON, *rates]))

    whole, half = create_run_dir(make("whole", 40)), create_run_dir(make("half", 20))
    train(whole)
    train(half)
    rest = replace(make("half", 40), run_dir=half.run_dir)
    train(rest, resume=True)
    again = {**rest.model.state_dict(), **rest.sampler.state_dict()}
    for name, value in {**whole.model.state_dict(), **whole.sampler.state_dict()}.items():
        assert torch.equal(value, again[name]), name
