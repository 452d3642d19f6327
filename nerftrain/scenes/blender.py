"""Folders in the layout of NeRF-synthetic: transforms_*.json and the images that they name."""

from __future__ import annotations

import logging
from pathlib import Path

from nerftrain.scenes import Scene
from nerftrain.scenes.frames import Frame
from nerftrain.scenes.split_folders import Bounds, Layout, load_splits
from nerftrain.scenes.times import have_times

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
    """Read a NeRF-synthetic folder.

    The "test" split is the folder's test split, or its val split where it has no other.

    Args:
        name: of the scene, and of its folder where root is None.
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
    bounds = Bounds(near, far, extent)
    place = name, name, LAYOUT, root, data_root
    return load_splits(*place, downscale, skip_missing, bounds, train_views)


def _check_frames(path: Path, frames: list[Frame]) -> list[Frame]:
    if path.name == "transforms_train.json" and have_times(frames):
        _log.warning(
            "%s: frames carry a time, but this scene is trained as if still; give it as "
            "scene=dnerf for one that moves",
            path,
        )
    return frames


LAYOUT = Layout(
    kind="NeRF-synthetic",
    groups=("", "blender", "nerf_synthetic", "blender_synthetic"),
    advised=("", "nerf_synthetic"),
    could_be=lambda path: True,
    check_frames=_check_frames,
)
