"""Visiting samples front to back, and leaving samples out."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from nerftrain.ops.visit import (
    UNSEEN,
    Visited,
    next_round,
    next_round_reference,
    select,
    select_in_turn,
    select_reference,
    take,
    take_reference,
    visit,
)
from nerftrain.types import Samples


def densities(samples: Samples, scale: float = 8.0) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(len(samples), generator=generator) * scale).to(samples.t_starts)


def assert_same(one: Samples, other: Samples) -> None:
    for name in ("t_starts", "t_ends", "ray_indices", "offsets"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def field_of(samples: Samples, density: Tensor, asked: list[int]):
    """Give back the densities of samples, found by their ray and start; note how many are asked."""

    def sigma_fn(t_starts: Tensor, _ends: Tensor, ray_indices: Tensor) -> Tensor:
        keys = samples.ray_indices.double() * 1e6 + samples.t_starts.double()
        rows = torch.searchsorted(keys, ray_indices.double() * 1e6 + t_starts.double())
        asked.append(len(rows))
        return density[rows]

    return sigma_fn


@pytest.mark.parametrize("most", [1, 3, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounds_and_what_is_taken_in_equal_the_references(make_samples, most, dtype):
    samples = make_samples(dtype=dtype)
    density = densities(samples)
    density[::7] = -1.0  # counts as zero
    visited = Visited.nothing(samples)
    for _ in range(4):
        now = next_round(samples, visited, 0.05, most)
        assert_same(now, next_round_reference(samples, visited, 0.05, most))
        copied = deepcopy(visited)
        take(samples, visited, now, density[: len(now)])
        take_reference(samples, copied, now, density[: len(now)])
        for name in ("density", "num", "transmittance", "sum_alpha"):
            torch.testing.assert_close(getattr(visited, name), getattr(copied, name))


@pytest.mark.parametrize("most", [1, 4, 100])
def test_every_sample_before_what_stops_a_ray_is_visited_once(make_samples, most):
    samples = make_samples()
    density = densities(samples)
    asked: list[int] = []
    visited = visit(samples, field_of(samples, density, asked), 0.1, most)
    assert visited.num_evaluated == sum(asked) == int(visited.num.sum())
    optical = density * (samples.t_ends - samples.t_starts)
    for r in range(len(samples.offsets) - 1):
        own = slice(int(samples.offsets[r]), int(samples.offsets[r + 1]))
        before = torch.exp(-(optical[own].cumsum(0) - optical[own]))
        seen = before >= 0.1 + 1e-4
        assert (visited.density[own][seen] == density[own][seen]).all()
        stopped = int((before >= 0.1 - 1e-4).sum())
        end = most
        while end < stopped:  # rounds double
            end = 2 * end + most
        assert (visited.density[own][end:] == UNSEEN).all()


def test_without_early_stop_all_are_visited_and_opacities_are_summed(make_samples):
    samples = make_samples()
    density = densities(samples)
    visited = visit(samples, field_of(samples, density, []), 0.0, 5)
    assert torch.equal(visited.density, density)
    alpha = 1 - torch.exp(-density * (samples.t_ends - samples.t_starts))
    torch.testing.assert_close(visited.sum_alpha.sum(), alpha.sum())


def test_no_samples_ask_for_nothing(make_samples):
    samples = make_samples()
    none = select(
        samples, torch.zeros(len(samples), dtype=torch.bool, device=samples.offsets.device)
    )
    visited = visit(none, field_of(none, densities(none), []), 0.1, 4)
    assert len(none) == visited.num_evaluated == 0
    assert torch.equal(none.offsets, torch.zeros_like(samples.offsets))


def test_a_density_that_is_not_a_number_ends_its_ray_alone(make_samples):
    samples = make_samples()
    density = densities(samples, 1.0)
    ray = int(samples.ray_indices[0])
    density[int(samples.offsets[ray])] = float("nan")
    visited = visit(samples, field_of(samples, density, []), 0.01, 2)
    assert visited.transmittance[ray].isnan()
    others = torch.arange(len(samples.offsets) - 1) != ray
    assert visited.transmittance.cpu()[others].isfinite().all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_select_equals_its_reference(make_samples, share):
    samples = make_samples()
    keep = densities(samples, 1.0) < share
    kept, expected = select(samples, keep), select_reference(samples, keep)
    assert_same(kept, expected)
    for picked in (kept.picked, expected.picked):
        if picked is not None:  # a GPU does not say
            assert len(picked.among) == 1
            assert picked.among[0] is samples.t_starts
            assert torch.equal(picked.rows, keep.nonzero().squeeze(1))
            assert torch.equal(samples.t_starts[picked.rows], kept.t_starts)


def test_samples_of_rounds_are_kept_ray_by_ray(make_samples):
    samples = make_samples(longest=60)
    keep = densities(samples, 1.0) < 0.4
    place = torch.arange(len(samples), device=keep.device) - samples.offsets[samples.ray_indices]
    rounds = []
    for now in (place < 7, place >= 7):
        part = select_reference(samples, now)
        rounds.append((part, keep[now]))
    expected = select(samples, keep, room=300)
    kept = select_in_turn(rounds, room=300)
    assert kept.whole is not None
    assert not kept.whole.all()
    assert_same(kept, expected)
    assert kept.picked is not None
    among = torch.cat([part.t_starts for part, _ in rounds])
    used = int(kept.offsets[-1])
    assert torch.equal(among[kept.picked.rows[:used]], kept.t_starts[:used])
