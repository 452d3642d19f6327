"""The distortion loss: against its pairwise reference, and the numbers that it must give."""

from __future__ import annotations

import pytest
import torch

from nerftrain.ops.composite import composite
from nerftrain.ops.distortion import distortion, distortion_reference


@pytest.fixture
def packed(make_samples, device, dtype):
    samples = make_samples(dtype=dtype)
    weights = torch.rand(len(samples), generator=torch.Generator().manual_seed(1)) * 0.2
    return weights.to(device, dtype), samples.t_starts, samples.t_ends, samples.offsets


def test_distortion_equals_its_reference_forward_and_backward(packed, assert_close):
    weights, *intervals = packed
    v = torch.rand(len(packed[3]) - 1, generator=torch.Generator().manual_seed(2)).to(weights)
    results = []
    for function in (distortion, distortion_reference):
        at = weights.clone().requires_grad_()
        out = function(at, *intervals)
        results.append((out, *torch.autograd.grad(out, at, v)))
    assert_close(*results)


def test_gradients_are_exact(make_samples, device):
    samples = make_samples(num_rays=6, longest=5, dtype=torch.float64)
    weights = torch.rand(len(samples), dtype=torch.float64, device=device).requires_grad_()
    intervals = samples.t_starts, samples.t_ends, samples.offsets
    assert torch.autograd.gradcheck(lambda w: distortion(w, *intervals), weights)


def test_a_single_interval_costs_a_third_of_its_length_and_two_their_distance(device):
    offsets = torch.tensor([0, 1, 3], device=device)
    starts = torch.tensor([1.0, 0.0, 4.0], device=device)
    ends = torch.tensor([1.6, 0.0, 4.0], device=device)
    weights = torch.tensor([1.0, 0.5, 0.5], device=device)
    expected = torch.tensor([0.2, 2 * 0.25 * 4.0], device=device)
    torch.testing.assert_close(distortion(weights, starts, ends, offsets), expected)


def test_it_is_what_compositing_finds_on_the_way(make_samples, device):
    samples = make_samples()
    density = torch.rand(len(samples), device=device) * 3
    out = composite(density, torch.zeros(len(samples), 3, device=device), samples)
    again = distortion(out.weights, samples.t_starts, samples.t_ends, samples.offsets)
    torch.testing.assert_close(again, out.distortion, rtol=1e-4, atol=1e-6)
