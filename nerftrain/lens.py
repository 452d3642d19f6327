"""Lenses of cameras: what they show, what does not invert, and pinholes in their place.

Their formulas are those of `ops.lenses`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops.lenses import bend, distort, looking_at, undistort
from nerftrain.types import Cameras, Projection

COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4")  # in the order of Cameras.distortion
# COLMAP's models that these describe: what each has beside focal lengths and centre.
MODELS: dict[str, tuple[Projection, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": ("perspective", ()),
    "PINHOLE": ("perspective", ()),
    "SIMPLE_RADIAL": ("perspective", ("k1",)),
    "RADIAL": ("perspective", ("k1", "k2")),
    "OPENCV": ("perspective", ("k1", "k2", "p1", "p2")),
    "SIMPLE_FISHEYE": ("fisheye", ()),
    "FISHEYE": ("fisheye", ()),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", ("k1",)),
    "RADIAL_FISHEYE": ("fisheye", ("k1", "k2")),
    "OPENCV_FISHEYE": ("fisheye", ("k1", "k2", "k3", "k4")),
    "EQUIRECTANGULAR": ("equirectangular", ()),
}
# Pixels between where a ray was asked for and where its lens shows it.
TOLERANCE = 0.02
GRID = 33  # points per side at which a lens is checked
SEGMENTS = 16  # between a point and the centre, to see that nothing folds on the way
# Of an image's growth per angle at its centre, what a fisheye must have left: farther out it shows
# nothing, or the polynomial no longer says what.
LEAST_SLOPE = 0.1
ANGLES = 1024  # at which that is looked for
WIDEST = math.radians(80)  # off the axis, that a pinhole is made to see


@dataclass(frozen=True)
class Lens:
    """The lens of one camera."""

    width: int  # of its images, pixels
    height: int
    intrinsics: tuple[float, float, float, float]  # fx fy cx cy (see Cameras)
    distortion: tuple[float, ...] = (0.0,) * 6  # k1 k2 p1 p2 k3 k4
    projection: Projection = "perspective"


# What lenses show


def together(lenses: Sequence[Lens], source: str) -> tuple[Tensor | None, Projection]:
    """Gather the lenses of cameras.

    Args:
        lenses: of C cameras.
        source: the file that they come from, for the message.

    Returns:
        The cameras' distortion, [C, 4 or 6] or None where there is none, and their projection.

    Raises:
        UserError: they are of several kinds.
    """
    kind = one_kind([lens.projection for lens in lenses], source)
    faults = torch.tensor([lens.distortion for lens in lenses])
    if not bool(faults[:, 4:].any()):
        faults = faults[:, :4].contiguous()
    return faults if bool(faults.any()) else None, kind


def one_kind(kinds: Sequence[Projection], source: str) -> Projection:
    """Return the kind that all lenses from a source are of.

    Raises:
        UserError: they are of several.
    """
    different = list(dict.fromkeys(kinds))
    if len(different) > 1:
        raise UserError(
            f"{source} has lenses of several kinds, {' and '.join(different)}, of which a scene "
            "has one: train the images of each by themselves, or undistort them"
        )
    return different[0]


def have_rays(cameras: Cameras) -> Tensor | None:
    """Tell which pixels of all cameras show anything, [P] bool; None: all do.

    A fisheye's image may be a circle. Pixels lie camera by camera, row by row.
    """
    if cameras.projection != "fisheye":
        return None
    lenses, which = _lenses(cameras).unique(dim=0, return_inverse=True)
    shown = [_shown(lens, *_pixel_centres(lens)) for lens in lenses]
    if all(bool(flags.all()) for flags in shown):
        return None
    return torch.cat([shown[i] for i in which.tolist()]).to(cameras.poses.device)


def _pixel_centres(lens: Tensor) -> tuple[Tensor, Tensor]:
    width, height = (int(side) for side in lens[:2])
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return right.flatten() + 0.5, down.flatten() + 0.5


def _shown(lens: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Tell which pixels u, v [M] a fisheye shows anything at."""
    fx, fy, cx, cy = lens[2:6].tolist()
    return torch.hypot((u - cx) / fx, (v - cy) / fy) <= _rim(lens[6:])


def widest_angle(cameras: Cameras) -> float:
    """Find how far off the axis fisheyes' images show anything, at most, radians."""
    angles = []
    for lens in _lenses(cameras).unique(dim=0):
        width, height, fx, fy, cx, cy = lens[:6].tolist()
        u = torch.tensor([0.0, 0.0, width, width], dtype=torch.float64)
        v = torch.tensor([0.0, height, 0.0, height], dtype=torch.float64)
        seen = looking_at((u - cx) / fx, (v - cy) / fy, lens[6:], "fisheye")
        right, down, ahead = (torch.as_tensor(part) for part in seen)
        shown = torch.where(
            _shown(lens, u, v), torch.atan2(torch.hypot(right, down), ahead), _last_angle(lens[6:])
        )
        angles.append(float(shown.max()))
    return max(angles)


def _rim(coefficients: Tensor) -> float:
    """Find the distance r' from the centre up to which a fisheye shows anything."""
    last, k = _last_angle(coefficients), coefficients[None]
    point = torch.tensor([last], dtype=k.dtype)
    radial = torch.cat([k[:, :2], torch.zeros_like(k[:, :2]), k[:, 4:]], 1)
    return float(distort(point, torch.zeros_like(point), radial)[0])


def _last_angle(coefficients: Tensor) -> float:
    """Find the angle off the axis, radians, up to which a fisheye shows anything."""
    k1, k2, _, _, *higher = coefficients.tolist()
    k3, k4 = higher or (0.0, 0.0)
    angles = torch.linspace(0, math.pi, ANGLES + 1, dtype=torch.float64)
    aa = angles * angles
    slope = 1 + aa * (3 * k1 + aa * (5 * k2 + aa * (7 * k3 + aa * 9 * k4)))
    flat = (slope < LEAST_SLOPE).nonzero()
    return float(angles[int(flat[0]) - 1]) if len(flat) else math.pi


def _lenses(cameras: Cameras) -> Tensor:
    """Give width, height, fx, fy, cx, cy and the coefficients of each camera, [C, 10 or 12]."""
    size = torch.stack([cameras.widths, cameras.heights], 1)
    bends = cameras.distortion
    bends = torch.zeros(len(cameras), 4) if bends is None else bends
    return torch.cat([t.double().cpu() for t in (size, cameras.intrinsics, bends)], 1)


def check_invertible(cameras: Cameras, source: str) -> None:
    """Check that every pixel of every camera that shows anything has its ray.

    Args:
        cameras: any; those without distortion pass.
        source: the file that the lenses come from, for the message.

    Raises:
        UserError: a lens folds within its image, bends too much for the steps of `undistort`, or is
            a fisheye that shows nothing.
    """
    if cameras.distortion is None:
        return
    side = torch.linspace(0, 1, GRID, dtype=torch.float64)
    right, down = (t.flatten() for t in torch.meshgrid(side, side, indexing="xy"))
    for lens in _lenses(cameras).unique(dim=0):
        width, height, fx, fy, cx, cy = lens[:6].tolist()
        u, v = right * width, down * height
        points = (u - cx) / fx, (v - cy) / fy
        bad = ~_inverts(*points, lens[6:], TOLERANCE / max(fx, fy), cameras.projection)
        if cameras.projection == "fisheye":
            shown = _shown(lens, u, v)
            bad = bad & shown if bool(shown.any()) else ~shown
        if bad.any():
            place = int(bad.nonzero()[0])
            values = zip(COEFFICIENTS, lens[6:].tolist(), strict=False)
            k = " ".join(f"{name}={value:.4g}" for name, value in values)
            raise UserError(
                f"{source}: the distortion {k} does not invert over "
                f"the whole {width:.0f}x{height:.0f} image (not at pixel {u[place]:.0f}, "
                f"{v[place]:.0f}): calibrate again with fewer coefficients, or undistort the "
                "images, e.g. by colmap image_undistorter"
            )


def _inverts(
    x: Tensor, y: Tensor, coefficients: Tensor, tolerance: float, projection: Projection
) -> Tensor:
    """Tell where `undistort` of bent points x, y [M] finds the one ideal point that is meant."""
    ideal_x, ideal_y = undistort(x, y, coefficients, projection)
    bent_x, bent_y = distort(ideal_x, ideal_y, coefficients)
    near = torch.hypot(bent_x - x, bent_y - y) < tolerance  # false for NaN
    # Beyond a fold the image is seen again, mirrored: nothing may fold between there and here.
    share = torch.linspace(0, 1, SEGMENTS + 1, dtype=x.dtype)[:, None]
    _, _, (a, b, d) = bend(share * ideal_x, share * ideal_y, coefficients.unbind(-1))
    return near & (a * d - b * b > 0).all(0) & (a + d > 0).all(0)


# Pinholes in their place


def as_pinholes(cameras: Cameras) -> Cameras:
    """Make pinholes of the same images' sizes without faults, for what is not seen by the lens.

    Where a lens is no pinhole they see no more than a right angle across the longer side.
    """
    if cameras.projection == "perspective":
        return replace(cameras, distortion=None)
    width, height = cameras.widths.to(cameras.intrinsics), cameras.heights.to(cameras.intrinsics)
    focal = torch.maximum(cameras.intrinsics[:, 0], torch.maximum(width, height) / 2)
    intrinsics = torch.stack([focal, focal, width / 2, height / 2], 1)
    return replace(cameras, intrinsics=intrinsics, distortion=None, projection="perspective")


def pinholes_around(cameras: Cameras) -> Cameras | None:
    """Make cameras without distortion, of larger images, that see all that the given ones see.

    Returns:
        None where no pinhole does, as around a fisheye of more than `WIDEST`.
    """
    if cameras.projection == "perspective" and cameras.distortion is None:
        return cameras
    if cameras.projection == "equirectangular":
        return None
    side = torch.linspace(0, 1, 2 * GRID, device=cameras.poses.device)
    zero, one = torch.zeros_like(side), torch.ones_like(side)
    # The map is continuous and does not fold: the rim of the image goes to the rim of what is seen.
    right = torch.cat([side, side, zero, one]) * cameras.widths[:, None]
    down = torch.cat([zero, one, side, side]) * cameras.heights[:, None]
    fx, fy, cx, cy = cameras.intrinsics[:, :, None].unbind(1)  # [C, 1] each
    bends = None if cameras.distortion is None else cameras.distortion[:, None, :]
    x, y, ahead = looking_at((right - cx) / fx, (down - cy) / fy, bends, cameras.projection)
    if isinstance(ahead, Tensor):
        whole = all(
            bool(_shown(lens, r.cpu(), d.cpu()).all())
            for lens, r, d in zip(_lenses(cameras), right, down, strict=True)
        )
        if not whole or float(ahead.min()) < math.cos(WIDEST):
            return None
        x, y = x / ahead, y / ahead
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
        projection="perspective",
    )
