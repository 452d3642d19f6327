"""Sampling along rays by the inverse of a cumulated distribution (NeRF, arXiv:2003.08934, 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from nerftrain.checks import check_packed_info, check_ray_indices, check_shape
from nerftrain.errors import UserError
from nerftrain.nerfacc.data_specs import RayIntervals, RaySamples
from nerftrain.ops.importance import sample_importance, search_edges


def ray_chunks(segments: RayIntervals | RaySamples, num_rays: int | None = None) -> Tensor:
    """Tell where each ray's values begin and how many there are: int64 [n_rays, 2].

    Args:
        segments: batched [..., n], or flattened with packed_info or ascending ray_indices.
        num_rays: how many there are, if only ray_indices tell; by default up to the last one named.

    Raises:
        UserError: neither of the two; one that does not fit the values (what it holds is looked at
            on the CPU only).
    """
    vals = segments.vals
    if vals.dim() > 1:
        return _equal_chunks(vals.shape[:-1].numel(), vals.shape[-1], vals.device)
    if segments.packed_info is not None:
        check_packed_info(segments.packed_info, vals.numel())
        return segments.packed_info.long()
    if segments.ray_indices is None:
        raise UserError("flattened vals belong to no ray: give packed_info or ray_indices")
    check_ray_indices(segments.ray_indices, num_rays)
    check_shape("ray_indices", segments.ray_indices, (vals.numel(),), "a ray for each of vals")
    return _chunks(torch.bincount(segments.ray_indices, minlength=num_rays or 0))


def searchsorted(
    sorted_sequence: RayIntervals | RaySamples, values: RayIntervals | RaySamples
) -> tuple[Tensor, Tensor]:
    """Find sorted_sequence[ids_left] <= values < sorted_sequence[ids_right], ray by ray.

    Both int64 of values' shape. They count from the ray's first entry where values are batched,
    and from the first of all where they are flattened. Values from a ray's last entry on lie
    between its last two; below the first entry both indices are the first. Values may be in any
    order, and only one of the two need be batched.

    Raises UserError where the two are of different numbers of rays.

    Args:
        sorted_sequence: ascending along each ray, batched [n_rays, n] or flattened.
        values: of the same rays, batched [n_rays, m] or flattened.
    """
    keys, queries = _chunks_of_both(sorted_sequence, values)
    kind = _number_type(torch.promote_types(sorted_sequence.vals.dtype, values.vals.dtype))
    edges, looked_up = (t.vals.detach().flatten().to(kind) for t in (sorted_sequence, values))
    left, right = (
        ids.view_as(values.vals) for ids in search_edges(edges, keys, looked_up, queries)
    )
    if values.vals.dim() > 1:
        first = keys[:, 0].clamp(max=max(len(edges) - 1, 0)).view(*values.vals.shape[:-1], 1)
        left, right = left - first, right - first
    return left, right


@torch.no_grad()
def importance_sampling(
    intervals: RayIntervals,
    cdfs: Tensor,
    n_intervals_per_ray: Tensor | int,
    stratified: bool = False,
) -> tuple[RayIntervals, RaySamples]:
    """Draw samples, and intervals about them, where rays have their mass.

    Sample i of n is where the distribution, linear between edges, is (i + 0.5) / n on its way from
    a ray's first edge to its last. Interval edges lie midway between samples, the outermost as far
    away as the next ones but within the ray. A single sample's interval is the whole ray. A ray
    whose cdf does not rise is sampled evenly over its bins. No gradients; float64 stays, other
    types become float32.

    Returns intervals [n_rays, n + 1] and samples [n_rays, n] if n is an int. If it is a tensor,
    both are flattened, with packed_info and ray_indices, intervals with is_left and is_right as
    well, and rays of which none are asked own nothing.

    Raises UserError for a cdf of another size than the edges, and for counts that cannot be.

    Args:
        intervals: edges, batched [n_rays, n_edges] or flattened, ascending along each ray.
        cdfs: the cumulated distribution at the edges, of their shape.
        n_intervals_per_ray: at least 1 as an int, at least 0 in a tensor [n_rays].
        stratified: move all of a ray's samples by the same random share of their quantiles.
    """
    vals = intervals.vals
    if cdfs.numel() != vals.numel():
        raise UserError(f"cdfs {tuple(cdfs.shape)} must be as many as edges {tuple(vals.shape)}")
    counts = n_intervals_per_ray
    chunks = ray_chunks(intervals, counts.numel() if isinstance(counts, Tensor) else None)
    edges, cdf = (t.flatten().to(_number_type(vals.dtype)) for t in (vals, cdfs))
    jitter = edges.new_full((len(chunks),), 0.5)
    if stratified:
        jitter = torch.rand_like(jitter)
    if isinstance(counts, Tensor):
        return _sample_flattened(edges, cdf, chunks, jitter, counts)
    if counts < 1:
        raise UserError(f"n_intervals_per_ray={counts}: must be at least 1")
    rows = tuple(vals.shape[:-1]) if vals.dim() > 1 else (len(chunks),)
    return _sample_batched(edges, cdf, chunks, jitter, (*rows, counts))


def _sample_batched(
    edges: Tensor, cdf: Tensor, chunks: Tensor, jitter: Tensor, shape: tuple[int, ...]
) -> tuple[RayIntervals, RaySamples]:
    *rows, n = shape
    samples_of, bounds_of = (_equal_chunks(len(chunks), m, edges.device) for m in (n, n + 1))
    totals = len(chunks) * n, len(chunks) * (n + 1)
    samples, bounds = sample_importance(edges, cdf, chunks, jitter, samples_of, bounds_of, *totals)
    return RayIntervals(bounds.view(*rows, n + 1)), RaySamples(samples.view(*rows, n))


def _sample_flattened(
    edges: Tensor, cdf: Tensor, chunks: Tensor, jitter: Tensor, counts: Tensor
) -> tuple[RayIntervals, RaySamples]:
    if counts.numel() != len(chunks):
        raise UserError(
            f"n_intervals_per_ray of shape {tuple(counts.shape)}: give one for each of "
            f"{len(chunks)} rays"
        )
    counts = counts.flatten().long()
    samples_of, bounds_of = _chunks(counts), _chunks(counts + (counts > 0))
    # A synchronisation on CUDA: how many there are.
    ends = torch.stack([counts.sum(), bounds_of[:, 1].sum(), counts.clamp(max=0).sum()])
    num_samples, num_bounds, negative = ends.tolist()
    if negative:
        raise UserError("n_intervals_per_ray has negative entries: give 0 where nothing is wanted")
    totals = num_samples, num_bounds
    t, bounds = sample_importance(edges, cdf, chunks, jitter, samples_of, bounds_of, *totals)
    rays = _ray_indices(bounds_of, num_bounds)
    place = torch.arange(num_bounds, device=edges.device) - bounds_of[rays, 0]
    intervals = RayIntervals(bounds, bounds_of, rays, place < bounds_of[rays, 1] - 1, place > 0)
    return intervals, RaySamples(t, samples_of, _ray_indices(samples_of, num_samples))


def _chunks_of_both(
    keys: RayIntervals | RaySamples, queries: RayIntervals | RaySamples
) -> tuple[Tensor, Tensor]:
    """Let the one that tells the number of rays tell it to the one that may not."""
    told = [t for t in (keys, queries) if t.vals.dim() > 1 or t.packed_info is not None]
    num_rays = len(ray_chunks(told[0])) if told else None
    if num_rays is None:
        num_rays = max(len(ray_chunks(t)) for t in (keys, queries))
    chunks = [ray_chunks(t, num_rays) for t in (keys, queries)]
    if len(chunks[0]) != len(chunks[1]):
        raise UserError(
            f"sorted_sequence is of {len(chunks[0])} rays and values of {len(chunks[1])}: "
            "give both of the same rays"
        )
    return chunks[0], chunks[1]


def _number_type(kind: torch.dtype) -> torch.dtype:
    return kind if kind == torch.float64 else torch.float32


def _chunks(counts: Tensor) -> Tensor:
    return torch.stack([counts.cumsum(0) - counts, counts], 1)


def _equal_chunks(num_rays: int, count: int, device: torch.device) -> Tensor:
    starts = torch.arange(num_rays, device=device) * count
    return torch.stack([starts, torch.full_like(starts, count)], 1)


def _ray_indices(chunks: Tensor, total: int) -> Tensor:
    rays = torch.arange(len(chunks), device=chunks.device)
    return rays.repeat_interleave(chunks[:, 1], output_size=total)
