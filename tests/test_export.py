from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import train_tiny

from nerftrain import export
from nerftrain.cli import main

trimesh = pytest.importorskip("trimesh", reason="exports: pip install 'nerftrain[export]'")
pytest.importorskip("skimage", reason="exports: pip install 'nerftrain[export]'")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def moving_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("moving"), moves=True)


def test_a_mesh_is_written_with_colours(run: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["export", str(run), "--resolution", "24"]) == 0
    file = run / "exports" / "mesh-last.ply"
    assert str(file) in capfd.readouterr().out
    written = trimesh.load(file, process=False)
    assert len(written.faces) > 100
    assert written.visual.vertex_colors[:, :3].std(axis=0).min() > 5
    assert np.abs(written.vertices).max() < 1.6  # the demo's box
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("suffix", [".obj", ".glb", ".stl", ".off"])
def test_other_formats_hold_the_same_triangles(run: Path, tmp_path: Path, suffix: str):
    files = [tmp_path / "new" / f"a{end}" for end in (".ply", suffix)]
    for file in files:
        assert main(["export", str(run), "--resolution", "16", "--out", str(file)]) == 0
    counts = {len(trimesh.load(file, process=False, force="mesh").faces) for file in files}
    assert len(counts) == 1


def test_points_are_written_as_many_as_wanted(run: Path):
    assert main(["export", str(run), "--points", "--count", "200"]) == 0
    cloud = trimesh.load(run / "exports" / "points-last.ply")
    assert cloud.vertices.shape == (200, 3)
    assert cloud.colors[:, :3].std(axis=0).min() > 5


def test_a_moment_of_a_scene_that_moves_is_named(moving_run: Path):
    command = ["export", str(moving_run), "--resolution", "16", "--time"]
    assert main([*command, "0.25"]) == 0
    assert (moving_run / "exports" / "mesh-time0.25-last.ply").is_file()


def test_positions_lead_back_to_the_datasets_coordinates():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3] = 0.3 * turn.Q
    world[:3, 3] = torch.tensor([1.0, -2.0, 0.5])
    theirs = np.random.default_rng(2).normal(size=(5, 3))
    ours = theirs @ world[:3, :3].numpy().T + world[:3, 3].numpy()
    np.testing.assert_allclose(export.from_scene(ours, world), theirs)
    np.testing.assert_array_equal(export.from_scene(ours, None), ours)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--out", "a.gltf2"], "ends in .ply .obj .glb .stl .off"),
        (["--points", "--out", "a.obj"], "ends in .ply .glb .xyz"),
        (["--box", "0"], "--box 0: give a number above 0"),
        (["--box", "nan"], "--box nan: give a number above 0"),
        (["--box", "0.001"], "nothing solid is seen in the box"),
        (["--time", "0.5"], "nothing moves in scene"),
        (["--resolution", "4"], "8 to 1024"),
        (["--points", "--resolution", "64"], "--resolution has no effect on points"),
        (["--count", "64"], "--count has no effect on a mesh"),
        (["--checkpoint", "none"], "no checkpoint 'none'"),
        (["--out", "/dev/null/a.ply"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Path, capfd: pytest.CaptureFixture[str], options: list[str], line: str
):
    assert main(["export", str(run), *options]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("nerftrain: ")
    assert line in last


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_rendered(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(export, "depth_views", lambda *_: pytest.fail("it has been rendered"))
    assert main(["export", str(run), "--out", str(tmp_path / "file" / "a.ply")]) == 2
    assert "give another place by --out" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("time", "line"), [([], "moves: say of which"), (["--time", "2"], "0 for")]
)
def test_a_scene_that_moves_needs_a_time(
    moving_run: Path, capfd: pytest.CaptureFixture[str], time: list[str], line: str
):
    assert main(["export", str(moving_run), *time]) == 2
    assert line in capfd.readouterr().err


def test_a_missing_library_is_named(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    assert main(["export", str(run)]) == 2
    assert "pip install 'nerftrain[export]'" in capfd.readouterr().err
