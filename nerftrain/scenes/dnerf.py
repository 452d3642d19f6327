"""Folders in the layout of D-NeRF (arXiv:2011.13961): NeRF-synthetic's, and a time per frame."""

from __future__ import annotations

import logging
from pathlib import Path

from nerftrain.errors import UserError
from nerftrain.scenes import Scene
from nerftrain.scenes.frames import Frame
from nerftrain.scenes.split_folders import Bounds, Layout, load_splits
from nerftrain.scenes.times import have_times, warn_of_unseen_times, with_times

PREFIX = "dnerf_"  # of names, not of folders: outputs of the two legos must not be mixed up

_log = logging.getLogger(__name__)


def load_scene(
    name: str,
    root: str | None,
    data_root: str | None,
    downscale: float,
    skip_missing: bool,
    near: float,
    far: float,
    extent: float,
    train_views: int | None = None,
) -> Scene:
    """Read a D-NeRF folder.

    The "test" split is the folder's test split, or its val split where it has no other. In the
    published lego the test views show other positions of the shovel than the training views at the
    same times: its val split is what can be judged on.

    Args:
        name: of the scene; without a leading dnerf_ that of its folder where root is None.
        root: the folder with transforms_train.json.
        data_root: where a folder of that name is looked for if root is None.
        downscale: images are shrunk by this factor, at least 1, averaged over area.
        skip_missing: go on, with a warning, without frames whose image is missing.
        near: distance at which rays start, world units.
        far: distance at which rays end.
        extent: the scene's box is +-extent on every axis.
        train_views: so many of the training views are taken, evenly spaced; None: all.

    Raises:
        UserError: something in the folder or in these values cannot be used.
    """
    folder_name = name.removeprefix(PREFIX)
    bounds = Bounds(near, far, extent)
    place = name, folder_name, LAYOUT, root, data_root
    scene = load_splits(*place, downscale, skip_missing, bounds, train_views)
    warn_of_unseen_times(scene)
    if "lego" in (folder_name, scene.root.name) and "val" in scene.splits:
        _log.warning(
            "%s: in the published D-NeRF lego the test views do not match the training views "
            "(the shovel stands elsewhere at the same time); judge by val: "
            "nerftrain eval RUN --split val",
            scene.root,
        )
    return scene


def _check_frames(path: Path, frames: list[Frame]) -> list[Frame]:
    """Give each frame its time."""
    if path.name == "transforms_train.json" and not have_times(frames):
        raise UserError(
            f"{path}: no frame has a time, so the scene is still: give it as scene=blender "
            f"scene.root={path.parent}, or give each frame its time in 0..1"
        )
    return with_times(path, frames)


LAYOUT = Layout(
    kind="D-NeRF",
    groups=("dnerf", "d-nerf", "D-NeRF", "dnerf/data", "d-nerf/data", "D-NeRF/data", ""),
    advised=("dnerf", ""),
    could_be=lambda path: b'"time"' in path.read_bytes(),
    check_frames=_check_frames,
)
