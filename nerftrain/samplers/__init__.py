"""Samplers: which intervals along rays are worth a radiance field's evaluation.

They learn where space is empty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nerftrain.types import DensityFn, Rays, Samples, SigmaFn


class Sampler(nn.Module, ABC):
    """What every `sampler=` is.

    Buffers hold its state, so that a checkpoint holds it too. Constructors are offered, by keyword,
    the scene's box `aabb` [6], its training `cameras` and its `near` distance.
    """

    num_evaluated: int = 0  # densities that the last call of `sample` asked for

    @abstractmethod
    def sample(
        self, rays: Rays, sigma_fn: SigmaFn, generator: torch.Generator | None = None
    ) -> Samples:
        """Place samples along rays, without gradient.

        They are stratified where a generator is given (training).
        """

    def update(self, step: int, density_fn: DensityFn, generator: torch.Generator) -> None:
        """Learn from the field after an optimisation step; by default there is nothing to learn."""

    def describe(self) -> dict[str, float]:
        """Name what is worth a curve, e.g. the share of occupied cells.

        It may synchronise with the device.
        """
        return {}


def jitter(rays: Rays, generator: torch.Generator | None) -> Tensor:
    """Draw the share of a step [R] by which each ray's samples are shifted.

    It is one half without a generator.
    """
    if generator is None:
        return torch.full_like(rays.near, 0.5)
    return torch.rand(rays.near.shape, generator=generator, device=rays.near.device)
