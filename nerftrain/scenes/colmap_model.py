"""Reading COLMAP's sparse models, binary or text: registered images with their poses and lenses.

pycolmap reads them, but of damaged files it makes wrong models without a word, or hangs. So their
structure is checked first, and what it is handed is a copy without points, which nothing here needs
and which are nearly all of a model's bytes. (COLMAP documentation, "Output Format".)
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.lens import COEFFICIENTS, MODELS, Lens

_CAMERA = struct.Struct("<IiQQ")  # id, model, width, height; then the parameters
_IMAGE = struct.Struct("<I7dI")  # id, quaternion, translation, camera; then name and points
COUNT = struct.Struct("<Q")
_POINT_2D = 24  # bytes: x, y, id of the 3D point
RESTORE = "restore the file, or export the model again (colmap model_converter)"


@dataclass(frozen=True)
class View:
    """One registered image."""

    name: str  # of its file, relative to the folder of images
    pose: Tensor  # [3, 4] float64, camera to world, OpenGL axes
    lens: Lens


def model_suffix(folder: Path) -> str | None:
    """Tell whether a folder holds a binary (.bin) or a text (.txt) model, or neither."""
    for suffix in (".bin", ".txt"):
        if all((folder / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
            return suffix
    return None


def num_images(folder: Path) -> int:
    """Count the registered images that a model declares, to find the largest one."""
    if model_suffix(folder) == ".txt":
        return sum(1 for _ in _image_lines(folder / "images.txt"))
    with (folder / "images.bin").open("rb") as file:
        head = file.read(COUNT.size)
    return COUNT.unpack(head)[0] if len(head) == COUNT.size else 0


def read_model(folder: Path) -> list[View]:
    """Read the registered images of the model in a folder, sorted by name.

    Raises:
        UserError: pycolmap is missing, the files are damaged, hold no registered image, or name a
            kind of camera that is not supported.
    """
    pycolmap = import_pycolmap()
    suffix = model_suffix(folder)
    cameras, images = folder / f"cameras{suffix}", folder / f"images{suffix}"
    binary = suffix == ".bin"
    camera_ids = set((_binary_cameras if binary else _text_cameras)(cameras, pycolmap))
    found = list(read_entries(images))
    if not found:
        raise UserError(
            f"{images} holds no registered image: the reconstruction has failed; run COLMAP again, "
            "with more overlap between the images"
        )
    for image in found:
        if image.camera not in camera_ids:
            raise UserError(
                f"{images}: {image.name} is by camera {image.camera}, which {cameras.name} lacks; "
                f"{RESTORE}"
            )
    with tempfile.TemporaryDirectory(prefix="nerftrain-") as copy:
        _write_without_points(Path(copy), cameras, found, binary)
        try:
            model = pycolmap.Reconstruction(copy)
        except Exception as error:  # whatever pycolmap makes of its checks
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: pycolmap refuses it ({reason}); {RESTORE}") from error
    lenses = {i: _lens(model.camera(i), cameras) for i in {image.camera for image in found}}
    views = [View(i.name, _pose(model.image(i.id), images, i), lenses[i.camera]) for i in found]
    return sorted(views, key=lambda view: view.name)


def import_pycolmap() -> ModuleType:
    """Import pycolmap.

    Raises:
        UserError: it is missing.
    """
    try:
        import pycolmap  # 0.2 s, only where it is needed
    except ImportError as error:
        raise UserError(
            f"COLMAP models are read by pycolmap, which cannot be imported ({error}): "
            "pip install pycolmap"
        ) from error
    return pycolmap


def read_entries(path: Path, with_points: bool = False) -> Iterator[Entry]:
    """Read images.bin or images.txt, entry by entry.

    Raises:
        UserError: it is damaged.
    """
    return (_binary_images if path.suffix == ".bin" else _text_images)(path, with_points)


@dataclass(frozen=True)
class Entry:
    """One entry of images.bin or images.txt."""

    id: int
    camera: int
    name: str
    numbers: tuple[float, ...]  # qw qx qy qz tx ty tz, world to camera
    points: bytes | str  # that were found in it, as the file has them; empty where nobody asked


# Binary files


def _binary_cameras(path: Path, pycolmap: ModuleType) -> Iterator[int]:
    """Walk cameras.bin to its end and give the ids."""
    data = path.read_bytes()
    place = COUNT.size
    for _ in range(_count(path, data, _CAMERA.size)):
        if place + _CAMERA.size > len(data):
            raise damaged(path)
        camera, model, width, height = _CAMERA.unpack_from(data, place)
        known = {int(value): value for value in pycolmap.CameraModelId.__members__.values()}
        if model not in known or model < 0:
            raise _unsupported(path, camera, f"number {model}")
        place += _CAMERA.size + 8 * _num_params(pycolmap, known[model])
        if place > len(data) or not 0 < min(width, height) <= max(width, height) < 2**20:
            raise damaged(path)
        yield camera
    if place != len(data):
        raise damaged(path)


def _num_params(pycolmap: ModuleType, model: Any) -> int:
    return len(pycolmap.Camera.create_from_model_id(1, model, 1.0, 2, 2).params)


def _binary_images(path: Path, with_points: bool) -> Iterator[Entry]:
    """Walk images.bin to its end."""
    if path.stat().st_size < COUNT.size:
        raise damaged(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = COUNT.size
        for _ in range(_count(path, data, _IMAGE.size)):
            name_at = place + _IMAGE.size
            name_end = data.find(b"\0", name_at, name_at + 4096)
            if name_end < 0 or name_end + 1 + COUNT.size > len(data):
                raise damaged(path)
            image, *numbers, camera = _IMAGE.unpack_from(data, place)
            name = os.fsdecode(data[name_at:name_end])
            (num_points,) = COUNT.unpack_from(data, name_end + 1)
            points_at = name_end + 1 + COUNT.size
            place = points_at + _POINT_2D * num_points
            if place > len(data):
                raise damaged(path)
            points = data[points_at:place] if with_points else b""
            yield Entry(image, camera, name, tuple(numbers), points)
        if place != len(data):
            raise damaged(path)


def _count(path: Path, data: bytes | mmap.mmap, least: int) -> int:
    """Read the number of entries, which have at least so many bytes."""
    if len(data) < COUNT.size:
        raise damaged(path)
    (count,) = COUNT.unpack_from(data, 0)
    if count * least > len(data):
        raise damaged(path)
    return count


def damaged(path: Path) -> UserError:
    """Say that a binary file does not hold what it counts."""
    size = path.stat().st_size
    return UserError(
        f"{path} is damaged or cut short: its {size} bytes are not the entries that it counts; "
        f"{RESTORE}"
    )


# Text files


def _text_cameras(path: Path, pycolmap: ModuleType) -> Iterator[int]:
    """Check the lines of cameras.txt and give the ids."""
    known = pycolmap.CameraModelId.__members__
    for number, line in numbered_lines(path):
        fields = line.split()
        model = fields[1] if len(fields) > 1 else ""
        if fields and not line.startswith("#"):
            wrong = f"{path}, line {number}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS"
            camera = _integer(fields[0], wrong)
            if len(fields) >= 4 and (model not in known or model == "INVALID"):
                raise _unsupported(path, camera, model)
            if len(fields) < 4 or len(fields) - 4 != _num_params(pycolmap, known[model]):
                raise UserError(f"{wrong}; {RESTORE}")
            if min(_integer(field, wrong) for field in fields[2:4]) <= 0:
                raise UserError(f"{wrong}; {RESTORE}")
            floats(fields[4:], wrong)
            yield camera


def _text_images(path: Path, with_points: bool) -> Iterator[Entry]:
    for number, line, points in _image_lines(path):
        fields = line.split(maxsplit=9)
        wrong = f"{path}, line {number}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
        if len(fields) < 10:
            raise UserError(f"{wrong}; {RESTORE}")
        image, camera = _integer(fields[0], wrong), _integer(fields[8], wrong)
        numbers = floats(fields[1:8], wrong)
        yield Entry(image, camera, fields[9].strip(), numbers, points if with_points else "")


def _image_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Give the lines of images.txt that describe images, and those of their points after them."""
    lines = numbered_lines(path)
    for number, line in lines:
        if line.strip() and not line.startswith("#"):
            yield number, line, next(lines, (0, ""))[1]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines of a text file with their numbers."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        yield from enumerate(file, start=1)


def _integer(text: str, wrong: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{wrong}, found {text[:40]!r} for a whole number; {RESTORE}")
    return int(text)


def floats(texts: list[str], wrong: str) -> tuple[float, ...]:
    """Read numbers; raises UserError, which says what is wrong, where they are none."""
    try:
        return tuple(float(text) for text in texts)
    except ValueError as error:
        raise UserError(f"{wrong}, {error}; {RESTORE}") from error


# Through pycolmap


def _write_without_points(folder: Path, cameras: Path, images: list[Entry], binary: bool) -> None:
    """Write a model of the same cameras and images, which are named by their ids."""
    suffix = cameras.suffix
    (folder / f"cameras{suffix}").write_bytes(cameras.read_bytes())
    content = [COUNT.pack(len(images))] if binary else []
    for image in images:
        name = str(image.id).encode()
        if binary:
            head = _IMAGE.pack(image.id, *image.numbers, image.camera)
            content.append(head + name + b"\0" + COUNT.pack(0))
        else:
            numbers = " ".join(repr(value) for value in image.numbers)
            content.append(f"{image.id} {numbers} {image.camera} {image.id}\n\n".encode())
    (folder / f"images{suffix}").write_bytes(b"".join(content))
    (folder / f"points3D{suffix}").write_bytes(COUNT.pack(0) if binary else b"")


def _lens(camera: Any, source: Path) -> Lens:
    model, (width, height) = camera.model.name, (camera.width, camera.height)
    if model not in MODELS:
        raise _unsupported(source, camera.camera_id, model)
    projection, names = MODELS[model]
    if projection == "equirectangular":  # of which COLMAP knows the size alone
        around = (width / (2 * math.pi), height / math.pi, width / 2, height / 2)
        return Lens(width, height, around, projection=projection)
    bending = [float(value) for value in camera.params[camera.extra_params_idxs()]]
    intrinsics = (
        float(camera.focal_length_x),
        float(camera.focal_length_y),
        float(camera.principal_point_x),
        float(camera.principal_point_y),
    )
    numbers = torch.tensor([*intrinsics, *bending])
    if min(intrinsics[:2]) <= 0 or not bool(numbers.isfinite().all()):
        raise UserError(
            f"{source}: camera {camera.camera_id} ({model}) has the parameters "
            f"{camera.params_to_string()}; focal lengths must be positive, all numbers finite"
        )
    faults = dict(zip(names, bending, strict=True))
    distortion = tuple(faults.get(name, 0.0) for name in COEFFICIENTS)
    return Lens(width, height, intrinsics, distortion, projection)


def _pose(image: Any, source: Path, entry: Entry) -> Tensor:
    """Turn world to camera with OpenCV's axes (y down, z ahead) into camera to world, OpenGL's."""
    matrix = torch.from_numpy(image.cam_from_world().matrix()).double()
    rotation = matrix[:, :3].T
    identity = torch.eye(3, dtype=torch.float64)
    off = (rotation.T @ rotation - identity).abs().max() + (1 - torch.linalg.det(rotation)).abs()
    if not (bool(matrix.isfinite().all()) and off < 1e-6 and any(entry.numbers[:4])):
        raise UserError(f"{source}: the pose of {entry.name} is no rotation and place; {RESTORE}")
    flipped = rotation * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    return torch.cat([flipped, -rotation @ matrix[:, 3:]], dim=1)


def _unsupported(path: Path, camera: int, model: str) -> UserError:
    return UserError(
        f"{path}: camera {camera} is of the model {model}; supported are {', '.join(MODELS)}: "
        "run COLMAP with one of these, or undistort the images by colmap image_undistorter"
    )
