"""docs/library.md: its scripts train, and its example package runs from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "docs" / "library" / "plugin"


def run(*command: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("script", ["train_occgrid", "train_proposals"])
def test_a_field_of_ones_own_learns(script: str, tmp_path: Path):
    path = str(ROOT / "docs" / "library" / f"{script}.py")
    scores = [
        float(re.findall(r"PSNR ([\d.]+) dB", run(path, steps, cwd=tmp_path))[0])
        for steps in ("1", "120")
    ]
    assert scores[1] > scores[0] + 3


def test_normals_are_composited(tmp_path: Path):
    said = run(str(ROOT / "docs" / "library" / "render_normals.py"), "60", "out.png", cwd=tmp_path)
    assert int(re.findall(r"(\d+)% of the normals", said)[0]) > 80
    assert (tmp_path / "out.png").stat().st_size > 1000


def write_npz(path: Path) -> None:
    from nerftrain.scenes import composite_over
    from nerftrain.scenes.demo import load_scene

    views = load_scene("demo", 32, 8, 2).splits["train"]
    poses = torch.eye(4).repeat(len(views), 1, 1)
    poses[:, :3] = views.cameras.poses
    images = [composite_over(views.image(i), torch.zeros(3)).numpy() for i in range(len(views))]
    focal = float(views.cameras.intrinsics[0, 0])
    np.savez(path, images=np.stack(images), poses=poses.numpy(), focal=focal)


def test_a_package_outside_the_project_is_trained_with(tmp_path: Path):
    write_npz(tmp_path / "scene.npz")
    place = {"cwd": tmp_path, "PYTHONPATH": f"{PLUGIN}{os.pathsep}{ROOT}"}
    command = ["-m", "nerftrain", "--config-dir", str(PLUGIN / "conf"), "scene=npz"]
    command += ["scene.root=scene.npz", "model=voxels", "sampler=in_ball", "trusted=[mypackage]"]
    command += ["trainer.steps=40", "trainer.intervals.log=10", "trainer.orbit_frames=0"]
    run(*command, "run_dir=out", **place)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    losses = [row["loss/color"] for row in rows if "loss/color" in row]
    assert losses[-1] < 0.9 * losses[0]
    assert (tmp_path / "out" / "images" / "comparison.png").is_file()
    run("-m", "nerftrain", "eval", "out", "--trust", "--views", "1", **place)


def test_every_public_name_is_in_the_table():
    from nerftrain import nerfacc

    page = (ROOT / "docs" / "library.md").read_text()
    for name in set(nerfacc.__all__) - {"__version__"}:
        shown = name.replace(re.sub(r".*_from_", "", name), "*") if "_from_" in name else name
        assert f"`{shown}" in page, name
    for test in re.findall(r"test_\w+\.py", page):
        assert (ROOT / "tests" / "nerfacc" / test).is_file(), test
