"""Colours over backgrounds and their error: against the references, forward and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nerftrain.ops.colors import (
    color_error,
    color_error_reference,
    over_background,
    over_background_reference,
)

DELTAS = [0.1, 1.0, math.inf]


def rays(device: torch.device, dtype: torch.dtype, num: int = 3000) -> tuple[Tensor, ...]:
    """Colours, opacities, backgrounds, targets, and which rays are whole."""
    generator = torch.Generator().manual_seed(0)
    colors, background, target = (
        torch.rand(num, 3, generator=generator, dtype=dtype).to(device) for _ in range(3)
    )
    opacity = torch.rand(num, generator=generator, dtype=dtype).to(device)
    whole = (torch.rand(num, generator=generator) < 0.7).to(device)
    return colors * opacity[:, None], opacity, background, 3 * target - 1, whole


@pytest.mark.parametrize("num", [0, 1, 3000])
def test_colors_over_a_background_equal_those_of_torch(device, dtype, assert_close, num):
    colors, opacity, background, v, _ = rays(device, dtype, num)
    results = []
    for function in (over_background, over_background_reference):
        leaves = colors.clone().requires_grad_(), opacity.clone().requires_grad_()
        out = function(*leaves, background)
        results.append((out, *torch.autograd.grad(out, leaves, v)))
    assert_close(*results)


def test_what_hides_nothing_and_all_does_so_to_the_last_bit(device, dtype):
    colors, opacity, background, *_ = rays(device, dtype)
    none = torch.zeros_like(colors), torch.zeros_like(opacity)
    assert torch.equal(over_background(*none, background), background)
    assert torch.equal(over_background(colors, torch.ones_like(opacity), background), colors)


def test_one_background_for_all_and_one_that_learns_are_served(device, assert_close):
    colors, opacity, background, *_ = rays(device, torch.float64, 6)
    one = background[0].clone().requires_grad_()
    inputs = colors.requires_grad_(), opacity.requires_grad_()
    assert torch.autograd.gradcheck(over_background, (*inputs, one))
    assert torch.autograd.gradcheck(over_background, (*inputs, background.requires_grad_()))
    assert_close(over_background(*inputs, one), over_background(*inputs, one.expand(6, 3)))
    mixed = over_background(colors.float(), opacity.float(), background)
    torch.testing.assert_close(mixed, over_background(*inputs, background), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("counted", ["all", "some", "none"])
@pytest.mark.parametrize("num", [0, 1, 3000])
def test_the_error_equals_that_of_torch(device, dtype, assert_close, delta, counted, num):
    prediction, _, _, target, some = rays(device, dtype, num)
    whole = {"all": None, "some": some, "none": torch.zeros_like(some)}[counted]
    results = []
    for function in (color_error, color_error_reference):
        leaf = prediction.clone().requires_grad_()
        loss = function(leaf, target, whole, delta)
        assert loss.shape == ()
        results.append((loss, *torch.autograd.grad(3 * loss, leaf)))
    assert_close(*results)
    if num == 0 or counted == "none":
        assert float(results[0][0].detach()) == 0


@pytest.mark.parametrize("delta", DELTAS)
def test_gradients_are_exact(device, delta):
    colors, opacity, background, target, whole = rays(device, torch.float64, 12)
    leaves = colors.requires_grad_(), opacity.requires_grad_()

    def loss(colors: Tensor, opacity: Tensor) -> Tensor:
        return color_error(over_background(colors, opacity, background), target, whole, delta)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradcheck(lambda x: color_error(x, target, None, delta), leaves[0])


def test_targets_may_ask_for_gradients(device):
    prediction, _, _, target, whole = rays(device, torch.float64, 12)
    both = prediction.requires_grad_(), target.requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: color_error(p, t, whole, 0.5), both)


def test_rays_that_do_not_count_are_not_looked_at(device, dtype):
    prediction, _, _, target, whole = rays(device, dtype)
    expected = color_error(prediction, target, whole, 1.0)
    prediction[~whole] = math.nan
    leaf = prediction.requires_grad_()
    loss = color_error(leaf, target, whole, 1.0)
    assert torch.equal(loss, expected)
    (v,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(v[~whole], torch.zeros_like(v[~whole]))


@pytest.mark.parametrize("delta", DELTAS)
def test_an_error_that_is_no_number_makes_the_loss_none(device, delta):
    prediction, _, _, target, _ = rays(device, torch.float32, 9)
    for wrong in (math.nan, math.inf):
        prediction[4, 1] = wrong
        assert not color_error(prediction, target, None, delta).isfinite()


def test_strided_colors_are_taken(device, dtype, assert_close):
    colors, opacity, background, target, whole = rays(device, dtype)
    wide = torch.cat([colors, background, target], 1)
    parts = wide[:, :3], torch.stack([opacity, opacity], 1)[:, 1], wide[:, 3:6]
    assert torch.equal(over_background(*parts), over_background(colors, opacity, background))
    twice = torch.stack([whole, whole], 1)[:, 0]
    actual = color_error(wide[:, :3], wide[:, 6:], twice, 1.0)
    assert torch.equal(actual, color_error(colors, target, whole, 1.0))


def test_the_number_of_threads_does_not_show(threads):
    colors, opacity, background, target, whole = rays(torch.device("cpu"), torch.float32, 30_000)
    results = []
    for number in (1, 2):
        threads(number)
        leaves = colors.clone().requires_grad_(), opacity.clone().requires_grad_()
        loss = color_error(over_background(*leaves, background), target, whole, 1.0)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
