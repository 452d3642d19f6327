"""Compilers, drivers and GPUs that do not go together, played by small scripts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nerftrain import doctor
from nerftrain.ops import library, toolkit

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


def test_doctor_names_a_torch_that_the_driver_cannot_serve(program, monkeypatch):
    program("nvidia-smi", **{"": SMI})
    monkeypatch.setattr(doctor.torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "native_fault", lambda _: None)
    assert any("this torch is built for CUDA 13.0" in fault for fault in doctor.faults())
