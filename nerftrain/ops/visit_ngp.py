"""Instant-NGP along rays, front to back until they are opaque, fused on the CPU.

What `march`, `visit` and `visible_samples` do by an op per stage and round (steps, points,
encoding, density MLP, transmittance) is done for a few hundred rays at a time: nothing in between
leaves the cache, no ray is marched further than anything is asked for, and as rays that end make
room for others, so few samples of a ray are asked for at once that little lies behind where it
ends. Where no gradient is asked for, what rays see is found in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nerftrain.ops import library
from nerftrain.ops.composite import composite_reference
from nerftrain.ops.contract import unit_positions
from nerftrain.ops.hash_encoding import HashLevels, hash_encode_reference
from nerftrain.ops.march import Marching, march_to_reference, visible_samples_reference
from nerftrain.ops.mlp import BEST, flat, widths
from nerftrain.ops.ngp import MAX_LAYERS, ngp_density_reference, ngp_reference
from nerftrain.ops.points import FOLDINGS, sample_points_reference
from nerftrain.ops.visit import UNSEEN, LookedUp, select_reference, visit
from nerftrain.ops.warp import Moves, moved_by
from nerftrain.types import Contraction, Rays, Samples, Thresholds

FEATURES = (2, 4, 8)  # per level, of a table
ROUND = 4  # samples of a ray that are asked for at once, where there are many rays


class Grid(NamedTuple):
    """A hash encoding: of positions or, of four axes, of positions and times."""

    stored: Tensor  # [entries, F] float32 or float16
    levels: HashLevels


class Warped(NamedTuple):
    """What moves positions at their times before they are looked up."""

    weights: Sequence[Tensor]  # [out, in] of each layer of its MLP
    moves: Moves


class DensityField(NamedTuple):
    """What makes Instant-NGP's density."""

    grids: Sequence[Grid]  # of positions, then perhaps one of positions and times
    weights: Sequence[Tensor]  # [out, in] of each layer of the density MLP
    box: Tensor  # [6]
    contraction: Contraction
    warped: Warped | None = None

    @property
    def moves(self) -> bool:
        """Tell whether it needs times."""
        return len(self.grids) > 1 or self.warped is not None


class ColorField(NamedTuple):
    """What makes Instant-NGP's channels."""

    weights: Sequence[Tensor]  # [out, in] of each layer of the colour MLP
    sh_degree: int  # of the directions' harmonics


class Found(NamedTuple):
    """Samples of R rays, and what is known there."""

    samples: Samples  # N of them
    density: Tensor  # [N]
    looked_up: LookedUp | None
    num_evaluated: int  # densities that were asked for
    sum_alpha: float  # of the opacities there


class Drawn(NamedTuple):
    """What R rays see, as `composite` names it."""

    channels: Tensor  # [R, K]
    opacity: Tensor  # [R]
    depth: Tensor  # [R]
    distortion: Tensor  # [R]
    num_evaluated: int  # densities that were asked for


def find_ngp_reference(
    rays: Rays,
    marching: Marching,
    field: DensityField,
    thresholds: Thresholds,
    everything: bool = False,
    remember: bool = False,
) -> Found:
    """Find samples by torch (see `find_ngp`)."""
    samples, _ = march_to_reference(rays, *marching)

    def sigma_fn(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        now = Samples(t_starts, t_ends, ray_indices, samples.offsets)
        return ngp_density_reference(_look_up(rays, now, field)[1], field.weights)

    visited = visit(samples, sigma_fn, thresholds.early_stop_eps, ROUND)
    keep = visited.density != UNSEEN
    if not everything:
        keep &= visible_samples_reference(samples, visited.density, *thresholds)
    found = select_reference(samples, keep)
    looked_up = LookedUp(*_look_up(rays, found, field)) if remember else None
    sum_alpha = float(visited.sum_alpha.sum())
    return Found(found, visited.density[keep], looked_up, visited.num_evaluated, sum_alpha)


def render_ngp_reference(
    rays: Rays, marching: Marching, field: DensityField, color: ColorField, thresholds: Thresholds
) -> Drawn:
    """Render by torch (see `render_ngp`)."""
    found = find_ngp_reference(rays, marching, field, thresholds)
    seen = found.samples
    directions = rays.directions[seen.ray_indices]
    networks = (field.weights, color.weights)
    channels, density = ngp_reference(
        _look_up(rays, seen, field)[1], directions, *networks, color.sh_degree
    )
    out = composite_reference(density, channels, seen)
    sums = (out.channels, out.opacity, out.depth, out.distortion)
    return Drawn(*sums, found.num_evaluated)


def _look_up(rays: Rays, samples: Samples, field: DensityField) -> tuple[Tensor, Tensor]:
    at = (samples.t_starts, samples.t_ends, samples.ray_indices)
    points, _, times = sample_points_reference(rays, *at)
    where = unit = unit_positions(points, field.box, field.contraction)
    moments = unit if times is None else torch.cat([unit, times[:, None]], -1)
    if field.warped is not None and times is not None:
        where = moved_by(unit, times, *field.warped)
    features = [
        hash_encode_reference(place, grid.stored.float(), grid.levels)
        for place, grid in zip((where, moments), field.grids, strict=False)
    ]
    places = moments if field.moves else unit
    return places, torch.cat(features, -1).to(field.weights[0].dtype)


@library.fake("find_ngp")
def _find_ngp_fake(*arguments: Any) -> tuple[Tensor, ...]:
    origins, *moving, widths, remember = (arguments[i] for i in (0, 6, 9, 15, -1))
    num_samples = torch.library.get_ctx().new_dynamic_size()
    num_rays, make = origins.shape[0], origins.new_empty
    rows = num_samples if remember else 0
    return (
        make(num_samples),
        make(num_samples),
        make(num_samples, dtype=torch.int64),
        make(num_rays + 1, dtype=torch.int64),
        make(num_samples),
        make(rows, 4 if any(t.numel() for t in moving) else 3),
        make(rows, widths[0]),
        make(num_rays, dtype=torch.int64),
        make(num_rays),
    )


@library.fake("render_ngp")
def _render_ngp_fake(*arguments: Any) -> tuple[Tensor, ...]:
    origins, color_widths = arguments[0], arguments[-4]
    num_rays, make = origins.shape[0], origins.new_empty
    rows = make(num_rays), make(num_rays), make(num_rays)
    return make(num_rays, color_widths[-1]), *rows, make(num_rays, dtype=torch.int64)


def can_find(rays: Rays, field: DensityField) -> bool:
    """Say whether `find_ngp` is compiled for these."""
    times = [] if rays.times is None else [rays.times]
    warps = [] if field.warped is None else field.warped.weights
    numbers = (rays.origins, rays.directions, *times, *field.weights, *warps)
    fits = max(len(field.weights), len(warps)) <= MAX_LAYERS
    fits = fits and all(t.dtype == torch.float32 for t in numbers)
    grids = all(grid.stored.shape[1] in FEATURES for grid in field.grids)
    return library.on_cpu(rays.origins) and fits and grids and library.native(*numbers)


def can_render(rays: Rays, field: DensityField, color: ColorField) -> bool:
    """Say whether `render_ngp` is compiled for these."""
    return can_find(rays, field) and len(color.weights) <= MAX_LAYERS


@torch.no_grad()
def find_ngp(
    rays: Rays,
    marching: Marching,
    field: DensityField,
    thresholds: Thresholds,
    everything: bool = False,
    remember: bool = False,
    lanes: int = BEST,
) -> Found:
    """March rays, asking the field for densities, front to back until rays are opaque.

    Rays are marched no further than anything is asked for.

    Args:
        rays: R rays; with times [R] where the field moves.
        marching: how these are marched.
        field: what makes the density.
        thresholds: which samples count (see `visible_samples`).
        everything: gives all samples that were asked for, those behind where a ray ends too.
        remember: whether to tell what was looked up.
        lanes: which instruction set multiplies (see `mlp`).
    """
    if not can_find(rays, field):
        return find_ngp_reference(rays, marching, field, thresholds, everything, remember)
    t_starts, t_ends, ray_indices, offsets, density, *looked_up, num, sum_alpha = (
        torch.ops.nerftrain.find_ngp(
            *_arguments(rays, field),
            thresholds.early_stop_eps,
            lanes,
            *marching.arguments(rays),
            thresholds.alpha_thre,
            thresholds.min_weight,
            everything,
            remember,
        )
    )
    samples = Samples(t_starts, t_ends, ray_indices, offsets)
    kept = LookedUp(*looked_up) if remember else None
    return Found(samples, density, kept, int(num.sum()), float(sum_alpha.sum()))


@torch.no_grad()
def render_ngp(
    rays: Rays,
    marching: Marching,
    field: DensityField,
    color: ColorField,
    thresholds: Thresholds,
    lanes: int = BEST,
) -> Drawn:
    """Composite the samples that `find_ngp` finds, without gradients.

    Args:
        rays: R rays; with times [R] where the field moves.
        marching: how these are marched.
        field: what makes the density.
        color: what makes the channels.
        thresholds: what cannot be seen (see `visible_samples`).
        lanes: which instruction set multiplies (see `mlp`).
    """
    if not can_render(rays, field, color):
        return render_ngp_reference(rays, marching, field, color, thresholds)
    channels, opacity, depth, distortion, num = torch.ops.nerftrain.render_ngp(
        *_arguments(rays, field),
        thresholds.early_stop_eps,
        lanes,
        *marching.arguments(rays),
        flat(color.weights),
        widths(color.weights),
        color.sh_degree,
        thresholds.alpha_thre,
        thresholds.min_weight,
    )
    return Drawn(channels, opacity, depth, distortion, int(num.sum()))


def _arguments(rays: Rays, field: DensityField) -> tuple[Any, ...]:
    none = rays.origins.new_empty(0)
    grids = [(g.stored, *g.levels.as_arguments) for g in field.grids]
    still, moving = grids if len(grids) > 1 else (grids[0], (none, [], []))
    warp: tuple[Any, ...] = (none, [], 0, 0, 0.0)
    if field.warped is not None:
        warp = flat(field.warped.weights), widths(field.warped.weights), *field.warped.moves
    return (
        rays.origins.contiguous(),
        rays.directions.contiguous(),
        none if rays.times is None or not field.moves else rays.times.contiguous(),
        *still,
        *moving,
        *warp,
        flat(field.weights),
        widths(field.weights),
        field.box,
        FOLDINGS.index(field.contraction),
    )
