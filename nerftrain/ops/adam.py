"""One step of Adam (arXiv:1412.6980, algorithm 1).

Optionally it leaves entries without a gradient alone.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@torch.no_grad()
def adam_step(
    parameter: Tensor, gradient: Tensor, mean: Tensor, variance: Tensor, rates: AdamRates, step: int
) -> None:
    """Move a parameter and its two moments, all of one shape, in place; steps count from 1."""
    if not library.native(parameter, gradient):
        adam_reference(parameter, gradient, mean, variance, rates, step)
        return
    r = rates
    tensors = parameter.detach(), gradient.contiguous(), mean, variance
    torch.ops.nerftrain.adam_(*tensors, r.lr, r.beta1, r.beta2, r.eps, r.weight_decay, step, r.skip)
