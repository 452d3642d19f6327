"""Histograms along rays, as proposal and hierarchical samplers use them.

A histogram has edges s_0 <= ... <= s_S and weights w_i of the bins [s_i, s_{i+1}].
Inverse transform sampling: NeRF, arXiv:2003.08934, section 5.2. Interlevel loss: mip-NeRF 360,
arXiv:2111.12077, eq. 13.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nerftrain.ops import library

EPS = 1e-7  # of eq. 13's division alone: empty bins of the fine histogram ask for nothing


def invert_cdf_reference(
    edges: Tensor, weights: Tensor, jitter: Tensor, num_intervals: int, padding: float
) -> Tensor:
    """Draw intervals by torch (see `invert_cdf`)."""
    masses = weights.nan_to_num(0.0).clamp(min=0) + padding
    masses = torch.where(masses.sum(-1, keepdim=True) > 0, masses, torch.ones_like(masses))
    cumulated = functional.pad(masses.cumsum(-1), (1, 0))  # [R, S + 1]
    k = torch.arange(num_intervals + 1, device=edges.device)
    target = (k + jitter[:, None]) / (num_intervals + 1) * cumulated[:, -1:]
    bins = torch.searchsorted(cumulated[:, 1:-1].contiguous(), target.contiguous())
    left, mass = cumulated.gather(-1, bins), masses.gather(-1, bins)
    share = ((target - left) / mass.clamp(min=1e-30)).clamp(0, 1)
    return torch.lerp(edges.gather(-1, bins), edges.gather(-1, bins + 1), share)


def interlevel_loss_reference(
    edges: Tensor, weights: Tensor, coarse_edges: Tensor, coarse_weights: Tensor
) -> Tensor:
    """Measure by torch (see `interlevel_loss`)."""
    last = coarse_weights.shape[-1]
    cumulated = functional.pad(coarse_weights.cumsum(-1), (1, 0))
    inner = coarse_edges[:, 1:-1].contiguous()
    low = torch.searchsorted(inner, edges[:, :-1].contiguous(), right=True)
    high = torch.searchsorted(coarse_edges[:, :-1].contiguous(), edges[:, 1:].contiguous())
    # The bin in which it starts at least: a fine bin may have no length.
    high = torch.maximum(high, low + 1).clamp(max=last)
    bound = cumulated.gather(-1, high) - cumulated.gather(-1, low)
    weights = weights.detach()
    return ((weights - bound).clamp(min=0).square() / (weights + EPS)).sum(-1)


@library.fake("invert_cdf")
def _invert_cdf_fake(edges: Tensor, _w: Tensor, _j: Tensor, num: int, _padding: float) -> Tensor:
    return edges.new_empty(edges.shape[0], num + 1)


@library.fake("interlevel_fwd")
def _interlevel_fwd_fake(edges: Tensor, *_: Tensor) -> Tensor:
    return edges.new_empty(edges.shape[0])


@library.fake("interlevel_bwd")
def _interlevel_bwd_fake(_e: Tensor, _w: Tensor, _c: Tensor, weights: Tensor, _v: Tensor) -> Tensor:
    return torch.empty_like(weights)


class _Interlevel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *histograms: Tensor) -> Tensor:
        ctx.save_for_backward(*histograms)
        return torch.ops.nerftrain.interlevel_fwd(*histograms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_loss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v_coarse = torch.ops.nerftrain.interlevel_bwd(*ctx.saved_tensors, v_loss.contiguous())
        return (
            None,  # edges
            None,  # weights
            None,  # coarse_edges
            v_coarse,
        )


@torch.no_grad()
def invert_cdf(
    edges: Tensor, weights: Tensor, jitter: Tensor, num_intervals: int, padding: float = 0.0
) -> Tensor:
    """Draw intervals where histograms have their mass: edges [R, num_intervals + 1], ascending.

    There is no gradient. A histogram without any mass is taken as even over its bins.

    Args:
        edges: [R, S + 1], ascending.
        weights: [R, S] of the bins; negative ones and NaN count as zero.
        jitter: [R] in 0..1, the share of a quantile by which each ray's edges are shifted.
        num_intervals: of every ray.
        padding: added to every weight, so that no bin is never looked at.
    """
    if not library.native(edges, weights, jitter):
        return invert_cdf_reference(edges, weights, jitter, num_intervals, padding)
    inputs = [t.to(edges.dtype).contiguous() for t in (edges, weights, jitter)]
    return torch.ops.nerftrain.invert_cdf(*inputs, num_intervals, padding)


def interlevel_loss(
    edges: Tensor, weights: Tensor, coarse_edges: Tensor, coarse_weights: Tensor
) -> Tensor:
    """Measure by how much coarse histograms fail to bound fine ones: [R].

    Gradients flow to the coarse weights alone. Where the fine bins reach beyond the coarse ones,
    the outermost coarse bin stands for what is not there.

    Args:
        edges: [R, S + 1] of the fine histograms.
        weights: [R, S].
        coarse_edges: [R, P + 1].
        coarse_weights: [R, P].
    """
    histograms = (edges, weights, coarse_edges, coarse_weights)
    if not library.native(*histograms):
        return interlevel_loss_reference(*histograms)
    return _Interlevel.apply(*(t.to(coarse_weights.dtype).contiguous() for t in histograms))
