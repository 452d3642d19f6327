"""Pixels: which are drawn, their colours, and the rays through their centres.

A ray is r(t) = o + t d (NeRF, arXiv:2003.08934).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerftrain.ops import library


def in_turn(drawn: Tensor, num_rays: int, total: int, stride: int) -> Tensor:
    """Find the next [R] int64 of the numbers below total, `drawn` [] of which came before.

    They come in the order of the multiples of stride, modulo total.
    """
    turns = drawn + torch.arange(num_rays, device=drawn.device)
    return turns % total * stride % total


def locate(pixel_indices: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find camera, column and row, [R] int64 each, of pixels of images of one size."""
    cameras = pixel_indices // (width * height)
    within = pixel_indices - cameras * (width * height)
    y = within // width
    return cameras, within - y * width, y


def draw_pixels_reference(
    drawn: Tensor,
    num_rays: int,
    total: int,
    stride: int,
    pixels: Tensor | None,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw by torch (see `draw_pixels`)."""
    these = in_turn(drawn, num_rays, total, stride)
    if pixels is not None and len(pixels):
        these = pixels.index_select(0, these).long()
    return these, *locate(these, width, height)


def through(
    poses: Tensor, right: Tensor, down: Tensor, ahead: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Find origins and unit directions [R, 3] of rays through points as their cameras see them.

    Args:
        poses: [R, 3, 4] camera to world, of each ray's camera.
        right: [R].
        down: [R].
        ahead: [R], or one for all: then right and down are tangents.
    """
    # One row of twelve numbers per ray; its columns are views.
    pose = poses.flatten(1).unbind(1)
    # The length of (right, -down, -ahead) is that of the world direction: rotations keep lengths.
    scale = torch.rsqrt(right * right + down * down + ahead * ahead)
    directions = torch.stack(
        [pose[4 * i] * right - pose[4 * i + 1] * down - pose[4 * i + 2] * ahead for i in range(3)],
        dim=1,
    )
    return torch.stack([pose[3], pose[7], pose[11]], dim=1), directions.mul_(scale[:, None])


def pixel_rays_reference(
    poses: Tensor, intrinsics: Tensor, camera_indices: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Find rays by torch (see `pixel_rays`)."""
    fx, fy, cx, cy = intrinsics.index_select(0, camera_indices).unbind(1)
    right, down = (x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy
    return through(poses.index_select(0, camera_indices), right, down)


def pixel_colors_reference(pixels: Tensor, drawn: Tensor, background: Tensor) -> Tensor:
    """Find colours by torch (see `pixel_colors`)."""
    return composite_over(pixels.index_select(0, drawn).float() / 255, background)


def composite_over(colors: Tensor, background: Tensor) -> Tensor:
    """Lay straight colours [..., 3 or 4] over a background [..., 3]; without alpha they hide it."""
    if colors.shape[-1] == 3:
        return colors
    return torch.lerp(background.expand_as(colors[..., :3]), colors[..., :3], colors[..., 3:])


@library.fake("draw_pixels")
def _draw_pixels_fake(drawn: Tensor, num_rays: int, *_: object) -> tuple[Tensor, ...]:
    return tuple(drawn.new_empty(num_rays) for _ in range(4))


@library.fake("pixel_colors")
def _pixel_colors_fake(_p: Tensor, drawn: Tensor, background: Tensor) -> Tensor:
    return background.new_empty(drawn.shape[0], 3)


@library.fake("pixel_rays")
def _pixel_rays_fake(
    poses: Tensor, _i: Tensor, camera_indices: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    num = camera_indices.shape[0]
    return poses.new_empty(num, 3), poses.new_empty(num, 3)


def draw_pixels(
    drawn: Tensor,
    num_rays: int,
    total: int,
    stride: int,
    pixels: Tensor | None,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the next pixels, cameras, columns and rows, [R] int64 each, of images of one size.

    Args:
        drawn: [] int64, how many have been drawn before.
        num_rays: R.
        total: how many pixels there are to draw from, P.
        stride: from one pixel to the next, modulo total.
        pixels: [P] int32, what is drawn from; None, or without elements: all pixels of all images.
        width: of every image.
        height: of every image.
    """
    inputs = drawn.new_empty(0, dtype=torch.int32) if pixels is None else pixels
    numbers = num_rays, total, stride
    known = drawn.dtype == torch.int64 and inputs.dtype == torch.int32
    if not known or not library.native(drawn, inputs):
        return draw_pixels_reference(drawn, *numbers, pixels, width, height)
    return torch.ops.nerftrain.draw_pixels(drawn, *numbers, inputs.contiguous(), width, height)


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


def pixel_colors(pixels: Tensor, drawn: Tensor, background: Tensor) -> Tensor:
    """Find the colours [R, 3] of some pixels over backgrounds.

    Only the drawn rows leave uint8: all of them as float32 would take four times the memory.

    Args:
        pixels: [P, 3 or 4] uint8, straight colour and perhaps alpha.
        drawn: [R] int64, below P.
        background: [R, 3] float32 in 0..1.
    """
    tensors = (pixels, drawn, background)
    if background.dtype != torch.float32 or not library.native(*tensors):
        return pixel_colors_reference(*tensors)
    return torch.ops.nerftrain.pixel_colors(*(t.contiguous() for t in tensors))
