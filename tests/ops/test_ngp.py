"""The fused MLPs of Instant-NGP: every instruction set against the unfused ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.ops.ngp import ngp, ngp_density, ngp_density_reference, ngp_reference, truncated_exp

# Features, width, colour layers, geometry features, channels, degree: the presets', and what fills
# no vector.
SHAPES = [(32, 64, 2, 15, 3, 4), (48, 64, 2, 15, 3, 4), (7, 5, 1, 2, 3, 1), (9, 17, 3, 4, 20, 3)]
# bfloat16 has eight bits: weights and activations are rounded to them, sums of products are not.
# Gradients, whose terms of either sign cancel, are compared with those of the same roundings.
TOLERANCE = {4: 2e-5, 8: 2e-5, 16: 2e-5, 32: 3e-2, 64: 3e-2}
OF_GRADIENTS = {4: 2e-5, 8: 2e-5, 16: 2e-5, 32: 2e-2, 64: 2e-2}


def inputs(shape: tuple[int, ...], num: int) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    num_features, width, layers, geometry, channels, degree = shape
    generator = torch.Generator().manual_seed(0)

    def network(*widths: int) -> list[Tensor]:
        pairs = zip(widths[1:], widths[:-1], strict=True)
        return [torch.randn(n, k, generator=generator) * (2 / k) ** 0.5 for n, k in pairs]

    features = torch.randn(num, num_features, generator=generator)
    rays = torch.randn(-(-num // 3), 3, generator=generator).repeat_interleave(3, 0)[:num]
    density = network(num_features, width, 1 + geometry)
    color = network(geometry + degree**2, *[width] * layers, channels)
    return features, torch.nn.functional.normalize(rays, dim=1), density, color


def gradients(shape: tuple[int, ...], num: int, lanes: int | None) -> list[Tensor]:
    """Outputs and all gradients, by the unfused ops in float64 where lanes is None."""
    number = torch.float64 if lanes is None else torch.float32
    features, directions, *networks = inputs(shape, num)
    features, directions = features.to(number).requires_grad_(), directions.to(number)
    networks = [[w.to(number).requires_grad_() for w in network] for network in networks]
    arguments = (features, directions, *networks, shape[-1])
    out = ngp_reference(*arguments) if lanes is None else ngp(*arguments, lanes)
    v = [torch.cos(torch.arange(o.numel())).view(o.shape).to(o) for o in out]
    leaves = [features, *networks[0], *networks[1]]
    return [*out, *torch.autograd.grad(out, leaves, v)]


def error(actual: Tensor, expected: Tensor) -> float:
    """The mean error relative to the mean magnitude."""
    scale = expected.abs().mean().clamp(min=1e-30)
    return float((actual.double() - expected).abs().mean() / scale) if actual.numel() else 0.0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num", [1, 95, 97, 3000])  # tiles have 96 samples
def test_the_fused_networks_equal_the_unfused_ones_forward_and_backward(
    lanes, rounded_networks, shape, num
):
    actual, expected = gradients(shape, num, lanes), gradients(shape, num, None)
    assert max(map(error, actual[:2], expected[:2])) < TOLERANCE[lanes]
    if lanes >= 32:
        with rounded_networks():
            expected = gradients(shape, num, None)
    assert max(map(error, actual[2:], expected[2:])) < OF_GRADIENTS[lanes]


@pytest.mark.parametrize("num", [0, 1, 97, 3000])
def test_densities_without_gradient_equal_the_reference(lanes, num):
    features, _, weights, _ = inputs(SHAPES[0], num)
    with torch.no_grad():
        actual = ngp_density(features, weights, lanes)
    expected = ngp_density_reference(features.double(), [w.double() for w in weights]).double()
    assert error(actual, expected) < TOLERANCE[lanes]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_same_bits_come_again(lanes, threads, num_threads):
    threads(num_threads)
    first, second = (gradients(SHAPES[0], 3000, lanes) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_what_is_not_a_number_stays_visible_and_where_it_is(lanes):
    features, directions, density, color = inputs(SHAPES[0], 300)
    features[7, 3] = float("nan")
    with torch.no_grad():
        channels, sigma = ngp(features, directions, density, color, 4, lanes)
    others = torch.arange(300) != 7
    assert channels[7].isnan().all()
    assert sigma[7].isnan()
    assert channels[others].isfinite().all()
    assert sigma[others].isfinite().all()


def test_huge_densities_stay_finite(lanes):
    features, weights = torch.full((4, 8), 1e4), [torch.ones(8, 8), torch.ones(2, 8)]
    with torch.no_grad():
        density = ngp_density(features, weights, lanes)
    torch.testing.assert_close(density, truncated_exp(torch.full((4,), 1e5)), rtol=1e-4, atol=0)


def test_directions_that_ask_for_a_gradient_get_one():
    features, directions, density, color = inputs(SHAPES[0], 50)
    directions.requires_grad_()
    channels, _ = ngp(features, directions, density, color, 4)
    (slope,) = torch.autograd.grad(channels.sum(), directions)
    assert slope.abs().sum() > 0


def test_on_every_device_the_function_is_the_same(device):
    features, directions, density, color = inputs(SHAPES[0], 500)
    networks = [[w.to(device) for w in network] for network in (density, color)]
    out = ngp(features.to(device), directions.to(device), *networks, 4)
    for a, e in zip(out, ngp_reference(features, directions, density, color, 4), strict=True):
        assert error(a.cpu(), e.double()) < TOLERANCE[32]
