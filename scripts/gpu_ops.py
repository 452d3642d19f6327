"""Holds the CUDA ops to the CPU's, then their times to floors that this GPU is measured to have.

    python scripts/gpu_ops.py --json FILE [--quick] [key=value ...]

Overrides are those of the command line; the run they give is trained for --warmup steps first, and
the ops get what its next step would give them (the cases of bench.py). What is done is in the file
at once: a fault that ends the process loses what comes after it alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import bench
import torch
from bench import Bench, Case, Row, Table
from torch import Tensor
from torch.autograd import DeviceType

from nerftrain import trainer
from nerftrain.errors import UserError
from nerftrain.ops import library
from nerftrain.recording import Counts
from nerftrain.types import Samples

CALLS = 10  # whose mean is a time, of the fastest of ROUNDS
ROUNDS = 3
WITH_ROOMS = ("march_to", "select")  # take a room as their last argument
MANY = 16  # times as many rays as in a step, of which launching and waiting are a small part
ASKING = ("next_round", "take", "pack_grid", "visible_cells")  # cannot be recorded, or never are
CELL_FLOPS = 60  # of visible_cells for a cell and a camera, counted in the source
SETTLING, TRACED = 24, 20  # steps until steps are recorded, and of the trace
CALLS_OF_THE_HOST = {
    "waits for the whole device or a stream": ("cudaDeviceSynchronize", "cudaStreamSynchronize"),
    "waits for an earlier step": ("cudaEventSynchronize",),
    "copies": ("cudaMemcpy",),
    "kernels launched one by one": ("cudaLaunchKernel", "cuLaunchKernel"),
    "graphs launched": ("cudaGraphLaunch",),
}
SHOWN_KERNELS, KERNEL_NAME = 40, 90  # and the letters of a name
GATHER_ROWS = (13, 16, 19, 21, 23)  # log2 of the rows of a table; a row is two float32


class Size(NamedTuple):
    """How large the probes of the ceilings are."""

    copied: int  # float32
    matrix: int  # rows and columns
    gathered: int  # indices


FULL, QUICK = Size(1 << 28, 8192, 1 << 24), Size(1 << 20, 256, 1 << 14)


class Ceilings(NamedTuple):
    """What the device did at best."""

    bandwidth: float  # bytes per second, read and written
    flops: dict[str, float]  # per second, by number type
    gather: dict[int, float]  # rows per second, by bytes of the table
    scatter: dict[int, float]

    def rate(self, rates: dict[int, float], num_bytes: int) -> float:
        """Return the rate of the smallest measured table that is as large."""
        return rates[min((size for size in rates if size >= num_bytes), default=max(rates))]


def moved(value: Any, device: torch.device | str, memo: dict[int, Tensor]) -> Any:
    """Copy what an op is called with to a device; memo tells each tensor's copy by its id."""
    if isinstance(value, Tensor):
        copy = value.detach().to(device).clone().requires_grad_(value.requires_grad)
        return memo.setdefault(id(value), copy)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        return replace(value, **{n: moved(getattr(value, n), device, memo) for n in names})
    if isinstance(value, list | tuple):
        parts = [moved(part, device, memo) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def tensors(value: Any) -> list[Tensor]:
    """List the tensors of an op's arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Samples):  # one that a ray has more must not count for all rays after it
        return [value.t_starts, value.t_ends, value.ray_indices, value.offsets.diff()]
    if is_dataclass(value) and not isinstance(value, type):
        return tensors([getattr(value, field.name) for field in fields(value) if field.compare])
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


def on(case: Case, device: torch.device | str) -> Case:
    """Copy a case to a device."""
    memo: dict[int, Tensor] = {}
    arguments = moved(tuple(case.arguments), device, memo)
    return case._replace(arguments=arguments, leaves=[memo[id(leaf)] for leaf in case.leaves])


def results(case: Case, reference: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Return an op's outputs and, where it has a backward, the gradients of what training uses."""
    output = bench.op_and_reference(case)[1 if reference else 0](*case.arguments)
    return tensors(output), list(_gradients(case, output)()) if case.leaves else []


def with_rooms(case: Case) -> Case:
    """Give what asks a GPU how many samples there are buffers of a fixed size, as training does."""
    if case.op not in WITH_ROOMS:
        return case
    number = len(tensors(bench.op_and_reference(case)[0](*case.arguments))[0])
    return case._replace(arguments=(*case.arguments, number))


def of_many_rays(case: Case) -> Case:
    """Repeat the rays of a march or a compositing: a view's, say, where a step's take no time."""
    if case.op == "march_to":
        rays, jitter, *rest = case.arguments
        repeated = torch.arange(len(rays), device=jitter.device).repeat(MANY)
        size = f"R={len(repeated)}"
        return case._replace(size=size, arguments=(rays[repeated], jitter[repeated], *rest))
    *values, samples = case.arguments
    leaves = [torch.cat([value.detach()] * MANY).requires_grad_() for value in values]
    counts = samples.offsets.diff().repeat(MANY)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rays = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    more = Samples(samples.t_starts.repeat(MANY), samples.t_ends.repeat(MANY), rays, offsets)
    size = f"R={len(counts)} N={len(more)}"
    return case._replace(size=size, arguments=(*leaves, more), leaves=leaves)


def _gradients(case: Case, output: Any) -> Callable[[], Sequence[Tensor]]:
    outputs = output[:2] if isinstance(output, tuple) else (output,)
    # As in training, where the logarithm of a density counts, which can be in the thousands.
    given = [1 / (1 + value.detach().abs()) for value in outputs]
    return lambda: torch.autograd.grad(outputs, case.leaves, given, retain_graph=True)


class Difference(NamedTuple):
    """How far two lists of tensors are apart."""

    largest: float | None  # between floats; none where there are none to compare
    relative: float | None  # |ours - theirs| / |theirs|, of the worst tensor
    entries: int  # flags, counts and indices that differ, and entries that only one side has


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Difference:
    """Compare results of two devices."""
    largest: list[float] = []
    relative: list[float] = []
    entries = 0
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().cpu(), b.detach().cpu()
        if a.shape != b.shape:
            entries += abs(a.numel() - b.numel())
        elif not a.is_floating_point():
            entries += int((a != b).sum())
        elif a.numel():
            # A NaN on one side alone must not pass for agreement.
            apart = torch.where(a.isnan() & b.isnan(), 0.0, (a - b).abs()).nan_to_num(float("inf"))
            largest.append(float(apart.max()))
            relative.append(float(apart.norm() / b.nan_to_num(0, 0, 0).norm().clamp(min=1e-30)))
    return Difference(max(largest, default=None), max(relative, default=None), entries)


def agreement(cases: Sequence[Case]) -> Table:
    """Compare each op with the CPU's, and those that the CPU does not have with torch's."""
    rows: list[Row] = []
    for case in cases:
        gpu_only = case.op.startswith(("ngp_half", "warp_half"))
        try:
            here, there = results(case), results(case if gpu_only else on(case, "cpu"), gpu_only)
        except (RuntimeError, UserError) as error:  # of one op, which must not cost the others
            rows.append((case.op, case.size, f"failed: {error}".splitlines()[0], *[None] * 4))
            continue
        forward, backward = (difference(a, b) for a, b in zip(here, there, strict=True))
        entries = forward.entries + backward.entries
        rows.append((case.op, case.size, *forward[:2], *backward[:2], entries))
    note = (
        "Largest difference, and the norm of all relative to the tensor's; then flags, counts and "
        "indices that differ. Marches may differ where a midpoint lies on a wall, by rounding; "
        "fields in products of 10 bits (tf32). What runs in half precision (ngp_half, warp_half) "
        "is held to torch's of the same roundings."
    )
    columns = ("op", "size", "forward", "relative", "backward", "relative", "entries")
    return Table("Against the CPU", note, columns, rows)


def _seconds(function: Callable[[], object], calls: int = CALLS) -> float:
    """Return the mean time of some calls in a row, of the fastest of ROUNDS."""
    function()
    best = float("inf")
    for _ in range(ROUNDS):
        started = bench.now()
        for _ in range(calls):
            function()
        best = min(best, (bench.now() - started) / calls)
    return best


def _replayed_seconds(function: Callable[[], object]) -> float:
    """Return the mean time of a call as a recorded step makes it: without the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            function()
    return _seconds(graph.replay, 1) / CALLS


def _times(case: Case) -> list[float]:
    """Return the seconds of an op and, where it has one, of its backward."""
    function = bench.op_and_reference(case)[0]
    cuda = any(t.is_cuda for t in tensors(tuple(case.arguments)))
    seconds = _replayed_seconds if cuda and case.op not in ASKING else _seconds
    forward = seconds(lambda: function(*case.arguments))
    if not case.leaves:
        return [forward]
    if seconds is _seconds:
        return [forward, _seconds(_gradients(case, function(*case.arguments)))]
    return [forward, seconds(lambda: _gradients(case, function(*case.arguments))()) - forward]


def ceilings(device: torch.device, size: Size) -> Ceilings:
    """Measure what the device does at best."""
    bandwidth = _bandwidth(torch.rand(size.copied, device=device))
    flops = dict(_flops(device, size.matrix))
    gather, scatter = {}, {}
    for log2_rows in GATHER_ROWS if size is FULL else GATHER_ROWS[:2]:
        table = torch.rand(1 << log2_rows, 2, device=device)
        places = torch.randint(1 << log2_rows, (size.gathered,), device=device, dtype=torch.int32)
        gathers, adds = _gather_and_scatter(table, places)
        num_bytes = table.numel() * 4
        gather[num_bytes], scatter[num_bytes] = size.gathered / gathers, size.gathered / adds
    return Ceilings(bandwidth, flops, gather, scatter)


def _bandwidth(source: Tensor) -> float:
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _seconds(lambda: target.copy_(source))


def _gather_and_scatter(table: Tensor, places: Tensor) -> tuple[float, float]:
    rows = table.view(torch.int64)[:, 0]  # eight bytes at once, as a kernel can read them
    gathered = torch.empty(len(places), dtype=torch.int64, device=table.device)
    added = torch.ones(len(places), 2, device=table.device)
    gathers = _seconds(lambda: torch.index_select(rows, 0, places, out=gathered))
    return gathers, _seconds(lambda: table.index_add_(0, places, added))


def _flops(device: torch.device, side: int) -> Iterator[tuple[str, float]]:
    kinds = [("fp32", torch.float32, False), ("fp16", torch.float16, False)]
    if device.type == "cuda":
        kinds.insert(1, ("tf32", torch.float32, True))
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in kinds:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.rand(side, side, device=device).to(dtype)
        out = torch.empty_like(a)
        yield name, 2 * side**3 / _seconds(lambda a=a, out=out: torch.mm(a, a, out=out))
    torch.backends.cuda.matmul.allow_tf32 = before


def ceiling_table(top: Ceilings, device: torch.device) -> Table:
    """Write what was measured of the device."""
    rows: list[Row] = [("copy, GB/s read and written", top.bandwidth / 1e9)]
    rows += [(f"{name} matrix product, TFLOP/s", f / 1e12) for name, f in top.flops.items()]
    for what, rates in (("gathers", top.gather), ("atomic adds", top.scatter)):
        rows += [(f"{what} of 8 B in {b >> 10} KiB, G/s", r / 1e9) for b, r in rates.items()]
    note = (
        f"{device.type}: torch's copy_, mm, index_select and index_add_, the fastest of {ROUNDS}."
    )
    return Table("Ceilings", note, ("what", "at best"), rows)


def floors(case: Case, outputs: Sequence[Tensor], top: Ceilings) -> tuple[float, float, str]:
    """Return the least seconds of an op and of its backward, and what they are bound by.

    Everything that goes in is read once, everything that comes out is written once; only what a
    hash encoding gathers, an MLP multiplies and a cell's projections take count otherwise.
    """
    inputs = tensors(tuple(case.arguments))
    if case.op == "hash_encode":
        positions, table, levels = case.arguments
        rows = len(positions) * len(levels.resolutions) * 2 ** positions.shape[1]
        size = table.numel() * table.element_size()
        return (
            rows / top.rate(top.gather, size),
            rows / top.rate(top.scatter, size),
            "gathers, atomic adds",
        )
    if case.op.startswith("ngp_half"):
        grids, *_ = case.arguments
        matrices = [t for t in tensors(tuple(case.arguments[1:])) if t.shape[0] <= 64]
        num = len(grids[0].positions)
        products = 2 * num * sum(w.numel() for w in matrices) / top.flops["fp16"]
        corners = num * sum(len(g.levels.resolutions) * 2 ** g.positions.shape[1] for g in grids)
        size = grids[0].half.numel() * 2
        gathers = corners / top.rate(top.gather, size)
        adds = corners / top.rate(top.scatter, 2 * size)
        return gathers + products, adds + 3 * products, "gathers, fp16 FLOPs"
    if case.op == "warp_half":
        positions, _, weights, _ = case.arguments
        products = 2 * len(positions) * sum(w.numel() for w in weights) / top.flops["fp16"]
        return products, 3 * products, "fp16 FLOPs"  # backwards the layers are evaluated anew
    if case.op == "mlp":
        x, weights = case.arguments
        seconds = 2 * len(x) * sum(w.numel() for w in weights) / top.flops["fp32"]
        return seconds, 2 * seconds, "fp32 FLOPs"
    moves = sum(t.numel() * t.element_size() for t in (*inputs, *outputs)) / top.bandwidth
    if case.op == "visible_cells":
        flops = outputs[0].numel() * len(case.arguments[0]) * CELL_FLOPS / top.flops["fp32"]
        return max(flops, moves), 0.0, "fp32 FLOPs" if flops > moves else "bytes"
    leaves = sum(t.numel() * t.element_size() for t in case.leaves) / top.bandwidth
    return moves, moves + leaves, "bytes"


def against_floors(cases: Sequence[Case], top: Ceilings) -> Table:
    """Time each op and say how near it comes to its floor."""
    rows: list[Row] = []
    for case in cases:
        # Without what autograd keeps of them: it is bound to this stream, which is not recorded.
        with torch.no_grad():
            outputs = tensors(bench.op_and_reference(case)[0](*case.arguments))
        lows = floors(case, outputs, top)
        figures: list[float | str | None] = []
        try:
            for seconds, low in zip(_times(with_rooms(case)), lows[:2], strict=False):
                figures += [1e3 * seconds, 1e3 * low, low / seconds]
        except RuntimeError as error:  # of one op, which must not cost the others
            figures = [f"failed: {error}".splitlines()[0]]
        rows.append((case.op, case.size, lows[2], *figures, *[None] * (6 - len(figures))))
    note = (
        f"Mean of {CALLS} calls in a row, on a GPU replayed as in a recorded step, so without the "
        f"host, but for {', '.join(ASKING)}. What was touched last may still be in a cache. "
        "Floor / time: 1 is the best that the ceilings allow."
    )
    kinds = [
        f"{way} {what}" for way in ("forward", "backward") for what in ("ms", "floor ms", "share")
    ]
    return Table("Ops against their floors", note, ("op", "size", "bound by", *kinds), rows)


def trace(run: Bench) -> Iterator[Table]:
    """Tell what host and GPU do in a step, once steps are recorded where they can be."""
    cuda = run.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    profiler = torch.profiler.profile(activities=kinds)

    class Traced(bench.Tally):
        def after_step(self, taken: object, counts: Counts | None) -> None:
            if len(self.clock) == SETTLING:
                profiler.start()
            super().after_step(taken, counts)

    tally = Traced(run.run, run.state, SETTLING + TRACED)
    with suppress(bench.EnoughError):
        trainer.loop(run.run, run.state, tally)  # type: ignore[arg-type]
    profiler.stop()
    found = {event.key: event for event in profiler.key_averages()}
    rows: list[Row] = [
        (name, sum(e.count for key, e in found.items() if key.startswith(names)) / TRACED)
        for name, names in CALLS_OF_THE_HOST.items()
    ]
    # Spans of the host name the time of what they launched, too: it would count twice.
    busy = sum(e.self_device_time_total for e in found.values() if _is_kernel(e))
    rows.append(("ms of the step", sum(tally.milliseconds[SETTLING:]) / TRACED))
    rows.append(("ms in which the GPU runs kernels", busy / 1000 / TRACED if cuda else None))
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    rows.append(("peak GPU memory, GiB", peak))
    note = f"Of {TRACED} steps by torch's profiler, which takes time itself; calls per step."
    yield Table("A step as the profiler sees it", note, ("what", "per step"), rows)
    if cuda:
        yield _kernels(found)


def _is_kernel(event: Any) -> bool:
    """Tell the GPU's own work from spans of the host's that are shown beside it."""
    return event.device_type == DeviceType.CUDA and not event.key.startswith("Optimizer.")


def _kernels(found: dict[str, Any]) -> Table:
    """List what took the GPU longest."""
    kernels = [e for e in found.values() if _is_kernel(e)]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    rows: list[Row] = [
        (_short(e.key), e.count / TRACED, e.self_device_time_total / TRACED)
        for e in kernels[:SHOWN_KERNELS]
    ]
    rest = kernels[SHOWN_KERNELS:]
    calls, spent = (sum(e.count for e in rest), sum(e.self_device_time_total for e in rest))
    rows.append((f"{len(rest)} others", calls / TRACED, spent / TRACED))
    note = "Kernels, copies and fills of the same steps, by the time that they take."
    return Table("Kernels of a step", note, ("kernel", "launches per step", "us per step"), rows)


def _short(name: str) -> str:
    """Tell a kernel's name without namespaces and arguments."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    for prefix in ("at::native::", "at_cuda_detail::", "nerftrain::", "cub::", "at::cuda::"):
        name = name.replace(prefix, "")
    return name.partition("(")[0].replace("|", "/")[:KERNEL_NAME]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the tables as they come; return the exit status."""
    parser = argparse.ArgumentParser("gpu_ops.py", description=__doc__.splitlines()[0])
    parser.add_argument("--warmup", type=int, default=500, help="steps before (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small probes of the ceilings")
    parser.add_argument("--json", type=Path, required=True, help="a file for the tables")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    tables: list[Table] = []

    def done(table: Table) -> None:
        tables.append(table)
        print(table.markdown(), flush=True)
        document = {"tables": [t._asdict() for t in tables]}
        arguments.json.write_text(json.dumps(document), encoding="utf-8")

    started = time.perf_counter()
    run = Bench(arguments.overrides, arguments.warmup, 1)
    library.set_mode("native")  # an op that is not there must not pass for one that agrees
    cases = bench.op_cases(run)
    cases += [of_many_rays(case) for case in cases if case.op in ("march_to", "composite")]
    done(agreement(cases))
    top = ceilings(run.device, QUICK if arguments.quick else FULL)
    done(ceiling_table(top, run.device))
    done(against_floors(cases, top))
    library.set_mode("auto")
    del cases
    for table in trace(run):  # last: a profiler that fails takes nothing with it
        done(table)
    print(f"gpu_ops: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
