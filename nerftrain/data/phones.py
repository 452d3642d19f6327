"""Cameras that a telephone's app has found while it filmed: Polycam's raw data, and Record3D's.

Both come from ARKit: a pose is camera to world, the camera looks along its -z and its +y is up, as
in a transforms file; the world's +y is up. Here its axes are called anew, so that +z is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nerftrain.errors import UserError
from nerftrain.paths import check_reach
from nerftrain.scenes.depths import KEYS
from nerftrain.scenes.frames import IMAGE_SUFFIXES, is_number

FILE = "transforms.json"
DEPTHS = KEYS[0]  # in millimetres, as it is read where the file says nothing
_Z_UP = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # x, y, z from z, x, y
_OFF_MIDDLE = 0.05  # of a side: how far from an image's middle its principal point may lie
_POSE = [f"t_{row}{column}" for row in range(3) for column in range(4)]  # Polycam's keys
_LENS = ("fx", "fy", "cx", "cy", "width", "height")

Frame = dict[str, Any]  # of a transforms file


@dataclass(frozen=True)
class Capture:
    """What an app has left: the frames whose camera and image are there, in their order."""

    app: str
    frames: list[Frame]
    sharpness: list[float]  # of each frame, in any unit
    without: int  # cameras without an image, or images without a camera
    note: str = ""


def convert(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """Write a transforms.json for the images in a folder, where they lie.

    Args:
        folder: of the raw data.
        count: of the frames to take at most: the sharpest of each of as many equal stretches.

    Returns:
        Lines that tell what was found and written, and what training should be told.

    Raises:
        UserError: it is no such folder, what is in it is damaged, or a file would be overwritten.
    """
    check_reach(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file: unpack it (.r3d, too, is a ZIP) and give its folder")
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give the folder of what the app exported")
    path = folder / FILE
    if path.exists():
        raise UserError(f"{path} is there already: train it, or move it away first")
    capture = _read(folder)
    if not capture.frames:
        raise UserError(f"{folder}: no camera has an image: export the raw data once more")
    frames = _thinned(capture, count)
    try:
        partial = path.with_name(f".part-{FILE}")
        partial.write_text(json.dumps({"frames": frames}, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): make room there") from error
    taken = (
        f"{len(frames)} of {len(capture.frames)}" if len(frames) < len(capture.frames) else "all"
    )
    lines = [f"{folder}: {len(capture.frames)} frames of {capture.app}, {taken} taken"]
    lines += [f"  left out {capture.without}, camera or image missing"] if capture.without else []
    lines += [f"  {capture.note}"] if capture.note else []
    lines.append(f"  wrote {path}")
    with_depths = any(DEPTHS in frame for frame in frames)
    return lines, ["refine=poses", *(["scene.depths=maps"] if with_depths else [])]


def mark_of(folder: Path) -> str | None:
    """Name the app whose raw data a folder holds; None where it holds none."""
    if (folder / "keyframes").is_dir():
        return "Polycam"
    return "Record3D" if _record3d_files(folder) is not None else None


def _read(folder: Path) -> Capture:
    app = mark_of(folder)
    if app is None:
        raise UserError(
            f"{folder} holds neither keyframes (Polycam: export Raw Data) nor metadata.json and "
            "rgb (Record3D: export EXR and RGB frames): give the folder that does"
        )
    try:
        return _polycam(folder) if app == "Polycam" else _record3d(folder)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from error


# Polycam


def _polycam(folder: Path) -> Capture:
    """Read a file of each camera; with corrected ones, whose drift is taken out, where they are."""
    kind, note = "corrected_", ""
    if not (folder / "keyframes" / "corrected_cameras").is_dir():
        kind, note = "", "cameras as they were while filming: refine=poses learns what they drifted"
    images = _by_stem(folder / "keyframes" / f"{kind}images")
    cameras = sorted((folder / "keyframes" / f"{kind}cameras").glob("*.json"), key=_number)
    frames, sharpness = [], []
    for file in cameras:
        if (image := images.get(file.stem)) is not None:
            camera = _read_json(file)
            frames.append(_polycam_frame(file, camera, image.relative_to(folder)))
            if (depths := folder / "keyframes" / "depth" / f"{file.stem}.png").is_file():
                frames[-1][DEPTHS] = depths.relative_to(folder).as_posix()
            score = camera.get("blur_score")  # higher is sharper
            sharpness.append(float(score) if is_number(score) else 0.0)
    without = len({file.stem for file in cameras} ^ set(images))
    return Capture("Polycam", frames, sharpness, without, note)


def _polycam_frame(file: Path, camera: Mapping[str, Any], image: Path) -> Frame:
    missing = [key for key in (*_POSE, *_LENS) if not is_number(camera.get(key))]
    if missing:
        raise UserError(f"{file}: {', '.join(missing[:3])} must be numbers: export Raw Data again")
    pose = np.eye(4)
    pose[:3] = np.array([camera[key] for key in _POSE], dtype=float).reshape(3, 4)
    *lens, width, height = (camera[key] for key in _LENS)
    return _frame(image, pose, lens, (width, height))


# Record3D


def _record3d_files(folder: Path) -> tuple[Path, Path] | None:
    """Find what tells of the cameras, and the folder of images: exported, or in an .r3d."""
    for metadata, images in (("metadata.json", "rgb"), ("metadata", "rgbd")):
        if (folder / metadata).is_file() and (folder / images).is_dir():
            return folder / metadata, folder / images
    return None


def _record3d(folder: Path) -> Capture:
    """Read the one file of all cameras; images are numbered as its poses are."""
    found = _record3d_files(folder)
    assert found is not None
    file, images = found
    content = _read_json(file)
    shared = _table(file, content, "K", (9,))[0, [0, 4, 6, 7]]  # it comes column by column
    poses = _table(file, content, "poses", (-1, 7))  # qx qy qz qw x y z
    lenses = np.tile(shared, (len(poses), 1))  # fx fy cx cy
    if content.get("perFrameIntrinsicCoeffs"):
        own = _table(file, content, "perFrameIntrinsicCoeffs", (-1, 4))[: len(poses)]
        lenses[: len(own)] = own
    width, height = content.get("w"), content.get("h")
    if not (is_number(width) and is_number(height) and min(width, height) > 0):
        raise UserError(f"{file}: w and h must be the images' size: export the capture again")
    by_number = {int(stem): image for stem, image in _by_stem(images).items() if stem.isdecimal()}
    frames = [
        _frame(
            by_number[number].relative_to(folder),
            _pose_of(file, number, poses[number]),
            lenses[number],
            (width, height),
        )
        for number in sorted(by_number)
        if number < len(poses)
    ]
    without = len(set(by_number) ^ set(range(len(poses))))
    note = "cameras as they were while filming: refine=poses learns what they drifted"
    return Capture("Record3D", frames, [0.0] * len(frames), without, note)


def _pose_of(file: Path, number: int, pose: np.ndarray) -> np.ndarray:
    """Turn a quaternion (x y z w) and a place into a pose [4, 4]."""
    norm = np.linalg.norm(pose[:4])
    if not norm > 0:
        raise UserError(f"{file}: pose {number} has no direction: export the capture again")
    x, y, z, w = pose[:4] / norm
    result = np.eye(4)
    result[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    result[:3, 3] = pose[4:]
    return result


# Both


def _frame(
    image: Path, pose: np.ndarray, lens: Sequence[float], size: tuple[float, float]
) -> Frame:
    """Write a frame of a lens fx fy cx cy and an image of width and height."""
    fx, fy, cx, cy = lens
    width, height = size
    # Where an image was stored upright and its lens was not, the principal point is of another one.
    if abs(cx - width / 2) > _OFF_MIDDLE * width or abs(cy - height / 2) > _OFF_MIDDLE * height:
        cx, cy = width / 2, height / 2
    return {
        "file_path": image.as_posix(),
        "transform_matrix": (_Z_UP @ pose).tolist(),
        "fl_x": float(fx),
        "fl_y": float(fy),
        "cx": float(cx),
        "cy": float(cy),
        "w": int(width),
        "h": int(height),
    }


def _thinned(capture: Capture, count: int) -> list[Frame]:
    """Take the sharpest frame of each of ``count`` stretches; the middle one of equals."""
    total = len(capture.frames)
    if total <= count:
        return capture.frames
    chosen = []
    for stretch in np.array_split(np.arange(total), count):
        middle = stretch[len(stretch) // 2]
        chosen.append(max(stretch, key=lambda i: (capture.sharpness[i], -abs(i - middle))))
    return [capture.frames[i] for i in chosen]


def _by_stem(folder: Path) -> dict[str, Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.stem: file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}


def _number(file: Path) -> tuple[int, str]:
    """Order files by the numbers that they are called by."""
    return (int(file.stem) if file.stem.isdecimal() else -1, file.stem)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}): export the raw data once more") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected an object: export the raw data once more")
    return content


def _table(file: Path, content: Mapping[str, Any], key: str, shape: Sequence[int]) -> np.ndarray:
    """Read an array of finite numbers of this shape."""
    try:
        table = np.array(content.get(key), dtype=float).reshape(-1, shape[-1])
        if not len(table) or not np.isfinite(table).all() or (shape[0] != -1 and len(table) != 1):
            raise ValueError
    except (ValueError, TypeError):
        form = f"{shape[-1]} numbers" + (" each" if shape[0] == -1 else "")
        raise UserError(f"{file}: {key} must be {form}: export the capture again") from None
    return table
