"""Occupancy grids and marching rays through them: which cells are where, which samples a ray has.

Notation (csrc/common/march.h): a ray's steps lie on the lattice t(s), s = 0, 1, 2, ...; sample k
covers [t(k + jitter), t(k + 1 + jitter)] and is kept where its midpoint lies in an occupied cell.
Sources: NerfAcc (arXiv:2305.04966), Instant-NGP (arXiv:2201.05989, section 5.2 and appendix E).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from nerftrain.checks import check_field
from nerftrain.errors import UserError
from nerftrain.ops import library
from nerftrain.ops.rooms import fit, padded, used_rows
from nerftrain.types import Cameras, Rays, Samples

MAX_BOXES = 16  # kMaxBoxes of csrc/common/occupancy.h
MASK_PIXELS = 200  # the longer side of masks after pooling: finer ones carve hardly more
ALPHA_SHARES = 1 << 16  # AlphaShares::kParts of csrc/common/march.h
# Cells that are nearer, in their radii, look so large that all pixels may see them.
NEAR_RADII = 4.0


@dataclass(frozen=True)
class Grid:
    """Occupancy bits of boxes of cells; where boxes overlap the first of them counts.

    The bits of a level fill a cube, of which cells beyond the level's own stay empty. Where things
    move there may be such bits for each of T slices of time, else T is 1.
    """

    cells: Tensor  # [T L, (side / 4)**3] int64, a bit per cell
    blocks: Tensor  # [T L, (side / 16)**3] int64, a bit per 4**3 cells
    # [T L, (side / 4)**3] uint8, of each 4**3 cells: one less than the side of an aligned cube of
    # empty cells around them, 3, 7 or 15; 0 where one of them is occupied
    empty: Tensor
    boxes: tuple[float, ...]  # [6 L], of each level: min xyz, max xyz
    resolution: tuple[int, int, int]  # cells along each axis
    side: int  # of the cube of bits, a multiple of 16

    @property
    def num_slices(self) -> int:
        """Tell T."""
        return len(self.cells) // (len(self.boxes) // 6)

    def slices_of(self, rays: Rays) -> Tensor:
        """Find the slices of time [R] int32 in which rays look, [0] where there are none.

        Raises UserError for rays without times where there are.
        """
        if self.num_slices == 1:
            return self.cells.new_empty(0, dtype=torch.int32)
        if rays.times is None:
            raise UserError("a grid with slices of time: its rays need times")
        return slices_at(rays.times, self.num_slices)

    @cached_property
    def occupied(self) -> Tensor:
        """Unpack the bits, [T L, *resolution] bool."""
        x, y, z = self.resolution
        return _unpack_bits(self.cells, self.side)[:, :x, :y, :z]


@dataclass(frozen=True)
class March:
    """How rays step.

    Steps are `step` long in world units, growing with the distance by `cone_angle`, and at most
    `max_steps` of them, of which a ray keeps `max_samples`. With a step of zero a ray has a sample
    for every occupied cell that it passes through, as long as its way there.
    """

    step: float
    cone_angle: float
    max_steps: int
    max_samples: int = 2**31 - 1


def slices_at(times: Tensor, num_slices: int) -> Tensor:
    """Find the slices of time [N] int32 that times [N] in 0..1 lie in."""
    return (times * num_slices).int().clamp(0, num_slices - 1)


class Marching(NamedTuple):
    """How R rays are to be marched (see `march`)."""

    jitter: Tensor  # [R]
    grid: Grid
    settings: March

    def arguments(self, rays: Rays) -> tuple[Any, ...]:
        """List what operators ask for after origins and directions."""
        grid, settings = self.grid, self.settings
        slices = grid.slices_of(rays)
        tensors = (rays.near, rays.far, self.jitter, slices, grid.cells, grid.blocks)
        return (
            *(tensor.contiguous() for tensor in tensors),
            list(grid.boxes),
            list(grid.resolution),
            grid.side,
            settings.step,
            settings.cone_angle,
            settings.max_steps,
            settings.max_samples,
        )


# --------------------------------------------------------------------------------------- references


def _bit_order(side: int, device: torch.device) -> Tensor:
    """Order the units of a cube so that 4**3 of them make a word.

    Returns [side**3] indices, word after word.
    """
    index = torch.arange(side**3, device=device).view(side // 4, 4, side // 4, 4, side // 4, 4)
    return index.permute(0, 2, 4, 1, 3, 5).reshape(-1)


def _unpack_bits(words: Tensor, side: int) -> Tensor:
    shifts = torch.arange(64, device=words.device)
    flags = (words[..., None] >> shifts & 1).bool().flatten(1)
    cube = torch.empty_like(flags)
    cube[:, _bit_order(side, words.device)] = flags
    return cube.view(-1, side, side, side)


def _pack_bits(flags: Tensor) -> Tensor:
    bits = (
        flags.flatten(1)[:, _bit_order(flags.shape[1], flags.device)]
        .view(flags.shape[0], -1, 64)
        .long()
    )
    return (bits << torch.arange(64, device=flags.device)).sum(-1)


def pack_grid_reference(occupied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pack flags into words by torch (see `pack_grid`)."""
    cells = _pack_bits(occupied)
    words = occupied.shape[1] // 4
    blocks = (cells != 0).view(-1, 1, words, words, words)
    empty = torch.full_like(blocks, 15, dtype=torch.uint8)
    for side, within in ((4, 7), (2, 3), (1, 0)):  # cubes of blocks that are not empty
        around = functional.max_pool3d(blocks.float(), side)
        empty[functional.interpolate(around, scale_factor=side) > 0] = within
    return cells, _pack_bits(blocks[:, 0]), empty.flatten(1)


def slice_grid_reference(cells: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leave cells out by torch (see `slice_grid`)."""
    for axis in (2, 3, 4):
        live = live.repeat_interleave(2, axis)
    side = live.shape[-1]
    occupied = (live & _unpack_bits(cells, side)).flatten(0, 1)
    return pack_grid_reference(occupied)


def visible_cells_reference(
    cameras: Cameras,
    masks: Tensor | None,
    aabb: tuple[float, ...],
    num_levels: int,
    resolution: int,
    near: float,
) -> Tensor:
    """Find the cells that can hold anything by torch (see `visible_cells`)."""
    low, high = torch.tensor(aabb[:3]), torch.tensor(aabb[3:])
    center, half = ((low + high) / 2).to(cameras.poses), ((high - low) / 2).to(cameras.poses)
    axis = (torch.arange(resolution, device=center.device) + 0.5) * 2 / resolution - 1
    unit = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    counts, mask_scale = _mask_counts(masks, cameras)
    levels = []
    for scale in (2.0**level for level in range(num_levels)):
        points, radius = center + unit * scale * half, (scale * half / resolution).norm()
        seen = torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
        empty = torch.zeros_like(seen)
        for camera in range(len(cameras)):
            in_sight, box, depth = _project(cameras, camera, points, radius, near)
            seen |= in_sight
            if len(counts):
                empty |= (
                    in_sight
                    & (depth >= 4 * radius)
                    & _transparent(counts[camera], box * mask_scale)
                )
        levels.append(seen & ~empty)
    return torch.stack(levels)


def _project(
    cameras: Cameras, camera: int, points: Tensor, radius: Tensor, near: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Project spheres: are they in sight, their boxes (left, right, top, bottom) and depths."""
    pose, k = cameras.poses[camera], cameras.intrinsics[camera]
    x, y, z = ((points - pose[:, 3]) @ pose[:, :3]).unbind(-1)
    scale = 1 / (-z).clamp(min=1e-6)
    u, v = k[0] * x * scale + k[2], -k[1] * y * scale + k[3]
    margin_u, margin_v = k[0] * radius * scale, k[1] * radius * scale
    inside = (u > -margin_u) & (u < cameras.widths[camera] + margin_u)
    inside &= (v > -margin_v) & (v < cameras.heights[camera] + margin_v) & (radius - z >= near)
    # A near sphere looks larger than radius / depth.
    margin_u, margin_v = 1.1 * margin_u, 1.1 * margin_v
    return inside, torch.stack([u - margin_u, u + margin_u, v - margin_v, v + margin_v]), -z


def _transparent(counts: Tensor, box: Tensor) -> Tensor:
    """Tell whether boxes of mask pixels lie wholly on transparent ones.

    A box is (left, right, top, bottom).
    """
    height, width = counts.shape[0] - 1, counts.shape[1] - 1
    left, right, top, bottom = box
    inside = (left >= 0) & (right < width) & (top >= 0) & (bottom < height)
    x0, y0 = left.clamp(0, width - 1).long(), top.clamp(0, height - 1).long()
    x1, y1 = right.clamp(0, width - 1).long() + 1, bottom.clamp(0, height - 1).long() + 1
    return inside & (counts[y1, x1] - counts[y0, x1] - counts[y1, x0] + counts[y0, x0] == 0)


def _mask_counts(masks: Tensor | None, cameras: Cameras) -> tuple[Tensor, float]:
    """Count opaque mask pixels above and left of each, [C, h + 1, w + 1] int32.

    Masks are pooled first: a mask pixel is transparent where all of its image pixels are. Returns
    mask pixels per image pixel too.
    """
    if masks is None:
        return cameras.poses.new_empty(0, 0, 0, dtype=torch.int32), 1.0
    pool = max(1, -(-max(masks.shape[1:]) // MASK_PIXELS))
    pooled = functional.max_pool2d(masks[:, None].float(), pool, ceil_mode=True)[:, 0]
    counts = pooled.int().cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return functional.pad(counts, (1, 0, 1, 0)).contiguous(), 1 / pool


def _lattice(near: Tensor, s: Tensor, settings: March) -> Tensor:
    """Evaluate t(s) for near [R] and s [R, K]."""
    linear = near[:, None] + s * settings.step
    if settings.cone_angle <= 0:
        return linear
    knee = near.clamp(min=settings.step / settings.cone_angle)[:, None]
    knee_s = (knee - near[:, None]) / settings.step
    beyond = knee * torch.exp((s - knee_s).clamp(min=0) * math.log1p(settings.cone_angle))
    return torch.where(s <= knee_s, linear, beyond)


def _occupied_at(grid: Grid, points: Tensor, slices: Tensor) -> Tensor:
    """Look points [R, K, 3] up in the first box that holds them, each ray's in its slice of time.

    Outside of all boxes nothing is occupied.
    """
    slices = slices if len(slices) else torch.zeros_like(points[:, 0, 0], dtype=torch.int32)
    slices = slices.long()[:, None].expand(points.shape[:2])
    found = torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
    done = torch.zeros_like(found)
    resolution = torch.tensor(grid.resolution, device=points.device)
    boxes = torch.tensor(grid.boxes, dtype=torch.float64).view(-1, 2, 3)
    for level, (low, high) in enumerate(boxes):
        occupied = grid.occupied[level :: len(boxes)]  # [T, *resolution]
        center, half = ((low + high) / 2).to(points), ((high - low) / 2).to(points)
        unit = (points - center) * (1 / half)
        here = ((unit >= -1) & (unit < 1)).all(-1) & ~done
        cell = ((unit[here] * 0.5 + 0.5) * resolution).long().clamp(min=0)
        cell = torch.minimum(cell, resolution - 1)
        found[here] = occupied[slices[here], cell[:, 0], cell[:, 1], cell[:, 2]]
        done |= here
    return found


def march_to_reference(
    rays: Rays, jitter: Tensor, grid: Grid, settings: March
) -> tuple[Samples, Tensor]:
    """March by testing every step of every ray (see `march_to`): O(rays * max_steps) memory."""
    if settings.step <= 0:
        return _cut_at_walls(rays, grid, settings)
    k = torch.arange(settings.max_steps + 1, device=rays.near.device)
    bounds = _lattice(rays.near, k + jitter[:, None], settings)  # [R, max_steps + 1]
    middle = 0.5 * (bounds[:, :-1] + bounds[:, 1:])
    points = rays.origins[:, None] + middle[..., None] * rays.directions[:, None]
    keep = (
        _occupied_at(grid, points, grid.slices_of(rays))
        & (middle < rays.far[:, None])
        & (rays.near < rays.far)[:, None]
    )
    keep &= keep.cumsum(1) <= settings.max_samples
    ray_indices, steps = keep.nonzero(as_tuple=True)
    offsets = _offsets(keep.sum(1))
    t_ends = bounds[ray_indices, steps + 1]
    samples = Samples(bounds[ray_indices, steps], t_ends, ray_indices, offsets)
    # A ray that may have no more ends behind its last sample, another beyond the boxes or its end.
    enter, leave = _bounds(rays, grid)
    beyond = (middle >= rays.far[:, None]) | (middle > leave[:, None])
    last = torch.where(beyond.any(1), beyond.int().argmax(1), settings.max_steps)
    full = keep.sum(1) == settings.max_samples
    last = torch.where(full, (keep * k[1:]).amax(1), last) if settings.max_steps else last
    ends = bounds.gather(1, last[:, None])[:, 0]
    return samples, torch.where((rays.near < rays.far) & (enter < leave), ends, rays.near)


def _bounds(rays: Rays, grid: Grid) -> tuple[Tensor, Tensor]:
    """Clip rays to where they meet any box: from [R] and to [R], in the wrong order where none."""
    boxes = torch.tensor(grid.boxes, dtype=torch.float64).view(-1, 2, 3).to(rays.origins)
    walls = (boxes[:, :, None] - rays.origins) / rays.directions  # [L, 2, R, 3]
    inside = (rays.origins >= boxes[:, :1]) & (rays.origins < boxes[:, 1:])  # [L, R, 3]
    still, lost = rays.directions == 0, torch.inf
    low = torch.where(still, torch.where(inside, -lost, lost), walls.amin(1)).amax(-1)
    high = torch.where(still, torch.where(inside, lost, -lost), walls.amax(1)).amin(-1)
    low, high = torch.maximum(low, rays.near), torch.minimum(high, rays.far)
    met = low < high
    enter = torch.where(met, low, torch.inf).amin(0)
    return enter, torch.where(met, high, -torch.inf).amax(0)


def _cut_at_walls(rays: Rays, grid: Grid, settings: March) -> tuple[Samples, Tensor]:
    """Cut rays at all walls of all cells of all boxes; keep the pieces in occupied cells."""
    boxes = torch.tensor(grid.boxes, dtype=torch.float64).view(-1, 2, 3)
    origins, directions = rays.origins.double(), rays.directions.double()
    enter, leave = _bounds(rays, grid)
    cuts = [enter.double()[:, None], leave.double()[:, None]]
    for low, high in boxes.to(origins.device):
        for axis in range(3):
            walls = torch.linspace(0, 1, grid.resolution[axis] + 1, dtype=torch.float64)
            places = low[axis] + walls.to(low) * (high[axis] - low[axis])
            cuts.append((places - origins[:, axis, None]) / directions[:, axis, None])
    met = (enter < leave)[:, None]
    t = torch.cat(cuts, 1).nan_to_num(0.0)
    t = torch.where(met, t.clamp(enter[:, None].double(), leave[:, None].double()), 0.0).sort(1)[0]
    middle = (t[:, 1:] + t[:, :-1]) / 2
    points = origins[:, None] + middle[..., None] * directions[:, None]
    keep = _occupied_at(grid, points, grid.slices_of(rays)) & (t[:, 1:] - t[:, :-1] > 1e-6) & met
    keep &= keep.cumsum(1) <= settings.max_samples
    ray_indices, steps = keep.nonzero(as_tuple=True)
    starts, ends = t[ray_indices, steps].float(), t[ray_indices, steps + 1].float()
    full = keep.sum(1) == settings.max_samples
    last = torch.where(keep, t[:, 1:], 0.0).amax(1).float()
    reached = torch.where(full, last, torch.where(met[:, 0], leave, rays.near))
    return Samples(starts, ends, ray_indices, _offsets(keep.sum(1))), reached


def visible_samples_reference(
    samples: Samples,
    density: Tensor,
    early_stop_eps: float,
    alpha_thre: float | Tensor,
    min_weight: float | Tensor,
) -> Tensor:
    """Find the samples that are seen by torch (see `visible_samples`)."""
    return visible_in_turn_reference(samples, density, early_stop_eps, alpha_thre, min_weight)[0]


def visible_in_turn_reference(
    samples: Samples,
    density: Tensor,
    early_stop_eps: float,
    alpha_thre: float | Tensor,
    min_weight: float | Tensor,
    arriving: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the samples that are seen by torch (see `visible_in_turn`)."""
    rays, num_rays = samples.ray_indices, len(samples.offsets) - 1
    arriving = density.new_ones(num_rays) if arriving is None else arriving
    optical = density.double() * (samples.t_ends.double() - samples.t_starts.double())
    # Clamped: what is opaque must not swallow the digits of all rays after it.
    before = optical.clamp(max=100).cumsum(0) - optical.clamp(max=100)
    first = samples.offsets[:-1][samples.ray_indices]
    transmittance = torch.exp(-(before - before[first]) if len(samples) else -before)
    transmittance = transmittance * arriving.double()[rays]
    alpha = 1 - torch.exp(-optical)
    seen = (transmittance >= early_stop_eps) & (alpha >= alpha_thre)
    there = used_rows(samples)
    sums = optical.new_zeros(num_rays).index_add(0, rays, torch.where(there, optical, 0.0))
    leaving = arriving * torch.exp(-sums).to(arriving.dtype)
    return seen & (transmittance * alpha >= min_weight) & there, leaving


def mean_alpha_reference(samples: Samples, density: Tensor) -> Tensor:
    """Average the opacity of samples by torch (see `mean_alpha`)."""
    alpha = -torch.expm1(density * (samples.t_starts - samples.t_ends))
    return torch.where(used_rows(samples), alpha, 0.0).sum() / samples.offsets[-1].clamp(min=1)


def _offsets(counts: Tensor) -> Tensor:
    offsets = torch.zeros(counts.shape[0] + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


# ------------------------------------------------------------------------------------- registration


@library.fake("pack_grid")
def _pack_grid_fake(occupied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    levels, side = occupied.shape[:2]
    return _grid_bits_fake(occupied.new_empty(levels, (side // 4) ** 3, dtype=torch.int64))


def _grid_bits_fake(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num, words = cells.shape
    return cells, cells.new_empty(num, words // 64), cells.new_empty(num, words, dtype=torch.uint8)


@library.fake("slice_grid")
def _slice_grid_fake(cells: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _grid_bits_fake(cells.new_empty(live.shape[0] * live.shape[1], cells.shape[1]))


@library.fake("visible_cells")
def _visible_cells_fake(poses: Tensor, *rest: Any) -> Tensor:
    boxes, resolution = rest[-3], rest[-2]
    return poses.new_empty(len(boxes) // 6, *resolution, dtype=torch.bool)


@library.fake("march_count")
def _march_count_fake(origins: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    num_rays, make = origins.shape[0], origins.new_empty
    return make(num_rays, dtype=torch.int64), make(num_rays)


@library.fake("march_write")
def _march_write_fake(origins: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_samples = rest[-1]
    make = origins.new_empty
    return make(num_samples), make(num_samples), make(num_samples, dtype=torch.int64)


@library.fake("march_runs")
def _march_runs_fake(origins: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    boxes, resolution, max_steps, max_samples = rest[-9], rest[-8], rest[-4], rest[-3]
    num_rays, make, num_levels = origins.shape[0], origins.new_empty, len(boxes) // 6
    # most_runs of csrc/cuda/march.cu
    pieces = min(max_steps, num_levels * (sum(resolution) + num_levels + 1))
    most = max(min(pieces // 2 + 1, max_samples), 1)
    return (
        make(num_rays, dtype=torch.int64),
        make(num_rays),
        make(num_rays, most, dtype=torch.int64),
        make(num_rays, dtype=torch.int32),
        make(num_rays, dtype=torch.int32),
    )


@library.fake("march_fill")
def _march_fill_fake(near: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_samples, make = rest[-1], near.new_empty
    return make(num_samples), make(num_samples), make(num_samples, dtype=torch.int64)


@library.fake("march")
def _march_fake(origins: Tensor, *_: object) -> tuple[Tensor, ...]:
    num_samples = torch.library.get_ctx().new_dynamic_size()
    num_rays, make = origins.shape[0], origins.new_empty
    return (
        make(num_samples),
        make(num_samples),
        make(num_samples, dtype=torch.int64),
        make(num_rays + 1, dtype=torch.int64),
        make(num_rays),
    )


@library.fake("alpha_shares")
def _alpha_shares_fake(density: Tensor, *_: object) -> Tensor:
    return density.new_empty(ALPHA_SHARES)


@library.fake("visible_samples")
def _visible_samples_fake(
    density: Tensor, _s: Tensor, _e: Tensor, offsets: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    visible = density.new_empty(density.shape[0], dtype=torch.bool)
    return visible, density.new_empty(offsets.shape[0] - 1)


# --------------------------------------------------------------------------------- public functions


def nested_boxes(aabb: Sequence[float], num_levels: int) -> tuple[float, ...]:
    """List boxes [6 L], each twice as large as the one before it about the centre of aabb [6]."""
    center = [(low + high) / 2 for low, high in zip(aabb[:3], aabb[3:], strict=True)]
    half = [(high - low) / 2 for low, high in zip(aabb[:3], aabb[3:], strict=True)]
    boxes: list[float] = []
    for scale in (2.0**level for level in range(num_levels)):
        boxes += [c - scale * h for c, h in zip(center, half, strict=True)]
        boxes += [c + scale * h for c, h in zip(center, half, strict=True)]
    return tuple(boxes)


def pack_grid(occupied: Tensor, boxes: Sequence[float]) -> Grid:
    """Make a grid of flags [L, X, Y, Z], x slowest.

    Args:
        occupied: bool; of any resolution, though multiples of 16 need no copy.
        boxes: [6 L] of all levels, or [6] of level 0, where each further one is twice as large.

    Raises:
        UserError: more than 16 levels.
    """
    levels, *resolution = occupied.shape
    if levels > MAX_BOXES:
        raise UserError(f"a grid of {levels} levels: there can be {MAX_BOXES} at most")
    side = max(16, -(-max(resolution) // 16) * 16)
    missing = [side - n for n in resolution]
    if any(missing):
        x, y, z = missing
        occupied = functional.pad(occupied, (0, z, 0, y, 0, x))
    pack = torch.ops.nerftrain.pack_grid if library.native(occupied) else pack_grid_reference
    cells, blocks, empty = pack(occupied.contiguous())
    boxes = nested_boxes(boxes, levels) if len(boxes) == 6 else tuple(boxes)
    x, y, z = resolution
    return Grid(cells, blocks, empty, boxes, (x, y, z), side)


def slice_grid(grid: Grid, live: Tensor) -> Grid:
    """Make a grid for each of T slices of time out of one for all time.

    Of its cells those are left that lie in live cubes of 2**3.

    Args:
        grid: of L levels, its resolution a multiple of 16.
        live: [T, L, side / 2, side / 2, side / 2] bool, which cubes hold anything in which slice.
    """
    slice_bits = torch.ops.nerftrain.slice_grid if library.native(live) else slice_grid_reference
    cells, blocks, empty = slice_bits(grid.cells, live.contiguous())
    return replace(grid, cells=cells, blocks=blocks, empty=empty)


def visible_cells(
    cameras: Cameras,
    masks: Tensor | None,
    aabb: tuple[float, ...],
    num_levels: int,
    resolution: int,
    near: float,
) -> Tensor:
    """Find the cells that can hold anything the cameras show.

    They are flags [L, resolution, resolution, resolution], bool. A cell counts where a camera sees
    its bounding sphere beyond `near` and, given masks, no camera sees it wholly in front of
    transparent pixels.

    Args:
        cameras: C cameras.
        masks: [C, H, W] bool, true where a pixel is not wholly transparent; or None.
        aabb: of level 0.
        num_levels: L.
        resolution: cells per side.
        near: world units.
    """
    if not library.native(cameras.poses):
        return visible_cells_reference(cameras, masks, aabb, num_levels, resolution, near)
    sizes = torch.stack([cameras.widths, cameras.heights], -1).float()
    tensors = (cameras.poses.contiguous(), cameras.intrinsics.contiguous(), sizes)
    counts, scale = _mask_counts(masks, cameras)
    boxes = list(nested_boxes(aabb, num_levels))
    return torch.ops.nerftrain.visible_cells(*tensors, counts, scale, boxes, [resolution] * 3, near)


def live_pixels(cameras: Cameras, cells: Tensor, aabb: tuple[float, ...]) -> Tensor:
    """Find the pixels whose rays may meet a cell: flags [C, H, W], bool.

    They are those near the projected centre of a cell, as far as the nearest cell looks large: a
    sphere's outline is f r / (z cos a) from its centre where a ray at the angle a off the axis
    touches it. Torch alone, for it is done once.

    Args:
        cameras: C cameras of one size, H x W.
        cells: [n, n, n] bool, those that count.
        aabb: of the grid.
    """
    low, high = torch.tensor(aabb, device=cells.device).view(2, 3)
    size = (high - low) / torch.tensor(cells.shape, device=cells.device)
    centers, radius = low + (cells.nonzero() + 0.5) * size, size.norm() / 2
    height, width = int(cameras.heights[0]), int(cameras.widths[0])
    pool = max(1, -(-max(height, width) // MASK_PIXELS))
    shape = (-(-height // pool), -(-width // pool))
    live = torch.zeros(len(cameras), *shape, dtype=torch.bool, device=cells.device)
    for camera, pose in enumerate(cameras.poses):
        x, y, z = ((centers - pose[:, 3]) @ pose[:, :3]).unbind(-1)
        front = z < radius  # what lies wholly behind the camera is not seen
        nearest = -float(z[front].max()) if bool(front.any()) else float("inf")
        if nearest < NEAR_RADII * radius:
            live[camera] = True
            continue
        fx, fy, cx, cy = (float(number) / pool for number in cameras.intrinsics[camera])
        corner = max(cx, shape[1] - cx) / fx, max(cy, shape[0] - cy) / fy
        stretch = math.hypot(1.0, *corner)  # one over the cosine at the image's farthest corner
        reach = math.ceil(stretch * max(fx, fy) * float(radius) / nearest) + 1
        rows, columns = (
            (place[front] + reach).floor().long() for place in (y / z * fy + cy, cx - x / z * fx)
        )
        inside = (rows >= 0) & (rows < shape[0] + 2 * reach)
        inside &= (columns >= 0) & (columns < shape[1] + 2 * reach)
        canvas = torch.zeros(shape[0] + 2 * reach, shape[1] + 2 * reach, device=cells.device)
        canvas[rows[inside], columns[inside]] = 1.0
        live[camera] = functional.max_pool2d(canvas[None], 2 * reach + 1, 1)[0] > 0
    live = live.repeat_interleave(pool, 1).repeat_interleave(pool, 2)
    return live[:, :height, :width]


def march(
    rays: Rays, jitter: Tensor, grid: Grid, settings: March, room: int | None = None
) -> Samples:
    """March rays through a grid to the samples whose midpoints lie in occupied cells.

    There is no gradient.

    Args:
        rays: R rays in float32.
        jitter: [R] in 0..1, the share of a step by which a ray's lattice is shifted.
        grid: the cells that are occupied.
        settings: the steps.
        room: rows of the samples' buffers, whole rays that do not fit are left out; None: as many
            as there are, which a GPU has to be asked.
    """
    return march_to(rays, jitter, grid, settings, room)[0]


def march_to(
    rays: Rays, jitter: Tensor, grid: Grid, settings: March, room: int | None = None
) -> tuple[Samples, Tensor]:
    """March as `march` does, and tell where each ray's march ended: [R].

    That is behind its last sample where it may have no more, else where it leaves all boxes or
    comes to its end; a ray that meets nothing stays at its near distance.
    """
    if not library.native(rays.origins, rays.directions, jitter, grid.cells):
        samples, ends = march_to_reference(rays, jitter, grid, settings)
        return samples if room is None else padded(samples, room), ends
    lines = rays.origins.contiguous(), rays.directions.contiguous()
    arguments = Marching(jitter, grid, settings).arguments(rays)
    if library.on_cpu(rays.origins):
        *packed, ends = torch.ops.nerftrain.march(*lines, *arguments)
        samples = Samples(*packed)
        return samples if room is None else padded(samples, room), ends
    if settings.step > 0:
        found = _runs(rays, Marching(jitter, grid, settings), None)
        return _fill(rays, jitter, found, settings, room), found.ends
    counts, ends = torch.ops.nerftrain.march_count(*lines, *arguments)
    offsets, whole, num_samples = _fitting(counts, room)
    packed = torch.ops.nerftrain.march_write(*lines, *arguments, offsets, num_samples)
    t_starts, t_ends, ray_indices = packed
    return Samples(t_starts, t_ends, ray_indices, offsets, whole), ends


class _Runs(NamedTuple):
    """Which steps of R rays are samples, as runs of steps: so rays are marched once."""

    counts: Tensor  # [R] int64, samples
    ends: Tensor  # [R]
    runs: Tensor  # [R, M] int64: the first step, and how many samples are before it
    nums: Tensor  # [R] int32, runs
    reached: Tensor  # [R] int32, the step at which a march goes on


def _runs(rays: Rays, marching: Marching, begin: Tensor | None) -> _Runs:
    lines = rays.origins.contiguous(), rays.directions.contiguous()
    told = lines[0].new_empty(0, dtype=torch.int32) if begin is None else begin
    arguments = *lines, *marching.arguments(rays), marching.grid.empty
    found = torch.ops.nerftrain.march_runs(*arguments, told)
    return _Runs(*found)


def _fill(rays: Rays, jitter: Tensor, found: _Runs, settings: March, room: int | None) -> Samples:
    offsets, whole, num_samples = _fitting(found.counts, room)
    stepping = settings.step, settings.cone_angle, settings.max_steps
    starts = rays.near.contiguous(), jitter.contiguous()
    t_starts, t_ends, ray_indices = torch.ops.nerftrain.march_fill(
        *starts, found.runs, found.nums, *stepping, offsets, num_samples
    )
    return Samples(t_starts, t_ends, ray_indices, offsets, whole)


def _fitting(counts: Tensor, room: int | None) -> tuple[Tensor, Tensor | None, int]:
    """Find offsets, which rays have room, and how many rows there are."""
    if room is not None:
        return *fit(counts, room), room
    offsets = _offsets(counts)
    # A synchronisation on CUDA: the size of what follows.
    return offsets, None, int(offsets[-1])


def march_on(
    rays: Rays, marching: Marching, room: int, most: int, begin: Tensor | None = None
) -> tuple[Samples, Tensor | None]:
    """March as `march` does, in rounds: to the next samples of each ray, at most so many.

    Gives the samples too [R] int32 steps at which rays go on; None where there are no rounds: then
    the samples are all that there are.

    Args:
        rays: R rays.
        marching: how these are marched.
        room: rows of the samples' buffers.
        most: samples of a ray.
        begin: [R] int32 steps at which rays go on, max_steps where they do not; None: at first.
    """
    settings = marching.settings
    if library.on_cpu(rays.origins) or settings.step <= 0 or not library.native(rays.origins):
        return march(rays, *marching, room), None
    most = min(most, settings.max_samples)
    found = _runs(rays, marching._replace(settings=replace(settings, max_samples=most)), begin)
    return _fill(rays, marching.jitter, found, settings, room), found.reached


@torch.no_grad()
def visible_samples(
    samples: Samples,
    density: Tensor,
    early_stop_eps: float,
    alpha_thre: float | Tensor,
    min_weight: float | Tensor,
) -> Tensor:
    """Find the samples that are seen: [N] bool.

    A sample is seen where the transmittance in front of it is at least `early_stop_eps`, its
    opacity at least `alpha_thre` (both NerfAcc's) and its weight at least `min_weight`; the last
    two are numbers, or tensors [] that only the device knows. Density is [N].
    """
    return visible_in_turn(samples, density, early_stop_eps, alpha_thre, min_weight)[0]


@torch.no_grad()
def visible_in_turn(
    samples: Samples,
    density: Tensor,
    early_stop_eps: float,
    alpha_thre: float | Tensor,
    min_weight: float | Tensor,
    arriving: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the samples that are seen as `visible_samples` does, behind others of their rays.

    Takes the transmittance in front of the first samples (arriving [R]; None: 1) and gives with the
    flags that behind the last [R]; where it falls below `early_stop_eps` it need not be exact.
    """
    check_field(len(samples), density)
    thresholds = (early_stop_eps, alpha_thre, min_weight)
    if not library.native(density, samples.offsets):
        return visible_in_turn_reference(samples, density, *thresholds, arriving)
    numbers = (t.to(density.dtype) for t in (density, samples.t_starts, samples.t_ends))
    inputs = [t.contiguous() for t in (*numbers, samples.offsets)]
    if library.on_cpu(density) and not any(isinstance(t, Tensor) for t in thresholds):
        least = torch.tensor([alpha_thre, min_weight])
    else:  # without a copy from the host, which a recording refuses
        told = (t if isinstance(t, Tensor) else density.new_full((), t) for t in thresholds[1:])
        least = torch.stack(list(told))
    least = least.to(density.dtype)
    light = density.new_empty(0) if arriving is None else arriving.to(density.dtype).contiguous()
    return torch.ops.nerftrain.visible_samples(*inputs, least, early_stop_eps, light)


@torch.no_grad()
def mean_alpha(samples: Samples, density: Tensor) -> Tensor:
    """Average the opacity of N samples of density [N]: [].

    Rows of a buffer that are nobody's do not count; without any samples it is 0.
    """
    check_field(len(samples), density)
    if not library.native(density, samples.offsets):
        return mean_alpha_reference(samples, density)
    numbers = (t.to(density.dtype) for t in (density, samples.t_starts, samples.t_ends))
    packed = (t.contiguous() for t in (*numbers, samples.offsets))
    return torch.ops.nerftrain.alpha_shares(*packed).sum()
