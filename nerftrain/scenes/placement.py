"""Where a transforms file says that its capture lies: its box, and what moved it before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.scenes.frames import is_number, short
from nerftrain.scenes.world import check_apart, move, normalization
from nerftrain.types import Contraction

# instant-ngp puts x * scale + offset into its unit box, where the file says nothing else.
NGP_SCALE = 0.33
NGP_OFFSET = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Placement:
    """How a capture is brought into the scene's box."""

    contraction: Literal["auto", "none", "l2", "linf"]
    center: bool
    up: bool
    scale: bool
    near: float
    far: float


@dataclass(frozen=True)
class Place:
    """Where the file's coordinates come to lie, and how far rays run there."""

    world: Tensor  # [4, 4] float64, from the file's coordinates to the scene's
    contraction: Contraction
    far: float


def find_place(
    path: Path, content: Mapping[str, Any], poses: Tensor, placement: Placement
) -> Place:
    """Find where a capture with poses [C, 3, 4] comes to lie.

    Raises:
        UserError: all cameras are in one point, or what the file says of its box cannot be.
    """
    check_apart(poses)
    bounded = _aabb_scale(path, content) == 1
    contraction = placement.contraction
    if contraction == "auto":
        contraction = "none" if bounded else "l2"
    if bounded and contraction == "none":
        world = _unit_box(path, content)
    else:
        world = normalization(poses, placement.center, placement.up, placement.scale)
    far = placement.far
    if contraction == "none":
        farthest = float(move(poses, world)[:, :, 3].norm(dim=1).max())
        far = min(far, farthest + 3**0.5)
    return Place(world, contraction, far)


def _aabb_scale(path: Path, content: Mapping[str, Any]) -> float | None:
    value = content.get("aabb_scale")
    if value is not None and (not is_number(value) or value < 1):
        raise UserError(
            f"{path}: aabb_scale = {short(value)}: give 1 where all that is seen lies in "
            "instant-ngp's unit box, and more, or nothing, where it goes on around it"
        )
    return value


def _unit_box(path: Path, content: Mapping[str, Any]) -> Tensor:
    """Find the similarity [4, 4] from the file's coordinates that brings the unit box to +-1."""
    scale = content.get("scale", NGP_SCALE)
    offset = content.get("offset", NGP_OFFSET)
    if not is_number(scale) or scale <= 0:
        raise UserError(f"{path}: scale = {short(scale)}: give a positive number")
    if not isinstance(offset, (list, tuple)) or [is_number(x) for x in offset] != [True] * 3:
        raise UserError(f"{path}: offset = {short(offset)}: give three numbers")
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3] *= 2 * scale
    world[:3, 3] = 2 * torch.tensor(offset, dtype=torch.float64) - 1
    return world


def applied(path: Path, content: Mapping[str, Any]) -> Tensor:
    """Find the similarity [4, 4] that nerfstudio's tools applied before they wrote the file.

    Raises:
        UserError: it is none.
    """
    rows = content.get("applied_transform", torch.eye(4)[:3].tolist())
    scale = content.get("applied_scale", 1.0)
    if not is_number(scale) or scale <= 0:
        raise UserError(f"{path}: applied_scale = {short(scale)}: give a positive number")
    is_matrix = isinstance(rows, list) and len(rows) in (3, 4)
    if not is_matrix or any(
        not isinstance(row, list) or [is_number(x) for x in row] != [True] * 4 for row in rows
    ):
        raise UserError(f"{path}: applied_transform must be 3 rows of 4 numbers")
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[:3] = torch.tensor(rows[:3], dtype=torch.float64)
    turn = similarity[:3, :3]
    if (turn.T @ turn - torch.eye(3)).abs().max() > 1e-3 or torch.linalg.det(turn) < 0:
        raise UserError(f"{path}: applied_transform is not a rotation and a shift")
    similarity[:3] *= scale
    return similarity
