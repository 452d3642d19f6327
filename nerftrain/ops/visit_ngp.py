"""Instant-NGP's densities along rays, front to back until they are opaque, fused on the CPU.

What `visit` does by an op per stage and round (points, encoding, density MLP, transmittance) is
done for a few hundred rays at a time: nothing in between leaves the cache, and as rays that end
make room for others, so few samples of a ray are asked for at once that little lies behind where
it ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nerftrain.ops import library
from nerftrain.ops.contract import unit_positions
from nerftrain.ops.hash_encoding import HashLevels, hash_encode_reference
from nerftrain.ops.mlp import BEST
from nerftrain.ops.ngp import MAX_LAYERS, ngp_density_reference
from nerftrain.ops.points import sample_points_reference
from nerftrain.ops.visit import Visited, visit
from nerftrain.types import Contraction, Rays, Samples

FEATURES = (2, 4, 8)  # per level, of a table
CONTRACTIONS: tuple[Contraction, ...] = ("none", "l2", "linf")  # by their numbers
ROUND = 4  # samples of a ray that are asked for at once, where there are many rays


class Grid(NamedTuple):
    """A hash encoding: of positions or, of four axes, of positions and times."""

    stored: Tensor  # [entries, F] float32 or float16
    levels: HashLevels


class DensityField(NamedTuple):
    """What makes Instant-NGP's density."""

    grids: Sequence[Grid]  # of positions, then perhaps one of positions and times
    weights: Sequence[Tensor]  # [out, in] of each layer of the density MLP
    box: Tensor  # [6]
    contraction: Contraction


def visit_ngp_reference(
    rays: Rays, samples: Samples, field: DensityField, early_stop_eps: float
) -> Visited:
    """Visit by torch (see `visit_ngp`)."""

    def sigma_fn(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        points, _, times = sample_points_reference(rays, t_starts, t_ends, ray_indices)
        places = [unit_positions(points, field.box, field.contraction)]
        if times is not None:
            places.append(torch.cat([places[0], times[:, None]], -1))
        features = [
            hash_encode_reference(
                places[grid.levels.num_axes - 3], grid.stored.float(), grid.levels
            )
            for grid in field.grids
        ]
        inputs = torch.cat(features, -1).to(field.weights[0].dtype)
        return ngp_density_reference(inputs, field.weights)

    return visit(samples, sigma_fn, early_stop_eps, ROUND)


@library.fake("visit_ngp")
def _visit_ngp_fake(
    _o: Tensor, _d: Tensor, _t: Tensor, t_starts: Tensor, _e: Tensor, offsets: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_rays = offsets.shape[0] - 1
    rows = t_starts.new_empty(num_rays), t_starts.new_empty(num_rays)
    return torch.empty_like(t_starts), offsets.new_empty(num_rays), *rows


def can_visit(rays: Rays, samples: Samples, field: DensityField) -> bool:
    """Say whether `visit_ngp` is compiled for these."""
    numbers = (rays.origins, rays.directions, samples.t_starts, samples.t_ends, *field.weights)
    fits = len(field.weights) <= MAX_LAYERS and all(t.dtype == torch.float32 for t in numbers)
    grids = all(grid.stored.shape[1] in FEATURES for grid in field.grids)
    return rays.origins.device.type == "cpu" and fits and grids and library.native(*numbers)


@torch.no_grad()
def visit_ngp(
    rays: Rays,
    samples: Samples,
    field: DensityField,
    early_stop_eps: float,
    lanes: int = BEST,
) -> Visited:
    """Ask the field for the densities of samples, front to back until rays are opaque.

    Args:
        rays: R rays; with times [R] where a grid has four axes.
        samples: of these.
        field: what makes the density.
        early_stop_eps: rays whose transmittance falls below it are done.
        lanes: which instruction set multiplies (see `mlp`).
    """
    if not can_visit(rays, samples, field):
        return visit_ngp_reference(rays, samples, field, early_stop_eps)
    none = rays.origins.new_empty(0)
    grids = [
        (g.stored, list(itertools.chain(*g.levels.cells)), list(g.levels.offsets))
        for g in field.grids
    ]
    still, moving = grids if len(grids) > 1 else (grids[0], (none, [], []))
    widths = [field.weights[0].shape[1], *(weight.shape[0] for weight in field.weights)]
    density, num, transmittance, sum_alpha = torch.ops.nerftrain.visit_ngp(
        rays.origins.contiguous(),
        rays.directions.contiguous(),
        none if rays.times is None or len(grids) == 1 else rays.times.contiguous(),
        samples.t_starts.contiguous(),
        samples.t_ends.contiguous(),
        samples.offsets,
        *still,
        *moving,
        torch.cat([weight.reshape(-1) for weight in field.weights]),
        widths,
        field.box,
        CONTRACTIONS.index(field.contraction),
        early_stop_eps,
        lanes,
    )
    return Visited(density, num, transmittance, sum_alpha, int(num.sum()))
