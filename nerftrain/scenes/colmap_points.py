"""COLMAP's points: where each was found in which images (COLMAP documentation, "Output Format")."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.scenes.colmap_model import (
    COUNT,
    RESTORE,
    damaged,
    floats,
    model_suffix,
    numbered_lines,
    read_entries,
)

LEAST_TRACK = 3  # images that show a point: two agree by chance as well
_POINT = struct.Struct("<Q3d3BdQ")  # id, x y z, colour, error, images; then those
_IMAGE_OF_POINT = 8  # bytes: image, number of the point in it
_FOUND = np.dtype([("xy", "<f8", 2), ("point", "<u8")])

Found = tuple[Tensor, Tensor]  # pixels [n, 2] x y, places [n, 3], float64


def read_points(folder: Path) -> dict[str, Found]:
    """Read which points of the model in a folder its images show, and where.

    Returns:
        By the names of the images that show any: pixels [n, 2], the first one's centre at 0.5 0.5,
        as the images were when COLMAP was run, and places [n, 3] in the model's coordinates.

    Raises:
        UserError: the files are damaged.
    """
    suffix = model_suffix(folder)
    file, images = folder / f"points3D{suffix}", folder / f"images{suffix}"
    if not file.is_file():
        return {}
    ids, places = (_binary_points if suffix == ".bin" else _text_points)(file)
    if not len(ids):
        return {}
    order = np.argsort(ids)
    ids, places = ids[order], places[order]
    seen = {}
    for entry in read_entries(images, with_points=True):
        pixels, points = _found(entry.points, f"{images}: the points of {entry.name}")
        at = np.searchsorted(ids, points).clip(max=len(ids) - 1)
        known = ids[at] == points
        if known.any():
            seen[entry.name] = torch.from_numpy(pixels[known]), torch.from_numpy(places[at[known]])
    return seen


def _found(points: bytes | str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels [n, 2] and the numbers of the points there [n]."""
    if isinstance(points, bytes):
        table = np.frombuffer(points, _FOUND)
        return table["xy"].copy(), table["point"]
    wrong = f"{where}: expected X Y POINT3D_ID"
    values = np.array(floats(points.split(), wrong))
    if len(values) % 3:
        raise UserError(f"{wrong} of each; {RESTORE}")
    values = values.reshape(-1, 3)
    values = values[values[:, 2] >= 0]  # -1: of no point
    return values[:, :2], values[:, 2].astype(np.uint64)


def _binary_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Walk points3D.bin to its end: ids [M] and places [M, 3]."""
    data = path.read_bytes()
    if len(data) < COUNT.size:
        raise damaged(path)
    (count,) = COUNT.unpack_from(data)
    place, ids, places = COUNT.size, [], []
    for _ in range(count):
        if place + _POINT.size > len(data):
            raise damaged(path)
        point, x, y, z, *_, num_images = _POINT.unpack_from(data, place)
        place += _POINT.size + _IMAGE_OF_POINT * num_images
        if num_images >= LEAST_TRACK:
            ids.append(point)
            places.append((x, y, z))
    if place != len(data):
        raise damaged(path)
    return _table(ids, places)


def _text_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read points3D.txt: ids [M] and places [M, 3]."""
    ids, places = [], []
    for number, line in numbered_lines(path):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        wrong = f"{path}, line {number}: expected POINT3D_ID X Y Z R G B ERROR and its images"
        if len(fields) < 8 or len(fields) % 2 or not fields[0].isdecimal():
            raise UserError(f"{wrong}; {RESTORE}")
        if len(fields) >= 8 + 2 * LEAST_TRACK:
            ids.append(int(fields[0]))
            places.append(floats(fields[1:4], wrong))
    return _table(ids, places)


def _table(ids: list[int], places: list[tuple[float, ...]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids, np.uint64), np.array(places, np.float64).reshape(-1, 3)
