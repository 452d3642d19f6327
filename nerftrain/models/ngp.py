"""The hash grid with two small MLPs (Instant-NGP, arXiv:2201.05989, section 5.4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nerftrain.bounds import MOST_LAYERS, MOST_WIDTH, check_counts
from nerftrain.errors import UserError
from nerftrain.models import Draw, RadianceField
from nerftrain.models.dynamic import Spacetime, Warp, WarpField
from nerftrain.models.encodings import (
    DirectionEncoding,
    HashEncoding,
    SmallMLP,
    truncated_exp,
)
from nerftrain.models.tcnn import TcnnEncoding, TcnnMLP
from nerftrain.ops import library
from nerftrain.ops.march import Marching
from nerftrain.ops.ngp import ngp, ngp_density
from nerftrain.ops.ngp_half import Encoded, can_do, look_up, ngp_half, ngp_half_density
from nerftrain.ops.points import sample_points, unit_points
from nerftrain.ops.visit import LookedUp, gather_rows
from nerftrain.ops.visit_ngp import (
    ColorField,
    DensityField,
    Found,
    Grid,
    Warped,
    can_find,
    can_render,
    find_ngp,
    render_ngp,
)
from nerftrain.types import Contraction, Rays, Samples, Thresholds

# Who evaluates encodings and MLPs: the project's compiled ops where there are any (auto), they or
# an error (native), torch, or tiny-cuda-nn.
Backend = Literal["auto", "native", "torch", "tcnn"]


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
        backend: Backend,
        *,
        aabb: Tensor,
        contraction: Contraction = "none",
        is_dynamic: bool = False,
    ) -> None:
        """Build the two MLPs on an encoding; aabb [6] is the scene's box.

        Raises UserError for impossible sizes, and for a backend that cannot be had.
        """
        super().__init__(extra_channels, aabb, contraction, is_dynamic)
        check_counts(MOST_WIDTH, width=width, geometry_features=geometry_features)
        check_counts(MOST_LAYERS, color_layers=color_layers)
        if backend == "native" and not library.native(aabb):
            raise UserError(
                "model.backend=native: the compiled ops do not serve here: see nerftrain doctor, "
                "or choose model.backend=auto"
            )
        self.backend = backend
        tiny = backend == "tcnn"
        self.encoding = TcnnEncoding(encoding) if tiny else encoding
        self.directions = DirectionEncoding(sh_degree)
        moves = motion if is_dynamic else None
        self.warp = WarpField(warp) if moves == "warp" else None
        self.spacetime = spacetime.build() if moves == "spacetime" else None
        encoded = encoding.num_features + (self.spacetime.num_features if self.spacetime else 0)
        network = TcnnMLP if tiny else SmallMLP
        self.density_mlp = network(encoded, width, 1, 1 + geometry_features)
        num_inputs = geometry_features + self.directions.num_features
        self.color_mlp = network(num_inputs, width, color_layers, self.num_channels)
        for module in self.modules():
            if isinstance(module, HashEncoding | SmallMLP):
                module.by_torch = backend == "torch"

    def evaluated_by(self) -> str:
        """Say who evaluates encodings and MLPs."""
        if self.backend == "tcnn":
            return "tiny-cuda-nn"
        if self._in_half_precision():
            return "compiled ops in half precision"
        return "compiled ops" if self._fused_weights() and library.native(self.aabb) else "torch"

    def _features(self, positions: Tensor, times: Tensor | None) -> Tensor:
        looks = [encoding(where) for encoding, where in self._looks(positions, times)]
        return looks[0] if len(looks) == 1 else torch.cat(looks, -1)

    def _looks(self, positions: Tensor, times: Tensor | None) -> list[tuple[nn.Module, Tensor]]:
        """List the encodings and where each is looked up."""
        unit = self.unit_positions(positions)
        if self.warp is not None:
            return [(self.encoding, self.warp(unit, self.unit_times(times)))]
        if self.spacetime is not None:
            unit = torch.cat([unit, self.unit_times(times)[:, None]], -1)
        return self._looks_from(unit)

    def _encoded(self, positions: Tensor, times: Tensor | None) -> list[Encoded] | None:
        """Describe what is looked up to the ops in half precision, where they serve."""
        if not self._in_half_precision():
            return None
        return self._described(self._looks(positions, times))

    def _described(self, looks: list[tuple[nn.Module, Tensor]]) -> list[Encoded]:
        return [grid.at(where) for grid, where in looks if isinstance(grid, HashEncoding)]

    def _in_half_precision(self) -> bool:
        """Tell whether a GPU's kernels in half precision evaluate the field."""
        weights = self._fused_weights()
        if weights is None or not library.has_tensor_cores(self.aabb) or self._is_changed():
            return False
        encodings = [self.encoding] if self.spacetime is None else [self.encoding, self.spacetime]
        tables = [e.table for e in encodings if type(e) is HashEncoding]
        return len(tables) == len(encodings) and can_do(tables, *weights)

    def find(
        self,
        rays: Rays,
        marching: Marching,
        thresholds: Thresholds,
        everything: bool = False,
        remember: bool = False,
    ) -> Found | None:
        """Ask for densities as rays are marched by one op, where it is compiled for the field."""
        field = self._along_rays(rays)
        if field is None:
            return None
        return find_ngp(rays, marching, field, thresholds, everything, remember)

    def look_along(
        self,
        rays: Rays,
        t_starts: Tensor,
        t_ends: Tensor,
        ray_indices: Tensor,
        used: Tensor | None = None,
    ) -> tuple[Tensor, LookedUp] | None:
        """Keep features of half precision, with places and, where something moves, times."""
        weights = self._fused_weights()
        if weights is None or not self._in_half_precision():
            return None
        if self.warp is not None and not self.warp.in_half_precision():
            return None
        at = (t_starts, t_ends, ray_indices)
        places = unit_points(rays, *at, self.aabb, self.contraction)
        if self.is_dynamic:
            times = self.unit_times(rays.times)[ray_indices]
            places = torch.cat([places, times[:, None]], -1)
        with torch.no_grad():
            encoded = self._described(self._looks_from(places, used))
        features = look_up(encoded, used)
        density = ngp_half_density(encoded, weights[0], features, used)
        return density, LookedUp(places, features)

    def _looks_from(
        self, places: Tensor, used: Tensor | None = None
    ) -> list[tuple[nn.Module, Tensor]]:
        """List the encodings and where each is looked up, of a visit's places [N, 3 or 4]."""
        unit = places[:, :3]
        if self.warp is not None:
            unit = self.warp(unit, places[:, 3], used)
        moving = [] if self.spacetime is None else [(self.spacetime, places)]
        return [(self.encoding, unit), *moving]

    def revisit(
        self, rays: Rays, samples: Samples, places: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Evaluate both MLPs on the features that a visit has looked up."""
        weights = self._fused_weights()
        if weights is None:
            return super().revisit(rays, samples, places, features)
        used = None if samples.whole is None else samples.offsets
        if rays.origins.requires_grad:
            places = self._followed(rays, samples)
        grids = self._looks_from(places, used)
        if features.dtype == torch.float16:
            encoded = self._described(grids)
            directions = gather_rows(rays.directions.detach(), samples.ray_indices)
            return ngp_half(encoded, directions, *weights, self.directions.degree, features, used)
        parts = features.split([grid.num_features for grid, _ in grids], -1)
        known = [grid(at, part) for (grid, at), part in zip(grids, parts, strict=True)]
        features = known[0] if len(known) == 1 else torch.cat(known, -1)
        directions = rays.directions.detach().index_select(0, samples.ray_indices)
        return ngp(features, directions, *weights, self.directions.degree)

    def _followed(self, rays: Rays, samples: Samples) -> Tensor:
        """Find a visit's places [N, 3 or 4] so that gradients lead to the rays."""
        at = samples.t_starts, samples.t_ends, samples.ray_indices
        positions, _, times = sample_points(rays, *at)
        unit = self.unit_positions(positions)
        return torch.cat([unit, self.unit_times(times)[:, None]], -1) if self.is_dynamic else unit

    def drawing(self, rays: Rays) -> Draw | None:
        """Find what rays see by one op, where it is compiled for the field."""
        field, weights = self._along_rays(rays), self._fused_weights()
        if field is None or weights is None:
            return None
        color = ColorField(weights[1], self.directions.degree)
        if not can_render(rays, field, color):
            return None
        return lambda marching, thresholds: render_ngp(rays, marching, field, color, thresholds)

    def _along_rays(self, rays: Rays) -> DensityField | None:
        """Describe the density to the ops that follow rays, where they are compiled for it."""
        weights = self._fused_weights()
        if weights is None or self._is_changed():
            return None
        encodings = [self.encoding]
        warped = None
        if self.is_dynamic:
            self.unit_times(rays.times)
        if self.spacetime is not None:
            encodings.append(self.spacetime)
        if self.warp is not None:
            warped = Warped(list(self.warp.mlp.weights), self.warp.moves)
        grids = [Grid(e.stored, e.levels) for e in encodings if type(e) is HashEncoding]
        field = DensityField(grids, weights[0], self.aabb, self.contraction, warped)
        known = len(grids) == len(encodings) and can_find(rays, field)
        return field if known else None

    def _is_changed(self) -> bool:
        """Tell whether a subclass evaluates the field in another way."""
        parts = (
            "density",
            "forward",
            "_features",
            "_looks",
            "_looks_from",
            "unit_positions",
            "activate",
        )
        return any(getattr(type(self), part) is not getattr(NGP, part) for part in parts)

    def _fused_weights(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """Name the weights of both MLPs, where the project's own ops evaluate them."""
        networks = self.density_mlp, self.color_mlp
        if self.backend == "torch" or not all(type(mlp) is SmallMLP for mlp in networks):
            return None
        return list(networks[0].weights), list(networks[1].weights)  # type: ignore[arg-type]

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Evaluate the density at positions [N, 3] and, in a dynamic scene, times [N]: [N]."""
        weights = self._fused_weights()
        if weights is not None and not torch.is_grad_enabled():
            encoded = self._encoded(positions, times)
            if encoded is not None:
                return ngp_half_density(encoded, weights[0])
        features = self._features(positions, times)
        if weights is not None:
            return ngp_density(features, weights[0])
        return truncated_exp(self.density_mlp(features)[:, 0] - 1)

    def forward(
        self, positions: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate channels [N, K] and density [N].

        They are those at positions [N, 3] and, in a dynamic scene, times [N], seen along unit
        directions [N, 3].
        """
        weights = self._fused_weights()
        encoded = None if directions.requires_grad else self._encoded(positions, times)
        if weights is not None and encoded is not None:
            return ngp_half(encoded, directions, *weights, self.directions.degree)
        features = self._features(positions, times)
        if weights is not None:
            return ngp(features, directions, *weights, self.directions.degree)
        geometry = self.density_mlp(features)
        raw = self.color_mlp(torch.cat([geometry[:, 1:], self.directions(directions)], -1))
        return self.activate(raw), truncated_exp(geometry[:, 0] - 1)
