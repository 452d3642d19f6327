"""Running sums and products along rays, batched and flattened."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.nerfacc import exclusive_prod, exclusive_sum, inclusive_prod, inclusive_sum

SCANS = [inclusive_sum, exclusive_sum, inclusive_prod, exclusive_prod]
chunk_sizes = st.lists(st.integers(0, 7), max_size=9)


def by_loops(function, ray: Tensor) -> Tensor:
    """One ray's scan by a loop, such that torch differentiates products where they are zero."""
    product, inclusive = "prod" in function.__name__, "inclusive" in function.__name__
    total = ray.new_tensor(1.0 if product else 0.0)
    out = []
    for x in ray:
        before = total
        total = total * x if product else total + x
        out.append(total if inclusive else before)
    return torch.stack(out) if out else ray.new_zeros(0)


def packed(counts: list[int], device: torch.device) -> Tensor:
    counts_ = torch.tensor(counts, dtype=torch.int64, device=device)
    return torch.stack([counts_.cumsum(0) - counts_, counts_], 1)


def random(shape: tuple[int, ...] | int, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    zeros = torch.rand(shape, generator=generator) < 0.2
    return values.masked_fill(zeros, 0).to(device).requires_grad_()


def compare(actual: Tensor, expected: Tensor, inputs: Tensor) -> None:
    torch.testing.assert_close(actual, expected)
    v = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9)).to(expected)
    grads = [
        torch.autograd.grad(out, inputs, v, allow_unused=True)[0] for out in (actual, expected)
    ]
    grads = [torch.zeros_like(inputs) if g is None else g for g in grads]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("function", SCANS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(counts=chunk_sizes, seed=st.integers(0, 1000))
def test_flattened_scans_are_loops_over_each_ray(device, function, counts, seed):
    inputs = random(sum(counts), device, seed)
    expected = [by_loops(function, ray) for ray in inputs.split(counts)] if counts else []
    expected = torch.cat([*expected, inputs[:0]])
    compare(function(inputs, packed(counts, device)), expected, inputs)


@pytest.mark.parametrize("function", SCANS)
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (6,), (3, 0), (0, 4)])
def test_batched_scans_run_along_the_last_axis(device, function, shape):
    inputs = random(shape, device, 1)
    rays = inputs.reshape(-1, shape[-1]) if inputs.numel() else ()
    expected = torch.cat([*(by_loops(function, ray) for ray in rays), inputs.flatten()[:0]])
    expected = expected.reshape(shape)
    compare(function(inputs), expected, inputs)


@pytest.mark.parametrize("function", SCANS)
def test_flattened_and_batched_scans_agree_in_float32(device, function):
    inputs = random((5, 8), device, 2).detach().float()
    flat = function(inputs.flatten(), packed([8] * 5, device))
    assert flat.dtype == torch.float32
    torch.testing.assert_close(flat.reshape(5, 8), function(inputs))


def test_chunks_of_another_shape_are_refused(device):
    with pytest.raises(UserError, match="pack_info"):
        inclusive_sum(torch.zeros(3, device=device), torch.zeros(2, device=device).long())
    with pytest.raises(UserError, match="flatten"):
        exclusive_prod(torch.zeros(3, 2, device=device), packed([1, 2], device))


@pytest.mark.parametrize("function", SCANS)
@pytest.mark.parametrize("chunk", [[0, 100], [-3, 3], [2, 2], [3, 1], [0, -1]])
def test_chunks_beyond_the_values_are_refused_on_the_cpu(function, chunk):
    chunks = torch.tensor([[0, 1], chunk])
    with pytest.raises(UserError, match=r"packed_info gives ray 1 .* there are 3 of all rays"):
        function(torch.ones(3), chunks)
