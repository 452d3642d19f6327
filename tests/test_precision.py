"""What products are rounded to: a GPU's choice, the same training around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from nerftrain import assemble, compose, trainer
from nerftrain.models.dynamic import Warp
from nerftrain.models.mlp import MLP
from nerftrain.ops import library, ngp_half
from nerftrain.runtime import Runtime, bfloat16


@pytest.mark.parametrize(
    ("precision", "expected", "rounds"),
    [
        ("float32", "highest", False),
        ("tf32", "high", False),
        ("float16", "high", False),
        ("bfloat16", "high", True),
    ],
)
def test_a_gpu_rounds_as_it_is_told(monkeypatch, precision, expected, rounds):
    chosen: list[str] = []
    half: list[bool] = []
    monkeypatch.setattr(library, "set_half_precision", half.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    runtime = Runtime("auto", None, "auto", "auto", precision, True)
    runtime.start(0)
    assert chosen == []  # a CPU's products are left as they are
    with runtime.autocast():
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr(runtime, "torch_device", torch.device("cuda"))
    runtime.start(0)
    assert chosen == [expected]
    assert half == [precision == "float16"]
    calls: list[tuple] = []
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: calls.append((*a, k["enabled"])))
    runtime.autocast()
    assert calls == [("cuda", torch.bfloat16, rounds)]


def test_rounded_weights_are_not_kept_from_a_pass_without_gradients():
    with bfloat16("cpu"):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()  # which torch 2.10 would keep them in


@pytest.mark.parametrize("model", ["ngp", "mlp"])
def test_a_step_in_bfloat16_moves_every_parameter_by_float32_gradients(monkeypatch, model):
    small = {
        "ngp": ["model.encoding.log2_table_size=10", "model.backend=torch"],
        "mlp": ["model.width=16", "model.depth=2"],
    }
    overrides = ["scene=demo", "runtime=cpu", f"model={model}", *small[model]]
    sizes = ["sampler.grid.resolution=32", "trainer.sample_budget=1024"]
    run = assemble(compose([*overrides, *sizes]))
    autocast = torch.autocast

    def as_on_a_gpu(_: str, dtype: torch.dtype, **how: Any) -> torch.autocast:
        return autocast("cpu", dtype, **{**how, "enabled": True})

    monkeypatch.setattr(torch, "autocast", as_on_a_gpu)
    state = trainer.State(run)
    before = [p.detach().clone() for p in run.model.parameters()]
    for group in run.optimizer.param_groups:
        group["lr"] = 0.01
    taken = trainer._step(run, state, run.scene, 64, None, None)
    assert taken.rgb.dtype == torch.float32
    terms = taken.terms.values()
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms)
    for old, parameter in zip(before, run.model.parameters(), strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert not torch.equal(old, parameter)


@pytest.mark.parametrize("dynamic", [False, True])
def test_products_in_bfloat16_come_in_few_sizes_and_samples_in_any(monkeypatch, dynamic):
    warp = Warp(depth=1, width=8, position_frequencies=2, time_frequencies=1, reach=0.1)
    aabb = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    field = MLP(4, 32, 2, 4, 2, warp, {"semantics": 2}, aabb=aabb, is_dynamic=dynamic)
    positions, times = torch.rand(1_000, 3) * 2 - 1, torch.rand(1_000)
    directions = functional.normalize(torch.rand(1_000, 3), dim=1)
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda _: False)
    exact = [*field(positions, directions, times), field.density(positions, times)]
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda _: True)
    sizes, linear = set[int](), functional.linear

    def spied(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            sizes.add(len(x))
        return linear(x, *weights)

    monkeypatch.setattr(functional, "linear", spied)
    for num in (0, 1, 500, 600, 700, 1_000):
        rows = positions[:num].clone().requires_grad_()
        found = [*field(rows, directions[:num], times[:num]), field.density(rows, times[:num])]
        for rounded, whole in zip(found, exact, strict=True):
            torch.testing.assert_close(rounded, whole[:num], atol=0.02, rtol=0.02)
        torch.cat([figures.flatten() for figures in found]).sum().backward()
        assert rows.grad is not None
        assert rows.grad.isfinite().all()
        assert bool(rows.grad.abs().sum(1).all())
    assert sizes == {0, 256, 512, 768, 1_024}


def _raise(error: Exception) -> Callable[[torch.device], bool]:
    def agrees(_: torch.device) -> bool:
        raise error

    return agrees


@pytest.mark.parametrize(
    ("agrees", "said"),
    [
        (lambda _: False, "kernels in half precision give wrong numbers on A GPU, others serve"),
        (_raise(RuntimeError("invalid argument\nat ..")), r"do not run \(invalid argument\) on A"),
    ],
)
def test_kernels_that_do_not_work_on_a_gpu_leave_it_to_others(monkeypatch, caplog, agrees, said):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    assert not ngp_half.is_trusted(torch.device("cuda"), agrees)
    assert re.search(said, caplog.text)
    assert len(caplog.records) == 1


def test_memory_that_is_short_is_not_taken_for_wrong_kernels():
    with pytest.raises(torch.OutOfMemoryError):
        ngp_half.is_trusted(torch.device("cuda"), _raise(torch.OutOfMemoryError("full")))
