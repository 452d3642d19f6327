"""Surfaces from depth images: signed distances averaged over views, then marching cubes.

A voxel at x, at distance d(x) from a camera whose pixel there sees a surface at distance D, lies
s = D - d(x) in front of it. The mean of s / tau, cut off at 1, over all views with s > -tau is zero
on the surface (Curless and Levoy, SIGGRAPH 1996, sec. 3.1, all weights one). Only blocks of voxels
that some view sees a surface in are reckoned with (Niessner et al., SIGGRAPH Asia 2013).

Letters beside those of types.py: ``V`` voxels or vertices, ``F`` faces, ``X Y Z`` a grid's voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nerftrain.errors import UserError
from nerftrain.types import Cameras

BLOCK = 8  # voxels on a side
TRUNCATION = 4.0  # tau, in voxels; at most half a block, or its neighbours would not be enough
BLOCKS_AT_ONCE = 4096  # two million voxels
LEAST_SHARE = 1e-3  # of the largest piece's faces: what has fewer is a speck in the air
POINTS_ENOUGH = 1 << 21  # to tell where what is seen ends
_NOTHING_SEEN = "nothing solid is seen in the box: train longer, or give a larger --box"
# Colours of views that do not see a vertex count as little as this beside those that do.
HIDDEN = 1e-6


@dataclass(frozen=True)
class DepthViews:
    """What pinhole cameras see: how far away and in which colour."""

    cameras: Cameras  # C, without distortion
    depths: Sequence[Tensor]  # [H, W] each, distance along the pixel's ray; infinite: nothing
    colors: Sequence[Tensor]  # [H, W, 3] uint8 each

    def __len__(self) -> int:
        return len(self.cameras)

    def points(self, index: int) -> tuple[Tensor, Tensor]:
        """Place the pixels of a view in space: positions [P, 3] and colours [P, 3] uint8."""
        depth = self.depths[index]
        seen = depth.isfinite()
        y, x = seen.nonzero().unbind(1)
        fx, fy, cx, cy = self.cameras.intrinsics[index].unbind()
        ahead = [(x + 0.5 - cx) / fx, (cy - y - 0.5) / fy, -torch.ones_like(depth[seen])]
        directions = torch.nn.functional.normalize(torch.stack(ahead, 1), dim=1)
        pose = self.cameras.poses[index]
        positions = (directions * depth[seen][:, None]) @ pose[:, :3].T + pose[:, 3]
        return positions, self.colors[index][seen]

    def behind(self, index: int, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the pixels behind positions [V, 3].

        Returns:
            Which positions are in the image [V] bool; of those [W] the row-major pixel, int64, and
            the distance from the camera.
        """
        pose, depth = self.cameras.poses[index], self.depths[index]
        height, width = depth.shape
        fx, fy, cx, cy = self.cameras.intrinsics[index].unbind()
        right, up, backward = ((positions - pose[:, 3]) @ pose[:, :3]).unbind(1)
        ahead = (-backward).clamp_min(1e-9)
        column, row = fx * right / ahead + cx, cy - fy * up / ahead
        inside = (backward < 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        pixels = row[inside].long() * width + column[inside].long()
        distances = torch.stack([right, up, backward], 1)[inside].norm(dim=1)
        return inside, pixels, distances


@dataclass(frozen=True)
class Grid:
    """Cubic voxels in blocks that cover a box."""

    low: Tensor  # [3] the lowest corner
    voxel: float  # length of a side
    blocks: tuple[int, int, int]  # along each axis

    @property
    def reach(self) -> float:
        """How far from the surface that a view sees it tells of space."""
        return TRUNCATION * self.voxel

    @staticmethod
    def over(box: Tensor, resolution: int) -> Grid:
        """Cover a box [6] with `resolution` voxels along its longest side, and a margin.

        Raises:
            UserError: `check_resolution`'s, or the box has no extent.
        """
        check_resolution(resolution)
        sides = box[3:] - box[:3]
        if not float(sides.max()) > 0:
            raise UserError(_NOTHING_SEEN)
        voxel = float(sides.max()) / resolution
        margin = 2 * TRUNCATION * voxel
        x, y, z = torch.ceil((sides + 2 * margin) / (voxel * BLOCK)).long().tolist()
        return Grid(box[:3] - margin, voxel, (x, y, z))

    def blocks_at(self, positions: Tensor) -> Tensor:
        """Find the blocks [V, 3] int64 that positions [V, 3] lie in, of those in the grid."""
        found = ((positions - self.low) / (self.voxel * BLOCK)).floor().long()
        limits = torch.tensor(self.blocks, device=found.device)
        return found[((found >= 0) & (found < limits)).all(1)]

    def middles(self, blocks: Tensor) -> Tensor:
        """Return the middles [B, BLOCK^3, 3] of the voxels of blocks [B, 3]."""
        within = torch.arange(BLOCK, device=blocks.device)
        offsets = torch.cartesian_prod(within, within, within)
        return (blocks[:, None] * BLOCK + offsets + 0.5) * self.voxel + self.low


@dataclass(frozen=True)
class Mesh:
    """Triangles with a colour at each vertex."""

    vertices: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3] integers, counter-clockwise seen from outside
    colors: np.ndarray  # [V, 3] uint8


def check_resolution(resolution: int) -> None:
    """Raise UserError for a number of voxels along a side that no grid can have."""
    if not 8 <= resolution <= 1024:
        raise UserError(f"resolution {resolution}: give 8 to 1024 voxels on the longest side")


def tight_box(views: DepthViews, box: Tensor) -> Tensor:
    """Shrink a box [6] to what views see in it, but for one point in a thousand on each side.

    Raises:
        UserError: they see nothing in it.
    """
    step = 1 + sum(depth.numel() for depth in views.depths) // POINTS_ENOUGH
    some = [views.points(index)[0][::step] for index in range(len(views))]
    points = torch.cat([part[_are_inside(part, box)] for part in some]).cpu().numpy()
    if not len(points):
        raise UserError(_NOTHING_SEEN)
    return torch.from_numpy(np.quantile(points, [0.001, 0.999], axis=0)).flatten().to(box)


def _are_inside(positions: Tensor, box: Tensor) -> Tensor:
    """Tell which positions [V, 3] are in a box [6], [V] bool."""
    return ((positions >= box[:3]) & (positions <= box[3:])).all(1)


def extract(views: DepthViews, grid: Grid) -> Mesh:
    """Find the surface that views see in a grid, and its mean colours.

    Raises:
        UserError: there is none, or scikit-image is missing.
    """
    blocks = _seen_blocks(views, grid)
    shape = tuple(BLOCK * count for count in grid.blocks)
    volume = np.ones(shape, np.float32)  # s / tau
    known = np.zeros(shape, bool)
    parts = list(blocks.split(BLOCKS_AT_ONCE))
    for part in tqdm(parts, desc="fusing", unit="part", leave=False, disable=None):
        means, seen = _mean_distances(views, grid, part)
        for values, target in ((means, volume), (seen, known)):
            _write_blocks(target, part.cpu().numpy(), values.cpu().numpy())
    vertices, faces = _marching_cubes(volume, known)
    vertices, faces = _without_specks(vertices, faces)
    placed = torch.from_numpy((vertices + 0.5) * grid.voxel) + grid.low.double().cpu()
    colors = seen_colors(views, placed.to(grid.low), grid.reach)
    return Mesh(placed.numpy(), faces, colors)


def simplified(views: DepthViews, found: Mesh, count: int, reach: float) -> Mesh:
    """Leave about `count` triangles of a mesh, where they are missed least.

    By quadric errors (Garland and Heckbert, SIGGRAPH 1997), in fast-simplification. Colours are
    seen anew, by views within `reach`.

    Raises:
        UserError: the library is missing.
    """
    if count >= len(found.faces):
        return found
    simplify = library("fast_simplification", "fast-simplification", "texture").simplify
    middle = found.vertices.mean(0)  # it works in float32
    vertices, faces = simplify(
        (found.vertices - middle).astype(np.float32),
        found.faces.astype(np.int32),
        target_count=count,
    )
    vertices = vertices.astype(np.float64) + middle
    placed = torch.from_numpy(vertices).to(views.cameras.poses)
    return Mesh(vertices, faces, seen_colors(views, placed, reach))


def _seen_blocks(views: DepthViews, grid: Grid) -> Tensor:
    """List the blocks [B, 3] within the truncation of a surface."""
    seen = torch.zeros(grid.blocks, dtype=torch.bool, device=grid.low.device)
    reach = grid.reach
    signs = torch.tensor([-1.0, 1.0], device=grid.low.device)
    for index in range(len(views)):
        points, _ = views.points(index)
        for corner in torch.cartesian_prod(signs, signs, signs) * reach:
            seen[tuple(grid.blocks_at(points + corner).T)] = True
    return seen.nonzero()


def _mean_distances(views: DepthViews, grid: Grid, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Average the signed distances of the voxels of blocks: s / tau [B, BLOCK^3], and where."""
    middles = grid.middles(blocks)
    positions, reach = middles.flatten(0, 1), grid.reach
    total, count = (torch.zeros(len(positions), device=positions.device) for _ in range(2))
    for index in range(len(views)):
        inside, pixels, distances = views.behind(index, positions)
        signed = (views.depths[index].flatten()[pixels] - distances) / reach
        counts = signed > -1
        total[inside] += torch.where(counts, signed.clamp(max=1), 0)
        count[inside] += counts
    seen = count > 0
    means = torch.where(seen, total / count.clamp_min(1), 1)
    return means.view(middles.shape[:2]), seen.view(middles.shape[:2])


def _write_blocks(target: np.ndarray, blocks: np.ndarray, values: np.ndarray) -> None:
    """Copy values [B, BLOCK^3] into the blocks [B, 3] of a grid [X, Y, Z]."""
    nx, ny, nz = (size // BLOCK for size in target.shape)
    view = target.reshape(nx, BLOCK, ny, BLOCK, nz, BLOCK)
    x, y, z = blocks.T
    view[x, :, y, :, z, :] = values.reshape(-1, BLOCK, BLOCK, BLOCK)


def _marching_cubes(volume: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find where a volume [X, Y, Z] passes zero in cubes whose corners are all known.

    Returns:
        Vertices [V, 3] in voxels from the middle of the first, and faces [F, 3].
    """
    measure = library("skimage.measure", "scikit-image")
    whole = known.copy()  # of a cube by its highest corner, as scikit-image reads its mask
    for axis in range(3):
        before = np.roll(whole, 1, axis)
        np.moveaxis(before, axis, 0)[0] = False
        whole &= before
    try:
        vertices, faces, _, _ = measure.marching_cubes(
            volume, 0.0, gradient_direction="descent", mask=whole, allow_degenerate=False
        )
    except (ValueError, RuntimeError) as error:  # all on one side of zero
        raise UserError(
            "no surface in the box: train longer, or give a larger --box or --resolution"
        ) from error
    return vertices, faces


def _without_specks(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out pieces of few faces, and vertices that no face uses."""
    from scipy.sparse import coo_array  # a dependency of scikit-image
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    size = (len(vertices), len(vertices))
    links = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=size)
    _, pieces = connected_components(links, directed=False)
    counts = np.bincount(pieces[faces[:, 0]])
    faces = faces[counts[pieces[faces[:, 0]]] >= LEAST_SHARE * counts.max()]
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def seen_colors(
    views: DepthViews, positions: Tensor, reach: float, normals: Tensor | None = None
) -> np.ndarray:
    """Average the colours [V, 3] uint8 of positions [V, 3] over the views that see them.

    Args:
        views: of the surface.
        positions: on it.
        reach: how far in front or behind what a view sees there a position may lie, to count.
        normals: [V, 3], unit; then a view counts by the fourth power of how straight it looks at
            the surface, and by how near it is: blurred is what is seen from aside and from afar.
    """
    total = torch.zeros(len(positions), 3, device=positions.device)
    weight = torch.zeros(len(positions), 1, device=positions.device)
    for index in range(len(views)):
        inside, pixels, distances = views.behind(index, positions)
        off = (views.depths[index].flatten()[pixels] - distances) / reach
        counts = torch.exp(-4 * off.square())
        if normals is not None:
            towards = views.cameras.poses[index][:, 3] - positions[inside]
            facing = (towards * normals[inside]).sum(1).clamp_min(0) / distances
            counts *= facing.pow(4) / (distances / reach).square()
        counts = counts.clamp_min(HIDDEN if normals is None else HIDDEN**2)[:, None]
        total[inside] += counts * views.colors[index].flatten(0, 1)[pixels].float()
        weight[inside] += counts
    return (total / weight.clamp_min(1e-30)).round().byte().cpu().numpy()


def sample_points(
    views: DepthViews, box: Tensor, count: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw at most `count` of the points in a box [6] that views see.

    Returns:
        Positions [P, 3] and colours [P, 3] uint8.

    Raises:
        UserError: they see nothing there.
    """
    parts = list(_points_inside(views, box))
    positions, colors = (torch.cat(list(part)).cpu() for part in zip(*parts, strict=True))
    if not len(positions):
        raise UserError(_NOTHING_SEEN)
    chosen = torch.randperm(len(positions), generator=generator)[:count]
    return positions[chosen].numpy(), colors[chosen].numpy()


def _points_inside(views: DepthViews, box: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for index in range(len(views)):
        positions, colors = views.points(index)
        inside = _are_inside(positions, box)
        yield positions[inside], colors[inside]


def library(module: str, package: str, extra: str = "export") -> Any:
    """Import a library that only exports need, and pip installs as an `extra`.

    Raises:
        UserError: it is missing.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this export needs {package} ({error}): pip install 'nerftrain[{extra}]'"
        ) from error
