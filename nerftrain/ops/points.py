"""Where samples lie: r(t) = o + t d (NeRF, arXiv:2003.08934, section 4) at intervals' middles."""

from __future__ import annotations

import torch
from torch import Tensor

from nerftrain.ops import library
from nerftrain.ops.contract import unit_positions
from nerftrain.types import Contraction, Rays

FOLDINGS: tuple[Contraction, ...] = ("none", "l2", "linf")  # by their numbers in points.h


def sample_points_reference(
    rays: Rays, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find positions, directions and times by torch (see `sample_points`)."""
    return rays.at((t_starts + t_ends) * 0.5, ray_indices)


@library.fake("sample_points")
def _sample_points_fake(
    origins: Tensor, _d: Tensor, t_starts: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    num = t_starts.shape[0]
    return origins.new_empty(num, 3), origins.new_empty(num, 3)


def sample_points(
    rays: Rays, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find positions and directions [N, 3], and times [N] or None, in the middle of intervals.

    Where rays or distances ask for gradients, torch computes them.

    Args:
        rays: R rays.
        t_starts: [N] distances along rays.
        t_ends: [N].
        ray_indices: [N] int64, below R.
    """
    inputs = (rays.origins, rays.directions, t_starts, t_ends)
    asked = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    mixed = any(t.dtype != rays.origins.dtype for t in inputs)
    if asked or mixed or not library.native(*inputs, ray_indices):
        return sample_points_reference(rays, t_starts, t_ends, ray_indices)
    packed = (t.contiguous() for t in (*inputs, ray_indices))
    positions, directions = torch.ops.nerftrain.sample_points(*packed)
    return positions, directions, None if rays.times is None else rays.times[ray_indices]


def unit_points_reference(
    rays: Rays,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor,
    aabb: Tensor,
    contraction: Contraction,
) -> Tensor:
    """Find places in the unit cube by torch (see `unit_points`)."""
    positions, _, _ = sample_points_reference(rays, t_starts, t_ends, ray_indices)
    return unit_positions(positions, aabb, contraction)


@library.fake("unit_points")
def _unit_points_fake(origins: Tensor, _d: Tensor, t_starts: Tensor, *_: object) -> Tensor:
    return origins.new_empty(t_starts.shape[0], 3)


@torch.no_grad()
def unit_points(
    rays: Rays,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor,
    aabb: Tensor,
    contraction: Contraction,
) -> Tensor:
    """Find the middles of intervals in the unit cube of `unit_positions`, [N, 3].

    There is no gradient.

    Args:
        rays: R rays.
        t_starts: [N] distances along rays.
        t_ends: [N].
        ray_indices: [N] int64, below R.
        aabb: [6].
        contraction: what folds space beyond the box.
    """
    numbers = (rays.origins, rays.directions, t_starts, t_ends)
    mixed = any(t.dtype != rays.origins.dtype for t in (*numbers, aabb))
    if mixed or not library.native(*numbers, ray_indices, aabb):
        return unit_points_reference(rays, t_starts, t_ends, ray_indices, aabb, contraction)
    packed = (t.contiguous() for t in (*numbers, ray_indices, aabb))
    return torch.ops.nerftrain.unit_points(*packed, FOLDINGS.index(contraction))
