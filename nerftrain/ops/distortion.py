"""How spread out the weights along rays are (mip-NeRF 360, arXiv:2111.12077, eq. 15).

distortion = sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 d_i, with the intervals' midpoints m_i and
lengths d_i, in time linear in the samples (DVGOv2, arXiv:2206.05085, eq. 6).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerftrain.ops import library


def distortion_reference(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    """Measure by torch, ray after ray and pair by pair (see `distortion`)."""
    middle = (starts + ends) / 2
    rays = []
    for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        w, m, d = weights[first:last], middle[first:last], (ends - starts)[first:last]
        pairs = w[:, None] * w[None, :] * (m[:, None] - m[None, :]).abs()
        rays.append(pairs.sum() + (w.square() * d).sum() / 3)
    return torch.stack(rays) if rays else weights.new_empty(0)


@library.fake("distortion_fwd")
def _distortion_fwd_fake(weights: Tensor, _s: Tensor, _e: Tensor, offsets: Tensor) -> Tensor:
    return weights.new_empty(offsets.shape[0] - 1)


@library.fake("distortion_bwd")
def _distortion_bwd_fake(weights: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(weights)


class _Distortion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *packed: Tensor) -> Tensor:
        ctx.save_for_backward(*packed)
        return torch.ops.nerftrain.distortion_fwd(*packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_distortion: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v_weights = torch.ops.nerftrain.distortion_bwd(
            *ctx.saved_tensors, v_distortion.contiguous()
        )
        return (
            v_weights,
            None,  # starts
            None,  # ends
            None,  # offsets
        )


def distortion(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    """Measure how spread out packed weights [N] over intervals [N] are, ray by ray: [R].

    Gradients flow to the weights. The unit is that of the intervals' ends; offsets [R + 1] tell
    which samples a ray owns. Float32 and float64.
    """
    packed = (weights, starts, ends, offsets)
    if not library.native(*packed):
        return distortion_reference(*packed)
    numbers = [t.to(weights.dtype).contiguous() for t in packed[:3]]
    return _Distortion.apply(*numbers, offsets.contiguous())
