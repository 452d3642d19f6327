"""Finding the cameras of photographs, or of a film, by COLMAP: a folder that trains at once.

Features and matches are kept in COLMAP's database, so that a command that was stopped goes on. The
model appears as a whole, once it has been found to be one that training takes.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nerftrain.data.colmap_process import Database, run_step
from nerftrain.data.colmap_steps import OVERLAP, PLACED, STARTED
from nerftrain.data.frames_of_video import is_taken, take_frames
from nerftrain.data.posed import DATABASE, Posed
from nerftrain.data.posing_masks import check_features, how_to_train, read_masks, write_masks
from nerftrain.data.posing_place import (
    Photograph,
    Place,
    check_free,
    check_same,
    find_place,
    link_photographs,
    read_photographs,
    what_is_unread,
)
from nerftrain.errors import RunError, UserError
from nerftrain.lens import check_invertible
from nerftrain.scenes.colmap import Photo, check_shape, make_cameras
from nerftrain.scenes.colmap_model import import_pycolmap, read_model
from nerftrain.scenes.images import HEIF_SUFFIXES, open_image
from nerftrain.scenes.world import normalization

NUM_FRAMES = 150  # of a film
PANORAMA = "EQUIRECTANGULAR"
LOG, _WORK = "colmap.log", ".part-sparse"
_ALL_PAIRS_UP_TO = 200  # photographs, 20 thousand pairs
_LEAST = 3  # photographs that a model must have
_CONVERTED = (".webp", *HEIF_SUFFIXES)  # what COLMAP cannot read
_CONVERTED_AT_ONCE = 16  # copies of photographs
# Kinds of lens that are described by fewer numbers.
_SIMPLER = {
    "OPENCV": "SIMPLE_RADIAL",
    "RADIAL": "SIMPLE_RADIAL",
    "OPENCV_FISHEYE": "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE": "SIMPLE_RADIAL_FISHEYE",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Capture:
    """What COLMAP works on, and where."""

    place: Place
    photographs: list[Photograph]
    camera: str
    masks: dict[str, Path]  # by the names of photographs

    @property
    def database(self) -> Database:
        return Database(self.place.out / DATABASE)

    @property
    def work(self) -> Path:
        return self.place.out / _WORK

    def run(self, step: str, watch: Callable[[str], None], **job: Any) -> Any:
        job = {"step": step, "database": str(self.database.path), **job}
        return run_step(job, self.place.out / LOG, watch)


def pose(
    source: Path,
    out: Path | None,
    frames: int | None,
    pairs: str,
    camera: str,
    say: Say,
    nested: bool = False,
    masks: Path | None = None,
) -> Posed:
    """Find the cameras of photographs, and write them as a COLMAP model beside them.

    Args:
        source: a folder of photographs, or a film.
        out: the scene's folder; None: where the photographs are, or beside the film.
        frames: how many are taken of a film; None: `NUM_FRAMES`, or for photographs.
        pairs: of images that are matched: all, neighbours (by name) or auto.
        camera: COLMAP's name of the kind of lens.
        say: takes a line for the user.
        nested: take photographs in folders of the source, too; each folder has cameras of its own.
        masks: a folder of masks; what is black there is not looked at.

    Raises:
        UserError: there is nothing to pose, or no cameras are found.
        RunError: COLMAP itself fails.
    """
    start = time.monotonic()
    if camera not in import_pycolmap().CameraModelId.__members__:
        raise UserError(f"--camera {camera} is not known to this pycolmap: pip install -U pycolmap")
    place = find_place(source, out, nested)
    if frames is not None and place.video is None:
        raise UserError("--frames has no effect on a folder of photographs: leave it out")
    check_free(place)
    try:
        if place.video is not None:
            _take_frames(place, place.video, NUM_FRAMES if frames is None else frames, say)
        photographs = read_photographs(place)
        by_name = {} if masks is None else read_masks(masks, place, photographs)
        capture = _Capture(place, photographs, camera, by_name)
        if unread := what_is_unread(place.images):
            say(f"leaving out {unread}")
        if camera != PANORAMA and all(p.size[0] == 2 * p.size[1] for p in photographs):
            say(f"all are twice as wide as high: if they are panoramas, take --camera {PANORAMA}")
        place.out.mkdir(parents=True, exist_ok=True)
        with _working(capture):
            every = _is_every(pairs, capture)
            advice = _advice(every, place.video is not None)
            models = _find_cameras(capture, every, advice, say)
            keys = link_photographs(place)
            keys += "" if masks is None else how_to_train(masks, place)
            (place.out / "sparse").mkdir(exist_ok=True)
            (capture.work / "model").rename(place.out / "sparse" / "0")
    except OSError as error:
        where = error.filename or place.out
        raise UserError(
            f"{where} cannot be read or written ({error.strerror or error}): check its rights, or "
            "give another folder by --out"
        ) from error
    names = [photograph.name for photograph in capture.photographs]
    return Posed(place, names, models, advice, keys, time.monotonic() - start)


def _take_frames(place: Place, video: Path, count: int, say: Say) -> None:
    if is_taken(video, place.images, count):
        say(f"taking the frames that are in {place.images}")
        return
    say(f"taking {count} frames of {video.name}, the sharpest of those near each other")
    written = take_frames(video, place.images, count)
    if written < count:
        say(f"the film has no more than {written}")


@contextlib.contextmanager
def _working(capture: _Capture) -> Iterator[None]:
    """Make a folder for what is only needed meanwhile; what COLMAP said is kept if it fails."""
    log = capture.place.out / LOG
    shutil.rmtree(capture.work, ignore_errors=True)
    capture.work.mkdir()
    try:
        yield
    except RunError:
        raise
    except BaseException:
        log.unlink(missing_ok=True)
        raise
    else:
        log.unlink(missing_ok=True)
    finally:
        shutil.rmtree(capture.work, ignore_errors=True)


def _is_every(pairs: str, capture: _Capture) -> bool:
    few = len(capture.photographs) <= _ALL_PAIRS_UP_TO
    return pairs == "all" or (pairs == "auto" and few and capture.place.video is None)


def _advice(every: bool, is_film: bool) -> str:
    return (
        "take more, so that each shows two thirds of the one before, move along rather than turn "
        "on the spot, keep them sharp, and avoid bare walls, glass and things that move"
        + ("" if every else "; or try --pairs all")
        + ("; of a film, take more by --frames" if is_film else "")
    )


def _find_cameras(capture: _Capture, every: bool, advice: str, say: Say) -> list[dict[str, Any]]:
    """Write the largest model into the working folder; describe all of them."""
    count = len(capture.photographs)
    say(f"looking for features in {count} photographs (1/3)")
    _extract(capture)
    num_pairs = _num_pairs(count, every)
    say(f"matching {num_pairs} pairs, {'all' if every else 'those of neighbours'} (2/3)")
    _match(capture, every, num_pairs)
    say("placing cameras (3/3)")
    models = _map(capture)
    if not models or len(models[0]["names"]) < _LEAST:
        placed = len(models[0]["names"]) if models else 0
        raise UserError(
            f"COLMAP has found the cameras of {placed or 'none'} of the {count} photographs in "
            f"{capture.place.images}: {advice}"
        )
    _check_trainable(capture)
    return models


# COLMAP's steps


def _bar(what: str, unit: str, total: int, done: int) -> tqdm:
    options = {"disable": None, "leave": False, "dynamic_ncols": True}
    return tqdm(desc=what, unit=f" {unit}", total=total, initial=min(done, total), **options)


def _show(bar: tqdm, done: int) -> None:
    bar.n = min(done, bar.total)
    bar.refresh()


def _extract(capture: _Capture) -> None:
    known = capture.database.images()
    try:
        check_same([(name, e.size) for name, e in known.items()], capture.photographs)
    except UserError as error:
        raise UserError(f"{capture.database.path} {error}") from error
    check_features(capture.database, capture.masks, capture.photographs)
    done = sum(entry.has_features for entry in known.values())
    with _bar("features", "photographs", len(capture.photographs), done) as bar:
        for batches in _batches(capture):
            capture.run(
                "extract",
                lambda _: _show(bar, capture.database.count("keypoints")),
                batches=batches,
                camera_model=capture.camera,
            )


def _batches(capture: _Capture) -> Iterator[list[dict[str, Any]]]:
    """Give what COLMAP is handed at a time: batches of images that share a camera.

    Where a camera is in the database, its number goes with them. COLMAP's wheels for Python read no
    WebP since 4.0, and no HEIF. Such photographs are handed over as PNG copies under the same name,
    with their EXIF: it tells the focal length.
    """
    known = capture.database.images()
    wanted = [
        photograph
        for photograph in capture.photographs
        if not (photograph.name in known and known[photograph.name].has_features)
    ]
    others = [p for p in wanted if p.picture.path.suffix.lower() in _CONVERTED]
    plain = [photograph for photograph in wanted if photograph not in others]
    # Even of none: the cameras may have to change their model.
    yield _by_camera(capture, plain, capture.place.images)
    copies = capture.work / "copies"
    for first in range(0, len(others), _CONVERTED_AT_ONCE):
        some = others[first : first + _CONVERTED_AT_ONCE]
        copies.mkdir()
        for photograph in some:
            (copies / photograph.name).parent.mkdir(parents=True, exist_ok=True)
            with open_image(photograph.picture.path) as image:
                options = {"exif": image.getexif(), "compress_level": 1}
                image.convert("RGB").save(copies / photograph.name, "PNG", **options)
        yield _by_camera(capture, some, copies)
        shutil.rmtree(copies)


def _by_camera(
    capture: _Capture, photographs: Sequence[Photograph], folder: Path
) -> list[dict[str, Any]]:
    known = capture.database.images()
    masks = capture.work / "masks" if capture.masks else None
    if masks is not None:
        write_masks(capture.masks, photographs, masks)
    cameras = {p.lens: known[p.name].camera for p in capture.photographs if p.name in known}
    groups: dict[tuple[str, ...], list[str]] = {}
    for photograph in photographs:
        groups.setdefault(photograph.lens, []).append(photograph.name)
    return [
        {
            "folder": str(folder),
            "masks": masks and str(masks),
            "names": names,
            "camera_id": cameras.get(lens),
        }
        for lens, names in groups.items()
    ]


def _num_pairs(count: int, every: bool) -> int:
    if every:
        return count * (count - 1) // 2
    offsets = {*range(1, OVERLAP + 1), *(2**power for power in range(OVERLAP))}
    return sum(max(0, count - offset) for offset in offsets)


def _match(capture: _Capture, every: bool, num_pairs: int) -> None:
    table = "two_view_geometries"
    with _bar("matching", "pairs", num_pairs, capture.database.count(table)) as bar:
        capture.run(
            "match",
            lambda _: _show(bar, capture.database.count(table)),
            pairs="all" if every else "neighbours",
        )


def _map(capture: _Capture) -> list[dict[str, Any]]:
    with _bar("placing", "cameras", len(capture.photographs), 0) as bar:

        def watch(word: str) -> None:
            if word in (STARTED, PLACED):
                _show(bar, 2 if word == STARTED else bar.n + 1)

        return capture.run(
            "map",
            watch,
            folder=str(capture.place.images),
            names=[photograph.name for photograph in capture.photographs],
            work=str(capture.work),
            model=str(capture.work / "model"),
        )


# What was found


def _check_trainable(capture: _Capture) -> None:
    """Check the model as training will.

    Raises:
        UserError: training would refuse it.
    """
    model = capture.work / "model"
    views = read_model(model)
    pictures = {photograph.name: photograph.picture for photograph in capture.photographs}
    photos = []
    for view in views:
        check_shape(view, pictures[view.name], model)
        photos.append(Photo(view, pictures[view.name], (view.lens.width, view.lens.height)))
    normalization(torch.stack([view.pose for view in views]), center=True, up=True, scale=True)
    source = f"the {capture.camera} lens that COLMAP has found"
    cameras = make_cameras(photos, torch.eye(4, dtype=torch.float64), source)
    try:
        check_invertible(cameras, source)
    except UserError as error:
        simpler = _SIMPLER.get(capture.camera, "SIMPLE_PINHOLE")
        raise UserError(f"{error}; or try --camera {simpler}, features are kept") from error
