"""What a run leaves for Weights & Biases, read out of wandb's own files."""

from __future__ import annotations

import io
import json
import os
import struct
import sys

import pytest
import torch

from nerftrain.cli import main
from nerftrain.errors import UserError
from nerftrain.weights_and_biases import WeightsAndBiases

TINY = [
    *("scene.resolution=16", "scene.num_train=4", "scene.num_test=2", "trainer.steps=4"),
    *("trainer.orbit_frames=0", "trainer.max_rays=64", "model.width=16", "trainer.intervals.log=1"),
]
OF = {"project": "p", "entity": None, "group": None, "name": None, "tags": [], "mode": None}
_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7  # of LevelDB's log format, in bytes


@pytest.fixture(autouse=True)
def nobody_at_home(monkeypatch, tmp_path):
    """Take away whatever account and settings the machine has."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it reads the environment once
    yield
    wandb.teardown()


def records(run_dir):
    """Read all records of a run, oldest file first."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at a process's end: its own process may still be writing
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = path.read_bytes(), _FILE_HEADER, b""
        while at + _HEADER <= len(data):
            if _BLOCK - at % _BLOCK < _HEADER:  # no room for another header
                at += _BLOCK - at % _BLOCK
                continue
            _, length, part = struct.unpack_from("<IHB", data, at)
            whole += data[at + _HEADER : at + _HEADER + length]
            at += _HEADER + length
            if part in (1, 4):  # whole, or the last of several
                record = Record()
                record.ParseFromString(whole)
                yield record
                whole = b""


def rows(run_dir):
    """Return what was logged, as dicts; a figure's name may come as a path."""
    return [
        {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in r.history.item
        }
        for r in records(run_dir)
        if r.HasField("history")
    ]


def settled(run_dir, kind):
    """Return the last values of what was updated piece by piece, the config or the summary."""
    values = {}
    for record in records(run_dir):
        updates = [record.run.config] if kind == "config" and record.HasField("run") else []
        updates += [getattr(record, kind)] if record.HasField(kind) else []
        for update in updates:
            for item in update.update:
                values["/".join([item.key, *item.nested_key]).strip("/")] = json.loads(
                    item.value_json
                )
    return values


def test_figures_lie_against_steps_and_images_are_kept(tmp_path):
    logger = WeightsAndBiases(**{**OF, "mode": "offline", "tags": ["a"]})
    logger.open(tmp_path)
    for step in (10, 20):
        logger.scalars({"loss": step / 10, "psnr": None}, step, step / 100)
    logger.image("preview", torch.full((4, 6, 3), 0.5), 20)
    logger.hparams({"model": {"name": "ngp", "width": 32}}, {"psnr": 30.5, "split": "test"})
    logger.close()
    figures = [row for row in rows(tmp_path) if "loss" in row]
    assert [(row["step"], row["seconds"], row["loss"]) for row in figures] == [
        (10, 0.1, 1.0),
        (20, 0.2, 2.0),
    ]
    assert not any("psnr" in row for row in figures)
    (picture,) = [row for row in rows(tmp_path) if any(key.startswith("preview") for key in row)]
    assert picture["step"] == 20
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/preview*.png"))) == 1
    assert settled(tmp_path, "config")["model"] == {"name": "ngp", "width": 32}
    assert settled(tmp_path, "summary")["final/psnr"] == 30.5
    (begun,) = [record.run for record in records(tmp_path) if record.HasField("run")]
    assert begun.project == "p"
    assert list(begun.tags) == ["a"]
    assert begun.display_name == "/".join(tmp_path.parts[-3:])


def test_a_run_that_goes_on_is_the_same_run(tmp_path, capsys):
    run_dir = tmp_path / "run"
    overrides = [*TINY, "logger=wandb", "logger.mode=offline", f"run_dir={run_dir}"]
    assert main(overrides) == 0
    assert "offline; wandb sync" in capsys.readouterr().out
    assert main(["resume", str(run_dir), "trainer.steps=6"]) == 0
    begun = [record.run for record in records(run_dir) if record.HasField("run")]
    assert len({run.run_id for run in begun}) == 1
    assert len(list(run_dir.glob("wandb/offline-run-*"))) == 2
    assert [row["step"] for row in rows(run_dir) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    config, metrics = settled(run_dir, "config"), json.loads((run_dir / "metrics.json").read_text())
    assert config["model"]["name"] == "ngp"
    assert config["trainer"]["steps"] == 6
    assert settled(run_dir, "summary")["final/psnr"] == pytest.approx(metrics["psnr"])


def test_nobody_logged_in_is_told_before_the_first_step(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # no terminal that could be asked
    assert main([*TINY, "logger=wandb", "run_dir=run"]) == 2
    (line,) = [t for t in capfd.readouterr().err.splitlines() if t.startswith("nerftrain:")]
    assert "wandb login" in line
    assert "logger.mode=offline" in line
    assert not (tmp_path / "run").exists()


def test_without_wandb_there_is_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'nerftrain\[wandb\]'"):
        WeightsAndBiases(**OF).open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_judged_without_wandb(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    assert main([*TINY, "logger=wandb", "logger.mode=offline", f"run_dir={run_dir}"]) == 0
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["eval", str(run_dir)]) == 0


def test_what_environment_variables_turn_off_stays_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WeightsAndBiases(**OF)
    logger.open(tmp_path)
    logger.scalars({"loss": 1.0}, 1, 0.1)
    logger.close()
    assert "Weights & Biases" not in capsys.readouterr().out
    assert list(tmp_path.rglob("wandb/*")) == []
