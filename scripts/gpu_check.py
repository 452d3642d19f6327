"""Shows in one call what a GPU makes of nerftrain; a part that fails or hangs costs itself alone.

    python scripts/gpu_check.py --out FOLDER --lego PATH [--dynamic PATH] [--unbounded PATH]
        [--seconds 540] [--peer nerfacc=PATH] [--only PART,PART] [--device cpu --quick]

A scene is its folder, overrides after it: --unbounded "PATH scene.downscale=8". Every part is a
process with a share of the time, alone on the GPU where it measures any; those of our scripts are
forked from one that has imported what they need. FOLDER gets gpu_check.json, gpu_check.md and
log.txt, written as parts end. It needs no network.
--device cpu --quick tries the same at sizes that prove nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import Row, Table

from nerftrain import doctor, report
from nerftrain.ops.library import find_nvcc

ROOT = Path(__file__).resolve().parents[1]
BENCH, OPS = ROOT / "scripts" / "bench.py", ROOT / "scripts" / "gpu_ops.py"
TESTS = tuple(
    f"tests/{part}"
    for part in ("ops", "nerfacc", "samplers", "models", "test_recording.py", "test_export.py")
)
MARKS = (5, 15, 30, 60)  # seconds of training on lego
IMPORTED = ("bench", "gpu_ops", "torchmetrics")  # once, for all parts that are forked
LEAST = 5.0  # seconds without which no part is begun
QUICK = (  # overrides
    "model.encoding.log2_table_size=10",
    "model.encoding.finest_resolution=64",
    "sampler.grid.resolution=32",
    "sampler.grid.cells_per_update=4096",
    "sampler.steps_per_diagonal=64",
    "trainer.sample_budget=1024",
)


@dataclass(frozen=True)
class Part:
    """A process and how to read what it found."""

    name: str
    command: Sequence[str | Path]
    limit: float  # seconds
    read: Callable[[Path, str], list[Table]]  # from the file that it was to write and its output
    skip: str = ""  # why it is not run
    codes: tuple[int, ...] = (0,)  # of success
    timed: bool = True  # false: it runs beside others that are not


@dataclass
class Result:
    """What became of a part."""

    name: str
    status: str  # ok, failed or skipped
    reason: str = ""
    seconds: float = 0.0
    command: str = ""
    tables: list[Table] = field(default_factory=list)


def tables_of(file: Path, _: str) -> list[Table]:
    """Read the tables that bench.py and gpu_ops.py write as JSON."""
    return [Table(**table) for table in json.loads(file.read_text(encoding="utf-8"))["tables"]]


def tests_of(file: Path, _: str) -> list[Table]:
    """Read pytest's JUnit file: how many passed, and which did not."""
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    passed = len(cases) - len(bad) - len(skipped)
    rows: list[Row] = [("passed", passed), ("failed", len(bad)), ("skipped", len(skipped))]
    rows += [(f"failed: {case.get('classname')}::{case.get('name')}", None) for case in bad]
    return [Table("Tests", "Those of the device.", ("what", "tests"), rows)]


def sanitizer_of(_: Path, output: str) -> list[Table]:
    """Read compute-sanitizer's summary."""
    summary = re.search(r"ERROR SUMMARY: (\d+) errors?", output)
    if summary is None:
        raise ValueError("compute-sanitizer wrote no summary")
    rows: list[Row] = [("errors", int(summary[1]))]
    return [Table("compute-sanitizer", "memcheck of a short training.", ("what", "count"), rows)]


def peer_of(_: Path, output: str) -> list[Table]:
    """Read the figures that nerfacc's examples print at the end."""
    found = re.findall(r"(psnr|lpips)_avg=([\d.]+)", output)
    elapsed = re.findall(r"elapsed_time=([\d.]+)s", output)
    if not found:
        raise ValueError("the peer printed no PSNR")
    rows: list[Row] = [(name, float(value)) for name, value in found]
    rows += [("seconds", float(elapsed[-1]))] if elapsed else []
    return [Table("nerfacc's own recipe", "As its example prints it.", ("what", "value"), rows)]


def parts(options: argparse.Namespace) -> list[Part]:
    """List what is to be done, what matters most first."""
    lego = _scene(options.lego, "no --lego") if not options.quick else (["scene=demo"], "")
    recipe = [*lego[0], *(QUICK if options.quick else ["experiment=blender/ngp_occgrid"])]
    device = f"runtime.device={options.device}"
    small = ["--warmup", "3"] if options.quick else []
    brief = ["--quick"] if options.quick else []
    return [
        Part("build", [BENCH, "start", "--cache", options.cache, "--tries", "1"], 200, tables_of),
        Part("ops", [OPS, *small, *brief, device, *recipe], 75, tables_of, lego[1]),
        _tests(options),
        _sanitizer(options, device),
        *_lego(options, device, recipe, lego),
        _peer(options),
        Part("stages", [BENCH, "stages", *small, device, *recipe], 45, tables_of, lego[1]),
    ]


def _scene(text: str | None, missing: str) -> tuple[list[str], str]:
    """Turn a folder and its overrides into overrides, or say why not."""
    if not text:
        return [], missing
    folder, *overrides = shlex.split(text)
    if not Path(folder).is_dir():
        return [], f"{folder} is no folder"
    return [f"scene.root={Path(folder).resolve()}", *overrides], ""


def _lego(
    options: argparse.Namespace, device: str, recipe: Sequence[str], lego: tuple[list[str], str]
) -> list[Part]:
    """Train for fixed times, with what is chosen for the time, and for the protocol's steps."""
    scene, skip = lego
    by_time = recipe if options.quick else ["scene=lego", *scene]

    def train(name: str, more: Sequence[str], limit: float, skip: str) -> Part:
        return Part(name, [BENCH, "curve", device, *more], limit, tables_of, skip)

    def timed(name: str, seconds: float, overrides: Sequence[str], skip: str) -> Part:
        marks = ["--seconds", str(seconds), "--marks", str(seconds)]
        # Sizes are chosen by the time, and nothing but that ends the training.
        limits = [f"trainer.max_seconds={seconds}", "trainer.steps=10000000"]
        return train(name, [*marks, *overrides, *limits], 2 * seconds + 40, skip)

    *early, last = [0.2, 0.4] if options.quick else MARKS
    steps = ["trainer.steps=20"] if options.quick else ["--marks", "5,15,30,60", "--views", "8"]
    minute = 0.5 if options.quick else 60
    others = []
    for kind, preset in (("dynamic", "dnerf_2min"), ("unbounded", "mip360_5min")):
        found, why = _scene(getattr(options, kind), f"no --{kind}")
        others.append(timed(kind, minute, [f"experiment={preset}", *found], why))
    return [
        *(timed(f"lego-{mark:g}s", mark, by_time, skip) for mark in early),
        train("lego-steps", [*steps, *recipe], 180, skip),
        *others,
        timed(f"lego-{last:g}s", last, by_time, skip),
    ]


def _tests(options: argparse.Namespace) -> Part:
    """Run the tests of the device, some at a time where pytest can."""
    which = ["tests/ops/test_contract.py"] if options.quick else list(TESTS)
    # Its name has the device's in it, but it compiles for all others as well: minutes.
    without = ["-p", "no:cacheprovider", "--ignore=tests/ops/test_cuda_build.py"]
    without += ["-o", "addopts=--import-mode=importlib"]
    if importlib.util.find_spec("xdist"):  # one after the other they take minutes
        without += ["-n", str(min(14, max(1, (os.cpu_count() or 1) - 2)))]
    command = ["-m", "pytest", "-q", "-k", options.device, *without, *which]
    return Part("tests", command, 150, tests_of, codes=(0, 1), timed=False)


def _sanitizer(options: argparse.Namespace, device: str) -> Part:
    beside = Path(find_nvcc() or "nvcc").resolve().parent / "compute-sanitizer"
    tool = shutil.which("compute-sanitizer") or (str(beside) if beside.is_file() else None)
    skip = "" if options.device == "cuda" else "the device is no GPU"
    skip = skip or ("" if tool else "compute-sanitizer was not found")
    training = [BENCH, "stages", "--warmup", "2", "--steps", "2", device, "scene=demo", *QUICK]
    command = [tool or "", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, *training]
    return Part("sanitizer", command, 120, sanitizer_of, skip, codes=(0, 9), timed=False)


def _peer(options: argparse.Namespace) -> Part:
    name, _, folder = (options.peer or "").partition("=")
    recipe = Path(folder) / "examples" / "train_ngp_nerf_occ.py"
    scene = Path(shlex.split(options.lego)[0]).resolve() if options.lego else Path()
    skip = "" if options.peer else "no --peer"
    if options.peer and not (name == "nerfacc" and recipe.is_file() and options.lego):
        skip = f"--peer nerfacc=PATH needs {recipe} and --lego"
    command = [recipe, "--scene", scene.name, "--data_root", scene.parent]
    return Part("peer", command, 400, peer_of, skip)


def run_part(part: Part, folder: Path, seconds_left: float, environment: dict[str, str]) -> Result:
    """Run a part within its share and what time is left; never raise."""
    if part.skip or seconds_left < LEAST:
        return Result(part.name, "skipped", part.skip or f"{seconds_left:.0f} s are left")
    file = folder / f"{part.name}.out"
    words = list(map(str, part.command))
    if "pytest" in words:
        words.append(f"--junitxml={file}")
    elif words[0] in (str(BENCH), str(OPS)):
        words += ["--json", str(file)]
    started = time.perf_counter()
    limit = min(part.limit, seconds_left)
    code, output = _run(words, limit, folder / f"{part.name}.log", environment)
    result = Result(part.name, "ok", "", time.perf_counter() - started)
    result.command = shlex.join(_shown(words))
    if code is None:
        result.status, result.reason = "failed", f"took more than {limit:.0f} s and was ended"
    elif code not in part.codes:
        last = output.strip().splitlines() or ["it said nothing"]
        result.status, result.reason = "failed", f"exit status {code}: {last[-1]}"
    try:
        result.tables = part.read(file, output)
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        result.status = "failed"
        result.reason = result.reason or f"its figures cannot be read: {error}"
    return result


def _run(
    words: Sequence[str], limit: float, log: Path, environment: dict[str, str] | None
) -> tuple[int | None, str]:
    """Run a part with all that it starts; the exit status is None where time ran out."""
    log.touch()
    ours = words[0] in (str(BENCH), str(OPS))
    code = (_fork if ours else _start)(words, limit, log, environment)
    return code, log.read_text(encoding="utf-8", errors="replace")


def _command(words: Sequence[str]) -> list[str]:
    # A tool that runs another program stands as it is; all else is given to this Python.
    runs = Path(words[0]).name == "compute-sanitizer"
    return list(words) if runs else [sys.executable, *words]


def _shown(words: Sequence[str]) -> list[str]:
    """Write a command as it would be typed here."""
    short = [word.removeprefix(f"{ROOT}{os.sep}") for word in _command(words)]
    return ["python" if word == sys.executable else word for word in short]


def _start(
    words: Sequence[str], limit: float, log: Path, environment: dict[str, str] | None
) -> int | None:
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            _command(words),
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _fork(
    words: Sequence[str], limit: float, log: Path, environment: dict[str, str] | None
) -> int | None:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(IMPORTED))
    process = server.Process(target=_be, args=(words, log, environment or dict(os.environ)))
    process.start()
    try:
        process.join(limit)
        return process.exitcode
    finally:
        if process.exitcode is None:
            with suppress(ProcessLookupError):  # one that has no group yet has started nothing
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()


def _be(words: Sequence[str], log: Path, environment: dict[str, str]) -> None:
    """Become a script of ours, in a process that was forked."""
    os.setsid()
    os.chdir(ROOT)
    os.environ.update(environment)
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if "libcuda.so" in Path("/proc/self/maps").read_text(encoding="utf-8"):
        # Something that was imported has looked for a GPU: what is forked from it can use none.
        print("gpu_check: begun anew, for an import has looked for a GPU", flush=True)
        os.execv(sys.executable, _command(words))
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")


def write(out: Path, header: dict[str, str], results: Sequence[Result]) -> None:
    """Write both documents anew."""
    document: dict[str, Any] = {**header, "parts": []}
    rows, sections = [], []
    for r in results:
        tables = [table._asdict() for table in r.tables]
        document["parts"].append({**vars(r), "tables": tables})
        rows.append((r.name, r.status, f"{r.seconds:.0f}", r.reason or "-"))
        sections += [f"# {r.name}\n\n`{r.command}`", *(table.markdown() for table in r.tables)]
    (out / "gpu_check.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    about = report.markdown_table(("what", "which"), list(header.items()))
    summary = report.markdown_table(("part", "status", "seconds", "reason"), rows)
    text = "\n\n".join(["# GPU check", about, summary, *sections]) + "\n"
    (out / "gpu_check.md").write_text(text, encoding="utf-8")


@contextmanager
def environment(**more: str) -> Iterator[None]:
    """Set variables for a while."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def header(argv: Sequence[str]) -> dict[str, str]:
    """Say what the figures were measured on."""
    known = doctor.environment()
    names = ("cpu", "cores", "gpu_driver", "torch", "cuda", "python", "commit")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "gpus": ", ".join(known["gpus"]) or "none",
        **{name: str(known[name] or "none") for name in names},
        "command": shlex.join(["python", "scripts/gpu_check.py", *argv]),
    }


def check(work: Sequence[Part], out: Path, about: dict[str, str], seconds: float, env: Any) -> bool:
    """Run the parts in turn and write what is known after each; say whether none failed."""
    deadline = time.perf_counter() + seconds
    results: list[Result] = []
    (out / "log.txt").write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:

        def take(part: Part) -> Result:
            return run_part(part, Path(temporary), deadline - time.perf_counter(), env)

        while work:  # one, or all that come before the next that is timed
            at_once = list(itertools.takewhile(lambda part: not part.timed, work)) or work[:1]
            work = work[len(at_once) :]
            with ThreadPoolExecutor() as pool:
                for result in pool.map(take, at_once):
                    results.append(result)
                    write(out, about, results)
                    _keep_log(out / "log.txt", result, Path(temporary) / f"{result.name}.log")
                    line = f"gpu_check: {result.name}: {result.status}, {result.seconds:.0f} s"
                    print(f"{line}, {result.reason}" if result.reason else line, flush=True)
    return all(result.status != "failed" for result in results)


def _keep_log(kept: Path, result: Result, log: Path) -> None:
    if result.status == "skipped" or not log.is_file():
        return
    with kept.open("a", encoding="utf-8") as file:
        file.write(f"==== {result.name}: {result.status} {result.reason}\n")
        file.write(log.read_text(encoding="utf-8", errors="replace") + "\n")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("gpu_check.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="a folder for what is found")
    for name in ("lego", "dynamic", "unbounded"):
        add(f"--{name}", metavar="'PATH [key=value ...]'", help=f"the {name} scene's folder")
    add("--seconds", type=float, default=540, help="for everything together (%(default)s)")
    add("--peer", metavar="nerfacc=PATH", help="a checkout whose own recipe runs on lego too")
    add("--only", help="parts, separated by commas (all)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    add("--quick", action="store_true", help="tiny sizes and the demo scene: a trial of the script")
    add("--cache", type=Path, help="where the ops are compiled to (a temporary folder)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, and return 1 where a part failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = _parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        options.cache = options.cache or Path(temporary)
        before = filter(None, [os.environ.get("PYTHONPATH")])
        path = os.pathsep.join([str(ROOT), str(BENCH.parent), *before])
        # What others are forked from may count GPUs, but not use any.
        more = {"PYTHONPATH": path, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        env = {**os.environ, **more, "NERFTRAIN_CACHE": str(options.cache)}
        only = options.only.split(",") if options.only else None
        work = [part for part in parts(options) if only is None or part.name in only]
        with environment(**more):
            well = check(work, options.out, header(argv), options.seconds, env)
    print(f"gpu_check: see {options.out / 'gpu_check.md'}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
