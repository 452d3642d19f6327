"""The small MLP: every instruction set against torch, at the edges of its tiles and vectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from rounding import rounded_mlp
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops import library
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


def random_inputs(shape: tuple[int, ...], num: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(n, k, generator=generator) * (2 / k) ** 0.5
        for k, n in itertools.pairwise(shape)
    ]
    return torch.randn(num, shape[0], generator=generator), weights


def gradients(
    x: Tensor, weights: list[Tensor], evaluate: Callable[..., Tensor] = mlp_reference
) -> list[Tensor]:
    """Output and gradients, by torch if nothing else is said."""
    inputs = [t.clone().requires_grad_() for t in (x, *weights)]
    y = evaluate(inputs[0], inputs[1:])
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(y.shape, generator=generator).to(y)
    return [y, *torch.autograd.grad(y, inputs, v)]


def expected_of(x: Tensor, weights: list[Tensor], lanes: int) -> list[Tensor]:
    """Output and gradients by torch, rounded as the kernels of an instruction set do."""
    reference = rounded_mlp if lanes >= 32 else mlp_reference
    return [e.float() for e in gradients(x.double(), [w.double() for w in weights], reference)]


def assert_near(actual: list[Tensor], expected: list[Tensor], lanes: int = 4) -> None:
    """Compare relative to the largest element: sums of thousands of terms in another order.

    Where terms are rounded to bfloat16 some come out as the number beside the expected one, and the
    mean is compared.
    """
    for a, e in zip((t.detach() for t in actual), (t.detach() for t in expected), strict=True):
        if lanes >= 32:
            assert float((a - e).abs().mean()) <= 2e-2 * float(e.abs().mean())
        else:
            scale = e.abs().max().clamp(min=1e-30) if e.numel() else 1
            torch.testing.assert_close(a / scale, e / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num", [1, 95, 97, 3000])  # tiles have 96 samples
def test_mlp_equals_its_reference_forward_and_backward(lanes, shape, num):
    x, weights = random_inputs(shape, num)
    actual = gradients(x, weights, partial(mlp, lanes=lanes))
    assert_near(actual, expected_of(x, weights, lanes), lanes)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_mlp_equals_its_reference_with_any_number_of_threads(lanes, threads, num_threads):
    x, weights = random_inputs((32, 64, 16), 5000)
    threads(num_threads)
    actual, again = (gradients(x, weights, partial(mlp, lanes=lanes)) for _ in range(2))
    assert_near(actual, expected_of(x, weights, lanes), lanes)
    assert all(map(torch.equal, actual, again))


def test_no_samples_give_no_rows_and_a_zero_gradient(lanes):
    inputs = random_inputs((32, 64, 16), 0)
    y, v_x, *v_weights = gradients(*inputs, partial(mlp, lanes=lanes))
    assert y.shape == (0, 16)
    assert v_x.shape == (0, 32)
    assert all((v == 0).all() for v in v_weights)


def test_strided_inputs_are_taken(lanes):
    x, weights = random_inputs((32, 64, 16), 500)
    strided = [t.t().contiguous().t() for t in (x, *weights)]
    assert torch.equal(mlp(strided[0], strided[1:], lanes), mlp(x, weights, lanes))


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
    moved = gradients(x.to(device), [w.to(device) for w in weights], mlp)
    best = torch.ops.nerftrain.use_lanes(BEST) if library.on_cpu(moved[0]) else 4
    assert_near([m.cpu() for m in moved], expected_of(x, weights, best), best)


def test_an_instruction_set_that_does_not_exist_is_an_error_not_a_crash():
    with pytest.raises((RuntimeError, UserError), match="instruction set"):
        mlp(torch.zeros(1, 1), [torch.zeros(1, 1)], lanes=5)
