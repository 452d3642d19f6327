"""Do the compiled ops of this machine compute what torch does? Every family, on small inputs.

    python -m nerftrain.ops.proof cpu        # or cuda; a line for each family

A process of its own, since what is wrong may end it: kernels that a GPU cannot run leave nothing of
CUDA to go on with, instructions that a CPU lacks leave nothing at all.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops import library, ngp_half, warp
from nerftrain.ops.adam import AdamRates, adam_step, adam_step_placed, half_copy
from nerftrain.ops.colors import color_error, over_background
from nerftrain.ops.composite import composite
from nerftrain.ops.contract import unit_positions
from nerftrain.ops.distortion import distortion
from nerftrain.ops.hash_encoding import HashLevels, hash_encode
from nerftrain.ops.histogram import interlevel_loss, invert_cdf
from nerftrain.ops.importance import sample_importance, search_edges
from nerftrain.ops.lenses import PROJECTIONS, lens_rays
from nerftrain.ops.march import (
    March,
    Marching,
    march_on,
    march_to,
    mean_alpha,
    pack_grid,
    slice_grid,
    visible_cells,
    visible_samples,
)
from nerftrain.ops.mlp import mlp
from nerftrain.ops.ngp import ngp, ngp_density
from nerftrain.ops.points import sample_points, unit_points
from nerftrain.ops.rays import draw_pixels, pixel_colors, pixel_rays
from nerftrain.ops.rooms import fit
from nerftrain.ops.scan import ray_offsets, scan_prod, scan_sum, sum_along_rays
from nerftrain.ops.spherical_harmonics import spherical_harmonics
from nerftrain.ops.visit import gather_rows, select, select_in_turn, visit
from nerftrain.ops.visit_ngp import ColorField, DensityField, Grid, find_ngp, render_ngp
from nerftrain.types import Cameras, Rays, Samples, Thresholds

BOX = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
NUM_RAYS = 200  # more than the lanes of several warps, and no multiple of any
# How far results may be apart, of their size: sums go in other orders; what lies within rounding of
# a wall or a threshold lies on either side; networks multiply in bfloat16 where that is faster.
IN_ORDER, AT_WALLS, IN_HALF = 1e-3, 0.05, 0.12
AGREES = "agrees"
TIMED = "march"  # what is timed, not tried
MARCHED = 1 << 16  # rays
NO_OPS = 3  # the exit status where nothing could be compiled; then the reason is all that is said

Results = Sequence[Tensor]


class Inputs:
    """Random numbers on a device, the same on every one."""

    def __init__(self, device: torch.device) -> None:
        """Begin at the seed."""
        self.device = device
        self._generator = torch.Generator().manual_seed(0)

    def even(self, *shape: int) -> Tensor:
        """Draw numbers in 0..1."""
        return torch.rand(shape, generator=self._generator).to(self.device)

    def learnt(self, *shape: int) -> Tensor:
        """Draw numbers around 0 that ask for a gradient."""
        numbers = torch.randn(shape, generator=self._generator) * 0.3
        return numbers.to(self.device).requires_grad_()

    def directions(self, num: int) -> Tensor:
        """Draw unit vectors."""
        return torch.nn.functional.normalize(self.even(num, 3) - 0.5, dim=1)

    def rays(self, num: int = NUM_RAYS) -> Rays:
        """Aim rays at the box from around it."""
        aims, origins = self.even(num, 3) * 2 - 1, 3 * self.directions(num)
        near = torch.full((num,), 0.5, device=self.device)
        times = self.even(num)
        directions = torch.nn.functional.normalize(aims - origins, dim=1)
        return Rays(origins, directions, near, near + 6, times)

    def marching(self, levels: int = 1) -> Marching:
        """Fill a grid's cells by chance."""
        grid = pack_grid(self.even(levels, 32, 32, 32) < 0.3, BOX)
        return Marching(self.even(NUM_RAYS), grid, March(0.02, 0.0, 512))

    def samples(self) -> Samples:
        """Lay intervals along rays; some rays have none, some many."""
        counts = (self.even(NUM_RAYS).pow(3) * 90).long()
        rays = torch.arange(NUM_RAYS, device=self.device).repeat_interleave(counts)
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        lengths = self.even(len(rays)) * 0.05 + 0.01
        ends = lengths.cumsum(0)
        return Samples(ends - lengths, ends, rays, offsets)


def _with_gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Add the gradients of all outputs, no two of which weigh the same."""
    weighed = [torch.linspace(0.5, 1.5, o.numel(), device=o.device) * o.flatten() for o in outputs]
    return [*outputs, *torch.autograd.grad(torch.cat(weighed).sum(), leaves)]


def _of_rays(samples: Samples) -> list[Tensor]:
    """Describe samples ray by ray: one that a ray has more moves none of another."""
    counts = samples.offsets.diff().float()
    used = int(samples.offsets[-1])
    middles = (samples.t_starts + samples.t_ends)[:used, None] / 2
    sums = torch.zeros(len(counts), 1, device=counts.device)
    return [counts, sums.index_add_(0, samples.ray_indices[:used], middles)]


# ---------------------------------------------------------------------------------------- families


def _pixels(inputs: Inputs) -> Results:
    drawn = torch.tensor(7, device=inputs.device)
    pixels, *places = draw_pixels(drawn, NUM_RAYS, 3 * 40 * 30, 7, None, 40, 30)
    poses = torch.linalg.qr(inputs.even(3, 3, 3))[0]
    poses = torch.cat([poses, inputs.even(3, 3, 1)], 2)
    intrinsics = torch.tensor([[30.0, 31.0, 20.0, 15.0]] * 3, device=inputs.device)
    colors = (inputs.even(3 * 40 * 30, 4) * 255).to(torch.uint8)
    found = [pixels, *places, *pixel_rays(poses, intrinsics, *places)]
    for projection in PROJECTIONS:
        faults = None if projection == "equirectangular" else inputs.even(3, 4) * 0.02
        found += lens_rays(poses, intrinsics, faults, projection, *places)
    return [*found, pixel_colors(colors, pixels, inputs.even(NUM_RAYS, 3))]


def _marches(inputs: Inputs) -> Results:
    rays, found = inputs.rays(), []
    # Even steps, boxes within each other, steps that grow, and a sample for each cell.
    for step, cone_angle, levels in ((0.02, 0.0, 1), (0.02, 0.0, 2), (0.02, 0.004, 2), (0, 0, 1)):
        marching = inputs.marching(levels)
        settings = March(step, cone_angle, 512)
        samples, ends = march_to(rays, marching.jitter, marching.grid, settings, 30_000)
        found += [*_of_rays(samples), ends]
    live = inputs.even(4, 1, 16, 16, 16) < 0.5
    moving = inputs.marching()
    moving = moving._replace(grid=slice_grid(moving.grid, live))
    return [*found, *_of_rays(march_on(rays, moving, 30_000, 512)[0])]


def _visible_cells(inputs: Inputs) -> Results:
    poses = torch.eye(4, device=inputs.device)[:3].repeat(2, 1, 1)
    poses[:, 2, 3] = torch.tensor([2.0, 3.0], device=inputs.device)
    sizes = torch.full((2,), 20, device=inputs.device)
    intrinsics = torch.tensor([[22.0, 22.0, 10.0, 10.0]] * 2, device=inputs.device)
    masks = torch.ones(2, 20, 20, dtype=torch.bool, device=inputs.device)
    masks[:, :8] = False
    cameras = Cameras(poses, intrinsics, sizes, sizes)
    return [visible_cells(cameras, masks, BOX, 2, 16, 0.1)]


def _visits(inputs: Inputs) -> Results:
    samples = inputs.samples()
    density = inputs.even(len(samples)).pow(4) * 60
    visited = visit(samples, lambda starts, ends, _: 40 * (ends - starts), 0.01, 4)
    keep = visible_samples(samples, density, 0.01, 0.001, 0.002)
    kept = [select(samples, keep), select(samples, keep, 5_000), samples]
    if library.native(density):  # it has no reference, but those together are all
        kept[-1] = select_in_turn([(samples, keep), (samples, ~keep)], len(samples))
    rows = gather_rows(inputs.even(len(samples), 4), kept[0].ray_indices)
    seen = visited.transmittance, visited.sum_alpha, visited.num
    found = [*seen, mean_alpha(samples, density), keep, *fit(samples.offsets.diff(), 1_500), rows]
    return [*found, *(figure for each in kept for figure in _of_rays(each))]


def _points(inputs: Inputs) -> Results:
    rays, samples, box = inputs.rays(), inputs.samples(), torch.tensor(BOX, device=inputs.device)
    packed = samples.t_starts, samples.t_ends, samples.ray_indices
    positions, directions, _ = sample_points(rays, *packed)
    far = (inputs.even(500, 3) * 20 - 10).requires_grad_()
    units = [unit_points(rays, *packed, box, how) for how in ("none", "l2", "linf")]
    folded = [unit_positions(far, box, how) for how in ("l2", "linf")]
    return [positions, directions, *units, *_with_gradients(folded, [far])]


def _hash_encoding(inputs: Inputs) -> Results:
    found: list[Tensor] = []
    for num_features, times in ((2, None), (4, None), (2, (4, 8))):
        levels = HashLevels.geometric(6, 4, 64, 10, times)
        table = inputs.learnt(levels.offsets[-1], num_features)
        places = inputs.even(500, levels.num_axes)
        leaves = [table, places.clone().requires_grad_()]
        found += _with_gradients([hash_encode(leaves[1], table, levels)], leaves)
        # As in training: read in half precision, gradients added to what a step has zeroed.
        zeros, rates = torch.zeros_like(table), AdamRates(0.01, 0.9, 0.99, 1e-8, 0.0, True)
        half = half_copy(table)
        adam_step(table, found[-2].clone(), zeros, zeros.clone(), rates, 1, clear=True)
        found += _with_gradients([hash_encode(places, table, levels, half)], [table])
    return found


def _harmonics(inputs: Inputs) -> Results:
    directions = inputs.directions(500).requires_grad_()
    return _with_gradients([spherical_harmonics(directions, 4)], [directions])


def _networks(inputs: Inputs) -> Results:
    features = inputs.learnt(500, 24)
    directions = inputs.directions(500)
    density = [inputs.learnt(64, 24), inputs.learnt(16, 64)]
    color = [inputs.learnt(32, 31), inputs.learnt(3, 32)]
    field = _with_gradients(ngp(features, directions, density, color, 4), [features, *density])
    with torch.no_grad():
        alone = ngp_density(features, density)
    return [alone, *field, *_with_gradients([mlp(features, density)], [features, *density])]


def _fused_field(inputs: Inputs) -> Results:
    rays, marching = inputs.rays(), inputs.marching()
    levels = HashLevels.geometric(6, 4, 64, 10)
    with torch.no_grad():
        table = inputs.learnt(levels.offsets[-1], 4) * 2
        density = [inputs.learnt(32, 24), inputs.learnt(16, 32)]
        color = ColorField([inputs.learnt(32, 31), inputs.learnt(3, 32)], 4)
    box = torch.tensor(BOX, device=inputs.device)
    field = DensityField([Grid(table, levels)], density, box, "none")
    thresholds = Thresholds(1e-3, 0.0, 0.0)
    found = find_ngp(rays, marching, field, thresholds)
    drawn = render_ngp(rays, marching, field, color, thresholds)
    return [*_of_rays(found.samples), drawn.channels, drawn.opacity, drawn.depth]


def _compositing(inputs: Inputs) -> Results:
    samples = inputs.samples()
    density = (inputs.even(len(samples)) * 20).requires_grad_()
    channels = inputs.even(len(samples), 4).requires_grad_()
    seen = composite(density, channels, samples)
    weights = inputs.even(len(samples)).requires_grad_()
    spread = distortion(weights, samples.t_starts, samples.t_ends, samples.offsets)
    return _with_gradients([*seen, spread], [density, channels, weights])


def _colors(inputs: Inputs) -> Results:
    channels, opacity = (inputs.even(NUM_RAYS, *n).requires_grad_() for n in ((3,), ()))
    laid = over_background(channels, opacity, inputs.even(NUM_RAYS, 3))
    whole = inputs.even(NUM_RAYS) < 0.8
    error = color_error(laid, inputs.even(NUM_RAYS, 3), whole, 0.1)
    return _with_gradients([laid, error], [channels, opacity])


def _histograms(inputs: Inputs) -> Results:
    fine, coarse = (inputs.even(NUM_RAYS, n + 1).cumsum(1) / n for n in (40, 24))
    masses, bounds = inputs.even(NUM_RAYS, 40), inputs.even(NUM_RAYS, 24).requires_grad_()
    jitter = inputs.even(NUM_RAYS)
    loss = interlevel_loss(fine, masses, coarse, bounds)
    drawn = invert_cdf(fine, masses, jitter, 32, 0.01)

    def chunks(num: int) -> Tensor:
        starts = torch.arange(NUM_RAYS, device=inputs.device) * num
        return torch.stack([starts, torch.full_like(starts, num)], 1)

    cdf = torch.nn.functional.pad(masses.cumsum(1), (1, 0)).flatten()
    sizes = 16 * NUM_RAYS, 17 * NUM_RAYS
    ends = fine.flatten(), cdf, chunks(41), jitter, chunks(16), chunks(17)
    samples, intervals = sample_importance(*ends, *sizes)
    found = search_edges(fine.flatten(), chunks(41), samples, chunks(16))
    return [drawn, samples, intervals, *found, *_with_gradients([loss], [bounds])]


def _scans(inputs: Inputs) -> Results:
    rays = inputs.samples()
    starts, counts = rays.offsets[:-1], rays.offsets.diff()
    values = (inputs.even(len(rays)) * 0.2 + 0.9).requires_grad_()
    found = [
        scan_sum(values, starts, counts),
        scan_sum(values, starts, counts, False, True),
        scan_prod(values, starts, counts),
        sum_along_rays(values[:, None], rays.ray_indices, NUM_RAYS),
    ]
    offsets = ray_offsets(rays.ray_indices, NUM_RAYS)
    return [offsets, *_with_gradients(found, [values])]


def _adam(inputs: Inputs) -> Results:
    rates = AdamRates(0.01, 0.9, 0.99, 1e-8, 1e-4, True)
    lr, step = (torch.tensor(x, device=inputs.device) for x in (0.01, 4.0))
    found: list[Tensor] = []
    for _ in range(2):  # without a copy in half precision, then with one
        parameter, gradient, mean = (inputs.learnt(1_001).detach() for _ in range(3))
        gradient[::3] = 0
        moments = mean, inputs.even(1_001)
        if found:
            half_copy(parameter)
        adam_step(parameter, gradient, *moments, rates, 3)
        adam_step_placed(parameter, gradient, *moments, rates, (lr, step))
        found += [parameter, half_copy(parameter), *moments]
    return found


# What it is called, what it does, and how far results may be apart.
FAMILIES: dict[str, tuple[Callable[[Inputs], Results], float]] = {
    "pixels and rays": (_pixels, IN_ORDER),
    "marching": (_marches, AT_WALLS),
    "cells that cameras see": (_visible_cells, AT_WALLS),
    "which samples are seen": (_visits, AT_WALLS),
    "points and contraction": (_points, IN_ORDER),
    "hash encoding": (_hash_encoding, IN_ORDER),
    "spherical harmonics": (_harmonics, IN_ORDER),
    "networks": (_networks, IN_HALF),
    "fused field": (_fused_field, IN_HALF),
    "compositing": (_compositing, IN_ORDER),
    "colours": (_colors, IN_ORDER),
    "histograms": (_histograms, IN_ORDER),
    "scans": (_scans, IN_ORDER),
    "Adam": (_adam, IN_ORDER),
}


def prove(device: torch.device) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Name each family of a device's compiled ops, with what tells whether it agrees with torch.

    What is called returns None, or how it does not; it may raise, and may end the process.
    """
    for name, (compute, bound) in FAMILIES.items():
        yield name, partial(_difference, compute, device, bound)
    like = torch.zeros(1, device=device)
    for name, agrees, since in (
        ("fields on tensor cores", ngp_half.agrees, (7, 5)),
        ("warps on tensor cores", warp.agrees, (8, 0)),
    ):
        if library.has_tensor_cores(like, since):
            yield name, lambda a=agrees: None if a(device) else "not what torch makes of the same"


def time_march(device: torch.device) -> str:
    """Say how long rays take through a hollow ball of 128^3 cells, the fastest of some times."""
    inputs = Inputs(device)
    rays, jitter = inputs.rays(MARCHED), inputs.even(MARCHED)
    places = torch.linspace(-1, 1, 128, device=device)
    radius = torch.stack(torch.meshgrid(places, places, places, indexing="ij")).norm(dim=0)
    grid = pack_grid(((radius - 0.6).abs() < 0.04)[None], BOX)
    settings = March(12**0.5 / 1024, 0.0, 1024)
    num = len(march_to(rays, jitter, grid, settings)[0])
    seconds = []
    for _ in range(10):
        began = _finished(device)
        march_to(rays, jitter, grid, settings, num)
        seconds.append(_finished(device) - began)
    return f"{MARCHED:,} rays, {num:,} samples in {1000 * min(seconds):.2f} ms"


def _finished(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _difference(
    compute: Callable[[Inputs], Results], device: torch.device, bound: float
) -> str | None:
    results = []
    for mode in ("native", "reference"):
        with library.mode(mode):
            results.append([result.detach().cpu() for result in compute(Inputs(device))])
    apart = max(_apart(a, b) for a, b in zip(*results, strict=True))
    return None if apart <= bound else f"{apart:.2g} of the size from torch's"


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Tell how far results are apart, of their size; NaN or another shape are no results."""
    if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
        return float("inf")
    difference = (ours.double() - theirs.double()).norm()
    return float(difference / theirs.double().norm().clamp(min=1e-6))


def main() -> None:
    """Print each family's name before its trial and the outcome after it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("device", choices=("cpu", "cuda"))
    device = torch.device(parser.parse_args().device)
    logging.disable()  # what it would say of ops that are missing is said below
    try:
        with library.mode("native"):
            library.native(torch.zeros(1, device=device))
    except UserError as error:
        print(str(error).removeprefix("runtime.ops=native, but "))
        sys.exit(NO_OPS)
    for name, trial in prove(device):
        print(f"{name}: ", end="", flush=True)
        try:
            print(trial() or AGREES, flush=True)
        except RuntimeError as error:  # whatever a GPU or a foreign compiler's code does
            print(str(error).splitlines()[0], flush=True)
            if "CUDA error" in str(error):  # after which nothing runs there
                return
    print(f"{TIMED}: ", end="", flush=True)
    print(time_march(device))


if __name__ == "__main__":
    main()
