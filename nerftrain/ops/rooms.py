"""Packed samples in buffers of a fixed size, so that no host has to ask a GPU how many there are.

Rays are taken in their order until the next one would not fit: those that are in are whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nerftrain.ops import library
from nerftrain.types import Samples


@library.fake("fit")
def _fit_fake(ends: Tensor, _room: int) -> tuple[Tensor, Tensor]:
    return ends.new_empty(ends.shape[0] + 1), ends.new_empty(ends.shape[0], dtype=torch.bool)


def fit(counts: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Give rays of counts [R] samples room for `room` of them in all.

    Returns offsets [R + 1], in which rays without room are empty, and which rays have room, [R].
    """
    if library.native(counts):
        return torch.ops.nerftrain.fit(counts.cumsum(0), room)
    return fit_reference(counts, room)


def fit_reference(counts: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Give rays room by torch (see `fit`)."""
    ends = counts.cumsum(0)
    whole = ends <= room
    used = torch.where(whole, ends, 0).amax() if len(ends) else ends.sum()
    return functional.pad(torch.minimum(ends, used), (1, 0)), whole


def padded(samples: Samples, room: int) -> Samples:
    """Move samples into buffers of `room` rows, by a host that knows how many there are."""
    offsets, whole = fit(samples.offsets.diff(), room)
    rows = min(len(samples), int(offsets[-1]))

    def moved(column: Tensor) -> Tensor:
        return functional.pad(column[:rows], (0, room - rows))

    return Samples(
        moved(samples.t_starts),
        moved(samples.t_ends),
        moved(samples.ray_indices),
        offsets,
        both(samples.whole, whole),
    )


def both(before: Tensor | None, now: Tensor) -> Tensor:
    """Tell which rays [R] have found room twice; None: all of them did before."""
    return now if before is None else before & now


def used_rows(samples: Samples) -> Tensor:
    """Tell which rows [N] of a buffer are some ray's."""
    rows = torch.arange(len(samples), device=samples.offsets.device)
    return rows < samples.offsets[-1]
