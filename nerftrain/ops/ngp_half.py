"""Instant-NGP's field on a GPU in half precision: hash grids and both MLPs (arXiv:2201.05989).

Tables are read in half precision, MLPs run on tensor cores (csrc/cuda/ngp.cu); what learns and what
is summed up is float32. Gradients are scaled by SCALE where they pass half precision and unscaled
where they leave it, so that no loss is: a loss averages over thousands of rays, and what one
sample adds to it lies below the least half-precision number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerftrain.memory import has_run_out
from nerftrain.ops import library
from nerftrain.ops.hash_encoding import HashLevels, hash_encode_reference
from nerftrain.ops.mlp import flat, widths
from nerftrain.ops.ngp import NUM_COLORS, truncated_exp
from nerftrain.ops.spherical_harmonics import spherical_harmonics

_log = logging.getLogger(__name__)

SCALE = 4096.0
# What the kernels are made for (csrc/cuda/ngp.cu).
WIDTH, MAX_FEATURES, MAX_GEOMETRY, MAX_CHANNELS, MAX_COLOR_LAYERS = 64, 64, 16, 8, 2


class Encoded(NamedTuple):
    """A hash grid and where it is looked up."""

    positions: Tensor  # [N, D] in 0..1
    table: Tensor  # [entries, F] float32, which learns
    half: Tensor  # [entries, F], its copy in half precision
    levels: HashLevels


# --------------------------------------------------------------------------------------- references


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.half().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return v


def rounded(x: Tensor) -> Tensor:
    """Round to half precision; gradients pass as they are."""
    return _Rounded.apply(x)


def ngp_half_density_reference(encoded: Sequence[Encoded], weights: Sequence[Tensor]) -> Tensor:
    """Evaluate the density by torch (see `ngp_half_density`)."""
    return truncated_exp(_rounded_geometry(encoded, weights)[:, 0] - 1)


def _rounded_geometry(encoded: Sequence[Encoded], weights: Sequence[Tensor]) -> Tensor:
    grids = ((e.positions, rounded(e.table), e.levels) for e in encoded)
    features = torch.cat([hash_encode_reference(*grid) for grid in grids], -1)
    hidden = (rounded(features) @ rounded(weights[0]).T).relu()
    return rounded(hidden) @ rounded(weights[1]).T


def ngp_half_reference(
    encoded: Sequence[Encoded],
    directions: Tensor,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    sh_degree: int,
) -> tuple[Tensor, Tensor]:
    """Evaluate channels and density by torch, rounding what the kernels round (see `ngp_half`)."""
    geometry = _rounded_geometry(encoded, density_weights)
    x = torch.cat([geometry[:, 1:], spherical_harmonics(directions, sh_degree)], -1)
    for weight in color_weights[:-1]:
        x = (rounded(x) @ rounded(weight).T).relu()
    raw = rounded(x) @ rounded(color_weights[-1]).T
    channels = torch.cat([raw[:, :NUM_COLORS].sigmoid(), raw[:, NUM_COLORS:]], -1)
    return channels, truncated_exp(geometry[:, 0] - 1)


# ------------------------------------------------------------------------------------- registration


@library.fake("hash_encode_half")
def _hash_encode_half_fake(
    positions: Tensor, table: Tensor, _resolutions: list[int], offsets: list[int], _used: Tensor
) -> Tensor:
    return table.new_empty(positions.shape[0], (len(offsets) - 1) * table.shape[1])


@library.fake("ngp_half_density")
def _ngp_half_density_fake(features: Tensor, weights: Tensor, *_: object) -> Tensor:
    return weights.new_empty(features.shape[0])


@library.fake("ngp_half_density_bwd")
def _ngp_half_density_bwd_fake(
    features: Tensor, weights: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return weights.new_empty(features.shape), torch.empty_like(weights)


@library.fake("ngp_half_fwd")
def _ngp_half_fwd_fake(features: Tensor, directions: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    num, make = features.shape[0], directions.new_empty
    return make(num, rest[-3][-1]), make(num)


@library.fake("ngp_half_bwd")
def _ngp_half_bwd_fake(
    features: Tensor, directions: Tensor, density_weights: Tensor, color_weights: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    v_features = directions.new_empty(features.shape)
    return v_features, torch.empty_like(density_weights), torch.empty_like(color_weights)


def _features(encoded: Sequence[Encoded], used: Tensor) -> Tensor:
    read = torch.ops.nerftrain.hash_encode_half
    features = [read(e.positions, e.half, *e.levels.as_arguments, used) for e in encoded]
    return features[0] if len(features) == 1 else torch.cat(features, -1)


def _told(used: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.int64) if used is None else used


def _placed(encoded: Encoded) -> Encoded:
    return encoded._replace(positions=encoded.positions.float().contiguous())


def _listed(grids: Sequence[Tensor], levels: Sequence[HashLevels]) -> list[Encoded]:
    by_three = zip(grids[0::3], grids[1::3], grids[2::3], levels, strict=True)
    return [Encoded(*grid) for grid in by_three]


def _back_to_grids(
    ctx: Any, v_features: Tensor, grids: Sequence[Tensor], first_input: int
) -> list[Tensor | None]:
    """Lead gradients of features back to positions and tables, which are three inputs each."""
    v_grids: list[Tensor | None] = []
    first = 0
    for number, shape in enumerate(ctx.grids):
        positions, table = grids[2 * number : 2 * number + 2]
        last = first + (len(shape[1]) - 1) * table.shape[1]
        own = v_features[:, first:last].contiguous()
        first = last
        to_positions = ctx.needs_input_grad[first_input + 3 * number]
        v_table, v_positions = torch.ops.nerftrain.hash_encode_bwd(
            positions, table, own, *shape, to_positions
        )
        v_grids += [v_positions if to_positions else None, v_table, None]
    return v_grids


class _DensityHalf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, shape: list[int], levels: Sequence[HashLevels], weights: Tensor, *grids: Tensor
    ) -> Tensor:
        encoded = _listed(grids, levels)
        used = _told(None, weights)
        features = _features(encoded, used)
        ctx.save_for_backward(features, weights, used, *(t for e in encoded for t in e[:2]))
        ctx.shape, ctx.grids = shape, [e.levels.as_arguments for e in encoded]
        return torch.ops.nerftrain.ngp_half_density(features, weights, shape, used)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, weights, used, *grids = ctx.saved_tensors
        v_features, v_weights = torch.ops.nerftrain.ngp_half_density_bwd(
            features, weights, grad.contiguous(), ctx.shape, used, SCALE
        )
        return None, None, v_weights, *_back_to_grids(ctx, v_features, grids, 3)


class _NgpHalf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shape: tuple[Any, ...],
        levels: Sequence[HashLevels],
        known: Tensor | None,
        used: Tensor,
        directions: Tensor,
        density_weights: Tensor,
        color_weights: Tensor,
        *grids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        encoded = _listed(grids, levels)
        features = _features(encoded, used) if known is None else known
        arguments = features, directions, density_weights, color_weights
        ctx.save_for_backward(*arguments, used, *(t for e in encoded for t in e[:2]))
        ctx.shape, ctx.grids = shape, [e.levels.as_arguments for e in encoded]
        return torch.ops.nerftrain.ngp_half_fwd(*arguments, *shape, used)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        arguments, used, grids = (ctx.saved_tensors[k] for k in (slice(4), 4, slice(5, None)))
        v = [grad.contiguous() for grad in grads]
        v_features, *v_weights = torch.ops.nerftrain.ngp_half_bwd(
            *arguments, *v, *ctx.shape, used, SCALE
        )
        return (
            None,  # shape
            None,  # levels
            None,  # known
            None,  # used
            None,  # directions
            *v_weights,
            *_back_to_grids(ctx, v_features, grids, 7),
        )


# --------------------------------------------------------------------------------- public functions


def can_do(
    tables: Sequence[Tensor], density_weights: Sequence[Tensor], color_weights: Sequence[Tensor]
) -> bool:
    """Tell whether the kernels are made for a field: its device, its number types, its widths."""
    _, *layers, channels = widths(color_weights)
    return (
        density_weights[0].shape[0] == WIDTH
        and set(layers) == {WIDTH}
        and 1 <= len(layers) <= MAX_COLOR_LAYERS
        and channels <= MAX_CHANNELS
        and library.native(*color_weights)
        and all(weight.dtype == torch.float32 for weight in color_weights)
        and can_do_density(tables, density_weights)
    )


def can_do_density(tables: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Tell the same for a density alone, whose hidden layer may be narrower."""
    numbers = [*weights, *tables]
    if not library.has_tensor_cores(numbers[0]) or any(t.dtype != torch.float32 for t in numbers):
        return False
    if any(table.shape[1] not in (2, 4, 8) for table in tables) or len(weights) != 2:
        return False
    features, hidden, geometry = widths(weights)
    return (
        hidden <= WIDTH
        and features % 2 == 0
        and features <= MAX_FEATURES
        and geometry <= MAX_GEOMETRY
        and library.native(*numbers)
        and is_trusted(numbers[0].device, agrees)
    )


@cache
def is_trusted(device: torch.device, agrees: Callable[[torch.device], bool]) -> bool:
    """Hold kernels to torch once: products that are wrong on a GPU would train to nothing."""
    if device.type != "cuda":
        return True
    fault = "give wrong numbers"
    try:
        if agrees(device):
            return True
    except RuntimeError as error:  # such as a launch that asks for more than the GPU has
        if has_run_out(error):
            raise
        fault = f"do not run ({str(error).splitlines()[0]})"
    _log.warning(
        "kernels in half precision %s on %s, others serve (slower); please report it with what "
        "nerftrain doctor prints",
        fault,
        torch.cuda.get_device_name(device),
    )
    return False


@torch.enable_grad()
def agrees(device: torch.device) -> bool:
    """Tell whether a small field and its gradients are what torch makes of the same roundings."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).mul(0.3).to(device).requires_grad_()

    def encoded_by(levels: HashLevels, num_features: int) -> Encoded:
        table = random(levels.offsets[-1], num_features)
        return Encoded(places, table, table.detach().half(), levels)

    places = torch.rand(150, 3, generator=generator).to(device)
    whole = [encoded_by(HashLevels.geometric(8, 4, 32, 8), 4)]
    networks = [random(64, 32), random(16, 64)], [random(64, 31), random(64, 64), random(3, 64)]
    # Of densities alone; and of so few features, as proposals have, that some lanes have none.
    alone = [random(16, 32), random(1, 16)]
    few, of_few = [encoded_by(HashLevels.geometric(3, 4, 16, 8), 2)], [random(16, 6), random(1, 16)]
    directions = torch.nn.functional.normalize(random(150, 3).detach(), dim=1)
    leaves = [whole[0].table, few[0].table, *networks[0], *networks[1], *alone, *of_few]
    figures = []
    for field, density_of in (
        (ngp_half, density_half),
        (ngp_half_reference, ngp_half_density_reference),
    ):
        channels_and_density = field(whole, directions, *networks, 4)
        outputs = *channels_and_density, density_of(whole, alone), density_of(few, of_few)
        total = torch.stack([output.sum() for output in outputs]).sum()
        grads = torch.autograd.grad(total, leaves)
        figures.append([*(output.detach() for output in outputs), *grads])
    return are_near(*figures)


def are_near(figures: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Tell whether figures lie within 2 % of those expected, in the mean of each tensor."""
    pairs = zip(figures, expected, strict=True)
    apart = ((float((a - e).abs().mean()), float(e.abs().mean())) for a, e in pairs)
    return all(difference <= 0.02 * size for difference, size in apart)


@torch.no_grad()
def look_up(encoded: Sequence[Encoded], used: Tensor | None = None) -> Tensor:
    """Look up the features of all grids beside each other, without gradients: [N, D].

    `used` [.] int64 ends with the number of rows that count: what is in others is anything.
    """
    return _features([_placed(e) for e in encoded], _told(used, encoded[0].positions))


@torch.no_grad()
def ngp_half_density(
    encoded: Sequence[Encoded],
    weights: Sequence[Tensor],
    known: Tensor | None = None,
    used: Tensor | None = None,
) -> Tensor:
    """Evaluate densities [N] without gradients; `weights` are [out, in] of the density MLP.

    `known` [N, D] is what `look_up` gives, where that is known, and `used` as there.
    """
    features = look_up(encoded, used) if known is None else known
    told = _told(used, features)
    return torch.ops.nerftrain.ngp_half_density(features, flat(weights), widths(weights), told)


def density_half(encoded: Sequence[Encoded], weights: Sequence[Tensor]) -> Tensor:
    """Evaluate densities [N] of a field without colours where `can_do_density` says that it can.

    `weights` are [out, in] of its MLP; gradients flow to these, to tables and to positions.
    """
    grids = [t for e in map(_placed, encoded) for t in e[:3]]
    levels = [e.levels for e in encoded]
    return _DensityHalf.apply(widths(weights), levels, flat(weights), *grids)


def ngp_half(
    encoded: Sequence[Encoded],
    directions: Tensor,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    sh_degree: int,
    known: Tensor | None = None,
    used: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Evaluate channels [N, K] and densities [N] where `can_do` says that it can.

    Args:
        encoded: hash grids, whose features stand beside each other.
        directions: [N, 3], unit; no gradient flows to them.
        density_weights: [out, in] of each layer, as in `ngp.ngp`.
        color_weights: [out, in] of each layer.
        sh_degree: 1 to 4, of the directions' harmonics.
        known: [N, D] in half precision, what `look_up` gives, where that is known.
        used: ends with the number of rows that count, as in `look_up`; others get no gradient.
    """
    shape = widths(density_weights), widths(color_weights), sh_degree
    grids = [t for e in map(_placed, encoded) for t in e[:3]]
    return _NgpHalf.apply(
        shape,
        [e.levels for e in encoded],
        known,
        _told(used, directions),
        directions.float().contiguous(),
        flat(density_weights),
        flat(color_weights),
        *grids,
    )
