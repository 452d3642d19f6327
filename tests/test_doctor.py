from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable

import pytest
import torch

from nerftrain import doctor
from nerftrain.errors import UserError
from nerftrain.paths import cache_dir


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch):
    monkeypatch.delenv("NERFTRAIN_DATA", raising=False)


@pytest.fixture
def native(monkeypatch) -> Callable[[doctor.Trial], None]:
    """Native ops of which the test decides what becomes of them; nothing is compiled or tried."""
    library = types.SimpleNamespace(status=lambda: {"cpu ops": "ops.so"})
    monkeypatch.setitem(sys.modules, "nerftrain.ops", types.SimpleNamespace(library=library))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def become(trial: doctor.Trial) -> None:
        monkeypatch.setattr(doctor, "native_trial", lambda _: trial)

    become(doctor.Trial(14, march="9 rays in 1.00 ms"))
    return become


@pytest.fixture
def tried(monkeypatch) -> Callable[[str], doctor.Trial]:
    """Try ops by a process that runs the test's code in place of the proof."""

    run = subprocess.run

    def trial(code: str) -> doctor.Trial:
        command = [sys.executable, "-c", code]
        monkeypatch.setattr(subprocess, "run", lambda _, **how: run(command, **how))
        return doctor.native_trial.__wrapped__("cpu")

    return trial


def test_the_report_names_machine_torch_and_native_ops(native):
    text = doctor.report()
    expected = (
        torch.__version__,
        doctor.cpu_model(),
        "ops.so",
        "14 of 14 families",
        "9 rays in 1.00 ms",
        "lpips",
        "cache",
        "No faults",
    )
    assert [part for part in expected if part not in text] == []


def test_a_failed_build_is_a_fault_with_its_cause(native):
    native(doctor.Trial(missing="no C++ compiler was found: install g++"))
    assert any("no C++ compiler was found: install g++" in fault for fault in doctor.faults())
    assert "! there are no compiled cpu ops" in doctor.report()


def test_ops_that_disagree_with_torch_are_a_fault_with_remedies(native):
    native(doctor.Trial(13, {"marching": "0.3 of the size from torch's"}))
    (fault,) = doctor.faults()
    assert "marching: 0.3 of the size" in fault
    assert "remove" in fault
    assert "runtime=reference" in fault
    assert "13 of 14 families of ops agree with torch" in doctor.report()


def test_what_is_tried_is_told_family_by_family(tried):
    assert tried("print('a: agrees'); print('b: agrees')") == doctor.Trial(2)
    assert tried("print('a: agrees'); print('march: 1 ms')") == doctor.Trial(1, march="1 ms")
    wrong = tried("print('a: agrees'); print('b: 0.2 of the size')")
    assert wrong == doctor.Trial(1, {"b": "0.2 of the size"})


def test_ops_that_end_the_process_are_named(tried):
    code = "import os; print('a: agrees'); print('b: ', end='', flush=True); os.abort()"
    assert tried(code) == doctor.Trial(1, {"b": "ended the process, status -6"})
    trial = tried("import os; os.abort()")
    assert trial == doctor.Trial(missing="trying them ended the process, status -6")


def test_why_there_are_no_ops_is_told_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path))
    trial = doctor.native_trial.__wrapped__("cpu")
    assert trial.missing is not None
    assert trial.missing.startswith("no C++ compiler was found: install g++")


def test_a_broken_status_does_not_crash_the_report(native, monkeypatch):
    monkeypatch.setattr(sys.modules["nerftrain.ops"].library, "status", lambda: 1 / 0)
    assert doctor.native_status() == {"error": "division by zero"}
    assert "division by zero" in doctor.report()


def test_scenes_below_the_data_root_are_found(native, monkeypatch, tmp_path):
    root = tmp_path / "data"
    (root / "nerf_synthetic" / "lego").mkdir(parents=True)
    (root / "nerf_synthetic" / "lego" / "transforms_train.json").touch()
    (root / "garden" / "sparse" / "0").mkdir(parents=True)
    monkeypatch.setenv("NERFTRAIN_DATA", str(root))
    found = {"garden": "colmap", "nerf_synthetic/lego": "blender or dnerf"}
    assert doctor.find_scenes(root) == found
    assert "nerf_synthetic/lego (blender or dnerf)" in doctor.report()


@pytest.mark.parametrize("exists", [False, True])
def test_a_useless_data_root_is_a_fault(native, monkeypatch, tmp_path, exists):
    root = tmp_path / "data"
    if exists:
        root.mkdir()
    monkeypatch.setenv("NERFTRAIN_DATA", str(root))
    word = "without a scene" if exists else "no folder"
    assert any(str(root) in fault and word in fault for fault in doctor.faults())


def test_a_cache_that_cannot_be_written_is_a_fault(native, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path / "file"))
    cache_dir.cache_clear()
    try:
        assert any("NERFTRAIN_CACHE" in fault for fault in doctor.faults())
    finally:
        cache_dir.cache_clear()


def test_the_environment_is_plain_json(native):
    found = json.loads(json.dumps(doctor.environment()))
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert found["native"] == {"cpu ops": "ops.so"}


def test_a_command_that_is_absent_or_fails_prints_nothing():
    assert doctor.run_quietly("no-such-command-anywhere") is None
    assert doctor.run_quietly(sys.executable, "-c", "raise SystemExit(1)") is None
    assert doctor.run_quietly(sys.executable, "-c", "print(7)") == "7"


def test_a_prebuild_compiles_for_every_architecture_and_prints_the_table(monkeypatch, tmp_path):
    from nerftrain.ops import cuda_report, library

    calls = []
    monkeypatch.setattr(library, "build", lambda *call: calls.append(call) or tmp_path / "ops.so")
    monkeypatch.setattr(cuda_report, "of_library", lambda path: [])
    assert str(tmp_path / "ops.so") in doctor.prebuild()
    assert calls == [("cpu",), ("cuda", library.ALL_ARCHITECTURES)]


def test_a_prebuild_without_a_compiler_is_one_line(monkeypatch):
    from nerftrain.ops import library

    monkeypatch.setattr(library, "find_nvcc", lambda: None)
    monkeypatch.setattr(
        library, "build", lambda device, *a: library._Plan(device, *(a or [None])).target
    )
    with pytest.raises(UserError, match="no CUDA compiler was found: pip install"):
        doctor.prebuild()
