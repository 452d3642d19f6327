"""One step of Adam (arXiv:1412.6980, algorithm 1).

Optionally it leaves entries without a gradient alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerftrain.ops import library


@dataclass(frozen=True)
class AdamRates:
    """The rates of one step.

    `skip` leaves entries whose gradient is exactly zero as they are, moments included.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    skip: bool


def adam_reference(
    parameter: Tensor, gradient: Tensor, mean: Tensor, variance: Tensor, rates: AdamRates, step: int
) -> None:
    """Step by torch (see `adam_step`)."""
    keep = gradient == 0 if rates.skip else torch.zeros_like(gradient, dtype=torch.bool)
    g = gradient + rates.weight_decay * parameter
    new_mean = torch.lerp(mean, g, 1 - rates.beta1)
    new_variance = torch.lerp(variance, g * g, 1 - rates.beta2)
    denominator = (new_variance / (1 - rates.beta2**step)).sqrt() + rates.eps
    moved = parameter - rates.lr / (1 - rates.beta1**step) * new_mean / denominator
    for old, new in ((mean, new_mean), (variance, new_variance), (parameter, moved)):
        old.copy_(torch.where(keep, old, new))


@library.fake("adam_")
def _adam_fake(parameter: Tensor, *_: object) -> None:
    return None


@library.fake("adam_with_copy_")
def _adam_with_copy_fake(parameter: Tensor, *_: object) -> None:
    return None


@library.fake("adam_placed_")
def _adam_placed_fake(parameter: Tensor, *_: object) -> None:
    return None


class _HalfCopy:
    """A parameter in half precision, and the version of the parameter that it is a copy of."""

    def __init__(self, parameter: Tensor) -> None:
        self.numbers = parameter.detach().half()
        self.version = parameter._version


def half_copy(parameter: Tensor) -> Tensor:
    """Return a parameter in half precision, copied anew only where it has changed meanwhile.

    `adam_step` keeps it up to date as it goes, where it has the numbers in hand. It stays where it
    is in memory, so that a recorded step goes on reading it.
    """
    copy: _HalfCopy | None = getattr(parameter, "_half_copy", None)
    if copy is None or copy.numbers.device != parameter.device:
        parameter._half_copy = copy = _HalfCopy(parameter)  # type: ignore[attr-defined]
    elif copy.version != parameter._version:
        copy.numbers.copy_(parameter.detach())
        copy.version = parameter._version
    return copy.numbers


def refresh_half_copies(parameters: Iterable[Tensor]) -> None:
    """Bring all half-precision copies up to date that anyone has asked for."""
    for parameter in parameters:
        if hasattr(parameter, "_half_copy"):
            half_copy(parameter)


def spare_gradient(parameter: Tensor) -> Tensor | None:
    """Hand out, once, the zeros that a step has left of a parameter's gradient, if it has any.

    Not while they are its gradient: what is added to them would be added to itself. Nor where
    anyone has written to them since.
    """
    if torch.compiler.is_compiling() or parameter.grad is not None:
        return None
    zeros, version = vars(parameter).pop("_spare_gradient", (None, 0))
    return zeros if zeros is not None and zeros._version == version else None


def _fresh_copy(parameter: Tensor) -> Tensor | None:
    copy: _HalfCopy | None = getattr(parameter, "_half_copy", None)
    # A parameter that has moved to another device has left its copy behind.
    here = copy is not None and copy.numbers.device == parameter.device
    return copy.numbers if copy and here and copy.version == parameter._version else None


@torch.no_grad()
def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    variance: Tensor,
    rates: AdamRates,
    step: int,
    clear: bool = False,
) -> None:
    """Move a parameter and its two moments, all of one shape, in place; steps count from 1.

    A parameter's `half_copy`, where anyone has asked for it, follows. With `clear` the gradient is
    zeroed where that costs little, and kept for `spare_gradient`.
    """
    copy = _fresh_copy(parameter)
    r = rates
    if not library.native(parameter, gradient):
        adam_reference(parameter, gradient, mean, variance, rates, step)
        return
    tensors = parameter.detach(), gradient.contiguous(), mean, variance
    numbers = r.lr, r.beta1, r.beta2, r.eps, r.weight_decay, step, r.skip
    if copy is None or not library.on_cpu(parameter) or parameter.dtype != torch.float32:
        torch.ops.nerftrain.adam_(*tensors, *numbers)
    else:  # no other device has copies
        clear = clear and gradient.is_contiguous()
        torch.ops.nerftrain.adam_with_copy_(*tensors, copy, *numbers, clear)
        if clear:
            parameter._spare_gradient = gradient, gradient._version  # type: ignore[attr-defined]


@torch.no_grad()
def adam_step_placed(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    variance: Tensor,
    rates: AdamRates,
    placed: tuple[Tensor, Tensor],
) -> None:
    """Do what `adam_step` does, at a learning rate and a step that only the device knows.

    Both are float32, []: `rates.lr` is not looked at. So a recorded step goes on with other rates.
    """
    lr, step = placed
    if not library.native(parameter, gradient):
        known = replace(rates, lr=float(lr))
        adam_reference(parameter, gradient, mean, variance, known, int(step))
        return
    copy = _fresh_copy(parameter)
    none = parameter.new_empty(0, dtype=torch.float16)
    tensors = parameter.detach(), gradient.contiguous(), mean, variance
    copies = none if copy is None else copy
    numbers = rates.beta1, rates.beta2, rates.eps, rates.weight_decay, rates.skip
    torch.ops.nerftrain.adam_placed_(*tensors, copies, lr, step, *numbers)
