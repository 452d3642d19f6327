"""A warp field: where positions at times are in a canonical field (D-NeRF, arXiv:2011.13961).

On a GPU frequencies of positions and times, an MLP on tensor cores and the move are one kernel in
half precision (csrc/cuda/warp_field.cu); what learns and what is summed up is float32, and
gradients are scaled as in `ngp_half`. On a CPU the op that follows rays warps (`visit_ngp`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerftrain.ops import library
from nerftrain.ops.mlp import flat, widths
from nerftrain.ops.ngp_half import SCALE, are_near, is_trusted, rounded

# What the kernel is made for (csrc/cuda/warp_field.cu).
WIDTH, DEPTH, MAX_INPUTS = 64, 4, 48


class Moves(NamedTuple):
    """What a warp field is besides its weights."""

    position_frequencies: int  # the largest is 2^this / 2, of positions in -1..1
    time_frequencies: int
    reach: float  # the MLP's outputs are multiplied by it


def warp_half_reference(
    positions: Tensor, times: Tensor, weights: Sequence[Tensor], moves: Moves
) -> Tensor:
    """Move positions by torch, rounding what the kernel rounds (see `warp_half`)."""
    return moved_by(positions, times, weights, moves, rounded)


def moved_by(
    positions: Tensor,
    times: Tensor,
    weights: Sequence[Tensor],
    moves: Moves,
    rounding: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Move positions by torch, with what layers take and their weights rounded as one likes."""
    x = torch.cat(
        [
            *_frequencies(positions * 2 - 1, moves.position_frequencies),
            *_frequencies(times[:, None], moves.time_frequencies),
        ],
        -1,
    )
    for weight in weights[:-1]:
        x = (rounding(x) @ rounding(weight).T).relu()
    return positions + moves.reach * (rounding(x) @ rounding(weights[-1]).T)


def _frequencies(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    angles = (x[:, None, :] * 2.0 ** torch.arange(count, device=x.device)[:, None]).flatten(1)
    return x, angles.sin(), angles.cos()


@library.fake("warp_half_fwd")
def _warp_half_fwd_fake(positions: Tensor, *_: object) -> Tensor:
    return torch.empty_like(positions)


@library.fake("warp_half_bwd")
def _warp_half_bwd_fake(_positions: Tensor, _times: Tensor, weights: Tensor, *_: object) -> Tensor:
    return torch.empty_like(weights)


class _WarpHalf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, moves: Moves, used: Tensor, positions: Tensor, times: Tensor, weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(used, positions, times, weights)
        ctx.moves = moves
        return torch.ops.nerftrain.warp_half_fwd(positions, times, weights, *moves, used)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        used, *inputs = ctx.saved_tensors
        bwd = torch.ops.nerftrain.warp_half_bwd
        return None, None, None, None, bwd(*inputs, v.contiguous(), *ctx.moves, used, SCALE)


def can_do(weights: Sequence[Tensor]) -> bool:
    """Tell whether the kernel is made for an MLP: its device, its number type, its widths."""
    num_inputs, *hidden, num_outputs = widths(weights)
    return (
        library.has_tensor_cores(weights[0], since=(8, 0))
        and all(weight.dtype == torch.float32 for weight in weights)
        and hidden == [WIDTH] * DEPTH
        and num_inputs <= MAX_INPUTS
        and num_outputs == 3
        and library.native(*weights)
        and is_trusted(weights[0].device, agrees)
    )


@torch.enable_grad()
def agrees(device: torch.device) -> bool:
    """Tell whether moves and their gradients are what torch makes of the same roundings."""
    generator = torch.Generator().manual_seed(0)
    positions, times = (torch.rand(150, n, generator=generator).to(device) for n in (3, 1))
    shapes = (WIDTH, 3 * 9 + 9), *[(WIDTH, WIDTH)] * (DEPTH - 1), (3, WIDTH)
    weights = [
        torch.randn(shape, generator=generator).mul((2 / shape[1]) ** 0.5).to(device)
        for shape in shapes
    ]
    weights = [weight.requires_grad_() for weight in weights]
    figures = []
    for evaluate in (warp_half, warp_half_reference):
        moved = evaluate(positions, times[:, 0], weights, Moves(4, 4, 1.0)) - positions
        figures.append([moved.detach(), *torch.autograd.grad(moved.square().mean(), weights)])
    return are_near(*figures)


def warp_half(
    positions: Tensor,
    times: Tensor,
    weights: Sequence[Tensor],
    moves: Moves,
    used: Tensor | None = None,
) -> Tensor:
    """Move positions [N, 3] in 0..1 at times [N] in 0..1 by a warp field: [N, 3].

    Of the inputs only the weights get gradients.

    Args:
        positions: [N, 3], without a gradient.
        times: [N], without a gradient.
        weights: [out, in] of each layer, for which `can_do` says that it can.
        moves: the frequencies, of which the MLP's inputs are made, and the reach.
        used: [.] int64, ends with the number of rows that count: where others go is anything.
    """
    told = positions.new_empty(0, dtype=torch.int64) if used is None else used
    inputs = (t.detach().float().contiguous() for t in (positions, times))
    return _WarpHalf.apply(moves, told, *inputs, flat(weights))
