"""Samplers: which intervals along rays are worth a radiance field's evaluation.

They learn where space is empty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nerftrain.bounds import check_counts as check_counts
from nerftrain.losses import ColorLoss
from nerftrain.ops.march import Marching
from nerftrain.ops.points import sample_points
from nerftrain.spacing import Kind as Spacing
from nerftrain.spacing import to_distance
from nerftrain.types import (
    Batch,
    Contraction,
    DensityFn,
    Rays,
    Rendering,
    Samples,
    SigmaFn,
    Thresholds,
)


class Sampler(nn.Module, ABC):
    """What every `sampler=` is.

    Buffers and parameters hold its state, so that a checkpoint holds it too. Constructors are
    offered, by keyword, the scene's box `aabb` [6] and `contraction`, its `near` and `far`, the
    training `cameras`, their `masks`, and `make_field`, which makes another model like the run's.
    """

    # Densities that the last call of `sample` asked for; with a room only the device may know.
    num_evaluated: int | Tensor = 0
    last: Any = None  # what the last call in training found, for `update`
    recorded: tuple[str, ...] = ("num_evaluated", "last")  # what a call leaves behind
    live_pixels: Tensor | None  # [P] integers, of the training images; None: all

    def __init__(self) -> None:
        """Know of no training pixel whose ray will never have samples."""
        super().__init__()
        self.register_buffer("live_pixels", None, persistent=False)

    @abstractmethod
    def sample(
        self,
        rays: Rays,
        sigma_fn: SigmaFn,
        generator: torch.Generator | None = None,
        room: int | None = None,
    ) -> Samples:
        """Place samples along rays; gradients do not flow through them.

        They are stratified where a generator is given (training). With a `room` the device is
        asked nothing: samples come in buffers whose size follows from the room and the number of
        rays, and rays that do not fit are left out whole.
        """

    def phase(self) -> Hashable:
        """Name the choices of the host that the next call of `sample` in training depends on.

        While it stays the same, a step can be recorded and replayed.
        """

    def marching(self, rays: Rays) -> tuple[Marching, Thresholds] | None:
        """Say how rays are to be marched for an image, and which of their samples count.

        None where samples are placed in another way.
        """
        del rays

    def loss_terms(self, loss: ColorLoss, batch: Batch, rendering: Rendering) -> dict[str, Tensor]:
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


@dataclass(frozen=True)
class Ways:
    """The rays that meet anything, and from where to where they do."""

    hit: Tensor  # [H] int64, ascending: which of all rays these are
    rays: Rays  # H of them
    enter: Tensor  # [H] distances
    leave: Tensor  # [H]

    def __len__(self) -> int:
        return len(self.rays)

    def __getitem__(self, rows: Tensor | slice) -> Ways:
        return Ways(self.hit[rows], self.rays[rows], self.enter[rows], self.leave[rows])

    def distances(self, kind: Spacing, shares: Tensor) -> Tensor:
        """Turn shares of the ways [H, K] into distances [H, K]."""
        return to_distance(kind, shares, self.enter, self.leave)


def find_ways(rays: Rays, aabb: Tensor, contraction: Contraction, everyone: bool = False) -> Ways:
    """Find where rays enter and leave the box aabb [6]; near and far where space has no bounds.

    With `everyone` the device need not be asked which rays meet it: the others stay at near.
    """
    enter, leave = rays.near, rays.far
    if contraction == "none":
        inverse = 1 / torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
        walls = (aabb.view(2, 1, 3) - rays.origins) * inverse  # [2, R, 3]
        enter = torch.maximum(walls.amin(0).amax(-1), enter)
        leave = torch.minimum(walls.amax(0).amin(-1), leave)
    if everyone:
        met = enter < leave
        enter, leave = torch.where(met, enter, rays.near), torch.where(met, leave, rays.near)
        return Ways(torch.arange(len(rays), device=enter.device), rays, enter, leave)
    hit = (enter < leave).nonzero().squeeze(1)  # a synchronisation on CUDA: how many there are
    return Ways(hit, rays[hit], enter[hit], leave[hit])


def pack(bounds: Tensor, hit: Tensor, num_rays: int) -> Samples:
    """Make packed samples of the same number of intervals on each of some rays.

    Args:
        bounds: [H, K + 1], their ends, ascending.
        hit: [H], which rays of num_rays these are, ascending.
        num_rays: R; the others are empty.
    """
    num = bounds.shape[1] - 1
    counts = torch.zeros(num_rays + 1, dtype=torch.int64, device=hit.device)
    counts.index_fill_(0, hit + 1, num)  # an assignment would copy the number from the host
    return Samples(
        t_starts=bounds[:, :-1].reshape(-1),
        t_ends=bounds[:, 1:].reshape(-1),
        ray_indices=hit.repeat_interleave(num),
        offsets=counts.cumsum(0),
    )


def at_middles(rays: Rays, samples: Samples) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find positions and directions [N, 3], and times [N] or None, of samples of R rays."""
    return sample_points(rays, samples.t_starts, samples.t_ends, samples.ray_indices)
