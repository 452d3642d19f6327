"""Compilers, drivers and GPUs that do not go together, played by small scripts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch

from nerftrain import composition, doctor
from nerftrain.composition import compose
from nerftrain.errors import UserError
from nerftrain.ops import library, toolkit
from nerftrain.runtime import Runtime

SMI = "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4     |"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Put a program on PATH that says what the test wants."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def make(name: str, **answers: str) -> str:
        path = tmp_path / name
        cases = "".join(f'"{flag}") echo "{text}";;\n' for flag, text in answers.items())
        path.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\n')
        path.chmod(0o755)
        return str(path)

    return make


def nvcc(program: Callable[..., str], release: str, *architectures: int) -> str:
    listed = "\n".join(f"compute_{a}" for a in architectures)
    said = {"--version": f"Cuda compilation tools, release {release}, V{release}.88"}
    return program("nvcc", **said, **{"--list-gpu-arch": listed})


def test_the_driver_says_which_cuda_it_serves(program):
    program("nvidia-smi", **{"": SMI})
    assert toolkit.driver_cuda() == (12, 4)
    program("nvidia-smi", **{"": "No devices were found"})
    assert toolkit.driver_cuda() is None


@pytest.mark.parametrize(
    ("torch_cuda", "driver", "fits"),
    [
        ("13.0", (12, 4), False),
        ("12.8", (12, 4), True),
        ("12.1", (13, 0), True),
        (None, (12, 4), True),
        ("13.0", None, True),
    ],
)
def test_a_torch_newer_than_the_driver_is_named_with_the_remedy(torch_cuda, driver, fits):
    reason = toolkit.torch_misfit(torch_cuda, driver)
    assert (reason is None) == fits
    if reason:
        assert "built for CUDA 13.0" in reason
        assert "serves CUDA 12.4" in reason
        assert reason.endswith(
            "install a torch for CUDA 12 (https://pytorch.org/get-started/locally)"
        )


@pytest.mark.parametrize(
    ("release", "known", "gpu", "driver", "words"),
    [
        ("13.0", (75, 80, 90, 120), 90, (13, 0), None),
        ("12.4", (50, 80, 90), 90, None, None),
        ("13.0", (75, 80, 90, 120), 90, (12, 4), "newer than the driver.*CUDA 12.4.*CUDA_HOME"),
        ("12.4", (50, 80, 90), 120, (13, 0), r"too old for this GPU \(sm_120\): pip install"),
        ("13.0", (75, 80, 90), 61, (13, 0), r"does not know this GPU \(sm_61\): set CUDA_HOME"),
        ("13.0", (), 90, (13, 0), None),  # a compiler that lists nothing is given a try
    ],
)
def test_a_compiler_that_does_not_fit_is_named_with_the_remedy(
    program, release, known, gpu, driver, words
):
    path = nvcc(program, release, *known)
    reason = toolkit.nvcc_misfit(path, [gpu], driver)
    if words is None:
        assert reason is None
    else:
        assert reason is not None
        assert re.search(words, reason)
        assert f"(CUDA {release})" in reason
        assert "\n" not in reason


def test_a_build_that_could_not_run_is_not_begun(program, monkeypatch, tmp_path):
    path = nvcc(program, "12.4", 80, 90)
    monkeypatch.setattr(library, "find_nvcc", lambda: path)
    monkeypatch.setattr(library, "cache_dir", lambda: tmp_path / "cache")
    with pytest.raises(library.BuildError, match=r"too old for this GPU \(sm_120\)"):
        library.build("cuda", (120,))


@pytest.mark.parametrize(
    ("capability", "known", "fits"),
    [
        ((9, 0), "sm_80 sm_90", True),
        ((8, 9), "sm_80 sm_90", True),  # code of the same major version
        ((8, 0), "sm_86 sm_90", False),  # of a newer minor one
        ((6, 1), "sm_75 sm_80 sm_90 sm_100 sm_120", False),
        ((12, 0), "sm_80 sm_90", False),
        ((12, 0), "sm_80 sm_90 compute_90", True),
        ((8, 6), "sm_90 compute_90", False),
        ((12, 1), "sm_120a compute_120a", False),
        ((9, 0), "sm_90a", True),
        ((9, 0), "gfx90a", True),  # nothing that is known is given a try
        ((9, 0), "", True),
    ],
)
def test_a_torch_without_kernels_for_the_gpu_is_named_with_the_remedy(capability, known, fits):
    reason = toolkit.kernels_misfit("A GPU", capability, known.split())
    assert (reason is None) == fits
    if reason:
        assert f"no kernels for A GPU (sm_{capability[0]}{capability[1]})" in reason
        assert "install one that has (https://pytorch.org" in reason


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that torch finds, but has no kernels for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GeForce GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def make_runtime(device: Literal["auto", "cuda"]) -> Runtime:
    return Runtime(device, 1, "auto", "auto", "float32", False)


@pytest.mark.usefixtures("old_gpu")
def test_the_cpu_serves_where_torch_has_no_kernels_for_the_gpu_and_says_so(caplog):
    runtime = make_runtime("auto")
    assert runtime.torch_device == torch.device("cpu")
    threads = torch.get_num_threads()
    runtime.start(seed=0)
    torch.set_num_threads(threads)
    assert "the CPU serves: this torch (CUDA 13.0) has no kernels for GeForce" in caplog.text
    with pytest.raises(
        UserError, match=r"device=cuda, but this torch .* \(sm_61\), it has sm_75, "
    ):
        _ = make_runtime("cuda").torch_device
    assert composition._by_device({"cpu": 1, "cuda": 2}, _root_=compose([])) == 1


def test_a_torch_without_cuda_beside_a_gpu_is_named(program, monkeypatch, caplog):
    program("nvidia-smi", **{"-L": "GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-0)"})
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    make_runtime("auto").start(seed=0)
    torch.set_num_threads(threads)
    assert "the CPU serves: there is an NVIDIA GPU but this torch has no CUDA" in caplog.text


def test_gpus_of_others_have_no_compiled_ops(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert toolkit.gpu_fault() is None
    with pytest.raises(library.BuildError, match="none for AMD"):
        library.build("cuda")


def test_doctor_names_a_torch_that_the_driver_cannot_serve(program, monkeypatch):
    program("nvidia-smi", **{"": SMI})
    monkeypatch.setattr(doctor.torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "native_trial", lambda _: doctor.Trial(1))
    assert any("this torch is built for CUDA 13.0" in fault for fault in doctor.faults())
