"""Training one config: alone, or as a job of a sweep in whatever process Hydra's launcher chose.

Free of torch at import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerftrain import config
from nerftrain.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nerftrain.sweep import Job
    from nerftrain.trainer import Run

Outcome = Callable[[Callable[[], int]], tuple[int, str]]


def train(cfg: DictConfig) -> None:
    """Train a config in a new folder.

    Raises:
        UserError: a mistake in the config or its data; nothing is left behind then.
    """
    _start_logging(None)
    _train_new(config.create_run_dir(config.assemble(cfg)))


def _train_new(run: Run) -> None:
    try:
        _train_logged(run, resume=False)
    except (UserError, KeyboardInterrupt):
        _discard(run.run_dir)
        raise


def _train_logged(run: Run, resume: bool) -> None:
    from nerftrain.trainer import train

    _start_logging(run.run_dir)
    train(run, resume)


def _start_logging(run_dir: Path | None) -> None:
    from nerftrain.report import setup_logging

    setup_logging(run_dir)


def _discard(run_dir: Path) -> None:
    """Remove a folder in which no more than the config has been written."""
    written = {path.name for path in run_dir.iterdir()}
    if written <= {"config.yaml", "train.log"}:
        _start_logging(None)  # closes train.log
        for name in written:
            (run_dir / name).unlink()
        _remove_empty(run_dir)


def _remove_empty(folder: Path) -> None:
    """Remove a folder, and those above it that are empty then, up to the working directory."""
    for path in [folder, *folder.parents]:
        if path.resolve() == Path.cwd() or not path.is_dir() or any(path.iterdir()):
            return
        path.rmdir()


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
