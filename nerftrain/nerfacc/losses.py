"""Losses on the weights along rays."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nerftrain.errors import UserError
from nerftrain.nerfacc.pack import pack_info
from nerftrain.ops.distortion import distortion as packed_distortion


def distortion(
    weights: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
) -> Tensor:
    """Measure how spread out the weights along rays are: [R, 1], in units of distance.

    Eq. 15 of mip-NeRF 360 (arXiv:2111.12077). Gradients flow to the weights.

    Args:
        weights: [R, n], or [N] flattened, front to back within a ray.
        t_starts: like weights.
        t_ends: like weights.
        ray_indices: [N], non-decreasing, of flattened weights.
        n_rays: R, together with ray_indices.

    Raises:
        UserError: shapes that do not fit.
    """
    if not weights.shape == t_starts.shape == t_ends.shape:
        raise UserError("weights, t_starts and t_ends differ in shape: give [R, n] or [N] each")
    if ray_indices is not None:
        if n_rays is None or ray_indices.shape != weights.shape:
            raise UserError("flattened weights [N] take ray_indices [N] and n_rays: give both")
        offsets = functional.pad(pack_info(ray_indices, n_rays)[:, 1].long().cumsum(0), (1, 0))
    else:
        if weights.dim() != 2:
            raise UserError("weights of shape [N] belong to rays: give ray_indices and n_rays")
        rays, n = weights.shape
        offsets = torch.arange(rays + 1, device=weights.device) * n
    if weights.dtype != torch.float64:
        weights = weights.float()
    weights, t_starts, t_ends = weights.flatten(), t_starts.flatten(), t_ends.flatten()
    return packed_distortion(weights, t_starts, t_ends, offsets)[:, None]
