"""Where somebody stands and looks, and paths through such places in a file.

A file of a path is JSON: ``{"keyframes": [{"pose": 3 rows of 4, "fov": radians, "aspect": width /
height, "time": 0..1 or null}, ...]}``; poses are eye to world with OpenGL axes, in the scene's
coordinates, angles of view are vertical.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.types import Cameras


@dataclass(frozen=True)
class Eye:
    """Where somebody stands and looks."""

    pose: Tensor  # [3, 4] eye to world, OpenGL axes
    fov: float  # vertical, radians
    aspect: float  # width / height
    time: float | None  # 0..1

    def camera(self, longest: int) -> Cameras:
        """Make the pinhole camera whose longer side has so many pixels."""
        width, height = (
            max(1, round(longest * side / max(self.aspect, 1.0))) for side in (self.aspect, 1.0)
        )
        focal = height / (2 * math.tan(self.fov / 2))
        return Cameras(
            poses=self.pose[None],
            intrinsics=torch.tensor([[focal, focal, width / 2, height / 2]]),
            widths=torch.tensor([width]),
            heights=torch.tensor([height]),
            times=None if self.time is None else torch.tensor([self.time]),
        )


def vertical_fov(cameras: Cameras, index: int) -> float:
    """Return a camera's vertical angle of view, radians."""
    return 2 * math.atan(float(cameras.heights[index] / cameras.intrinsics[index, 1]) / 2)


def write_path(file: Path, eyes: Sequence[Eye]) -> None:
    """Write a path.

    Raises:
        UserError: the file cannot be written.
    """
    keyframes = [{**asdict(eye), "pose": eye.pose.tolist()} for eye in eyes]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"keyframes": keyframes}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror or error})") from error


def read_path(file: Path, longest: int) -> Cameras:
    """Read the cameras of a path's keyframes, the longer side of their images so many pixels.

    They are all as wide and high as the first, and show as much as that one.

    Raises:
        UserError: the file cannot be read, or holds no path.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["keyframes"]
        eyes = [_eye(entry) for entry in entries]
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file} is no camera path ({error}): give one that nerftrain view has saved, a "
            "transforms.json with frames, or a path of nerfstudio's"
        ) from error
    if len(eyes) < 2:
        raise UserError(f"{file} has {len(eyes)} keyframes: a path needs two or more")
    first = eyes[0].camera(longest)
    times = [eye.time for eye in eyes]
    return Cameras(
        poses=torch.stack([eye.pose for eye in eyes]),
        intrinsics=first.intrinsics.repeat(len(eyes), 1),
        widths=first.widths.repeat(len(eyes)),
        heights=first.heights.repeat(len(eyes)),
        times=None if None in times else torch.tensor(times),
    )


def _eye(entry: Any) -> Eye:
    pose = torch.tensor(entry["pose"], dtype=torch.float32)
    time = entry.get("time")
    eye = Eye(pose, float(entry["fov"]), float(entry["aspect"]), time)
    if pose.shape != (3, 4) or not pose.isfinite().all():
        raise ValueError("a pose is not 3 rows of 4 numbers")
    if not (0 < eye.fov < math.pi and 0 < eye.aspect < math.inf):
        raise ValueError("fov must lie between 0 and pi, aspect above 0")
    if time is not None and not 0 <= time <= 1:
        raise ValueError("a time must lie between 0 and 1")
    return eye
