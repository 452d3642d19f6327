"""Masks beside photographs: which of their pixels are neither trained on nor judged by."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.lens import have_rays, widest_angle
from nerftrain.scenes.images import Picture, read_gray, read_header
from nerftrain.types import Cameras

WIDEST_FISHEYE = 115.0  # degrees off the axis; few fisheyes see farther

_log = logging.getLogger(__name__)


def read_valid(
    masks: Sequence[Path | None],
    pictures: Sequence[Picture],
    sizes: Sequence[tuple[int, int]],
    pool: ThreadPoolExecutor,
) -> Tensor | None:
    """Tell which pixels masks leave, [P] bool, in the order of `read_photos`.

    A mask is black where its photograph does not count. Of a shrunk photograph a pixel counts where
    all of its area does.

    Args:
        masks: of each photograph; None: all of it counts.
        pictures: the photographs; masks lie as these are stored, or upright.
        sizes: width and height at which each is trained on.
        pool: where decoding runs.

    Returns:
        None where there are no masks.

    Raises:
        UserError: a mask is damaged or of another shape, or leaves nothing.
    """
    if not any(masks):
        return None
    return torch.cat(list(pool.map(_read, masks, pictures, sizes)))


def within_circle(radii: Sequence[float], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Tell which pixels lie in a circle around the middle of their image, [P] bool.

    Args:
        radii: pixels, of each image.
        sizes: width and height of each.
    """
    return torch.cat([_circle(*one) for one in zip(radii, sizes, strict=True)])


@cache
def _circle(radius: float, size: tuple[int, int]) -> Tensor:
    across, down = ((torch.arange(side) + 0.5 - side / 2) for side in size)
    return (torch.hypot(across, down[:, None]) <= radius).flatten()


def that_lenses_show(cameras: Cameras, valid: Tensor | None, source: str | None) -> Tensor | None:
    """Leave of the pixels that count, [P] bool or None: all, those at which lenses show anything.

    Args:
        cameras: of the images.
        valid: what masks leave.
        source: the file that the lenses come from, for a warning where fisheyes leave pixels out,
            or are said to show more than any does; None: no warning.
    """
    shown = have_rays(cameras)
    if source is not None and cameras.projection == "fisheye" and valid is None:
        _warn_of_corners(source, cameras)
    if shown is None:
        return valid
    left = shown if valid is None else valid & shown
    before = len(left) if valid is None else int(valid.sum())
    share = 1 - int(left.sum()) / max(before, 1)
    if source is not None and share > 0:
        _log.warning(
            "%s: %.2g %% of the pixels lie beyond what its fisheye shows, as k1 to k4 have it, and "
            "do not count",
            source,
            100 * share,
        )
    return left


def _warn_of_corners(source: str, cameras: Cameras) -> None:
    angle = math.degrees(widest_angle(cameras))
    if angle > WIDEST_FISHEYE:
        _log.warning(
            "%s: the corners of the images lie %.0f degrees off the axis, farther than most "
            "fisheyes see: if they are black, give masks, or in a transforms.json "
            "fisheye_crop_radius",
            source,
            angle,
        )


def _read(mask: Path | None, picture: Picture, size: tuple[int, int]) -> Tensor:
    width, height = size
    if mask is None:
        return torch.ones(width * height, dtype=torch.bool)
    turns = check_mask(mask, picture)
    black = np.rot90(read_gray(mask) == 0, -turns)
    found = torch.from_numpy(black.astype(np.float32))[None]
    valid = torch.nn.functional.adaptive_max_pool2d(found, (height, width)) == 0
    if not bool(valid.any()):
        raise UserError(
            f"{mask} leaves nothing of {picture.path}: a mask is black where a photograph does not "
            "count, and white where it does; leave out photographs that do not count at all"
        )
    return valid.flatten()


def check_mask(mask: Path, picture: Picture) -> int:
    """Check that a mask has the proportions of its photograph.

    Returns:
        By how many quarter turns clockwise it has to be turned to be upright.

    Raises:
        UserError: it has not, or it is damaged.
    """
    header = read_header(mask)
    shape = header.width, header.height
    if is_scaled(shape, (picture.width, picture.height)):
        return picture.turns
    if is_scaled(shape, picture.shown):
        return 0
    raise UserError(
        f"{mask} is {header.width}x{header.height}, but its photograph {picture.path} is "
        f"{picture.width}x{picture.height}: give a mask of the same size"
    )


def is_scaled(shape: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether two shapes have the same proportions, but for rounding to whole pixels."""
    return abs(shape[0] * other[1] - shape[1] * other[0]) <= sum(other)
