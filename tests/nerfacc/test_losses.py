"""The distortion loss, batched and flattened, against a loop over pairs of samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.nerfacc.losses import distortion


def by_pairs(weights: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    middle, total = (t_starts + t_ends) / 2, weights.new_zeros(1)
    for i in range(len(weights)):
        total = total + weights[i] ** 2 * (t_ends[i] - t_starts[i]) / 3
        for j in range(len(weights)):
            total = total + weights[i] * weights[j] * (middle[i] - middle[j]).abs()
    return total


def rays(counts: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(sum(counts), 2, generator=generator, dtype=torch.float64)
    ends = steps.sum(1).cumsum(0)
    indices = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts).long())
    weights = torch.rand(sum(counts), generator=generator, dtype=torch.float64)
    packed = (weights, ends - steps[:, 0], ends, indices)
    return tuple(t.to(device) for t in packed)


@pytest.mark.parametrize("counts", [[0, 3, 0, 5, 1, 0], [1], [0, 0]])
def test_flattened_distortion_is_the_sum_over_pairs(device, counts):
    weights, starts, ends, indices = rays(counts, device)
    weights.requires_grad_()
    pieces = zip(*(t.split(counts) for t in (weights, starts, ends)), strict=True)
    expected = torch.stack([by_pairs(*piece) for piece in pieces])
    out = distortion(weights, starts, ends, indices, len(counts))
    assert out.shape == (len(counts), 1)
    torch.testing.assert_close(out, expected)
    v = torch.arange(1.0, len(counts) + 1, device=device)[:, None].double()
    grads = [
        torch.autograd.grad(o, weights, v, allow_unused=True, materialize_grads=True)[0]
        for o in (out, expected + 0 * weights.sum())
    ]
    torch.testing.assert_close(*grads)


def test_batched_distortion_is_that_of_the_flattened_rays(device):
    weights, starts, ends, indices = rays([4, 4, 4], device)
    flat = distortion(weights, starts, ends, indices, 3)
    batched = distortion(*(t.reshape(3, 4) for t in (weights, starts, ends)))
    assert batched.shape == (3, 1)
    assert torch.equal(batched, flat)
    assert (flat > 0).all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_is_not_spread(device, shape):
    none = torch.zeros(shape, device=device)
    out = distortion(none, none, none)
    assert out.tolist() == [[0.0]] * shape[0]
    flat, indices = torch.zeros(0, device=device), torch.zeros(0, device=device).long()
    assert distortion(flat, flat, flat, indices, 2).tolist() == [[0.0], [0.0]]


def test_half_precision_weights_are_measured_in_single(device):
    weights, starts, ends, indices = rays([4, 2], device)
    expected = distortion(weights.half().double(), starts, ends, indices, 2)
    out = distortion(weights.half(), starts.float(), ends.float(), indices, 2)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-6)


def test_shapes_that_do_not_fit_are_refused(device):
    weights, starts, ends, indices = rays([2, 3], device)
    with pytest.raises(UserError, match="differ in shape"):
        distortion(weights, starts[:2], ends, indices, 2)
    with pytest.raises(UserError, match="give both"):
        distortion(weights, starts, ends, indices)
    with pytest.raises(UserError, match="ray_indices and n_rays"):
        distortion(weights, starts, ends)


@pytest.mark.parametrize("rays", [[-1, 0], [0, 2], [1, 0]])
def test_weights_of_no_rays_are_refused_on_the_cpu(rays):
    with pytest.raises(UserError, match="ray_indices"):
        distortion(*torch.ones(3, 2), torch.tensor(rays), 2)
