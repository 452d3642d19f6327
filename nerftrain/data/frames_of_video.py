"""Photographs out of a film: evenly spaced frames, of those near each other the sharpest."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from nerftrain.data.transfer import remove_if_empty
from nerftrain.errors import UserError
from nerftrain.video import why_no_ffmpeg

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".3gp")
_CANDIDATES = 5  # frames that are looked at for each that is taken
_RECORD = ".video.json"  # beside the frames: what they were taken from
_QUALITY = 97  # of JPEG, without subsampling: far beyond what is left in a film
# What imageio-ffmpeg raises where ffmpeg fails, or writes a header that it cannot read.
_FFMPEG_ERRORS = (RuntimeError, OSError, ValueError, IndexError, AssertionError)


def is_taken(video: Path, folder: Path, count: int) -> bool:
    """Tell whether a folder holds the frames that would be taken now.

    Raises:
        UserError: it holds anything else.
    """
    if not folder.exists():
        return False
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if record != _record(video, count):
        raise UserError(
            f"{folder} is there already, and is not {count} frames of {video}: remove it, or give "
            "another folder by --out"
        )
    return True


def take_frames(video: Path, folder: Path, count: int) -> int:
    """Write frames of a film as a folder of JPEGs, which appears once all of them are there.

    Args:
        video: of any kind that ffmpeg reads; frames are turned as its rotation flag says.
        folder: must not be there yet.
        count: how many frames.

    Returns:
        How many were written: fewer where the film is shorter, or breaks off.

    Raises:
        UserError: ffmpeg is missing or cannot read the film.
        OSError: the frames cannot be written.
    """
    if missing := why_no_ffmpeg():
        raise UserError(f"{video}: {missing}, which reads films: pip install imageio-ffmpeg")
    partial = folder.with_name(f".part-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    written = 0
    try:
        for number, frame in enumerate(_sharpest(video, count), start=1):
            name = f"frame_{number:05d}.jpg"
            Image.fromarray(frame).save(partial / name, quality=_QUALITY, subsampling=0)
            written = number
        if not written:
            raise UserError(f"{video} holds no frame that ffmpeg can decode: give another film")
        (partial / _RECORD).write_text(json.dumps(_record(video, count)), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_if_empty(folder.parent)
    return written


def _record(video: Path, count: int) -> dict[str, Any]:
    return {"video": video.name, "bytes": video.stat().st_size, "frames": count}


def _sharpest(video: Path, count: int) -> Iterator[np.ndarray]:
    """Give the sharpest frame [H, W, 3] uint8 of each of as many stretches of equal length."""
    num_frames, seconds = _length(video)
    expected = min(num_frames, count * _CANDIDATES)
    best, best_sharpness, best_stretch = None, -1.0, 0
    frames = _decode(video, expected / seconds)
    bar = {"desc": "frames", "unit": "", "disable": None, "leave": False}
    with contextlib.closing(frames):
        for index, frame in enumerate(tqdm(frames, total=expected, **bar)):
            stretch = min(index * count // max(expected, count), count - 1)
            found = sharpness(frame)
            if best is not None and stretch != best_stretch:
                yield best
                best_sharpness = -1.0
            if found > best_sharpness:
                best, best_sharpness = frame, found
            best_stretch = stretch
    if best is not None:
        yield best


def sharpness(frame: np.ndarray) -> float:
    """Measure how sharp an image [H, W, 3] uint8 is: the variance of its Laplacian.

    (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.)
    """
    # Green has most of the brightness, and in a film's 4:2:0 most of the detail.
    green = frame[:, :, 1].astype(np.int16)
    middle = green[1:-1, 1:-1]
    across, along = green[1:-1, :-2] + green[1:-1, 2:], green[:-2, 1:-1] + green[2:, 1:-1]
    return float((across + along - 4 * middle).var(dtype=np.float64))


def _length(video: Path) -> tuple[int, float]:
    """Count a film's frames and seconds."""
    import imageio_ffmpeg

    try:
        num_frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(video))
    except _FFMPEG_ERRORS as error:
        raise _unreadable(video, error) from error
    if not num_frames or not seconds:
        raise UserError(f"{video} holds no moving picture: give a film, or a folder of photographs")
    return num_frames, seconds


def _decode(video: Path, rate: float) -> Generator[np.ndarray, None, None]:
    """Give frames [H, W, 3] uint8 at a rate, 1/s, whatever the film's own."""
    import imageio_ffmpeg

    # It warns of every film that has to be turned.
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    try:
        frames: Any = imageio_ffmpeg.read_frames(
            str(video), output_params=["-vf", f"fps={rate:.6f}"]
        )
        with contextlib.closing(frames) as stream:
            width, height = next(stream)["size"]  # after turning
            for data in stream:
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    except _FFMPEG_ERRORS as error:
        raise _unreadable(video, error) from error


def _unreadable(video: Path, error: BaseException) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines or [type(error).__name__])[-1][-200:]
    return UserError(
        f"{video} is no film that ffmpeg can read ({reason}): give another, or a folder of "
        "photographs"
    )
