"""Folding all of space into a ball or a cube of radius 2 (mip-NeRF 360, arXiv:2111.12077, eq. 10).

contract(x) = x where |x| <= 1, else (2 - 1 / |x|) x / |x|, with the Euclidean norm ("l2") or the
largest coordinate ("linf", as MERF and nerfacto take it).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerftrain.ops import library
from nerftrain.types import Contraction

Norm = Literal["l2", "linf"]


def contract_reference(positions: Tensor, norm: Norm) -> Tensor:
    """Contract by torch (see `contract`)."""
    # Scaled by the largest coordinate first: the square of 1e30 is no float. Where that is below
    # one the point stays as it is, and its own norm must not be divided by.
    largest = positions.abs().amax(-1, keepdim=True).clamp(min=0.5)
    scaled = positions / largest
    length = scaled.norm(dim=-1, keepdim=True) if norm == "l2" else scaled.abs().amax(-1, True)
    size = largest * length
    far = size > 1
    size = torch.where(far, size, torch.ones_like(size))
    return torch.where(far, (2 - 1 / size) / size * positions, positions)


@library.fake("contract_fwd")
def _contract_fwd_fake(positions: Tensor, _infinity_norm: bool) -> Tensor:
    return torch.empty_like(positions)


@library.fake("contract_bwd")
def _contract_bwd_fake(positions: Tensor, _v_out: Tensor, _infinity_norm: bool) -> Tensor:
    return torch.empty_like(positions)


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, infinity_norm: bool) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.infinity_norm = infinity_norm
        return torch.ops.nerftrain.contract_fwd(positions, infinity_norm)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (positions,) = ctx.saved_tensors
        v_positions = torch.ops.nerftrain.contract_bwd(
            positions, v_out.contiguous(), ctx.infinity_norm
        )
        return (
            v_positions,
            None,  # infinity_norm
        )


def contract(positions: Tensor, norm: Norm) -> Tensor:
    """Contract positions [N, 3], whose unit is the radius of what stays as it is: [N, 3].

    Differentiable. Float32 and float64; any finite position ends within radius 2.
    """
    if not library.native(positions):
        return contract_reference(positions, norm)
    return _Contract.apply(positions.contiguous(), norm == "linf")


def unit_positions(positions: Tensor, aabb: Tensor, contraction: Contraction) -> Tensor:
    """Scale positions [N, 3] to 0..1 on every axis.

    Without contraction that is the box aabb [6]. With it the box's half size is the unit radius
    that stays as it is, and the rim of all space is 0 and 1.
    """
    low, high = aabb[:3], aabb[3:]
    if contraction == "none":
        return (positions - low) / (high - low)
    around = (positions * 2 - (low + high)) / (high - low)
    return contract(around, contraction) * 0.25 + 0.5
