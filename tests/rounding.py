"""Networks rounded as kernels in bfloat16 round them, by torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def rounded(x: Tensor) -> Tensor:
    """Round to bfloat16, and keep the type."""
    return x.float().bfloat16().to(x.dtype)


class Rounded(torch.autograd.Function):
    """To bfloat16; gradients too, or as they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, both: bool) -> Tensor:
        ctx.both = both
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (rounded(v) if ctx.both else v), None


def rounded_mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What goes into a product is rounded, forward and back; sums are not."""
    for number, weight in enumerate(weights):
        x = Rounded.apply(x.relu() if number else x, True) @ Rounded.apply(weight, False).T
    return x
