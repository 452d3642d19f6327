"""Where samples lie: r(t) = o + t d (NeRF, arXiv:2003.08934, section 4) at intervals' middles."""

from __future__ import annotations

import torch
from torch import Tensor

from nerftrain.ops import library
from nerftrain.types import Rays


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
