"""The fused visit of Instant-NGP's densities: against the unfused one, sample by sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerftrain.ops.hash_encoding import HashLevels
from nerftrain.ops.march import Grid as Occupied
from nerftrain.ops.march import March, Marching, march, pack_grid
from nerftrain.ops.visit import UNSEEN, Visited
from nerftrain.ops.visit_ngp import (
    ColorField,
    DensityField,
    Drawn,
    Grid,
    render_ngp,
    render_ngp_reference,
    visit_ngp,
    visit_ngp_reference,
)
from nerftrain.types import Contraction, Rays, Samples, Thresholds

STILL = HashLevels.geometric(3, 4, 40, 10)
MOVING = HashLevels.geometric(2, 4, 20, 10, (2, 5))
TOLERANCE = {4: 1e-4, 8: 1e-4, 16: 1e-4, 32: 6e-2}  # of bfloat16's eight bits


def field(
    contraction: Contraction = "none",
    moves: bool = False,
    stored: torch.dtype = torch.float32,
    num_features: int = 4,
) -> DensityField:
    """Densities that differ by a factor of thousands from place to place."""
    generator = torch.Generator().manual_seed(0)
    grids = [
        Grid(torch.randn(levels.offsets[-1], num_features, generator=generator).to(stored), levels)
        for levels in ((STILL, MOVING) if moves else (STILL,))
    ]
    num_inputs = sum(len(grid.levels.resolutions) * num_features for grid in grids)
    weights = [torch.randn(n, k, generator=generator) for n, k in ((16, num_inputs), (5, 16))]
    weights[1][0] *= 0.7
    return DensityField(grids, weights, torch.tensor([-1.0, -1, -1, 1, 1.5, 2]), contraction)


def colors(num_channels: int = 3, degree: int = 2) -> ColorField:
    generator = torch.Generator().manual_seed(1)
    shapes = ((16, 4 + degree**2), (num_channels, 16))
    return ColorField([torch.randn(n, k, generator=generator) for n, k in shapes], degree)


def along(samples: Samples, make_rays) -> Rays:
    num_rays = len(samples.offsets) - 1
    rays = make_rays(num_rays)
    return replace(rays, times=torch.linspace(0, 1, num_rays))


def assert_equal(actual: Visited, expected: Visited, tolerance: float) -> None:
    """What both have asked for is the same, and both have asked for all that can be seen."""
    both = (actual.density != UNSEEN) & (expected.density != UNSEEN)
    ratio = (actual.density[both] + 1e-6) / (expected.density[both] + 1e-6)
    assert float((ratio - 1).abs().mean()) < tolerance
    assert actual.num_evaluated == int((actual.density != UNSEEN).sum()) == int(actual.num.sum())


@pytest.mark.parametrize("contraction", ["none", "l2", "linf"])
@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_densities_are_those_of_the_unfused_ops(
    lanes, make_samples, make_rays, contraction, moves, stored
):
    samples = make_samples(num_rays=400)
    what = (along(samples, make_rays), samples, field(contraction, moves, stored))
    actual, expected = visit_ngp(*what, 0.0, lanes), visit_ngp_reference(*what, 0.0)
    assert UNSEEN not in actual.density  # no ray is ever opaque to a threshold of zero
    assert_equal(actual, expected, TOLERANCE[lanes])
    assert torch.equal(actual.num, samples.offsets.diff())
    if lanes < 32:
        for name in ("transmittance", "sum_alpha"):
            torch.testing.assert_close(
                getattr(actual, name), getattr(expected, name), rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("num_features", [2, 4, 8])
@pytest.mark.parametrize("early_stop_eps", [0.02, 0.5])
@pytest.mark.usefixtures("single_precision")
def test_rays_end_where_they_are_opaque_and_not_before(
    make_samples, make_rays, threads, num_features, early_stop_eps
):
    samples = make_samples(num_rays=1200, longest=70)  # more than a pool of rays and a round
    what = (along(samples, make_rays), samples, field(num_features=num_features))
    whole = visit_ngp(*what, 0.0)
    for num_threads in (1, 2, 3):
        threads(num_threads)
        visited = visit_ngp(*what, early_stop_eps)
        assert_equal(visited, whole, 1e-6)
        assert 0 < visited.num_evaluated < 0.8 * len(samples)
        for ray in range(1200):
            first, last = samples.offsets[ray : ray + 2].tolist()
            seen = visited.density[first:last] != UNSEEN
            num = int(visited.num[ray])
            assert bool(seen[:num].all())
            assert not seen[num:].any()
            left = transmittance(samples, whole.density, first, first + num)
            assert float(visited.transmittance[ray]) == pytest.approx(left, rel=1e-3, abs=1e-6)
            assert num == last - first or left < early_stop_eps * 1.001
            # What lies behind the sample that makes it opaque is less than a round.
            before = max(num - 32, 0)
            assert (
                before == 0
                or transmittance(samples, whole.density, first, first + before)
                >= early_stop_eps * 0.999
            )


def transmittance(samples: Samples, density: Tensor, first: int, last: int) -> float:
    lengths = samples.t_ends[first:last] - samples.t_starts[first:last]
    return float(torch.exp(-(density[first:last] * lengths).double().sum()))


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.usefixtures("single_precision")
def test_what_was_looked_up_is_told_where_that_is_asked_for(
    make_samples, make_rays, threads, moves
):
    samples = make_samples(num_rays=1200, longest=70)
    what = (along(samples, make_rays), samples, field(moves=moves), 0.1)
    assert visit_ngp(*what).looked_up is None
    expected = visit_ngp_reference(*what, remember=True).looked_up
    for num_threads in (1, 3):
        threads(num_threads)
        visited = visit_ngp(*what, remember=True)
        both = (visited.density != UNSEEN) & (expected.rows >= 0)  # rounds end elsewhere
        seen = both.nonzero().squeeze(1)
        assert 0 < len(seen) < len(samples)
        for actual, wanted in zip(visited.looked_up.at(seen), expected.at(seen), strict=True):
            assert actual.shape == wanted.shape
            torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)
        everything = torch.arange(len(samples))
        assert visited.looked_up.at(everything) is expected.at(everything) is None
        assert visited.looked_up.at(everything[:0])[1].shape[0] == 0


def test_rays_without_samples_see_nothing(make_rays):
    none = torch.zeros(0)
    samples = Samples(none, none, none.long(), torch.zeros(6, dtype=torch.int64))
    visited = visit_ngp(make_rays(5), samples, field(), 0.01)
    assert visited.num_evaluated == 0
    assert visited.transmittance.tolist() == [1.0] * 5
    assert visited.sum_alpha.tolist() == visited.num.tolist() == [0] * 5


@pytest.mark.usefixtures("single_precision")
def test_numbers_of_other_kinds_go_the_unfused_way(make_samples, make_rays):
    samples = make_samples()
    rays = along(samples, make_rays)
    exact = replace(samples, t_starts=samples.t_starts.double(), t_ends=samples.t_ends.double())
    visited = visit_ngp(rays, exact, field(), 0.0)
    assert visited.density.dtype == torch.float64
    assert_equal(visited, visit_ngp(rays, samples, field(), 0.0), 1e-2)


def marching(num_rays: int, grid: Occupied, **more: float) -> Marching:
    """Steps so fine that many a ray has more samples than a round."""
    steps = {"step": 0.04, "cone_angle": 0.0, "max_steps": 120} | more
    jitter = torch.rand(num_rays, generator=torch.Generator().manual_seed(3))
    return Marching(jitter, grid, March(**steps))


@pytest.mark.parametrize("contraction", ["none", "linf"])
@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("num_channels", [3, 5])
def test_what_rays_see_is_what_the_unfused_ops_composite(
    lanes, make_grid, make_rays, contraction, moves, num_channels
):
    rays = replace(make_rays(700), times=torch.linspace(0, 1, 700))
    what = rays, marching(700, make_grid()), field(contraction, moves), colors(num_channels)
    thresholds = Thresholds(0.01, 0.0, 0.0)  # none that a rounded density could cross
    actual = render_ngp(*what, thresholds, lanes)
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
    samples = march(rays, *how)
    what = field(), colors(), Thresholds(early_stop_eps, 0.0, 0.0)
    actual, visited = (
        render_ngp(rays, how, *what),
        visit_ngp(rays, samples, field(), early_stop_eps),
    )
    torch.ops.nerftrain.use_lanes(0)
    opaque = 1 - visited.transmittance  # of all visited, some of them behind where the ray ends
    assert len(samples) > 1000
    if early_stop_eps == 0:
        assert actual.num_evaluated == len(samples)
        torch.testing.assert_close(actual.opacity, opaque, rtol=1e-3, atol=1e-4)
    else:
        assert actual.num_evaluated < 0.9 * len(samples)
        assert bool((actual.opacity <= opaque + 1e-4).all())
        assert bool((actual.opacity >= torch.minimum(opaque, torch.tensor(0.8)) - 1e-3).all())


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


def test_a_grid_over_time_without_times_is_refused(make_samples, make_rays):
    samples = make_samples()
    rays = make_rays(len(samples.offsets) - 1)
    with pytest.raises(RuntimeError, match="needs a time for each ray"):
        visit_ngp(rays, samples, field(moves=True), 0.1)
