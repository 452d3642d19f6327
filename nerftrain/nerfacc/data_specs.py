"""Samples and intervals along rays, in rows of one length or flattened ray after ray."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RaySamples:
    """Samples along rays: batched [n_rays, n_samples], or flattened [all_samples] with chunks."""

    vals: Tensor
    packed_info: Tensor | None = None  # [n_rays, 2] first sample and number of samples
    ray_indices: Tensor | None = None  # [all_samples]
    is_valid: Tensor | None = None  # [all_samples]

    @property
    def device(self) -> torch.device:
        """Where the samples lie."""
        return self.vals.device


@dataclass
class RayIntervals:
    """Edges of intervals along rays: batched [n_rays, n_edges], or flattened with chunks."""

    vals: Tensor
    packed_info: Tensor | None = None  # [n_rays, 2] first edge and number of edges
    ray_indices: Tensor | None = None  # [all_edges]
    is_left: Tensor | None = None  # [all_edges] whether an interval starts here
    is_right: Tensor | None = None  # [all_edges] whether an interval ends here

    @property
    def device(self) -> torch.device:
        """Where the edges lie."""
        return self.vals.device
