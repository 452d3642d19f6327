"""Folders with a transforms_*.json for each split: synthetic scenes, still or moving."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from nerftrain.errors import UserError
from nerftrain.paths import check_reach
from nerftrain.scenes import Scene, Split
from nerftrain.scenes.frames import Frame, find_images, read_angle, read_transforms
from nerftrain.scenes.images import Picture, check_alike, read_header, read_pixels, shrunk_size
from nerftrain.scenes.world import thinned
from nerftrain.types import Cameras

SPLITS = ("train", "test", "val")
LEAST_EXTENT, MOST_EXTENT = 1e-9, 1e9  # float32 holds their squares and what divides by them

# (transforms file, its frames) -> the frames as the scene takes them
CheckFrames = Callable[[Path, list[Frame]], list[Frame]]


@dataclass(frozen=True)
class Layout:
    """What sets a kind of these folders apart: its name, and where a data root holds its scenes."""

    kind: str
    groups: tuple[str, ...]  # folders of scenes under a data root, "" for the root itself
    advised: tuple[str, ...]  # those of them that messages name
    could_be: Callable[[Path], bool]  # a transforms file, at a first glance, one of this kind
    check_frames: CheckFrames

    def advise(self, name: str) -> str:
        """Say where under a data root the scene of that name could lie."""
        return " or ".join(Path(group, name).as_posix() for group in self.advised)


@dataclass(frozen=True)
class Bounds:
    """Where rays run and what box holds the scene."""

    near: float  # distance, world units
    far: float
    extent: float  # the box is +-extent on every axis


def load_splits(
    name: str,
    folder_name: str,
    layout: Layout,
    root: str | None,
    data_root: str | None,
    downscale: float,
    skip_missing: bool,
    bounds: Bounds,
    train_views: int | None,
) -> Scene:
    """Read all splits of a folder; val stands in for a missing test split.

    Args:
        name: of the scene.
        folder_name: of its folder where root is None.
        layout: the kind of folder.
        root: the folder with transforms_train.json.
        data_root: where a folder of that name is looked for if root is None.
        downscale: images are shrunk by this factor, at least 1, averaged over area.
        skip_missing: go on, with a warning, without frames whose image is missing.
        bounds: of the scene.
        train_views: so many of the training views are taken, evenly spaced; None: all.

    Raises:
        UserError: something in the folder or in these values cannot be used.
    """
    _check_values(downscale, bounds)
    try:
        folder = _find_folder(folder_name, layout, root, data_root)
        splits = {
            split: _read_split(
                *(folder, split, layout, downscale, skip_missing),
                views=train_views if split == "train" else None,
            )
            for split in SPLITS
            if transforms_path(folder, split).is_file()
        }
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): check its name and its rights"
        ) from error
    check_judged(folder, splits)
    if "test" not in splits:
        splits["test"] = splits["val"]
    bound = torch.tensor([bounds.extent] * 3)
    return Scene(name, splits, torch.cat([-bound, bound]), bounds.near, bounds.far, folder)


def check_judged(folder: Path, splits: Collection[str]) -> None:
    """Check that there are views to judge by.

    Raises:
        UserError: of the splits there is only train.
    """
    if len(splits) == 1:
        raise UserError(
            f"{folder} has neither transforms_test.json nor transforms_val.json: the result is "
            "judged on views that are not trained on, so move some frames of "
            "transforms_train.json into transforms_test.json"
        )


def _check_values(downscale: float, bounds: Bounds) -> None:
    # Written so that NaN is refused too.
    if not 1 <= downscale < math.inf:
        raise UserError(f"scene.downscale={downscale}: give 1 (no change) or more")
    if not 0 <= bounds.near < bounds.far < math.inf:
        raise UserError(f"scene.near={bounds.near} scene.far={bounds.far}: need 0 <= near < far")
    if not LEAST_EXTENT <= bounds.extent <= MOST_EXTENT:
        raise UserError(
            f"scene.extent={bounds.extent}: give a number of world units, more than 0: at least "
            f"{LEAST_EXTENT:g}, at most {MOST_EXTENT:g}"
        )


# Finding the folder


def transforms_path(folder: Path, split: str) -> Path:
    """Name the transforms file of a split."""
    return folder / f"transforms_{split}.json"


def _find_folder(name: str, layout: Layout, root: str | None, data_root: str | None) -> Path:
    if root is not None:
        return _given_folder(Path(root).expanduser(), layout)
    if not data_root:
        raise UserError(
            f"scene {name!r} needs its images: give scene.root=FOLDER (the one with "
            "transforms_train.json), or set NERFTRAIN_DATA or data_root= to the folder that holds "
            f"it as {layout.advise(name)}; nerftrain data get fetches the published ones"
        )
    base = Path(data_root).expanduser()
    if not base.is_dir():
        raise UserError(
            f"the data root {base} is not a folder: set NERFTRAIN_DATA or data_root= to the one "
            f"that holds {layout.advise(name)}, or give scene.root=FOLDER"
        )
    candidates = [base / group / name for group in layout.groups]
    if base.name == name:
        candidates.append(base)
    for candidate in candidates:
        if transforms_path(candidate, "train").is_file():
            return candidate
    looked_for = ", ".join(str(path.relative_to(base)) for path in candidates[: len(layout.groups)])
    raise UserError(
        f"no scene {name!r} under {base}: looked for transforms_train.json in {looked_for}; "
        f"{_what_is_there(base, layout)}"
    )


def _given_folder(root: Path, layout: Layout) -> Path:
    check_reach(root)
    if root.is_file():
        raise UserError(f"scene.root={root} is a file: give its folder, scene.root={root.parent}")
    if not root.is_dir():
        raise UserError(
            f"scene.root={root} does not exist: give the folder with transforms_train.json"
        )
    if not transforms_path(root, "train").is_file():
        raise UserError(
            f"scene.root={root} is no {layout.kind} folder: looked for transforms_train.json; "
            f"{_what_is_there(root, layout)}"
        )
    return root


def _what_is_there(folder: Path, layout: Layout) -> str:
    """Say in half a sentence what folder holds and which value of scene.root would work."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError as error:
        return f"the folder cannot be listed ({error.strerror}): make it readable"
    found = ", ".join(entries[:5]) + (f" and {len(entries) - 5} more" if len(entries) > 5 else "")
    # Scenes inside the folder, else the scene that the folder is inside of.
    marks = [m for p in ("*", "*/*") for m in sorted(folder.glob(f"{p}/transforms_train.json"))]
    marks = marks or [m for m in [transforms_path(folder.parent, "train")] if m.is_file()]
    marks = [mark for mark in marks if layout.could_be(mark)]
    would_work = " or ".join(f"scene.root={mark.parent}" for mark in marks[:3])
    return f"found {found or 'nothing'}; " + (
        f"{would_work} would work"
        if marks
        else "give scene.root=FOLDER with transforms_train.json, transforms_test.json and images"
    )


# Reading a split


def _read_split(
    folder: Path,
    split: str,
    layout: Layout,
    downscale: float,
    skip_missing: bool,
    views: int | None,
) -> Split:
    path = transforms_path(folder, split)
    content, frames = read_transforms(path, "camera_angle_x")
    angle = read_angle(path, content)
    frames = layout.check_frames(path, frames)
    frames, images = find_images(path, frames, skip_missing)
    frames, images = thinned(frames, views), thinned(images, views)
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:  # PIL decodes without holding Python's lock
        pictures = list(pool.map(read_header, images))
        check_alike(path, pictures)
        size = shrunk_size(pictures[0], downscale)
        pixels = read_pixels(pictures, size, pool)
    return Split(
        name=split,
        cameras=make_cameras(frames, angle, pictures[0], size),
        pixels=pixels,
        names=tuple(image.name for image in images),
    )


def make_cameras(
    frames: list[Frame], angle: float, original: Picture, size: tuple[int, int]
) -> Cameras:
    """Make cameras of size (width, height); angle is their horizontal field of view, radians."""
    width, height = size
    focal = 0.5 * original.width / math.tan(0.5 * angle)
    # Whole pixels: the two axes need not have shrunk by the same ratio.
    intrinsics = torch.tensor(
        [focal * width / original.width, focal * height / original.height, width / 2, height / 2]
    )
    times = [frame.time for frame in frames if frame.time is not None]
    return Cameras(
        poses=torch.stack([frame.pose for frame in frames]).float(),
        intrinsics=intrinsics.repeat(len(frames), 1),
        widths=torch.full((len(frames),), width),
        heights=torch.full((len(frames),), height),
        times=torch.tensor(times) if len(times) == len(frames) else None,
    )
