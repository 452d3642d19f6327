"""Instant-NGP's density and colour MLPs (arXiv:2201.05989, section 5.4), fused on the CPU.

    g = density_mlp(features),  density = exp(g_0 - 1)
    channels = color_mlp(g_1.., harmonics(direction)), of which the first three pass the logistic
    function
What lies between features and channels never leaves the cache. Where the CPU multiplies bfloat16
numbers, weights and activations are rounded to them, sums are not: outputs lie within 3 % of the
reference's in the mean, gradients, where terms of either sign cancel, within 10 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerftrain.ops import library
from nerftrain.ops.mlp import BEST, flat, mlp_reference, unflat, widths
from nerftrain.ops.spherical_harmonics import spherical_harmonics

NUM_COLORS = 3
MAX_LAYERS = 8  # kMlpMaxLayers of csrc/cpu/mlp.h


# --------------------------------------------------------------------------------------- references


def ngp_density_reference(features: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Evaluate the density by the unfused ops (see `ngp_density`)."""
    return truncated_exp(mlp_reference(features, weights)[:, 0] - 1)


def ngp_reference(
    features: Tensor,
    directions: Tensor,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    sh_degree: int,
) -> tuple[Tensor, Tensor]:
    """Evaluate channels and density by the unfused ops (see `ngp`)."""
    geometry = mlp_reference(features, density_weights)
    inputs = torch.cat([geometry[:, 1:], spherical_harmonics(directions, sh_degree)], -1)
    raw = mlp_reference(inputs, color_weights)
    colors, others = raw[:, :NUM_COLORS].sigmoid(), raw[:, NUM_COLORS:]
    channels = torch.cat([colors, others], -1) if others.shape[1] else colors
    return channels, truncated_exp(geometry[:, 0] - 1)


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # exp overflows float32 at 88.7; a density beyond exp(80) is opaque all the same.
        return x.clamp(max=80.0).exp()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        # A gradient of exp(15) is the most that training survives (Instant-NGP's code).
        return v * x.clamp(max=15.0).exp()


def truncated_exp(x: Tensor) -> Tensor:
    """Exponentiate in float32 with a gradient that is clamped at exp(15).

    This is the density activation of Instant-NGP.
    """
    return _TruncatedExp.apply(x.float())


# ------------------------------------------------------------------------------------- registration


@library.fake("ngp_density")
def _ngp_density_fake(features: Tensor, *_: object) -> Tensor:
    return features.new_empty(features.shape[0])


@library.fake("ngp_fwd")
def _ngp_fwd_fake(
    features: Tensor,
    _d: Tensor,
    _dw: Tensor,
    _cw: Tensor,
    _widths: list[int],
    widths: list[int],
    *_: int,
) -> tuple[Tensor, Tensor]:
    num = features.shape[0]
    return features.new_empty(num, widths[-1]), features.new_empty(num)


@library.fake("ngp_bwd")
def _ngp_bwd_fake(
    features: Tensor, _d: Tensor, density_weights: Tensor, color_weights: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(t) for t in (features, density_weights, color_weights))  # type: ignore[return-value]


class _Ngp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        directions: Tensor,
        num_density: int,
        sh_degree: int,
        lanes: int,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        networks = weights[:num_density], weights[num_density:]
        inputs = (features, directions, *(flat(network) for network in networks))
        ctx.save_for_backward(*inputs)
        ctx.shape = (*(widths(network) for network in networks), sh_degree, lanes)
        ctx.sizes = [[weight.shape for weight in network] for network in networks]
        return torch.ops.nerftrain.ngp_fwd(*inputs, *ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v = [g.contiguous() for g in grads]
        v_features, *v_networks = torch.ops.nerftrain.ngp_bwd(*ctx.saved_tensors, *v, *ctx.shape)
        parts = zip(v_networks, ctx.sizes, strict=True)
        return (
            v_features,
            None,  # directions
            None,  # num_density
            None,  # sh_degree
            None,  # lanes
            *(v_weight for v_network, sizes in parts for v_weight in unflat(v_network, sizes)),
        )


# --------------------------------------------------------------------------------- public functions


def ngp_density(features: Tensor, weights: Sequence[Tensor], lanes: int = BEST) -> Tensor:
    """Evaluate densities [N] of features [N, F] by the weights [out, in] of the density MLP."""
    if torch.is_grad_enabled() or not _fused(features, weights):
        return ngp_density_reference(features, weights)
    return torch.ops.nerftrain.ngp_density(
        features.contiguous(), flat(weights), widths(weights), lanes
    )


def ngp(
    features: Tensor,
    directions: Tensor,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    sh_degree: int,
    lanes: int = BEST,
) -> tuple[Tensor, Tensor]:
    """Evaluate channels [N, K] and densities [N].

    Fused on the CPU in float32 with at most eight layers a network, where directions ask for no
    gradient; else by the unfused ops.

    Args:
        features: [N, F], encoded positions.
        directions: [N, 3], unit.
        density_weights: [out, in] of each layer, F numbers in, 1 + G out.
        color_weights: [out, in] of each layer, G + sh_degree**2 numbers in, K out.
        sh_degree: 1 to 4, of the directions' harmonics.
        lanes: which instruction set (see `mlp`).
    """
    networks = (density_weights, color_weights)
    fused = _fused(features, density_weights) and _fused(directions, color_weights)
    if directions.requires_grad or not fused:
        return ngp_reference(features, directions, *networks, sh_degree)
    return _Ngp.apply(
        features.contiguous(),
        directions.contiguous(),
        len(density_weights),
        sh_degree,
        lanes,
        *density_weights,
        *color_weights,
    )


def _fused(x: Tensor, weights: Sequence[Tensor]) -> bool:
    fits = library.on_cpu(x) and x.dtype == torch.float32 and len(weights) <= MAX_LAYERS
    return fits and library.native(x)
