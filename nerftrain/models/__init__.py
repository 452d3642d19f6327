"""Radiance fields: density, colour and any extra channels at a position, direction and time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nerftrain.bounds import MOST_WIDTH, check_counts
from nerftrain.errors import UserError
from nerftrain.ops.contract import unit_positions
from nerftrain.ops.march import Marching
from nerftrain.ops.points import sample_points
from nerftrain.ops.visit import LookedUp
from nerftrain.ops.visit_ngp import Drawn, Found
from nerftrain.types import Contraction, Rays, Samples, Thresholds

NUM_COLORS = 3
Draw = Callable[[Marching, Thresholds], Drawn]


class RadianceField(nn.Module, ABC):
    """What every `model=` is: a density, and channels of which the first three are the colour.

    The colour is red, green and blue in 0..1. Extra channels follow it in the order in which they
    were declared; they are composited as they are.
    """

    def __init__(
        self,
        extra_channels: dict[str, int] | None,
        aabb: Tensor,
        contraction: Contraction = "none",
        is_dynamic: bool = False,
    ) -> None:
        """Remember the extra channels, the box and what kind of scene it is.

        Args:
            extra_channels: names and widths of the channels after the colour.
            aabb: [6], what positions are scaled by.
            contraction: how what lies around the box is folded.
            is_dynamic: whether the scene changes with time.

        Raises:
            UserError: where a width is below 1, or far too large.
        """
        super().__init__()
        for name, width in (extra_channels or {}).items():
            check_counts(MOST_WIDTH, **{f"extra_channels.{name}": width})
        self.extra_channels = dict(extra_channels or {})
        self.contraction: Contraction = contraction
        self.is_dynamic = is_dynamic
        self.register_buffer("aabb", aabb.float().clone())
        self.aabb: Tensor

    @property
    def num_channels(self) -> int:
        """Count all channels, colour included."""
        return NUM_COLORS + sum(self.extra_channels.values())

    def unit_positions(self, positions: Tensor) -> Tensor:
        """Scale positions [N, 3] so that the scene is 0..1 on every axis."""
        return unit_positions(positions, self.aabb, self.contraction)

    def unit_times(self, times: Tensor | None) -> Tensor:
        """Return the times [N], which the field of a dynamic scene cannot do without.

        A static field does not ask for them and ignores those that it is given.

        Raises:
            UserError: where there are none.
        """
        if times is None:
            raise UserError(
                "the scene is dynamic: its field needs a time in 0..1 for each position"
            )
        return times

    def find(
        self,
        rays: Rays,
        marching: Marching,
        thresholds: Thresholds,
        everything: bool = False,
        remember: bool = False,
    ) -> Found | None:
        """Find the samples of marched rays that count, or all that were asked for.

        None where the field has no way of its own: then samplers call `density` in rounds (see
        `ops.visit.visit`). With `remember` it tells what it has looked up for `revisit`.
        """
        del rays, marching, thresholds, everything, remember

    def look_along(
        self,
        rays: Rays,
        t_starts: Tensor,
        t_ends: Tensor,
        ray_indices: Tensor,
        used: Tensor | None = None,
    ) -> tuple[Tensor, LookedUp] | None:
        """Evaluate `density` in the middles of intervals [N] along rays, without gradients.

        It tells what has been looked up for `revisit`, too; None where the field cannot. `used`
        [.] int64 ends with the number of intervals that count: of others anything may be said.
        """
        del rays, t_starts, t_ends, ray_indices, used

    def revisit(
        self, rays: Rays, samples: Samples, places: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Evaluate channels [N, K] and density [N] where a visit has looked things up.

        These are the places [N, 3 or 4] and features [N, D] of `LookedUp`. Gradients flow as if all
        had been looked up now: to rays that ask for them, too, but for the directions of views.
        """
        del places, features
        at = samples.t_starts, samples.t_ends, samples.ray_indices
        positions, directions, times = sample_points(rays, *at)
        return self(positions, directions.detach(), times)

    def drawing(self, rays: Rays) -> Draw | None:
        """Offer a way of the field's own to find what marched rays see, without gradients.

        None where it has none: then `rendering` asks for densities, then for channels.
        """
        del rays

    def evaluated_by(self) -> str:
        """Say who evaluates the field, for the line that training begins with."""
        return "torch"

    def activate(self, raw: Tensor) -> Tensor:
        """Turn raw channels [N, K] into colours in 0..1 and extra channels as they are."""
        if not self.extra_channels:
            return raw.sigmoid()
        return torch.cat([raw[:, :NUM_COLORS].sigmoid(), raw[:, NUM_COLORS:]], -1)

    @abstractmethod
    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Evaluate the density at positions [N, 3] in world units and times [N] in 0..1.

        It is [N], per world unit, not negative.
        """

    @abstractmethod
    def forward(
        self, positions: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate channels [N, K] and density [N].

        They are those at positions [N, 3] and times [N] seen along unit directions [N, 3].
        """
