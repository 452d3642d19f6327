"""Inverse transform sampling and the interlevel loss: references, gradients and properties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.ops.histogram import (
    interlevel_loss,
    interlevel_loss_reference,
    invert_cdf,
    invert_cdf_reference,
)

Histogram = tuple[Tensor, Tensor]


def histogram(num_rays: int, num_bins: int, seed: int) -> Histogram:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.rand(num_rays, num_bins + 1, generator=generator, dtype=torch.float64).sort()[0]
    edges[:, 0], edges[:, -1] = 0, 1
    weights = torch.rand(num_rays, num_bins, generator=generator, dtype=torch.float64) ** 4
    return edges, weights / weights.sum(-1, keepdim=True)


@pytest.fixture
def coarse(device, dtype) -> Histogram:
    edges, weights = histogram(40, 17, seed=0)
    weights[3] = 0  # nothing there
    weights[4, 2:9] = 0  # a gap
    weights[5] = 0
    weights[5, 7] = 1  # all in one bin
    return edges.to(device, dtype), weights.to(device, dtype)


@pytest.fixture
def fine(device, dtype) -> Histogram:
    edges, weights = histogram(40, 29, seed=1)
    edges[7, 4:8] = edges[7, 4:5]  # bins of no length
    return edges.to(device, dtype), weights.to(device, dtype)


@pytest.mark.parametrize("padding", [0.0, 0.01])
@pytest.mark.parametrize("num_intervals", [1, 5, 64])
def test_inverting_equals_its_reference(coarse, assert_close, num_intervals, padding):
    jitter = torch.rand(40, generator=torch.Generator().manual_seed(2)).to(coarse[0])
    jitter[0], jitter[1] = 0, 1
    arguments = (*coarse, jitter, num_intervals, padding)
    assert_close(invert_cdf(*arguments), invert_cdf_reference(*arguments))


def test_new_edges_ascend_within_the_old_ones(coarse, device):
    for share in (0.0, 0.5, 1.0):
        jitter = torch.full((40,), share).to(coarse[0])
        edges = invert_cdf(*coarse, jitter, 50)
        assert (edges.diff() >= 0).all()
        assert (edges >= 0).all()
        assert (edges <= 1).all()


def test_intervals_hold_equal_shares_of_the_mass(device):
    """All mass lies in [0.25, 0.5], evenly: so do the edges."""
    edges = torch.tensor([[0.0, 0.25, 0.5, 1.0]], device=device)
    weights = torch.tensor([[0.0, 3.0, 0.0]], device=device)
    new = invert_cdf(edges, weights, torch.tensor([0.5], device=device), 4)
    expected = 0.25 + 0.25 * (torch.arange(5, device=device) + 0.5) / 5
    torch.testing.assert_close(new[0], expected)


def test_a_histogram_without_mass_is_even_and_bad_weights_count_as_none(device):
    edges = torch.tensor([[0.0, 0.2, 0.4, 1.0]], device=device)
    half = torch.tensor([0.5], device=device)
    even = invert_cdf(edges, torch.ones(1, 3, device=device), half, 7)
    assert torch.equal(invert_cdf(edges, torch.zeros(1, 3, device=device), half, 7), even)
    bad = torch.tensor([[float("nan"), 1.0, -3.0]], device=device)
    clean = torch.tensor([[0.0, 1.0, 0.0]], device=device)
    assert torch.equal(invert_cdf(edges, bad, half, 7), invert_cdf(edges, clean, half, 7))


def test_the_loss_equals_its_reference_forward_and_backward(fine, coarse, assert_close):
    dtype = coarse[0].dtype
    v = torch.rand(40, generator=torch.Generator().manual_seed(3)).to(coarse[0])
    results = []
    # The reference in float64: in float32 its differences of cumulated weights lose small ones.
    for function, kind in ((interlevel_loss, dtype), (interlevel_loss_reference, torch.float64)):
        weights = (coarse[1] * 0.3).to(kind).requires_grad_()
        loss = function(*(t.to(kind) for t in (*fine, coarse[0])), weights)
        gradients = torch.autograd.grad(loss, weights, v.to(kind))
        results.append([t.to(dtype) for t in (loss, *gradients)])
    assert results[0][0].gt(0).any()
    assert_close(*results)


def test_the_losss_gradient_is_exact(device):
    fine, coarse = histogram(4, 9, seed=4), histogram(4, 6, seed=5)
    edges, weights = (t.to(device) for t in fine)
    coarse_edges, coarse_weights = (t.to(device) for t in coarse)
    assert torch.autograd.gradcheck(
        lambda w: interlevel_loss(edges, weights, coarse_edges, w),
        (coarse_weights * 0.2).requires_grad_(),
    )


def test_a_coarse_histogram_that_bounds_the_fine_one_costs_nothing(fine):
    """Weights summed over coarser bins bound the fine ones exactly: every share is in its bin."""
    edges, weights = fine
    summed = weights[:, :28].view(40, 7, 4).sum(-1)
    coarse_edges = torch.cat([edges[:, :28:4], edges[:, 28:29]], 1)
    loss = interlevel_loss(edges[:, :29], weights[:, :28], coarse_edges, summed * 1.001)
    assert (loss == 0).all()
    assert (interlevel_loss(edges[:, :29], weights[:, :28], coarse_edges, summed * 0.5) > 0).all()


def test_no_rays_give_no_rows(device):
    edges, weights = torch.zeros(0, 4, device=device), torch.zeros(0, 3, device=device)
    assert invert_cdf(edges, weights, torch.zeros(0, device=device), 5).shape == (0, 6)
    assert interlevel_loss(edges, weights, edges, weights).shape == (0,)


def test_edges_that_are_not_numbers_end_all_the_same(device):
    edges = torch.full((1, 5), float("nan"), device=device)
    weights = torch.ones(1, 4, device=device)
    invert_cdf(edges, weights, torch.zeros(1, device=device), 3)
    interlevel_loss(edges, weights, edges, weights)


def test_without_coarse_bins_nothing_bounds_the_fine_ones(fine, assert_close):
    edges, weights = fine
    nothing = edges[:, :1].contiguous(), weights[:, :0].contiguous()
    assert_close(interlevel_loss(*fine, *nothing), interlevel_loss_reference(*fine, *nothing))
