"""Real spherical harmonics of view directions, with Instant-NGP's signs and order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerftrain.errors import UserError
from nerftrain.ops import library


def spherical_harmonics_reference(directions: Tensor, degree: int) -> Tensor:
    """Evaluate by torch (see `spherical_harmonics`)."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
    terms = [
        torch.full_like(x, 0.28209479177387814),
        -0.48860251190291987 * y,
        0.48860251190291987 * z,
        -0.48860251190291987 * x,
        1.0925484305920792 * xy,
        -1.0925484305920792 * yz,
        0.94617469575755997 * zz - 0.31539156525251999,
        -1.0925484305920792 * xz,
        0.54627421529603959 * (xx - yy),
        0.59004358992664352 * y * (yy - 3 * xx),
        2.8906114426405538 * xy * z,
        0.45704579946446572 * y * (1 - 5 * zz),
        0.3731763325901154 * z * (5 * zz - 3),
        0.45704579946446572 * x * (1 - 5 * zz),
        1.4453057213202769 * z * (xx - yy),
        0.59004358992664352 * x * (3 * yy - xx),
    ]
    return torch.stack(terms[: degree**2], -1)


@library.fake("spherical_harmonics_fwd")
def _spherical_harmonics_fwd_fake(directions: Tensor, degree: int) -> Tensor:
    return directions.new_empty(directions.shape[0], degree**2)


@library.fake("spherical_harmonics_bwd")
def _spherical_harmonics_bwd_fake(directions: Tensor, _v: Tensor, _degree: int) -> Tensor:
    return torch.empty_like(directions)


class _SphericalHarmonics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, directions: Tensor, degree: int) -> Tensor:
        ctx.save_for_backward(directions)
        ctx.degree = degree
        return torch.ops.nerftrain.spherical_harmonics_fwd(directions, degree)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_features: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (directions,) = ctx.saved_tensors
        v = torch.ops.nerftrain.spherical_harmonics_bwd(
            directions, v_features.contiguous(), ctx.degree
        )
        return (
            v,
            None,  # degree
        )


def spherical_harmonics(directions: Tensor, degree: int) -> Tensor:
    """Evaluate the first degree**2 harmonics of unit directions [N, 3]: [N, degree**2].

    The degree is 1 to 4. Raises UserError for any other degree.
    """
    if degree not in (1, 2, 3, 4):
        raise UserError(f"sh_degree={degree}: choose 1, 2, 3 or 4")
    if not library.native(directions):
        return spherical_harmonics_reference(directions, degree)
    return _SphericalHarmonics.apply(directions.contiguous(), degree)
