"""Radiance fields: density, colour and any extra channels at a position, direction and time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nerftrain.errors import UserError
from nerftrain.models.encodings import unit_positions
from nerftrain.types import Contraction

NUM_COLORS = 3


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
    ) -> None:
        """Remember the extra channels, the box and what happens outside of it.

        Args:
            extra_channels: names and widths of the channels after the colour.
            aabb: [6], what positions are scaled by.
            contraction: how space around the box is folded towards it.

        Raises:
            UserError: where a width is below 1.
        """
        super().__init__()
        for name, width in (extra_channels or {}).items():
            if width < 1:
                raise UserError(f"extra_channels.{name}={width}: must be at least 1")
        self.extra_channels = dict(extra_channels or {})
        self.register_buffer("aabb", aabb.float().clone())
        self.aabb: Tensor
        self.contraction: Contraction = contraction

    @property
    def num_channels(self) -> int:
        """Count all channels, colour included."""
        return NUM_COLORS + sum(self.extra_channels.values())

    def unit_positions(self, positions: Tensor) -> Tensor:
        """Scale positions [N, 3] so that the scene is 0..1 on every axis."""
        return unit_positions(positions, self.aabb, self.contraction)

    def activate(self, raw: Tensor) -> Tensor:
        """Turn raw channels [N, K] into colours in 0..1 and extra channels as they are."""
        if not self.extra_channels:
            return raw.sigmoid()
        return torch.cat([raw[:, :NUM_COLORS].sigmoid(), raw[:, NUM_COLORS:]], -1)

    @abstractmethod
    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Evaluate the density at positions [N, 3] in world units.

        It is [N], per world unit, not negative.
        """

    @abstractmethod
    def forward(
        self, positions: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate channels [N, K] and density [N].

        They are those at positions [N, 3] seen along unit directions [N, 3].
        """
