"""Lenses of OpenCV's two models: against the formulas in plain numbers, and there and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.nerfacc.cameras import (
    opencv_lens_distortion,
    opencv_lens_distortion_fisheye,
    opencv_lens_undistortion,
    opencv_lens_undistortion_fisheye,
)

LENS = [0.1, -0.03, 0.004, -0.006, 0.01, 0.02, -0.01, 0.003]  # k1 k2 p1 p2 k3 k4 k5 k6
FISHEYE = [0.05, -0.01, 0.004, -0.001]


def bent(u: float, v: float, lens: list[float]) -> tuple[float, float]:
    k1, k2, p1, p2, k3, k4, k5, k6 = lens + [0.0] * (8 - len(lens))
    r = math.hypot(u, v)
    share = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
    return (
        u * share + 2 * p1 * u * v + p2 * (r**2 + 2 * u**2),
        v * share + 2 * p2 * u * v + p1 * (r**2 + 2 * v**2),
    )


def bent_by_fisheye(u: float, v: float, k: list[float]) -> tuple[float, float]:
    r = math.hypot(u, v)
    theta = math.atan(r)
    angle = theta * (1 + sum(k[i] * theta ** (2 * i + 2) for i in range(4)))
    return (u * angle / r, v * angle / r) if r else (0.0, 0.0)


def points(device: torch.device, reach: float = 0.8) -> Tensor:
    side = torch.linspace(-reach, reach, 9, dtype=torch.float64, device=device)
    return torch.cartesian_prod(side, side).reshape(9, 9, 2)  # the centre is one of them


@pytest.mark.parametrize("number", [0, 1, 2, 4, 5, 8])
def test_lenses_bend_as_the_formula_says_and_back(device, number):
    uv, lens = points(device), torch.tensor(LENS[:number], dtype=torch.float64, device=device)
    there = opencv_lens_distortion(uv, lens)
    expected = [bent(u, v, LENS[:number]) for u, v in uv.reshape(-1, 2).tolist()]
    torch.testing.assert_close(
        there, torch.tensor(expected).to(there).reshape(9, 9, 2), rtol=1e-6, atol=1e-6
    )
    back = opencv_lens_undistortion(there, lens)
    torch.testing.assert_close(back, uv, rtol=0, atol=1e-9)


def test_fisheyes_bend_as_the_formula_says_and_back(device):
    uv, lens = points(device, 3.0), torch.tensor(FISHEYE, dtype=torch.float64, device=device)
    there = opencv_lens_distortion_fisheye(uv, lens)
    expected = [bent_by_fisheye(u, v, FISHEYE) for u, v in uv.reshape(-1, 2).tolist()]
    torch.testing.assert_close(
        there, torch.tensor(expected).to(there).reshape(9, 9, 2), rtol=1e-6, atol=1e-6
    )
    back = opencv_lens_undistortion_fisheye(there, lens)
    torch.testing.assert_close(back, uv, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    k=st.lists(st.floats(-0.05, 0.05), min_size=8, max_size=8),
    u=st.floats(-0.6, 0.6),
    v=st.floats(-0.6, 0.6),
)
def test_weak_lenses_always_invert(device, k, u, v):
    uv = torch.tensor([u, v], dtype=torch.float64, device=device)
    lens = torch.tensor(k, dtype=torch.float64, device=device)
    back = opencv_lens_undistortion(opencv_lens_distortion(uv, lens), lens)
    torch.testing.assert_close(back, uv, rtol=0, atol=1e-6)
    back = opencv_lens_undistortion_fisheye(opencv_lens_distortion_fisheye(uv, lens[:4]), lens[:4])
    torch.testing.assert_close(back, uv, rtol=0, atol=1e-6)


def test_every_point_may_have_its_own_lens(device):
    generator = torch.Generator().manual_seed(0)
    uv = torch.rand(5, 2, generator=generator).to(device)
    lenses = (torch.rand(5, 4, generator=generator) * 0.05).to(device)
    for function in (
        opencv_lens_distortion,
        opencv_lens_undistortion,
        opencv_lens_distortion_fisheye,
        opencv_lens_undistortion_fisheye,
    ):
        together = function(uv, lenses)
        alone = torch.stack([function(p, lens) for p, lens in zip(uv, lenses, strict=True)])
        assert together.dtype == torch.float32
        torch.testing.assert_close(together, alone)
        assert not torch.equal(together[0], function(uv[0], lenses[1]))


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_bending_has_exact_gradients(device, number):
    uv = points(device)[::4, ::4].contiguous().requires_grad_()
    lens = torch.tensor(LENS[:number], dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(opencv_lens_distortion, (uv, lens))


def test_a_fisheye_has_exact_gradients_and_one_at_the_centre(device):
    uv = points(device)[1::2, 1::2].contiguous()
    lens = torch.tensor(FISHEYE, dtype=torch.float64, device=device, requires_grad=True)
    off_centre = uv[uv.square().sum(-1) > 0].requires_grad_()
    assert torch.autograd.gradcheck(opencv_lens_distortion_fisheye, (off_centre, lens))
    centre = torch.zeros(2, device=device, requires_grad=True)
    out = opencv_lens_distortion_fisheye(centre, lens.detach())
    assert torch.autograd.grad(out[0], centre)[0].tolist() == [1.0, 0.0]


def test_unbending_has_no_gradient(device):
    uv = torch.zeros(3, 2, device=device, requires_grad=True)
    lens = torch.tensor(FISHEYE, device=device)
    assert not opencv_lens_undistortion(uv, lens).requires_grad
    assert not opencv_lens_undistortion_fisheye(uv, lens).requires_grad


def test_iterations_and_eps_bound_the_work(device):
    uv, lens = points(device), torch.tensor(LENS, dtype=torch.float64, device=device)
    assert torch.equal(opencv_lens_undistortion(uv, lens, iters=0), uv)
    errors = [
        (opencv_lens_distortion(opencv_lens_undistortion(uv, lens, **how), lens) - uv).abs().max()
        for how in ({"iters": 1}, {"iters": 2}, {"iters": 3}, {"eps": 0.05})
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] > errors[2]
    # Newton's steps double the digits: with another Jacobian they would not.
    assert errors[2] < 1e-12
    # No step is made where the map is as good as folded.
    assert torch.equal(opencv_lens_undistortion(uv, lens, eps=100.0), uv)


def test_points_that_no_angle_explains_are_not_made_up(device):
    # theta (1 - theta^2) is never above 0.385: the lens shows nothing beyond.
    lens = torch.tensor([-1.0, 0, 0, 0], device=device)
    uv = torch.tensor([[0.1, 0.0], [0.5, 0.3], [0.0, 0.0]], device=device)
    out = opencv_lens_undistortion_fisheye(uv, lens, iters=200)  # to the root behind the camera
    assert out.isfinite().all(-1).tolist() == [True, False, True]
    assert out[2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(opencv_lens_distortion_fisheye(out[0], lens), uv[0])


def test_other_numbers_of_coefficients_are_refused(device):
    uv = torch.zeros(3, 2, device=device)
    for function in (opencv_lens_distortion, opencv_lens_undistortion):
        with pytest.raises(UserError, match="0, 1, 2, 4, 5, 8 coefficients"):
            function(uv, torch.zeros(3, device=device))
    for function in (opencv_lens_distortion_fisheye, opencv_lens_undistortion_fisheye):
        with pytest.raises(UserError, match="4 coefficients"):
            function(uv, torch.zeros(8, device=device))
    with pytest.raises(UserError, match=r"give \[\.\.\., 2\]"):
        opencv_lens_distortion(uv[:, :1], torch.zeros(4, device=device))
    with pytest.raises(UserError, match="move them"):
        opencv_lens_distortion(uv, torch.zeros(4, device="meta"))
