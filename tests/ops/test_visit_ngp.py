"""Instant-NGP along rays, fused: against the unfused ops, sample by sample."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerftrain.ops.hash_encoding import HashLevels
from nerftrain.ops.march import Grid as Occupied
from nerftrain.ops.march import March, Marching, march, pack_grid, slice_grid
from nerftrain.ops.visit_ngp import (
    ColorField,
    DensityField,
    Drawn,
    Found,
    Grid,
    Warped,
    can_find,
    find_ngp,
    find_ngp_reference,
    render_ngp,
    render_ngp_reference,
)
from nerftrain.ops.warp import Moves
from nerftrain.types import Contraction, Rays, Thresholds

STILL = HashLevels.geometric(3, 4, 40, 10)
MOVING = HashLevels.geometric(2, 4, 20, 10, (2, 5))
TOLERANCE = {4: 1e-4, 8: 1e-4, 16: 1e-4, 32: 6e-2, 64: 6e-2}  # of bfloat16's eight bits


def field(
    contraction: Contraction = "none",
    moves: bool | str = False,
    stored: torch.dtype = torch.float32,
    num_features: int = 4,
) -> DensityField:
    """Densities that differ by a factor of thousands from place to place."""
    generator = torch.Generator().manual_seed(0)
    grids = [
        Grid(torch.randn(levels.offsets[-1], num_features, generator=generator).to(stored), levels)
        for levels in ((STILL, MOVING) if moves is True else (STILL,))
    ]
    num_inputs = sum(len(grid.levels.resolutions) * num_features for grid in grids)
    weights = [torch.randn(n, k, generator=generator) for n, k in ((16, num_inputs), (5, 16))]
    weights[1][0] *= 0.7
    box = torch.tensor([-1.0, -1, -1, 1, 1.5, 2])
    return DensityField(grids, weights, box, contraction, warp() if moves == "warp" else None)


def warp() -> Warped:
    """A warp with more frequencies of positions than of times, and layers of any width."""
    generator = torch.Generator().manual_seed(2)
    shapes = ((20, 3 * 7 + 5), (12, 20), (3, 12))
    weights = [torch.randn(n, k, generator=generator) * (2 / k) ** 0.5 for n, k in shapes]
    return Warped(weights, Moves(3, 2, 0.2))


def colors(num_channels: int = 3, degree: int = 2) -> ColorField:
    generator = torch.Generator().manual_seed(1)
    shapes = ((16, 4 + degree**2), (num_channels, 16))
    return ColorField([torch.randn(n, k, generator=generator) for n, k in shapes], degree)


def with_times(rays: Rays) -> Rays:
    return replace(rays, times=torch.linspace(0, 1, len(rays)))


def marching(num_rays: int, grid: Occupied, **more: float) -> Marching:
    """Steps so fine that many a ray has more samples than a round."""
    steps = {"step": 0.04, "cone_angle": 0.0, "max_steps": 120} | more
    jitter = torch.rand(num_rays, generator=torch.Generator().manual_seed(3))
    return Marching(jitter, grid, March(**steps))


NONE = Thresholds(0.0, 0.0, 0.0)


def transmittance(found: Found) -> tuple[Tensor, Tensor]:
    """What is left of the light in front of each sample [N], and behind all of each ray's [R]."""
    samples = found.samples
    optical = found.density.double() * (samples.t_ends - samples.t_starts)
    optical = optical.clamp(max=100)  # what is opaque must not swallow the digits of later rays
    passed = torch.cat([optical.new_zeros(1), optical.cumsum(0)])
    first = passed[samples.offsets[:-1]]
    before = torch.exp(first[samples.ray_indices] - passed[:-1])
    return before, torch.exp(first - passed[samples.offsets[1:]])


@pytest.mark.parametrize("contraction", ["none", "l2", "linf"])
@pytest.mark.parametrize("moves", [False, True, "warp"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_densities_are_those_of_the_unfused_ops(
    lanes, make_grid, make_rays, rounded_networks, contraction, moves, stored
):
    how = marching(400, make_grid()), field(contraction, moves, stored), NONE
    rays = with_times(make_rays(400))
    actual = find_ngp(rays, *how, lanes=lanes)
    with rounded_networks() if lanes >= 32 else nullcontext():
        expected = find_ngp_reference(rays, *how)
    samples = march(rays, how[0].jitter, how[0].grid, how[0].settings)
    for name in ("t_starts", "t_ends", "ray_indices", "offsets"):
        assert torch.equal(getattr(actual.samples, name), getattr(samples, name))
    assert actual.num_evaluated == len(samples) > 1000
    assert len(expected.density) == len(samples)  # none lies on a boundary
    ratio = (actual.density + 1e-6) / (expected.density + 1e-6)
    assert float((ratio - 1).abs().mean()) < TOLERANCE[lanes]
    assert actual.sum_alpha == pytest.approx(expected.sum_alpha, rel=0.05 if lanes >= 32 else 1e-3)


@pytest.mark.parametrize("num_features", [2, 4, 8])
@pytest.mark.parametrize("early_stop_eps", [0.02, 0.5])
@pytest.mark.usefixtures("single_precision")
def test_rays_end_where_they_are_opaque_and_not_before(
    make_grid, make_rays, threads, num_features, early_stop_eps
):
    # More than a pool of rays, and more samples of a ray than a round.
    grid = make_grid(share=0.95)
    dense = field(num_features=num_features)
    dense.weights[1][0] *= 4  # so that rays of any field meet something opaque
    what = make_rays(1200), marching(1200, grid), dense
    whole = find_ngp(*what, NONE)
    _, left = transmittance(whole)
    for num_threads in (1, 2, 3):
        threads(num_threads)
        found = find_ngp(*what, Thresholds(early_stop_eps, 0.0, 0.0), everything=True)
        assert found.num_evaluated == len(found.samples) < 0.8 * len(whole.samples)
        counts, all_counts = found.samples.offsets.diff(), whole.samples.offsets.diff()
        before, behind = transmittance(found)
        opaque = behind < early_stop_eps * 1.001
        assert bool(((counts == all_counts) | opaque).all())
        assert bool((opaque | (left >= early_stop_eps * 0.999)).all())
        # What lies behind the sample that makes a ray opaque is less than a round.
        useless = torch.bincount(found.samples.ray_indices[before < early_stop_eps * 0.999])
        assert int(useless.max()) < 8


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("moves", [False, True, "warp"])
@pytest.mark.parametrize("thresholds", [(0.1, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.1)])
def test_samples_that_count_are_found_with_what_was_looked_up_there(
    make_grid, make_rays, threads, moves, thresholds
):
    how = marching(1200, make_grid()), field(moves=moves), Thresholds(*thresholds)
    rays = with_times(make_rays(1200))
    expected = find_ngp_reference(rays, *how, remember=True)
    assert find_ngp(rays, *how).looked_up is None
    everything = find_ngp(rays, *how, everything=True)
    results = []
    for num_threads in (1, 3):
        threads(num_threads)
        found = find_ngp(rays, *how, remember=True)
        at = found.samples
        packed = at.t_starts, at.t_ends, at.ray_indices, at.offsets
        results.append((*packed, found.density, *found.looked_up))
        assert 0 < len(found.samples) < len(everything.samples)
        # A sample at the very threshold may fall to either side.
        assert len(found.samples) == pytest.approx(len(expected.samples), rel=2e-3)
        known = with_key(expected)
        rows = [(known[key], i) for i, key in enumerate(keys(found)) if key in known]
        assert len(rows) > 0.99 * len(found.samples)
        theirs, ours = torch.tensor(rows).T
        for actual, wanted in zip(found.looked_up, expected.looked_up, strict=True):
            torch.testing.assert_close(actual[ours], wanted[theirs], rtol=1e-3, atol=1e-4)
        densities = found.density[ours], expected.density[theirs]
        torch.testing.assert_close(*densities, rtol=1e-3, atol=1e-4)
    for alone, together in zip(*results, strict=True):
        assert torch.equal(alone, together)


def keys(found: Found) -> list[tuple[int, float]]:
    starts = found.samples.t_starts
    return [*zip(found.samples.ray_indices.tolist(), starts.mul(1e3).round().tolist(), strict=True)]


def with_key(found: Found) -> dict[tuple[int, float], int]:
    return {key: i for i, key in enumerate(keys(found))}


def test_rays_without_samples_have_none_that_count(make_rays):
    nothing = pack_grid(torch.zeros(1, 16, 16, 16, dtype=torch.bool), (-1, -1, -1, 1, 1, 1))
    for num_rays in (5, 0):
        how = marching(num_rays, nothing), field(), Thresholds(0.01, 0.0, 0.0)
        found = find_ngp(make_rays(num_rays), *how, remember=True)
        assert found.num_evaluated == found.sum_alpha == len(found.samples) == 0
        assert found.samples.offsets.tolist() == [0] * (num_rays + 1)
        assert [len(kept) for kept in found.looked_up] == [0, 0]


@pytest.mark.usefixtures("single_precision")
def test_numbers_of_other_kinds_go_the_unfused_way(make_grid, make_rays):
    rays, how = make_rays(300), (marching(300, make_grid()), field(), NONE)
    exact = replace(rays, directions=rays.directions.double())
    assert not can_find(exact, how[1])
    found, expected = find_ngp(exact, *how), find_ngp(rays, *how)
    assert len(found.samples) == pytest.approx(len(expected.samples), rel=1e-2)


@pytest.mark.parametrize("contraction", ["none", "linf"])
@pytest.mark.parametrize("moves", [False, True, "warp"])
@pytest.mark.parametrize("num_channels", [3, 5])
def test_what_rays_see_is_what_the_unfused_ops_composite(
    lanes, make_grid, make_rays, rounded_networks, contraction, moves, num_channels
):
    rays = with_times(make_rays(700))
    what = rays, marching(700, make_grid()), field(contraction, moves), colors(num_channels)
    thresholds = Thresholds(0.01, 0.0, 0.0)  # none that a rounded density could cross
    actual = render_ngp(*what, thresholds, lanes)
    with rounded_networks() if lanes >= 32 else nullcontext():
        expected = render_ngp_reference(*what, thresholds)
    assert actual.channels.shape == (700, num_channels)
    assert 0.1 < float(expected.opacity.mean()) < 0.99
    loose = {"rtol": 0.1, "atol": 0.15} if lanes >= 32 else {"rtol": 1e-3, "atol": 1e-3}
    for name in Drawn._fields[:3]:
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), **loose)
    if lanes < 32:
        torch.testing.assert_close(actual.distortion, expected.distortion, rtol=0.01, atol=1e-3)


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize(
    ("num_levels", "steps"),
    [
        (1, {}),
        (1, {"max_samples": 6}),
        (1, {"cone_angle": 0.02}),
        (1, {"step": 0.0, "max_steps": 200}),
        (3, {}),
    ],
)
@pytest.mark.parametrize("early_stop_eps", [0.0, 0.2])
def test_rays_are_marched_to_the_samples_that_a_march_finds(
    lanes, make_grid, make_rays, num_levels, steps, early_stop_eps
):
    torch.ops.nerftrain.use_lanes(min(lanes, 16))
    grid = make_grid(num_levels)
    rays, how = make_rays(2500, reach=2.0 * num_levels), marching(2500, grid, **steps)
    samples, thresholds = march(rays, *how), Thresholds(early_stop_eps, 0.0, 0.0)
    found = find_ngp(rays, how, field(), thresholds, everything=True)
    drawn = render_ngp(rays, how, field(), colors(), thresholds)
    torch.ops.nerftrain.use_lanes(0)
    assert len(samples) > 1000
    counts, all_counts = found.samples.offsets.diff(), samples.offsets.diff()
    # Of each ray those in front, bit for bit.
    place = torch.arange(len(found.samples)) - found.samples.offsets[found.samples.ray_indices]
    rows = samples.offsets[found.samples.ray_indices] + place
    assert bool((counts <= all_counts).all())
    assert torch.equal(found.samples.t_starts, samples.t_starts[rows])
    assert torch.equal(found.samples.t_ends, samples.t_ends[rows])
    assert drawn.num_evaluated == found.num_evaluated == len(found.samples)
    if early_stop_eps == 0:
        assert torch.equal(counts, all_counts)
        opacity = (1 - transmittance(found)[1]).float()
        torch.testing.assert_close(drawn.opacity, opacity, rtol=1e-3, atol=1e-4)
    else:
        assert len(found.samples) < 0.95 * len(samples)


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("num_levels", [1, 2])
def test_rays_of_what_moves_look_in_their_slice_of_time(make_grid, make_rays, num_levels):
    grid, rays = make_grid(num_levels), with_times(make_rays(600))
    live = torch.rand(4, num_levels, *[grid.side // 2] * 3) < 0.5
    how = marching(600, slice_grid(grid, live)), field(moves=True)
    samples = march(rays, *how[0])
    assert 1000 < len(samples) < 0.7 * len(march(rays, how[0].jitter, grid, how[0].settings))
    found = find_ngp(rays, *how, NONE)
    for name in ("t_starts", "t_ends", "ray_indices", "offsets"):
        assert torch.equal(getattr(found.samples, name), getattr(samples, name))
    thresholds = Thresholds(0.01, 0.0, 0.0)
    actual = render_ngp(rays, *how, colors(), thresholds)
    expected = render_ngp_reference(rays, *how, colors(), thresholds)
    for name in ("channels", "opacity", "depth"):
        close = {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), **close)


@pytest.mark.usefixtures("single_precision")
def test_rays_of_many_stretches_are_rendered_whole(make_rays, chequered):
    rays, how = make_rays(600, reach=1.5), marching(600, chequered, step=0.004, max_steps=1000)
    what = rays, how, field(), colors(), Thresholds(0.0, 0.0, 0.0)
    actual, expected = render_ngp(*what), render_ngp_reference(*what)
    torch.testing.assert_close(actual.opacity, expected.opacity, rtol=1e-3, atol=2e-3)


@pytest.mark.usefixtures("single_precision")
def test_samples_that_are_not_seen_are_left_out_of_what_rays_see(make_grid, make_rays, threads):
    what = make_rays(900), marching(900, make_grid()), field(), colors()
    whole = render_ngp(*what, Thresholds(0.0, 0.0, 0.0))
    images = []
    for thresholds in (Thresholds(0.0, 0.3, 0.0), Thresholds(0.0, 0.0, 0.2)):
        for num_threads in (1, 3):
            threads(num_threads)
            images.append(render_ngp(*what, thresholds))
        expected = render_ngp_reference(*what, thresholds)
        near = (images[-1].opacity - expected.opacity).abs() < 1e-3
        # A sample at the very threshold may fall to either side.
        assert float(near.float().mean()) > 0.98
        torch.testing.assert_close(
            images[-1].channels[near], expected.channels[near], rtol=1e-3, atol=1e-3
        )
        assert float(images[-1].opacity.mean()) < float(whole.opacity.mean()) - 0.01
    assert torch.equal(images[0].channels, images[1].channels)  # whatever the threads


def test_rays_without_samples_see_nothing_at_all(make_rays):
    nothing = pack_grid(torch.zeros(1, 16, 16, 16, dtype=torch.bool), (-1, -1, -1, 1, 1, 1))
    what = field(), colors(), Thresholds(0.01, 0.0, 0.0)
    drawn = render_ngp(make_rays(5), marching(5, nothing), *what)
    assert render_ngp(make_rays(0), marching(0, nothing), *what).channels.shape == (0, 3)
    assert drawn.channels.tolist() == [[0.0] * 3] * 5
    for name in Drawn._fields[1:4]:
        assert getattr(drawn, name).tolist() == [0.0] * 5


@pytest.mark.parametrize("moves", [True, "warp"])
def test_what_moves_without_times_is_refused(make_grid, make_rays, moves):
    with pytest.raises(RuntimeError, match="needs a time for each ray"):
        find_ngp(make_rays(50), marching(50, make_grid()), field(moves=moves), NONE)


def test_a_warp_of_other_widths_is_refused(make_grid, make_rays):
    first, *rest = warp().weights
    for weights in ([first[:, :-1], *rest], [first, rest[0]]):
        other = field()._replace(warped=Warped(weights, Moves(3, 2, 0.2)))
        with pytest.raises(RuntimeError, match="frequencies"):
            find_ngp(with_times(make_rays(50)), marching(50, make_grid()), other, NONE)


@pytest.mark.usefixtures("single_precision")
def test_frequencies_of_places_far_outside_are_as_exact(make_grid, make_rays):
    moving = field(moves="warp")
    small = moving._replace(box=torch.tensor([0.4, 0.4, 0.4, 0.6, 0.6, 0.6]))
    rays, how = with_times(make_rays(400)), marching(400, make_grid())
    actual, expected = find_ngp(rays, how, small, NONE), find_ngp_reference(rays, how, small, NONE)
    ratio = (actual.density + 1e-6) / (expected.density + 1e-6)
    assert float((ratio - 1).abs().median()) < 1e-4
