"""Cameras that a file lists, to be rendered as they are: each is one image, or one of a film.

There are two kinds of such files, both in the dataset's own coordinates, in which meshes lie, too:
a transforms.json, of which images need not exist; and the camera paths (``camera_path``) that
nerfstudio's add-on for Blender writes, of a camera that was moved around an exported mesh.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.lens import Lens, check_invertible, together
from nerftrain.scenes.calibration import read_lens
from nerftrain.scenes.frames import is_number, read_frame, short
from nerftrain.scenes.images import Picture
from nerftrain.scenes.placement import applied
from nerftrain.scenes.times import have_times, with_times
from nerftrain.scenes.world import move
from nerftrain.types import Cameras, Projection

KINDS = get_args(Projection)  # nerfstudio's camera_type calls them by the same names
MOST_PIXELS = 1 << 28  # of an image: 16,384 x 16,384


@dataclass(frozen=True)
class Shots:
    """What is to be rendered."""

    cameras: Cameras  # in the scene's coordinates
    fps: float | None  # frames per second of a film; None: the file does not say


def read_shots(file: Path, world: Tensor | None) -> Shots | None:
    """Read the cameras that a file lists; None: it is a file of another kind.

    Args:
        file: JSON.
        world: [4, 4], from the dataset's own coordinates to the scene's; None: they are the same.

    Raises:
        UserError: it cannot be read, or a camera in it cannot be.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError):
        return None  # the reader of paths says what is wrong
    world = torch.eye(4) if world is None else world
    for key, read in (("camera_path", _of_path), ("frames", _of_transforms)):
        listed = content.get(key) if isinstance(content, dict) else None
        if isinstance(listed, list) and listed:
            return read(file, content, listed, world.double().cpu())
    return None


# A transforms file


def _of_transforms(
    file: Path, content: Mapping[str, Any], entries: list[Any], world: Tensor
) -> Shots:
    frames = [read_frame(file, i, entry) for i, entry in enumerate(entries)]
    if have_times(frames):
        frames = with_times(file, frames)
    shared = {key: value for key, value in content.items() if key != "frames"}
    lenses = []
    for frame in frames:
        both = {**shared, **frame.entry}
        width, height = (_side(frame.where, key, both.get(key)) for key in "wh")
        picture = Picture(Path(frame.file_path), width, height, "RGB")
        lenses.append(read_lens(frame.where, shared, frame.entry, picture))
    times = [frame.time for frame in frames if frame.time is not None]
    poses = torch.stack([frame.pose for frame in frames])
    to_scene = world @ torch.linalg.inv(applied(file, content))
    return _shots(file, move(poses, to_scene), lenses, times, None)


def _side(where: str, key: str, value: object) -> int:
    if not is_number(value) or value != int(value) or value < 1:
        raise UserError(
            f"{where}: {key} = {short(value)}: give the size of the image to be rendered, in pixels"
        )
    return int(value)


# nerfstudio's camera path


def _of_path(file: Path, content: Mapping[str, Any], entries: list[Any], world: Tensor) -> Shots:
    keys = "render_width", "render_height"
    width, height = (_side(str(file), key, content.get(key)) for key in keys)
    kind = content.get("camera_type", "perspective")
    if kind not in KINDS:
        raise UserError(
            f"{file}: camera_type = {short(kind)} is not supported; there are {', '.join(KINDS)}"
        )
    poses, lenses, times = [], [], []
    for number, entry in enumerate(entries):
        where = f"{file}: camera {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is no object with camera_to_world and fov")
        matrix = np.array(entry.get("camera_to_world", []), dtype=object).reshape(-1)
        if len(matrix) not in (12, 16):
            raise UserError(f"{where}: camera_to_world must be 4 rows of 4 numbers")
        rows = [*matrix[:12].reshape(3, 4).tolist(), [0.0, 0.0, 0.0, 1.0]]
        frame = read_frame(
            file, number, {"file_path": f"camera {number}", "transform_matrix": rows}
        )
        poses.append(frame.pose)
        lenses.append(_lens(where, entry, kind, (width, height)))
        if (time := entry.get("render_time")) is not None:
            if not is_number(time) or not 0 <= time <= 1:
                raise UserError(f"{where}: render_time = {short(time)}: must lie in 0..1")
            times.append(float(time))
    fps = content.get("fps")
    return _shots(
        file,
        move(torch.stack(poses), world),
        lenses,
        times,
        float(fps) if is_number(fps) and 0 < fps <= 1000 else None,
    )


def _lens(
    where: str, entry: Mapping[str, Any], projection: Projection, size: tuple[int, int]
) -> Lens:
    width, height = size
    middle = width / 2, height / 2
    if projection == "equirectangular":
        return Lens(
            *size, (width / (2 * math.pi), height / math.pi, *middle), projection=projection
        )
    fov = entry.get("fov")
    if not is_number(fov) or not 0 < fov < 180:
        raise UserError(f"{where}: fov = {short(fov)}: give the vertical angle of view in degrees")
    focal = height / 2 / math.tan(math.radians(fov) / 2)
    return Lens(*size, (focal, focal, *middle), projection=projection)


# Both


def _shots(
    file: Path, poses: Tensor, lenses: list[Lens], times: list[float], fps: float | None
) -> Shots:
    if max(lens.width * lens.height for lens in lenses) > MOST_PIXELS:
        raise UserError(f"{file}: images of more than {MOST_PIXELS:,} pixels: give a smaller size")
    distortion, projection = together(lenses, str(file))
    cameras = Cameras(
        poses=poses.float(),
        intrinsics=torch.tensor([lens.intrinsics for lens in lenses]),
        widths=torch.tensor([lens.width for lens in lenses]),
        heights=torch.tensor([lens.height for lens in lenses]),
        times=torch.tensor(times) if len(times) == len(lenses) else None,
        distortion=distortion,
        projection=projection,
    )
    check_invertible(cameras, str(file))
    return Shots(cameras, fps)
