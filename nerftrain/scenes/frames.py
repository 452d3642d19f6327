"""The frames of a transforms file: poses and the images that they name, checked one by one."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from nerftrain.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One entry of a transforms file."""

    where: str  # file, number and name, for messages
    file_path: str
    pose: Tensor  # [3, 4] float64, camera to world
    entry: Mapping[str, Any] = field(repr=False)  # all that the file says of it
    time: float | None = None  # 0..1, where the scene is read as one that moves


# The transforms file


def read_transforms(path: Path, wanted: str) -> tuple[dict[str, Any], list[Frame]]:
    """Read what a transforms file says of all frames, and its frames.

    Raises:
        UserError: the file is damaged, or a frame lacks its path or a rigid pose.
    """
    content, entries = read_entries(path, wanted)
    return content, [read_frame(path, i, entry) for i, entry in enumerate(entries)]


def read_entries(path: Path, wanted: str) -> tuple[dict[str, Any], list[Any]]:
    """Read a transforms file, and its frames as they stand there.

    Args:
        path: of the file.
        wanted: the keys beside "frames" that it should hold, for the message.

    Raises:
        UserError: the file is damaged, or lists no frame.
    """
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with {wanted} and frames")
    entries = content.get("frames")
    if not isinstance(entries, list):
        raise UserError(
            f"{path}: frames must be a list of objects with file_path and transform_matrix"
        )
    if not entries:
        raise UserError(f"{path}: the list of frames is empty; a split needs at least one")
    return content, entries


def read_angle(path: Path, content: Mapping[str, Any]) -> float:
    """Read the horizontal field of view, radians, that all frames share.

    Raises:
        UserError: it is missing or no angle.
    """
    angle = content.get("camera_angle_x")
    if not is_number(angle) or not 0 < angle < math.pi:
        given = "is missing" if angle is None else f"is {short(angle)}"
        raise UserError(
            f"{path}: camera_angle_x {given}; it is the horizontal field of view in radians, "
            "between 0 and 3.14 (NeRF-synthetic has 0.691)"
        )
    return float(angle)


def _parse_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); "
            "mend it there or restore the file"
        ) from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON text ({error}): restore the file") from error


def read_frame(path: Path, index: int, entry: object) -> Frame:
    """Read one entry of a transforms file.

    Raises:
        UserError: it lacks its path or a rigid pose.
    """
    file_path = entry.get("file_path") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(file_path, str) or not file_path:
        raise UserError(
            f"{path}: frame {index} has no file_path; give each frame the path of its image, "
            'like "./train/r_0"'
        )
    where = f"{path}: frame {index} ({short(file_path)})"
    return Frame(where, file_path, _read_pose(where, entry.get("transform_matrix")), entry)


def _read_pose(where: str, matrix: object) -> Tensor:
    """Check a camera-to-world matrix and return its upper rows [3, 4] float64."""
    rows = matrix if isinstance(matrix, list) else []
    if len(rows) != 4 or any(not isinstance(row, list) or len(row) != 4 for row in rows):
        raise UserError(f"{where}: transform_matrix must be 4 rows of 4 numbers (camera to world)")
    if not all(is_number(value) for row in rows for value in row):
        raise UserError(f"{where}: transform_matrix holds something other than finite numbers")
    pose = np.array(rows, dtype=np.float64)
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise UserError(
            f"{where}: the last row of transform_matrix must be 0 0 0 1; "
            "write the position in the last column"
        )
    rotation = pose[:3, :3]
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise UserError(
            f"{where}: the upper left 3x3 of transform_matrix is not a rotation (columns of length "
            "1, at right angles, right-handed); remove scale, shear and mirroring from it"
        )
    return torch.from_numpy(pose[:3])


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value of a JSON file is a finite number."""
    # JSON has no NaN, but Python reads and writes it; True is an int.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e30


def short(value: object) -> str:
    """Quote a value of a JSON file in at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# Images


def find_images(
    path: Path, frames: list[Frame], skip_missing: bool
) -> tuple[list[Frame], list[Path]]:
    """Pair the frames of a transforms file with their images, leaving out those without one.

    Raises:
        UserError: images are missing, and may not be skipped or all are.
    """
    folders: dict[Path, dict[str, str]] = {}
    images = [find_image(path.parent, frame.file_path, folders) for frame in frames]
    missing = [short(f.file_path) for f, image in zip(frames, images, strict=True) if not image]
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problem = f"{path}: {len(missing)} of {len(frames)} frames have no image ({first})"
        if len(missing) == len(frames):
            raise UserError(f"{problem}; put the images beside the file, as PNG or JPEG")
        if not skip_missing:
            raise UserError(f"{problem}; restore them, or go on with scene.skip_missing=true")
        _log.warning("%s; going on without them", problem)
    pairs = [(f, image) for f, image in zip(frames, images, strict=True) if image]
    return [frame for frame, _ in pairs], [image for _, image in pairs]


def find_image(root: Path, file_path: str, folders: dict[Path, dict[str, str]]) -> Path | None:
    """Find a frame's image, named with or without its suffix, the suffix in any case.

    Args:
        root: what relative paths start from.
        file_path: as written in the transforms file.
        folders: the listings read so far, kept by the caller: suffix in small letters -> name.
    """
    wanted = root / file_path.replace("\\", "/")
    folder = wanted.parent
    if folder not in folders:
        names = os.listdir(folder) if folder.is_dir() else []
        folders[folder] = {_small_suffix(name): name for name in sorted(names)}
    listing = folders[folder]
    for candidate in (wanted.name, *(wanted.name + suffix for suffix in IMAGE_SUFFIXES)):
        found = listing.get(_small_suffix(candidate))
        if found is not None and (folder / found).is_file():
            return folder / found
    return None


def _small_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()
