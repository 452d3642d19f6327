"""Rays through the centres of pixels: r(t) = o + t d (NeRF, arXiv:2003.08934, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from nerftrain.ops import library


def through(poses: Tensor, right: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Find origins and unit directions [R, 3] of rays in their cameras' planes at distance one.

    Args:
        poses: [R, 3, 4] camera to world, of each ray's camera.
        right: [R] tangents.
        down: [R].
    """
    # One row of twelve numbers per ray; its columns are views.
    pose = poses.flatten(1).unbind(1)
    # The length of (right, -down, -1) is that of the world direction too: rotations keep lengths.
    scale = torch.rsqrt(right * right + down * down + 1.0)
    directions = torch.stack(
        [pose[4 * i] * right - pose[4 * i + 1] * down - pose[4 * i + 2] for i in range(3)], dim=1
    )
    return torch.stack([pose[3], pose[7], pose[11]], dim=1), directions.mul_(scale[:, None])


def pixel_rays_reference(
    poses: Tensor, intrinsics: Tensor, camera_indices: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Find rays by torch (see `pixel_rays`)."""
    fx, fy, cx, cy = intrinsics.index_select(0, camera_indices).unbind(1)
    right, down = (x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy
    return through(poses.index_select(0, camera_indices), right, down)


@library.fake("pixel_rays")
def _pixel_rays_fake(
    poses: Tensor, _i: Tensor, camera_indices: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    num = camera_indices.shape[0]
    return poses.new_empty(num, 3), poses.new_empty(num, 3)


def pixel_rays(
    poses: Tensor, intrinsics: Tensor, camera_indices: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Find origins and unit directions [R, 3] of the rays through the centres of pixels.

    Where cameras ask for gradients, torch computes them.

    Args:
        poses: [C, 3, 4] camera to world, OpenGL's axes.
        intrinsics: [C, 4] fx fy cx cy, pixels.
        camera_indices: [R] int64.
        x: [R] int64 columns, counted from the left.
        y: [R] int64 rows, counted from the top.
    """
    tensors = (poses, intrinsics, camera_indices, x, y)
    asked = torch.is_grad_enabled() and (poses.requires_grad or intrinsics.requires_grad)
    mixed = poses.dtype != intrinsics.dtype or any(t.dtype != torch.int64 for t in tensors[2:])
    if asked or mixed or not library.native(*tensors):
        return pixel_rays_reference(*tensors)
    return torch.ops.nerftrain.pixel_rays(*(t.contiguous() for t in tensors))
