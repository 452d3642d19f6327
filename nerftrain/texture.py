"""Textures of meshes: triangles laid out flat (xatlas), and each texel coloured by what views see.

Letters beside those of mesh.py: ``T`` texels on a side, ``S`` texels that a triangle covers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from nerftrain import mesh
from nerftrain.errors import UserError
from nerftrain.mesh import DepthViews, Mesh

EXTRA = "texture"  # what pip installs the libraries by
MARGIN = 2  # texels around each piece of the surface
TEXELS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Textured:
    """Triangles with an image laid on them."""

    vertices: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3] integers
    places: np.ndarray  # [V, 2] float64 in 0..1, right and up in the image
    image: np.ndarray  # [T, T, 3] uint8


def check_size(texels: int) -> None:
    """Raise UserError for a side of a texture that is of no use."""
    if not 64 <= texels <= 8192:
        raise UserError(f"--texture {texels}: give 64 to 8192 texels on a side")


def textured(views: DepthViews, found: Mesh, reach: float, texels: int) -> Textured:
    """Lay a texture of `texels` on a side over a mesh, in the colours that views see.

    Args:
        views: all that tells colours.
        found: the mesh, in the views' coordinates.
        reach: how far from it a view's own surface may lie, to count.
        texels: T.

    Raises:
        UserError: a library is missing, or the pieces do not fit.
    """
    sources, faces, places = _laid_out(found, texels)
    vertices = found.vertices[sources]
    image = np.zeros((texels, texels, 3), np.uint8)
    known = np.zeros((texels, texels), bool)
    normals = _normals(vertices, faces)
    parts = list(_covered(faces, places, texels))
    for rows, columns, its_faces, shares in tqdm(
        parts, desc="colouring", unit="part", leave=False, disable=None
    ):
        where = np.einsum("sk,skd->sd", shares, vertices[faces[its_faces]]), normals[its_faces]
        positions, facing = (torch.from_numpy(x).to(views.cameras.poses) for x in where)
        image[rows, columns] = mesh.seen_colors(views, positions, reach, facing)
        known[rows, columns] = True
    return Textured(vertices, faces, places, _grown(image, known))


def _laid_out(found: Mesh, texels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a mesh open and lay its pieces side by side.

    Returns:
        Of each new vertex the one it was [V], the faces [F, 3], and places [V, 2] in 0..1.
    """
    xatlas = mesh.library("xatlas", "xatlas", EXTRA)
    atlas = xatlas.Atlas()
    atlas.add_mesh(found.vertices.astype(np.float32), found.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = texels, MARGIN, True
    atlas.generate(xatlas.ChartOptions(), packing)
    sources, faces, places = atlas[0]
    # Its own estimate of the scale may overshoot the side that was asked for, or need several.
    if atlas.atlas_count != 1 or not len(faces):
        raise UserError(f"the surface does not fit --texture {texels}: give more, or fewer --faces")
    # Squares stay squares: the longer side is the whole of the image's.
    sides = np.array([atlas.width, atlas.height], np.float64)
    return sources, faces.astype(np.int64), places * (sides / sides.max())


def _normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    first, second, third = (vertices[faces[:, corner]] for corner in range(3))
    normals = np.cross(second - first, third - first)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-30)


def _covered(
    faces: np.ndarray, places: np.ndarray, texels: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Find the texels whose middles triangles cover, some triangles at a time.

    Yields:
        Rows and columns [S] of the image, the face [S] of each, and its corners' shares [S, 3].
    """
    corners = places[faces] * [texels, -texels] + [0, texels]  # [F, 3, 2] right and down, texels
    low = np.floor(corners.min(1) - 0.5).astype(np.int64).clip(0)
    high = np.ceil(corners.max(1) + 0.5).astype(np.int64).clip(max=texels)
    sides = (high - low).clip(0)
    ends = (sides[:, 0] * sides[:, 1]).cumsum()
    breaks = np.searchsorted(ends, np.arange(TEXELS_AT_ONCE, ends[-1], TEXELS_AT_ONCE))
    for some in np.split(np.arange(len(faces)), np.unique(breaks)):
        if not len(some):
            continue
        counts = sides[some, 0] * sides[some, 1]
        its = np.repeat(some, counts)
        within = np.arange(len(its)) - np.repeat(counts.cumsum() - counts, counts)
        columns = low[its, 0] + within % sides[its, 0]
        rows = low[its, 1] + within // sides[its, 0]
        shares = _shares(np.stack([columns, rows], 1) + 0.5, corners[its])
        inside = (shares >= -1e-9).all(1)
        yield rows[inside], columns[inside], its[inside], shares[inside]


def _shares(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Write points [S, 2] as means of the corners [S, 3, 2] of triangles: their weights [S, 3]."""
    to_second, to_third = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    offset = points - corners[:, 0]
    area = to_second[:, 0] * to_third[:, 1] - to_second[:, 1] * to_third[:, 0]
    area = np.where(area == 0, np.inf, area)
    second = (offset[:, 0] * to_third[:, 1] - offset[:, 1] * to_third[:, 0]) / area
    third = (to_second[:, 0] * offset[:, 1] - to_second[:, 1] * offset[:, 0]) / area
    return np.stack([1 - second - third, second, third], 1)


def _grown(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Give texels that no triangle covers the colour of the nearest that one does.

    What reads a texture between texels, or shrunk, reads beyond the edges of pieces.
    """
    from scipy.ndimage import distance_transform_edt  # a dependency of scikit-image

    if not known.any():
        return image
    nearest = np.asarray(
        distance_transform_edt(~known, return_distances=False, return_indices=True)
    )
    return image[nearest[0], nearest[1]]
