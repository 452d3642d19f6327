"""Values along rays, batched or flattened.

Batched values are [R, n] with the same n on every ray. Flattened ones are [N], and `packed_info`
[R, 2] (where each ray's chunk starts, how long it is) or `ray_indices` [N] says whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RaySamples:
    """Points along rays."""

    vals: Tensor  # [R, n] or [N]
    packed_info: Tensor | None = None  # [R, 2]
    ray_indices: Tensor | None = None  # [N]
    is_valid: Tensor | None = None  # bool, like vals

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return self.vals.device


@dataclass
class RayIntervals:
    """Intervals along rays by their edges.

    Flattened edges need `is_left` and `is_right`: an edge that both ends one interval and begins
    the next is both, and where they leave a hole between them there are two edges.
    """

    vals: Tensor  # [R, n + 1] or [M], edges
    packed_info: Tensor | None = None  # [R, 2]
    ray_indices: Tensor | None = None  # [M]
    is_left: Tensor | None = None  # [M] bool
    is_right: Tensor | None = None  # [M] bool

    @property
    def device(self) -> torch.device:
        """Where the edges lie."""
        return self.vals.device
