"""Folders of photographs with the cameras that COLMAP found: a sparse model beside the images."""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from nerftrain.errors import UserError
from nerftrain.lens import Lens, check_invertible, together
from nerftrain.paths import check_reach
from nerftrain.scenes import Scene, Split
from nerftrain.scenes.colmap_model import View, model_suffix, num_images, read_model
from nerftrain.scenes.colmap_points import LEAST_TRACK, Found, read_points
from nerftrain.scenes.depths import depths_at
from nerftrain.scenes.images import Picture, read_header, shrunk_size
from nerftrain.scenes.masks import read_valid, that_lenses_show
from nerftrain.scenes.photos import Listing, check_alpha, names_apart, photo_folder, read_photos
from nerftrain.scenes.world import holdout, move, normalization, scale_of, thinned
from nerftrain.types import Cameras, Contraction

# Folders of scenes that a data root may hold.
GROUPS = ("", "mip360", "360_v2", "mipnerf360", "mip_nerf_360", "nerf_360", "360", "colmap")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photo:
    """A registered image, its file, and the size at which it is trained on."""

    view: View
    picture: Picture
    size: tuple[int, int]  # width, height
    mask: Path | None = None


def load_scene(
    name: str,
    root: str | None,
    data_root: str | None,
    images: str,
    downscale: float,
    skip_missing: bool,
    test_every: int,
    center: bool,
    up: bool,
    scale: bool,
    near: float,
    far: float,
    contraction: Contraction,
    masks: str | None = None,
    depths: Literal["none", "auto", "points"] = "none",
    train_views: int | None = None,
) -> Scene:
    """Read a COLMAP model (sparse/0, sparse, or the folder itself) and its images.

    Args:
        name: of the scene, and of its folder where root is None.
        root: the folder with the model and the images.
        data_root: where a folder of that name is looked for if root is None.
        images: the folder of images in root; where there is none, they may lie in root itself.
        downscale: images are shrunk by this factor, at least 1; IMAGES_2 and the like are taken
            where they are there, else the images are averaged over area.
        skip_missing: go on, with a warning, without registered images whose file is missing.
        test_every: of the images sorted by name, the first and every n-th after are for the test.
        center: move the point that the cameras look at to the origin.
        up: turn the cameras' up to +z.
        scale: bring the farthest camera to distance 1 from the origin.
        near: distance at which rays start, scene units.
        far: distance at which rays end.
        contraction: of the space around the box, which is +-1 on every axis.
        masks: the folder in root of masks, each named as its image (a.png or a.jpg.png for a.jpg);
            what is black there is neither trained on nor judged by. None: all pixels count.
        depths: points: what the model's points tell of the depths of pixels is trained on, too;
            auto: so it is if the model has any.
        train_views: so many of the training images are taken, evenly spaced by name; None: all.

    Raises:
        UserError: something in the folder or in these values cannot be used.
    """
    # Written so that NaN is refused too.
    if not 1 <= downscale < math.inf:
        raise UserError(f"scene.downscale={downscale}: give 1 (no change) or more")
    if not 0 <= near < far < math.inf:
        raise UserError(f"scene.near={near} scene.far={far}: need 0 <= near < far")
    try:
        folder = _find_folder(name, root, data_root)
        model = find_models(folder)[0]
        views = read_model(model)
        with ThreadPoolExecutor(
            min(8, os.cpu_count() or 1)
        ) as pool:  # PIL lets go of Python's lock
            photos = _photos(folder, images, downscale, views, model, skip_missing, pool)
            # Missing ones count too: where the others lie must not depend on them.
            upright = {photo.view.name: photo.view.pose for photo in photos}
            poses = torch.stack([upright.get(view.name, view.pose) for view in views])
            world = normalization(poses, center, up, scale)
            photos = _with_masks(photos, folder, masks)
            train, test = holdout([photo.view.name for photo in photos], test_every)
            train = thinned(train, train_views)
            names = names_apart([photo.picture.path for photo in photos])
            splits = {
                key: _split(
                    key, [photos[i] for i in rows], [names[i] for i in rows], world, model, pool
                )
                for key, rows in (("train", train), ("test", test))
            }
            if depths != "none":
                its = [photos[i] for i in train]
                splits["train"] = _with_depths(
                    splits["train"], its, world, model, needed=depths == "points"
                )
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): check its name and its rights"
        ) from error
    box = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    return Scene(name, splits, box, near, far, folder, contraction, world)


# Finding the folder and the model


def find_models(folder: Path) -> list[Path]:
    """Find the models in a folder, of those in one place the one with most images first.

    nerfstudio's tools leave them in ``colmap/sparse``, beside the images.
    """
    sparse, beside = folder / "sparse", folder / "colmap" / "sparse"
    for places in (_inside(sparse), [sparse], [folder], _inside(beside), [beside]):
        models = [place for place in places if model_suffix(place)]
        if len(models) > 1:
            models.sort(key=num_images, reverse=True)
            _log.warning(
                "%s holds %d models: taking the largest, %s",
                models[0].parent,
                len(models),
                models[0].name,
            )
        if models:
            return models
    return []


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _find_folder(name: str, root: str | None, data_root: str | None) -> Path:
    if root is not None:
        return _given_folder(Path(root).expanduser())
    if not data_root:
        raise UserError(
            f"scene {name!r} needs its images: give scene.root=FOLDER (the one with sparse/0 and "
            "images), or set NERFTRAIN_DATA or data_root= to the folder that holds it as "
            f"{name} or mip360/{name}; nerftrain data get fetches the published ones"
        )
    base = Path(data_root).expanduser()
    if not base.is_dir():
        raise UserError(
            f"the data root {base} is not a folder: set NERFTRAIN_DATA or data_root= to the one "
            f"that holds {name} or mip360/{name}, or give scene.root=FOLDER"
        )
    candidates = [base / group / name for group in GROUPS]
    if base.name == name:
        candidates.append(base)
    for candidate in candidates:
        if find_models(candidate):
            return candidate
    looked_for = ", ".join(str(path.relative_to(base)) for path in candidates[: len(GROUPS)])
    raise UserError(
        f"no scene {name!r} under {base}: looked for a COLMAP model in sparse/0 or sparse of "
        f"{looked_for}; found {_entries(base)}; give scene.root=FOLDER"
    )


def _given_folder(root: Path) -> Path:
    check_reach(root)
    if root.is_file():
        raise UserError(f"scene.root={root} is a file: give its folder, scene.root={root.parent}")
    if not root.is_dir():
        raise UserError(
            f"scene.root={root} does not exist: give the folder with sparse/0 and images"
        )
    if find_models(root):
        return root
    inside = sorted(path for path in root.iterdir() if path.is_dir() and find_models(path))
    others = [("transforms.json", "transforms"), ("transforms_train.json", "blender")]
    would_work = [f"scene.root={path}" for path in inside[:3]]
    would_work += [f"scene={kind}" for file, kind in others if (root / file).is_file()]
    raise UserError(
        f"scene.root={root} has no COLMAP model: looked for cameras and images, .bin or .txt, in "
        f"sparse/0, sparse and the folder itself; found {_entries(root)}; "
        + (f"{' or '.join(would_work)} would work" if would_work else _how_to_pose(root))
    )


def _how_to_pose(root: Path) -> str:
    if photo_folder(root) is not None:
        return (
            f"find the cameras of its photographs by nerftrain data pose {shlex.quote(str(root))}"
        )
    return "give the folder with sparse/0, which nerftrain data pose makes from photographs"


def _entries(folder: Path) -> str:
    names = sorted(os.listdir(folder))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "nothing"


# Pairing registered images with files


def _photos(
    folder: Path,
    images: str,
    downscale: float,
    views: list[View],
    model: Path,
    skip_missing: bool,
    pool: ThreadPoolExecutor,
) -> list[Photo]:
    """Pair the model's images with their files, in the order of the views."""
    place, factor, files = image_folder(folder, images, downscale, views)
    missing = [view.name for view, file in zip(views, files, strict=True) if file is None]
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problem = f"{len(missing)} of the {len(views)} images of {model} are not in {place}"
        if len(missing) == len(views):
            raise UserError(
                f"{problem} ({first}); found {_entries(place)}; give the folder of the images that "
                "COLMAP was run on, scene.images=NAME"
            )
        if not skip_missing:
            raise UserError(
                f"{problem} ({first}); restore them, or go on with scene.skip_missing=true"
            )
        _log.warning("%s (%s); going on without them", problem, first)
    pairs = [(view, file) for view, file in zip(views, files, strict=True) if file is not None]
    files = [file for _, file in pairs]
    pictures = list(pool.map(partial(read_header, heed_exif=True), files))
    check_alpha(place, pictures)
    photos = []
    for (view, _), picture in zip(pairs, pictures, strict=True):
        check_shape(view, picture, model)
        photos.append(turn_upright(Photo(view, picture, shrunk_size(picture, factor))))
    return photos


def turn_upright(photo: Photo) -> Photo:
    """Turn the camera and the size of a photograph that is stored as it is, as decoding turns it.

    By a quarter clockwise what was up points right, what pointed right points down; in normalised
    image coordinates x', y' = -y, x. In OpenCV's model that makes of p1, p2 the new p2, -p1.

    Raises:
        UserError: it is a panorama, whose horizon would be upright.
    """
    view, size = photo.view, photo.size
    if photo.picture.turns and view.lens.projection == "equirectangular":
        raise UserError(
            f"{photo.picture.path} is a panorama that its EXIF turns: write it upright, and run "
            "COLMAP on that"
        )
    for _ in range(photo.picture.turns):
        fx, fy, cx, cy = view.lens.intrinsics
        k1, k2, p1, p2, *higher = view.lens.distortion
        lens = Lens(
            width=view.lens.height,
            height=view.lens.width,
            intrinsics=(fy, fx, view.lens.height - cy, cx),
            distortion=(k1, k2, p2, -p1, *higher),
            projection=view.lens.projection,
        )
        right, up, backward, position = view.pose.unbind(1)
        view = replace(view, pose=torch.stack([up, -right, backward, position], 1), lens=lens)
        size = size[::-1]
    return replace(photo, view=view, size=size)


def image_folder(
    folder: Path, images: str, downscale: float, views: list[View]
) -> tuple[Path, float, list[Path | None]]:
    """Choose the folder of images: what is left to shrink them by, and the file of each view.

    Raises:
        UserError: there is none.
    """
    full, shrunk = folder / images, folder / f"{images}_{downscale:g}"
    if downscale > 1 and shrunk.is_dir():
        files = _files(shrunk, views)
        if any(files) or not full.is_dir():
            return shrunk, 1.0, files
        _log.warning(
            "%s holds none of the images of the model: shrinking those of %s", shrunk, full
        )
    if not full.is_dir() and any(beside := _files(folder, views)):
        return folder, downscale, beside
    if not full.is_dir():
        others = sorted(path.name for path in folder.glob(f"{images}_*") if path.is_dir())
        factors = [name.removeprefix(f"{images}_") for name in others]
        would_work = " or ".join(f"scene.downscale={factor}" for factor in factors)
        raise UserError(
            f"{full} is missing, the images of the model: found {_entries(folder)}; "
            + (
                f"{would_work} would work"
                if others
                else "put them there, or give scene.images=NAME"
            )
        )
    return full, downscale, _files(full, views)


def _files(folder: Path, views: list[View]) -> list[Path | None]:
    listing = Listing(folder)
    return [listing.find(view.name) for view in views]


def _with_masks(photos: list[Photo], folder: Path, masks: str | None) -> list[Photo]:
    if masks is None:
        return photos
    names = [photo.view.name for photo in photos]
    found = find_masks(folder / masks, names)
    if not any(found):
        raise UserError(
            f"scene.masks={masks}: {folder / masks} holds no mask of the images, such as "
            f"{Path(names[0]).stem}.png or {names[0]}.png: give the folder that does"
        )
    without = [name for name, mask in zip(names, found, strict=True) if mask is None]
    if without:
        _log.warning(
            "%d of %d images have no mask, such as %s: all of their pixels count",
            len(without),
            len(names),
            without[0],
        )
    return [replace(photo, mask=mask) for photo, mask in zip(photos, found, strict=True)]


def find_masks(folder: Path, names: Sequence[str]) -> list[Path | None]:
    """Find the masks in a folder of images of these names: a.png or a.jpg.png for a.jpg."""
    listing = Listing(folder)
    return [listing.find(f"{name}.png") or listing.find(name) for name in names]


def check_shape(view: View, picture: Picture, model: Path) -> None:
    """Check that a file, of any scale, has the proportions of its camera.

    Raises:
        UserError: it has not.
    """
    lens = view.lens
    off = abs(picture.width * lens.height - picture.height * lens.width)
    if off > lens.width + lens.height:  # more than rounding each side to whole pixels
        raise UserError(
            f"{picture.path} is {picture.width}x{picture.height}, but its camera in {model} is "
            f"{lens.width}x{lens.height}: give the images that COLMAP was run on, not turned or "
            "cropped"
        )


# Depths


def _with_depths(
    split: Split, photos: Sequence[Photo], world: torch.Tensor, model: Path, needed: bool
) -> Split:
    try:
        found = read_points(model)
    except UserError as error:
        if needed:
            raise
        _log.warning("%s; going on without depths", error)
        return split
    none, scale = (torch.zeros(0, 2), torch.zeros(0, 3)), scale_of(world)
    places = [
        _pixels_and_distances(photo, found.get(photo.view.name, none), scale) for photo in photos
    ]
    depths = depths_at(places, split.cameras)
    if len(depths.values):
        return replace(split, depths=depths)
    if needed:
        raise UserError(
            f"scene.depths=points: no image to train on shows a point of {model} that "
            f"{LEAST_TRACK} images show: leave it out"
        )
    return split


def _pixels_and_distances(
    photo: Photo, found: Found, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find where the points [n, 2] that a photo shows are in it as it is trained on, and how far.

    Distances [n] are enlarged by a scale.
    """
    xy, places = found
    lens, turns = photo.view.lens, photo.picture.turns
    width, height = (lens.width, lens.height)[:: -1 if turns % 2 else 1]  # before it was turned
    for _ in range(turns):
        xy = torch.stack([height - xy[:, 1], xy[:, 0]], 1)
        width, height = height, width
    ratio = torch.tensor(photo.size, dtype=xy.dtype) / torch.tensor([width, height])
    return xy * ratio, (places - photo.view.pose[:, 3]).norm(dim=1) * scale


# Making a split


def _split(
    key: str,
    photos: Sequence[Photo],
    names: Sequence[str],
    world: torch.Tensor,
    model: Path,
    pool: ThreadPoolExecutor,
) -> Split:
    source = str(model / f"cameras{model_suffix(model)}")
    cameras = make_cameras(photos, world, source)
    check_invertible(cameras, source)
    pictures, sizes = [p.picture for p in photos], [p.size for p in photos]
    pixels = read_photos(pictures, sizes, pool)
    valid = read_valid([photo.mask for photo in photos], pictures, sizes, pool)
    valid = that_lenses_show(cameras, valid, source if key == "train" else None)
    return Split(key, cameras, pixels, tuple(names), valid)


def make_cameras(photos: Sequence[Photo], world: torch.Tensor, source: str) -> Cameras:
    """Make the cameras of photos, in the coordinates that world [4, 4] leads to.

    Raises:
        UserError: the source, a file, has lenses of several kinds.
    """
    sizes = torch.tensor([photo.size for photo in photos])
    originals = torch.tensor([(p.view.lens.width, p.view.lens.height) for p in photos])
    # Whole pixels: the two axes need not have shrunk by the same ratio.
    ratios = (sizes.double() / originals).repeat(1, 2)  # [C, 4] x y x y, as fx fy cx cy
    intrinsics = torch.tensor([p.view.lens.intrinsics for p in photos], dtype=torch.float64)
    distortion, projection = together([photo.view.lens for photo in photos], source)
    poses = torch.stack([photo.view.pose for photo in photos])
    return Cameras(
        poses=move(poses, world).float(),
        intrinsics=(intrinsics * ratios).float(),
        widths=sizes[:, 0].contiguous(),
        heights=sizes[:, 1].contiguous(),
        distortion=distortion,
        projection=projection,
    )
