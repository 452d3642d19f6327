"""Rays' colours over what lies behind them, and how far they are from those they should have.

    c + (1 - opacity) b,  and Huber's loss: e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2)
with e = c - target.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nerftrain.ops import library

FLOATS = (torch.float32, torch.float64)


def over_background_reference(channels: Tensor, opacity: Tensor, background: Tensor) -> Tensor:
    """Lay over a background by torch (see `over_background`)."""
    return channels + torch.addcmul(background, opacity[:, None], background, value=-1)


def color_error_reference(
    prediction: Tensor, target: Tensor, whole: Tensor | None, delta: float
) -> Tensor:
    """Average by torch (see `color_error`)."""
    if math.isinf(delta):
        error = 0.5 * functional.mse_loss(prediction, target, reduction="none")
    else:
        error = functional.huber_loss(prediction, target, reduction="none", delta=delta)
    if whole is None:
        return error.sum() / max(error.numel(), 1)
    return torch.where(whole, error.mean(1), 0.0).sum() / whole.sum().clamp(min=1)


@library.fake("over_background_fwd")
def _over_background_fwd_fake(channels: Tensor, *_: Tensor) -> Tensor:
    return channels.new_empty(channels.shape)


@library.fake("over_background_bwd")
def _over_background_bwd_fake(background: Tensor, _v_colors: Tensor) -> Tensor:
    return background.new_empty(background.shape[0])


@library.fake("color_error")
def _color_error_fake(prediction: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return prediction.new_empty(prediction.shape[0]), prediction.new_empty(prediction.shape)


class _OverBackground(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, channels: Tensor, opacity: Tensor, background: Tensor) -> Tensor:
        ctx.save_for_backward(background)
        return torch.ops.nerftrain.over_background_fwd(channels, opacity, background)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (background,) = ctx.saved_tensors
        v_opacity = torch.ops.nerftrain.over_background_bwd(background, v_colors.contiguous())
        return (
            v_colors,
            v_opacity,
            None,  # background
        )


class _ColorError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        target: Tensor,
        whole: Tensor,
        num_whole: Tensor,
        delta: float,
    ) -> Tensor:
        inputs = prediction, target, whole, num_whole, delta
        share, v_prediction = torch.ops.nerftrain.color_error(*inputs)
        ctx.save_for_backward(v_prediction)
        return share.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_error: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (v_prediction,) = ctx.saved_tensors
        return (
            v_prediction * v_error,
            None,  # target
            None,  # whole
            None,  # num_whole
            None,  # delta
        )


def over_background(channels: Tensor, opacity: Tensor, background: Tensor) -> Tensor:
    """Lay what rays see, colours [R, 3] of an opacity [R], over a background: [R, 3].

    Differentiable. Where the background [R, 3] or [3] is one colour, asks for gradients or is of
    another precision, torch computes it.
    """
    tensors = channels, opacity, background
    alike = channels.dtype in FLOATS and all(t.dtype == channels.dtype for t in tensors)
    rows = channels.shape[:1]
    alike = alike and channels.shape == background.shape == (*rows, 3) and opacity.shape == rows
    asked = torch.is_grad_enabled() and background.requires_grad
    if asked or not alike or not library.native(*tensors):
        return over_background_reference(*tensors)
    return _OverBackground.apply(*(t.contiguous() for t in tensors))


def color_error(prediction: Tensor, target: Tensor, whole: Tensor | None, delta: float) -> Tensor:
    """Average Huber's loss of colours [R, 3], of those rays alone that are `whole` [R] bool: [].

    An infinite delta makes it half the squared error. Differentiable; where the target asks for
    gradients torch computes them. No rays give zero.
    """
    counted = [] if whole is None else [whole]
    rows = prediction.shape[:1]
    alike = prediction.dtype in FLOATS and target.dtype == prediction.dtype
    alike = alike and prediction.shape == target.shape == (*rows, 3)
    alike = alike and all(each.shape == rows for each in counted)
    asked = torch.is_grad_enabled() and target.requires_grad
    if asked or not alike or not library.native(prediction, target, *counted):
        return color_error_reference(prediction, target, whole, delta)
    colors = prediction.contiguous(), target.contiguous()
    if whole is not None:
        return _ColorError.apply(*colors, whole.contiguous(), whole.sum(), delta)
    none = (prediction.new_empty(0, dtype=dtype) for dtype in (torch.bool, torch.int64))
    return _ColorError.apply(*colors, *none, delta)
