"""The jobs of a sweep: a record of each in the sweep's folder, and one table made from those.

Jobs may run in other processes, so nothing is kept in memory: ``jobs/<number>.json`` says what a
job was and how it ended, the ``metrics.json`` of its run what came out.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nerftrain.errors import UserError
from nerftrain.report import markdown_table

RECORDS = "jobs"  # the folder of records in that of the sweep
NAMES = ("scene", "model", "sampler")
# What is repeated rather than compared: figures are averaged over it.
REPEATED = ("scene", "scene.root", "seed")
FIGURES = ("psnr", "ssim", "train_seconds", "peak_memory_bytes")  # of metrics.json
_TITLES = ("PSNR", "SSIM", "training", "peak memory")

NOT_BEGUN, RUNNING, INTERRUPTED, FAILED = "not begun", "not finished", "interrupted", "failed"
DONE, DONE_BEFORE = "done", "done before"
_INTERRUPT = 130  # as of a process


@dataclass
class Job:
    """One job of a sweep and how it has gone so far."""

    number: int
    overrides: list[str]
    folder: Path  # of the sweep
    names: dict[str, str] = field(default_factory=dict)  # of scene, model and sampler
    run_dir: Path | None = None
    result: str = RUNNING
    status: int = 0  # as of a process
    reason: str = ""  # why it failed, in one line

    @property
    def finished(self) -> bool:
        """Tell whether there are final figures."""
        return self.result in (DONE, DONE_BEFORE)

    def end(self, status: int, reason: str) -> None:
        """Note how the job has ended, unless it says so itself."""
        if status == _INTERRUPT:
            self.result = INTERRUPTED
        elif status:
            self.status, self.reason, self.result = status, reason, FAILED
        if self.run_dir is not None and not self.run_dir.is_dir():  # discarded
            self.run_dir = None

    def values(self) -> dict[str, str]:
        """Return the job's overrides by their keys, and its names."""
        pairs = (text.lstrip("+~").partition("=") for text in self.overrides)
        return {**self.names, **{key: value for key, _, value in pairs}}

    def figures(self) -> dict[str, float | None]:
        """Return the final figures of the job's run; none where it has not finished."""
        found: dict[str, float | None] = {}
        if self.finished and self.run_dir is not None:
            with suppress(OSError, ValueError):
                found = json.loads((self.run_dir / "metrics.json").read_text(encoding="utf-8"))
        return {key: found.get(key) for key in FIGURES}

    def write(self) -> None:
        """Write the job's record, whole or not at all.

        Raises:
            UserError: the sweep's folder cannot be written.
        """
        values = asdict(self) | {"folder": None, "run_dir": None}
        if self.run_dir is not None:  # relative, so that a sweep can be moved
            values["run_dir"] = os.path.relpath(self.run_dir, self.folder)
        _replace(self.folder / RECORDS / f"{self.number}.json", json.dumps(values, indent=1) + "\n")


def begin(folder: Path, resume: bool) -> None:
    """Forget the records of an earlier sweep in this folder; its runs and its table stay.

    Raises:
        UserError: there was one, and this sweep is not to take it up.
    """
    records = list((folder / RECORDS).glob("*.json"))
    if records and not resume:
        raise UserError(
            f"hydra.sweep.dir={folder} holds a sweep: add sweep.resume=true to skip what is done, "
            "or choose another folder"
        )
    for record in records:
        record.unlink()


def read(folder: Path, planned: Sequence[list[str]] = ()) -> list[Job]:
    """Read the jobs of a sweep in their order; a damaged record is left out.

    Args:
        folder: of the sweep.
        planned: the overrides of all jobs by their numbers; those of no record have not begun.
    """
    jobs = []
    for file in (folder / RECORDS).glob("*.json"):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            run_dir = values["run_dir"]
            values["run_dir"] = None if run_dir is None else folder / run_dir
            jobs.append(Job(**{**values, "folder": folder}))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    begun = {job.number for job in jobs}
    for number, overrides in enumerate(planned):
        if number not in begun:
            jobs.append(Job(number, overrides, folder, result=NOT_BEGUN))
    return sorted(jobs, key=lambda job: job.number)


# --- The table -----------------------------------------------------------------------------------


def write_table(folder: Path, planned: Sequence[list[str]] = ()) -> None:
    """Write sweep.csv and SWEEP.md of all jobs so far, or planned, each whole or not at all.

    Raises:
        UserError: the sweep's folder cannot be written.
    """
    jobs = read(folder, planned)
    _replace(folder / "sweep.csv", _csv(jobs))
    _replace(folder / "SWEEP.md", _page(jobs))


def table(jobs: Sequence[Job]) -> str:
    """Return the Markdown table of the jobs and their means, and a list of what failed."""
    axes = _axes(jobs)
    rows = [[*_chosen(job, axes), *_shown(job.figures()), job.result] for job in jobs]
    groups = _groups(jobs, axes)
    if _compares_nothing(jobs):
        rows.append(["mean", *[""] * (len(axes) - 1), *_shown(_means(jobs)), _over(jobs)])
    parts = [markdown_table([*axes, *_TITLES, "result"], rows)]
    if groups:
        parts.append(_comparison(groups, axes))
    failed = [job for job in jobs if job.status]
    if failed:
        causes = [f"* {' '.join(_chosen(job, axes))}: {_cell(job.reason)}" for job in failed]
        parts.append("Failed:\n\n" + "\n".join(causes))
    return "\n\n".join(parts)


def exit_status(jobs: Iterable[Job]) -> int:
    """Return 0 where no job failed, 2 where each is the user's mistake, else 1."""
    statuses = {job.status for job in jobs}
    if statuses <= {0}:
        return 0
    return statuses.pop() if len(statuses) == 1 else 1


def _csv(jobs: Sequence[Job]) -> str:
    axes = _axes(jobs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", *axes, *FIGURES, "result", "reason", "run_dir"])
    for job in jobs:
        values, figures = job.values(), job.figures()
        run_dir = "" if job.run_dir is None else os.path.relpath(job.run_dir, job.folder)
        chosen = (values.get(axis) for axis in axes)
        end = (job.result, job.reason, run_dir)
        writer.writerow([job.number, *chosen, *figures.values(), *end])
    if _compares_nothing(jobs):
        means = _means(jobs).values()
        writer.writerow(["mean", *[""] * len(axes), *means, _over(jobs), "", ""])
    return text.getvalue()


def _page(jobs: Sequence[Job]) -> str:
    axes = _axes(jobs)
    common = [
        text
        for text in (jobs[0].overrides if jobs else [])
        if _key(text) not in axes and not _key(text).startswith("sweep.")
    ]
    kept = [job for job in jobs if job.run_dir is not None]
    links = [f"* [{' '.join(_chosen(job, axes))}]({_link(job)})" for job in kept]
    sections = ["# Sweep"]
    if common:
        sections.append(f"All jobs: `{' '.join(common)}`")
    sections.append(table(jobs))
    if links:
        sections.append("Runs:\n\n" + "\n".join(links))
    return "\n\n".join(sections) + "\n"


def _axes(jobs: Sequence[Job]) -> list[str]:
    """List the keys whose values differ between jobs; where none do, what the jobs are made of."""
    return _differing(jobs) or list(NAMES)


def _differing(jobs: Sequence[Job]) -> list[str]:
    keys = dict.fromkeys(_key(text) for job in jobs for text in job.overrides)
    return [key for key in keys if len({job.values().get(key) for job in jobs}) > 1]


def _compares_nothing(jobs: Sequence[Job]) -> bool:
    """Tell whether one mean of all jobs says anything: it must not mix what is compared."""
    return set(_differing(jobs)) <= set(REPEATED)


def _chosen(job: Job, axes: Sequence[str]) -> list[str]:
    return [_cell(job.values().get(axis, "-")) for axis in axes]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _means(jobs: Sequence[Job]) -> dict[str, float | None]:
    """Average over finished jobs; a figure that one of them lacks has no mean."""
    finished = [job.figures() for job in jobs if job.finished]
    means: dict[str, float | None] = {}
    for key in FIGURES:
        values = [value for figures in finished if (value := figures[key]) is not None]
        complete = bool(values) and len(values) == len(finished)
        means[key] = sum(values) / len(values) if complete else None
    return means


def _groups(jobs: Sequence[Job], axes: Sequence[str]) -> dict[tuple[str, ...], list[Job]]:
    """Gather the jobs that differ in no more than scene and seed; nothing where that says no more.

    That is where every job stands for itself, or one mean for all and there is but one seed.
    """
    compared = [axis for axis in axes if axis not in REPEATED]
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(_chosen(job, compared)), []).append(job)
    several_seeds = len({job.values().get("seed") for job in jobs}) > 1
    if len(groups) == len(jobs) or (len(groups) == 1 and not several_seeds):
        return {}
    return groups


def _comparison(groups: dict[tuple[str, ...], list[Job]], axes: Sequence[str]) -> str:
    """Return a table of the means of groups of jobs, with the spread of PSNR over seeds."""
    compared = [axis for axis in axes if axis not in REPEATED]
    repeated = " and ".join(axis for axis in axes if axis in REPEATED)
    rows = []
    for chosen, jobs in groups.items():
        psnr, *others = _shown(_means(jobs))
        spread = _spread(jobs)
        psnr += "" if spread is None else f" +- {spread:.2f}"
        rows.append([*chosen, psnr, *others, _over(jobs)])
    text = markdown_table([*compared, *_TITLES, "over"], rows)
    seeds = "; +- the standard deviation over seeds" if "+-" in text else ""
    return f"Means over {repeated}{seeds}:\n\n{text}"


def _spread(jobs: Sequence[Job]) -> float | None:
    """Return the standard deviation of PSNR over seeds, each the mean of the same scenes.

    None for fewer than two seeds that have finished all scenes.
    """
    scenes = {_scene(job) for job in jobs}
    by_seed: dict[str | None, dict[str, float]] = {}
    for job in jobs:
        if (psnr := job.figures()["psnr"]) is not None:
            by_seed.setdefault(job.values().get("seed"), {})[_scene(job)] = psnr
    means = [mean(found.values()) for found in by_seed.values() if set(found) == scenes]
    return stdev(means) if len(means) > 1 else None


def _scene(job: Job) -> str:
    return " ".join(job.values().get(axis, "") for axis in REPEATED if axis != "seed")


def _over(jobs: Sequence[Job]) -> str:
    return f"{sum(job.finished for job in jobs)} of {len(jobs)} jobs"


def _shown(figures: dict[str, Any]) -> list[str]:
    forms = ("{:.2f}", "{:.4f}", "{:.1f} s", "{:.2f} GiB")
    units = (1, 1, 1, 2**30)
    return [
        "-" if value is None else form.format(value / unit)
        for form, unit, value in zip(forms, units, figures.values(), strict=True)
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def _link(job: Job) -> str:
    return Path(os.path.relpath(job.run_dir or ".", job.folder)).as_posix().replace(" ", "%20")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all, while other jobs may write it too."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"the sweep's folder cannot be written ({error.strerror}: {error.filename}): "
            "choose another with hydra.sweep.dir=PATH"
        ) from None
