"""From whose a sample is to where each ray's samples lie."""

from __future__ import annotations

import torch
from torch import Tensor

from nerftrain.checks import check_ray_indices
from nerftrain.ops.scan import ray_offsets


@torch.no_grad()
def pack_info(ray_indices: Tensor, n_rays: int | None = None) -> Tensor:
    """Find where each ray's chunk of the flattened samples starts and how long it is: [R, 2].

    The result has the integer type of the indices.

    Args:
        ray_indices: [N], non-decreasing, integers.
        n_rays: R; None takes the last ray with a sample for the last of all, for which the host
            waits for the device.

    Raises:
        UserError: indices of another shape or kind; in no order or of no such ray (seen on the CPU
            only).
    """
    check_ray_indices(ray_indices, n_rays)
    if n_rays is None:
        n_rays = int(ray_indices.max()) + 1 if len(ray_indices) else 0
    offsets = ray_offsets(ray_indices, n_rays).to(ray_indices.dtype)
    return torch.stack([offsets[:-1], offsets.diff()], -1)
