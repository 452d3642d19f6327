"""Samplers: which intervals along rays are worth a radiance field's evaluation.

They learn where space is empty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nerftrain.errors import UserError
from nerftrain.losses import Kind
from nerftrain.types import Batch, Contraction, DensityFn, Rays, Rendering, Samples, SigmaFn


class Sampler(nn.Module, ABC):
    """What every `sampler=` is.

    Buffers and parameters hold its state, so that a checkpoint holds it too. Constructors are
    offered, by keyword, the scene's box `aabb` [6] and `contraction`, its `near` and `far`, the
    training `cameras`, their `masks`, and `make_field`, which makes another model like the run's.
    """

    num_evaluated: int = 0  # densities that the last call of `sample` asked for

    @abstractmethod
    def sample(
        self, rays: Rays, sigma_fn: SigmaFn, generator: torch.Generator | None = None
    ) -> Samples:
        """Place samples along rays; gradients do not flow through them.

        They are stratified where a generator is given (training).
        """

    def loss_terms(self, kind: Kind, batch: Batch, rendering: Rendering) -> dict[str, Tensor]:
        """Name what the last call of `sample` adds to the loss: by default there is nothing."""
        return {}

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


def reach(
    rays: Rays, aabb: Tensor, contraction: Contraction
) -> tuple[Tensor, Rays, Tensor, Tensor]:
    """Find the rays that meet anything, and from where to where.

    Returns:
        The indices [H] of those of R rays that do, these rays, and the distances [H] at which they
        enter and leave the box aabb [6]; near and far where space has no bounds.
    """
    enter, leave = rays.near, rays.far
    if contraction == "none":
        inverse = 1 / torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
        walls = (aabb.view(2, 1, 3) - rays.origins) * inverse  # [2, R, 3]
        enter = torch.maximum(walls.amin(0).amax(-1), enter)
        leave = torch.minimum(walls.amax(0).amin(-1), leave)
    hit = (enter < leave).nonzero().squeeze(1)  # a synchronisation on CUDA: how many there are
    return hit, rays[hit], enter[hit], leave[hit]


def pack(bounds: Tensor, hit: Tensor, num_rays: int) -> Samples:
    """Make packed samples of the same number of intervals on each of some rays.

    Args:
        bounds: [H, K + 1], their ends, ascending.
        hit: [H], which rays of num_rays these are, ascending.
        num_rays: R; the others are empty.
    """
    num = bounds.shape[1] - 1
    counts = torch.zeros(num_rays + 1, dtype=torch.int64, device=hit.device)
    counts[hit + 1] = num
    return Samples(
        t_starts=bounds[:, :-1].reshape(-1),
        t_ends=bounds[:, 1:].reshape(-1),
        ray_indices=hit.repeat_interleave(num),
        offsets=counts.cumsum(0),
    )


def at_middles(rays: Rays, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find positions, directions [H * K, 3] and times [H * K] of intervals bounds [H, K + 1]."""
    num = bounds.shape[1] - 1
    rows = torch.arange(len(rays), device=bounds.device).repeat_interleave(num)
    middles = ((bounds[:, :-1] + bounds[:, 1:]) * 0.5).reshape(-1)
    times = None if rays.times is None else rays.times[rows]
    return rays.points(middles, rows), rays.directions[rows], times


def check_counts(**counts: int) -> None:
    """Raise UserError for a number of something that is below one."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
