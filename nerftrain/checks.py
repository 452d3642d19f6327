"""Checks of the tensors that callers give: one line with what was given, what is needed, a remedy.

Shapes are known to the host and are checked on every device. What tensors hold is looked at on the
CPU alone, where that makes nobody wait, and not while torch traces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerftrain.errors import UserError

PACK = "make it by pack_info(ray_indices, n_rays)"


def check_shape(name: str, tensor: Tensor, shape: tuple[int | str, ...], remedy: str = "") -> None:
    """Raise UserError for a tensor of another shape, in which a letter stands for any size."""
    actual = tensor.shape
    if actual == shape:
        return
    fits = len(actual) == len(shape) and all(
        isinstance(side, str) or side == size for side, size in zip(shape, actual, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(side) for side in shape)
        hint = f": {remedy}" if remedy else ""
        raise UserError(f"{name} has shape {list(actual)}, must be [{wanted}]{hint}")


def check_field(num_samples: int, density: Tensor, channels: Tensor | None = None) -> None:
    """Raise UserError for a field that gives not one density, or row of channels, per sample."""
    if channels is not None:
        remedy = "rgb_sigma_fn gives colour first, then density, a row per sample"
        check_shape("a field's colour", channels, (num_samples, "K"), remedy)
    remedy = "give a value per sample (squeeze(-1)?)"
    check_shape("a field's density", density, (num_samples,), remedy)


def check_made(made: object, kind: type, maker: object, method: str) -> None:
    """Raise UserError where a method of somebody's own class gives something of another kind."""
    if not isinstance(made, kind):
        raise UserError(
            f"{type(maker).__qualname__}.{method} gives {type(made).__name__}, must give "
            f"{kind.__name__}"
        )


def check_pair(made: object, maker: object) -> None:
    """Raise UserError where a field's forward gives other than channels and density."""
    parts = list(made) if isinstance(made, tuple | list) else [made]
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        given = ", ".join(type(part).__name__ for part in parts)
        raise UserError(
            f"{type(maker).__qualname__}.forward gives {given or 'nothing'}, must give two "
            "tensors: channels [N, K], colour first, and density [N]"
        )


def check_background(background: Tensor, num_rays: int) -> None:
    """Raise UserError for what is neither a colour [3] nor one per ray [R, 3]."""
    wanted = (3, num_rays)  # from the last axis on; an axis of one serves all
    sides = reversed(background.shape)
    if background.dim() > 2 or any(a not in (1, b) for a, b in zip(sides, wanted, strict=False)):
        check_shape("the background", background, (num_rays, 3), "or give one colour [3]")


def check_ray_indices(ray_indices: Tensor, num_rays: int | None) -> None:
    """Raise UserError for indices of other than the rays there are, or in no order.

    Args:
        ray_indices: [N], non-decreasing, integers.
        num_rays: R; None: any number.
    """
    if ray_indices.dim() != 1 or ray_indices.dtype not in (torch.int32, torch.int64):
        raise UserError(
            f"ray_indices are {ray_indices.dtype} of shape {list(ray_indices.shape)}: "
            "give integers of shape [N]"
        )
    if _is_seen(ray_indices):
        descends = (ray_indices[1:] < ray_indices[:-1]).view(torch.uint8)
        if len(descends) and int(descends.max()):  # any() takes twice as long as all the rest
            raise UserError("ray_indices are in no order: sort samples by their rays")
        check_ray_range(ray_indices, num_rays)


def check_ray_range(ray_indices: Tensor, num_rays: int | None) -> None:
    """Raise UserError where ascending indices [N] on the CPU are not of the rays there are."""
    low, high = (int(ray_indices[0]), int(ray_indices[-1])) if len(ray_indices) else (0, -1)
    if low < 0 or (num_rays is not None and high >= num_rays):
        rays = "rays are counted from 0" if num_rays is None else f"n_rays is {num_rays}"
        raise UserError(f"ray_indices run from {low} to {high}, but {rays}")


def check_packed_info(packed_info: Tensor, num_values: int) -> None:
    """Raise UserError for chunks [R, 2], starts and counts, that lead beyond the values [N]."""
    check_shape("packed_info", packed_info, ("n_rays", 2), PACK)
    if not _is_seen(packed_info):
        return
    starts, counts = packed_info.unbind(1)
    left = (num_values - starts).clamp(min=0)
    wrong = (starts < 0) | (counts < 0) | (counts > left)
    if bool(wrong.any()):
        ray = int(wrong.nonzero()[0])
        start, count = packed_info[ray].tolist()
        raise UserError(
            f"packed_info gives ray {ray} {count} values from {start} on, but there are "
            f"{num_values} of all rays: {PACK}"
        )


def _is_seen(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
