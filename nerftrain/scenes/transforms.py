"""Folders with one transforms.json and photographs: instant-ngp's layout, and nerfstudio's."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.lens import check_invertible, together
from nerftrain.paths import check_reach
from nerftrain.scenes import Scene, Split
from nerftrain.scenes.calibration import read_circle, read_lens
from nerftrain.scenes.depths import KEYS, find_map, read_depths, read_unit
from nerftrain.scenes.frames import Frame, find_images, read_transforms, short
from nerftrain.scenes.images import Picture, read_header, shrunk_size
from nerftrain.scenes.masks import read_valid, that_lenses_show, within_circle
from nerftrain.scenes.photos import Listing, check_alpha, names_apart, read_photos
from nerftrain.scenes.placement import Placement, applied, find_place
from nerftrain.scenes.times import have_times, warn_of_unseen_times, with_times
from nerftrain.scenes.world import holdout, move, scale_of, thinned
from nerftrain.types import Cameras

FILE = "transforms.json"
SPLITS = ("train", "test", "val")

_log = logging.getLogger(__name__)


def load_scene(
    name: str,
    root: str | None,
    downscale: float,
    skip_missing: bool,
    test_every: int,
    contraction: Literal["auto", "none", "l2", "linf"],
    center: bool,
    up: bool,
    scale: bool,
    near: float,
    far: float,
    depths: Literal["none", "maps"] = "none",
    train_views: int | None = None,
) -> Scene:
    """Read a folder with one transforms.json, a capture by instant-ngp's or nerfstudio's tools.

    Where frames have a mask_path, what is black there is neither trained on nor judged by; nor is
    what lies outside of fisheye_crop_radius, pixels around the middle, where the file gives it.

    The test views are those of test_filenames where the file lists them (or of val_filenames),
    else every test_every-th by name. Where all frames carry a time the scene moves.

    aabb_scale tells what there is to see. 1: all of it lies in instant-ngp's unit box, so the scene
    is bounded, and that box becomes +-1 (the axes stay; center, up and scale have no say). More
    than 1, or none: what the cameras look at is brought into +-1 by center, up and scale, and the
    surroundings, however far, are folded around it; how much more than 1 makes no difference.

    Scene.world starts from the coordinates before nerfstudio's applied_transform and applied_scale.

    Args:
        name: of the scene.
        root: the folder with transforms.json.
        downscale: images are shrunk by this factor, at least 1; IMAGES_2 and the like are taken
            where they hold every image, else the images are averaged over area.
        skip_missing: go on, with a warning, without frames whose image is missing.
        test_every: each so many images, by name, is a test view.
        contraction: none, l2 or linf; auto: none where aabb_scale is 1, else l2.
        center: move the point that the cameras look at to the origin.
        up: turn the cameras' up to +z.
        scale: bring the cameras to distances up to 1 from the origin.
        near: distance at which rays start, the scene's units.
        far: distance at which rays end; in a bounded scene no farther than the box reaches.
        depths: maps: the depth maps that frames name are trained on, too.
        train_views: so many of the training images are taken, evenly spaced; None: all.

    Raises:
        UserError: something in the folder or in these values cannot be used.
    """
    _check_values(downscale, near, far)
    placement = Placement(contraction, center, up, scale, near, far)
    path = _find_file(root)
    try:
        scene = _load(
            *(name, path, downscale, skip_missing, test_every, train_views, placement),
            with_depths=depths == "maps",
        )
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): check its name and its rights"
        ) from error
    if scene.is_dynamic:
        warn_of_unseen_times(scene)
    return scene


def _check_values(downscale: float, near: float, far: float) -> None:
    # Written so that NaN is refused too.
    if not 1 <= downscale < float("inf"):
        raise UserError(f"scene.downscale={downscale}: give 1 (no change) or more")
    if not 0 <= near < far < float("inf"):
        raise UserError(f"scene.near={near} scene.far={far}: need 0 <= near < far")


def _find_file(root: str | None) -> Path:
    if root is None:
        raise UserError(f"scene=transforms needs scene.root=FOLDER, the one with {FILE}")
    folder = Path(root).expanduser()
    check_reach(folder)
    if folder.is_file():
        raise UserError(f"scene.root={root} is a file: give its folder, scene.root={folder.parent}")
    if (folder / FILE).is_file():
        return folder / FILE
    if not folder.is_dir():
        raise UserError(f"scene.root={root} does not exist: give the folder with {FILE}")
    phone = f"nerftrain data phone {shlex.quote(str(folder))} takes the cameras of "
    others = {
        "transforms_train.json": "give it as scene=blender (or dnerf where it moves)",
        "sparse": "give it as scene=colmap",
        "keyframes": f"{phone}Polycam",
        "metadata.json": f"{phone}Record3D",
    }
    for mark, remedy in others.items():
        if (folder / mark).exists():
            raise UserError(f"{folder} has no {FILE} but {mark}: {remedy}")
    found = ", ".join(str(file.parent) for file in sorted(folder.glob(f"*/{FILE}"))[:3])
    raise UserError(
        f"{folder} has no {FILE}: "
        + (f"give scene.root={found}" if found else f"give the folder with {FILE} and its images")
    )


def _load(
    name: str,
    path: Path,
    downscale: float,
    skip_missing: bool,
    test_every: int,
    train_views: int | None,
    placement: Placement,
    with_depths: bool,
) -> Scene:
    content, frames = read_transforms(path, "fl_x or camera_angle_x")
    if have_times(frames):
        frames = with_times(path, frames)
    everywhere = [frame.file_path for frame in frames]
    frames, images = find_images(path, frames, skip_missing)
    members = split_members(path, content, everywhere, frames, test_every)
    members["train"] = thinned(members["train"], train_views)
    place = find_place(path, content, torch.stack([frame.pose for frame in frames]), placement)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        originals = list(pool.map(read_header, images))
        copies = list(pool.map(read_header, _smaller_copies(images, downscale)))
        pictures = copies or originals
        check_alpha(path, pictures)
        _check_proportions(originals, pictures)
        further = 1.0 if copies else downscale
        sizes = [shrunk_size(picture, further) for picture in pictures]
        cameras = make_cameras(path, content, frames, originals, sizes, place.world)
        check_invertible(cameras, str(path))
        masks = [find_mask(path.parent, frame) for frame in frames]
        circles = read_circle(path, content, originals)
        names = names_apart([picture.path for picture in pictures])
        splits = {
            split: _read_split(
                str(path), split, cameras, pictures, sizes, masks, circles, names, indices, pool
            )
            for split, indices in members.items()
        }
        if with_depths:
            unit = read_unit(path, content) * scale_of(place.world)
            its = [(frames[i], originals[i]) for i in members["train"]]
            splits["train"] = _with_depths(splits["train"], path, its, unit, pool)
    if "val" in splits and members["val"] == members["test"]:
        splits["val"] = splits["test"]
    return Scene(
        name=name,
        splits=splits,
        aabb=torch.tensor([-1.0] * 3 + [1.0] * 3),
        near=placement.near,
        far=place.far,
        root=path.parent,
        contraction=place.contraction,
        world=place.world @ applied(path, content),
    )


def _read_split(
    source: str,
    name: str,
    cameras: Cameras,
    pictures: Sequence[Picture],
    sizes: Sequence[tuple[int, int]],
    masks: Sequence[Path | None],
    circles: Sequence[float] | None,
    names: Sequence[str],
    indices: Sequence[int],
    pool: ThreadPoolExecutor,
) -> Split:
    chosen = torch.tensor(indices)
    its, its_sizes = [pictures[i] for i in indices], [sizes[i] for i in indices]
    members = cameras[chosen]
    valid = read_valid([masks[i] for i in indices], its, its_sizes, pool)
    if circles is not None:
        radii = [circles[i] * sizes[i][0] for i in indices]
        circle = within_circle(radii, its_sizes)
        valid = circle if valid is None else valid & circle
    return Split(
        name=name,
        cameras=members,
        pixels=read_photos(its, its_sizes, pool),
        names=tuple(names[i] for i in indices),
        valid=that_lenses_show(members, valid, source if name == "train" else None),
    )


def _with_depths(
    split: Split,
    path: Path,
    its: Sequence[tuple[Frame, Picture]],
    unit: float,
    pool: ThreadPoolExecutor,
) -> Split:
    """Read the depth maps of a split's frames and images, of which one unit is so long."""
    maps = [find_map(path.parent, frame) for frame, _ in its]
    if not any(maps):
        raise UserError(
            f"scene.depths=maps: no frame of {path} that is trained on names one, by "
            f"{' or '.join(KEYS)}: leave it out"
        )
    depths = read_depths(maps, [picture for _, picture in its], split.cameras, unit, pool)
    if not depths.values.any():
        raise UserError(
            f"scene.depths=maps: the depth maps of {path} hold nothing above 0: leave it out"
        )
    return replace(split, depths=depths)


def find_mask(root: Path, frame: Frame) -> Path | None:
    """Find the mask that a frame names; None where it names none.

    Raises:
        UserError: it is not there.
    """
    named = frame.entry.get("mask_path")
    if named is None:
        return None
    if not isinstance(named, str) or not (found := root / named.replace("\\", "/")).is_file():
        raise UserError(
            f"{frame.where}: its mask {short(named)} is missing: restore it, or take mask_path out"
        )
    return found


def make_cameras(
    path: Path,
    content: Mapping[str, Any],
    frames: Sequence[Frame],
    originals: Sequence[Picture],
    sizes: Sequence[tuple[int, int]],
    world: Tensor,
) -> Cameras:
    """Make the cameras of all frames, in the scene's coordinates.

    Args:
        path: of the file.
        content: of the file.
        frames: its frames.
        originals: their images as the file knows them.
        sizes: width and height of the images that are trained on.
        world: from the file's coordinates to the scene's.

    Raises:
        UserError: a lens is missing or absurd, or they are of several kinds.
    """
    shared = {key: value for key, value in content.items() if key != "frames"}
    _warn_of_shared_angle(shared, frames, originals)
    lenses = [
        read_lens(frame.where, shared, frame.entry, picture)
        for frame, picture in zip(frames, originals, strict=True)
    ]
    original = torch.tensor([[p.width, p.height] for p in originals])
    shrunk = torch.tensor(sizes)
    # Whole pixels: the two axes need not have shrunk by the same ratio.
    ratios = (shrunk.double() / original).repeat(1, 2)  # [C, 4] x y x y, as fx fy cx cy
    intrinsics = torch.tensor([lens.intrinsics for lens in lenses], dtype=torch.float64) * ratios
    distortion, projection = together(lenses, str(path))
    times = [frame.time for frame in frames if frame.time is not None]
    return Cameras(
        poses=move(torch.stack([frame.pose for frame in frames]), world).float(),
        intrinsics=intrinsics.float(),
        widths=shrunk[:, 0],
        heights=shrunk[:, 1],
        times=torch.tensor(times) if len(times) == len(frames) else None,
        distortion=distortion,
        projection=projection,
    )


def _warn_of_shared_angle(
    shared: Mapping[str, Any], frames: Sequence[Frame], originals: Sequence[Picture]
) -> None:
    stated = shared.get("fl_x") or shared.get("w") or all("w" in f.entry for f in frames)
    sizes = {(picture.width, picture.height) for picture in originals}
    if not stated and "camera_angle_x" in shared and len(sizes) > 1:
        _log.warning(
            "images of several sizes share camera_angle_x, which is taken as the horizontal angle "
            "of each: where one lens took wide and tall ones, give its focal length as fl_x instead"
        )


def _smaller_copies(images: Sequence[Path], downscale: float) -> list[Path]:
    """Find copies that were shrunk before, such as images_4/a.png for images/a.JPG.

    Returns:
        One for every image, or none at all.
    """
    listings: dict[Path, Listing] = {}
    copies = []
    for image in images if downscale > 1 else []:
        folder = image.parent.with_name(f"{image.parent.name}_{downscale:g}")
        listing = listings.setdefault(folder, Listing(folder))
        copies.append(listing.find(image.name))
    return [copy for copy in copies if copy] if all(copies) else []


def _check_proportions(originals: Sequence[Picture], copies: Sequence[Picture]) -> None:
    for image, copy in zip(originals, copies, strict=True):
        off = abs(copy.width * image.height - copy.height * image.width)
        if off > image.width + image.height:  # more than rounding each side to whole pixels
            raise UserError(
                f"{copy.path} is {copy.width}x{copy.height}, no shrunk copy of {image.path}, which "
                f"is {image.width}x{image.height}: make it again, or remove {copy.path.parent}"
            )


# Which views are trained on


def split_members(
    path: Path,
    content: Mapping[str, Any],
    everywhere: Sequence[str],
    frames: Sequence[Frame],
    test_every: int,
) -> dict[str, list[int]]:
    """Return the indices into frames that each split holds.

    Args:
        path: of the file.
        content: of the file.
        everywhere: the file_path of all frames that it lists.
        frames: those whose image is there.
        test_every: each so many is a test view where the file lists none.

    Raises:
        UserError: a list names what no frame has, or a split is left without images.
    """
    listed = {split: _listed(path, content, split, everywhere) for split in SPLITS}
    if not any(listed.values()):
        return _held_out(path, [_plain(frame.file_path) for frame in frames], test_every)
    members = {
        split: [i for i, frame in enumerate(frames) if _plain(frame.file_path) in names]
        for split, names in listed.items()
        if names
    }
    rest = [i for i in range(len(frames)) if all(i not in indices for indices in members.values())]
    if "test" not in members and "val" in members:
        members["test"] = members["val"]
    absent = [split for split in ("train", "test") if split not in members]
    if absent:
        members[absent[0]] = rest
    elif rest:
        _log.warning("%s: %d frames are in none of its lists and not used", path, len(rest))
    return _checked(path, members)


def _held_out(path: Path, names: Sequence[str], test_every: int) -> dict[str, list[int]]:
    """Make every so many images a test view; frames of one image go the same way."""
    frames: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        frames.setdefault(name, []).append(index)
    if len(frames) < len(names):
        twice = next(name for name, indices in frames.items() if len(indices) > 1)
        _log.warning(
            "%s: %d frames name images that others name, too, such as %s",
            path,
            len(names) - len(frames),
            short(twice),
        )
    images = list(frames.values())
    parts = holdout(list(frames), test_every)
    return {
        split: [index for image in part for index in images[image]]
        for split, part in zip(("train", "test"), parts, strict=True)
    }


def _listed(
    path: Path, content: Mapping[str, Any], split: str, everywhere: Sequence[str]
) -> set[str]:
    """Read nerfstudio's list of a split's images."""
    key = f"{split}_filenames"
    names = content.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {key} must be a list of file paths, as frames have them")
    known = {_plain(name) for name in everywhere}
    for name in names:
        if _plain(name) not in known:
            raise UserError(
                f"{path}: {key} lists {short(name)}, which no frame has as its file_path: mend it "
                "or take it out"
            )
    return {_plain(name) for name in names}


def _plain(file_path: str) -> str:
    """Write a path without the variety that means nothing, as in ./a and a."""
    return PurePosixPath(file_path.replace("\\", "/")).as_posix()


def _checked(path: Path, members: dict[str, list[int]]) -> dict[str, list[int]]:
    for split in ("train", "test"):
        if not members.get(split):
            raise UserError(
                f"{path}: its lists leave no image for {split}: move some from one of "
                "train_filenames and test_filenames to the other"
            )
    both = set(members["train"]) & set(members["test"])
    if both:
        _log.warning(
            "%s: %d test views are trained on as well, so their figures are too good",
            path,
            len(both),
        )
    return {split: members[split] for split in SPLITS if split in members}
