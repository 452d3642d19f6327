"""Compositing of packed samples: colour and other channels, opacity, depth, distortion.

    alpha_i = 1 - exp(-sigma_i dt_i),  T_i = prod_{j<i} (1 - alpha_j)
    w_i = T_i alpha_i,  out = sum_i w_i c_i
(NeRF, arXiv:2003.08934, eq. 3), and the distortion of mip-NeRF 360 (arXiv:2111.12077, eq. 15) with
distances as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nerftrain.checks import check_field
from nerftrain.ops import library
from nerftrain.types import Samples


class Composited(NamedTuple):
    """What rays see; all differentiable with respect to density and channels."""

    channels: Tensor  # [R, K]
    opacity: Tensor  # [R]
    depth: Tensor  # [R] sum of weight times distance
    distortion: Tensor  # [R]
    weights: Tensor  # [N]
    alphas: Tensor  # [N]
    transmittance: Tensor  # [N] in front of each sample


def composite_reference(density: Tensor, channels: Tensor, samples: Samples) -> Composited:
    """Composite by torch (see `composite`), ray after ray padded to the longest."""
    num_rays = samples.offsets.shape[0] - 1
    place = torch.arange(len(samples), device=density.device) - samples.offsets[samples.ray_indices]
    longest = int((samples.offsets[1:] - samples.offsets[:-1]).max()) if num_rays else 0
    at = (samples.ray_indices, place)

    def padded(values: Tensor) -> Tensor:
        return values.new_zeros(num_rays, longest, *values.shape[1:]).index_put(at, values)

    starts, ends = samples.t_starts.to(density), samples.t_ends.to(density)
    dt, middle = padded(ends - starts), padded((starts + ends) * 0.5)
    optical = padded(density) * dt
    # Not cumsum less itself: behind something opaque that leaves nothing of the small terms before
    # it.
    before = functional.pad(optical, (1, 0)).cumsum(1)[:, :-1]
    transmittance, alphas = torch.exp(-before), 1 - torch.exp(-optical)  # [R, longest]
    weights = transmittance * alphas
    pairs = (
        weights[:, :, None] * weights[:, None, :] * (middle[:, :, None] - middle[:, None, :]).abs()
    )
    distortion = pairs.sum((1, 2)) + (weights.square() * dt).sum(1) / 3
    return Composited(
        channels=(weights[..., None] * padded(channels)).sum(1),
        opacity=weights.sum(1),
        depth=(weights * middle).sum(1),
        distortion=distortion,
        weights=weights[at],
        alphas=alphas[at],
        transmittance=transmittance[at],
    )


@library.fake("composite_fwd")
def _composite_fwd_fake(
    density: Tensor, channels: Tensor, _s: Tensor, _e: Tensor, offsets: Tensor
) -> tuple[Tensor, ...]:
    rays, make = offsets.shape[0] - 1, density.new_empty
    return (
        make(rays, channels.shape[1]),
        make(rays),
        make(rays),
        make(rays),
        torch.empty_like(density),
        torch.empty_like(density),
        torch.empty_like(density),
    )


@library.fake("composite_bwd")
def _composite_bwd_fake(density: Tensor, channels: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(density), torch.empty_like(channels)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, channels: Tensor, *packed: Tensor) -> tuple[Tensor, ...]:
        out = torch.ops.nerftrain.composite_fwd(density, channels, *packed)
        _channels, opacity, depth, _distortion, weights, _alphas, transmittance = out
        ctx.save_for_backward(density, channels, *packed, weights, transmittance, opacity, depth)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        none = ctx.saved_tensors[0].new_empty(0)
        v = [none if grad is None else grad.contiguous() for grad in grads]
        v_density, v_channels = torch.ops.nerftrain.composite_bwd(*ctx.saved_tensors, *v)
        return (
            v_density,
            v_channels,
            None,  # t_starts
            None,  # t_ends
            None,  # offsets
        )


def composite(density: Tensor, channels: Tensor, samples: Samples) -> Composited:
    """Composite density [N] and channels [N, K] along their rays.

    Gradients flow to density and channels, not to the intervals. Float32 and float64, other numbers
    become float32; an empty ray gives zeros. A ray's results do not depend on what others hold; on
    a GPU float32 is rounded by where among all samples those of a ray lie. Raises UserError for
    density and channels of other shapes.
    """
    check_field(len(samples), density, channels)
    density = density if density.dtype == torch.float64 else density.float()
    channels = channels.to(density.dtype)
    if not library.native(density, channels, samples.offsets):
        return composite_reference(density, channels, samples)
    numbers = (t.to(density.dtype) for t in (density, channels, samples.t_starts, samples.t_ends))
    inputs = [t.contiguous() for t in (*numbers, samples.offsets)]
    return Composited(*_Composite.apply(*inputs))
