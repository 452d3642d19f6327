"""The times of a scene that moves: one per frame, 0 the first moment and 1 the last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.scenes import Scene, Split
from nerftrain.scenes.frames import Frame, is_number, short

# A time this many times the median step between training times away from all of them is unseen.
# Times drawn at random leave gaps of several steps too.
UNSEEN_STEPS = 3

_log = logging.getLogger(__name__)


def have_times(frames: Sequence[Frame]) -> bool:
    """Tell whether any frame carries a time."""
    return any("time" in frame.entry for frame in frames)


def with_times(path: Path, frames: Sequence[Frame]) -> list[Frame]:
    """Give each frame of a transforms file the time that its entry carries.

    Raises:
        UserError: a time is missing, or not within 0..1.
    """
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


def warn_of_unseen_times(scene: Scene) -> None:
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
