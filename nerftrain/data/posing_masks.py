"""Masks beside photographs without cameras: where COLMAP is to look for no features.

What moves with the camera, as a car's hood, the photographer's shadow or the rim of a fisheye's
image, else counts as a scene that stands still before a camera that does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nerftrain.data.colmap_process import Database
from nerftrain.data.posing_place import Photograph, Place
from nerftrain.errors import UserError
from nerftrain.paths import as_override
from nerftrain.scenes.colmap import find_masks
from nerftrain.scenes.images import read_gray
from nerftrain.scenes.masks import check_mask

_LOOKED_AT = 8  # images of a database, to see whether its features were found by these masks


def read_masks(folder: Path, place: Place, photographs: Sequence[Photograph]) -> dict[str, Path]:
    """Find the masks of photographs, by their names.

    Args:
        folder: where they lie, each named as its image (a.png or a.jpg.png for a.jpg).
        place: of the photographs.
        photographs: of which some may have none.

    Raises:
        UserError: there are none, or one is of another shape than its photograph.
    """
    if not folder.is_dir():
        raise UserError(f"--masks {folder} is no folder: give the one that holds the masks")
    if place.nested and place.images in (folder, *folder.parents):
        raise UserError(f"--masks {folder} is among the photographs of --nested: move it elsewhere")
    names = [photograph.name for photograph in photographs]
    found = find_masks(folder, names)
    masks = {name: mask for name, mask in zip(names, found, strict=True) if mask is not None}
    if not masks:
        raise UserError(
            f"--masks {folder} holds no mask of the photographs, such as {Path(names[0]).stem}.png "
            f"or {names[0]}.png: give the folder that does"
        )
    for photograph in photographs:
        if photograph.name in masks:
            check_mask(masks[photograph.name], photograph.picture)
    return masks


def how_to_train(folder: Path, place: Place) -> str:
    """Tell training's override for these masks."""
    beside = place.out / "masks"
    is_beside = beside.is_dir() and beside.samefile(folder)
    return f" {as_override('scene.masks', Path('masks') if is_beside else folder.absolute())}"


def write_masks(masks: Mapping[str, Path], photographs: Sequence[Photograph], folder: Path) -> None:
    """Write masks as COLMAP wants them: a.jpg.png, as large as a.jpg and turned as it is stored."""
    for photograph in photographs:
        if photograph.name in masks:
            path = folder / f"{photograph.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_as_stored(masks[photograph.name], photograph)).save(path)


def check_features(
    database: Database, masks: Mapping[str, Path], photographs: Sequence[Photograph]
) -> None:
    """Check that features of an earlier run do not lie where masks are black.

    Raises:
        UserError: they do.
    """
    there = database.images()
    known = [p for p in photographs if p.name in masks and p.name in there]
    for photograph in known[:: max(1, len(known) // _LOOKED_AT)]:
        places = database.keypoints(photograph.name).astype(int)
        mask = _as_stored(masks[photograph.name], photograph)
        x, y = places.clip(0, np.array(photograph.size) - 1).T
        if not mask[y, x].all():
            raise UserError(
                f"{database.path} holds features of {photograph.name} where its mask is black, of "
                "a command without these masks: remove it to begin anew"
            )


def _as_stored(mask: Path, photograph: Photograph) -> np.ndarray:
    """Read a mask as [H, W] uint8 of its photograph's size, 0 where no features are wanted."""
    turns = check_mask(mask, photograph.picture) - photograph.picture.turns
    white = Image.fromarray(np.where(read_gray(mask) > 0, 255, 0).astype(np.uint8))
    turned = white.rotate(-90 * turns, expand=True)  # PIL turns counter-clockwise
    return np.asarray(turned.resize(photograph.size, Image.Resampling.NEAREST))
