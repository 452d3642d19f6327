"""How the distance along a ray is spread over 0..1: a curve g, linear in the share s.

s = (g(t) - g(near)) / (g(far) - g(near)). Uniform: g(t) = t. Disparity: g(t) = -1 / t, as far
things look small (mip-NeRF 360, arXiv:2111.12077, eq. 11). Power: even nearby, ever sparser far
away (Zip-NeRF, arXiv:2304.06706, supplement, with lambda = -1.5).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["uniform", "disparity", "power"]

_LAMBDA = -1.5  # of the power curve
_SCALE = abs(_LAMBDA - 1)


def _curve(kind: Kind, t: Tensor) -> Tensor:
    if kind == "uniform":
        return t
    if kind == "disparity":
        return -1 / t
    return _SCALE / _LAMBDA * ((t / _SCALE + 1) ** _LAMBDA - 1)


def _inverse(kind: Kind, y: Tensor) -> Tensor:
    if kind == "uniform":
        return y
    return _SCALE * ((y * _LAMBDA / _SCALE + 1) ** (1 / _LAMBDA) - 1)


def to_distance(kind: Kind, shares: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Turn shares [R, K] in 0..1 into distances between near [R] and far [R]: [R, K].

    Disparity needs near > 0; its far may be infinite.
    """
    if kind == "disparity":  # by means of positive numbers: far may be infinite
        distances = 1 / torch.lerp(1 / near[:, None], 1 / far[:, None], shares)
    else:
        first, last = _curve(kind, near)[:, None], _curve(kind, far)[:, None]
        distances = _inverse(kind, first + shares * (last - first))
    # Rounding must not lead beyond the ends.
    return distances.clamp(near[:, None], far[:, None])


def to_share(kind: Kind, distances: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Turn distances into shares of the way from near to far; all of one shape."""
    first, last = _curve(kind, near), _curve(kind, far)
    return (_curve(kind, distances) - first) / (last - first)
