"""Running sums and products within chunks of a flattened tensor, and sums over rays' samples.

A chunk c owns the elements starts[c] : starts[c] + counts[c]. Chunks may leave gaps, be empty and
come in any order, but must not overlap; elements that no chunk owns give zero.

    inclusive sum_{j<=i} x_j, prod_{j<=i} x_j;  exclusive sum_{j<i} x_j, prod_{j<i} x_j
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nerftrain.checks import check_ray_range
from nerftrain.errors import UserError
from nerftrain.ops import library


def scan_sum_reference(
    values: Tensor, starts: Tensor, counts: Tensor, inclusive: bool = True, reverse: bool = False
) -> Tensor:
    """Sum by torch, chunk after chunk (see `scan_sum`)."""
    out = _zeros_of(values)
    for chunk in _chunks(values, starts, counts):
        x = values[chunk].flip(0) if reverse else values[chunk]
        sums = (x if inclusive else functional.pad(x, (1, 0))[:-1]).cumsum(0)
        out = out.index_put((chunk,), sums.flip(0) if reverse else sums)
    return out


def scan_prod_reference(
    values: Tensor, starts: Tensor, counts: Tensor, inclusive: bool = True
) -> Tensor:
    """Multiply by torch, chunk after chunk (see `scan_prod`)."""
    out = _zeros_of(values)
    for chunk in _chunks(values, starts, counts):
        x = values[chunk] if inclusive else functional.pad(values[chunk], (1, 0), value=1.0)[:-1]
        out = out.index_put((chunk,), x.cumprod(0))
    return out


def sum_along_rays_reference(values: Tensor, ray_indices: Tensor, num_rays: int) -> Tensor:
    """Sum by torch (see `sum_along_rays`)."""
    return values.new_zeros(num_rays, values.shape[1]).index_add(0, ray_indices, values)


def ray_offsets_reference(ray_indices: Tensor, num_rays: int) -> Tensor:
    """Find rays by bisection (see `ray_offsets`)."""
    rays = torch.arange(num_rays + 1, device=ray_indices.device, dtype=ray_indices.dtype)
    return torch.searchsorted(ray_indices.contiguous(), rays)


def _zeros_of(values: Tensor) -> Tensor:
    """Make zeros that torch knows to come from the values, whatever those are."""
    return values.masked_fill(torch.ones_like(values, dtype=torch.bool), 0)


def _chunks(values: Tensor, starts: Tensor, counts: Tensor) -> Iterator[Tensor]:
    """List the places that each chunk owns."""
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        first = max(start, 0)
        last = first + min(count, values.shape[0] - first)
        yield torch.arange(first, max(first, last), device=values.device)


@library.fake("scan_sum")
def _scan_sum_fake(values: Tensor, *_: object) -> Tensor:
    return torch.empty_like(values)


@library.fake("scan_prod_fwd")
def _scan_prod_fwd_fake(values: Tensor, *_: object) -> Tensor:
    return torch.empty_like(values)


@library.fake("scan_prod_bwd")
def _scan_prod_bwd_fake(values: Tensor, *_: object) -> Tensor:
    return torch.empty_like(values)


@library.fake("ray_offsets")
def _ray_offsets_fake(ray_indices: Tensor, num_rays: int) -> Tensor:
    return ray_indices.new_empty(num_rays + 1)


@library.fake("ray_sums")
def _ray_sums_fake(values: Tensor, _i: Tensor, _o: Tensor, num_rays: int) -> Tensor:
    return values.new_empty(num_rays, values.shape[1])


class _ScanSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, starts: Tensor, counts: Tensor, inclusive: bool, reverse: bool
    ) -> Tensor:
        ctx.save_for_backward(starts, counts)
        ctx.direction = (inclusive, not reverse)
        return torch.ops.nerftrain.scan_sum(values, starts, counts, inclusive, reverse)

    @staticmethod
    def backward(ctx: Any, v_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # The same sum from the other end, itself differentiable.
        v_values = _ScanSum.apply(v_out.contiguous(), *ctx.saved_tensors, *ctx.direction)
        return (
            v_values,
            None,  # starts
            None,  # counts
            None,  # inclusive
            None,  # reverse
        )


class _ScanProd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, starts: Tensor, counts: Tensor, inclusive: bool
    ) -> Tensor:
        ctx.save_for_backward(values, starts, counts)
        ctx.inclusive = inclusive
        return torch.ops.nerftrain.scan_prod_fwd(values, starts, counts, inclusive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v_values = torch.ops.nerftrain.scan_prod_bwd(
            *ctx.saved_tensors, v_out.contiguous(), ctx.inclusive
        )
        return (
            v_values,
            None,  # starts
            None,  # counts
            None,  # inclusive
        )


class _SumAlongRays(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, ray_indices: Tensor, in_order: Tensor, num_rays: int
    ) -> Tensor:
        ctx.save_for_backward(ray_indices)
        return torch.ops.nerftrain.ray_sums(values, ray_indices, in_order, num_rays)

    @staticmethod
    def backward(ctx: Any, v_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (ray_indices,) = ctx.saved_tensors
        return (
            v_out.index_select(0, ray_indices),
            None,  # ray_indices
            None,  # in_order
            None,  # num_rays
        )


def scan_sum(
    values: Tensor, starts: Tensor, counts: Tensor, inclusive: bool = True, reverse: bool = False
) -> Tensor:
    """Sum values [N] up to each element within its chunk, chunks given by [R] and [R]: [N].

    Differentiable any number of times. Float32 and float64; other numbers become float32.

    Args:
        values: [N].
        starts: [R], where chunks begin.
        counts: [R], how many elements they own; what reaches beyond the tensor is cut.
        inclusive: whether an element counts to its own sum.
        reverse: from the back instead of the front.
    """
    values, starts, counts = _checked(values, starts, counts)
    if not library.native(values, starts, counts):
        return scan_sum_reference(values, starts, counts, inclusive, reverse)
    return _ScanSum.apply(values, starts, counts, inclusive, reverse)


def scan_prod(values: Tensor, starts: Tensor, counts: Tensor, inclusive: bool = True) -> Tensor:
    """Multiply values [N] up to each element within its chunk (see `scan_sum`): [N].

    The gradient is exact where values are zero, too.
    """
    values, starts, counts = _checked(values, starts, counts)
    if not library.native(values, starts, counts):
        return scan_prod_reference(values, starts, counts, inclusive)
    return _ScanProd.apply(values, starts, counts, inclusive)


def _checked(values: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if values.dim() != 1 or starts.dim() != 1 or starts.shape != counts.shape:
        shapes = [list(t.shape) for t in (values, starts, counts)]
        raise UserError(
            f"scans take values [N], starts [R] and counts [R], not {shapes}: flatten the values"
        )
    return _real(values), starts.long(), counts.long()


@torch.no_grad()
def ray_offsets(ray_indices: Tensor, num_rays: int) -> Tensor:
    """Find where each ray's samples begin among flattened ones, and their number: [R + 1] int64.

    Args:
        ray_indices: [N], non-decreasing.
        num_rays: R.
    """
    if library.on_cpu(ray_indices) and library.native(ray_indices):
        return torch.ops.nerftrain.ray_offsets(ray_indices.long().contiguous(), num_rays)
    return ray_offsets_reference(ray_indices, num_rays)


def sum_along_rays(values: Tensor, ray_indices: Tensor, num_rays: int) -> Tensor:
    """Sum values [N, K] over the samples of each ray: [R, K], the same bits every time.

    Samples in the order of their rays are the fast case; any order gives the right sums. Nothing
    waits for a GPU. Differentiable any number of times. Float32 and float64; other numbers become
    float32.

    Args:
        values: [N, K].
        ray_indices: [N] in 0..num_rays - 1.
        num_rays: R.

    Raises:
        UserError: a ray index is not below num_rays (seen on the CPU only).
    """
    values, ray_indices = _real(values), ray_indices.long().contiguous()
    compiled = library.native(values, ray_indices)
    in_order = (ray_indices[1:] >= ray_indices[:-1]).all()
    if library.on_cpu(values) and len(ray_indices):  # where a look does not make anyone wait
        if not in_order:
            ray_indices, order = ray_indices.sort(stable=True)
            values, in_order = values[order], torch.ones_like(in_order)
        check_ray_range(ray_indices, num_rays)
    if not compiled:
        return sum_along_rays_reference(values, ray_indices, num_rays)
    return _SumAlongRays.apply(values, ray_indices, in_order, num_rays)


def _real(values: Tensor) -> Tensor:
    kept = values.dtype in (torch.float32, torch.float64)
    return (values if kept else values.float()).contiguous()
