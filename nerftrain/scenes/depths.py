"""Depths beside photographs: how far away what some of their pixels show is known to lie.

Maps from telephones and depth cameras hold, as nerfstudio and instant-ngp read them, the distance
along the optical axis of a pinhole, along the ray of any other lens. COLMAP's points tell of the
pixels at which they were found. Both become distances along rays, in the scene's units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nerftrain.cameras import image_rays
from nerftrain.errors import UserError
from nerftrain.memory import check_images_fit
from nerftrain.scenes import Depths
from nerftrain.scenes.frames import Frame, is_number, short
from nerftrain.scenes.images import Picture, read_values
from nerftrain.scenes.masks import is_scaled
from nerftrain.types import Cameras

KEYS = ("depth_file_path", "depth_path")  # nerfstudio's, instant-ngp's
_UNITS = ("depth_unit_scale_factor", "integer_depth_scale")
_MILLIMETRE = 0.001  # of nerfstudio's maps, where the file says nothing else

STORED = torch.float16  # 1 part in 2,048, finer than the spreads that the loss assumes


def find_map(root: Path, frame: Frame) -> Path | None:
    """Find the depth map that a frame names; None where it names none.

    Raises:
        UserError: it is not there.
    """
    named = next((frame.entry[key] for key in KEYS if frame.entry.get(key) is not None), None)
    if named is None:
        return None
    if not isinstance(named, str) or not (found := root / named.replace("\\", "/")).is_file():
        raise UserError(
            f"{frame.where}: its depth map {short(named)} is missing: restore it, or take "
            f"{' and '.join(KEYS)} out"
        )
    return found


def read_unit(path: Path, content: Mapping[str, Any]) -> float:
    """Read what one unit of a map is in the file's own units: a thousandth, unless it says.

    Raises:
        UserError: it is no positive number.
    """
    for key in _UNITS:
        value = content.get(key)
        if value is not None:
            if not is_number(value) or not value > 0:
                raise UserError(
                    f"{path}: {key} = {short(value)}: must be more than 0; 0.001 where depths are "
                    "in millimetres and cameras in metres"
                )
            return float(value)
    return _MILLIMETRE


def read_depths(
    maps: Sequence[Path | None],
    pictures: Sequence[Picture],
    cameras: Cameras,
    unit: float,
    pool: ThreadPoolExecutor,
) -> Depths:
    """Read depth maps as distances along rays, float16, of all pixels of photographs.

    Args:
        maps: of each photograph, C of them, 16-bit PNG or .npy, of any size; None: none is known.
        pictures: the photographs.
        cameras: C of them, of the size at which each is trained on.
        unit: of the maps, in the scene's units.
        pool: where decoding runs.

    Raises:
        UserError: a map is damaged or of another shape.
    """
    check_images_fit(int((cameras.widths * cameras.heights).sum()) * STORED.itemsize)
    read = partial(_read, cameras, unit)
    return Depths(torch.cat(list(pool.map(read, range(len(maps)), maps, pictures))))


def _read(cameras: Cameras, unit: float, index: int, file: Path | None, picture: Picture) -> Tensor:
    width, height = int(cameras.widths[index]), int(cameras.heights[index])
    if file is None:
        return torch.zeros(width * height, dtype=STORED)
    depths = torch.from_numpy(read_map(file, picture)).float()
    # Between two surfaces there is none, so no mean of two depths.
    depths = interpolate(depths[None, None], (height, width), mode="nearest-exact").flatten()
    distances = depths * unit
    if cameras.projection == "perspective":
        directions = image_rays(cameras, index, 0.0, 1.0).directions
        distances = distances / (directions @ -cameras.poses[index, :, 2])
    return stored(distances)


def stored(distances: Tensor) -> Tensor:
    """Store distances, 0 for those that cannot be."""
    few = distances.to(STORED)
    return torch.where(few.isfinite() & (few > 0), few, 0)


def read_map(file: Path, picture: Picture) -> np.ndarray:
    """Read a depth map [H, W] of a photograph, in its own units.

    Raises:
        UserError: it is damaged, no map of depths, or of other proportions than the photograph.
    """
    if file.suffix.lower() == ".npy":
        try:
            values = np.load(file)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{file} is no array of numpy's ({error}): restore the file") from error
        values = values.squeeze()
    else:
        values = read_values(file)
    if values.ndim != 2 or values.dtype.kind not in "uif" or values.dtype == np.uint8:
        raise UserError(
            f"{file} is no depth map: give one channel of 16 or more bits (PNG, or .npy)"
        )
    height, width = values.shape
    if not is_scaled((width, height), (picture.width, picture.height)):
        raise UserError(
            f"{file} is {width}x{height}, but its photograph {picture.path} is "
            f"{picture.width}x{picture.height}: give a map of the same proportions"
        )
    return values.astype(np.float32)


def depths_at(places: Sequence[tuple[Tensor, Tensor]], cameras: Cameras) -> Depths:
    """Give single distances, as float16, to the pixels that show them.

    Args:
        places: of each camera, where in its image [n, 2] (x y, the first pixel's centre at 0.5 0.5)
            and the distances [n] there, scene units; of several in one pixel the nearest is taken.
        cameras: C of them.
    """
    pixels, distances, first = [], [], 0
    for (xy, its), width, height in zip(
        places, cameras.widths.tolist(), cameras.heights.tolist(), strict=True
    ):
        x, y = xy.floor().long().unbind(1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        pixels.append((first + y * width + x)[inside])
        distances.append(its[inside].float())
        first += width * height
    chosen, own = torch.cat(pixels).unique(return_inverse=True)
    nearest = torch.full(chosen.shape, torch.inf)
    return Depths(stored(nearest.scatter_reduce_(0, own, torch.cat(distances), "amin")), chosen)
