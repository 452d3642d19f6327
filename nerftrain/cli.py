"""The command line: ``nerftrain [key=value ...]`` trains, verbs work on runs.

Exit status: 0 done; 1 the run failed; 2 the user's mistake, in one line; 130 interrupted.
Free of torch at import: help and tab completion have to be instant.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nerftrain import __version__, usage
from nerftrain.bounds import MOST_PIXELS
from nerftrain.errors import RunError, UserError
from nerftrain.memory import has_run_out
from nerftrain.schema import suggestion

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nerftrain.composition import Source
    from nerftrain.sweep import Job
    from nerftrain.trainer import Run

_FAILED, _MISTAKE, _INTERRUPTED = 1, 2, 130
_NO_MEMORY = (
    "out of memory: free some, or take smaller images (scene.downscale) or a smaller model; what a "
    "run has saved is gone on with by nerftrain resume RUN"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own by default) and return the exit status."""
    # Read once, when torch loads its threads. By default a thread spins for milliseconds while it
    # waits, on the core that the thread it waits for needs: four times as long on a shared machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # A name that the screen has no letters for is no reason to end.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in _VERBS:
        return _VERBS[first](arguments[1:])
    if first and "=" not in first and first[0] not in "-+~":
        raise UserError(_unknown_verb(first))
    return _hydra_command(arguments)


def _guarded(command: Callable[[], int]) -> int:
    """Turn what a command raises into a status, and a user's mistake into its one line."""
    return _outcome(command)[0]


def _outcome(command: Callable[[], int]) -> tuple[int, str]:
    """Run a command; return its status and, where it failed, the line that has been printed."""
    try:
        return command(), ""
    except UserError as error:
        return _failure(_MISTAKE, str(error))
    except RunError as error:
        return _failure(_FAILED, str(error))
    except KeyboardInterrupt:
        return _INTERRUPTED, ""
    except BrokenPipeError:  # `nerftrain --help | head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  flushed at exit
        return 0, ""
    except Exception as error:
        if isinstance(error, PermissionError) and error.filename is not None:
            return _failure(_MISTAKE, f"{error.filename}: {error.strerror}: check its rights")
        if has_run_out(error):
            return _failure(_FAILED, _NO_MEMORY)
        traceback.print_exc()
        return _failure(_FAILED, f"failed: {type(error).__name__}: {error}")


def _failure(status: int, text: str) -> tuple[int, str]:
    _complain(text)
    return status, " ".join(text.split())


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may have gone
        print(f"nerftrain: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _unknown_verb(word: str) -> str:
    alike = usage.commands_like(word.rpartition("/")[2])  # mip360/bonsai for bonsai in a folder
    if presets := [text for text in alike if text.endswith(word)]:
        return f"{word}: did you mean nerftrain {' or '.join(presets)}?"
    rest = suggestion(word, _VERBS)
    return f"{word}: no such command; {rest} (to train: nerftrain [key=value ...])"


# --- Training, by way of Hydra -------------------------------------------------------------------


def _hydra_command(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(usage.help_page(__version__))
        return 0
    if "--version" in arguments:
        print(f"nerftrain {__version__}")
        return 0
    from hydra._internal.utils import get_args_parser

    from nerftrain import config
    from nerftrain.composition import CONFIG_NAME, Source, compose, is_sweep, jobs
    from nerftrain.paths import data_dir

    with _helps_unchecked():
        parser = get_args_parser()
    parser.prog = "nerftrain"
    parsed = _parse_flags(parser, arguments)
    # Overrides may stand before and after flags, which Hydra's own parser does not take.
    flags = [text for text in arguments if text not in parsed.overrides]
    source = Source(
        main=Path(parsed.config_path) if parsed.config_path else data_dir("conf"),
        extra=parsed.config_dir,
        name=parsed.config_name or CONFIG_NAME,
    )
    if parsed.hydra_help or parsed.shell_completion or parsed.experimental_rerun:
        try:
            return _call_hydra([*flags, *parsed.overrides], source)
        except ValueError as error:  # such as a shell or a file that there is not
            raise UserError(f"{error}; see nerftrain --help") from None
    if parsed.cfg or parsed.info:
        compose(parsed.overrides, source)
        return _call_hydra([*flags, *parsed.overrides], source)
    if is_sweep(parsed.overrides, source, parsed.multirun):
        configs = _check_first(list(jobs(parsed.overrides, source)))
        resume = any(config.resumes_sweep(cfg) for cfg in configs)
        return _sweep(flags, parsed.overrides, source, resume)
    (cfg,) = _check_first([compose(parsed.overrides, source)])
    if ignored := [
        text for text in parsed.overrides if text.lstrip("+").startswith("hydra.run.dir=")
    ]:
        raise UserError(f"{ignored[0]}: has no effect on where a run is written: give run_dir=PATH")
    if config.resumes_sweep(cfg):
        raise UserError(
            "sweep.resume=true has no effect on a single run: add -m, "
            "or go on with one by nerftrain resume RUN"
        )
    return _call_hydra([*flags, *parsed.overrides], source)


@contextlib.contextmanager
def _helps_unchecked() -> Iterator[None]:
    """Let Hydra make its parser, whose help of a flag argparse refuses since Python 3.14.

    It is made only when it is printed: facebookresearch/hydra#3121, in all of Hydra 1.3.
    """
    container = argparse._ActionsContainer
    check = getattr(container, "_check_help", None)
    if check is None:
        yield
        return
    setattr(container, "_check_help", lambda *_: None)  # noqa: B010 (older Pythons lack it)
    try:
        yield
    finally:
        setattr(container, "_check_help", check)  # noqa: B010


def _parse_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse with an error that is one line; argparse prints its whole usage."""

    def complain(message: str) -> NoReturn:
        dashes = "keys have no dashes: key=value; " if message.startswith("unrecognized") else ""
        raise UserError(f"{message}; {dashes}see {parser.prog} --help")

    parser.error = complain
    return parser.parse_intermixed_args(arguments)


def _check_first(configs: list[DictConfig]) -> list[DictConfig]:
    """Check every config of the command before Hydra makes a folder for any."""
    from nerftrain import config

    for cfg in configs:
        config.check(cfg)
    chosen = [cfg.run_dir for cfg in configs if cfg.run_dir is not None]
    if len(chosen) != len(set(chosen)):
        raise UserError(
            f"run_dir={chosen[0]}: would hold several runs of the sweep; "
            f"add hydra.sweep.dir={chosen[0]} instead"
        )
    return configs


_statuses: list[int] = []  # of what Hydra has run in this process


def _call_hydra(arguments: Sequence[str], source: Source, sweeps: bool = False) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from nerftrain.composition import VERSION_BASE, one_line

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises where it would print and exit
    _statuses.clear()
    program, sys.argv = sys.argv, [_program(), *arguments]
    try:
        with _helps_unchecked():
            hydra.main(str(source.main), source.name, VERSION_BASE)(_task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error
    except _JobError as failure:
        _statuses.append(failure.status)
    except OSError as error:  # jobs tell of their own: this is of the folders that Hydra makes
        if error.filename is None:
            raise
        raise UserError(_unwritable(error, sweeps)) from None
    except SystemExit as leave:  # of --hydra-help
        _statuses.append(leave.code if isinstance(leave.code, int) else int(bool(leave.code)))
    finally:
        sys.argv = program
    return max(_statuses, default=0)


def _unwritable(error: OSError, sweeps: bool) -> str:
    why = f"{error.strerror}: {error.filename}"
    if sweeps:
        return (
            f"the sweep's folder cannot be written ({why}): choose another with "
            "hydra.sweep.dir=PATH"
        )
    return (
        f"hydra.run.dir cannot be written ({why}): leave it out; run_dir=PATH is where a run goes"
    )


def _program() -> str:
    # Hydra's completion script calls the command by this name.
    name = Path(sys.argv[0]).name
    return "nerftrain" if name in ("__main__.py", "-c", "") else sys.argv[0]


class _JobError(Exception):
    """Tells a sweeper plugin that a job failed; its message has been printed."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _task(cfg: DictConfig) -> float | None:
    """Train one config for Hydra, and return its PSNR, which sweepers can maximise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return _job(cfg, HydraConfig.get())
    status = _guarded(lambda: _train(cfg))
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    _statuses.append(status)
    return None


def _train(cfg: DictConfig) -> int:
    from nerftrain.launch import train

    train(cfg)
    return 0


def _job(cfg: DictConfig, hydra_config: Any) -> float | None:
    from nerftrain import report
    from nerftrain.launch import run_job

    report.show(f"job {hydra_config.job.num}: {hydra_config.job.override_dirname}")
    status, psnr = run_job(cfg, hydra_config, _outcome)
    if status == _INTERRUPTED:
        raise KeyboardInterrupt  # which ends the sweep as well
    # Hydra's own sweeper starts no further batch of jobs after an error; others learn from one.
    if status and not hydra_config.sweeper._target_.endswith(".BasicSweeper"):
        raise _JobError(status)
    return psnr


def _start_logging(run_dir: Path | None) -> None:
    from nerftrain.report import setup_logging

    setup_logging(run_dir)


# --- Sweeps --------------------------------------------------------------------------------------


def _sweep(flags: Sequence[str], overrides: Sequence[str], source: Source, resume: bool) -> int:
    """Let Hydra run all jobs, wherever its launcher does so, and end with one table of them."""
    from nerftrain import composition, report, sweep

    folder = composition.sweep_dir(overrides, source)
    overrides = composition.with_sweep_dir(overrides, folder)
    for_hydra = composition.for_hydra(overrides, source)
    planned = composition.planned(for_hydra, source)
    sweep.begin(folder, resume)
    jobs, status = [], 0
    try:
        status = _call_hydra([*flags, *for_hydra], source, sweeps=True)
    finally:
        if sweep.read(folder):
            jobs = sweep.read(folder, planned)
            _start_logging(None)
            sweep.write_table(folder, planned)
            report.show(f"\n{sweep.table(jobs)}\n\nwritten to {folder}/sweep.csv and SWEEP.md")
            _say_what_is_left(jobs, [*flags, *overrides], resume)
    return sweep.exit_status(jobs) or status


def _say_what_is_left(jobs: Sequence[Job], arguments: Sequence[str], resume: bool) -> None:
    from nerftrain import report

    if all(job.finished for job in jobs):
        return
    again = [report.program("nerftrain"), *arguments, *([] if resume else ["sweep.resume=true"])]
    report.show(f"go on with: {shlex.join(again)}")
    if failed := sum(job.status != 0 for job in jobs):
        _complain(f"{failed} of {len(jobs)} jobs of the sweep failed")


# --- Verbs ---------------------------------------------------------------------------------------


def _eval(arguments: Sequence[str]) -> int:
    parser = _verb("eval", "Judge a checkpoint of a run; write figures and images into its folder.")
    parser.add_argument("--split", default="test", help="train, val or test (default %(default)s)")
    parser.add_argument("--views", type=_positive, help="evenly spaced views (default all)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="in place of RUN/eval")
    parsed = _parse_flags(parser, arguments)
    run = _load(parsed)
    from nerftrain.evaluation import evaluate_run

    evaluate_run(run, parsed.split, parsed.checkpoint, parsed.views, parsed.out)
    return 0


def _render(arguments: Sequence[str]) -> int:
    parser = _verb("render", "Render the views of a split, or a video along a path through them.")
    parser.add_argument("--split", help="train, val or test: its views (default test)")
    parser.add_argument(
        "--path",
        help="orbit, spiral, interpolate, still where the scene moves, or a file: one that view "
        "saved, a transforms.json, or a camera path of nerfstudio's (default orbit without split)",
    )
    parser.add_argument("--frames", type=_positive, help="of the path (default 120)")
    parser.add_argument("--time", type=float, help="0 to 1: stops the time of a scene that moves")
    parser.add_argument(
        "--depth",
        action="store_true",
        help="how far one sees in place of colours, and as arrays .npy in the dataset's units",
    )
    parser.add_argument(
        "--panorama", action="store_true", help="all around, equirectangular, twice as wide as high"
    )
    parser.add_argument(
        "--transparent", action="store_true", help="PNGs with opacity in place of the background"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="in place of RUN/renders")
    parsed = _parse_flags(parser, arguments)
    path = parsed.path or ("views" if parsed.split else "orbit")
    if path == "views" and parsed.frames:
        raise UserError("--frames has no effect on the views of a split: add --path orbit")
    run = _load(parsed)
    from nerftrain.evaluation import render_run

    what = parsed.split or "test", path, parsed.frames, parsed.checkpoint, parsed.time
    kinds = {name: getattr(parsed, name) for name in ("depth", "panorama", "transparent")}
    render_run(run, *what, **kinds, out=parsed.out)
    return 0


def _export(arguments: Sequence[str]) -> int:
    parser = _verb("export", "Write the surface that a run has learnt, as a mesh or as points.")
    parser.add_argument("--points", action="store_true", help="points in place of a mesh")
    parser.add_argument(
        "--resolution", type=_positive, help="voxels on the longest side (default 256)"
    )
    parser.add_argument(
        "--faces",
        type=_positive,
        metavar="N",
        help="triangles at most (default: all; with a texture 50000)",
    )
    parser.add_argument(
        "--texture",
        type=_positive,
        metavar="TEXELS",
        help="an image of so many on a side, such as 2048, in place of colours at vertices",
    )
    parser.add_argument("--count", type=_positive, help="of points, at most (default 1000000)")
    parser.add_argument(
        "--box", type=float, default=1.0, help="what is taken, times the scene's box (default 1)"
    )
    parser.add_argument(
        "--views", type=_positive, default=100, help="of training, at most (default %(default)s)"
    )
    parser.add_argument("--time", type=float, help="0 to 1, of a scene that moves")
    parser.add_argument(
        "--coordinates",
        choices=["dataset", "scene"],
        default="dataset",
        help="the images' own cameras', or the run's, upright and scaled (default %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="a mesh as .ply .obj .glb .stl .off, with a texture as .glb, points as .ply .glb .xyz "
        "(default in RUN/exports)",
    )
    parsed = _parse_flags(parser, arguments)
    kind = "points" if parsed.points else "mesh"
    if parsed.points and parsed.resolution:
        raise UserError("--resolution has no effect on points: give --count, or no --points")
    for flag in ("faces", "texture"):
        if parsed.points and getattr(parsed, flag):
            raise UserError(f"--{flag} has no effect on points: leave it out, or give no --points")
    if parsed.count and not parsed.points:
        raise UserError("--count has no effect on a mesh: add --points, or give --resolution")
    run = _load(parsed, draws=parsed.points)
    from nerftrain.export import FACES_WITH_TEXTURE, Wishes, export_run

    wishes = Wishes(
        kind=kind,
        resolution=parsed.resolution or 256,
        faces=parsed.faces or (FACES_WITH_TEXTURE if parsed.texture else None),
        texture=parsed.texture,
        count=parsed.count or 1_000_000,
        box=parsed.box,
        views=parsed.views,
        time=parsed.time,
        coordinates=parsed.coordinates,
        out=parsed.out,
    )
    export_run(run, wishes, parsed.checkpoint)
    return 0


def _view(arguments: Sequence[str]) -> int:
    parser = _verb("view", "Look around in a run, in a browser; what training saves is followed.")
    parser.add_argument("--port", type=int, default=8080, help="or the next (default %(default)s)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 serves the whole network (default %(default)s: this machine alone)",
    )
    parser.add_argument(
        "--pixels", type=_positive, default=800, help="of the longer side (default %(default)s)"
    )
    parsed = _parse_flags(parser, arguments)
    if parsed.pixels > MOST_PIXELS:
        raise UserError(f"--pixels {parsed.pixels}: give {MOST_PIXELS} at most")
    run = _load(parsed)
    from nerftrain.viewer import view_run

    view_run(run, parsed.checkpoint, parsed.host, parsed.port, parsed.pixels)
    return 0


def _resume(arguments: Sequence[str]) -> int:
    description = (
        "Go on with a run from its last checkpoint, with its seed and its scene. Where that has "
        "moved, scene.root=PATH says where it is now."
    )
    parser = _verb("resume", description, checkpoint=None)
    parsed = _parse_flags(parser, arguments)
    run = _load(parsed, resume=True)
    from nerftrain.config import SNAPSHOT, write_snapshot
    from nerftrain.trainer import train

    before = (run.run_dir / SNAPSHOT).read_bytes()
    write_snapshot(run.config, run.run_dir, "copy it to where you may, and resume the copy")
    try:
        _start_logging(run.run_dir)
        train(run, resume=True, checkpoint_name=parsed.checkpoint)
    except UserError:  # such as a model that the checkpoint does not fit
        (run.run_dir / SNAPSHOT).write_bytes(before)
        raise
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("nerftrain doctor", description="Show the machine's state.")
    parser.add_argument(
        "--build",
        choices=["all"],
        help="compile ahead for the CPU and every GPU architecture, as for a cluster's image",
    )
    parsed = _parse_flags(parser, arguments)
    from nerftrain import doctor

    print(doctor.prebuild() if parsed.build else doctor.report())
    return 0


def _data(arguments: Sequence[str]) -> int:
    from nerftrain.data_commands import run

    return run(arguments, _parse_flags, _complain)


def _verb(name: str, description: str, checkpoint: str | None = "last") -> argparse.ArgumentParser:
    program = f"nerftrain {name}"
    usage_line = f"{program} [options] RUN [key=value ...]"
    parser = argparse.ArgumentParser(program, usage=usage_line, description=description)
    parser.add_argument(
        "run", metavar="RUN", nargs="*", help="the run's folder, then overrides of its config"
    )
    parser.add_argument(
        "--trust", action="store_true", help="import what the run's config names outside nerftrain"
    )
    parser.add_argument(
        "--checkpoint", default=checkpoint, help="best, last or a file (default last)"
    )
    return parser


def _load(parsed: argparse.Namespace, resume: bool = False, draws: bool = False) -> Run:
    from nerftrain import config

    if not parsed.run:
        raise UserError("which run? name its folder, such as outputs/SCENE/MODEL-SAMPLER/TIME")
    run_dir, overrides = Path(parsed.run[0]), parsed.run[1:]
    cfg = config.load_run(run_dir, overrides, parsed.trust)
    _start_logging(None)
    if resume:
        config.check_same_data(config.load_run(run_dir, [], parsed.trust), cfg)
    else:
        config.check_has_effect(overrides, draws)
    return config.assemble(cfg, run_dir)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


_positive.__name__ = "whole number"  # argparse names the type in its message

_VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "eval": _eval,
    "render": _render,
    "export": _export,
    "view": _view,
    "resume": _resume,
    "doctor": _doctor,
    "data": _data,
}
