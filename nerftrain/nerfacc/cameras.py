"""Lenses that bend, by OpenCV's two models, and their inverses.

Notation: (u, v) is where an ideal pinhole at distance 1 from its image plane sees a point,
(u', v') where the lens shows it. With r^2 = u^2 + v^2 (docs.opencv.org, calib3d):

    u' = u a / b + 2 p1 u v + p2 (r^2 + 2 u^2)    a = 1 + k1 r^2 + k2 r^4 + k3 r^6
    v' = v a / b + 2 p2 u v + p1 (r^2 + 2 v^2)    b = 1 + k4 r^2 + k5 r^4 + k6 r^6

and for fisheyes, with theta = atan r:

    (u', v') = (u, v) theta' / r,  theta' = theta (1 + k1 theta^2 + ... + k4 theta^8)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from nerftrain.errors import UserError

COUNTS = (0, 1, 2, 4, 5, 8)  # of k1, k2, p1, p2, k3, k4, k5, k6: so many of them, from the first


def opencv_lens_distortion(uv: Tensor, params: Tensor) -> Tensor:
    """Bend ideal image points [..., 2] by params [..., n] k1 k2 p1 p2 k3 k4 k5 k6.

    n is 0, 1, 2, 4, 5 or 8; what is not given is zero. Differentiable.
    """
    params = _checked(uv, params, COUNTS)
    u, v = uv.unbind(-1)
    bent_u, bent_v, _ = _bend(u, v, functional.pad(params, (0, 8 - params.shape[-1])))
    return torch.stack([bent_u, bent_v], -1)


@torch.no_grad()
def opencv_lens_undistortion(
    uv: Tensor, params: Tensor, eps: float = 1e-6, iters: int = 10
) -> Tensor:
    """Find the ideal image points of bent ones [..., 2] by Newton's method; no gradients.

    Args:
        uv: [..., 2].
        params: [..., n] or [n], see `opencv_lens_distortion`.
        eps: points stop where the Jacobian's determinant, or both parts of a step, are below it.
        iters: how many steps are made at most.
    """
    params = _checked(uv, params, COUNTS)
    if params.shape[-1] == 0:
        return uv
    params = functional.pad(params, (0, 8 - params.shape[-1]))
    bent_u, bent_v = uv.unbind(-1)
    u, v = bent_u, bent_v
    moving = torch.ones_like(u, dtype=torch.bool)
    for _ in range(iters):
        at_u, at_v, (a, b, d) = _bend(u, v, params)
        error_u, error_v = at_u - bent_u, at_v - bent_v
        determinant = a * d - b * b
        moving = moving & (determinant.abs() >= eps)
        inverse = torch.where(moving, 1 / determinant, 0.0)
        step_u = torch.where(moving, (d * error_u - b * error_v) * inverse, 0.0)
        step_v = torch.where(moving, (a * error_v - b * error_u) * inverse, 0.0)
        u, v = u - step_u, v - step_v
        moving = moving & ((step_u.abs() >= eps) | (step_v.abs() >= eps))
    return torch.stack([u, v], -1)


def opencv_lens_distortion_fisheye(uv: Tensor, params: Tensor, eps: float = 1e-10) -> Tensor:
    """Bend ideal image points [..., 2] as a fisheye of params [..., 4] k1 k2 k3 k4 does.

    Differentiable. Below eps a radius counts as eps, where the lens does nothing.
    """
    params = _checked(uv, params, (4,))
    # Before the root, whose slope at zero is infinite.
    r = uv.square().sum(-1).clamp(min=eps**2).sqrt()
    bent, _ = _bend_angle(torch.atan(r), params)
    return uv * (bent / r)[..., None]


@torch.no_grad()
def opencv_lens_undistortion_fisheye(
    uv: Tensor, params: Tensor, eps: float = 1e-6, iters: int = 10
) -> Tensor:
    """Find the ideal image points of a fisheye's [..., 2] by Newton's method; no gradients.

    Bent angles beyond a right one count as right ones. Points that no angle in front of the camera
    explains, or for which `iters` steps do not suffice, are NaN.

    Args:
        uv: [..., 2].
        params: [..., 4] or [4], k1 k2 k3 k4.
        eps: the step below which an angle is found; bent angles below it stay as they are.
        iters: how many steps are made at most.
    """
    params = _checked(uv, params, (4,)).double()
    bent = uv.double().square().sum(-1).sqrt().clamp(max=math.pi / 2)
    theta = bent
    found = bent <= eps
    for _ in range(iters):
        at, slope = _bend_angle(theta, params)
        step = torch.where(found, 0.0, (at - bent) / slope)
        theta = theta - step
        found = found | (step.abs() < eps)
    scale = torch.where(bent > eps, torch.tan(theta) / bent, 1.0)
    in_front = (theta >= 0) & (theta <= math.pi / 2)
    scale = torch.where(found & in_front, scale, math.nan)
    return (uv * scale[..., None]).to(uv.dtype)


def _checked(uv: Tensor, params: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Check shapes and devices; give the coefficients the points' type."""
    if uv.shape[-1] != 2 or params.shape[-1] not in counts:
        raise UserError(
            f"uv has the shape {list(uv.shape)} and params {list(params.shape)}: give [..., 2] and "
            f"one of {', '.join(map(str, counts))} coefficients"
        )
    if uv.device != params.device:
        raise UserError(
            f"uv lies on {uv.device} and params on {params.device}: move them with .to()"
        )
    return params.to(uv.dtype)


def _bend(
    u: Tensor, v: Tensor, params: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return u', v' and their derivatives (du'/du, du'/dv = dv'/du, dv'/dv)."""
    k1, k2, p1, p2, k3, k4, k5, k6 = params.unbind(-1)
    uu, uv, vv = u * u, u * v, v * v
    rr = uu + vv
    above = 1 + rr * (k1 + rr * (k2 + rr * k3))
    below = 1 + rr * (k4 + rr * (k5 + rr * k6))
    radial = above / below
    above_slope = k1 + rr * (2 * k2 + rr * 3 * k3)
    below_slope = k4 + rr * (2 * k5 + rr * 3 * k6)
    slope = 2 * (above_slope - radial * below_slope) / below  # d radial / du is slope u
    derivatives = (
        radial + slope * uu + 2 * p1 * v + 6 * p2 * u,
        slope * uv + 2 * (p1 * u + p2 * v),
        radial + slope * vv + 2 * p2 * u + 6 * p1 * v,
    )
    bent_u = u * radial + 2 * p1 * uv + p2 * (rr + 2 * uu)
    bent_v = v * radial + 2 * p2 * uv + p1 * (rr + 2 * vv)
    return bent_u, bent_v, derivatives


def _bend_angle(theta: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Return a fisheye's theta' and its derivative."""
    k1, k2, k3, k4 = params.unbind(-1)
    tt = theta * theta
    bent = theta * (1 + tt * (k1 + tt * (k2 + tt * (k3 + tt * k4))))
    slope = 1 + tt * (3 * k1 + tt * (5 * k2 + tt * (7 * k3 + tt * 9 * k4)))
    return bent, slope
