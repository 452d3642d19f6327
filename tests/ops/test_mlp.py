"""The small MLP: every instruction set against torch, at the edges of its tiles and vectors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops.mlp import BEST, mlp, mlp_reference

# Inputs, hidden layers, outputs: the presets', widths that fill no vector, one layer, eight.
SHAPES = [
    (32, 64, 16),
    (31, 64, 64, 3),
    (3, 7, 5, 1),
    (5, 3),
    (1, 1),
    (9, 8, 17, 16, 15, 4, 33, 2, 6),
]


@pytest.fixture(params=[BEST, 4, 8, 16], ids=["best", "portable", "8-lanes", "16-lanes"])
def lanes(request: pytest.FixtureRequest) -> int:
    """Every instruction set that this CPU has."""
    try:
        mlp(torch.zeros(1, 1), [torch.zeros(1, 1)], request.param)
    except RuntimeError as error:
        pytest.skip(f"{request.param} lanes: {str(error).splitlines()[0]}")
    return request.param


def random_inputs(shape: tuple[int, ...], num: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(n, k, generator=generator) * (2 / k) ** 0.5
        for k, n in itertools.pairwise(shape)
    ]
    return torch.randn(num, shape[0], generator=generator), weights


def gradients(x: Tensor, weights: list[Tensor], lanes: int | None) -> list[Tensor]:
    """Output and gradients, by torch where lanes is None."""
    inputs = [t.clone().requires_grad_() for t in (x, *weights)]
    y = mlp_reference(inputs[0], inputs[1:]) if lanes is None else mlp(inputs[0], inputs[1:], lanes)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(y.shape, generator=generator).to(y)
    return [y, *torch.autograd.grad(y, inputs, v)]


def assert_near(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Compare relative to the largest element: sums of thousands of terms in another order."""
    for a, e in zip(actual, expected, strict=True):
        scale = e.abs().max().clamp(min=1e-30) if e.numel() else 1
        torch.testing.assert_close(a / scale, e / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num", [1, 95, 97, 3000])  # tiles have 96 samples
def test_mlp_equals_its_reference_forward_and_backward(lanes, shape, num):
    x, weights = random_inputs(shape, num)
    expected = gradients(x.double(), [w.double() for w in weights], None)
    assert_near(gradients(x, weights, lanes), [e.float() for e in expected])


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_mlp_equals_its_reference_with_any_number_of_threads(lanes, threads, num_threads):
    x, weights = random_inputs((32, 64, 16), 5000)
    expected = gradients(x, weights, None)
    threads(num_threads)
    actual = gradients(x, weights, lanes)
    assert_near(actual, expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, gradients(x, weights, lanes), strict=True))


def test_no_samples_give_no_rows_and_a_zero_gradient(lanes):
    y, v_x, *v_weights = gradients(*random_inputs((32, 64, 16), 0), lanes)
    assert y.shape == (0, 16)
    assert v_x.shape == (0, 32)
    assert all((v == 0).all() for v in v_weights)


def test_strided_inputs_are_taken(lanes):
    x, weights = random_inputs((32, 64, 16), 500)
    expected = gradients(x, weights, None)
    strided = [t.t().contiguous().t() for t in (x, *weights)]
    y = mlp(strided[0], strided[1:], lanes)
    assert_near([y], expected[:1])


def test_what_is_not_a_number_stays_visible_behind_hidden_layers(lanes):
    x, weights = random_inputs((8, 16, 16, 4), 500)
    x[7, 3] = float("nan")
    y = mlp(x, weights, lanes)
    assert y[7].isnan().all()
    assert y[torch.arange(500) != 7].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_depths_and_precisions_without_a_kernel_go_through_torch(device, dtype):
    x, weights = random_inputs((4,) * 11, 50)  # ten layers: more than the kernel takes
    x, weights = x.to(device, dtype), [w.to(device, dtype) for w in weights]
    assert torch.equal(mlp(x, weights), mlp_reference(x, weights))
    assert torch.equal(mlp(x.double(), [weights[0].double()]), x.double() @ weights[0].double().T)


def test_on_every_device_the_function_is_the_same(device):
    x, weights = random_inputs((32, 64, 16), 1500)
    moved = gradients(x.to(device), [w.to(device) for w in weights], BEST)
    assert_near([m.cpu() for m in moved], gradients(x, weights, None))


def test_an_instruction_set_that_does_not_exist_is_an_error_not_a_crash():
    with pytest.raises((RuntimeError, UserError), match="instruction set"):
        mlp(torch.zeros(1, 1), [torch.zeros(1, 1)], lanes=5)
