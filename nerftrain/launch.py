"""Training one config: alone, or as a job of a sweep in whatever process Hydra's launcher chose.

Free of torch at import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerftrain import config
from nerftrain.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nerftrain.sweep import Job
    from nerftrain.trainer import Run

# What a run writes before there are figures, folders before what is in them.
_WRITTEN = (
    *(config.SNAPSHOT, "train.log", "env.json", "world.json", "metrics.jsonl", "checkpoints"),
    *("images", "images/preview.png", "tb", "tb/by_second", "tb/**/events.*"),
    *("wandb", "wandb/**/*"),
)
Outcome = Callable[[Callable[[], int]], tuple[int, str]]


def train(cfg: DictConfig) -> None:
    """Train a config in a new folder.

    Raises:
        UserError: a mistake in the config or its data; nothing is left behind then.
    """
    _start_logging(None)
    _train_new(config.create_run_dir(config.assemble(cfg)))


def _train_new(run: Run) -> None:
    older = _written(run.run_dir) - {run.run_dir / config.SNAPSHOT}
    try:
        _train_logged(run, resume=False)
    except (UserError, KeyboardInterrupt):
        _discard(run.run_dir, older)
        raise


def _train_logged(run: Run, resume: bool) -> None:
    from nerftrain.trainer import train

    _start_logging(run.run_dir)
    train(run, resume)


def _start_logging(run_dir: Path | None) -> None:
    from nerftrain.report import setup_logging

    setup_logging(run_dir)


def _discard(run_dir: Path, older: set[Path]) -> None:
    """Remove what a run has written, where nothing of it is worth keeping; not what is older."""
    if any(list(run_dir.glob(path)) for path in ("checkpoints/*.pt", "metrics.json")):
        return
    curve = run_dir / "metrics.jsonl"
    if curve.is_file() and curve.stat().st_size:
        return
    _start_logging(None)  # closes train.log
    made = _written(run_dir) - older
    for path in sorted(made, reverse=True):  # what is in a folder before the folder
        _remove(path)
    _remove_empty(run_dir)


def _written(run_dir: Path) -> set[Path]:
    """List what lies where a run writes; its folder may hold anything else, too."""
    return {path for pattern in _WRITTEN for path in run_dir.glob(pattern)}


def _remove(path: Path) -> None:
    with suppress(OSError):  # a folder that is not empty, or of somebody else: it stays
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_empty(folder: Path) -> None:
    """Remove a folder, and those above it that are empty then, up to the working directory."""
    for path in [folder, *folder.parents]:
        if path.resolve() == Path.cwd() or not path.is_dir() or any(path.iterdir()):
            return
        _remove(path)


# --- A job of a sweep ----------------------------------------------------------------------------


def run_job(cfg: DictConfig, hydra_config: Any, outcome: Outcome) -> tuple[int, float | None]:
    """Run one job of a sweep, and write its record and the table of all jobs so far.

    Args:
        cfg: of the job.
        hydra_config: of the job, which tells the folders.
        outcome: runs a command; returns its status and, where it failed, why in one line.

    Returns:
        The status and the PSNR.
    """
    from nerftrain import report, sweep

    cwd = hydra_config.runtime.cwd
    job_dir = Path(hydra_config.runtime.output_dir)
    folder = Path(cwd, hydra_config.sweep.dir)
    job = sweep.Job(hydra_config.job.num, list(hydra_config.overrides.task), folder)
    places = [folder, Path(cwd, "outputs", "sweeps")]
    report.reset_peak_memory()
    status, reason = outcome(lambda: _train_job(cfg, job, job_dir, places))
    job.end(status, reason)
    _remove_empty(job_dir)
    job.write()
    sweep.write_table(folder)
    return status, job.figures()["psnr"]


def _train_job(cfg: DictConfig, job: Job, job_dir: Path, places: Sequence[Path]) -> int:
    from nerftrain import sweep

    _start_logging(None)
    config.check(cfg)
    job.names = config.names(cfg)
    job.write()
    resume = config.resumes_sweep(cfg)
    found = config.find_run(cfg, places) if resume else None
    if found and found[1]:
        job.run_dir, job.result = found[0], sweep.DONE_BEFORE
        print(f"done before: {job.run_dir}", flush=True)
        return 0
    if found:
        job.run_dir = found[0]
        run = config.assemble(cfg, job.run_dir)
        _train_logged(run, resume=True)
    else:
        folder = config.free_folder(job_dir) if resume else job_dir
        run = config.create_run_dir(config.assemble(cfg), folder)
        job.run_dir = run.run_dir.absolute()
        job.write()
        _train_new(run)
    job.result = sweep.DONE
    return 0
