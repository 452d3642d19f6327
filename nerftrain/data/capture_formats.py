"""Captures, by COLMAP or in one transforms.json, read frame by frame, fault by fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from nerftrain.data.formats import (
    SKIP,
    Faults,
    Format,
    Offer,
    View,
    compare,
    make_views,
    read_frames,
    read_pictures,
)
from nerftrain.lens import check_invertible, one_kind
from nerftrain.scenes import colmap, transforms
from nerftrain.scenes.calibration import read_circle
from nerftrain.scenes.colmap_model import model_suffix, read_model
from nerftrain.scenes.depths import KEYS, find_map, read_map
from nerftrain.scenes.frames import Frame, read_entries
from nerftrain.scenes.images import Picture, read_header
from nerftrain.scenes.masks import check_mask
from nerftrain.scenes.photos import check_alpha
from nerftrain.scenes.placement import Placement, applied, find_place
from nerftrain.scenes.split_folders import SPLITS
from nerftrain.scenes.world import check_apart, holdout
from nerftrain.types import Cameras

_MASKS = "masks"  # the folder that COLMAP's users and nerfstudio's keep them in

# What a file says of its place is checked however it is asked for.
_PLACEMENT = Placement("auto", center=True, up=True, scale=True, near=0.0, far=math.inf)

# One transforms file


def _gather_transforms(folder: Path, faults: Faults, test_every: int) -> list[View]:
    path = folder / transforms.FILE
    read = faults.attempt(read_entries, path, "fl_x or camera_angle_x")
    if read is None:
        return []
    content, entries = read
    moves = any(isinstance(entry, dict) and "time" in entry for entry in entries)
    frames = read_frames(path, entries, faults, moves)
    pictures = read_pictures(path, frames, faults)
    compare(check_alpha, path, pictures, faults)
    for frame, picture in zip(frames, pictures, strict=True):
        mask = faults.attempt(transforms.find_mask, folder, frame)
        if mask is not None and picture is not None:
            faults.attempt(check_mask, mask, picture)
        depths = faults.attempt(find_map, folder, frame)
        if depths is not None and picture is not None:
            faults.attempt(read_map, depths, picture)
    if frames:
        poses = torch.stack([frame.pose for frame in frames])
        faults.attempt(find_place, path, content, poses, _PLACEMENT)
    faults.attempt(applied, path, content)
    names = [frame.file_path for frame in frames]
    members = (
        faults.attempt(transforms.split_members, path, content, names, frames, test_every) or {}
    )
    splits = {i: split for split in reversed(SPLITS) for i in members.get(split, ())}
    unmoved = torch.eye(4, dtype=torch.float64)

    def camera(frame: Frame, picture: Picture) -> Cameras:
        size = picture.width, picture.height
        made = transforms.make_cameras(path, content, [frame], [picture], [size], unmoved)
        check_invertible(made, str(path))
        return made

    faults.attempt(read_circle, path, content, [p for p in pictures if p is not None])
    labels = [splits.get(i, "") for i in range(len(frames))]
    views = make_views(labels, frames, pictures, faults, camera)
    _check_kinds(views, str(path), faults)
    return views


def _depths(folder: Path, _views: Sequence[View]) -> list[Offer]:
    _, entries = read_entries(folder / transforms.FILE, "")
    found = sum(
        isinstance(entry, dict) and any(entry.get(key) for key in KEYS) for entry in entries
    )
    return [Offer("depths", "maps", f"of {found} images")] if found else []


# COLMAP


def _gather_colmap(folder: Path, faults: Faults, test_every: int) -> list[View]:
    model = colmap.find_models(folder)[0]
    read = faults.attempt(read_model, model)
    if read is None:
        return []
    faults.attempt(check_apart, torch.stack([view.pose for view in read]))
    found = faults.attempt(colmap.image_folder, folder, "images", _factors(folder)[0], read)
    place, _, files = found if found is not None else (folder, 1.0, [None] * len(read))
    for view, file in zip(read, files, strict=True):
        if file is None and found is not None:
            faults.add(
                f"{place / view.name} is missing, an image of {model}: restore it, or go on with "
                f"{SKIP}"
            )
    read_upright = partial(read_header, heed_exif=True)
    pictures = faults.attempt_all(read_upright, files, lambda: None)
    compare(check_alpha, place, pictures, faults)
    masks = colmap.find_masks(folder / _MASKS, [view.name for view in read])
    for mask, picture in zip(masks, pictures, strict=True):
        if mask is not None and picture is not None:
            faults.attempt(check_mask, mask, picture)
    train, test = faults.attempt(holdout, [v.name for v in read], test_every) or ([], [])
    splits = dict.fromkeys(train, "train") | dict.fromkeys(test, "test")
    unmoved = torch.eye(4, dtype=torch.float64)
    source = str(model / f"cameras{model_suffix(model)}")
    views = []
    for index, (view, picture) in enumerate(zip(read, pictures, strict=True)):
        camera, pose = None, view.pose
        if picture is not None:
            faults.attempt(colmap.check_shape, view, picture, model)
            photo = colmap.Photo(view, picture, (picture.width, picture.height))
            photo = colmap.turn_upright(photo)
            pose, camera = photo.view.pose, colmap.make_cameras([photo], unmoved, source)
            faults.attempt(check_invertible, camera, source)
        views.append(View(splits.get(index, ""), view.name, pose, picture, camera))
    _check_kinds(views, source, faults)
    return views


def _check_kinds(views: Sequence[View], source: str, faults: Faults) -> None:
    kinds = [view.camera.projection for view in views if view.camera is not None]
    if kinds:
        faults.attempt(one_kind, kinds, source)


def _factors(folder: Path) -> list[float]:
    """Find the sets of images that there are: 1 for images, 2 for images_2 and so on."""
    ends = [path.name.removeprefix("images_") for path in folder.glob("images_*/")]
    factors = sorted(float(end) for end in ends if end.isdigit() and int(end) > 0)
    return [1.0, *factors] if (folder / "images").is_dir() or not factors else factors


def _masks(folder: Path, views: Sequence[View]) -> list[Offer]:
    found = any(colmap.find_masks(folder / _MASKS, [view.name for view in views]))
    return [Offer("masks", _MASKS, f"in {_MASKS}")] if found else []


def _is_colmap(folder: Path) -> bool:
    models = colmap.find_models(folder)
    # What nerfstudio's tools made is told by its transforms.json first.
    is_nerfstudios = bool(models) and (folder / "colmap") in models[0].parents
    return bool(models) and not (is_nerfstudios and (folder / transforms.FILE).is_file())


CAPTURES = (
    Format(
        kind="colmap",
        words="COLMAP: a sparse model and photographs",
        mark="a COLMAP model in sparse/0 or sparse",
        is_marked=_is_colmap,
        gather=_gather_colmap,
        is_capture=True,
        factors=_factors,
        offers=_masks,
    ),
    Format(
        kind="transforms",
        words="transforms.json: one file and photographs",
        mark=transforms.FILE,
        is_marked=lambda folder: (folder / transforms.FILE).is_file(),
        gather=_gather_transforms,
        is_capture=True,
        offers=_depths,
    ),
)
