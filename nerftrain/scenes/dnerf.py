"""Folders in the layout of D-NeRF (arXiv:2011.13961): NeRF-synthetic's, and a time per frame."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.scenes import Scene, Split
from nerftrain.scenes.frames import Frame, is_number, short
from nerftrain.scenes.split_folders import Bounds, Layout, load_splits

PREFIX = "dnerf_"  # of names, not of folders: outputs of the two legos must not be mixed up
# A time this many times the median step between training times away from all of them is unseen.
# Times drawn at random leave gaps of several steps too.
UNSEEN_STEPS = 3

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

    Raises:
        UserError: something in the folder or in these values cannot be used.
    """
    folder_name = name.removeprefix(PREFIX)
    bounds = Bounds(near, far, extent)
    scene = load_splits(name, folder_name, LAYOUT, root, data_root, downscale, skip_missing, bounds)
    _warn_of_unseen_times(scene)
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
    if path.name == "transforms_train.json" and not any("time" in f.entry for f in frames):
        raise UserError(
            f"{path}: no frame has a time, so the scene is still: give it as scene=blender "
            f"scene.root={path.parent}, or give each frame its time in 0..1"
        )
    for frame in frames:
        time = frame.entry.get("time")
        if not is_number(time):
            given = "has no time" if time is None else f"has time {short(time)}"
            raise UserError(
                f"{frame.where} {given}: give it a number, 0 for the first moment and 1 for the "
                "last"
            )
    times = [float(frame.entry["time"]) for frame in frames]
    if not 0 <= min(times) <= max(times) <= 1:
        raise UserError(
            f"{path}: times run from {min(times):g} to {max(times):g}, outside 0..1: replace each "
            "by (time - first) / (last - first), with the first and last moment of all splits"
        )
    return [replace(frame, time=time) for frame, time in zip(frames, times, strict=True)]


LAYOUT = Layout(
    kind="D-NeRF",
    groups=("dnerf", "d-nerf", "D-NeRF", "dnerf/data", "d-nerf/data", "D-NeRF/data", ""),
    advised=("dnerf", ""),
    check_frames=_check_frames,
)


def _warn_of_unseen_times(scene: Scene) -> None:
    """Warn once of views to be judged at times that no training view comes near."""
    seen = _times(scene.splits["train"]).unique()  # sorted
    steps = seen.diff()
    limit = UNSEEN_STEPS * float(steps.median()) if len(steps) else 0.0
    found = []
    for split in {id(split): split for split in scene.splits.values()}.values():
        times = _times(split)
        distances = (times[:, None] - seen).abs().amin(1)  # [C]
        unseen = distances > limit + 1e-6
        if unseen.any():
            farthest = float(times[distances.argmax()])
            found.append(f"{int(unseen.sum())} of {len(times)} in {split.name} (time {farthest:g})")
    if found:
        _log.warning(
            "%s: views at times that training never saw: %s; what is rendered there is a guess, so "
            "add training views of those times",
            scene.root,
            ", ".join(found),
        )


def _times(split: Split) -> Tensor:
    """Return the times of a split of a moving scene, [C]."""
    assert split.cameras.times is not None
    return split.cameras.times
