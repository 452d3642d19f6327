"""Multiresolution hash encoding (Instant-NGP, arXiv:2201.05989, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerftrain.errors import UserError
from nerftrain.ops import library

PRIMES = (1, 2654435761, 805459861)  # eq. 4


@dataclass(frozen=True)
class HashLevels:
    """The layout of the table.

    Level l has resolutions[l] cells per side and entries offsets[l] : offsets[l + 1].
    """

    resolutions: tuple[int, ...]
    offsets: tuple[int, ...]  # one more than levels

    @classmethod
    def geometric(cls, num_levels: int, base: int, finest: int, log2_table_size: int) -> HashLevels:
        """Space resolutions geometrically from `base` to `finest` (eq. 2 and 3).

        Coarse levels, whose vertices all fit 2**log2_table_size entries, are stored densely.
        """
        growth = (finest / base) ** (1 / max(num_levels - 1, 1))
        resolutions = tuple(int(base * growth**level + 1e-6) for level in range(num_levels))
        offsets = [0]
        for resolution in resolutions:
            offsets.append(offsets[-1] + min((resolution + 1) ** 3, 2**log2_table_size))
        return cls(resolutions, tuple(offsets))


def _vertex_entries(vertex: Tensor, resolution: int, size: int) -> Tensor:
    """Find where vertices [..., 3] are stored in a level's table."""
    side = resolution + 1
    x, y, z = vertex.unbind(-1)
    if side**3 <= size:
        return (z * side + y) * side + x
    hashed = (x * PRIMES[0]) ^ (y * PRIMES[1] & 0xFFFFFFFF) ^ (z * PRIMES[2] & 0xFFFFFFFF)
    return hashed & (size - 1)


def hash_encode_reference(positions: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
    """Encode by torch (see `hash_encode`)."""
    positions = positions.nan_to_num(0.0).clamp(0, 1)
    features = []
    for level, resolution in enumerate(levels.resolutions):
        first, last = levels.offsets[level], levels.offsets[level + 1]
        scaled = positions * resolution
        cell = scaled.detach().long().clamp(max=resolution - 1)
        place = scaled - cell
        total = torch.zeros(
            positions.shape[0], table.shape[1], dtype=table.dtype, device=table.device
        )
        for corner in range(8):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], device=cell.device)
            weight = torch.where(bits.bool(), place, 1 - place).prod(-1)
            rows = first + _vertex_entries(cell + bits, resolution, last - first)
            total = total + weight[:, None] * table[rows]
        features.append(total)
    return torch.cat(features, -1)


@library.fake("hash_encode_fwd")
def _hash_encode_fwd_fake(
    positions: Tensor, table: Tensor, resolutions: list[int], offsets: list[int]
) -> Tensor:
    return table.new_empty(positions.shape[0], len(resolutions) * table.shape[1])


@library.fake("hash_encode_bwd")
def _hash_encode_bwd_fake(
    positions: Tensor, table: Tensor, _v: Tensor, _r: list[int], _o: list[int], to_positions: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(table), table.new_empty(positions.shape[0] if to_positions else 0, 3)


class _HashEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.levels = list(levels.resolutions), list(levels.offsets)
        return torch.ops.nerftrain.hash_encode_fwd(positions, table, *ctx.levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_features: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        to_positions = ctx.needs_input_grad[0]
        arguments = (*ctx.saved_tensors, v_features.contiguous(), *ctx.levels, to_positions)
        v_table, v_positions = torch.ops.nerftrain.hash_encode_bwd(*arguments)
        return (
            v_positions if to_positions else None,
            v_table,
            None,  # levels
        )


def hash_encode(positions: Tensor, table: Tensor, levels: HashLevels) -> Tensor:
    """Encode positions [N, 3] with a table [entries, F] to features [N, L * F].

    Positions are in 0..1 (clamped; NaN counts as 0). Trilinear within a cell; gradients flow to the
    table and, where asked for, to the positions. Float32 and float64. Raises UserError where F is
    none of 1, 2, 4, 8.
    """
    if table.shape[1] not in (1, 2, 4, 8):
        raise UserError(f"features_per_level={table.shape[1]}: choose 1, 2, 4 or 8")
    if table.shape[0] != levels.offsets[-1]:
        raise UserError(f"the table has {table.shape[0]} rows, its levels {levels.offsets[-1]}")
    positions = positions.to(table.dtype)
    if not library.native(positions, table):
        return hash_encode_reference(positions, table, levels)
    return _HashEncode.apply(positions.contiguous(), table.contiguous(), levels)
