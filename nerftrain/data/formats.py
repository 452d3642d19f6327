"""Folders with a transforms file for each split, read frame by frame, fault by fault.

A loader stops at the first fault. Here its own reading functions are called for one frame after the
other, so that what each of them refuses is listed, and the rest is still there to be looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.scenes.frames import (
    Frame,
    find_image,
    is_number,
    read_angle,
    read_entries,
    read_frame,
)
from nerftrain.scenes.images import Picture, check_alike, read_header
from nerftrain.scenes.split_folders import SPLITS, check_judged, make_cameras, transforms_path
from nerftrain.scenes.times import with_times
from nerftrain.types import Cameras

SKIP = "scene.skip_missing=true"  # the remedy for images that are missing

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class View:
    """A frame as far as it could be read."""

    split: str
    name: str
    pose: Tensor  # [3, 4] float64, in the dataset's coordinates
    picture: Picture | None
    camera: Cameras | None  # it alone, at the image's full size
    time: float | None = None


@dataclass
class Faults:
    """The lines of all faults, each once, in the order in which they were met."""

    pool: ThreadPoolExecutor
    lines: dict[str, None] = field(default_factory=dict)

    def add(self, line: str) -> None:
        """Note a fault."""
        self.lines[" ".join(line.split())] = None

    def attempt(self, function: Callable[..., A], *arguments: Any) -> A | None:
        """Call a function; what it refuses is noted and gives None."""
        result, fault = _attempted(function, *arguments)
        if fault is not None:
            self.add(fault)
        return result

    def attempt_all(
        self, function: Callable[[A], B], items: Sequence[A | None], done: Callable[[], Any]
    ) -> list[B | None]:
        """Call a function for all items in threads; None stays None, and what fails becomes it."""
        results = []
        calls = (
            self.pool.submit(_attempted, function, item) if item is not None else None
            for item in items
        )
        for call in list(calls):
            result, fault = call.result() if call is not None else (None, None)
            if fault is not None:
                self.add(fault)
            results.append(result)
            done()
        return results


def _attempted(function: Callable[..., A], *arguments: Any) -> tuple[A | None, str | None]:
    try:
        return function(*arguments), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{error.filename} cannot be read ({error.strerror}): check its rights"


@dataclass(frozen=True)
class Offer:
    """What lies beside a scene's images, which training takes only when it is told."""

    key: str  # of the scene
    value: str
    words: str

    @property
    def override(self) -> str:
        """What tells training."""
        return f"scene.{self.key}={self.value}"


@dataclass(frozen=True)
class Format:
    """A kind of scene folder."""

    kind: str  # as in scene=KIND
    words: str
    mark: str  # what it is told by, for messages
    is_marked: Callable[[Path], bool]
    # (folder, faults, each so many images is a test view) -> its frames
    gather: Callable[[Path, Faults, int], list[View]]
    is_capture: bool  # photographs, whose coordinates are free
    # folder -> by how much its images have been shrunk already, in its several sets of them
    factors: Callable[[Path], list[float]] = lambda _: [1.0]
    # (folder, its frames) -> what there is beside the images
    offers: Callable[[Path, Sequence[View]], list[Offer]] = lambda *_: []


# A transforms file for each split


def _has_splits(folder: Path) -> bool:
    return transforms_path(folder, "train").is_file()


def _moves(folder: Path) -> bool:
    try:
        _, entries = read_entries(transforms_path(folder, "train"), "")
    except (UserError, OSError):
        return False
    return any(isinstance(entry, dict) and "time" in entry for entry in entries)


def _gather_splits(folder: Path, faults: Faults, moves: bool) -> list[View]:
    paths = {split: transforms_path(folder, split) for split in SPLITS}
    paths = {split: path for split, path in paths.items() if path.is_file()}
    faults.attempt(check_judged, folder, list(paths))
    return [
        view for split, path in paths.items() for view in _gather_split(path, split, faults, moves)
    ]


def _gather_split(path: Path, split: str, faults: Faults, moves: bool) -> list[View]:
    read = faults.attempt(read_entries, path, "camera_angle_x")
    if read is None:
        return []
    content, entries = read
    angle = faults.attempt(read_angle, path, content)
    frames = read_frames(path, entries, faults, moves)
    pictures = read_pictures(path, frames, faults)
    compare(check_alike, path, pictures, faults)

    def camera(frame: Frame, picture: Picture) -> Cameras | None:
        size = picture.width, picture.height
        return make_cameras([frame], angle, picture, size) if angle is not None else None

    return make_views([split] * len(frames), frames, pictures, faults, camera)


def read_frames(path: Path, entries: Iterable[Any], faults: Faults, moves: bool) -> list[Frame]:
    """Read the entries of a transforms file that can be read, with their times."""
    read = (faults.attempt(read_frame, path, i, entry) for i, entry in enumerate(entries))
    frames = [frame for frame in read if frame is not None]
    if not moves:
        return frames
    timed = [frame for frame in frames if _has_time(frame)]
    for frame in frames:
        if not _has_time(frame):
            faults.attempt(with_times, path, [frame])
    if timed:
        faults.attempt(with_times, path, timed)
    return [replace(f, time=float(f.entry["time"])) if _has_time(f) else f for f in frames]


def _has_time(frame: Frame) -> bool:
    return is_number(frame.entry.get("time"))


def read_pictures(path: Path, frames: Sequence[Frame], faults: Faults) -> list[Picture | None]:
    """Find the images of frames and read their headers."""
    folders: dict[Path, dict[str, str]] = {}
    images = [find_image(path.parent, frame.file_path, folders) for frame in frames]
    for frame, image in zip(frames, images, strict=True):
        if image is None:
            faults.add(f"{frame.where} has no image: restore it, or go on with {SKIP}")
    return faults.attempt_all(read_header, images, lambda: None)


def compare(
    check: Callable[[Path, list[Picture]], None],
    path: Path,
    pictures: Sequence[Picture | None],
    faults: Faults,
) -> None:
    """Check each image against one of the most common kind."""
    there = [picture for picture in pictures if picture is not None]
    kinds = Counter((p.width, p.height, p.mode) for p in there)
    if len(kinds) > 1:
        (common, _), *_ = kinds.most_common(1)
        usual = next(p for p in there if (p.width, p.height, p.mode) == common)
        for picture in there:
            faults.attempt(check, path, [usual, picture])


def make_views(
    splits: Sequence[str],
    frames: Sequence[Frame],
    pictures: Sequence[Picture | None],
    faults: Faults,
    make_camera: Callable[[Frame, Picture], Cameras | None],
) -> list[View]:
    """Bring together what was read of each frame, with its camera where its image is there."""
    views = []
    for split, frame, picture in zip(splits, frames, pictures, strict=True):
        camera = faults.attempt(make_camera, frame, picture) if picture is not None else None
        views.append(View(split, frame.file_path, frame.pose, picture, camera, frame.time))
    return views


SPLIT_FOLDERS = (
    Format(
        kind="dnerf",
        words="D-NeRF: a transforms_*.json for each split, with times",
        mark="transforms_train.json",
        is_marked=lambda folder: _has_splits(folder) and _moves(folder),
        gather=lambda folder, faults, _: _gather_splits(folder, faults, moves=True),
        is_capture=False,
    ),
    Format(
        kind="blender",
        words="Blender (NeRF-synthetic): a transforms_*.json for each split",
        mark="transforms_train.json",
        is_marked=lambda folder: _has_splits(folder) and not _moves(folder),
        gather=lambda folder, faults, _: _gather_splits(folder, faults, moves=False),
        is_capture=False,
    ),
)
