"""Folders in the layout of NeRF-synthetic: transforms_*.json and the images that they name."""

from __future__ import annotations

import json
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.scenes import Scene, Split
from nerftrain.scenes.images import Picture, check_alike, read_header, read_pixels, shrunk_size
from nerftrain.types import Cameras

SPLITS = ("train", "test", "val")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Folders of scenes that a data root may hold.
GROUPS = ("", "blender", "nerf_synthetic", "blender_synthetic")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Frame:
    """One entry of a transforms file."""

    file_path: str
    pose: Tensor  # [3, 4]


def load_scene(
    name: str,
    root: str | None,
    data_root: str | None,
    downscale: float,
    skip_missing: bool,
    near: float,
    far: float,
    extent: float,
) -> Scene:
    """Read a NeRF-synthetic folder.

    The "test" split is the folder's test split, or its val split where it has no other.

    Args:
        name: of the scene, and of its folder where root is None.
        root: the folder with transforms_train.json.
        data_root: where a folder of that name is looked for if root is None.
        downscale: images are shrunk by this factor, at least 1, averaged over area.
        skip_missing: go on, with a warning, without frames whose image is missing.
        near: distance at which rays start, world units.
        far: distance at which rays end.
        extent: the scene's box is +-extent on every axis.

    Raises:
        UserError: something in the folder or in these values cannot be used.
    """
    _check_values(downscale, near, far, extent)
    try:
        folder = _find_folder(name, root, data_root)
        splits = {
            split: _read_split(folder, split, downscale, skip_missing)
            for split in SPLITS
            if _transforms_path(folder, split).is_file()
        }
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): check its name and its rights"
        ) from error
    if len(splits) == 1:
        raise UserError(
            f"{folder} has neither transforms_test.json nor transforms_val.json: the result is "
            "judged on views that are not trained on, so move some frames of "
            "transforms_train.json into transforms_test.json"
        )
    if "test" not in splits:
        splits["test"] = splits["val"]
    bound = torch.tensor([extent] * 3)
    return Scene(name, splits, torch.cat([-bound, bound]), near, far, folder)


def _check_values(downscale: float, near: float, far: float, extent: float) -> None:
    # Written so that NaN is refused too.
    if not 1 <= downscale < math.inf:
        raise UserError(f"scene.downscale={downscale}: give 1 (no change) or more")
    if not 0 <= near < far < math.inf:
        raise UserError(f"scene.near={near} scene.far={far}: need 0 <= near < far")
    if not 0 < extent < math.inf:
        raise UserError(f"scene.extent={extent}: give a positive number of world units")


# Finding the folder


def _transforms_path(folder: Path, split: str) -> Path:
    return folder / f"transforms_{split}.json"


def _find_folder(name: str, root: str | None, data_root: str | None) -> Path:
    if root is not None:
        return _given_folder(Path(root).expanduser())
    if not data_root:
        raise UserError(
            f"scene {name!r} needs its images: give scene.root=FOLDER (the one with "
            "transforms_train.json), or set NERFTRAIN_DATA or data_root= to the folder that holds "
            f"it as {name} or nerf_synthetic/{name}"
        )
    base = Path(data_root).expanduser()
    if not base.is_dir():
        raise UserError(
            f"the data root {base} is not a folder: set NERFTRAIN_DATA or data_root= to the one "
            f"that holds {name} or nerf_synthetic/{name}, or give scene.root=FOLDER"
        )
    candidates = [base / group / name for group in GROUPS]
    if base.name == name:
        candidates.append(base)
    for candidate in candidates:
        if _transforms_path(candidate, "train").is_file():
            return candidate
    looked_for = ", ".join(str(path.relative_to(base)) for path in candidates[: len(GROUPS)])
    raise UserError(
        f"no scene {name!r} under {base}: looked for transforms_train.json in {looked_for}; "
        f"{_what_is_there(base)}"
    )


def _given_folder(root: Path) -> Path:
    if root.is_file():
        raise UserError(f"scene.root={root} is a file: give its folder, scene.root={root.parent}")
    if not root.is_dir():
        raise UserError(
            f"scene.root={root} does not exist: give the folder with transforms_train.json"
        )
    if not _transforms_path(root, "train").is_file():
        raise UserError(
            f"scene.root={root} is no NeRF-synthetic folder: looked for transforms_train.json; "
            f"{_what_is_there(root)}"
        )
    return root


def _what_is_there(folder: Path) -> str:
    """Say in half a sentence what folder holds and which value of scene.root would work."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError as error:
        return f"the folder cannot be listed ({error.strerror}): make it readable"
    found = ", ".join(entries[:5]) + (f" and {len(entries) - 5} more" if len(entries) > 5 else "")
    # Scenes inside the folder, else the scene that the folder is inside of.
    marks = [m for p in ("*", "*/*") for m in sorted(folder.glob(f"{p}/transforms_train.json"))]
    marks = marks or [m for m in [_transforms_path(folder.parent, "train")] if m.is_file()]
    would_work = " or ".join(f"scene.root={mark.parent}" for mark in marks[:3])
    return f"found {found or 'nothing'}; " + (
        f"{would_work} would work"
        if marks
        else "give scene.root=FOLDER with transforms_train.json, transforms_test.json and images"
    )


# Reading a split


def _read_split(folder: Path, split: str, downscale: float, skip_missing: bool) -> Split:
    path = _transforms_path(folder, split)
    angle, frames = _read_transforms(path)
    frames, images = _find_images(path, frames, skip_missing)
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:  # PIL decodes without holding Python's lock
        pictures = list(pool.map(read_header, images))
        check_alike(path, pictures)
        size = shrunk_size(pictures[0], downscale)
        pixels = read_pixels(pictures, size, pool)
    return Split(
        name=split,
        cameras=_cameras([frame.pose for frame in frames], angle, pictures[0], size),
        pixels=pixels,
        names=tuple(image.name for image in images),
    )


def _cameras(
    poses: list[Tensor], angle: float, original: Picture, size: tuple[int, int]
) -> Cameras:
    """Make cameras of size (width, height); angle is their horizontal field of view, radians."""
    width, height = size
    focal = 0.5 * original.width / math.tan(0.5 * angle)
    # Whole pixels: the two axes need not have shrunk by the same ratio.
    intrinsics = torch.tensor(
        [focal * width / original.width, focal * height / original.height, width / 2, height / 2]
    )
    return Cameras(
        poses=torch.stack(poses),
        intrinsics=intrinsics.repeat(len(poses), 1),
        widths=torch.full((len(poses),), width),
        heights=torch.full((len(poses),), height),
    )


# The transforms file


def _read_transforms(path: Path) -> tuple[float, list[_Frame]]:
    """Read the horizontal field of view, radians, and the frames of a transforms file."""
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with camera_angle_x and frames")
    angle = content.get("camera_angle_x")
    if not _is_number(angle) or not 0 < angle < math.pi:
        given = "is missing" if angle is None else f"is {_short(angle)}"
        raise UserError(
            f"{path}: camera_angle_x {given}; it is the horizontal field of view in radians, "
            "between 0 and 3.14 (NeRF-synthetic has 0.691)"
        )
    entries = content.get("frames")
    if not isinstance(entries, list):
        raise UserError(
            f"{path}: frames must be a list of objects with file_path and transform_matrix"
        )
    if not entries:
        raise UserError(f"{path}: the list of frames is empty; a split needs at least one")
    if path.name == "transforms_train.json" and any(
        isinstance(entry, dict) and "time" in entry for entry in entries
    ):
        _log.warning("%s: frames carry a time, but this scene is trained as if still", path)
    return float(angle), [_read_frame(path, i, entry) for i, entry in enumerate(entries)]


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


def _read_frame(path: Path, index: int, entry: object) -> _Frame:
    file_path = entry.get("file_path") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(file_path, str) or not file_path:
        raise UserError(
            f"{path}: frame {index} has no file_path; give each frame the path of its image, "
            'like "./train/r_0"'
        )
    where = f"{path}: frame {index} ({_short(file_path)})"
    return _Frame(file_path, _read_pose(where, entry.get("transform_matrix")))


def _read_pose(where: str, matrix: object) -> Tensor:
    """Check a camera-to-world matrix and return its upper rows [3, 4]."""
    rows = matrix if isinstance(matrix, list) else []
    if len(rows) != 4 or any(not isinstance(row, list) or len(row) != 4 for row in rows):
        raise UserError(f"{where}: transform_matrix must be 4 rows of 4 numbers (camera to world)")
    if not all(_is_number(value) for row in rows for value in row):
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
    return torch.from_numpy(pose[:3]).float()


def _is_number(value: object) -> TypeGuard[float]:
    # JSON has no NaN, but Python reads and writes it; True is an int.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e30


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# Images


def _find_images(
    path: Path, frames: list[_Frame], skip_missing: bool
) -> tuple[list[_Frame], list[Path]]:
    """Pair the frames of a transforms file with their images, leaving out those without one."""
    folders: dict[Path, dict[str, str]] = {}
    images = [_find_image(path.parent, frame.file_path, folders) for frame in frames]
    missing = [_short(f.file_path) for f, image in zip(frames, images, strict=True) if not image]
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


def _find_image(root: Path, file_path: str, folders: dict[Path, dict[str, str]]) -> Path | None:
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
