"""Occupancy grids, marching and which samples are seen."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerftrain.cameras import image_rays, look_at
from nerftrain.errors import UserError
from nerftrain.ops import library
from nerftrain.ops.march import (
    Grid,
    March,
    Marching,
    live_pixels,
    march,
    march_on,
    march_to,
    march_to_reference,
    mean_alpha,
    mean_alpha_reference,
    pack_grid,
    pack_grid_reference,
    slice_grid,
    slice_grid_reference,
    visible_cells,
    visible_cells_reference,
    visible_in_turn,
    visible_in_turn_reference,
    visible_samples,
    visible_samples_reference,
)
from nerftrain.ops.rooms import padded
from nerftrain.ops.visit import select
from nerftrain.types import Cameras, Rays, Samples

BOX = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
STEPS = March(step=0.03, cone_angle=0.0, max_steps=400)
NAN, INF = float("nan"), float("inf")


def march_reference(rays: Rays, jitter: Tensor, grid: Grid, steps: March) -> Samples:
    return march_to_reference(rays, jitter, grid, steps)[0]


def random_jitter(rays: Rays, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(rays), generator=generator).to(rays.near)


def full_grid(device: torch.device, num_levels: int = 1, aabb: tuple[float, ...] = BOX) -> Grid:
    flags = torch.ones(num_levels, 16, 16, 16, dtype=torch.bool, device=device)
    return pack_grid(flags, aabb)


def middles(samples: Samples, rays: Rays) -> tuple[Tensor, Tensor]:
    """Distances [N] and points [N, 3] of the samples' midpoints, float64."""
    t = (samples.t_starts.double() + samples.t_ends.double()) / 2
    origins, directions = rays.origins.double(), rays.directions.double()
    at = samples.ray_indices
    return t, origins[at] + t[:, None] * directions[at]


def unmatched(samples: Samples, others: Samples, tolerance: float) -> Tensor:
    """Which samples [N] have none of the same ray and start (within tolerance) among the others."""
    if not len(others):
        return torch.ones(len(samples), dtype=torch.bool, device=samples.offsets.device)
    keys, other_keys = (s.ray_indices * 1e4 + s.t_starts.double() for s in (samples, others))
    place = torch.searchsorted(other_keys, keys)
    before, after = (other_keys[(place + i).clamp(0, len(others) - 1)] for i in (-1, 0))
    return torch.minimum((keys - before).abs(), (keys - after).abs()) > tolerance


def on_a_boundary(samples: Samples, rays: Rays, grid: Grid) -> Tensor:
    """Which samples [N] rounding may put on either side of a cell's face or of the far bound."""
    t, points = middles(samples, rays)
    resolution = torch.tensor(grid.resolution, device=t.device)
    near_face = torch.zeros(len(samples), dtype=torch.bool, device=t.device)
    for low, high in torch.tensor(grid.boxes, dtype=torch.float64, device=t.device).view(-1, 2, 3):
        cell = (points - low) / (high - low) * resolution
        inside = (cell > -0.01) & (cell < resolution + 0.01)
        near_face |= ((cell - cell.round()).abs() < 2e-3).any(1) & inside.all(1)
    return near_face | ((t - rays.far[samples.ray_indices]).abs() < 1e-4)


def assert_same_samples(rays: Rays, jitter: Tensor, grid: Grid, steps: March) -> Samples:
    """Compare with the reference, sample for sample, but for those that lie on a boundary."""
    actual = march(rays, jitter, grid, steps)
    expected = march_reference(rays, jitter, grid, steps)
    check_packing(actual, len(rays), steps.max_steps)
    for samples, others in ((actual, expected), (expected, actual)):
        stray = unmatched(samples, others, 0.01 * steps.step)
        assert on_a_boundary(samples, rays, grid)[stray].all()
        assert stray.sum() <= max(3, 2e-3 * len(samples))
    return actual


def check_packing(samples: Samples, num_rays: int, max_steps: int) -> None:
    counts = samples.offsets.diff()
    assert samples.offsets.shape == (num_rays + 1,)
    assert samples.offsets[0] == 0
    assert samples.offsets[-1] == len(samples)
    assert counts.min() >= 0
    assert counts.max() <= max_steps
    indices = torch.arange(num_rays, device=counts.device).repeat_interleave(counts)
    assert torch.equal(samples.ray_indices, indices)
    assert (samples.t_starts <= samples.t_ends).all()
    same_ray = indices[1:] == indices[:-1]
    gaps = samples.t_starts[1:] - samples.t_ends[:-1]
    assert (gaps >= -1e-6 * samples.t_ends[:-1].abs())[same_ray].all()


# ------------------------------------------------------------------------------------------ march


@pytest.mark.parametrize("cone_angle", [0.0, 0.01])
@pytest.mark.parametrize("num_levels", [1, 3])
def test_march_equals_its_reference_sample_for_sample(make_rays, make_grid, num_levels, cone_angle):
    rays = make_rays(reach=2.0 * num_levels)
    grid = make_grid(num_levels, aabb=(-1.0, -0.5, -1.5, 1.0, 1.0, 0.5))
    steps = replace(STEPS, cone_angle=cone_angle)
    samples = assert_same_samples(rays, random_jitter(rays), grid, steps)
    assert len(samples) > 1000


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    num_levels=st.integers(1, 4),
    resolution=st.sampled_from([16, 32, 48]),
    share=st.floats(0, 1),
    step=st.floats(0.005, 0.5),
    cone_angle=st.sampled_from([0.0, 0.004, 0.05]),
    max_steps=st.integers(1, 300),
    low=st.tuples(*[st.floats(-3, -0.2)] * 3),
    high=st.tuples(*[st.floats(0.2, 3)] * 3),
)
def test_march_equals_its_reference_whatever_the_grid_and_the_steps(
    make_rays,
    make_grid,
    seed,
    num_levels,
    resolution,
    share,
    step,
    cone_angle,
    max_steps,
    low,
    high,
):
    rays = make_rays(40, seed, reach=4.0)
    grid = make_grid(num_levels, resolution, share, (*low, *high), seed)
    assert_same_samples(rays, random_jitter(rays, seed), grid, March(step, cone_angle, max_steps))


def odd_grid(device: torch.device, boxes: tuple[float, ...], seed: int = 0) -> Grid:
    """Make a grid of boxes of 20 x 7 x 33 cells, half of them occupied."""
    generator = torch.Generator().manual_seed(seed)
    flags = torch.rand(len(boxes) // 6, 20, 7, 33, generator=generator) < 0.5
    return pack_grid(flags.to(device), boxes)


# Apart, overlapping, one within another.
BOXES = (*(-2.0, -1.0, -1.0, -0.5, 1.0, 1.0), *(-0.7, -0.4, -1.0, 1.5, 1.5, 1.2), *BOX)


@pytest.mark.parametrize("cone_angle", [0.0, 0.01])
@pytest.mark.parametrize("num_boxes", [1, 2, 3])
def test_boxes_of_any_place_and_shape_are_marched(device, make_rays, num_boxes, cone_angle):
    rays, grid = make_rays(reach=3.0), odd_grid(device, BOXES[: 6 * num_boxes])
    steps = replace(STEPS, cone_angle=cone_angle)
    assert len(assert_same_samples(rays, random_jitter(rays), grid, steps)) > 1000


@pytest.mark.parametrize("max_samples", [1, 7, 1000])
def test_a_march_goes_on_where_it_ended(device, make_rays, max_samples):
    """Pieces of a march of at most some samples, each from the end of the last, are all of it."""
    rays, grid = make_rays(reach=3.0), odd_grid(device, BOXES)
    still = torch.zeros(len(rays), device=device)
    whole = march(rays, still, grid, STEPS)
    limited, pieces, ahead = replace(STEPS, max_samples=max_samples), [], rays
    while True:
        samples, ends = march_to(ahead, still, grid, limited)
        assert samples.offsets.diff().max() <= max_samples
        pieces.append(samples)
        if not len(samples):
            break
        assert (ends >= ahead.near).all()
        ahead = replace(ahead, near=ends)
    counts = torch.stack([piece.offsets.diff() for piece in pieces]).sum(0)
    # A piece's lattice begins anew, a rounding away: a sample on a wall may change sides.
    assert (counts - whole.offsets.diff()).abs().sum() <= max(2, 2e-3 * len(whole))


@pytest.mark.parametrize("cone_angle", [0.0, 0.01])
@pytest.mark.parametrize("num_levels", [1, 2])
def test_rays_that_march_in_rounds_find_what_one_march_finds(
    make_rays, make_grid, num_levels, cone_angle
):
    rays, grid = make_rays(), make_grid(num_levels)
    marching = Marching(random_jitter(rays), grid, March(0.01, cone_angle, 600))
    expected = march(rays, *marching)
    starts, begin = [], None
    for most in (5, 40, 600):
        samples, reached = march_on(rays, marching, len(expected), most, begin)
        counts = samples.offsets.diff()
        assert int(counts.max()) > 0
        if reached is None:  # all at once
            assert library.on_cpu(rays.origins)
            assert torch.equal(samples.t_starts, expected.t_starts)
            return
        assert int(counts.max()) <= most
        rows = torch.arange(int(samples.offsets[-1]))
        starts += [samples.ray_indices[rows] * 1000.0 + samples.t_starts[rows]]
        begin = reached
        begin[7] = marching.settings.max_steps  # which does not go on
    assert bool((begin == marching.settings.max_steps).all())
    found = torch.cat(starts).sort().values
    first = expected.offsets[7], min(expected.offsets[8], expected.offsets[7] + 5)
    wanted = expected.ray_indices * 1000.0 + expected.t_starts
    wanted = torch.cat([wanted[: first[1]], wanted[expected.offsets[8] :]])
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("num_levels", "cone_angle"), [(1, 0.0), (3, 0.0), (3, 0.01)])
@pytest.mark.parametrize("max_samples", [1, 6, 1000])
def test_rays_that_are_many_find_what_each_finds_alone(
    make_rays, make_grid, max_samples, num_levels, cone_angle
):
    """A GPU's threads take one ray after the other where there are many."""
    num_rays = 9001 if num_levels == 1 else 2501  # several grids take the host long
    rays, grid = make_rays(num_rays, reach=2.0 * num_levels), make_grid(num_levels)
    jitter = random_jitter(rays)
    steps = replace(STEPS, max_samples=max_samples, cone_angle=cone_angle)
    samples, ends = march_to(rays, jitter, grid, steps)
    assert len(samples) > len(rays) // 3
    for few in torch.arange(len(rays)).split(900):
        part, part_ends = march_to(rays[few], jitter[few], grid, steps)
        first, last = samples.offsets[few[0]], samples.offsets[few[-1] + 1]
        assert torch.equal(samples.t_starts[first:last], part.t_starts)
        assert torch.equal(samples.ray_indices[first:last], part.ray_indices + few[0])
        assert torch.equal(ends[few], part_ends)


def sliced(grid: Grid, num_slices: int, share: float = 0.5) -> tuple[Grid, list[Grid]]:
    """Leave out cubes of cells at random in each slice of time; and list the slices' own grids."""
    levels, half = len(grid.cells), grid.side // 2
    generator = torch.Generator().manual_seed(7)
    live = torch.rand(num_slices, levels, half, half, half, generator=generator) < share
    whole = slice_grid(grid, live.to(grid.cells.device))
    names = "cells", "blocks", "empty"
    parts = zip(*(getattr(whole, name).split(levels) for name in names), strict=True)
    return whole, [replace(grid, **dict(zip(names, bits, strict=True))) for bits in parts]


def in_slices(rays: Rays, num_slices: int) -> tuple[Rays, Tensor]:
    """Give rays times, the first and the last there are among them."""
    times = torch.linspace(0, 1, len(rays), device=rays.near.device)
    times = times[torch.randperm(len(rays), generator=torch.Generator().manual_seed(8))]
    return replace(rays, times=times), (times * num_slices).long().clamp(max=num_slices - 1)


@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("side", [16, 48])
def test_slices_of_a_grid_equal_their_reference(make_grid, num_levels, side):
    grid = make_grid(num_levels, resolution=side)
    live = torch.rand(5, num_levels, *[side // 2] * 3) < 0.3
    live[1], live[2] = False, True
    actual = slice_grid(grid, live.to(grid.cells.device))
    expected = slice_grid_reference(grid.cells, live.to(grid.cells.device))
    for bits, its in zip((actual.cells, actual.blocks, actual.empty), expected, strict=True):
        assert torch.equal(bits, its)
    occupied = actual.occupied.view(5, num_levels, side, side, side)
    assert not occupied[1].any()
    assert torch.equal(occupied[2], grid.occupied)
    fine = live.to(grid.cells.device)
    for axis in (2, 3, 4):
        fine = fine.repeat_interleave(2, axis)
    assert torch.equal(occupied, grid.occupied & fine)


@pytest.mark.parametrize(
    "how",
    [{}, {"cone_angle": 0.02}, {"step": 0.0, "max_steps": 2000}, {"max_samples": 6}],
    ids=["even", "cones", "cells", "few"],
)
@pytest.mark.parametrize("num_levels", [1, 2])
@pytest.mark.parametrize("function", [march_to, march_to_reference])
def test_rays_look_in_their_slice_of_time(make_rays, make_grid, num_levels, how, function):
    whole, alone = sliced(make_grid(num_levels), 5)
    rays, slices = in_slices(make_rays(), 5)
    jitter, steps = random_jitter(rays), replace(STEPS, **how)
    samples, ends = function(rays, jitter, whole, steps)
    assert len(samples) > 500
    for k, grid in enumerate(alone):
        mine = (slices == k).nonzero().squeeze(1)
        part, part_ends = function(rays[mine], jitter[mine], grid, steps)
        rows = (slices[samples.ray_indices] == k).nonzero().squeeze(1)
        assert torch.equal(samples.t_starts[rows], part.t_starts)  # the same bits
        assert torch.equal(samples.t_ends[rows], part.t_ends)
        assert torch.equal(samples.ray_indices[rows], mine[part.ray_indices])
        assert torch.equal(ends[mine], part_ends)


def test_rays_in_slices_march_in_rounds_too(make_rays, make_grid):
    whole, _ = sliced(make_grid(), 4)
    rays, _ = in_slices(make_rays(), 4)
    marching = Marching(random_jitter(rays), whole, STEPS)
    expected = march(rays, *marching)
    samples, reached = march_on(rays, marching, len(expected), STEPS.max_samples)
    assert reached is None or bool((reached == STEPS.max_steps).all())
    assert torch.equal(samples.t_starts, expected.t_starts)


def test_rays_without_times_are_told_that_slices_need_them(make_rays, make_grid):
    whole, _ = sliced(make_grid(), 4)
    rays = make_rays()
    with pytest.raises(UserError, match="times"):
        march(rays, random_jitter(rays), whole, STEPS)


def test_marches_end_where_the_reference_says(device, make_rays):
    rays, grid = make_rays(reach=3.0), odd_grid(device, BOXES)
    for max_samples in (5, 1000):
        steps = replace(STEPS, max_samples=max_samples)
        samples, ends = march_to(rays, random_jitter(rays), grid, steps)
        others, expected = march_to_reference(rays, random_jitter(rays), grid, steps)
        same = samples.offsets.diff() == others.offsets.diff()
        assert same.sum() >= 0.98 * len(rays)
        assert ((ends - expected).abs() <= 1.01 * steps.step)[same].all()
        missed = (samples.offsets.diff() == 0) & (expected == rays.near)
        assert torch.equal(ends[missed], rays.near[missed])


@pytest.mark.parametrize("num_boxes", [1, 3])
def test_without_a_step_a_ray_has_a_sample_for_every_occupied_cell(device, make_rays, num_boxes):
    rays, grid = make_rays(100, reach=3.0), odd_grid(device, BOXES[: num_boxes * 6])
    cells = replace(STEPS, step=0.0, max_steps=10_000)
    samples = march(rays, random_jitter(rays), grid, cells)
    expected = march_reference(rays, random_jitter(rays), grid, cells)
    check_packing(samples, len(rays), 10_000)
    lengths = [
        torch.zeros(len(rays), device=device).index_add_(
            0, some.ray_indices, some.t_ends - some.t_starts
        )
        for some in (samples, expected)
    ]
    assert lengths[1].max() > 1
    torch.testing.assert_close(*lengths, rtol=1e-3, atol=1e-3)
    if num_boxes == 1:  # the reference cuts at the walls of boxes that do not count, too
        # Corners that a ray all but touches may count or not.
        assert abs(len(samples) - len(expected)) < 0.02 * len(expected)


def test_more_levels_than_there_is_room_for_are_refused(device):
    with pytest.raises(UserError, match="17 levels"):
        pack_grid(torch.ones(17, 16, 16, 16, dtype=torch.bool, device=device), BOX)


@pytest.mark.parametrize("cone_angle", [0.0, 0.01])
def test_which_samples_a_ray_has_does_not_depend_on_the_emptiness_elsewhere(
    make_rays, make_grid, cone_angle
):
    rays, steps = make_rays(1000), replace(STEPS, step=0.01, cone_angle=cone_angle)
    jitter = random_jitter(rays)
    some, other = (make_grid(2, share=0.4, seed=seed).occupied for seed in (1, 2))
    parts = [some, other & ~some, ~(some | other)]
    whole = march(rays, jitter, full_grid_like(some), steps)
    pieces = [march(rays, jitter, pack_grid(part, BOX), steps) for part in parts]
    assert all(len(piece) > 1000 for piece in pieces)
    starts = torch.cat([piece.t_starts for piece in pieces])
    indices = torch.cat([piece.ray_indices for piece in pieces])
    order = (indices * 1e4 + starts.double()).argsort()
    assert torch.equal(indices[order], whole.ray_indices)
    assert torch.equal(starts[order], whole.t_starts)  # the same bits
    ends = torch.cat([piece.t_ends for piece in pieces])
    assert torch.equal(ends[order], whole.t_ends)


@pytest.mark.parametrize("num_levels", [1, 2])
def test_what_is_occupied_may_lie_anywhere_in_the_box(make_rays, device, num_levels):
    rays, steps = make_rays(1000, reach=3.0), replace(STEPS, step=0.01, max_steps=2000)
    straight = torch.eye(3, device=device)[torch.arange(300, device=device) % 3]
    rays = replace(rays, directions=torch.cat([straight, rays.directions[300:]]))
    jitter, side = random_jitter(rays), 48
    flags = torch.zeros(num_levels, side, side, side, dtype=torch.bool, device=device)
    whole, end = march_to(rays, jitter, full_grid_like(flags), steps)
    starts, indices = [], []
    ranges = [(0, 5), (5, 30), (30, side)]
    for x, y, z in itertools.product(ranges, repeat=3):
        flags[:] = False
        flags[:, slice(*x), slice(*y), slice(*z)] = True
        part, part_end = march_to(rays, jitter, pack_grid(flags, BOX), steps)
        starts.append(part.t_starts)
        indices.append(part.ray_indices)
        assert ((part_end - end).abs() <= 1.01 * steps.step).all()
    order = (torch.cat(indices) * 1e4 + torch.cat(starts).double()).argsort()
    assert torch.equal(torch.cat(indices)[order], whole.ray_indices)
    assert torch.equal(torch.cat(starts)[order], whole.t_starts)  # the same bits
    assert len(march(rays, jitter, pack_grid(torch.zeros_like(flags), BOX), steps)) == 0


def full_grid_like(flags: Tensor) -> Grid:
    return pack_grid(torch.ones_like(flags), BOX)


def test_a_full_grid_gives_exactly_the_uniform_samples(device):
    rays = Rays(
        origins=torch.tensor([[-3.0, 0.1, 0.2], [0.0, 0.0, 0.0], [0.5, -4.0, 0.5]]),
        directions=torch.tensor([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]),
        near=torch.tensor([0.0, 0.25, 1.0]),
        far=torch.tensor([9.0, 9.0, 3.7]),
    ).to(device)
    jitter = torch.tensor([0.0, 0.3, 0.9], device=device)
    steps = March(step=0.0625, cone_angle=0.0, max_steps=1000)
    samples = march(rays, jitter, full_grid(device), steps)
    check_packing(samples, 3, 1000)
    inside = ((2.0, 4.0), (0.25, 1.0), (3.0, 3.7))  # where each ray is in the box, up to far
    for r, (enter, leave) in enumerate(inside):
        k = torch.arange(1000, device=device)
        bounds = rays.near[r] + (torch.arange(1001, device=device) + jitter[r]) * 0.0625
        middle = 0.5 * (bounds[k] + bounds[k + 1])
        kept = (middle > enter) & (middle < leave)
        own = slice(int(samples.offsets[r]), int(samples.offsets[r + 1]))
        torch.testing.assert_close(samples.t_starts[own], bounds[:-1][kept])
        torch.testing.assert_close(samples.t_ends[own], bounds[1:][kept])


def test_an_empty_grid_gives_none_and_a_sparse_one_few(make_rays, make_grid, device):
    rays = make_rays(500)
    jitter = random_jitter(rays)
    empty = pack_grid(torch.zeros(1, 32, 32, 32, dtype=torch.bool, device=device), BOX)
    nothing = march(rays, jitter, empty, STEPS)
    assert len(nothing) == 0
    assert nothing.offsets.tolist() == [0] * 501
    sparse = make_grid(share=0.35)
    assert 0.005 < sparse.occupied.float().mean() < 0.05
    full = full_grid(device)
    share = len(march(rays, jitter, sparse, STEPS)) / len(march(rays, jitter, full, STEPS))
    assert 0 < share < 0.1


def test_the_finest_level_that_holds_a_point_decides(make_rays, device):
    flags = torch.zeros(2, 16, 16, 16, dtype=torch.bool, device=device)
    flags[1] = True
    rays = make_rays(300, reach=3.0)
    samples = march(rays, random_jitter(rays), pack_grid(flags, BOX), STEPS)
    reach = middles(samples, rays)[1].abs().amax(1)
    assert len(samples) > 1000
    assert reach.min() > 1 - 1e-4
    assert reach.max() < 2 + 1e-4


def test_steps_grow_with_the_distance_by_the_cone_angle(device):
    ray = Rays(*(torch.tensor(v).to(device) for v in ([[0.0] * 3], [[0.0, 0, 1]], [0.0], [30.0])))
    grid = full_grid(device, num_levels=6)
    steps = March(step=0.02, cone_angle=0.05, max_steps=1000)
    samples = march(ray, torch.full((1,), 0.5, device=device), grid, steps)
    assert torch.equal(samples.t_ends[:-1], samples.t_starts[1:])  # nothing left out
    lengths, expected = samples.t_ends - samples.t_starts, (samples.t_starts * 0.05).clamp(min=0.02)
    torch.testing.assert_close(lengths, expected, rtol=0.04, atol=1e-6)
    assert lengths[-1] > 10 * lengths[0]
    assert samples.t_starts[-1] < 30


HOSTILE = {
    "nan origin, first axis": ([NAN, 0, 0], [0.6, 0.8, 0], 0, 9),
    "nan origin, last axis": ([0, 0, NAN], [0.6, 0.8, 0], 0, 9),
    "nan origin, all axes": ([NAN, NAN, NAN], [0.6, 0.8, 0], 0, 9),
    "nan direction": ([0, 0, 0], [NAN, 0.8, 0], 0, 9),
    "nan direction, last axis": ([0, 0, 0], [0.6, 0.8, NAN], 0, 9),
    "nan near": ([0, 0, 0], [0.6, 0.8, 0], NAN, 9),
    "nan far": ([0, 0, 0], [0.6, 0.8, 0], 0, NAN),
    "huge origin towards the box": ([1e30, 0, 0], [-1, 0, 0], 0, INF),
    "huge origin away from the box": ([1e30, -1e30, 0], [0.6, 0.8, 0], 0, INF),
    "infinite origin": ([INF, 0, 0], [-1, 0, 0], 0, INF),
    "infinite direction": ([0, 0, 0], [INF, 0, 0], 0, 9),
    "infinite direction, negative near": ([0, 0, 0], [INF, 0, 0], -3, 9),
    "huge direction": ([0.1, 0, 0], [1e38, -1e38, 1], -3, 9),
    "zero direction inside": ([0.1, 0.1, 0.1], [0, 0, 0], 0, 9),
    "zero direction outside": ([3, 0, 0], [0, 0, 0], 0, 9),
    "tiny direction component": ([0.1, 0.1, -3], [1e-38, -1e-42, 1], 0, 9),
    "two zero components": ([0.1, -3, 0.1], [0, 1, 0], 0, 9),
    "beside the box, parallel to it": ([1.5, -3, 0.1], [0, 1, 0], 0, 9),
    "along a face": ([1, -3, 0.1], [0, 1, 0], 0, 9),
    "along an edge": ([-1, -1, -3], [0, 0, 1], 0, 9),
    "from a face inwards": ([1, 0.1, 0.1], [-1, 0, 0], 0, 9),
    "from a face outwards": ([1, 0.1, 0.1], [1, 0, 0], 0, 9),
    "from a corner": ([-1, -1, -1], [0.57735026] * 3, 0, 9),
    "near equals far": ([0, 0, 0], [0.6, 0.8, 0], 1, 1),
    "near beyond far": ([0, 0, 0], [0.6, 0.8, 0], 2, 1),
    "near beyond the box": ([0, 0, 0], [0.6, 0.8, 0], 5, 9),
    "box behind the origin": ([3, 0, 0], [1, 0, 0], 0, 9),
    "negative near": ([0, 0, 0], [0.6, 0.8, 0], -3, 9),
    "infinite near": ([0, 0, 0], [0.6, 0.8, 0], -INF, 9),
    "infinite far": ([0, 0, 0], [0.6, 0.8, 0], 0, INF),
}


@pytest.mark.parametrize("cone_angle", [0.0, 0.01])
@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_rays_get_the_references_samples_and_leave_others_alone(
    make_rays, make_grid, name, num_levels, cone_angle
):
    good, grid = make_rays(20), make_grid(num_levels)
    steps = replace(STEPS, cone_angle=cone_angle)
    row = [torch.tensor([v], dtype=torch.float32).to(good.near) for v in HOSTILE[name]]
    fields = zip((good.origins, good.directions, good.near, good.far), row, strict=True)
    rays = Rays(*(torch.cat([old[:10], new, old[10:]]) for old, new in fields))
    jitter = random_jitter(rays)
    samples = march(rays, jitter, grid, steps)
    check_packing(samples, 21, steps.max_steps)
    assert samples.t_starts.isfinite().all()
    others = march(good, jitter[torch.arange(21) != 10], grid, steps)
    counts, expected = samples.offsets.diff(), march_reference(rays, jitter, grid, steps)
    assert torch.equal(counts[torch.arange(21) != 10], others.offsets.diff())
    hostile = samples.ray_indices == 10
    assert torch.equal(samples.t_starts[~hostile], others.t_starts)
    # A ray along a face or edge of cells has all its samples on a boundary.
    if name not in ("along a face", "along an edge", "from a corner"):
        assert abs(int(counts[10]) - int(expected.offsets.diff()[10])) <= 1


def test_a_march_ends_after_max_steps(make_rays, make_grid, device):
    rays, ones = make_rays(100), torch.zeros(100, device=device)
    samples = march(rays, ones, full_grid(device, 4), March(1e-6, 0.0, 50))
    check_packing(samples, 100, 50)
    assert (samples.offsets.diff() == 50).any()


@pytest.mark.parametrize("function", [march, march_reference])
def test_a_box_without_volume_holds_nothing(make_rays, make_grid, function):
    rays, flat = make_rays(), (-1.0, -1.0, 0.5, 1.0, 1.0, 0.5)
    rays.origins[:20, 2] = 0.5
    rays.directions[:10, 2] = 0
    assert len(function(rays, random_jitter(rays), make_grid(2, aabb=flat), STEPS)) == 0


@pytest.mark.parametrize("function", [march, march_reference])
def test_no_rays_have_no_samples(make_rays, make_grid, function):
    rays = make_rays(10)[slice(0, 0)]
    samples = function(rays, rays.near, make_grid(), STEPS)
    assert len(samples) == 0
    assert samples.offsets.tolist() == [0]


def test_strided_rays_are_taken(make_rays, make_grid):
    rays, grid = make_rays(), make_grid()
    jitter = random_jitter(rays)
    wide = torch.stack([rays.near, rays.far, jitter], 1)
    origins, directions = (t.t().contiguous().t() for t in (rays.origins, rays.directions))
    strided = Rays(origins, directions, wide[:, 0], wide[:, 1])
    actual, expected = march(strided, wide[:, 2], grid, STEPS), march(rays, jitter, grid, STEPS)
    assert torch.equal(actual.t_starts, expected.t_starts)
    assert torch.equal(actual.offsets, expected.offsets)


@pytest.mark.parametrize("step", [0.002, 0.01, 0.04, 0.4])
def test_cells_that_lie_alone_are_found_by_steps_of_any_length(make_rays, device, step):
    generator = torch.Generator().manual_seed(3)
    flags = torch.rand(1, 64, 64, 64, generator=generator) < 0.01
    grid = pack_grid(flags.to(device), (-1.0, -0.7, -0.5, 0.8, 1.0, 1.2))
    rays = make_rays(1000, reach=3.0)
    steps = March(step, 0.0, round(8 / step))
    assert len(assert_same_samples(rays, random_jitter(rays), grid, steps)) > 10


def test_rays_may_meet_more_blocks_than_there_is_room_to_note(make_rays, chequered):
    rays = make_rays(600, reach=1.5)
    samples = assert_same_samples(rays, random_jitter(rays), chequered, March(0.004, 0.0, 1000))
    gaps = samples.t_starts[1:] - samples.t_ends[:-1] > 0.002
    gaps &= samples.ray_indices[1:] == samples.ray_indices[:-1]
    most = torch.bincount(samples.ray_indices[1:][gaps]).max()
    assert int(most) > 64  # kStretches of csrc/cpu/march.h


def test_samples_are_the_same_bits_with_any_number_of_threads(make_rays, make_grid, threads):
    rays, grid = make_rays(3000), make_grid()
    jitter = random_jitter(rays)
    threads(1)
    alone = march(rays, jitter, grid, STEPS)
    threads(2)
    together = march(rays, jitter, grid, STEPS)
    assert torch.equal(alone.t_starts, together.t_starts)
    assert torch.equal(alone.offsets, together.offsets)


@pytest.mark.parametrize("cone_angle", [0.0, 1e-7])  # prepared side by side, and one by one
def test_rays_may_have_more_samples_than_are_kept_at_once(lanes, make_rays, make_grid, cone_angle):
    """Memory for 2^15 samples is taken at a time, and for more where a ray needs it."""
    rays, grid = make_rays(8, reach=1.5), make_grid(share=0.8)
    steps = March(3e-5, cone_angle, max_steps=200_000, max_samples=200_000)
    torch.ops.nerftrain.use_lanes(lanes)
    try:
        samples = assert_same_samples(rays, random_jitter(rays), grid, steps)
    finally:
        torch.ops.nerftrain.use_lanes(0)
    assert samples.offsets.diff().max() > 2**15


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
@pytest.mark.parametrize("cone_angle", [0.0, 1e-3])
def test_a_march_without_a_limit_takes_memory_for_what_it_finds(cone_angle):
    code = f"""
import re, resource, torch
from nerftrain.ops import march
from nerftrain.types import Rays
grid = march.pack_grid(torch.ones(1, 16, 16, 16, dtype=torch.bool), (-1, -1, -1, 1, 1, 1))
origins = torch.tensor([[0.0, 0.0, -2.0]]).repeat(20000, 1)
directions = torch.nn.functional.normalize(torch.rand(20000, 3) * 0.2 + torch.tensor([0, 0, 1.0]))
still = torch.zeros(20000)
rays = Rays(origins, directions, still, still + 10)
steps = march.March(0.1, {cone_angle}, max_steps=2**24, max_samples=2**24)
march.march(Rays(origins[:9], directions[:9], still[:9], still[:9] + 10), still[:9], grid, steps)
taken = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), -1))
print(len(march.march(rays, still, grid, steps)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20000 * 15


# ------------------------------------------------------------------------------------------ grids


@pytest.mark.parametrize("resolution", [16, 32, 48])
@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_grid_keeps_the_flags_that_it_was_made_of(device, num_levels, resolution, share):
    generator = torch.Generator().manual_seed(0)
    flags = torch.rand(num_levels, *[resolution] * 3, generator=generator).to(device) < share
    grid = pack_grid(flags, BOX)
    assert torch.equal(grid.occupied, flags)
    expected = pack_grid_reference(flags)
    for bits, its in zip((grid.cells, grid.blocks, grid.empty), expected, strict=True):
        assert torch.equal(bits, its)


def test_strided_flags_are_taken(make_grid):
    flags = make_grid(2).occupied
    assert torch.equal(pack_grid(flags.transpose(1, 3), BOX).occupied, flags.transpose(1, 3))


def ring(num_cameras: int, size: tuple[int, int] = (60, 45), focal: float = 70.0) -> Cameras:
    """Cameras about the z axis that look at the origin from a distance of 3."""
    azimuth = torch.arange(num_cameras) * (2 * math.pi / num_cameras) + 0.3
    positions = torch.stack([azimuth.cos(), azimuth.sin(), 0.2 * torch.ones_like(azimuth)], 1) * 3
    width, height = size
    return Cameras(
        poses=look_at(positions, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])),
        intrinsics=torch.tensor([focal, focal, width / 2, height / 2]).repeat(num_cameras, 1),
        widths=torch.full((num_cameras,), width),
        heights=torch.full((num_cameras,), height),
    )


def centers(num_levels: int, resolution: int, aabb: tuple[float, ...]) -> Tensor:
    """Cells' centres [L, resolution, resolution, resolution, 3], float64."""
    low, high = torch.tensor(aabb, dtype=torch.float64).view(2, 3)
    axis = (torch.arange(resolution, dtype=torch.float64) + 0.5) * 2 / resolution - 1
    unit = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    scale = 2.0 ** torch.arange(num_levels, dtype=torch.float64)
    return (low + high) / 2 + unit * scale[:, None, None, None, None] * (high - low) / 2


def pixels(cameras: Cameras, camera: int, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns, rows and depths of points by the pinhole model."""
    pose, (fx, fy, cx, cy) = cameras.poses[camera].double(), cameras.intrinsics[camera].tolist()
    x, y, z = ((points - pose[:, 3]) @ pose[:, :3]).unbind(-1)
    return cx + fx * x / -z, cy - fy * y / -z, -z


def silhouettes(cameras: Cameras, radius: float) -> Tensor:
    """Masks [C, H, W] of the sphere of a radius about the origin."""
    width, height = int(cameras.widths[0]), int(cameras.heights[0])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = []
    for pose, (fx, fy, cx, cy) in zip(cameras.poses, cameras.intrinsics.tolist(), strict=True):
        local = torch.stack([(x + 0.5 - cx) / fx, -(y + 0.5 - cy) / fy, -torch.ones(y.shape)], -1)
        directions = torch.nn.functional.normalize(local @ pose[:, :3].T, dim=-1)
        along = -(directions @ pose[:, 3])
        masks.append(pose[:, 3].square().sum() - along.square() < radius**2)
    return torch.stack(masks)


@pytest.mark.parametrize("num_levels", [1, 2])
@pytest.mark.parametrize("size", [(60, 45), (450, 410)], ids=["small", "pooled"])
@pytest.mark.parametrize("masked", [False, True])
def test_visible_cells_equal_their_reference(device, num_levels, size, masked):
    cameras = ring(7, size, focal=2.5 * size[0])
    masks = silhouettes(cameras, 0.4).to(device) if masked else None
    grid = (-1.0, -1.2, -0.8, 1.0, 1.0, 1.0), num_levels, 32, 1.5
    actual = visible_cells(cameras.to(device), masks, *grid)
    expected = visible_cells_reference(cameras.to(device), masks, *grid)
    assert actual.shape == (num_levels, 32, 32, 32)
    assert 0.01 < actual.float().mean() < (0.5 if masked else 0.999)
    # Rounding decides where a sphere touches the picture's edge or a mask's pixel.
    assert (actual != expected).float().mean() < 1e-3


def test_cells_that_no_camera_sees_are_off(device):
    pose = torch.eye(4)[None, :3]  # at the origin, looking along -z
    camera = replace(ring(1), poses=pose)
    visible = visible_cells(camera.to(device), None, BOX, 1, 32, 0.25)[0].cpu()
    u, v, depth = pixels(camera, 0, centers(1, 32, BOX)[0])
    radius = math.sqrt(3) / 32
    assert not visible[depth < 0.25 - radius].any()  # behind it, and nearer than near
    margin = 2 * 70 * radius / depth.clamp(min=0.1)
    seen = (u > 0) & (u < 60) & (v > 0) & (v < 45) & (depth > 0.25)
    beside = (u < -margin) | (u > 60 + margin) | (v < -margin) | (v > 45 + margin)
    assert seen.any()
    assert visible[seen].all()
    assert not visible[beside].any()


def test_no_cameras_see_nothing(device):
    cameras = replace(ring(1), poses=torch.zeros(0, 3, 4), intrinsics=torch.zeros(0, 4))
    cameras = replace(cameras, widths=cameras.widths[:0], heights=cameras.heights[:0])
    assert not visible_cells(cameras.to(device), None, BOX, 1, 16, 0.1).any()


@pytest.mark.parametrize("size", [(60, 45), (450, 410)], ids=["small", "pooled"])
def test_masks_carve_only_cells_in_front_of_transparent_pixels(device, size):
    cameras = ring(7, size, focal=size[0])
    masks = silhouettes(cameras, 0.6)
    arguments = BOX, 1, 32, 1.5
    whole = visible_cells(cameras.to(device), None, *arguments).cpu()[0]
    left = visible_cells(cameras.to(device), masks.to(device), *arguments).cpu()[0]
    carved = whole & ~left
    points = centers(1, 32, BOX)[0]
    assert carved.float().mean() > 0.3
    assert not (left & ~whole).any()
    assert left[points.norm(dim=-1) < 0.6].all()  # nothing of the sphere is lost
    transparent = torch.zeros_like(carved)
    for camera in range(7):
        u, v, depth = pixels(cameras, camera, points)
        inside = (u >= 0) & (u < size[0]) & (v >= 0) & (v < size[1]) & (depth > 1.5)
        x, y = u.clamp(0, size[0] - 1).long(), v.clamp(0, size[1] - 1).long()
        transparent |= inside & ~masks[camera][y, x]
    assert transparent[carved].all()


# ---------------------------------------------------------------------------------------- samples


def random_density(samples: Samples) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    density = torch.rand(len(samples), generator=generator).pow(4) * 60
    density[::11] = 1e12  # opaque, with no effect on the rays behind it in memory
    density[::4] = 0
    return density.to(samples.t_starts)


THRESHOLDS = {
    "none": (0.0, 0.0, 0.0),
    "early_stop_eps": (0.3, 0.0, 0.0),
    "alpha_thre": (0.0, 0.05, 0.0),
    "min_weight": (0.0, 0.0, 0.02),
    "all": (0.1, 0.05, 0.02),
}


@pytest.mark.parametrize("function", [visible_samples, visible_samples_reference])
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_visible_samples_are_those_above_every_threshold(
    make_samples, dtype, function: Callable, thresholds
):
    samples = make_samples(dtype=dtype)
    density = random_density(samples)
    seen = function(samples, density, *THRESHOLDS[thresholds]).tolist()
    lengths, sigma = (samples.t_ends - samples.t_starts).tolist(), density.tolist()
    expected = []
    for first, last in itertools.pairwise(samples.offsets.tolist()):
        transmittance = 1.0
        for i in range(first, last):
            alpha = 1 - math.exp(-sigma[i] * lengths[i])
            values = (transmittance, alpha, transmittance * alpha)
            pairs = zip(values, THRESHOLDS[thresholds], strict=True)
            expected.append(all(value >= least for value, least in pairs))
            transmittance *= 1 - alpha
    assert seen == expected
    share = sum(expected) / len(expected)
    assert share == 1 if thresholds == "none" else 0.1 < share < 0.9


def test_strided_samples_and_intervals_of_another_precision_are_taken(make_samples):
    samples = make_samples()
    density, thresholds = random_density(samples), THRESHOLDS["all"]
    expected = visible_samples_reference(samples, density, *thresholds)
    wide = torch.stack([samples.t_starts, samples.t_ends, density], 1)
    strided = Samples(wide[:, 0], wide[:, 1], samples.ray_indices, samples.offsets)
    assert torch.equal(visible_samples(strided, wide[:, 2], *thresholds), expected)
    assert torch.equal(visible_samples(samples, density.double(), *thresholds), expected)


def test_what_is_seen_does_not_depend_on_rounds(make_samples, device):
    samples = make_samples(200, longest=60)
    density = random_density(samples)
    thresholds = (0.05, 0.01, 0.02)
    expected = visible_samples(samples, density, *thresholds)
    place = torch.arange(len(samples), device=device) - samples.offsets[samples.ray_indices]
    found, light = torch.zeros_like(expected), None
    for now in (place < 9, place >= 9):
        part = select(samples, now)
        by_torch = visible_in_turn_reference(part, density[now], *thresholds, light)
        seen, light = visible_in_turn(part, density[now], *thresholds, light)
        found[now] = seen
        assert torch.equal(seen, by_torch[0])
        through = light >= 0.05
        assert torch.equal(through, by_torch[1] >= 0.05)
        torch.testing.assert_close(light[through], by_torch[1][through])
    assert 0 < int(expected.sum()) < len(samples)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("num_rays", [0, 200])
def test_nothing_is_seen_behind_the_samples_of_rays(make_samples, device, dtype, num_rays: int):
    samples = make_samples(200, dtype=dtype)
    rows = len(samples) + 1000
    if num_rays == 0:
        none = samples.t_starts[:0]
        samples = Samples(none, none, samples.ray_indices[:0], samples.offsets[:1])
    density = torch.full((rows,), 5.0, device=device, dtype=dtype)
    for _ in range(3):  # what is not written may hold what stood there before
        before = [torch.ones(rows, dtype=torch.bool, device=device) for _ in range(4)]
        del before
        seen = visible_samples(padded(samples, rows), density, 0.0, 0.0, 0.0)
        assert bool(seen[: len(samples)].all())
        assert not bool(seen[len(samples) :].any())


@pytest.mark.parametrize("spare", [0, 100])
def test_the_mean_opacity_is_that_of_rays_samples(make_samples, device, dtype, spare, assert_close):
    samples = make_samples(200, dtype=dtype)
    density = random_density(samples).to(dtype)
    expected = 1 - torch.exp(-density * (samples.t_ends - samples.t_starts))
    whole = padded(samples, len(samples) + spare)
    density = torch.cat([density, density.new_full((spare,), 7.0)])
    assert_close(mean_alpha(whole, density), expected.mean())
    assert_close(mean_alpha_reference(whole, density), expected.mean())
    none = samples.offsets.new_zeros(4)
    nothing = Samples(density[:0], density[:0], none[:0], none)
    assert float(mean_alpha(nothing, density[:0])) == 0


@pytest.mark.parametrize("function", [visible_samples, visible_samples_reference])
@pytest.mark.parametrize("num_rays", [0, 3])
def test_without_samples_nothing_is_seen(device, function, num_rays):
    none = torch.zeros(0, device=device)
    offsets = torch.zeros(num_rays + 1, dtype=torch.int64, device=device)
    samples = Samples(none, none, none.long(), offsets)
    assert function(samples, none, 0.1, 0.1, 0.1).shape == (0,)
    assert len(select(samples, none.bool())) == 0


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_select_keeps_order_and_offsets(make_samples, share):
    samples = make_samples()
    generator = torch.Generator().manual_seed(4)
    keep = torch.rand(len(samples), generator=generator).to(samples.t_starts) < share
    kept = select(samples, keep)
    assert torch.equal(kept.t_starts, samples.t_starts[keep])
    assert torch.equal(kept.t_ends, samples.t_ends[keep])
    assert torch.equal(kept.ray_indices, samples.ray_indices[keep])
    check_packing(kept, 50, 20)


def test_rays_of_a_wide_angle_meet_cells_through_live_pixels_alone():
    size = 96
    pose = torch.eye(4)[:3].clone()
    pose[2, 3] = 1.6
    cameras = Cameras(
        poses=pose[None],
        intrinsics=torch.tensor([[0.35 * size] * 2 + [size / 2] * 2]),  # 110 degrees
        widths=torch.tensor([size]),
        heights=torch.tensor([size]),
    )
    cells = torch.zeros(1, 32, 32, 32, dtype=torch.bool)
    cells[0, ::9, ::9, ::9] = True
    aabb = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    rays = image_rays(cameras, 0, 0.0, 10.0)
    grid = pack_grid(cells, aabb)
    hit = march(rays, torch.full_like(rays.near, 0.5), grid, March(0.005, 0.0, 2000)).offsets.diff()
    live = live_pixels(cameras, cells[0], aabb)[0].flatten()
    assert (hit > 0).any()
    assert live[hit > 0].all()
    assert not live.all()
