from __future__ import annotations

import os
import pickle
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nerftrain import checkpoint
from nerftrain.errors import UserError


class Field(torch.nn.Module):
    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.first = torch.nn.Linear(3, width)
        self.second = torch.nn.Linear(width, 4)


class Grid(torch.nn.Module):
    name = "occgrid"

    def __init__(self, resolution: int = 4) -> None:
        super().__init__()
        self.register_buffer("occupancy", torch.rand(resolution**3))


def state_of(model: torch.nn.Module, sampler: torch.nn.Module, **more: object) -> dict:
    names = {"model": {"name": model.name}, "sampler": {"name": sampler.name}}
    weights = {"model": model.state_dict(), "sampler": sampler.state_dict()}
    return {**weights, "step": 7, "seconds": 1.5, "config": names, **more}


@pytest.fixture
def state() -> dict:
    return state_of(Field("ngp", 8), Grid())


def fails_in_one_line(call, *expected: str) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in expected), text
    return text


def test_what_is_saved_is_loaded(tmp_path, state):
    state["random"] = {"cpu": torch.get_rng_state(), "draws": (1, 2.5, "x", None, True)}
    checkpoint.save(tmp_path / "checkpoints" / "last.pt", state)
    loaded = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert torch.equal(loaded["model"]["first.weight"], state["model"]["first.weight"])
    assert torch.equal(loaded["random"]["cpu"], state["random"]["cpu"])
    assert loaded["random"]["draws"] == (1, 2.5, "x", None, True)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, state):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files fails a write half-way, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        large = {**state, "ema": {"table": torch.rand(1 << 20)}}
        fails_in_one_line(lambda: checkpoint.save(path, large), str(path), "previous", "disk space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_an_interrupt_while_saving_leaves_the_previous_checkpoint(tmp_path, state, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state)
    before = path.read_bytes()

    def interrupted(_: object, file: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, state)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


KILLED = """
import os, signal, sys, torch
from nerftrain import checkpoint
def half(state, file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
checkpoint.save(sys.argv[1], {})
"""


def test_what_a_killed_process_has_half_written_is_removed_by_the_next_save(tmp_path, state):
    killed = [sys.executable, "-c", KILLED, str(tmp_path / "best.pt")]
    root = str(Path(checkpoint.__file__).parents[1])
    subprocess.run(killed, env={**os.environ, "PYTHONPATH": root}, check=False)
    assert len(list(tmp_path.glob(".best.pt.*.part"))) == 1
    checkpoint.save(tmp_path / "last.pt", state)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_what_may_still_be_written_is_not_removed_before_an_hour(tmp_path, state):
    alive = f".last.pt.{platform.node()}.{os.getppid()}.part"
    names = [alive, ".last.pt.elsewhere.org.pt.1.part", ".last.pt.7.part"]  # the last of before
    others = [".film.mp4.part", ".last.pt.part", "last.pt.elsewhere.1.part"]
    for name in (*names, *others):
        (tmp_path / name).write_bytes(b"half")
    checkpoint.save(tmp_path / "last.pt", state)
    assert {p.name for p in tmp_path.iterdir()} == {"last.pt", *names, *others}
    for name in (*names, *others):
        os.utime(tmp_path / name, (time.time() - 4000,) * 2)
    checkpoint.save(tmp_path / "last.pt", state)
    assert {p.name for p in tmp_path.iterdir()} == {"last.pt", *others}


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path, state):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "checkpoints" / "last.pt"
    fails_in_one_line(lambda: checkpoint.save(path, state), str(path), "run_dir")


def test_a_missing_checkpoint_says_so(tmp_path):
    path = tmp_path / "none.pt"
    fails_in_one_line(lambda: checkpoint.load(path), str(path), "missing")
    fails_in_one_line(lambda: checkpoint.load(tmp_path), "a folder")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_says_so(tmp_path, state, share):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    fails_in_one_line(lambda: checkpoint.load(path), str(path), "cut short", "best")


def test_a_damaged_checkpoint_says_so(tmp_path, state):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state)
    whole = bytearray(path.read_bytes())
    start = whole.index(b"data.pkl") + 8
    whole[start : start + 60] = bytes(60)
    path.write_bytes(whole)
    fails_in_one_line(lambda: checkpoint.load(path), str(path))


def test_what_is_no_checkpoint_says_so(tmp_path):
    path = tmp_path / "picture.pt"
    path.write_bytes(b"\x89PNG rather than weights")
    fails_in_one_line(lambda: checkpoint.load(path), str(path), "no checkpoint")
    torch.save({"weights": torch.ones(2)}, path)
    fails_in_one_line(lambda: checkpoint.load(path), "no nerftrain checkpoint")


class Trap:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("legacy", [False, True])
def test_an_object_in_a_checkpoint_is_never_run(tmp_path, state, legacy):
    victim, path = tmp_path / "executed", tmp_path / "trap.pt"
    state = {"format": checkpoint.FORMAT, **state, "trap": Trap(victim)}
    if legacy:
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path)
    fails_in_one_line(lambda: checkpoint.load(path), str(path))
    assert not victim.exists()


def test_another_format_names_both(tmp_path, state):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {**state, "format": 99})
    fails_in_one_line(lambda: checkpoint.load(path), "format 99", "reads 1")


def test_restore_fills_model_sampler_and_optimizer():
    source, grid = Field("ngp", 8), Grid()
    trained = torch.optim.Adam(source.parameters(), lr=0.5)
    source.second(source.first(torch.rand(2, 3))).sum().backward()
    trained.step()
    saved = state_of(source, grid, optimizer=trained.state_dict())

    model, sampler = Field("ngp", 8), Grid()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    checkpoint.restore(saved, model=model, sampler=sampler, optimizer=optimizer)
    assert torch.equal(model.first.weight, source.first.weight)
    assert torch.equal(sampler.occupancy, grid.occupancy)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("use_ema", [False, True])
def test_averaged_weights_are_taken_where_asked_for(state, use_ema):
    model = Field("ngp", 8)
    state["ema"] = {"first.weight": torch.full_like(model.first.weight, 3.0)}
    checkpoint.restore(state, model=model, sampler=Grid(), use_ema=use_ema)
    assert bool((model.first.weight == 3.0).all()) == use_ema
    assert torch.equal(model.second.weight, state["model"]["second.weight"])


def test_a_checkpoint_of_another_model_names_both_and_the_parameter(state):
    other = Field("mlp", 16)
    before = other.second.bias.clone()
    call = lambda: checkpoint.restore(state, model=other, sampler=Grid())  # noqa: E731
    fails_in_one_line(call, "'ngp'", "'mlp'", "first.weight", "[8, 3]", "[16, 3]")
    assert torch.equal(other.second.bias, before)


def test_a_checkpoint_with_other_parameters_names_the_first(state):
    other = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2)})
    call = lambda: checkpoint.restore(state, model=other, sampler=Grid())  # noqa: E731
    fails_in_one_line(call, "'ngp'", "layer.weight", "missing in the checkpoint")


def test_a_checkpoint_of_another_sampler_names_both(state):
    model = Field("ngp", 8)
    call = lambda: checkpoint.restore(state, model=model, sampler=Grid(8))  # noqa: E731
    fails_in_one_line(call, "sampler 'occgrid'", "occupancy", "[64]", "[512]")
    assert not torch.equal(model.first.weight, state["model"]["first.weight"])


def test_find_takes_a_name_or_a_path_and_lists_what_is_there(tmp_path, state):
    checkpoint.save(tmp_path / "checkpoints" / "last.pt", state)
    assert checkpoint.find(tmp_path, "last").name == "last.pt"
    path = tmp_path / "elsewhere.pt"
    checkpoint.save(path, state)
    assert checkpoint.find(tmp_path, str(path)) == path
    fails_in_one_line(lambda: checkpoint.find(tmp_path, "best"), "'best'", "present: last")
