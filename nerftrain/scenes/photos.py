"""Photographs of a capture: found by name, of any sizes, shrunk ones kept in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nerftrain.errors import UserError
from nerftrain.paths import cache_dir
from nerftrain.scenes.images import HEIF_SUFFIXES, Picture, decode, make_room, shrink

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", *HEIF_SUFFIXES)
PROGRESS_AFTER = 2.0  # seconds of reading
_CACHE_VERSION = "area 1"  # of what shrinking makes; a change leaves old entries unread

_log = logging.getLogger(__name__)
_warning = threading.Lock()


def photo_names(folder: Path) -> list[str]:
    """List the photographs that lie in a folder itself, by name.

    HEIF whose stem another has, too, is left out: the other was made of it.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    # Hidden ones, such as the ._ twins that macOS leaves on other disks, are no photographs.
    names = [n for n in names if n[0] != "." and _suffix(n) in IMAGE_SUFFIXES]
    plain = {os.path.splitext(n)[0] for n in names if _suffix(n) not in HEIF_SUFFIXES}
    return [
        n for n in names if _suffix(n) not in HEIF_SUFFIXES or os.path.splitext(n)[0] not in plain
    ]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def photo_folder(folder: Path) -> Path | None:
    """Find where a capture's photographs are: in its folder itself, else in its ``images``."""
    return next((place for place in (folder, folder / "images") if photo_names(place)), None)


class Listing:
    """The images below a folder, found by name whatever the case or kind of their suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> Path | None:
        """Find an image by its path relative to the folder: itself, else one of its stem."""
        wanted = self.root / name.replace("\\", "/")
        names = self._names(wanted.parent)
        found = names.get(wanted.name) or names.get(wanted.stem)
        return wanted.parent / found if found is not None else None

    def _names(self, folder: Path) -> dict[str, str]:
        """Map names, and stems without suffix, to the names of the image files in a folder."""
        if folder not in self._folders:
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
            images = [n for n in names if _suffix(n) in IMAGE_SUFFIXES]
            plain = [n for n in images if _suffix(n) not in HEIF_SUFFIXES]
            by_stem = {os.path.splitext(n)[0]: n for n in reversed((*plain, *images))}
            self._folders[folder] = by_stem | {name: name for name in images}
        return self._folders[folder]


def names_apart(photos: Sequence[Path]) -> list[str]:
    """Name photographs by their files, and by folders too where files of several are called alike.

    A rig's left/0001.jpg and right/0001.jpg would else be one in reports and in cameras.json.
    """
    apart = set(photos)
    if len({photo.name for photo in apart}) == len(apart):
        return [photo.name for photo in photos]
    whole = [photo.absolute() for photo in photos]  # a file may name some so, others from itself
    if len({photo.anchor for photo in whole}) > 1:  # on several drives of Windows
        return [photo.as_posix() for photo in whole]
    top = os.path.commonpath([photo.parent for photo in whole])
    return [photo.relative_to(top).as_posix() for photo in whole]


def check_alpha(path: Path, pictures: Sequence[Picture]) -> None:
    """Check that of the images that path names all have alpha, or none.

    Raises:
        UserError: some have.
    """
    modes = {picture.mode: picture.path.name for picture in pictures}
    if len(modes) > 1:
        raise UserError(
            f"{path} names images with alpha ({modes['RGBA']}) and without ({modes['RGB']}); "
            "give all of them an alpha channel, or none"
        )


def read_photos(
    pictures: Sequence[Picture], sizes: Sequence[tuple[int, int]], pool: ThreadPoolExecutor
) -> Tensor:
    """Decode images into pixels [P, 3 or 4] uint8, back to back, each at its size (width, height).

    What had to be shrunk is kept in the user's cache and found there the next time.

    Args:
        pictures: all with alpha or all without.
        sizes: of each, at most its own.
        pool: where decoding runs.

    Raises:
        UserError: a file is truncated, or there is no room for all.
    """
    areas = torch.tensor([width * height for width, height in sizes])
    ends = areas.cumsum(0).tolist()
    channels = len(pictures[0].mode)
    pixels = make_room(ends[-1], channels)

    def read(index: int) -> None:
        image = _read(pictures[index], *sizes[index]).reshape(-1, channels)
        pixels[ends[index] - len(image) : ends[index]] = image

    done = pool.map(read, range(len(pictures)))
    bar = {"desc": "reading images", "unit": "", "delay": PROGRESS_AFTER, "leave": False}
    for _ in tqdm(done, total=len(pictures), disable=None, **bar):
        pass
    return pixels


def _read(picture: Picture, width: int, height: int) -> Tensor:
    """Read an image as [H, W, 3 or 4] uint8 of the given size, from the cache if it is there."""
    if picture.shown == (width, height):
        return decode(picture)
    entry = _cache_entry(picture, width, height)
    image = _load(entry)
    if image is not None and image.shape == (height, width, len(picture.mode)):
        return image
    image = shrink(decode(picture), width, height)
    _store(image, entry)
    return image


def _cache_entry(picture: Picture, width: int, height: int) -> Path:
    """Name the file for one image at one size; a changed source has another name."""
    source = picture.path.resolve()
    state = source.stat()
    key = (_CACHE_VERSION, str(source), state.st_mtime_ns, state.st_size, width, height)
    how = (picture.mode, picture.turns) if picture.turns else (picture.mode,)
    digest = hashlib.sha256(repr((*key, *how)).encode("utf-8", "surrogateescape"))
    return cache_dir() / "images" / f"{digest.hexdigest()[:32]}.npz"


def _load(entry: Path) -> Tensor | None:
    """Read a cache entry; None where there is none, or a damaged one that has to be made again."""
    try:
        with np.load(entry) as arrays:
            image = arrays["image"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return torch.from_numpy(image) if image.dtype == np.uint8 else None


def _store(image: Tensor, entry: Path) -> None:
    """Write a cache entry whole or not at all: other jobs may read and write it meanwhile."""
    partial = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".part", delete=False) as file:
            partial = Path(file.name)
            # npz has a check sum that tells a damaged entry; PNG would take most of all the time.
            np.savez(file, image=image.numpy())
        partial.replace(entry)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        with _warning:  # or threads that fail at once would each say so
            _warn_uncached(entry.parent, error.strerror or str(error))


@cache
def _warn_uncached(folder: Path, reason: str) -> None:
    _log.warning(
        "shrunk images cannot be kept in %s (%s), so they are made each time: make room there, or "
        "set NERFTRAIN_CACHE to another folder",
        folder,
        reason,
    )
