"""The terms of the loss: what torch's own functions say, of the rays that count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from nerftrain.losses import LEAST_WEIGHT, ColorLoss, Kind, depth_loss
from nerftrain.types import Samples


@pytest.mark.parametrize("kind", ["huber", "l2"])
@pytest.mark.parametrize("some", [False, True])
def test_colors_are_compared_as_torch_does(kind: Kind, some: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (3 * torch.rand(200, 3, generator=generator) for _ in range(2))
    whole = torch.rand(200, generator=generator) < 0.5 if some else None
    rows = slice(None) if whole is None else whole
    if kind == "huber":
        expected = functional.huber_loss(prediction[rows], target[rows], delta=0.3)
    else:
        expected = 0.5 * functional.mse_loss(prediction[rows], target[rows])
    torch.testing.assert_close(ColorLoss(kind, 0.3)(prediction, target, whole), expected)


def test_the_two_are_one_up_to_an_error_of_delta() -> None:
    target = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    prediction = (target + 0.2).requires_grad_()
    pair = ColorLoss("huber", 0.3)(prediction, target), ColorLoss("l2")(prediction, target)
    assert torch.equal(*pair)
    assert torch.equal(*(torch.autograd.grad(loss, prediction)[0] for loss in pair))


# Known depths


def along(starts: list[float], ends: list[float], counts: list[int]) -> Samples:
    offsets = torch.tensor([0, *counts]).cumsum(0)
    rays = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Samples(torch.tensor(starts), torch.tensor(ends), rays, offsets)


def test_the_depth_loss_is_the_integral_of_the_papers() -> None:
    edges = torch.tensor([1.0, 1.7, 1.9, 2.05, 2.4, 4.0])
    samples = along(edges[:-1].tolist(), edges[1:].tolist(), [5])
    weights = torch.tensor([0.05, 0.2, 0.4, 0.1, 0.15])
    depth, spread = 2.0, 0.08
    # By hand: log h(t) under a normal distribution around the depth, in 100,000 steps.
    t = torch.linspace(1.0, 4.0, 100_001, dtype=torch.float64)[:-1] + 1.5e-5
    log_h = (weights.double() + LEAST_WEIGHT).log()[torch.searchsorted(edges.double(), t) - 1]
    sigma = spread * depth
    density = torch.exp(-((t - depth) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    expected = -(log_h * density).sum() * 3e-5
    found = depth_loss(weights, samples, torch.tensor([depth]), spread)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_only_rays_of_known_depth_count() -> None:
    starts, ends = [0.5, 1.0, 1.5, 0.5, 1.0], [1.0, 1.5, 2.0, 1.0, 1.5]
    weights = torch.tensor([0.1, 0.6, 0.1, 0.3, 0.2], requires_grad=True)
    alone = depth_loss(weights[:3], along(starts[:3], ends[:3], [3]), torch.tensor([1.2]), 0.1)
    both = along(starts, ends, [3, 2])
    loss = depth_loss(weights, both, torch.tensor([1.2, 0.0]), 0.1)
    torch.testing.assert_close(loss, alone)
    (gradient,) = torch.autograd.grad(loss, weights)
    assert (gradient[:3] < 0).all()
    assert torch.equal(gradient[3:], torch.zeros(2))
    left_out = replace(both, whole=torch.tensor([False, True]))
    assert depth_loss(weights, left_out, torch.tensor([1.2, 0.0]), 0.1).item() == 0.0
    none = depth_loss(weights, both, torch.zeros(2), 0.1)
    assert torch.equal(torch.autograd.grad(none, weights)[0], torch.zeros(5))


def test_rows_that_are_nobodys_add_nothing() -> None:
    samples = along([0.5, 1.0, 0.0, 0.0], [1.0, 1.5, 0.0, 0.0], [4])
    weights = torch.tensor([0.1, 0.6, 0.0, 0.0])
    expected = depth_loss(weights[:2], along([0.5, 1.0], [1.0, 1.5], [2]), torch.tensor([1.2]), 0.1)
    torch.testing.assert_close(
        depth_loss(weights, samples, torch.tensor([1.2]), 0.1), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize("spread", [0.01, 0.1])
def test_light_comes_to_lie_at_the_known_depth(spread: float) -> None:
    edges = torch.linspace(1.0, 3.0, 41)
    samples = along(edges[:-1].tolist(), edges[1:].tolist(), [40])
    logits = torch.zeros(40, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(1000):
        weights = logits.softmax(0)
        optimizer.zero_grad()
        depth_loss(weights, samples, torch.tensor([2.13]), spread).backward()
        optimizer.step()
    middle = (edges[:-1] + edges[1:]) / 2
    weights = logits.softmax(0).detach()
    mean = (weights * middle).sum()
    assert abs(mean - 2.13) < 0.01
    # The paper's optimum is that distribution itself; an interval's width is 0.05.
    deviation = ((weights * (middle - mean) ** 2).sum()).sqrt()
    assert abs(deviation - spread * 2.13) < 0.02
