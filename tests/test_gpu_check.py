"""The GPU check at tiny sizes on the CPU: its parts run, and one that goes wrong costs no other."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nerftrain.ops import library
from nerftrain.paths import cache_dir

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))  # they import each other


@pytest.fixture
def script() -> ModuleType:
    return importlib.import_module("gpu_check")


@pytest.fixture
def ops() -> ModuleType:
    return importlib.import_module("gpu_ops")


def found(out: Path) -> dict[str, Any]:
    document = json.loads((out / "gpu_check.json").read_text())
    return {part["name"]: part for part in document["parts"]}


def test_a_quick_check_runs_on_the_cpu(script, tmp_path):
    only = "ops,tests,lego-steps,dynamic,unbounded,sanitizer,peer"
    cache = ["--cache", str(cache_dir())]  # what the other tests have compiled
    trial = ["--device", "cpu", "--quick", "--only", only, "--out", str(tmp_path), *cache]
    assert script.main(trial) == 0
    parts = found(tmp_path)
    ran = {name for name, part in parts.items() if part["status"] == "ok"}
    assert ran == {"ops", "tests", "lego-steps"}
    assert parts["dynamic"]["reason"] == "no --dynamic"
    against, ceilings, floors, trace = parts["ops"]["tables"]
    assert dict(trace["rows"])["ms of the step"] > 0
    names = {
        "march_to",
        "visible_samples",
        "hash_encode",
        "spherical_harmonics",
        "mlp",
        "composite",
    }
    assert names <= {row[0] for row in against["rows"]} == {row[0] for row in floors["rows"]}
    assert not any(isinstance(row[2], str) for row in against["rows"])  # none has failed
    assert all(row[1] > 0 for row in ceilings["rows"])
    assert all(row[5] == pytest.approx(row[4] / row[3]) for row in floors["rows"])
    assert dict(parts["tests"]["tables"][0]["rows"])["passed"] > 0
    assert parts["lego-steps"]["tables"][0]["rows"][-1][1] == 20  # steps
    text = (tmp_path / "gpu_check.md").read_text()
    assert f"| torch      | {torch.__version__}" in text
    assert "## Ops against their floors" in text


def fake(script: ModuleType, name: str, code: str, limit: float = 30, **more: Any) -> Any:
    return script.Part(name, ["-c", code], limit, lambda *_: [], **more)


def test_parts_that_fail_hang_or_come_too_late_cost_no_other(script, tmp_path):
    sleep = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    hang = f"import subprocess, sys; subprocess.run({sleep})"
    parts = [
        fake(script, "fails", "raise SystemExit('a fault')"),
        fake(script, "hangs", hang, limit=1),
        fake(script, "works", "print(1)"),
        fake(script, "absent", "", skip="no such tool"),
    ]
    started = time.perf_counter()
    assert not script.check(parts, tmp_path, {"gpus": "none"}, 60, None)
    assert time.perf_counter() - started < 20
    outcome = {name: (part["status"], part["reason"]) for name, part in found(tmp_path).items()}
    assert outcome == {
        "fails": ("failed", "exit status 1: a fault"),
        "hangs": ("failed", "took more than 1 s and was ended"),
        "works": ("ok", ""),
        "absent": ("skipped", "no such tool"),
    }
    assert "==== fails: failed" in (tmp_path / "log.txt").read_text()


def test_what_the_time_does_not_suffice_for_is_skipped_with_the_reason(script, tmp_path):
    assert script.check([fake(script, "late", "print(1)")], tmp_path, {"gpus": "none"}, 3, None)
    assert (found(tmp_path)["late"]["status"], found(tmp_path)["late"]["reason"]) == (
        "skipped",
        "3 s are left",
    )


def test_figures_that_cannot_be_read_are_a_failure(script, tmp_path):
    part = script.Part("odd", ["-c", "print('no summary')"], 30, script.sanitizer_of)
    assert not script.check([part], tmp_path, {"gpus": "none"}, 30, None)
    assert "no summary" in found(tmp_path)["odd"]["reason"]


def test_the_summaries_of_others_tools_are_read(script, tmp_path):
    (table,) = script.sanitizer_of(tmp_path, "==== ERROR SUMMARY: 3 errors\n")
    assert table.rows == [("errors", 3)]
    (table,) = script.peer_of(
        tmp_path, "elapsed_time=9.5s |\nevaluation: psnr_avg=35.6, lpips_avg=0.1"
    )
    assert table.rows == [("psnr", 35.6), ("lpips", 0.1), ("seconds", 9.5)]


def test_differences_between_devices_are_seen(ops):
    a, nan = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
    assert ops.difference([a, nan], [a, nan]) == (0.0, 0.0, 0)
    apart = ops.difference([a], [a + torch.tensor([0.0, 0.5])])
    assert apart == pytest.approx((0.5, 0.5 / math.hypot(1, 2.5), 0))
    assert ops.difference([a], [nan])[0] > 1e30
    flags = torch.tensor([True, False])
    assert ops.difference([flags, a], [~flags, a[:1]]) == (None, None, 3)


def test_a_case_moves_with_what_gradients_are_taken_to(ops):
    leaf = torch.ones(2, requires_grad=True)
    case = ops.Case("mlp", "", (torch.zeros(1), [leaf]), [leaf])
    copy = ops.on(case, "cpu")
    assert copy.leaves[0] is copy.arguments[1][0]
    assert copy.leaves[0] is not leaf
    assert copy.leaves[0].requires_grad


def test_the_rays_of_a_step_are_repeated(ops):
    samples = ops.Samples(
        torch.tensor([0.0, 1.0, 0.5]),
        torch.tensor([1.0, 2.0, 1.0]),
        torch.tensor([0, 0, 2]),
        torch.tensor([0, 2, 2, 3]),
    )
    values = [torch.rand(3, requires_grad=True), torch.rand(3, 3, requires_grad=True)]
    many = ops.of_many_rays(ops.Case("composite", "", (*values, samples), values))
    once = ops.results(ops.Case("composite", "", (*values, samples), values))
    results = [[*itertools.chain(*of)] for of in (ops.results(many), once)]
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(whole, torch.cat([part] * ops.MANY))


def test_what_measures_no_time_runs_beside_others_that_do_not(script, tmp_path):
    wait = "import pathlib, sys, time\nhere = pathlib.Path(sys.argv[1])\n(here / '{}').touch()\n"
    wait += "while not (here / '{}').exists():\n    time.sleep(0.01)"
    parts = [
        script.Part(
            name, ["-c", wait.format(name, other), tmp_path], 30, lambda *_: [], timed=False
        )
        for name, other in (("one", "two"), ("two", "one"))
    ]
    assert script.check(parts, tmp_path, {"gpus": "none"}, 60, None)


def test_what_a_gpu_would_take_is_guessed_for_each_kernel_of_an_op(
    played_ops: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guess, bench = importlib.import_module("gpu_guess"), importlib.import_module("bench")
    tiny = [
        "scene.resolution=32",
        "scene.num_train=4",
        "scene.num_test=1",
        "sampler.grid.resolution=32",
    ]
    run = bench.Bench(["scene=demo", *tiny, "trainer.sample_budget=1024"], 2, 1)
    run.state.num_rays = 64
    monkeypatch.setattr(torch.ops, "nerftrain", played_ops)
    monkeypatch.setattr(library, "on_cpu", lambda _: False)
    played = guess.Played(Path(os.environ["PLAYED_PTX"]).with_name("nerftrain_played.so"), 2)
    try:
        table = guess.guesses(run, played, ("march_to", "composite"))
        drawn = guess.guesses(run, played, ("composite",), 2.0)
    finally:
        played.time_on(0)
    sizes = [dict(part.split("=") for part in row[1].split()) for row in drawn.rows]
    assert all(int(size["R"]) == 64 and 64 < int(size["N"]) < 192 for size in sizes)
    kernels = {row[2].partition("<")[0]: row[3] for row in table.rows}
    for name in ("march_boxes_kernel", "composite_forward_kernel", "composite_backward_kernel"):
        assert 0.1 < kernels[name] < 1000
