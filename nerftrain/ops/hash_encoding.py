"""Multiresolution hash encoding (Instant-NGP, arXiv:2201.05989, section 3) of space and time."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nerftrain.errors import UserError
from nerftrain.ops import library
from nerftrain.ops.adam import spare_gradient

# Eq. 4, and for a fourth axis the next one of the authors' code.
PRIMES = (1, 2654435761, 805459861, 3674653429)


@dataclass(frozen=True)
class HashLevels:
    """The layout of the table.

    Level l has resolutions[l] cells per side, of four axes times[l] cells along the fourth, and
    entries offsets[l] : offsets[l + 1].
    """

    resolutions: tuple[int, ...]
    offsets: tuple[int, ...]  # one more than levels
    times: tuple[int, ...] = ()  # none: positions have three axes

    @classmethod
    def geometric(
        cls,
        num_levels: int,
        base: int,
        finest: int,
        log2_table_size: int,
        time: tuple[int, int] | None = None,
    ) -> HashLevels:
        """Space resolutions geometrically from `base` to `finest` (eq. 2 and 3).

        Coarse levels, whose vertices all fit 2**log2_table_size entries, are stored densely. All
        begin at multiples of 8 entries: neighbours from an even one on can be read at once. `time`
        is base and finest of a fourth axis.
        """
        resolutions = _geometric(num_levels, base, finest)
        times = _geometric(num_levels, *time) if time else ()
        layout = cls(resolutions, (), times)
        vertices = (math.prod(c + 1 for c in cells) for cells in layout.cells)
        sizes = (min(-(-n // 8) * 8, 2**log2_table_size) for n in vertices)
        offsets = itertools.accumulate(sizes, initial=0)
        return cls(resolutions, tuple(offsets), times)

    @property
    def num_axes(self) -> int:
        """Count the coordinates of a position: 3, or 4 with time."""
        return 4 if self.times else 3

    @property
    def cells(self) -> list[tuple[int, ...]]:
        """List each level's cells along each axis."""
        times = [(t,) for t in self.times] or [()] * len(self.resolutions)
        return [(r, r, r, *t) for r, t in zip(self.resolutions, times, strict=True)]

    @property
    def as_arguments(self) -> tuple[list[int], list[int]]:
        """Name the cells of each level and axis, and where levels begin, as the ops take them."""
        return list(itertools.chain(*self.cells)), list(self.offsets)


def _geometric(num_levels: int, base: int, finest: int) -> tuple[int, ...]:
    growth = (finest / base) ** (1 / max(num_levels - 1, 1))
    return tuple(int(base * growth**level + 1e-6) for level in range(num_levels))


def _vertex_entries(vertex: Tensor, cells: tuple[int, ...], size: int) -> Tensor:
    """Find where vertices [..., D] are stored in a level's table."""
    sides = [c + 1 for c in cells]
    entries = torch.zeros_like(vertex[..., 0])
    if math.prod(sides) <= size:
        for axis in reversed(range(len(sides))):
            entries = entries * sides[axis] + vertex[..., axis]
        return entries
    for coordinate, prime in zip(vertex.unbind(-1), PRIMES, strict=False):
        entries = entries ^ (coordinate * prime & 0xFFFFFFFF)
    return entries & (size - 1)


def hash_encode_reference(positions: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
    """Encode by torch (see `hash_encode`)."""
    # On a face the gradient is that of within, which torch's own clamp says in some versions only.
    inside = (positions >= 0) & (positions <= 1)
    positions = positions.where(inside, positions.detach().nan_to_num(0.0).clamp(0, 1))
    corners = list(itertools.product((0, 1), repeat=levels.num_axes))
    features = []
    for level, cells in enumerate(levels.cells):
        first, last = levels.offsets[level], levels.offsets[level + 1]
        side = torch.tensor(cells, device=positions.device)
        scaled = positions * side
        cell = torch.minimum(scaled.detach().long(), side - 1)
        place = scaled - cell
        total = torch.zeros(
            positions.shape[0], table.shape[1], dtype=table.dtype, device=table.device
        )
        for corner in corners:
            bits = torch.tensor(corner, device=cell.device)
            weight = torch.where(bits.bool(), place, 1 - place).prod(-1)
            rows = first + _vertex_entries(cell + bits, cells, last - first)
            # Not table[rows]: threads would add to its gradient in whatever order they come.
            total = total + weight[:, None] * functional.embedding(rows, table)
        features.append(total)
    return torch.cat(features, -1)


@library.fake("hash_encode_fwd")
def _hash_encode_fwd_fake(
    positions: Tensor, table: Tensor, resolutions: list[int], offsets: list[int]
) -> Tensor:
    return positions.new_empty(positions.shape[0], (len(offsets) - 1) * table.shape[1])


@library.fake("hash_encode_bwd")
def _hash_encode_bwd_fake(
    positions: Tensor, table: Tensor, _v: Tensor, _r: list[int], _o: list[int], to_positions: bool
) -> tuple[Tensor, Tensor]:
    num, num_axes = positions.shape
    return torch.empty_like(table), table.new_empty(num if to_positions else 0, num_axes)


@library.fake("hash_encode_bwd_")
def _hash_encode_bwd_into_fake(*_: object) -> None:
    return None


class _HashEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        positions: Tensor,
        table: Tensor,
        levels: HashLevels,
        half: Tensor | None,
        known: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.levels = levels.as_arguments
        if known is not None:
            return known
        stored = table if half is None else half
        return torch.ops.nerftrain.hash_encode_fwd(positions, stored, *ctx.levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_features: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        to_positions = ctx.needs_input_grad[0]
        positions, table = ctx.saved_tensors
        v_features, v_positions = v_features.contiguous(), None
        v_table = None if to_positions else spare_gradient(table)
        if v_table is None:
            v_table, v_positions = torch.ops.nerftrain.hash_encode_bwd(
                positions, table, v_features, *ctx.levels, to_positions
            )
        else:
            torch.ops.nerftrain.hash_encode_bwd_(positions, v_table, v_features, *ctx.levels)
        return (
            v_positions if to_positions else None,
            v_table,
            None,  # levels
            None,  # half
            None,  # known
        )


def hash_encode(
    positions: Tensor,
    table: Tensor,
    levels: HashLevels,
    half: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Encode positions [N, D] with a table [entries, F] to features [N, L * F].

    Positions are x, y, z and, of four axes, time, in 0..1 (clamped; NaN counts as 0). Multilinear
    within a cell; gradients flow to the table and, where asked for, to the positions. Float32 and
    float64. Raises UserError where F is none of 1, 2, 4, 8, or D not what the levels are for.

    `half` [entries, F] is the table in half precision: on the CPU its rows are read, half the
    memory, while gradients go to the table. `known` [N, L * F] are the features where they have
    been looked up already: then nothing is but the gradients' way.
    """
    if table.shape[1] not in (1, 2, 4, 8):
        raise UserError(f"features_per_level={table.shape[1]}: choose 1, 2, 4 or 8")
    if table.shape[0] != levels.offsets[-1]:
        raise UserError(f"the table has {table.shape[0]} rows, its levels {levels.offsets[-1]}")
    if positions.shape[1] != levels.num_axes:
        raise UserError(f"positions have {positions.shape[1]} axes, the levels {levels.num_axes}")
    positions = positions.to(table.dtype)
    if not library.native(positions, table):
        return hash_encode_reference(positions, table, levels)
    if not library.on_cpu(table) or table.dtype != torch.float32 or table.shape[1] == 1:
        half = None
    return _HashEncode.apply(positions.contiguous(), table.contiguous(), levels, half, known)
