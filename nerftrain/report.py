"""What a run tells: the terminal, TensorBoard, the curve, the environment, figures, REPORT.md.

The only one of the lower modules that prints; whatever it says is in the run's train.log as well.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from nerftrain.doctor import environment
from nerftrain.errors import UserError

_log = logging.getLogger(__name__)

FINAL_KEYS = ("psnr", "ssim", "lpips", "num_views", "steps", "train_seconds", "peak_memory_bytes")
PROTOCOL_KEYS = ("split", "resolution", "background", "seed")
EVALUATION_KEY = "eval_psnr"  # in rows of the curve that come from an evaluation
PLAIN_LINE_SECONDS = 10.0  # between two progress lines where there is no terminal


def say(text: str) -> None:
    """Print a line or several without breaking a progress bar, and logs them."""
    show(text)
    _log.info("%s", text)


def say_amid(text: str) -> None:
    """Print a line on stderr from where a signal may have come in the midst of another's printing.

    It is not logged.
    """
    with suppress(OSError):  # stderr may be closed
        os.write(2, f"\nnerftrain: {text}\n".encode())


def show(text: str, stream: Literal["stdout", "stderr"] = "stdout") -> None:
    """Print a line or several without breaking a progress bar."""
    try:
        tqdm.write(text, file=getattr(sys, stream))
        getattr(sys, stream).flush()
    except OSError:  # who read it, head or a terminal, has gone: training must not end with it
        setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  lasts


# Logging


class _ProgressSafe(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        show(self.format(record), "stderr")


def setup_logging(run_dir: Path | None) -> None:
    """Send everything logged to train.log and warnings to stderr; a second call replaces the first.

    Args:
        run_dir: the run's folder; None for a command that writes no log.
    """
    logging.captureWarnings(False)  # else one that was said before would leave who shows them now
    logging.captureWarnings(True)
    screen = _ProgressSafe(logging.WARNING)
    screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handlers: list[logging.Handler] = [screen]
    if run_dir is not None:
        path = Path(run_dir) / "train.log"
        file = logging.FileHandler(path, encoding="utf-8", errors="surrogateescape")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    for name in ("nerftrain", "py.warnings"):
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


# While it trains


class TensorBoard:
    """Scalars, images and hyperparameters in the run's ``tb`` folder; idle where disabled.

    What lies against seconds has a folder of its own, ``by_second`` in it: going on hides what an
    earlier process wrote later than some abscissa, and seconds are not steps.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._writer: Any = None
        self._by_second: Any = None
        self._last_second: dict[str, int] = {}

    def open(
        self, run_dir: Path, resumed_step: int | None = None, resumed_seconds: float = 0.0
    ) -> None:
        """Start writing; TensorBoard hides what an earlier process wrote after the resumed step."""
        if not self.enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            _log.warning("no TensorBoard: pip install tensorboard, or logger=none for none")
            return
        folder, resumed = Path(run_dir) / "tb", resumed_step is not None
        purge = (resumed_step or 0) + 1, int(resumed_seconds) + 1
        self._writer, self._by_second = (
            SummaryWriter(str(place), purge_step=first if resumed else None)
            for place, first in zip((folder, folder / "by_second"), purge, strict=True)
        )

    def scalars(self, figures: Mapping[str, float | None], step: int, seconds: float) -> None:
        """Write figures against the step and, under ``by_second/``, against training seconds."""
        if self._writer is None:
            return
        for tag, value in figures.items():
            if value is None:
                continue
            self._writer.add_scalar(tag, value, step)
            if self._last_second.get(tag) != int(
                seconds
            ):  # one point a second: two would share an abscissa
                self._by_second.add_scalar(f"by_second/{tag}", value, int(seconds))
                self._last_second[tag] = int(seconds)

    def image(self, tag: str, image: Any, step: int) -> None:
        """Write an image [H, W, 3], floats in 0..1 or bytes."""
        if self._writer is not None:
            self._writer.add_image(tag, image, step, dataformats="HWC")

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write the config, its nested keys joined by dots, beside the final figures."""
        if self._writer is not None:
            figures = {f"final/{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
            self._writer.add_hparams(_flat(config), figures, run_name=".")

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
            self._by_second.close()
            self._writer = self._by_second = None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{name}."))
        else:
            flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


class Curve:
    """The rows of metrics.jsonl, one JSON object a line, on disk as soon as written."""

    _has_warned = False

    def __init__(self, run_dir: Path, resumed_step: int = 0) -> None:
        """Go on with an existing file, of which rows after ``resumed_step`` are dropped."""
        path = self._path = Path(run_dir) / "metrics.jsonl"
        kept = [row for row in read_curve(run_dir) if row["step"] <= resumed_step]
        _replace(path, "".join(_json(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, seconds: float, **figures: float | None) -> None:
        """Append a row; a figure that is not finite is written as null.

        A full disk costs the rows that do not fit, not the training.
        """
        with self._warned():
            self._file.write(_json({"step": step, "seconds": seconds, **figures}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with self._warned():
            self._file.close()

    @contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                _log.warning("%s is not complete: %s", self._path, error.strerror or error)
            self._has_warned = True


def read_curve(run_dir: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a last line cut short by a crash is left out, a missing file is empty."""
    path = Path(run_dir) / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """A live line on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(
        self, total_steps: int, max_seconds: float | None, *, terminal: bool | None = None
    ) -> None:
        self._total_steps = total_steps
        self._max_seconds = max_seconds
        self._last = -math.inf  # time of the last plain line
        self._unsaid = ""
        self._bar = None
        if sys.stderr.isatty() if terminal is None else terminal:
            layout = "{percentage:3.0f}% |{bar:20}| {desc}"
            self._bar = tqdm(total=1.0, bar_format=layout, file=sys.stderr, dynamic_ncols=True)

    def update(self, step: int, seconds: float, figures: Mapping[str, float | None]) -> None:
        """Show where the run is.

        Args:
            step: steps done.
            seconds: of training so far.
            figures: any of loss, psnr, rays_per_second, samples_per_second; others are left out.
        """
        done = self._fraction(step, seconds)
        text = _progress_line(step, seconds, figures)
        if done > 0:
            text += f"  eta {_duration(seconds * (1 - done) / done)}"
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_description_str(text)
        elif time.monotonic() - self._last >= PLAIN_LINE_SECONDS:
            say(f"{done:4.0%}  {text}")
            self._last, self._unsaid = time.monotonic(), ""
        else:
            self._unsaid = f"{done:4.0%}  {text}"

    def close(self) -> None:
        """End the line, so that the last state stays to be seen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._unsaid:
            say(self._unsaid)
            self._unsaid = ""

    def _fraction(self, step: int, seconds: float) -> float:
        """Return the share of the run that is done, by whichever of steps and seconds ends it."""
        by_seconds = seconds / self._max_seconds if self._max_seconds else 0.0
        return min(1.0, max(step / self._total_steps, by_seconds))


def _progress_line(step: int, seconds: float, figures: Mapping[str, float | None]) -> str:
    parts = [f"step {step}", _duration(seconds)]
    for key, label, form in (("loss", "loss", "{:.5f}"), ("psnr", "psnr", "{:.2f}")):
        if figures.get(key) is not None:
            parts.append(f"{label} {form.format(figures[key])}")
    for key, label in (("rays_per_second", "rays/s"), ("samples_per_second", "samples/s")):
        value = figures.get(key)
        if value is not None:
            parts.append(f"{tqdm.format_sizeof(value)} {label}")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else tqdm.format_interval(seconds)


# The end of a run


def write_env(run_dir: Path) -> None:
    """Write env.json: what the figures of a run depend on besides its config."""
    _replace(Path(run_dir) / "env.json", _json(environment(), indent=1) + "\n")


def write_world(run_dir: Path, world: Tensor) -> None:
    """Write world.json: the way from the dataset's coordinates [4, 4] to the run's, and back."""
    meaning = (
        "row-major 4x4 matrix from the dataset's coordinates to this run's, x_run = M x_data for "
        "columns x = (x, y, z, 1); its inverse takes meshes and camera paths of this run back"
    )
    content = {"what": meaning, "dataset_to_scene": world.tolist()}
    _replace(Path(run_dir) / "world.json", _json(content, indent=1) + "\n")


def write_cameras(run_dir: Path, frames: list[dict[str, Any]]) -> Path:
    """Write cameras.json, what has been learnt of each training image, and return its path."""
    meaning = (
        "training images as found by refine; transform_matrix: camera to world, OpenGL axes, the "
        "dataset's coordinates; gain: what the field's red, green and blue were multiplied by"
    )
    path = Path(run_dir) / "cameras.json"
    _replace(path, _json({"what": meaning, "frames": frames}, indent=1) + "\n")
    return path


def peak_memory_bytes() -> int | None:
    """Return the peak of resident memory plus, where CUDA was used, that of GPU tensors."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024  # Linux counts KiB
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak += sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return peak


def reset_peak_memory() -> None:
    """Start measuring the peak anew: jobs of a sweep share a process. Linux alone can do so."""
    gc.collect()  # what the last job held in cycles
    _return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc_pid_clear_refs
    except OSError:
        _log.info("the peak of memory is that of all jobs of this process so far")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def _return_freed_memory() -> None:
    """Let the C library return what has been freed, or it would count for whoever runs next."""
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)  # glibc alone has it


def write_metrics(folder: Path, final: Mapping[str, Any]) -> None:
    """Write the final figures and their protocol to metrics.json, null where there is none."""
    unknown = set(final) - {*FINAL_KEYS, *PROTOCOL_KEYS}
    assert not unknown, unknown
    rows = {key: final.get(key) for key in (*FINAL_KEYS, *PROTOCOL_KEYS)}
    _replace(Path(folder) / "metrics.json", _json(rows, indent=1) + "\n")


def final_table(final: Mapping[str, Any]) -> str:
    """Return the final figures as a Markdown table of one row."""
    memory = final.get("peak_memory_bytes")
    cells = {
        "PSNR": _decimals(final.get("psnr"), 2),
        "SSIM": _decimals(final.get("ssim"), 4),
        "LPIPS": _decimals(final.get("lpips"), 4),
        "split": f"{final.get('split')}, {final.get('num_views')} views",
        "resolution": final.get("resolution"),
        "background": final.get("background"),
        "seed": final.get("seed"),
        "steps": final.get("steps"),
        "training": _decimals(final.get("train_seconds"), 1, " s"),
        "peak memory": "-" if memory is None else f"{memory / 2**30:.2f} GiB",
    }
    return markdown_table(list(cells), [["-" if c is None else str(c) for c in cells.values()]])


def print_final(run_dir: Path, final: Mapping[str, Any]) -> None:
    """Show the final figures and the commands that come next."""
    commands = "\n".join(f"  {command}" for command in next_commands(run_dir))
    say(f"\n{final_table(final)}\n\nNext:\n{commands}")


def next_commands(run_dir: Path) -> list[str]:
    """Return the commands that a finished run invites to."""
    nerftrain = program("nerftrain")
    verbs = [f"{nerftrain} {verb}" for verb in ("eval", "render", "view", "export", "resume")]
    if (run_dir / "tb").is_dir():
        verbs.append(f"{program('tensorboard')} --logdir")
    return [f"{verb} {shlex.quote(str(run_dir))}" for verb in verbs]


def program(name: str) -> str:
    """Return how this environment's program is called: by name, or by path where it is not active.

    The path is as it was given for the program that runs now, e.g. .venv/bin/nerftrain.
    """
    beside = Path(sys.argv[0]).with_name(name)
    return str(beside) if shutil.which(name) is None and beside.is_file() else name


def command_line() -> str | None:
    """Return the command line of this process; None where it is not nerftrain's own."""
    own = Path(sys.argv[0]).stem in ("nerftrain", "__main__")
    return shlex.join(["nerftrain", *sys.argv[1:]]) if own else None


def write_report(
    run_dir: Path,
    final: Mapping[str, Any],
    per_view: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    *,
    command: str | None = None,
) -> None:
    """Write REPORT.md from the final figures and what else lies in the run's folder.

    Args:
        run_dir: the run's folder, with env.json, metrics.jsonl, images and video, where there are.
        final: what ``write_metrics`` takes.
        per_view: name, psnr, ssim and lpips of each view.
        config: the run's config.
        command: the command line of the run, and those that went on with it, a line each; None
            for one made up from the config's names.
    """
    run_dir = Path(run_dir)
    names = {
        group: config.get(group, {}).get("name", "?") for group in ("scene", "model", "sampler")
    }
    made_up = " ".join(
        ["nerftrain", *(f"{k}={v}" for k, v in names.items()), f"seed={final.get('seed')}"]
    )
    sections = [
        f"# {names['scene']} with {names['model']} and {names['sampler']}",
        f"## What was run\n\n```\n{command or made_up}\n```\n\n"
        "The whole configuration: [config.yaml](config.yaml).",
        f"## Final figures\n\n{final_table(final)}\n\n{_protocol(final)}",
        f"## Curve\n\n{_curve_table(read_curve(run_dir))}",
        f"## Pictures\n\n{_pictures(run_dir)}",
        f"## Views\n\n{_view_table(per_view)}",
        f"## Environment\n\n{_environment_table(run_dir)}",
        "## Next\n\n```\n" + "\n".join(next_commands(run_dir)) + "\n```",
    ]
    _replace(run_dir / "REPORT.md", "\n\n".join(sections) + "\n")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up in plain text too."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _protocol(final: Mapping[str, Any]) -> str:
    return (
        f"PSNR is the mean of the per-image PSNRs of {final.get('num_views')} views of the "
        f"{final.get('split')} split at {final.get('resolution')} on a {final.get('background')} "
        "background, composited in sRGB. Only the train split was trained on."
    )


def _curve_table(rows: list[dict[str, Any]], limit: int = 12) -> str:
    """List the evaluations, or else the logged rows; at most ``limit``, the last included."""
    if not rows:
        return "No row was logged."
    chosen = [row for row in rows if row.get(EVALUATION_KEY) is not None] or rows
    picks = sorted({round(i * (len(chosen) - 1) / (limit - 1)) for i in range(limit)})
    keys = [
        k
        for k in ("step", "seconds", "loss", "psnr", EVALUATION_KEY)
        if any(k in row for row in chosen)
    ]
    return markdown_table(keys, [[_figure(chosen[i].get(key)) for key in keys] for i in picks])


def _view_table(per_view: Sequence[Mapping[str, Any]]) -> str:
    keys = ["name", "psnr", "ssim", "lpips"]
    return markdown_table(keys, [[_figure(row.get(key)) for key in keys] for row in per_view])


def _pictures(run_dir: Path) -> str:
    lines = []
    if (run_dir / "images" / "comparison.png").is_file():
        lines.append(
            "Truth, prediction, amplified error, depth:\n\n![comparison](images/comparison.png)"
        )
    for film in sorted(run_dir.glob("video.*")):
        lines.append(f"Orbit: [{film.name}]({film.name})")
    return "\n\n".join(lines) or "None were made."


def _environment_table(run_dir: Path) -> str:
    path = run_dir / "env.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else environment()
    native = rows.pop("native", {})
    rows.update({f"native {key}": value for key, value in native.items()})
    return markdown_table(["what", "which"], [[k, _cell(v)] for k, v in rows.items() if v])


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.split()).replace("|", "/")


def _figure(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _decimals(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """Put null in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        # Names of files need not be UTF-8: they are written as they are.
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): make room there, or give "
            "another run_dir"
        ) from error


def forget_results(run_dir: Path) -> None:
    """Remove the figures and the report of a run that trains on: they are of fewer steps."""
    for name in ("REPORT.md", "metrics.json"):
        (Path(run_dir) / name).unlink(missing_ok=True)
