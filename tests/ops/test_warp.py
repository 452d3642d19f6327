"""The warp field in half precision on a GPU's tensor cores: what torch makes of its roundings."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nerftrain.models.dynamic import Warp, WarpField
from nerftrain.ops import library
from nerftrain.ops.warp import Moves, agrees, can_do, warp_half, warp_half_reference


def make(device: torch.device, num: int, moves: Moves) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(num)
    positions, times = torch.rand(num, 3, generator=generator), torch.rand(num, generator=generator)
    num_inputs = 3 * (1 + 2 * moves.position_frequencies) + 1 + 2 * moves.time_frequencies
    widths = [num_inputs, 64, 64, 64, 64, 3]
    weights = [
        (torch.randn(out, inputs, generator=generator) * (2 / inputs) ** 0.5).to(device)
        for inputs, out in itertools.pairwise(widths)
    ]
    return positions.to(device), times.to(device), [w.requires_grad_() for w in weights]


@pytest.fixture(autouse=True)
def _needs_tensor_cores(device: torch.device) -> None:
    if not library.has_tensor_cores(torch.zeros(1, device=device)):
        pytest.skip("no tensor cores: see the emulated device")


@pytest.mark.parametrize(
    ("num", "moves"),
    [
        (300, Moves(4, 4, 0.1)),
        (130, Moves(2, 6, 1.0)),
        (17, Moves(0, 0, 0.5)),
        (1, Moves(5, 0, 2.0)),
    ],
)
def test_half_precision_is_what_torch_makes_of_the_same_roundings(device, num, moves):
    positions, times, weights = make(device, num, moves)
    # As small as a loss over thousands of rays makes them: below half precision's normal numbers.
    v = torch.randn(num, 3, generator=torch.Generator().manual_seed(1)).mul(1e-6).to(device)
    assert can_do(weights)
    outputs = [f(positions, times, weights, moves) for f in (warp_half, warp_half_reference)]
    torch.testing.assert_close(*outputs, rtol=2e-3, atol=2e-3 * moves.reach)
    moved = [(output.detach() - positions).abs().mean() for output in outputs]
    assert float(moved[1]) > 0.05 * moves.reach
    actual, expected = (torch.autograd.grad(output, weights, v) for output in outputs)
    for a, e in zip(actual, expected, strict=True):
        assert float((a - e).abs().mean()) <= 5e-3 * float(e.abs().mean())


@pytest.mark.parametrize("num_used", [0, 100, 128, 129])
def test_rows_that_are_nobodys_count_for_nothing(device, num_used):
    moves = Moves(4, 4, 0.1)
    positions, times, weights = make(device, 300, moves)
    positions[num_used:] = float("nan")
    used = torch.tensor([0, num_used], device=device)
    moved = warp_half(positions, times, weights, moves, used)
    whole = warp_half(positions[:num_used], times[:num_used], weights, moves)
    assert torch.equal(moved[:num_used], whole)
    v = torch.ones_like(moved)
    actual = torch.autograd.grad(moved, weights, v)
    expected = torch.autograd.grad(whole, weights, v[:num_used])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_widths_that_the_kernel_is_not_made_for_are_left_to_others(device):
    positions, times, weights = make(device, 5, Moves(4, 4, 0.1))
    assert can_do(weights)
    assert not can_do(weights[1:])
    assert not can_do([weights[0], *weights[2:]])
    assert not can_do([w.double() for w in weights])
    assert not can_do([torch.zeros(64, 50, device=device), *weights[1:]])
    none = torch.zeros(0, dtype=torch.int64, device=device)
    flat = torch.cat([w.detach().flatten() for w in weights[:-1]])
    with pytest.raises(RuntimeError):
        torch.ops.nerftrain.warp_half_fwd(positions, times, flat, 4, 4, 0.1, none)


def test_a_warp_field_is_evaluated_by_it_where_it_can_be(device):
    torch.manual_seed(0)
    field = WarpField(Warp(4, 64, 4, 4, 0.1)).to(device)
    with torch.no_grad():
        field.mlp.weights[-1].mul_(1e4)
    positions, times, _ = make(device, 200, Moves(4, 4, 0.1))
    assert field.in_half_precision()
    by_kernel = field(positions, times)
    field.mlp.by_torch = True
    assert not field.in_half_precision()
    by_torch = field(positions, times)
    torch.testing.assert_close(by_kernel, by_torch, rtol=0, atol=2e-4)
    assert not torch.equal(by_kernel, by_torch)
    assert not WarpField(Warp(3, 64, 4, 4, 0.1)).to(device).in_half_precision()


def test_a_kernel_that_gives_wrong_moves_is_found_out(device, monkeypatch):
    assert agrees(device)
    right = torch.ops.nerftrain
    for wrong in ("warp_half_fwd", "warp_half_bwd"):

        class Wrong:
            def __getattr__(self, name: str, wrong: str = wrong) -> object:
                op = getattr(right, name)
                return (lambda *a: op(*a).flip(0)) if name == wrong else op

        with monkeypatch.context() as patch:
            patch.setattr(torch.ops, "nerftrain", Wrong())
            assert not agrees(device)
