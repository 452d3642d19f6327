"""Checkpoints: written beside the old one and renamed over it, read without unpickling objects."""

from __future__ import annotations

import os
import pickle
import platform
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerftrain.errors import UserError

FORMAT = 1  # raised when an older reader could no longer make sense of a file
FOLDER = "checkpoints"

# .NAME.pt.HOST.PID.part is being written; before there were hosts in them, .NAME.pt.PID.part.
_PARTIAL = re.compile(r"\..+?\.pt\.(?:(?P<host>.*)\.)?(?P<pid>\d{1,9})\.part")
_ABANDONED_SECONDS = 3600.0
_ANOTHER = "use another one of the run, e.g. by --checkpoint best"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that at every moment a whole one lies at ``path``.

    What processes that were killed have left half-written in its folder is removed first.

    Raises:
        UserError: where it cannot be written, e.g. on a full disk; an earlier file is left whole.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            _remove_abandoned(path.parent, os.fstat(file.fileno()).st_mtime)
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch's zip writer turns some OSErrors into RuntimeErrors
        kept = "the previous one is kept" if path.exists() else "there is no earlier one"
        raise UserError(
            f"cannot write checkpoint {path}: {_one_line(error)}; {kept}. "
            "Free disk space there or choose another run_dir"
        ) from error
    finally:
        _remove(partial)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: where the file is missing, cut short, of another format or no checkpoint at all.
    """
    path = Path(path)
    _check_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, so it was not "
            "opened: nerftrain did not write it; pass a .pt file from a run's checkpoints folder"
        ) from error
    except Exception as error:  # torch documents no list, and a damaged file raises nearly anything
        raise UserError(
            f"checkpoint {path} is damaged ({_one_line(error)[:120]}); {_ANOTHER}"
        ) from error
    _check_format(path, state)
    return state


def is_there(run_dir: Path) -> bool:
    """Tell whether a run has any checkpoint."""
    return any((Path(run_dir) / FOLDER).glob("*.pt"))


def find_last(run_dir: Path) -> Path:
    """Return the checkpoint that a run goes on from.

    It is ``best`` where a run was killed after its first evaluation and before its first ``last``.

    Raises:
        UserError: there is none.
    """
    present = {path.stem for path in (Path(run_dir) / FOLDER).glob("*.pt")}
    return find(run_dir, "best" if "best" in present and "last" not in present else "last")


def find(run_dir: Path, which: str) -> Path:
    """Return the checkpoint of a run called ``last`` or ``best``, or the path given in their place.

    Raises:
        UserError: where it does not exist, with the ones that do.
    """
    folder = Path(run_dir) / FOLDER
    for candidate in (folder / f"{which}.pt", folder / which, Path(which)):
        if candidate.is_file():
            return candidate
    present = ", ".join(sorted(path.stem for path in folder.glob("*.pt"))) or "none"
    raise UserError(
        f"no checkpoint '{which}' in {folder}; present: {present}. "
        "Name one of these or a path to a file"
    )


def restore(
    state: Mapping[str, Any],
    *,
    model: torch.nn.Module,
    sampler: Any,
    refinement: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    use_ema: bool = False,
) -> None:
    """Put a checkpoint's weights, sampler state and optimiser state into live objects.

    Args:
        state: what ``load`` returned.
        model: the model to fill.
        sampler: the sampler to fill; one without ``load_state_dict`` has no state.
        refinement: the corrections of training cameras to fill.
        optimizer: the optimiser to fill, for training on.
        use_ema: takes the averaged weights, where the checkpoint has some.

    Raises:
        UserError: where the checkpoint is of another model, sampler or optimiser.
    """
    weights = dict(state["model"])
    learnt = state.get("refinement") or {}  # older checkpoints do not say
    _check_same("model", weights, model, state)
    if hasattr(sampler, "load_state_dict"):
        _check_same("sampler", state["sampler"], sampler, state)
    if refinement is not None:
        _check_same("refine", learnt, refinement, state)
        refinement.load_state_dict(learnt)
    if use_ema:
        weights.update(state.get("ema") or {})
    model.load_state_dict(weights)
    if hasattr(sampler, "load_state_dict"):
        sampler.load_state_dict(state["sampler"])
    if optimizer is not None:
        _restore_optimizer(state, optimizer)


def _restore_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as error:
        raise UserError(
            f"the checkpoint's optimiser state does not fit this one ({_one_line(error)}); "
            "resume with the run's own optimizer settings"
        ) from error


def _check_same(kind: str, saved: Mapping[str, Any], live: Any, state: Mapping[str, Any]) -> None:
    difference = _first_difference(saved, live.state_dict())
    if difference is None:
        return
    theirs = state.get("config", {}).get(kind, {}).get("name", "unknown")
    ours = getattr(live, "name", type(live).__name__)
    raise UserError(
        f"the checkpoint is of {kind} '{theirs}', this run has {kind} '{ours}': {difference}; "
        f"use {kind}={theirs} with the settings in that run's config.yaml"
    )


def _first_difference(saved: Mapping[str, Any], live: Mapping[str, Any]) -> str | None:
    """Name the first entry that only one side has or whose shape differs."""
    for name in [*live, *(name for name in saved if name not in live)]:
        if name not in saved:
            return f"'{name}' is missing in the checkpoint"
        if name not in live:
            return f"'{name}' is only in the checkpoint"
        shapes = [
            list(v.shape) if isinstance(v, Tensor) else None for v in (saved[name], live[name])
        ]
        if shapes[0] != shapes[1]:
            return f"'{name}' is {shapes[0]} in the checkpoint and {shapes[1]} here"
    return None


def _check_file(path: Path) -> None:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "missing"
        raise UserError(f"checkpoint {path} is {found}; pass last, best or the path to a .pt file")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(
            f"cannot read checkpoint {path}: {_one_line(error)}; check its permissions"
        ) from error
    if zipfile.is_zipfile(path):
        return
    if start in (b"PK\x03\x04", b""):  # a zip's table of contents is its end, the first thing lost
        raise UserError(f"checkpoint {path} is cut short; {_ANOTHER}")
    raise UserError(f"{path} is no checkpoint; pass a .pt file from a run's checkpoints folder")


def _check_format(path: Path, state: object) -> None:
    if not isinstance(state, dict) or not {"format", "model", "sampler", "step"} <= set(state):
        raise UserError(
            f"{path} is no nerftrain checkpoint; pass a .pt file from a run's checkpoints folder"
        )
    if state["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {state['format']}, this version of nerftrain reads "
            f"{FORMAT}; install the version named in the run's env.json"
        )


def _remove_abandoned(folder: Path, now: float) -> None:
    """Remove half-written checkpoints of which no process writes more.

    Args:
        folder: of checkpoints.
        now: by the clock that gives its files their times, which may be a file server's.
    """
    # Other hosts may write into the folder too, and their processes are not seen from here. So one
    # of this host goes once its process is gone, and any that nobody has written to for an hour: a
    # save writes all the time, and an id may by now be another process's. Should one be removed
    # too early, as from a container that has its host's name but not its processes, then that save
    # fails and says so, and the checkpoint before it stays whole.
    for path in folder.glob(".*.part"):
        match = _PARTIAL.fullmatch(path.name)
        if match is None:
            continue
        with suppress(OSError):  # it may be finished by now
            is_old = now - path.stat().st_mtime > _ABANDONED_SECONDS
            if is_old or (match["host"] == platform.node() and _has_ended(int(match["pid"]))):
                _remove(path)


def _has_ended(pid: int) -> bool:
    """Tell whether this machine has no process of this id; no where that cannot be asked."""
    if os.name != "posix":  # elsewhere os.kill ends a process, whatever the signal
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:  # another one: there is such a process, of another user
        return isinstance(error, ProcessLookupError)
    return False


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder may be gone or read-only: then there is nothing to remove either
        return


def _one_line(error: BaseException) -> str:
    """Return the cause in one line, without torch's C++ stack."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
