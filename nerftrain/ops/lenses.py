"""Lenses: what a pixel sees, of pinholes that bend, fisheyes and panoramas.

Notation: a lens without faults shows a point at (x, y), x right and y down, which its projection
makes of where the point lies. With a the angle between that and where the camera looks, and (c, s)
the way there in the image, of length 1:

    perspective      (x, y) = tan(a) (c, s)
    fisheye          (x, y) = a (c, s), which is equidistant
    equirectangular  x the longitude from straight ahead, y the latitude, down, in radians

(x', y') is where the lens shows it, and pixels are fx x' + cx and fy y' + cy. With r^2 = x^2 + y^2:

    x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8) + 2 p1 x y + p2 (r^2 + 2 x^2)
    y' = y (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8) + 2 p2 x y + p1 (r^2 + 2 y^2)

For a pinhole that is OpenCV's model as far as k3 (docs.opencv.org, camera calibration); for a
fisheye it is OpenCV's fisheye model, which has no p1 and p2. COLMAP's models of these names are the
same, and so is nerfstudio's reading of its files, with k4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nerftrain.ops import library
from nerftrain.ops.rays import through
from nerftrain.types import Projection

FAR = 1e18  # whose square is a number in float32, too
PROJECTIONS: tuple[Projection, ...] = ("perspective", "fisheye", "equirectangular")  # by number
# Of Newton's method; lenses that `lens.check_invertible` lets pass need no more. A fisheye's points
# lie farther out, where r is an angle of up to pi.
ITERATIONS = {"perspective": 6, "fisheye": 12, "equirectangular": 0}


def distort(x: Tensor, y: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Bend ideal image points x [...], y [...] by coefficients [..., 4 or 6] k1 k2 p1 p2 k3 k4."""
    x, y, _ = bend(x, y, coefficients.unbind(-1))
    return x, y


def undistort(
    x: Tensor, y: Tensor, coefficients: Tensor, projection: Projection = "perspective"
) -> tuple[Tensor, Tensor]:
    """Find the ideal image points whose bent ones are x [...], y [...].

    A fixed number of Newton's steps, so nothing waits for the device. From the bent point they
    approach a purely radial root from one side.

    Args:
        x: [...].
        y: [...].
        coefficients: [..., 4 or 6] k1 k2 p1 p2 k3 k4.
        projection: of the lens, which says how far out points may lie.
    """
    k = coefficients.unbind(-1)
    ideal_x, ideal_y = x, y
    for _ in range(ITERATIONS[projection]):
        bent_x, bent_y, (a, b, d) = bend(ideal_x, ideal_y, k)
        error_x, error_y = bent_x - x, bent_y - y
        inverse = 1 / (a * d - b * b)
        ideal_x = ideal_x - (d * error_x - b * error_y) * inverse
        ideal_y = ideal_y - (a * error_y - b * error_x) * inverse
    return ideal_x, ideal_y


def bend(
    x: Tensor, y: Tensor, coefficients: Sequence[Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return x', y' and their derivatives (dx'/dx, dx'/dy = dy'/dx, dy'/dy).

    Args:
        x: [...].
        y: [...].
        coefficients: 4 or 6 of [...] each, k1 k2 p1 p2 k3 k4.
    """
    k1, k2, p1, p2, *higher = coefficients
    xx, xy, yy = x * x, x * y, y * y
    rr = xx + yy
    radial = 1 + rr * (k1 + rr * k2)
    slope = 2 * k1 + 4 * k2 * rr  # d radial / dx is slope x
    if higher:
        k3, k4 = higher
        radial = radial + rr**3 * (k3 + rr * k4)
        slope = slope + rr * rr * (6 * k3 + 8 * k4 * rr)
    p1x, p1y, p2x, p2y = p1 * x, p1 * y, p2 * x, p2 * y
    bent_x = x * radial + 2 * p1 * xy + p2 * (rr + 2 * xx)
    bent_y = y * radial + 2 * p2 * xy + p1 * (rr + 2 * yy)
    derivatives = (
        radial + slope * xx + 2 * p1y + 6 * p2x,
        slope * xy + 2 * (p1x + p2y),
        radial + slope * yy + 2 * p2x + 6 * p1y,
    )
    return bent_x, bent_y, derivatives


def looking_at(
    x: Tensor, y: Tensor, coefficients: Tensor | None, projection: Projection
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Find what is seen at bent image points: how far right, down and ahead of the camera it lies.

    Args:
        x: [R], that is x' above.
        y: [R].
        coefficients: [R, 4 or 6] k1 k2 p1 p2 k3 k4; None: the lens has no faults.
        projection: of the lens.

    Returns:
        Vectors of any length, of a pinhole with 1 ahead. Where a fisheye shows nothing they are of
        some direction.
    """
    if coefficients is not None:
        x, y = undistort(x, y, coefficients, projection)
    if projection == "perspective":
        return x, y, 1.0
    if projection == "equirectangular":
        return y.cos() * x.sin(), y.sin(), y.cos() * x.cos()
    # Beyond the last point that the lens shows Newton's steps may have led anywhere.
    x, y = (torch.where(t.abs() < FAR, t, 0.0) for t in (x, y))
    off = torch.hypot(x, y)
    angles = off.clamp(max=math.pi)
    share = torch.sinc(angles / math.pi) * math.pi / off.clamp(min=math.pi)  # sin(angle) / off
    return x * share, y * share, angles.cos()


def lens_rays_reference(
    poses: Tensor,
    intrinsics: Tensor,
    distortion: Tensor | None,
    projection: Projection,
    camera_indices: Tensor,
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor]:
    """Find rays by torch (see `lens_rays`)."""
    fx, fy, cx, cy = intrinsics.index_select(0, camera_indices).unbind(1)
    bent = (x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy  # [R] each
    faults = None if distortion is None else distortion.index_select(0, camera_indices)
    seen = looking_at(*bent, faults, projection)
    return through(poses.index_select(0, camera_indices), *seen)


@library.fake("lens_rays")
def _lens_rays_fake(
    poses: Tensor, _i: Tensor, _d: Tensor, _p: int, _n: int, camera_indices: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    num = camera_indices.shape[0]
    return poses.new_empty(num, 3), poses.new_empty(num, 3)


def lens_rays(
    poses: Tensor,
    intrinsics: Tensor,
    distortion: Tensor | None,
    projection: Projection,
    camera_indices: Tensor,
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor]:
    """Find origins and unit directions [R, 3] of the rays that lenses bring to centres of pixels.

    Where cameras ask for gradients, and for other numbers than float32, torch computes them.

    Args:
        poses: [C, 3, 4] camera to world, OpenGL's axes.
        intrinsics: [C, 4] fx fy cx cy, pixels, per radian where the lens is no pinhole.
        distortion: [C, 4 or 6] k1 k2 p1 p2 k3 k4; None: the lenses have no faults.
        projection: of all lenses.
        camera_indices: [R] int64.
        x: [R] int64 columns, counted from the left.
        y: [R] int64 rows, counted from the top.
    """
    faults = poses.new_empty(0, 4) if distortion is None else distortion
    numbers, places = (poses, intrinsics, faults), (camera_indices, x, y)
    asked = torch.is_grad_enabled() and any(t.requires_grad for t in numbers)
    dtypes = {t.dtype for t in numbers}, {t.dtype for t in places}
    if asked or dtypes != ({torch.float32}, {torch.int64}) or not library.native(*numbers, *places):
        return lens_rays_reference(poses, intrinsics, distortion, projection, *places)
    how = PROJECTIONS.index(projection), ITERATIONS[projection]
    numbers, places = ([t.contiguous() for t in some] for some in (numbers, places))
    return torch.ops.nerftrain.lens_rays(*numbers, *how, *places)
