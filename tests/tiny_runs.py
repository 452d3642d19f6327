"""Settings of samplers and scenes so small that a test can train with them."""

from __future__ import annotations

import json
from pathlib import Path

from nerftrain.cli import main
from nerftrain.scenes.demo import render_folder

GRID = {"resolution": 32, "cells_per_update": 4096, "warmup_steps": 16}
SAMPLERS = {
    "occgrid": [f"sampler.grid.{key}={value}" for key, value in GRID.items()]
    + ["sampler.steps_per_diagonal=64"],
    "proposal": [
        *(f"sampler.levels.{i}.encoding.log2_table_size=10" for i in (0, 1)),
        "sampler.levels.0.num_samples=24",
        "sampler.levels.1.num_samples=16",
        "sampler.num_samples=16",
    ],
    "hierarchical": ["sampler.num_coarse=16", "sampler.num_fine=16"],
    "uniform": ["sampler.num_samples=32"],
}


def frames_of(folder: Path, split: str) -> tuple[float, list[dict]]:
    content = json.loads((folder / f"transforms_{split}.json").read_text())
    return content["camera_angle_x"], content["frames"]


def make_dynamic(folder: Path) -> None:
    """Give a Blender folder's views times."""
    for split in ("train", "test"):
        angle, frames = frames_of(folder, split)
        for i, frame in enumerate(frames):
            frame["time"] = i / (len(frames) - 1)
        content = {"camera_angle_x": angle, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))


def train_tiny(folder: Path, moves: bool = False, *choices: str) -> Path:
    """Train a small field on the demo scene, in `folder`; return the run's folder."""
    choices = choices or ("sampler.grid.resolution=32",)
    scene = folder / "scene"
    scene.mkdir()
    render_folder(scene, 32, 12, 2)
    if moves:
        make_dynamic(scene)
    command = [
        f"scene={'dnerf' if moves else 'blender'}",
        f"scene.root={scene}",
        "model.encoding.log2_table_size=12",
        "model.encoding.finest_resolution=64",
        *choices,
        "trainer.sample_budget=4096",
        "trainer.orbit_frames=0",
        "trainer.max_seconds=null",
        "trainer.steps=150",
        "runtime.threads=1",
        "logger=none",
        f"run_dir={folder / 'run'}",
    ]
    assert main(command) == 0
    return folder / "run"
