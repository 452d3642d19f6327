"""Guesses how long a GPU takes for the ops of a step, where there is none but nvcc is.

    python scripts/gpu_guess.py [--rays N] [--drawn N] [--json FILE] [key=value ...]

The host plays the kernels as nvcc compiles them, for a few of an H100's 132 processors, as if these
were all (tests/ops/played_ptx.h, timed_ptx.h). So as many rays are asked for as these processors
have of a launch: 664 and 10,612 of the four stand for 22,000 and 350,000. Overrides are those of
the command line (a GPU's networks are 64 wide: model.width=64); the run they give is trained by the
CPU for --warmup steps first. What is composited are the samples that training keeps, or so many of
a ray, in the mean, drawn from those of the march.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import bench
import gpu_ops
import torch
from bench import Bench, Case, Row, Table

from nerftrain.ops import library
from nerftrain.types import Samples

TESTS = Path(__file__).parent.parent / "tests"
OPS = ("march_to", "visible_samples", "select", "hash_encode", "ngp_half_density", "ngp_half")
OPS += ("composite",)
COUNTS = ("warps", "instructions", "of_lanes", "global_requests", "global_sectors")  # and more


class Played:
    """What CUDA ops that the host plays tell of themselves."""

    def __init__(self, file: Path, processors: int) -> None:
        self._library = ctypes.CDLL(str(file))
        self._library.played_counts.restype = ctypes.c_char_p
        self.time_on(processors)

    def time_on(self, processors: int) -> None:
        """Let them tell the time that so many processors take; none: no time."""
        self._library.time_on_processors(processors)

    def counted(self) -> Iterator[tuple[str, dict[str, int], float]]:
        """Tell what kernels have done since this was last asked, and their microseconds."""
        for line in self._library.played_counts().decode().splitlines():
            name, *numbers, microseconds = line.split()
            counts = dict(zip(COUNTS, map(int, numbers), strict=False))
            yield _short(name), counts, float(microseconds)


def play(folder: Path) -> Path:
    """Let the CUDA ops serve, played by the host; return their library."""
    sys.path.insert(0, str(TESTS))
    import cuda_on_host  # needs pytest, as the tests do

    ptx = cuda_on_host.compile_ptx(cuda_on_host.all_sources(folder), folder)
    os.environ["PLAYED_PTX"] = str(ptx)
    torch.ops.nerftrain = cuda_on_host.load_ops(folder, "nerftrain_played", "-DPLAYED_PTX")
    library.on_cpu = lambda _: False
    return folder / "nerftrain_played.so"


def _short(mangled: str) -> str:
    found = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=False)
    name = (found.stdout.strip() or mangled).removeprefix("void ").replace("nerftrain::", "")
    return re.sub(r"\(.*", "", name)


def draw(marched: Samples, mean: float) -> Case:
    """Composite some of the samples of rays: so many of a ray in the mean."""
    num_rays = len(marched.offsets) - 1
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(len(marched), generator=generator) < mean * num_rays / len(marched)
    before = torch.cat([torch.zeros(1, dtype=torch.int64), drawn.cumsum(0)])
    fields = (marched.t_starts, marched.t_ends, marched.ray_indices)
    samples = Samples(*(field[drawn] for field in fields), before[marched.offsets])
    density, channels = torch.rand(len(samples), 4, generator=generator).split([1, 3], 1)
    values = [(20 * density[:, 0]).requires_grad_(), channels.contiguous().requires_grad_()]
    return Case("composite", f"R={num_rays} N={len(samples)}", (*values, samples), values)


def guesses(run: Bench, played: Played, ops: Sequence[str], mean: float | None = None) -> Table:
    """Play each op of a step, there and back; where `mean` is given compositing takes that many."""
    rows: list[Row] = []
    cases = bench.op_cases(run)
    if mean is not None:
        marched = next(case.arguments[0] for case in cases if case.op == "visible_samples")
        cases = [draw(marched, mean) if case.op == "composite" else case for case in cases]
    for case in cases:
        if case.op not in ops:
            continue
        case = gpu_ops.with_rooms(case)
        list(played.counted())
        gpu_ops.results(case)
        for kernel, counts, microseconds in played.counted():
            lanes = counts["of_lanes"] / counts["instructions"]
            megabytes = counts["global_sectors"] * 32 / 1e6
            rows.append(
                (case.op, case.size, kernel, microseconds, counts["instructions"], lanes, megabytes)
            )
    note = (
        "Microseconds that as many processors of an H100 would take, by a model that was within a "
        "third of what was measured (docs/benchmarks/gpu.md); instructions issued to warps, how "
        "many of 32 lanes did them, and the bytes of all sectors that were touched."
    )
    columns = ("op", "size", "kernel", "us", "instructions", "lanes", "MB")
    return Table("What a GPU would take", note, columns, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Guess, and print the table; return the exit status."""
    parser = argparse.ArgumentParser("gpu_guess.py", description=__doc__.splitlines()[0])
    parser.add_argument("--warmup", type=int, default=200, help="steps before (%(default)s)")
    parser.add_argument("--rays", type=int, default=664, help="of all processors (%(default)s)")
    parser.add_argument("--processors", type=int, default=4, help="as if all (%(default)s)")
    parser.add_argument("--drawn", type=float, help="samples of a ray that are composited")
    parser.add_argument("--ops", default=",".join(OPS), help="which (%(default)s)")
    parser.add_argument("--json", type=Path, help="a file for the table, too")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    run = Bench(arguments.overrides, arguments.warmup, 1)
    run.state.num_rays = arguments.rays
    with tempfile.TemporaryDirectory() as folder:
        played = Played(play(Path(folder)), arguments.processors)
        table = guesses(run, played, arguments.ops.split(","), arguments.drawn)
    print(table.markdown())
    if arguments.json:
        arguments.json.write_text(json.dumps({"tables": [table._asdict()]}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
