"""Importance sampling and the search for edges: against their references, and at their limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.ops.importance import (
    sample_importance,
    sample_importance_reference,
    search_edges,
    search_edges_reference,
)

COUNTS = [5, 0, 1, 2, 17, 9, 0]
SAMPLES = [4, 3, 2, 1, 30, 0, 2]


def chunks_of(counts: list[int], device: torch.device) -> Tensor:
    number = torch.tensor(counts, device=device)
    return torch.stack([number.cumsum(0) - number, number], 1)


@pytest.fixture
def histograms(device, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Edges and cdfs that rise everywhere, of different numbers of bins: none, a single edge."""
    steps = torch.rand(2, sum(COUNTS), generator=torch.Generator().manual_seed(0)) + 0.05
    parts = [part.cumsum(1) for part in steps.double().split(COUNTS, dim=1)]
    edges, cdf = torch.cat(parts, 1).to(device, dtype)
    return edges, cdf, chunks_of(COUNTS, device)


def requested(device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    bounds = [n + 1 if n else 0 for n in SAMPLES]
    return chunks_of(SAMPLES, device), chunks_of(bounds, device), sum(SAMPLES), sum(bounds)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_sampling_equals_its_reference(histograms, device, assert_close, share):
    jitter = torch.full((len(COUNTS),), share).to(histograms[0])
    arguments = (*histograms, jitter, *requested(device))
    samples, bounds = sample_importance(*arguments)
    assert samples.count_nonzero() == sum(n for n, c in zip(SAMPLES, COUNTS, strict=True) if c)
    assert_close((samples, bounds), sample_importance_reference(*arguments))


def test_a_cdf_that_does_not_rise_equals_its_reference(histograms, device, assert_close):
    edges, cdf, chunks = histograms
    jitter = torch.full((len(COUNTS),), 0.4).to(edges)
    arguments = (edges, torch.zeros_like(cdf), chunks, jitter, *requested(device))
    assert_close(sample_importance(*arguments), sample_importance_reference(*arguments))


def test_searching_equals_its_reference_at_and_between_edges(histograms, device):
    edges, _, chunks = histograms
    rays = torch.arange(len(SAMPLES), device=device)
    generator = torch.Generator().manual_seed(1)
    values = (torch.rand(sum(SAMPLES), generator=generator) * 6).to(edges)
    values[:3] = edges[:3]
    value_chunks = chunks_of(SAMPLES, device)
    assert len(rays) == len(value_chunks)
    arguments = (edges, chunks, values, value_chunks)
    for ours, theirs in zip(
        search_edges(*arguments), search_edges_reference(*arguments), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.min() >= 0
        assert ours.max() < len(edges)


def test_no_rays_and_no_edges_give_nothing(device):
    numbers, places = torch.zeros(0, device=device), torch.zeros(0, 2, device=device).long()
    out = sample_importance(numbers, numbers, places, numbers, places, places, 0, 0)
    assert [t.shape for t in out] == [(0,), (0,)]
    assert [t.shape for t in search_edges(numbers, places, numbers, places)] == [(0,), (0,)]
    one, none = torch.tensor([[0, 2]], device=device), torch.tensor([[0, 0]], device=device)
    values = torch.ones(2, device=device)
    assert search_edges(numbers, none, values, one)[1].tolist() == [0, 0]


def test_numbers_that_are_none_end_all_the_same(device):
    nan = torch.full((4,), float("nan"), device=device)
    chunks = torch.tensor([[0, 4]], device=device)
    bounds = torch.tensor([[0, 5]], device=device)
    even = torch.arange(4.0, device=device)
    half = torch.full((1,), 0.5, device=device)
    samples, _ = sample_importance(even, nan, chunks, half, chunks, bounds, 4, 5)
    torch.testing.assert_close(samples, torch.tensor([0.375, 1.125, 1.875, 2.625], device=device))
    sample_importance(nan, even, chunks, half, chunks, bounds, 4, 5)
    assert search_edges(nan, chunks, nan, chunks)[1].tolist() == [3] * 4


def test_rounding_leads_no_sample_beyond_its_bin(device, dtype):
    edges = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    edges = edges.sort(1)[0]
    start, end = edges.unbind(1)
    if dtype == torch.float32:
        assert (start + (end - start) > end).any()
    chunks = chunks_of([2] * 1000, device)
    places = chunks_of([1] * 1000, device), chunks_of([2] * 1000, device)
    cdf = torch.tensor([0.0, 1.0], device=device).repeat(1000)
    jitter = torch.ones(1000, device=device)
    for function in (sample_importance, sample_importance_reference):
        samples, _ = function(
            edges.flatten(), cdf.to(edges), chunks, jitter.to(edges), *places, 1000, 2000
        )
        assert (samples <= end).all()
        torch.testing.assert_close(samples, end)
