"""The MLP of the original NeRF (arXiv:2003.08934, figure 7)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerftrain.bounds import MOST_FREQUENCIES, MOST_LAYERS, MOST_WIDTH, check_at_most
from nerftrain.errors import UserError
from nerftrain.models import RadianceField
from nerftrain.models.dynamic import Warp, WarpField
from nerftrain.models.encodings import FrequencyEncoding
from nerftrain.ops import library
from nerftrain.runtime import bfloat16
from nerftrain.types import Contraction

_log = logging.getLogger(__name__)

# Products of bfloat16 numbers on a CPU have rows in multiples of this many. For each number of them
# that it has not met oneDNN compiles a product anew, which takes longer than it does.
ROWS = 256
# Without gradients a CPU asks for so many rows at a time: what layers hand on stays in its caches.
BLOCK = 8192
# The logarithm below which a density's gradients grow no smaller.
LEAST = -5.0


class MLP(RadianceField):
    """A deep MLP on frequencies of the position.

    The view direction joins just before the colour. In a dynamic scene a warp field comes first.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        skip: int,
        position_frequencies: int,
        direction_frequencies: int,
        warp: Warp,
        extra_channels: dict[str, int] | None,
        *,
        aabb: Tensor,
        contraction: Contraction = "none",
        is_dynamic: bool = False,
    ) -> None:
        """Build `depth` layers of `width`; the encoded position enters again after layer `skip`."""
        super().__init__(extra_channels, aabb, contraction, is_dynamic)
        if depth < 1 or width < 2:
            raise UserError(f"depth={depth}, width={width}: need depth >= 1 and width >= 2")
        check_at_most(MOST_LAYERS, depth=depth)
        check_at_most(MOST_WIDTH, width=width)
        check_at_most(
            MOST_FREQUENCIES,
            position_frequencies=position_frequencies,
            direction_frequencies=direction_frequencies,
        )
        if not skip >= 0:
            raise UserError(f"skip={skip}: must be at least 0")
        if skip >= depth:
            _log.warning("skip=%d has no effect on %d layers: 0 says so", skip, depth)
        self.skip = skip
        self.positions = FrequencyEncoding(position_frequencies)
        self.directions = FrequencyEncoding(direction_frequencies)
        encoded = self.positions.num_features
        inputs = [encoded] + [width + (encoded if i == skip else 0) for i in range(1, depth)]
        self.trunk = nn.ModuleList(nn.Linear(n, width) for n in inputs)
        self.density_head = nn.Linear(width, 1)
        self.bottleneck = nn.Linear(width, width)
        self.color_hidden = nn.Linear(width + self.directions.num_features, width // 2)
        self.color_head = nn.Linear(width // 2, self.num_channels)
        self.warp = WarpField(warp) if is_dynamic else None

    def _trunk(self, positions: Tensor, times: Tensor | None) -> Tensor:
        unit = self.unit_positions(self._filled(positions))
        if self.warp is not None:
            unit = self.warp(unit, self._filled(self.unit_times(times)))
        # The box is -1..1 here: the frequencies are meant for coordinates of about one.
        x = encoded = self._rounded(self.positions(unit * 2 - 1))
        with self._rounding():
            for i, layer in enumerate(self.trunk):
                if i == self.skip and i > 0:
                    x = torch.cat([x, encoded], -1)
                x = functional.relu(layer(x), inplace=True)
        return x

    def _filled(self, rows: Tensor) -> Tensor:
        """Fill up with zeros to a number of rows that has been met before."""
        if not self._rounds():
            return rows
        return functional.pad(rows, (*[0, 0] * (rows.dim() - 1), 0, -len(rows) % ROWS))

    def _rounds(self) -> bool:
        weight = self.density_head.weight
        return weight.dtype == torch.float32 and library.multiplies_bfloat16(weight)

    def _rounded(self, x: Tensor) -> Tensor:
        """Round once what several layers take; autocast would, in each, what it made wider."""
        return x.bfloat16() if self._rounds() else x

    def _rounding(self) -> AbstractContextManager[object]:
        """Multiply bfloat16 numbers where the CPU does, in a quarter of the time.

        The last layers do without.
        """
        return bfloat16("cpu") if self._rounds() else nullcontext()

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Evaluate the density at positions [N, 3] and, in a dynamic scene, times [N]: [N]."""
        parts = [
            self._density(self._trunk(*part))[: len(part[0])]
            for part in self._blocks(positions, times)
        ]
        return torch.cat(parts)

    def _blocks(self, positions: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Split what belongs to N positions into parts to be evaluated one after the other."""
        whole = torch.is_grad_enabled() or not library.on_cpu(positions)
        size = max(len(positions), 1) if whole else BLOCK
        columns = [repeat(None) if x is None else x.split(size) for x in (positions, *others)]
        return zip(*columns, strict=False)

    def _density(self, trunk: Tensor) -> Tensor:
        # Softplus, not the paper's ReLU: a ReLU that starts dead never learns (mip-NeRF,
        # arXiv:2103.13415, appendix C).
        raw = self.density_head(trunk.to(self.density_head.weight))[:, 0]
        density = functional.softplus(raw)
        # Before a field has found anything, rays that meet nothing drive all of it down, and by
        # momentum on to where no gradient of others is left (jumpingjacks: 1e-24 after 100 steps).
        passing = functional.softplus(raw + (raw.clamp(min=LEAST) - raw).detach())
        return passing + (density - passing).detach()

    def forward(
        self, positions: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate channels [N, K] and density [N].

        They are those at positions [N, 3] and, in a dynamic scene, times [N], seen along unit
        directions [N, 3].
        """
        parts = [self._look(*part) for part in self._blocks(positions, directions, times)]
        channels, density = zip(*parts, strict=True)
        return torch.cat(channels), torch.cat(density)

    def _look(
        self, positions: Tensor, directions: Tensor, times: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        trunk = self._trunk(positions, times)
        with self._rounding():
            ahead = self._rounded(self.directions(self._filled(directions)))
            seen = self.color_hidden(torch.cat([self.bottleneck(trunk), ahead], -1))
            hidden = functional.relu(seen, inplace=True)
        raw = self.color_head(hidden.to(self.color_head.weight))
        rows = slice(len(positions))
        return self.activate(raw)[rows], self._density(trunk)[rows]
