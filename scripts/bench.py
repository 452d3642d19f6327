"""Measures nerftrain on this machine and prints one Markdown document.

    python scripts/bench.py [stages|ops|bounds|curve|start] [options] [key=value ...]

Overrides are those of the command line, e.g. ``scene=lego scene.root=PATH runtime=cpu``.
How to read the tables is said in docs/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

import torch
from torch import Tensor, nn

from nerftrain import config, doctor, evaluation, nerfacc, report, trainer, video
from nerftrain.errors import UserError
from nerftrain.models import encodings
from nerftrain.models import ngp as ngp_model
from nerftrain.models.dynamic import Warp, WarpField
from nerftrain.models.ngp import NGP
from nerftrain.ops import (
    adam,
    composite,
    hash_encoding,
    lenses,
    library,
    march,
    mlp,
    ngp,
    ngp_half,
    points,
    spherical_harmonics,
    visit,
    visit_ngp,
    warp,
)
from nerftrain.ops import colors as color_ops
from nerftrain.ops import rays as ray_ops
from nerftrain.recording import Counts
from nerftrain.rendering import field_functions
from nerftrain.samplers import jitter, occgrid
from nerftrain.samplers.occgrid import OccGrid
from nerftrain.scenes import Scene
from nerftrain.types import Samples

DENSITY, FIELD, OTHER, JOURNAL = "density without gradient", "field", "other", "journal"
BEFORE, AFTER = ("rays", "march", DENSITY, "sample selection"), ("composite", "loss", "backward")
ORDER = (*BEFORE, FIELD, *AFTER, "optimiser", "grid update", OTHER)  # as in a step
LAYERS = (nn.Linear, encodings.SmallMLP)
ENCODINGS = (encodings.HashEncoding, encodings.FrequencyEncoding, encodings.DirectionEncoding)
OPS = (
    ray_ops,
    lenses,
    march,
    visit,
    points,
    hash_encoding,
    spherical_harmonics,
    mlp,
    ngp,
    ngp_half,
    warp,
    visit_ngp,
    composite,
    color_ops,
)
DISCARD_RAYS = 4096  # that are marched with the grid and with a full one
FACADE_SAMPLES = 2**18  # in a step of nerfacc's own examples
TIMED_VIEWS = 25
OP_CAMERAS = 2  # for visible_cells, whose reference is slow

Row = tuple[str | float | None, ...]


class Table(NamedTuple):
    """One section of the document."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Row]

    def markdown(self) -> str:
        """Write heading, note and table."""
        table = report.markdown_table(self.columns, [[_cell(v) for v in row] for row in self.rows])
        return f"## {self.title}\n\n{self.note}\n\n{table}"


def _cell(value: str | float | None) -> str:
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return value or "-"


def _progress(text: str) -> None:
    print(f"bench: {text} ...", file=sys.stderr, flush=True)


class EnoughError(Exception):
    """Ends the trainer's loop after the steps that were asked for."""


class Tally:
    """Takes the place of the trainer's journal: counts, and ends the loop after num_steps."""

    def __init__(self, run: trainer.Run, state: trainer.State, num_steps: int) -> None:
        self.run, self.state, self.num_steps = run, state, num_steps
        self.counts: Counter[str] = Counter()
        self.num_counted = 0  # steps
        self.clock = [state.seconds]  # the trainer's, before and after every step

    def is_due(self) -> bool:
        """Wait for a GPU at the end, so that all of its time is counted."""
        return len(self.clock) >= self.num_steps

    def after_step(self, _taken: object, counts: Counts | None) -> None:
        """Count a step."""
        if counts is not None:  # a GPU's come late
            whole, samples, densities = counts.whole, counts.samples, counts.evaluated
            self.counts.update(rays=whole, samples=samples, densities=densities)
            self.num_counted += 1
        self.clock.append(self.state.seconds)
        if len(self.clock) > self.num_steps:
            raise EnoughError

    @property
    def milliseconds(self) -> list[float]:
        """The duration of each step."""
        return [1000 * (b - a) for a, b in zip(self.clock, self.clock[1:], strict=False)]


class Bench:
    """A run assembled as the command line does, of which the first steps have been trained."""

    def __init__(self, overrides: Sequence[str], num_warmup: int, num_more: int) -> None:
        run = config.assemble(config.compose(overrides))
        # Neither the end nor the schedule's decay may fall into what is measured.
        num_steps = max(run.settings.steps, 2 * (num_warmup + num_more))
        settings = replace(run.settings, steps=num_steps, max_seconds=None)
        self.run = replace(run, settings=settings)
        self.device, self.state = run.runtime.torch_device, trainer.State(self.run)
        _progress(f"training {num_warmup} steps of warm-up")
        self.train(num_warmup)

    def train(self, num_steps: int, stages: Stages | None = None) -> Tally:
        """Train num_steps more steps by the trainer's own loop; time its stages where asked to."""
        tally = Tally(self.run, self.state, num_steps)
        runtime = self.run.runtime
        recorded, runtime.cuda_graph = runtime.cuda_graph, runtime.cuda_graph and stages is None
        with suppress(EnoughError), stages.measuring(self.run, tally) if stages else ExitStack():
            trainer.loop(self.run, self.state, tally)  # type: ignore[arg-type]
        runtime.cuda_graph = recorded
        return tally

    @torch.no_grad()
    def step_data(self, num_rays: int) -> SimpleNamespace:
        """Sample training rays as a step does, by a generator that training does not know."""
        run, generator = self.run, self.run.runtime.generator(self.run.seed + 1)
        sampler: Any = run.sampler
        background = run.background.sample(num_rays, generator)
        scene = run.scene.to(self.device)
        rays = scene.batch(generator, num_rays, background, sampler.live_pixels).rays
        drawn = generator.get_state()
        shift = jitter(rays, generator)
        marched = march.march(rays, shift, sampler.grid, sampler.march)
        generator.set_state(drawn)  # the sampler draws the same shift
        seen = sampler.sample(rays, field_functions(run.model, rays)[0], generator)
        return SimpleNamespace(rays=rays, shift=shift, marched=marched, seen=seen)


def _choices(run: trainer.Run) -> str:
    groups = ("scene", "model", "sampler")
    chosen = " ".join(f"{group}={run.config[group].get('name', '?')}" for group in groups)
    cameras, device = run.scene.splits["train"].cameras, run.runtime.torch_device
    size = f"{int(cameras.widths[0])}x{int(cameras.heights[0])}"
    kind = "compiled ops" if library.native(run.model.aabb) else "torch references"
    return f"{chosen}, {len(cameras)} views of {size}, {kind} on {device}"


class Stages:
    """Wall time of nested stages, each without those inside it, so that they add up to the step."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._cuda = device.type == "cuda"
        self._open = [OTHER]
        self._since = 0.0

    def _charge(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        now, label = time.perf_counter(), self._open[-1]
        self.seconds[label] = self.seconds.get(label, 0.0) + now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the function, counted as a stage or, by a leading colon, part of the outer one."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            outer = self._open[-1].partition(":")[0]
            self._open.append(outer + name if name.startswith(":") else name)
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._open.pop()

        return counted

    @contextmanager
    def measuring(self, run: trainer.Run, tally: Tally) -> Iterator[None]:
        """Time the trainer's loop while inside."""

        def functions(*args: Any, **kwargs: Any) -> tuple[Callable[..., Any], ...]:
            sigma_fn, rgb_sigma_fn = field_functions(*args, **kwargs)
            density, field = self.timed(sigma_fn, DENSITY), self.timed(rgb_sigma_fn, FIELD)
            density.find = self.timed(sigma_fn.find, DENSITY)  # type: ignore[attr-defined]
            density.at = self.timed(sigma_fn.at, DENSITY)  # type: ignore[attr-defined]
            field.at = self.timed(rgb_sigma_fn.at, FIELD)  # type: ignore[attr-defined]
            return density, field

        with ExitStack() as stack:
            for owner, attribute, name in _parts(run, tally):
                timed = self.timed(getattr(owner, attribute), name)
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            stack.enter_context(mock.patch.object(trainer, "field_functions", functions))
            self._since = time.perf_counter()
            yield

    def rows(self, num_steps: int) -> list[Row]:
        """Name each stage with its milliseconds per step and its share of the step in percent."""
        seconds = {label: spent for label, spent in self.seconds.items() if label != JOURNAL}
        total = sum(seconds.values())
        split = {label.partition(":")[0] for label in seconds if ":" in label}
        rows: list[Row] = []
        for label in sorted(seconds, key=lambda label: ORDER.index(label.partition(":")[0])):
            name, share = f"{label}: rest" if label in split else label, seconds[label] / total
            rows.append((name, 1000 * seconds[label] / num_steps, 100 * share))
        return [*rows, ("total", 1000 * total / num_steps, 100.0)]


def _parts(run: trainer.Run, tally: Tally) -> Iterator[tuple[Any, str, str]]:
    """Name what is timed: object, attribute, stage."""
    yield from ((Scene, "batch", "rays"), (run.background, "sample", "rays"))
    yield from ((march, name, "march") for name in ("march", "march_on"))
    yield run.sampler, "sample", "sample selection"
    yield from ((trainer, "render", "composite"), (trainer, "loss_terms", "loss"))
    yield torch.Tensor, "backward", "backward"
    yield from ((run.optimizer, name, "optimiser") for name in ("zero_grad", "step"))
    yield from ((trainer.State, "follow_weights", "optimiser"), (tally, "after_step", JOURNAL))
    yield run.sampler, "update", "grid update"
    modules = list(run.model.modules())
    yield from ((m, "forward", ": encode") for m in modules if isinstance(m, ENCODINGS))
    yield from ((m, "forward", ": MLPs") for m in modules if isinstance(m, LAYERS))
    yield from ((ngp_model, name, ": MLPs") for name in ("ngp", "ngp_density"))
    native = torch.ops.nerftrain  # iterates over the ops that were called so far
    backwards = (op for op in list(native) if op.rstrip("_").endswith("_bwd"))
    yield from ((native, op, f": {op.rstrip('_')}") for op in backwards)


def stages(arguments: argparse.Namespace) -> list[Table]:
    """Time the stages of a training step."""
    steps = arguments.steps
    bench = Bench(arguments.overrides, arguments.warmup, 3 * steps)
    run, timers = bench.run, Stages(bench.device)
    _progress(f"measuring {steps} steps without and {steps} with timers")
    plain, memory = bench.train(steps), report.peak_memory_bytes()
    timed = bench.train(steps, timers)
    note = f"Mean of {steps} steps after {bench.state.step - steps}; {_choices(run)}."
    if bench.device.type == "cuda":
        note += " The device is waited for between stages."
    tables = [
        Table("Stages of a step", note, ("stage", "ms per step", "share %"), timers.rows(steps)),
        _throughput(plain, timed, memory),
    ]
    if bench.device.type == "cpu":
        tables.append(_overhead(bench, steps))
    return tables + ([_discarded(bench)] if isinstance(run.sampler, OccGrid) else [])


def _throughput(plain: Tally, timed: Tally, memory: int | None) -> Table:
    mean, mean_timed = (sum(t.milliseconds) / t.num_steps for t in (plain, timed))
    rows: list[Row] = [("ms per step", mean), ("ms per step, median", median(plain.milliseconds))]
    rows.append(("ms per step while stages were timed", mean_timed))
    names = ("rays", "samples with gradient", "densities without gradient")
    counted = max(plain.num_counted, 1)
    each = [(n, c / counted) for n, c in zip(names, plain.counts.values(), strict=False)]
    rows += [(f"{name} per step", count) for name, count in each]
    rows += [(f"{name} per second", count / mean * 1000) for name, count in each]
    rows.append(("peak memory of the process, GiB", None if memory is None else memory / 2**30))
    note = "By the trainer's own clock, without timers, over the steps just before those above."
    return Table("Throughput", note, ("figure", "value"), rows)


def _overhead(bench: Bench, steps: int) -> Table:
    """Tell what compiled ops and torch's own leave to Python and the framework."""
    _progress(f"measuring {steps} steps with torch's profiler")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step = sum(bench.train(steps).milliseconds) / steps
    spent = Counter[str]()
    for event in profiler.key_averages():
        spent[event.key.partition("::")[0]] += event.self_cpu_time_total / 1000 / steps
    own, torchs = spent["nerftrain"], spent["aten"]
    parts = {"compiled ops": own, "torch's own ops": torchs, "all else": step - own - torchs}
    rows = [(name, milliseconds, 100 * milliseconds / step) for name, milliseconds in parts.items()]
    note = f"Mean of {steps} more steps by torch's profiler, which takes time itself."
    return Table("Who takes a step's time", note, ("who", "ms per step", "share %"), rows)


def _discarded(bench: Bench) -> Table:
    """Count what the grid leaves of the samples that a full grid would give."""
    sampler: Any = bench.run.sampler
    data = bench.step_data(DISCARD_RAYS)
    everywhere = march.pack_grid(torch.ones_like(sampler.visible), sampler.aabb)
    full = len(march.march(data.rays, data.shift, everywhere, sampler.march))
    counts = {
        "uniform marching through the whole box": full,
        "left by the occupancy grid": len(data.marched),
        "evaluated (in front of what stops a ray)": sampler.num_evaluated,
        "seen, so trained on": len(data.seen),
    }
    rows = [(k, n / DISCARD_RAYS, 100 * (1 - n / max(full, 1))) for k, n in counts.items()]
    note = (
        f"{DISCARD_RAYS} random training rays after {bench.state.step} steps, all at the same "
        f"step of {sampler.march.step:.4g}; {100 * sampler.describe()['occupied']:.2f} % of the "
        "grid's cells are occupied."
    )
    return Table("Discarded samples", note, ("samples", "per ray", "discarded %"), rows)


class Case(NamedTuple):
    """What an op and its reference are called with."""

    op: str
    size: str
    arguments: Sequence[Any]
    leaves: Sequence[Tensor] = ()  # that gradients are taken to; none: there is no backward
    pair: tuple[Callable[..., Any], Callable[..., Any]] | None = None  # where it is no op's own


def ops(arguments: argparse.Namespace) -> list[Table]:
    """Compare each op with its torch reference on the data of a training step."""
    bench = Bench(arguments.overrides, arguments.warmup, 1)
    run = bench.run
    rows = [_compared(case, arguments.repeats) for case in op_cases(bench)]
    facade = [_compared(case, arguments.repeats) for case in _facade_cases(bench)]
    note = (
        f"Fastest of {arguments.repeats} calls each, in turns, on a step's data after "
        f"{bench.state.step} steps; {_choices(run)}. The ratio is reference / op."
    )
    figures = ("ms", "reference ms", "ratio")
    columns = ["op", "size", *(f"{d} {f}" for d in ("forward", "backward") for f in figures)]
    theirs = (
        "nerfacc's names on as many samples as its examples take in a step, against what its users "
        "would write in torch without a loop over rays: on padded rays, or by one running sum "
        "through all rays, which an infinite density spoils."
    )
    return [
        Table("Ops against their torch references", note, columns, rows),
        Table("nerfacc's names against torch alone", theirs, columns, facade),
    ]


def op_cases(bench: Bench) -> list[Case]:
    """Say what a step of the run would call each op with.

    Raises UserError where the run does not use all of them, compiled.
    """
    run = bench.run
    if not (isinstance(run.model, NGP) and isinstance(run.sampler, OccGrid)):
        raise UserError("ops are measured in the run that uses all: model=ngp sampler=occgrid")
    if not library.native(run.model.aabb):
        raise UserError("the compiled ops are not in use: see nerftrain doctor; use runtime=auto")
    data = bench.step_data(int(bench.state.num_rays))
    return [*_march_cases(run, data), *_field_cases(run.model, data)]


def _march_cases(run: Any, data: SimpleNamespace) -> Iterator[Case]:
    sampler: Any = run.sampler
    rays, marched, box, levels = data.rays, data.marched, sampler.aabb, len(sampler.visible)
    occupied = sampler.grid.occupied[:levels]
    train, few = run.scene.to(occupied.device).splits["train"], slice(OP_CAMERAS)
    drawn = torch.randint(len(train.pixels), (len(rays),), device=occupied.device)
    live = sampler.live_pixels
    num_pixels = len(train.pixels if live is None else live)
    order = torch.zeros_like(drawn[0]), len(rays), num_pixels, num_pixels // 2 + 1
    size = int(train.cameras.widths[0]), int(train.cameras.heights[0])
    yield Case("draw_pixels", f"R={len(rays)}", (*order, live, *size))
    pixels = train.locate(drawn)
    pinholes = train.cameras.poses, train.cameras.intrinsics
    yield Case("pixel_rays", f"R={len(rays)}", (*pinholes, *pixels))
    faults = torch.tensor([0.03, 0.002, 0.0, 0.0, -0.004, 0.0005], device=drawn.device)
    fisheyes = (*pinholes, faults.repeat(len(train.cameras), 1), "fisheye")
    yield Case("lens_rays", f"R={len(rays)}", (*fisheyes, *pixels))
    yield Case(
        "pixel_colors", f"R={len(rays)}", (train.pixels, drawn, torch.rand_like(rays.origins))
    )
    cells = "x".join(map(str, occupied.shape))
    yield Case("pack_grid", cells, (occupied, box))
    halves = [n // 2 for n in occupied.shape[1:]]
    alive = torch.rand(4, levels, *halves, device=occupied.device) < 0.1
    yield Case("slice_grid", f"T=4 {cells}", (march.pack_grid(occupied, box), alive))
    names, masks = ("poses", "intrinsics", "widths", "heights"), train.masks()
    cameras = type(train.cameras)(*(getattr(train.cameras, name)[few] for name in names))
    place = (box, len(occupied), occupied.shape[1], run.scene.near)
    inputs = (cameras, None if masks is None else masks[few], *place)
    yield Case("visible_cells", f"{cells}, {OP_CAMERAS} cameras", inputs)
    size = f"R={len(rays)} N={len(marched)}"
    yield Case("march_to", size, (rays, data.shift, sampler.grid, sampler.march))
    density = torch.rand_like(marched.t_starts) / sampler.march.step
    limits = (sampler.early_stop_eps, sampler.alpha_thre, sampler.min_weight)
    yield Case("visible_samples", size, (marched, density, *limits))
    light = torch.rand_like(rays.near)
    yield Case("visible_in_turn", size, (marched, density, *limits, light))
    visited, thresholds = visit.Visited.nothing(marched), (sampler.early_stop_eps, occgrid.ROUND)
    yield Case("next_round", size, (marched, visited, *thresholds))
    now = visit.next_round(marched, visited, *thresholds)
    round_size = f"R={len(rays)} M={len(now)}"
    yield Case("take", round_size, (marched, visited, now, torch.rand_like(now.t_starts)))
    kept = density > density.mean()
    yield Case("select", size, (marched, kept))
    at = (marched.t_starts, marched.t_ends, marched.ray_indices)
    yield Case("sample_points", size, (rays, *at))
    yield Case("unit_points", size, (rays, *at, run.model.aabb, run.model.contraction))
    yield Case("mean_alpha", size, (marched, density))
    if rays.origins.is_cuda:  # where nothing but their references would be measured
        return
    grids = [visit_ngp.Grid(run.model.encoding.stored, run.model.encoding.levels)]
    weights = list(run.model.density_mlp.weights)
    field = visit_ngp.DensityField(grids, weights, run.model.aabb, run.model.contraction)
    color = visit_ngp.ColorField(list(run.model.color_mlp.weights), run.model.directions.degree)
    marching, least = sampler.marching(rays)
    yield Case("find_ngp", size, (rays, marching, field, least))
    yield Case("render_ngp", size, (rays, marching, field, color, least))


def _field_cases(model: NGP, data: SimpleNamespace) -> Iterator[Case]:
    seen, rays = data.seen, data.rays
    views = rays.directions[seen.ray_indices]
    middle = (seen.t_starts + seen.t_ends)[:, None] / 2
    positions = rays.origins[seen.ray_indices] + middle * views
    size, table, levels = f"N={len(seen)}", model.encoding.table, model.encoding.levels
    layout = f"{size}, {len(levels.resolutions)}x{table.shape[1]}, {len(table)} entries"
    yield Case("hash_encode", layout, (model.unit_positions(positions), table, levels), [table])
    with torch.no_grad():
        channels, density = model(positions, views)
    views, degree = views.requires_grad_(), model.directions.degree
    yield Case("spherical_harmonics", f"{size}, degree {degree}", (views, degree), [views])
    for network in (model.density_mlp, model.color_mlp):
        weights = list(network.weights)
        widths = "-".join(map(str, (weights[0].shape[1], *(len(weight) for weight in weights))))
        x = torch.randn_like(views[:, :1].expand(-1, weights[0].shape[1])).requires_grad_()
        yield Case("mlp", f"{size}, {widths}", (x, weights), [x, *weights])
    with torch.no_grad():
        features = model.encoding(model.unit_positions(positions))
    networks = [list(network.weights) for network in (model.density_mlp, model.color_mlp)]
    leaves = [features.requires_grad_(), *networks[0], *networks[1]]
    views = views.detach()
    yield Case("ngp_density", size, (features, networks[0]))
    yield Case("ngp", size, (features, views, *networks, degree), leaves)
    yield from _half_cases(model, positions, views, size)
    values = [density.requires_grad_(), channels.requires_grad_()]
    yield Case("composite", f"R={len(rays)} {size}", (*values, seen), values)
    yield from _color_cases(rays.origins, f"R={len(rays)}")


def _color_cases(like: Tensor, size: str) -> Iterator[Case]:
    rgb, background, target = (torch.rand_like(like) for _ in range(3))
    values = [rgb.requires_grad_(), torch.rand_like(like[:, 0]).requires_grad_()]
    yield Case("over_background", size, (*values, background), values)
    whole = torch.ones_like(like[:, 0], dtype=torch.bool)
    yield Case("color_error", size, (rgb, target, whole, 1.0), [rgb])


def _half_cases(model: NGP, positions: Tensor, views: Tensor, size: str) -> Iterator[Case]:
    """Evaluate the field in half precision, where a GPU does."""
    networks = [list(network.weights) for network in (model.density_mlp, model.color_mlp)]
    encoded = [model.encoding.at(model.unit_positions(positions))]
    if library.has_tensor_cores(views) and ngp_half.can_do([model.encoding.table], *networks):
        yield Case("ngp_half_density", size, (encoded, networks[0]))
        leaves = [model.encoding.table, *networks[0], *networks[1]]
        degree = model.directions.degree
        yield Case("ngp_half", size, (encoded, views, *networks, degree), leaves)
        settings = Warp(warp.DEPTH, warp.WIDTH, 4, 4, 0.1)  # as a scene that moves has it
        field = WarpField(settings).to(views.device)
        weights = list(field.mlp.weights)
        unit, times = encoded[0].positions, torch.rand_like(views[:, 0])
        yield Case("warp_half", size, (unit, times, weights, field.moves), weights)


def _facade_cases(bench: Bench) -> Iterator[Case]:
    """Compare nerfacc's names with what its users would write in torch, without a loop."""
    few = bench.step_data(DISCARD_RAYS).marched
    seen = bench.step_data(DISCARD_RAYS * FACADE_SAMPLES // max(len(few), 1)).marched
    counts, rays = seen.offsets.diff(), len(seen.offsets) - 1
    packed_info = torch.stack([seen.offsets[:-1], counts], -1)
    size = f"R={rays} N={len(seen)}"
    x = torch.rand_like(seen.t_starts, requires_grad=True)
    scans = (
        ("exclusive_sum", "padded rays", _torch_sum),
        ("exclusive_sum", "one running sum", _torch_sum_of_all),
        ("exclusive_prod", "padded rays", _torch_prod),
    )
    for scan, way, torch_scan in scans:
        pair = getattr(nerfacc, scan), torch_scan
        yield Case(f"{scan} / {way}", size, (x, packed_info), [x], pair)
    rgb = torch.rand(len(seen), 3, device=x.device, requires_grad=True)

    def rgb_sigma_fn(*_: Tensor) -> tuple[Tensor, Tensor]:
        return rgb, x

    where = (seen.t_starts, seen.t_ends, seen.ray_indices, rays, rgb_sigma_fn)
    for _, way, torch_sum in scans[:2]:
        pair = nerfacc.rendering, _torch_rendering_by(torch_sum)
        yield Case(f"rendering / {way}", size, where, [x, rgb], pair)


def _padded(x: Tensor, packed_info: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Lay chunks out as rows [R, longest]; and where in them the elements are."""
    counts = packed_info[:, 1]
    here = torch.arange(int(counts.max()), device=x.device) < counts[:, None]
    return x.new_full(here.shape, fill).masked_scatter(here, x), here


def _torch_sum(x: Tensor, packed_info: Tensor) -> Tensor:
    rows, here = _padded(x, packed_info, 0.0)
    return nn.functional.pad(rows, (1, 0))[:, :-1].cumsum(1)[here]


def _torch_prod(x: Tensor, packed_info: Tensor) -> Tensor:
    rows, here = _padded(x, packed_info, 1.0)
    return nn.functional.pad(rows, (1, 0), value=1.0)[:, :-1].cumprod(1)[here]


def _torch_sum_of_all(x: Tensor, packed_info: Tensor) -> Tensor:
    """Sum over all rays in float64, and take what comes before each ray away.

    Not what nerfacc's names promise: one infinite element spoils all rays behind it.
    """
    before = x.double().cumsum(0) - x
    starts, counts = packed_info.unbind(-1)
    own = starts.clamp(max=len(x) - 1).repeat_interleave(counts)
    return (before - before[own]).float()


def _torch_rendering_by(exclusive_sum: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def rendering(
        t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, rays: int, rgb_sigma_fn: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        rgb, sigma = rgb_sigma_fn(t_starts, t_ends, ray_indices)
        counts = torch.bincount(ray_indices, minlength=rays)
        packed_info = torch.stack([counts.cumsum(0) - counts, counts], -1)
        optical = sigma * (t_ends - t_starts)
        weights = torch.exp(-exclusive_sum(optical, packed_info)) * (1 - torch.exp(-optical))
        middle = (t_starts + t_ends) / 2
        columns = torch.cat([rgb, torch.ones_like(rgb[:, :1]), middle[:, None]], -1)
        sums = rgb.new_zeros(rays, 5).index_add(0, ray_indices, weights[:, None] * columns)
        colors, opacity, depth = sums.split([3, 1, 1], -1)
        return colors, opacity, depth / opacity.clamp_min(1e-7)

    return rendering


def _compared(case: Case, repeats: int) -> Row:
    _progress(f"comparing {case.op}")
    pair = case.pair or op_and_reference(case)
    turns = [[_times(case, function) for function in pair] for _ in range(repeats)]
    figures: list[float | None] = []
    for direction in range(2 if case.leaves else 1):
        op, reference = (1000 * min(turn[k][direction] for turn in turns) for k in range(2))
        figures += [op, reference, reference / op]
    return (case.op, case.size, *figures, *[None] * (6 - len(figures)))


def op_and_reference(case: Case) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return an op and the torch reference above it."""
    names = case.op, f"{case.op}_reference"
    module = next(module for module in OPS if all(hasattr(module, name) for name in names))
    pair = getattr(module, names[0]), getattr(module, names[1])
    if case.op == "pack_grid":  # whose reference takes no box
        return pair[0], lambda occupied, _: march.pack_grid_reference(occupied)
    if case.op == "slice_grid":
        return pair[0], lambda grid, live: march.slice_grid_reference(grid.cells, live)
    if case.op == "take":  # which counts what it has taken: every call is a first one
        return tuple(_taken_anew(function) for function in pair)  # type: ignore[return-value]
    return pair


def _taken_anew(take: Callable[..., None]) -> Callable[..., None]:
    def first(samples: Samples, visited: visit.Visited, *found: Any) -> None:
        take(samples, replace(visited, num=torch.zeros_like(visited.num)), *found)

    return first


def _times(case: Case, function: Callable[..., Any]) -> tuple[float, float]:
    """Return the seconds of a call and of its backward."""
    with torch.set_grad_enabled(bool(case.leaves)):
        started = now()
        output = function(*case.arguments)
        forward = now() - started
    if not case.leaves:
        return forward, 0.0
    # Of what composite returns, colour and opacity are what the loss looks at.
    outputs = output[:2] if isinstance(output, tuple) else (output,)
    gradients = [torch.ones_like(value) for value in outputs]
    started = now()
    torch.autograd.grad(outputs, case.leaves, gradients)
    return forward, now() - started


def bounds(arguments: argparse.Namespace) -> list[Table]:
    """Compare the CPU's kernels with what this machine can do: gathers, products, memory."""
    config.assemble(config.compose(arguments.overrides))  # which sets threads and kernels
    repeats = arguments.repeats
    return [_gathers(repeats), _products(repeats), _traffic(repeats)]


def _fastest(function: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        started = now()
        function()
        times.append(now() - started)
    return min(times[1:])


def _gathers(repeats: int) -> Table:
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(2048, 1, 3, generator=generator) * 0.5 + 0.25
    ways = nn.functional.normalize(torch.randn(2048, 1, 3, generator=generator), dim=-1)
    # Samples of a ray lie side by side, as in training.
    along = torch.arange(8)[None, :, None] * 0.0034
    positions = (starts + ways * along).flatten(0, 1).contiguous()
    rows: list[Row] = []
    for log2_size in (8, 11, 13, 15, 17, 19, 21):
        levels = hash_encoding.HashLevels.geometric(4, 256, 1024, log2_size)
        figures = _gather_figures(positions, levels, repeats)
        rows.append((f"2^{log2_size}", 2**log2_size * 8 / 1024, *figures))
    note = (
        f"Nanoseconds per row of 4 features, {torch.get_num_threads()} threads, 4 hashed levels. "
        "The smallest table never leaves the first cache: its row is what arithmetic costs."
    )
    columns = ("entries", "KiB a level in half", "float32", "float16", "backward")
    return Table("Gathers by size", note, columns, rows)


def _gather_figures(
    positions: Tensor, levels: hash_encoding.HashLevels, repeats: int
) -> tuple[float, ...]:
    """Time one row of 4 features: gathered from float32, from float16, and its gradient."""
    table = torch.rand(levels.offsets[-1], 4).requires_grad_()
    half, out = table.detach().half(), hash_encoding.hash_encode(positions, table, levels)
    v, num_rows = torch.ones_like(out), len(positions) * len(levels.resolutions) * 8
    calls = (
        lambda: hash_encoding.hash_encode(positions, table, levels),
        lambda: hash_encoding.hash_encode(positions, table, levels, half),
        lambda: torch.autograd.grad(out, table, v, retain_graph=True),
    )
    return tuple(1e9 * _fastest(call, repeats) / num_rows for call in calls)


def _products(repeats: int) -> Table:
    num, generator = 1 << 15, torch.Generator().manual_seed(0)
    a, b = (torch.rand(1536, 1536, generator=generator) for _ in range(2))
    top = 2 * 1536**3 / _fastest(lambda: a @ b, repeats) / 1e9
    rows: list[Row] = [("torch's product of 1536 x 1536", None, top, 100.0)]
    density, color = (
        [torch.randn(o, i, generator=generator).div(i**0.5).requires_grad_() for i, o in layers]
        for layers in (((32, 64), (64, 16)), ((31, 64), (64, 64), (64, 3)))
    )
    views = nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=-1)
    features = torch.randn(num, 32, generator=generator).requires_grad_()
    flops = 2 * num * sum(w.numel() for w in (*density, *color))
    forward = _fastest(lambda: ngp.ngp(features, views, density, color, 4), repeats)
    leaves = [features, *density, *color]
    channels, sigma = ngp.ngp(features, views, density, color, 4)
    loss = channels.sum() + sigma.sum()
    backward = _fastest(lambda: torch.autograd.grad(loss, leaves, retain_graph=True), repeats)
    for name, seconds, work in (
        ("ngp forward", forward, flops),
        ("ngp backward, which computes activations again", backward, 3 * flops),
    ):
        rate = work / seconds / 1e9
        rows.append((name, 1e9 * seconds / num, rate, 100 * rate / top))
    lanes = torch.ops.nerftrain.use_lanes(0)
    names = {v: k for k, v in library.CPU_ISA.items()}
    note = f"{num} samples, kernels for {names[lanes]}; 100 % is torch's float32 product."
    return Table("Products", note, ("what", "ns a sample", "GFLOP/s", "share %"), rows)


def _traffic(repeats: int) -> Table:
    num = 1 << 22
    source, target = torch.rand(num), torch.zeros(num)
    top = 8 * num / _fastest(lambda: target.copy_(source), repeats) / 1e9
    rows: list[Row] = [("torch's copy", None, top, 100.0)]
    parameter, gradient, mean, variance = (torch.rand(num // 4, 4) for _ in range(4))
    for skip, name in ((False, "Adam"), (True, "Adam that skips, nothing seen")):
        rates = adam.AdamRates(0.01, 0.9, 0.99, 1e-15, 0.0, skip)
        gradient = torch.zeros_like(parameter) if skip else gradient
        step = (parameter, gradient, mean, variance, rates, 5)
        seconds = _fastest(lambda step=step: adam.adam_step(*step), repeats)
        moved = 4 * num if skip else 28 * num
        rows.append((name, 1e9 * seconds / num, moved / seconds / 1e9, None))
        rows[-1] = (*rows[-1][:3], 100 * moved / seconds / 1e9 / top)
    note = f"{num} numbers of 4 bytes; Adam reads four and writes three."
    return Table("Memory", note, ("what", "ns a number", "GB/s", "share %"), rows)


def now() -> float:
    """Read the clock once the device has done all that it was asked."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def curve(arguments: argparse.Namespace) -> list[Table]:
    """Train, and score the test split at marks of training seconds and at the end."""
    run = config.assemble(config.compose(arguments.overrides))
    evaluation.find_split(run.scene, "test")
    if arguments.seconds is not None:
        run = replace(run, settings=replace(run.settings, max_seconds=arguments.seconds))
    limit = run.settings.max_seconds or float("inf")
    state, marks = trainer.State(run), sorted(mark for mark in arguments.marks if mark < limit)
    rows: list[Row] = []

    def score(views: int | None) -> None:
        color = evaluation.background_color(run.background.evaluation)
        parts = (run.scene, "test", run.model, run.sampler, color)
        with trainer.averaged_weights(run, state):
            result = evaluation.evaluate(*parts, views=views, with_lpips=False)
        rows.append((state.seconds, state.step, result.psnr, result.ssim, result.num_views))
        _progress(f"{result.psnr:.2f} dB after {state.seconds:.0f} s of training")

    def after_step(*_: object) -> None:
        if marks and state.seconds >= marks[0]:
            marks[:] = [mark for mark in marks if mark > state.seconds]
            score(arguments.views)

    def is_due() -> bool:
        return bool(marks) and state.seconds >= marks[0]

    journal = SimpleNamespace(is_due=is_due, after_step=after_step)
    trainer.loop(run, state, journal)  # type: ignore[arg-type]
    score(None)
    note = (
        f"Test split on {run.background.evaluation}, {_choices(run)}, seed {run.seed}; evaluation "
        "is not training time. The last row is the end, over all views. Peak memory "
        f"{(report.peak_memory_bytes() or float('nan')) / 2**30:.2f} GiB."
    )
    columns = ("training s", "step", "PSNR dB", "SSIM", "views")
    with trainer.averaged_weights(run, state):
        views = _views(run)
    return [Table("PSNR against training seconds", note, columns, rows), views]


def _views(run: trainer.Run) -> Table:
    """Time views of the test split, after one that prepares."""
    cameras = run.scene.splits["test"].cameras
    color = evaluation.background_color(run.background.evaluation)
    milliseconds = []
    for index in [0, *range(min(TIMED_VIEWS, len(cameras)))]:
        started = now()
        video.render_view(run.scene, cameras, index, run.model, run.sampler, color)
        milliseconds.append(1e3 * (now() - started))
    _, *timed = milliseconds
    size = f"{int(cameras.widths[0])}x{int(cameras.heights[0])}"
    rows: list[Row] = [(size, len(timed), statistics.median(timed), min(timed))]
    columns = ("size", "views", "median ms", "least ms")
    return Table("Rendering a view", "Of the test split, one after the other.", columns, rows)


def start(arguments: argparse.Namespace) -> list[Table]:
    """Time what comes before the first step: imports, help, compilation, a cached library."""
    call = "subprocess.run([sys.executable, '-m', 'nerftrain', '--help'], stdout=-3, check=True)"
    tries = arguments.tries
    rows: list[Row] = [
        ("nerftrain --help", min(_seconds("import subprocess, sys", call) for _ in range(tries))),
        ("import torch", min(_seconds("", "import torch") for _ in range(tries))),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        cache = str(arguments.cache or temporary)
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            probe = f"probe = torch.zeros(1, device='{device}')"
            before = f"import torch; from nerftrain.ops import library; {probe}"
            load = "library.set_mode('native'); library.native(probe)"
            _progress(f"compiling the {device} ops")
            spent = [_seconds(before, load, cache) for _ in range(1 + tries)]
            rows.append((f"first compilation of the {device} ops", spent[0]))
            rows.append((f"cached start of the {device} ops", min(spent[1:])))
    where = "a folder that keeps it" if arguments.cache else "an empty cache"
    note = f"In new processes, the fastest of {tries}; compiled once, into {where}."
    return [Table("Start", note, ("what", "seconds"), rows)]


def _seconds(before: str, code: str, cache: str | None = None) -> float:
    """Time code in a Python process of its own, with a cache of its own."""
    clock = "time.perf_counter()"
    text = f"import time; {before}\nstarted = {clock}\n{code}\nprint({clock} - started)"
    environment = {**os.environ, **({"NERFTRAIN_CACHE": cache} if cache else {})}
    command = [sys.executable, "-c", text]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError((result.stderr.strip().splitlines() or ["a process failed silently"])[-1])
    return float(result.stdout)


COMMANDS = {"stages": stages, "ops": ops, "bounds": bounds, "curve": curve, "start": start}


def _parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Read command and options; argparse's own subcommands take no overrides between options."""
    command, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("stages", argv)
    others = " ".join(f"{name}: {function.__doc__}" for name, function in COMMANDS.items())
    about = {"prog": f"bench.py {command}", "description": COMMANDS[command].__doc__}
    parser = argparse.ArgumentParser(**about, epilog=f"Commands: {others}")
    add = parser.add_argument
    if command in ("stages", "ops"):
        add("--warmup", type=_count, default=320, help="steps before (%(default)s)")
    if command == "stages":
        add("--steps", type=_count, default=96, help="steps that are measured (%(default)s)")
    if command in ("ops", "bounds"):
        add(
            "--repeats",
            type=_count,
            default=5,
            help="calls of which the fastest counts (%(default)s)",
        )
    if command == "curve":
        add("--seconds", type=float, help="of training (trainer.max_seconds)")
        add("--marks", type=_marks, default="15,30,60,120,300,600", help="seconds (%(default)s)")
        add("--views", type=_count, help="of the test split that are scored at marks (all)")
    if command == "start":
        add("--tries", type=_count, default=3, help="of which the fastest counts (%(default)s)")
        add("--cache", type=Path, help="a folder that keeps what is compiled (a temporary one)")
    else:
        add("overrides", nargs="*", metavar="key=value", help="as nerftrain takes them")
    add("--json", type=Path, help="a file for the same figures, not rounded")
    return command, parser.parse_intermixed_args(rest)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _marks(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _header(argv: Sequence[str]) -> dict[str, str]:
    known = doctor.environment()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        **{key: str(known[key] or "none") for key in ("cpu", "cores", "threads")},
        "gpus": ", ".join(known["gpus"]) or "none",
        **{key: str(known[key] or "none") for key in ("torch", "python", "commit")},
        "command": shlex.join(["python", "scripts/bench.py", *argv]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the document, and return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command, arguments = _parse(argv)
    try:
        tables = COMMANDS[command](arguments)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    header = _header(argv)
    about = report.markdown_table(("what", "which"), list(header.items()))
    print("\n\n".join([f"# Benchmark: {command}", about, *(table.markdown() for table in tables)]))
    if arguments.json:
        document = {"benchmark": command, **header, "tables": [t._asdict() for t in tables]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
