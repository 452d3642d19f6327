"""Contraction: against the reference, and as the fold of all space that equation 10 describes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.ops.contract import contract, contract_reference

NORMS = ["l2", "linf"]


@pytest.fixture
def positions(device, dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(200, 3, generator=generator) * 2
    special = [
        [0, 0, 0],
        [1, 0, 0],
        [0, -1, 0],
        [0.5, 0.5, 0],
        [0, 0, 3],
        [-2, 2, 2.5],
        [1e4, 1, 1],
    ]
    return torch.cat([random, torch.tensor(special)]).to(device, dtype)


def length(points: Tensor, norm: str) -> Tensor:
    return points.norm(dim=1) if norm == "l2" else points.abs().amax(1)


@pytest.mark.parametrize("norm", NORMS)
def test_contraction_equals_its_reference_forward_and_backward(positions, assert_close, norm):
    v = torch.randn(positions.shape, generator=torch.Generator().manual_seed(1)).to(positions)
    results = []
    for function in (contract, contract_reference):
        at = positions.clone().requires_grad_()
        out = function(at, norm)
        results.append((out, *torch.autograd.grad(out, at, v)))
    assert_close(*results)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_exact(device, norm):
    generator = torch.Generator().manual_seed(2)
    at = torch.randn(12, 3, generator=generator, dtype=torch.float64).to(device) * 2
    assert torch.autograd.gradcheck(lambda x: contract(x, norm), at.requires_grad_())


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_near_stays_and_what_is_far_ends_within_radius_two(positions, norm):
    out = contract(positions, norm)
    near = length(positions, norm) <= 1
    assert near.any()
    assert not near.all()
    assert torch.equal(out[near], positions[near])
    reach = length(out[~near], norm)
    assert (reach > 1).all()
    assert (reach < 2).all()
    torch.testing.assert_close(reach, 2 - 1 / length(positions[~near], norm))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1e20, 1e30, 3e38])
def test_points_at_any_distance_end_on_the_rim(device, norm, size):
    at = torch.tensor([[size, -size / 2, 0.0]], device=device).requires_grad_()
    out = contract(at, norm)
    torch.testing.assert_close(length(out, norm), torch.tensor([2.0], device=device))
    (v,) = torch.autograd.grad(out.sum(), at)
    assert v.isfinite().all()


def test_no_points_give_none(device):
    assert contract(torch.zeros(0, 3, device=device), "l2").shape == (0, 3)
