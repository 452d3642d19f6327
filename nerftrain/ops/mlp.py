"""A small MLP: bias-free linear layers with ReLU between them.

On the CPU they are fused over tiles of samples, for the library products of such thin layers run at
a tenth of a CPU's rate; on CUDA these products are what serves. Where a CPU multiplies bfloat16
numbers (`runtime.cpu_isa`), what goes into a product is rounded to them; sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nerftrain.ops import library

# The best instruction set that this CPU has; CPU_ISA of ops/library.py has the others.
BEST = 0


def mlp_reference(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Evaluate by torch (see `mlp`)."""
    for i, weight in enumerate(weights):
        x = functional.linear(x if i == 0 else x.relu(), weight)
    return x


@library.fake("mlp_fwd")
def _mlp_fwd_fake(x: Tensor, _weights: Tensor, widths: list[int], _lanes: int) -> Tensor:
    return x.new_empty(x.shape[0], widths[-1])


@library.fake("mlp_bwd")
def _mlp_bwd_fake(x: Tensor, weights: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weights)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, widths: list[int], lanes: int) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.shape = widths, lanes
        return torch.ops.nerftrain.mlp_fwd(x, weights, widths, lanes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_y: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v_x, v_weights = torch.ops.nerftrain.mlp_bwd(
            *ctx.saved_tensors, v_y.contiguous(), *ctx.shape
        )
        return (
            v_x,
            v_weights,
            None,  # widths
            None,  # lanes
        )


def mlp(x: Tensor, weights: Sequence[Tensor], lanes: int = BEST) -> Tensor:
    """Evaluate layers of weights [out, in] with ReLU between them.

    They turn x [N, in of the first] into [N, out of the last]. Numbers in float32 on the CPU go
    through the fused kernels, if there are at most eight layers; else torch serves.
    """
    fused = library.on_cpu(x) and x.dtype == torch.float32 and len(weights) <= 8
    if not fused or not library.native(x):
        return mlp_reference(x, weights)
    return _Mlp.apply(x.contiguous(), flat(weights), widths(weights), lanes)


def flat(weights: Sequence[Tensor]) -> Tensor:
    """Lay the weights [out, in] of layers side by side, as the compiled ops read them."""
    return torch.cat([weight.reshape(-1) for weight in weights])


def unflat(numbers: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Undo `flat`, for weights of these shapes."""
    parts = numbers.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def widths(weights: Sequence[Tensor]) -> list[int]:
    """List the numbers of inputs, of each hidden layer and of outputs."""
    return [weights[0].shape[1], *(weight.shape[0] for weight in weights)]
