"""Pixels to rays, and camera paths derived from given cameras.

A pose is camera to world with OpenGL axes: column 0 points right, 1 up, 2 backwards, 3 is the
position. Pixel (x, y) counts from the top left corner; its centre lies at (x + 0.5, y + 0.5).
A pixel's ray is the one that the lens brings there (ops/lenses.py); what paths show is seen by
pinholes.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerftrain.errors import UserError
from nerftrain.lens import as_pinholes
from nerftrain.ops import rays as ops
from nerftrain.ops.lenses import lens_rays
from nerftrain.types import Cameras, Rays


def pixel_rays(
    cameras: Cameras, camera_indices: Tensor, x: Tensor, y: Tensor, near: float, far: float
) -> Rays:
    """Make the ray through the centre of each pixel.

    Args:
        cameras: of which each ray belongs to one.
        camera_indices: [R] int64.
        x: [R] integer column, counted from the left.
        y: [R] integer row, counted from the top.
        near: distance at which every ray starts, world units.
        far: distance at which every ray ends.
    """
    numbers, places = (cameras.poses, cameras.intrinsics), (camera_indices, x, y)
    if cameras.distortion is None and cameras.projection == "perspective":
        origins, directions = ops.pixel_rays(*numbers, *places)
    else:
        lens = cameras.distortion, cameras.projection
        origins, directions = lens_rays(*numbers, *lens, *places)
    return Rays(
        origins=origins,
        directions=directions,
        near=origins.new_full((len(origins),), near),
        far=origins.new_full((len(origins),), far),
        times=None if cameras.times is None else cameras.times[camera_indices],
        cameras=camera_indices,
    )


def image_rays(cameras: Cameras, index: int, near: float, far: float) -> Rays:
    """Make the H * W rays of one camera, row by row from the top left pixel."""
    width, height = int(cameras.widths[index]), int(cameras.heights[index])
    pixels = torch.arange(width * height, device=cameras.poses.device)
    camera_indices = torch.full_like(pixels, index)
    return pixel_rays(cameras, camera_indices, pixels % width, pixels // width, near, far)


def look_at(positions: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Make poses [C, 3, 4] at positions [C, 3] that look at target [3] (or [C, 3]), up [3]."""
    backward = normalize(positions - target, dim=1)
    right = normalize(torch.linalg.cross(up.expand_as(backward), backward), dim=1)
    return torch.stack([right, torch.linalg.cross(backward, right), backward, positions], dim=2)


def orbit(cameras: Cameras, num_frames: int) -> Cameras:
    """Make a circle around the point that the cameras look at, at their mean distance and height.

    Raises:
        UserError: num_frames is below 1.
    """
    surroundings = _Surroundings(cameras)
    turn = _closed(num_frames)
    elevation = surroundings.elevations.mean().expand_as(turn)
    return _path(cameras, surroundings.poses(turn, elevation))


def spiral(cameras: Cameras, num_frames: int) -> Cameras:
    """Make two turns around the point that the cameras look at, once up and down their heights.

    Raises:
        UserError: num_frames is below 1.
    """
    surroundings = _Surroundings(cameras)
    turn = _closed(num_frames)
    # Not the extremes: one camera far above or below the others should not set the path.
    low, high = surroundings.elevations.quantile(torch.tensor([0.1, 0.9], dtype=turn.dtype))
    elevation = low + (high - low) * (0.5 - 0.5 * torch.cos(turn))
    return _path(cameras, surroundings.poses(2 * turn, elevation))


def interpolate(cameras: Cameras, num_frames: int) -> Cameras:
    """Make a smooth open path through all cameras in their order, from the first to the last.

    Positions follow a Catmull-Rom spline, rotations the shorter great arc, times a straight line.

    Raises:
        UserError: num_frames is below 1.
    """
    _check_num_frames(num_frames)
    poses = cameras.poses.double().cpu()
    last = len(cameras) - 1
    place = torch.linspace(0, last, num_frames, dtype=torch.float64)
    start = place.long().clamp(max=max(last - 1, 0))
    end = (start + 1).clamp(max=last)
    share = (place - start)[:, None]  # [F, 1] from start to end
    quaternions = to_quaternions(poses[:, :, :3])
    rotations = to_rotations(_slerp(quaternions[start], quaternions[end], share))
    positions = _catmull_rom(poses[:, :, 3], start, end, share)
    times = None
    if cameras.times is not None:
        keys = cameras.times.double().cpu()
        times = torch.lerp(keys[start], keys[end], share[:, 0])
    return _path(cameras, torch.cat([rotations, positions[:, :, None]], dim=2), times)


def still(cameras: Cameras, num_frames: int) -> Cameras:
    """Let camera 0 stand still while time runs once over that of all cameras.

    Raises:
        UserError: num_frames is below 1.
    """
    _check_num_frames(num_frames)
    times = _all_times(cameras, num_frames)
    return _path(cameras[:1], cameras.poses[:1].repeat(num_frames, 1, 1), times)


def panoramas(cameras: Cameras, up: Tensor) -> Cameras:
    """Let cameras see all around: level, to where they look, and up [3], of unit length, upright.

    Images are twice as wide as the longer side of the cameras' own, and half of that high.
    """
    ahead = -cameras.poses[:, :, 2]
    level = ahead - (ahead @ up)[:, None] * up
    # Straight up or down there is no way ahead but that of the image's upper side.
    steep = level.norm(dim=1, keepdim=True) < 1e-3
    over = cameras.poses[:, :, 1] - (cameras.poses[:, :, 1] @ up)[:, None] * up
    positions = cameras.poses[:, :, 3]
    poses = look_at(positions, positions + torch.where(steep, over, level), up)
    width = 2 * torch.maximum(cameras.widths, cameras.heights)
    height = torch.div(width, 2, rounding_mode="floor")
    size = torch.stack([width, height], 1).to(cameras.intrinsics)
    per_radian = size / size.new_tensor([2 * math.pi, math.pi])
    return Cameras(
        poses=poses,
        intrinsics=torch.cat([per_radian, size / 2], 1),
        widths=width,
        heights=height,
        times=cameras.times,
        projection="equirectangular",
    )


class _Surroundings:
    """The sphere on which paths around the cameras' common target lie, in float64."""

    def __init__(self, cameras: Cameras) -> None:
        poses = cameras.poses.double().cpu()
        self.target = focus_point(poses)
        self.up = up_vector(poses)
        offsets = poses[:, :, 3] - self.target  # [C, 3]
        distances = offsets.norm(dim=1)
        self.distance = distances.mean()
        heights = (offsets @ self.up) / distances.clamp(min=1e-9)
        # Straight above there is no azimuth and no upright picture: stay 3 degrees away.
        self.elevations = torch.asin(heights.clamp(-1.0, 1.0)).clamp(-1.52, 1.52)
        self.ahead, self.left = self._horizontal_axes(offsets[0], poses[0, :, 0])

    def _horizontal_axes(self, offset: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        flat = offset - (offset @ self.up) * self.up
        if flat.norm() < 1e-6 * self.distance:
            flat = right - (right @ self.up) * self.up
        ahead = normalize(flat, dim=0)
        return ahead, torch.linalg.cross(self.up, ahead)

    def poses(self, azimuths: Tensor, elevations: Tensor) -> Tensor:
        """Make poses [F, 3, 4] at azimuths [F] from camera 0 and elevations [F], radians."""
        around = azimuths.cos()[:, None] * self.ahead + azimuths.sin()[:, None] * self.left
        offsets = elevations.cos()[:, None] * around + elevations.sin()[:, None] * self.up
        return look_at(self.target + self.distance * offsets, self.target, self.up)


def focus_point(poses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Find the point [3] nearest to all optical axes of poses [C, 3, 4].

    Least squares, each axis counting as weights [C] says.
    """
    axes, positions = poses[:, :, 2], poses[:, :, 3]
    across = torch.eye(3, dtype=poses.dtype) - axes[:, :, None] * axes[:, None, :]  # [C, 3, 3]
    if weights is not None:
        across = across * weights[:, None, None]
    # The ridge draws towards the world's origin along directions that the axes leave open (one
    # camera, parallel cameras); elsewhere it is too weak to matter.
    total = len(poses) if weights is None else weights.sum()
    ridge = 1e-6 * total * torch.eye(3, dtype=poses.dtype)
    return torch.linalg.solve(across.sum(0) + ridge, (across @ positions[:, :, None]).sum(0)[:, 0])


def up_vector(poses: Tensor) -> Tensor:
    """Estimate the world's up [3], of unit length, from poses [C, 3, 4].

    Cameras held level have their right axes across it.
    """
    right, upward, backward = poses[:, :, 0], poses[:, :, 1], poses[:, :, 2]
    # The small second term decides where all right axes agree and leave a plane of answers.
    spread = right.T @ right - 1e-3 * upward.T @ upward
    up = torch.linalg.eigh(spread).eigenvectors[:, 0]
    # Of cameras that look straight down only the backward axes tell up from down.
    return up if up @ (upward + 0.5 * backward).sum(0) >= 0 else -up


def to_quaternions(rotations: Tensor) -> Tensor:
    """Turn rotations [C, 3, 3] into unit quaternions [C, 4] (w x y z).

    The largest eigenvector of a symmetric matrix: no case is singular (Bar-Itzhack, 2000).
    """
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotations.flatten(1).unbind(1)
    rows = [
        [xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, yy - xx - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, zz - xx - yy],
    ]
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    return torch.linalg.eigh(matrix).eigenvectors[:, :, -1]


def to_rotations(quaternions: Tensor) -> Tensor:
    """Turn unit quaternions [C, 4] (w x y z) into rotations [C, 3, 3]."""
    w, x, y, z = quaternions.unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _slerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Interpolate unit quaternions [F, 4] along the shorter arc by share [F, 1]."""
    cosine = (start * end).sum(1, keepdim=True)
    end = torch.where(cosine < 0, -end, end)  # q and -q are one rotation
    angle = torch.acos(cosine.abs().clamp(max=1.0))
    # sinc form: finite, and exactly linear, where the angle is zero.
    weights = [
        part * torch.sinc(part * angle / math.pi) / torch.sinc(angle / math.pi)
        for part in (1 - share, share)
    ]
    return normalize(weights[0] * start + weights[1] * end, dim=1)


def _catmull_rom(points: Tensor, start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Interpolate points [C, 3] between the indices start and end [F] by share [F, 1]."""
    last = len(points) - 1
    before, after = (start - 1).clamp(min=0), (end + 1).clamp(max=last)
    p0, p1, p2, p3 = points[before], points[start], points[end], points[after]
    cubic = 3 * (p1 - p2) + p3 - p0
    quadratic = 2 * p0 - 5 * p1 + 4 * p2 - p3
    return p1 + 0.5 * share * (p2 - p0 + share * (quadratic + share * cubic))


def _closed(num_frames: int) -> Tensor:
    """Make num_frames angles of one turn whose last is followed by the first."""
    _check_num_frames(num_frames)
    return torch.arange(num_frames, dtype=torch.float64) * (2 * math.pi / num_frames)


def _check_num_frames(num_frames: int) -> None:
    if num_frames < 1:
        raise UserError(f"a camera path of {num_frames} frames: ask for at least 1 frame")


def _path(cameras: Cameras, poses: Tensor, times: Tensor | None = None) -> Cameras:
    """Give poses [F, 3, 4] a typical camera's intrinsics and size, as a pinhole.

    They show the times [F], else all times once.
    """
    num_frames, like = len(poses), cameras.poses
    times = _all_times(cameras, num_frames) if times is None else times
    typical = _typical(cameras)
    pinhole = as_pinholes(cameras[typical : typical + 1])
    return Cameras(
        poses=poses.to(like),
        intrinsics=pinhole.intrinsics.repeat(num_frames, 1),
        widths=pinhole.widths.repeat(num_frames),
        heights=pinhole.heights.repeat(num_frames),
        times=None if times is None else times.to(like),
    )


def _all_times(cameras: Cameras, num_frames: int) -> Tensor | None:
    """Make times [F] that run once over those of the cameras, where they have any."""
    if cameras.times is None:
        return None
    return torch.linspace(float(cameras.times.min()), float(cameras.times.max()), num_frames)


def _typical(cameras: Cameras) -> int:
    """Find the first camera of the most common image size."""
    sizes = list(zip(cameras.widths.tolist(), cameras.heights.tolist(), strict=True))
    return sizes.index(Counter(sizes).most_common(1)[0][0])
