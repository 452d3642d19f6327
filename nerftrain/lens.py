"""Lenses that bend: OpenCV's model of radial and tangential distortion, and its inverse.

Notation: (x, y) is where an ideal pinhole at distance 1 from its image plane sees a point, x right
and y down; (x', y') is where the lens shows it, and pixels are fx x' + cx and fy y' + cy. With
r^2 = x^2 + y^2 (docs.opencv.org, camera calibration; COLMAP's OPENCV model is the same):

    x' = x (1 + k1 r^2 + k2 r^4) + 2 p1 x y + p2 (r^2 + 2 x^2)
    y' = y (1 + k1 r^2 + k2 r^4) + 2 p2 x y + p1 (r^2 + 2 y^2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.types import Cameras

# Of Newton's method; lenses that check_invertible lets pass need no more.
ITERATIONS = 6
# Pixels between where a ray was asked for and where its lens shows it.
TOLERANCE = 0.02
GRID = 33  # points per side at which a lens is checked
SEGMENTS = 16  # between a point and the centre, to see that nothing folds on the way


def distort(x: Tensor, y: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Bend ideal image points x [...], y [...] by coefficients [..., 4] k1 k2 p1 p2."""
    x, y, _ = _bend(x, y, coefficients.unbind(-1))
    return x, y


def undistort(x: Tensor, y: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Find the ideal image points whose bent ones are x [...], y [...]; coefficients [..., 4].

    A fixed number of Newton's steps, so nothing waits for the device. From the bent point they
    approach a purely radial root from one side.
    """
    k = coefficients.unbind(-1)
    ideal_x, ideal_y = x, y
    for _ in range(ITERATIONS):
        bent_x, bent_y, (a, b, d) = _bend(ideal_x, ideal_y, k)
        error_x, error_y = bent_x - x, bent_y - y
        inverse = 1 / (a * d - b * b)
        ideal_x = ideal_x - (d * error_x - b * error_y) * inverse
        ideal_y = ideal_y - (a * error_y - b * error_x) * inverse
    return ideal_x, ideal_y


def _bend(
    x: Tensor, y: Tensor, coefficients: Sequence[Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return x', y' and their derivatives (dx'/dx, dx'/dy = dy'/dx, dy'/dy)."""
    k1, k2, p1, p2 = coefficients
    xx, xy, yy = x * x, x * y, y * y
    rr = xx + yy
    radial = 1 + rr * (k1 + rr * k2)
    slope = 2 * k1 + 4 * k2 * rr  # d radial / dx is slope x
    p1x, p1y, p2x, p2y = p1 * x, p1 * y, p2 * x, p2 * y
    bent_x = x * radial + 2 * p1 * xy + p2 * (rr + 2 * xx)
    bent_y = y * radial + 2 * p2 * xy + p1 * (rr + 2 * yy)
    derivatives = (
        radial + slope * xx + 2 * p1y + 6 * p2x,
        slope * xy + 2 * (p1x + p2y),
        radial + slope * yy + 2 * p2x + 6 * p1y,
    )
    return bent_x, bent_y, derivatives


def check_invertible(cameras: Cameras, source: str) -> None:
    """Check that every pixel of every camera has its ray.

    Args:
        cameras: any; those without distortion pass.
        source: the file that the lenses come from, for the message.

    Raises:
        UserError: a lens folds within its image, or bends too much for the steps of `undistort`.
    """
    if cameras.distortion is None:
        return
    size = torch.stack([cameras.widths, cameras.heights], 1)
    lenses = torch.cat([size, cameras.intrinsics, cameras.distortion], 1).double().cpu()
    side = torch.linspace(0, 1, GRID, dtype=torch.float64)
    right, down = (t.flatten() for t in torch.meshgrid(side, side, indexing="xy"))
    for lens in lenses.unique(dim=0):
        width, height, fx, fy, cx, cy = lens[:6].tolist()
        u, v = right * width, down * height
        bad = ~_inverts((u - cx) / fx, (v - cy) / fy, lens[6:], TOLERANCE / max(fx, fy))
        if bad.any():
            place = int(bad.nonzero()[0])
            k1, k2, p1, p2 = (f"{value:.4g}" for value in lens[6:].tolist())
            raise UserError(
                f"{source}: the distortion k1={k1} k2={k2} p1={p1} p2={p2} does not invert over "
                f"the whole {width:.0f}x{height:.0f} image (not at pixel {u[place]:.0f}, "
                f"{v[place]:.0f}): calibrate again with fewer coefficients, or undistort the "
                "images, e.g. by colmap image_undistorter"
            )


def _inverts(x: Tensor, y: Tensor, coefficients: Tensor, tolerance: float) -> Tensor:
    """Tell where `undistort` of bent points x, y [M] finds the one ideal point that is meant."""
    ideal_x, ideal_y = undistort(x, y, coefficients)
    bent_x, bent_y = distort(ideal_x, ideal_y, coefficients)
    near = torch.hypot(bent_x - x, bent_y - y) < tolerance  # false for NaN
    # Beyond a fold the image is seen again, mirrored: nothing may fold between there and here.
    share = torch.linspace(0, 1, SEGMENTS + 1, dtype=x.dtype)[:, None]
    _, _, (a, b, d) = _bend(share * ideal_x, share * ideal_y, coefficients.unbind(-1))
    return near & (a * d - b * b > 0).all(0) & (a + d > 0).all(0)


def pinholes_around(cameras: Cameras) -> Cameras:
    """Make cameras without distortion, of larger images, that see all that the given ones see."""
    if cameras.distortion is None:
        return cameras
    side = torch.linspace(0, 1, 2 * GRID, device=cameras.poses.device)
    zero, one = torch.zeros_like(side), torch.ones_like(side)
    # The map is continuous and does not fold: the rim of the image goes to the rim of what is seen.
    right = torch.cat([side, side, zero, one]) * cameras.widths[:, None]
    down = torch.cat([zero, one, side, side]) * cameras.heights[:, None]
    fx, fy, cx, cy = cameras.intrinsics[:, :, None].unbind(1)  # [C, 1] each
    x, y = undistort((right - cx) / fx, (down - cy) / fy, cameras.distortion[:, None, :])
    u, v = fx * x + cx, fy * y + cy  # [C, M]
    # A pixel more: between two points of the rim it may bulge.
    left, top = (1 - u.amin(1)).clamp(min=0).ceil(), (1 - v.amin(1)).clamp(min=0).ceil()
    widths = torch.maximum((u.amax(1) + 1).ceil().long(), cameras.widths) + left.long()
    heights = torch.maximum((v.amax(1) + 1).ceil().long(), cameras.heights) + top.long()
    shift = torch.stack([torch.zeros_like(left), torch.zeros_like(left), left, top], 1)
    return replace(
        cameras,
        intrinsics=cameras.intrinsics + shift,
        widths=widths,
        heights=heights,
        distortion=None,
    )
