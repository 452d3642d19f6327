"""A start that trains nothing leaves nothing: neither more nor less than there was before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import SAMPLERS

from nerftrain import trainer
from nerftrain.cli import main
from nerftrain.errors import UserError

Start = Callable[..., int]


@pytest.fixture
def start(tiny_scene_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a tiny run whose rays meet nothing; the working directory is empty."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(trainer, "ENOUGH_RAYS", 1)  # of those that steps so small have
    scene = ["scene=blender", f"scene.root={tiny_scene_root}", "scene.near=20", "scene.far=30"]
    steps = ["trainer.steps=10", "trainer.intervals.log=5", "trainer.orbit_frames=0"]
    small = ["model.encoding.log2_table_size=8", "runtime.threads=1", *SAMPLERS["uniform"]]

    def command(*overrides: str) -> int:
        return main([*scene, "sampler=uniform", *small, *steps, *overrides])

    return command


def files(folder: Path = Path()) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("folder", [[], ["run_dir=a/run"], ["-m", "hydra.sweep.dir=all"]])
def test_a_mistake_that_shows_in_training_leaves_nothing(
    start: Start, capfd: pytest.CaptureFixture[str], folder: list[str]
):
    often = "trainer.intervals.evaluate_seconds=1e-6"
    assert start(*folder, often) == 2
    assert "no ray has met anything" in capfd.readouterr().err
    left = {Path(name).parts[:2] for name in files()}
    own = [("all", name) for name in ("jobs", "SWEEP.md", "multirun.yaml", "sweep.csv")]
    assert left == (set(own) if "-m" in folder else set())
    assert not Path("outputs").exists()


def test_what_is_older_is_kept(start: Start):
    for name in ("env.json", "images/0001.jpg", "tb/events.out.1", "notes.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("mine", encoding="utf-8")
    before = set(files())
    assert start("run_dir=.") == 2
    assert set(files()) == before
    assert Path("images/0001.jpg").read_text() == "mine"


def test_what_was_trained_is_kept(start: Start, monkeypatch: pytest.MonkeyPatch):
    def full(self: trainer.Journal, name: str) -> None:
        raise UserError(f"cannot write checkpoint {name}")

    monkeypatch.setattr(trainer.Journal, "save", full)
    assert start("run_dir=run", "scene.near=2", "scene.far=6") == 2
    assert {"run/REPORT.md", "run/metrics.json", "run/metrics.jsonl"} <= set(files())
