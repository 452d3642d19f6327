"""Captures by COLMAP, read image by image, fault by fault."""

from __future__ import annotations

from pathlib import Path

import torch

from nerftrain.formats import (
    SKIP,
    Faults,
    Format,
    View,
    compare,
)
from nerftrain.lens import check_invertible
from nerftrain.scenes import colmap
from nerftrain.scenes.colmap_model import model_suffix, read_model
from nerftrain.scenes.images import read_header
from nerftrain.scenes.photos import check_alpha
from nerftrain.scenes.world import check_apart, holdout


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
    pictures = faults.attempt_all(read_header, files, lambda: None)
    compare(check_alpha, place, pictures, faults)
    train, test = faults.attempt(holdout, [v.name for v in read], test_every) or ([], [])
    splits = dict.fromkeys(train, "train") | dict.fromkeys(test, "test")
    unmoved = torch.eye(4, dtype=torch.float64)
    views = []
    for index, (view, picture) in enumerate(zip(read, pictures, strict=True)):
        camera = None
        if picture is not None:
            faults.attempt(colmap.check_shape, view, picture, model)
            photo = colmap.Photo(view, picture, (picture.width, picture.height))
            camera = colmap.make_cameras([photo], unmoved)
            faults.attempt(check_invertible, camera, str(model / f"cameras{model_suffix(model)}"))
        views.append(View(splits.get(index, ""), view.name, view.pose, picture, camera))
    return views


def _factors(folder: Path) -> list[float]:
    """Find the sets of images that there are: 1 for images, 2 for images_2 and so on."""
    ends = [path.name.removeprefix("images_") for path in folder.glob("images_*/")]
    factors = sorted(float(end) for end in ends if end.isdigit() and int(end) > 0)
    return [1.0, *factors] if (folder / "images").is_dir() or not factors else factors


CAPTURES = (
    Format(
        kind="colmap",
        words="COLMAP: a sparse model and photographs",
        mark="a COLMAP model in sparse/0 or sparse",
        is_marked=lambda folder: bool(colmap.find_models(folder)),
        gather=_gather_colmap,
        is_capture=True,
        factors=_factors,
    ),
)
