"""Importance sampling along rays that may own different numbers of edges.

Chunks [R, 2] tell where the things of each ray begin and how many there are. Inverse transform
sampling: NeRF, arXiv:2003.08934, section 5.2. `histogram.invert_cdf` draws edges, for the
project's own samplers; here samples are drawn, and the edges lie midway between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerftrain.ops import library


def _places(chunks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Lay chunks out as rows: indices [R, longest], the last one repeated, and which are owned."""
    starts, counts = chunks[:, :1], chunks[:, 1:]
    number = torch.arange(int(counts.max()) if len(counts) else 0, device=chunks.device)
    places = starts + torch.minimum(number, (counts - 1).clamp(min=0))
    return places.clamp(max=max(size - 1, 0)), number < counts


def sample_importance_reference(
    edges: Tensor,
    cdf: Tensor,
    chunks: Tensor,
    jitter: Tensor,
    sample_chunks: Tensor,
    interval_chunks: Tensor,
    num_samples: int,
    num_bounds: int,
) -> tuple[Tensor, Tensor]:
    """Sample by torch (see `sample_importance`)."""
    samples, bounds = edges.new_zeros(num_samples), edges.new_zeros(num_bounds)
    if not num_samples or not len(edges):
        return samples, bounds
    owned = _places(chunks, len(edges))[0]  # [R, E]
    t, c = edges[owned], cdf[owned]
    last = (chunks[:, 1:] - 1).clamp(min=0)  # [R, 1]
    number = torch.minimum(torch.arange(t.shape[1], device=t.device), last).to(t)
    c = torch.where(c[:, -1:] > c[:, :1], c, number)  # without any mass all bins count alike

    places, kept = _places(sample_chunks, num_samples)  # [R, K]
    n = sample_chunks[:, 1:].clamp(min=1)
    k = torch.arange(places.shape[1], device=t.device)
    u = c[:, :1] + (k + jitter[:, None]) * ((c[:, -1:] - c[:, :1]) / n)
    bins = torch.minimum(torch.searchsorted(c, u, right=True) - 1, last - 1).clamp(min=0)
    following = torch.minimum(bins + 1, last)
    before, mass = c.gather(1, bins), c.gather(1, following) - c.gather(1, bins)
    share = torch.where(mass > 0, ((u - before) / mass).clamp(0, 1), 0.5)
    start, end = t.gather(1, bins), t.gather(1, following)
    drawn = torch.minimum(start + share * (end - start), end)

    middles = (drawn[:, 1:] + drawn[:, :-1]) / 2
    first, second = drawn[:, :1], drawn.gather(1, (n - 1).clamp(max=1))
    final, before_final = drawn.gather(1, n - 1), drawn.gather(1, (n - 2).clamp(min=0))
    single = n == 1
    near = torch.where(single, t[:, :1], (first - (second - first) / 2).maximum(t[:, :1]))
    far = torch.where(single, t[:, -1:], (final + (final - before_final) / 2).minimum(t[:, -1:]))
    rows = torch.cat([near, middles, far], 1).scatter(1, n, far)  # [R, K + 1]

    seen = kept & (chunks[:, 1:] > 0)  # rays without edges stay zero
    samples[places[seen]] = drawn[seen]
    places, kept = _places(interval_chunks, num_bounds)
    seen = kept & (chunks[:, 1:] > 0)
    bounds[places[seen]] = rows[seen]
    return samples, bounds


def search_edges_reference(
    edges: Tensor, chunks: Tensor, values: Tensor, value_chunks: Tensor
) -> tuple[Tensor, Tensor]:
    """Search by torch (see `search_edges`)."""
    left, right = (values.new_empty(len(values), dtype=torch.int64) for _ in range(2))
    if not len(values):
        return left, right
    owned = _places(chunks, len(edges))[0]
    last = (chunks[:, 1:] - 1).clamp(min=0)
    places, kept = _places(value_chunks, len(values))
    following = torch.searchsorted(edges[owned], values[places], right=True).minimum(last)
    first = chunks[:, :1].clamp(max=len(edges) - 1)
    left[places[kept]] = (first + (following - 1).clamp(min=0))[kept]
    right[places[kept]] = (first + following)[kept]
    return left, right


@library.fake("sample_importance")
def _sample_importance_fake(
    edges: Tensor,
    _cdf: Tensor,
    _chunks: Tensor,
    _jitter: Tensor,
    _samples: Tensor,
    _intervals: Tensor,
    num_samples: int,
    num_bounds: int,
) -> tuple[Tensor, Tensor]:
    return edges.new_empty(num_samples), edges.new_empty(num_bounds)


@library.fake("search_edges")
def _search_edges_fake(_e: Tensor, _c: Tensor, values: Tensor, _v: Tensor) -> tuple[Tensor, Tensor]:
    shape, kind = values.shape, torch.int64
    return values.new_empty(shape, dtype=kind), values.new_empty(shape, dtype=kind)


@torch.no_grad()
def sample_importance(
    edges: Tensor,
    cdf: Tensor,
    chunks: Tensor,
    jitter: Tensor,
    sample_chunks: Tensor,
    interval_chunks: Tensor,
    num_samples: int,
    num_bounds: int,
) -> tuple[Tensor, Tensor]:
    """Draw samples [num_samples] and bounds [num_bounds] of the intervals about them, ascending.

    There is no gradient. A single sample's interval is the whole ray; a distribution without any
    mass is taken as even over its bins; a ray without edges has samples and bounds of zero.
    Float32 and float64.

    Args:
        edges: [E], ascending along each ray.
        cdf: [E], the cumulated distribution at the edges; it need not go from 0 to 1.
        chunks: [R, 2] of the edges, int64.
        jitter: [R] in 0..1, where in its share of the distribution each sample lies; 0.5: midway.
        sample_chunks: [R, 2] of the samples.
        interval_chunks: [R, 2] of the bounds: one more than samples, none where there are none.
        num_samples: of all rays.
        num_bounds: of all rays.
    """
    sizes = num_samples, num_bounds
    numbers, places = (edges, cdf, jitter), (chunks, sample_chunks, interval_chunks)
    edges, cdf, jitter = (t.to(edges.dtype).contiguous() for t in numbers)
    chunks, *outputs = (t.contiguous() for t in places)
    arguments = edges, cdf, chunks, jitter, outputs[0], outputs[1]
    if not library.native(*arguments):
        return sample_importance_reference(*arguments, *sizes)
    return torch.ops.nerftrain.sample_importance(*arguments, *sizes)


@torch.no_grad()
def search_edges(
    edges: Tensor, chunks: Tensor, values: Tensor, value_chunks: Tensor
) -> tuple[Tensor, Tensor]:
    """Find edges[left] <= value < edges[right] on each value's ray: left [N], right [N], int64.

    Indices count from the first edge of all. A value beyond the ends of its ray is between the
    outermost edges, save that before the first one both are the first. On a ray without edges both
    are an edge of another ray, or 0 where there are none at all.

    Args:
        edges: [E], ascending along each ray.
        chunks: [R, 2] of the edges, int64.
        values: [N] in any order; of the edges' type.
        value_chunks: [R, 2] of the values.
    """
    arguments = tuple(t.contiguous() for t in (edges, chunks, values, value_chunks))
    if not len(edges):
        nowhere = torch.zeros_like(values, dtype=torch.int64)
        return nowhere, nowhere.clone()
    if not library.native(*arguments):
        return search_edges_reference(*arguments)
    return torch.ops.nerftrain.search_edges(*arguments)
