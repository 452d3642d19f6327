"""Doctor's proof that compiled ops compute what torch does: it passes, and finds what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from registered import CPU_ONLY, GPU_ONLY, registered_ops

from nerftrain.ops import library, proof


@pytest.mark.parametrize("family", proof.FAMILIES)
def test_every_family_agrees_with_torch(device, family):
    assert dict(proof.prove(device))[family]() is None


def test_fields_on_tensor_cores_are_among_what_is_proved(device):
    trials = dict(proof.prove(device))
    on_tensor_cores = [name for name in trials if "tensor cores" in name]
    has_any = library.has_tensor_cores(torch.zeros(1, device=device))
    assert bool(on_tensor_cores) == has_any
    assert [trials[name]() for name in on_tensor_cores] == [None] * len(on_tensor_cores)


class OneWrong:
    """The compiled ops, one of which errs: floats are a third too large, the rest is zero."""

    def __init__(self, ops: Any, wrong: str) -> None:
        self._ops, self._wrong = ops, wrong

    def __getattr__(self, name: str) -> Any:
        op = getattr(self._ops, name)
        return (
            (lambda *arguments: self._err(op(*arguments), arguments)) if name == self._wrong else op
        )

    @torch.no_grad()
    def _err(self, results: Any, arguments: tuple[Any, ...]) -> Any:
        touched = arguments if results is None else results  # what works in place returns nothing
        for one in touched if isinstance(touched, tuple | list) else [touched]:
            if isinstance(one, torch.Tensor):
                _ = one.mul_(1.33) if one.is_floating_point() else one.zero_()
        return results


# The CPU has faster ones of its own, by which everything goes there.
SPARE_ON_CPU = ("march_count", "march_write", "gather_rows")


class Listening:
    """The compiled ops, of which those that are called are noted."""

    def __init__(self, ops: Any) -> None:
        self._ops, self.called = ops, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._ops, name)


CALLED: dict[tuple[str, str], set[str]] = {}  # the ops that a family calls, by where it runs


@pytest.fixture
def families_with(
    request: pytest.FixtureRequest, device: torch.device
) -> Callable[[str], list[Callable[[], str | None]]]:
    """Find the trials that call an op: no other can notice that it errs."""
    where = request.node.callspec.params["device"]

    def find(op: str) -> list[Callable[[], str | None]]:
        trials = list(proof.prove(device))
        for name, trial in trials:
            if (where, name) not in CALLED:
                with pytest.MonkeyPatch.context() as patch:
                    listening = Listening(torch.ops.nerftrain)
                    patch.setattr(torch.ops, "nerftrain", listening)
                    trial()
                CALLED[where, name] = listening.called
        return [trial for name, trial in trials if op in CALLED[where, name]]

    return find


@pytest.mark.parametrize("wrong", registered_ops())
def test_whichever_op_is_wrong_is_noticed(device, monkeypatch, families_with, wrong):
    on_cpu = library.on_cpu(torch.zeros(1, device=device))
    if wrong in ((*GPU_ONLY, *SPARE_ON_CPU) if on_cpu else CPU_ONLY):
        pytest.skip(f"it serves on {'a GPU' if on_cpu else 'the CPU'} alone")
    library.native(torch.zeros(1, device=device))
    trials = families_with(wrong)
    monkeypatch.setattr(torch.ops, "nerftrain", OneWrong(torch.ops.nerftrain, wrong))
    fault = next((fault for trial in trials if (fault := trial())), None)
    assert fault is not None
    assert "torch" in fault


def test_a_process_of_its_own_names_each_family_and_what_became_of_it():
    command = [sys.executable, "-m", "nerftrain.ops.proof", "cpu"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    *tried, timed = said.splitlines()
    assert tried == [f"{name}: agrees" for name in proof.FAMILIES]
    assert re.fullmatch(r"march: 65,536 rays, [\d,]{7,} samples in \d+\.\d\d ms", timed)


@pytest.mark.parametrize("error", ["CUDA error: an illegal address\nmore", "an op refuses"])
def test_what_raises_is_told_and_ends_the_proof_only_where_nothing_runs_any_more(
    monkeypatch, capsys, error
):
    def raises() -> None:
        raise RuntimeError(error)

    trials = [("first", raises), ("second", lambda: None)]
    monkeypatch.setattr(proof, "prove", lambda _: trials)
    monkeypatch.setattr(proof, "time_march", lambda _: "1 ms")
    monkeypatch.setattr(sys, "argv", ["proof", "cpu"])
    monkeypatch.setattr(proof.logging, "disable", lambda: None)
    proof.main()
    after = [] if "CUDA" in error else ["second: agrees", "march: 1 ms"]
    assert capsys.readouterr().out.splitlines() == [f"first: {error.splitlines()[0]}", *after]
