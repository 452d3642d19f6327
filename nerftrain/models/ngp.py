"""The hash grid with two small MLPs (Instant-NGP, arXiv:2201.05989, section 5.4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.models import RadianceField
from nerftrain.models.dynamic import Spacetime, Warp, WarpField
from nerftrain.models.encodings import (
    DirectionEncoding,
    HashEncoding,
    SmallMLP,
)
from nerftrain.ops.ngp import ngp, ngp_density
from nerftrain.ops.visit import Visited
from nerftrain.ops.visit_ngp import DensityField, Grid, can_visit, visit_ngp
from nerftrain.types import Contraction, Rays, Samples


class NGP(RadianceField):
    """Density from a hash grid and one hidden layer.

    The colour comes from what that layer knows and the view direction. In a dynamic scene either a
    second hash grid, of space and time, stands beside the first (motion=spacetime), or a warp field
    before it (motion=warp).
    """

    def __init__(
        self,
        encoding: HashEncoding,
        width: int,
        color_layers: int,
        geometry_features: int,
        sh_degree: int,
        motion: Literal["spacetime", "warp"],
        spacetime: Spacetime,
        warp: Warp,
        extra_channels: dict[str, int] | None,
        *,
        aabb: Tensor,
        contraction: Contraction = "none",
        is_dynamic: bool = False,
    ) -> None:
        """Build the two MLPs on an encoding; aabb [6] is the scene's box.

        Raises UserError for impossible sizes.
        """
        super().__init__(extra_channels, aabb, contraction, is_dynamic)
        for name, value in (
            ("width", width),
            ("color_layers", color_layers),
            ("geometry_features", geometry_features),
        ):
            if value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        self.encoding = encoding
        self.directions = DirectionEncoding(sh_degree)
        moves = motion if is_dynamic else None
        self.warp = WarpField(warp) if moves == "warp" else None
        self.spacetime = spacetime.build() if moves == "spacetime" else None
        encoded = encoding.num_features + (self.spacetime.num_features if self.spacetime else 0)
        self.density_mlp = SmallMLP(encoded, width, 1, 1 + geometry_features)
        num_inputs = geometry_features + self.directions.num_features
        self.color_mlp = SmallMLP(num_inputs, width, color_layers, self.num_channels)

    def _features(self, positions: Tensor, times: Tensor | None) -> Tensor:
        unit = self.unit_positions(positions)
        if self.warp is not None:
            unit = self.warp(unit, self.unit_times(times))
        features = self.encoding(unit)
        if self.spacetime is not None:
            moments = torch.cat([unit, self.unit_times(times)[:, None]], -1)
            features = torch.cat([features, self.spacetime(moments)], -1)
        return features

    def visit(self, rays: Rays, samples: Samples, early_stop_eps: float) -> Visited | None:
        """Ask for densities front to back by one op, where it is compiled for the field."""
        if self.warp is not None:
            return None
        encodings = [self.encoding] if self.spacetime is None else [self.encoding, self.spacetime]
        field = DensityField(
            [Grid(encoding.stored, encoding.levels) for encoding in encodings],
            list(self.density_mlp.weights),
            self.aabb,
            self.contraction,
        )
        if not can_visit(rays, samples, field):
            return None
        return visit_ngp(rays, samples, field, early_stop_eps)

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Evaluate the density at positions [N, 3] and, in a dynamic scene, times [N]: [N]."""
        return ngp_density(self._features(positions, times), list(self.density_mlp.weights))

    def forward(
        self, positions: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate channels [N, K] and density [N].

        They are those at positions [N, 3] and, in a dynamic scene, times [N], seen along unit
        directions [N, 3].
        """
        features = self._features(positions, times)
        density_weights, color_weights = (
            list(self.density_mlp.weights),
            list(self.color_mlp.weights),
        )
        return ngp(features, directions, density_weights, color_weights, self.directions.degree)
