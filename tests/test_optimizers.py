"""Adam: torch's own where every entry is seen, and still entries where none is."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nerftrain.errors import UserError
from nerftrain.ops import adam as adam_module
from nerftrain.ops import library
from nerftrain.ops.adam import (
    AdamRates,
    adam_reference,
    adam_step,
    half_copy,
    refresh_half_copies,
    spare_gradient,
)
from nerftrain.ops.hash_encoding import HashLevels, hash_encode
from nerftrain.optimizers import Adam, adam


class Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(64, 4))
        self.weight = torch.nn.Parameter(torch.randn(8, 8))


def optimizer_of(field: Field, skip: bool, weight_decay: float = 1e-2) -> torch.optim.Optimizer:
    return adam(0.01, 1e-15, weight_decay, [0.9, 0.99], skip, model=field)


@pytest.fixture(params=["native", "reference"])
def mode(request: pytest.FixtureRequest):
    library.set_mode("auto" if request.param == "native" else "reference")
    yield
    library.set_mode("auto")


@pytest.mark.usefixtures("mode")
def test_equals_torch_where_every_entry_is_seen() -> None:
    ours, theirs = Field(), Field()
    groups = [
        {"params": [theirs.weight], "weight_decay": 1e-2},
        {"params": [theirs.table], "weight_decay": 0.0},
    ]
    pair = optimizer_of(ours, skip=True), torch.optim.Adam(groups, 0.01, (0.9, 0.99), 1e-15)
    for _ in range(20):
        gradients = torch.randn(64, 4), torch.randn(8, 8)
        for field, optimizer in zip((ours, theirs), pair, strict=True):
            field.table.grad, field.weight.grad = (g.clone() for g in gradients)
            optimizer.step()
    torch.testing.assert_close(ours.table, theirs.table, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("mode")
def test_unseen_entries_stay_as_they_are_moments_included() -> None:
    field = Field()
    optimizer = optimizer_of(field, skip=True)
    field.table.grad = torch.randn(64, 4)
    optimizer.step()
    before = field.table.detach().clone()
    moments = {k: v.clone() for k, v in optimizer.state[field.table].items() if k != "step"}
    field.table.grad = torch.zeros(64, 4)
    field.table.grad[:8] = 1.0
    optimizer.step()
    assert torch.equal(field.table[8:], before[8:])
    assert not torch.equal(field.table[:8], before[:8])
    for name, value in moments.items():
        assert torch.equal(optimizer.state[field.table][name][8:], value[8:])


def test_without_skipping_momentum_goes_on() -> None:
    field = Field()
    optimizer = optimizer_of(field, skip=False)
    field.table.grad = torch.randn(64, 4)
    optimizer.step()
    before = field.table.detach().clone()
    field.table.grad = torch.zeros(64, 4)
    optimizer.step()
    assert not torch.equal(field.table, before)


@pytest.mark.parametrize(("decay", "eps"), [(0.0, 1e-15), (1e-2, 1e-15), (0.0, 1e-2)])
def test_entries_at_rest_stay_and_others_do_what_the_reference_says(decay, eps) -> None:
    entries = torch.arange(1000)
    seen_at = torch.where(entries < 500, entries // 100, 99)  # in blocks, and half of them never
    start = 5 + torch.rand(1000)  # decay does not bring it to zero, around which it would swing
    moves = [{"p": start.clone(), "m": torch.zeros(1000), "v": torch.zeros(1000)} for _ in "ab"]
    moves[0]["m"][700:710] = moves[1]["m"][700:710] = 1e-3  # as a run before has left it
    moves[0]["v"][720:730] = moves[1]["v"][720:730] = 1e-9
    rates = AdamRates(lr=0.01, beta1=0.5, beta2=0.6, eps=eps, weight_decay=decay, skip=False)
    for step in range(1, 300):
        gradient = torch.where(seen_at == step % 50, torch.randn(1000), 0.0)
        for move, one in zip(moves, (adam_step, adam_reference), strict=True):
            one(move["p"], gradient.clone(), move["m"], move["v"], rates, step)
    ours, theirs = moves
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], rtol=1e-4, atol=1e-6)
    if decay == 0:
        assert torch.equal(ours["p"][730:], start[730:])
        assert not (ours["p"][:500] == start[:500]).any()
        assert not (ours["p"][700:710] == start[700:710]).any()


def test_a_step_leaves_the_smallest_numbers_to_others() -> None:
    zeros, tiny = torch.zeros(64), torch.full((64,), 1e-40)
    rates = AdamRates(lr=0.01, beta1=0.9, beta2=0.99, eps=1e-15, weight_decay=0.0, skip=False)
    adam_step(zeros.clone(), tiny, zeros.clone(), zeros.clone(), rates, 1)
    assert (tiny * 0.5 > 0).all()


def test_a_warp_learns_at_its_own_rate() -> None:
    class Moving(Field):
        def __init__(self) -> None:
            super().__init__()
            self.warp = torch.nn.ModuleDict({"mlp": torch.nn.Linear(4, 4)})

    field = Moving()
    before = {name: p.detach().clone() for name, p in field.named_parameters()}
    optimizer = adam(0.01, 1e-15, 0.0, [0.9, 0.99], False, 0.1, model=field)
    for parameter in field.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in field.named_parameters():  # a first step is as long as the rate
        step = 0.001 if name.startswith("warp.") else 0.01
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, step))
    alike = adam(0.01, 1e-15, 0.0, [0.9, 0.99], False, model=field)
    assert len(alike.param_groups) == len(optimizer.param_groups) - 1


def test_the_table_does_not_decay() -> None:
    field = Field()
    optimizer = optimizer_of(field, skip=False, weight_decay=1.0)
    field.table.grad, field.weight.grad = torch.zeros(64, 4), torch.zeros(8, 8)
    table, weight = field.table.detach().clone(), field.weight.detach().clone()
    optimizer.step()
    assert torch.equal(field.table, table)
    assert (field.weight.abs() < weight.abs()).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": 1e30},
        {"eps": -1.0},
        {"eps": 0.0},
        {"eps": 1e30},
        {"weight_decay": 1e30},
        {"betas": [0.9]},
        {"betas": [0.9, 1.0]},
        {"warp_lr": 0.0},
        {"warp_lr": 1e30},
    ],
)
def test_rates_that_make_no_sense_are_refused(wrong: dict) -> None:
    rates = {
        "lr": 0.01,
        "eps": 1e-15,
        "weight_decay": 0.0,
        "betas": [0.9, 0.99],
        "skip_unseen": True,
    }
    with pytest.raises(UserError, match=next(iter(wrong))):
        adam(**{**rates, **wrong}, model=Field())


@pytest.mark.parametrize("skip", [False, True])
def test_a_copy_in_half_precision_follows_its_parameter(skip: bool) -> None:
    parameter = torch.nn.Parameter(torch.randn(1003))
    rates = AdamRates(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-15, weight_decay=0.0, skip=skip)
    moments = torch.zeros(1003), torch.zeros(1003)
    first = half_copy(parameter)
    for step in (1, 2):
        gradient = torch.where(torch.rand(1003) < 0.5, torch.randn(1003), 0.0)
        adam_step(parameter, gradient, *moments, rates, step)
        assert adam_module._fresh_copy(parameter) is first  # not copied anew
        assert half_copy(parameter) is first
        assert torch.equal(first, parameter.detach().half())
    with torch.no_grad():
        parameter.mul_(2)
    assert torch.equal(half_copy(parameter), parameter.detach().half())


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rates and steps lie where recorded steps read them."""
    library.native(torch.zeros(1))
    monkeypatch.setattr(library, "on_cpu", lambda _: False)


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("skip", [False, True])
def test_rates_that_only_the_device_knows_give_the_same(
    monkeypatch: pytest.MonkeyPatch, skip: bool
) -> None:
    fields = Field(), Field()
    optimizers = [optimizer_of(field, skip) for field in fields]
    copy = half_copy(fields[1].table)
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        rate = 0.01 * 0.9**step  # followed, though the step was recorded once
        gradients = torch.randn(64, 4, generator=generator), torch.randn(8, 8, generator=generator)
        gradients[0][step % 50 :] = 0.0
        for field, optimizer, placed in zip(fields, optimizers, (False, True), strict=True):
            monkeypatch.setattr(library, "on_cpu", lambda _, placed=placed: not placed)
            field.table.grad, field.weight.grad = (g.clone() for g in gradients)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.place_rates()
            optimizer.step()
    for ours, theirs in zip(fields[0].parameters(), fields[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert half_copy(fields[1].table) is copy
    torch.testing.assert_close(copy.float(), fields[1].table.detach(), rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_from_the_cpu_to_a_gpu_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    library.native(torch.zeros(1))
    field, state = Field(), {}
    for number, placed in enumerate((False, True, True, False)):
        monkeypatch.setattr(library, "on_cpu", lambda _, placed=placed: not placed)
        optimizer = optimizer_of(field, skip=False)
        if state:
            optimizer.load_state_dict(state)
        field.table.grad, field.weight.grad = torch.ones(64, 4), torch.ones(8, 8)
        optimizer.step()
        state = optimizer.state_dict()
        assert [int(entry["step"]) for entry in state["state"].values()] == [number + 1] * 2


class Calls(TorchDispatchMode):
    """Names the ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_counters_on_a_device_advance_together_where_they_are() -> None:
    field = Field()
    optimizer, counters = optimizer_of(field, skip=False), []
    for step in range(4):
        field.weight.grad = torch.ones(8, 8)
        field.table.grad = torch.ones(64, 4) if step % 2 else None
        with Calls() as calls:
            optimizer.step()
        assert calls.names.count("_foreach_add_") == 1
        assert not {"add", "add_"} & {*calls.names}
        counters.append([entry["step"] for entry in optimizer.state.values()])
    assert [int(steps) for steps in counters[-1]] == [4, 2]
    assert counters[1][0] is counters[-1][0]  # or a recorded step would count elsewhere
    assert counters[1][1] is counters[-1][1]
    optimizer.zero_grad()
    optimizer.step()  # with nothing to move
    assert [int(steps) for steps in counters[-1]] == [4, 2]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_copy_stays_where_it_is_and_follows_what_the_host_changes() -> None:
    parameter = torch.nn.Parameter(torch.randn(100))
    copy = half_copy(parameter)
    with torch.no_grad():
        parameter.mul_(2)
    refresh_half_copies([parameter, torch.zeros(3)])
    assert half_copy(parameter) is copy
    assert torch.equal(copy, parameter.detach().half())


@pytest.mark.parametrize("clear", [False, True])
def test_gradients_that_are_added_to_what_a_step_has_cleared_are_the_same(clear):
    levels = HashLevels.geometric(3, 4, 16, 8)
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.rand(levels.offsets[-1], 4, generator=generator))
    half_copy(table)
    groups = [{"params": [table], "weight_decay": 0.0, "skip": False, "clear": clear}]
    optimizer = Adam(groups, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8})
    for _ in range(4):
        positions = torch.rand(300, 3, generator=generator)
        table.grad = None
        hash_encode(positions, table, levels).sum().backward()
        (expected,) = torch.autograd.grad(hash_encode(positions, table, levels).sum(), table)
        assert table.grad is not None
        assert torch.equal(table.grad, expected)
        kept = table.grad
        optimizer.step()
        assert bool((kept == 0).all()) == clear
        hash_encode(positions, table, levels).sum().backward()  # while it still is the gradient
        torch.testing.assert_close(table.grad, expected if clear else 2 * expected)
    optimizer.step()
    table.grad = None
    assert (spare_gradient(table) is not None) == clear
    assert spare_gradient(table) is None
