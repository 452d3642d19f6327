"""What a transforms file with real photographs says of its lenses (instant-ngp, nerfstudio).

Keys of a frame hold for that frame, those beside "frames" for all others. Lengths are pixels of an
image of w x h; the centre of the top left pixel lies at 0.5. Of a panorama fl_x and fl_y are half
the pixels around the horizon and all those from zenith to nadir, nerfstudio's convention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nerftrain.errors import UserError
from nerftrain.lens import COEFFICIENTS, MODELS, Lens
from nerftrain.scenes.frames import is_number, short
from nerftrain.scenes.images import Picture
from nerftrain.types import Projection

FOCAL = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
CIRCLE = "fisheye_crop_radius"  # nerfstudio's
LEAST_FOCAL = 0.01  # of the image's side: 179 degrees, which no pinhole shows
# Further terms of OpenCV's models, and instant-ngp's marks of lenses of other kinds.
UNSUPPORTED_TERMS = ("k5", "k6", "s1", "s2", "s3", "s4")
UNSUPPORTED_MARKS = ("ftheta_p0", "latlong", "equirectangular")


def read_lens(
    where: str, shared: Mapping[str, Any], own: Mapping[str, Any], picture: Picture
) -> Lens:
    """Read the lens of one frame, for its image as it lies on the disk.

    Args:
        where: the frame, for messages.
        shared: the keys beside "frames".
        own: the frame's keys.
        picture: the image's header.

    Raises:
        UserError: a value is missing or absurd, contradicts the image, or is of a lens of a kind
            that is not supported.
    """
    both = {**shared, **own}
    size = picture.width, picture.height
    projection = _projection(where, both)
    stated = _stated_size(where, both, size)
    across, down = _ratios(where, stated, picture)
    # An angle of view tells the focal length of a pinhole.
    keys = ("fl_x", "fl_y") if projection != "perspective" else FOCAL
    own_focal, its_focal = ({k: v for k, v in d.items() if k in keys} for d in (own, shared))
    focal = _focal(where, own_focal, stated) or _focal(
        where, its_focal, _stated_size(where, shared, size)
    )
    if focal is None and projection == "equirectangular":
        focal = stated[0] / 2, stated[1]
    if focal is None:
        raise UserError(
            f"{where}: "
            + (
                "neither fl_x nor camera_angle_x is given: write the focal length in pixels as "
                "fl_x (and fl_y), or the horizontal field of view in radians as camera_angle_x"
                if projection == "perspective"
                else "a fisheye without fl_x: write its pixels per radian as fl_x (and fl_y)"
            )
        )
    fx, fy = (f / math.pi for f in focal) if projection == "equirectangular" else focal
    # The centre of images of another size says nothing of where this one's is.
    of_size = own if "w" in own or "h" in own else both
    cx = _number(where, of_size, "cx", stated[0] / 2)
    cy = _number(where, of_size, "cy", stated[1] / 2)
    faults = tuple(_number(where, both, key, 0.0) for key in COEFFICIENTS)
    if projection == "equirectangular" and any(faults):
        raise UserError(
            f"{where}: a panorama with {' '.join(COEFFICIENTS)}: leave them out, it has no lens"
        )
    return Lens(*size, (fx * across, fy * down, cx * across, cy * down), faults, projection)


def read_circle(
    path: Path, shared: Mapping[str, Any], pictures: Sequence[Picture]
) -> list[float] | None:
    """Read how large the circle is that fisheyes' images fill, around their middle.

    Args:
        path: of the file.
        shared: the keys beside "frames".
        pictures: the headers of the frames' images.

    Returns:
        Its radius as a share of each image's width, or None where the file does not say.

    Raises:
        UserError: it is no size.
    """
    radius = _number(str(path), shared, CIRCLE, 0.0)
    if radius < 0:
        raise UserError(f"{path}: {CIRCLE} = {radius:g}: give the circle's radius in pixels")
    if radius == 0:
        return None
    sizes = [(picture.width, picture.height) for picture in pictures]
    return [radius / _stated_size(str(path), shared, size)[0] for size in sizes]


def _projection(where: str, keys: Mapping[str, Any]) -> Projection:
    model = keys.get("camera_model")
    if model is not None and (not isinstance(model, str) or model not in MODELS):
        raise UserError(
            f"{where}: camera_model {short(model)} is not supported; there are "
            f"{', '.join(MODELS)}: undistort the images to one of them"
        )
    for key in (*UNSUPPORTED_TERMS, *UNSUPPORTED_MARKS):
        if keys.get(key):
            raise UserError(
                f"{where}: {key} = {short(keys[key])} is not supported (only "
                f"{' '.join(COEFFICIENTS)} are): undistort the images first"
            )
    if keys.get("is_fisheye"):  # instant-ngp's word
        return "fisheye"
    return "perspective" if model is None else MODELS[model][0]


def _stated_size(where: str, keys: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, float]:
    """Return the width and height that the lengths refer to, by default the image's own."""
    width, height = (_number(where, keys, key, size[i]) for i, key in enumerate(("w", "h")))
    if min(width, height) < 1:
        raise UserError(f"{where}: w = {width:g}, h = {height:g}: give the image's size in pixels")
    return width, height


def _ratios(where: str, stated: tuple[float, float], picture: Picture) -> tuple[float, float]:
    """Return what the image measures of the stated size, across and down.

    A smaller copy of the image is fine, rounded to whole pixels; another shape is not.
    """
    size = picture.width, picture.height
    ratios = size[0] / stated[0], size[1] / stated[1]
    rounding = 1 / min(size)
    if abs(ratios[0] / ratios[1] - 1) > rounding + 1e-6:
        turned = abs(size[0] * stated[0] - size[1] * stated[1]) <= max(size)
        remedy = (
            "it was turned by a quarter since: turn it back, or give this frame its own w h cx cy"
            if turned
            else "put the right image there, or give this frame its own w h fl_x fl_y cx cy"
        )
        raise UserError(
            f"{where}: {picture.path.name} is {size[0]}x{size[1]}, which contradicts "
            f"w = {stated[0]:g}, h = {stated[1]:g}; {remedy}"
        )
    return ratios


def _focal(
    where: str, keys: Mapping[str, Any], size: tuple[float, float]
) -> tuple[float, float] | None:
    """Return the focal lengths across and down, pixels of an image of size (width, height)."""
    across = _focal_along(where, keys, "fl_x", "camera_angle_x", size[0])
    down = _focal_along(where, keys, "fl_y", "camera_angle_y", size[1])
    if across is None and down is None:
        return None
    # Of one alone: pixels are square.
    return across or down or 0.0, down or across or 0.0


def _focal_along(
    where: str, keys: Mapping[str, Any], key: str, angle_key: str, length: float
) -> float | None:
    if keys.get(key) is not None:
        focal = _number(where, keys, key, 0.0)
        if focal <= 0:
            raise UserError(f"{where}: {key} = {focal:g}: give the focal length in pixels")
        if focal < LEAST_FOCAL * length:
            raise UserError(
                f"{where}: {key} = {focal:g}, of an image of {length:g} pixels, sees all of a half "
                "space: give the focal length in pixels, not as a share of the image or in metres"
            )
        return focal
    if keys.get(angle_key) is None:
        return None
    angle = _number(where, keys, angle_key, 0.0)
    if not 0 < angle < math.pi:
        raise UserError(
            f"{where}: {angle_key} = {angle:g}; it is a field of view in radians, between 0 and "
            "3.14"
        )
    return 0.5 * length / math.tan(0.5 * angle)


def _number(where: str, keys: Mapping[str, Any], key: str, default: float) -> float:
    value = keys.get(key)
    if value is None:
        return default
    if not is_number(value):
        raise UserError(f"{where}: {key} = {short(value)}: give a finite number")
    return float(value)
