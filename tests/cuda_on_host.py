"""Builds the CUDA sources for the host: as C++ with a GPU that ops/emulated_cuda plays, or as nvcc
compiles them, to PTX that ops/played_ptx.h plays."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from nerftrain.ops import library
from nerftrain.paths import data_dir

EMULATED = Path(__file__).parent / "ops" / "emulated_cuda"


def all_sources(folder: Path, *more: Path) -> Path:
    """Write one file that includes them all."""
    sources = [*more, *sorted((data_dir("csrc") / "cuda").glob("*.cu"))]
    target = folder / ("all.cpp" if more else "all.cu")
    target.write_text("".join(f'#include "{source}"\n' for source in sources))
    return target


def compile_ptx(source: Path, folder: Path, architecture: int = 90) -> Path:
    """Compile CUDA to PTX, unless it is there; without nvcc the test is skipped."""
    nvcc, target = library.find_nvcc(), folder / f"{source.stem}_{architecture}.ptx"
    if nvcc is None:
        pytest.skip("nvcc was not found: pip install 'nerftrain[cuda]'")
    flags = ["-std=c++20", "-O3", "-w", f"-arch=compute_{architecture}", *_of_torch()]
    if not target.exists():
        _run([nvcc, *flags, "-ptx", str(source), "-o", str(target)])
    return target


def compile_host(source: Path, target: Path, *flags: str) -> None:
    """Compile CUDA as C++ for the host."""
    always = ["-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-fno-math-errno"]
    always += ["-U_FORTIFY_SOURCE"]  # which takes a leap from stack to stack for an error
    # Some of torch's headers are found here first.
    always += [f"-I{EMULATED}", f"-I{data_dir('csrc') / 'common'}", *_of_torch()]
    _run([library.find_cxx(), *always, str(source), "-o", str(target), *flags])


def load_ops(folder: Path, name: str, *flags: str) -> Any:
    """Compile, unless they are there, and load the CUDA ops for the host, as torch.ops.NAME."""
    library.native(torch.zeros(1))
    target = folder / f"{name}.so"
    links = ["-shared", f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu"]
    source = all_sources(folder, data_dir("csrc") / "nerftrain.cpp")
    if not target.exists():
        compile_host(source, target, f"-DEMULATED_OPS={name}", *flags, *links)
    torch.ops.load_library(target)
    ops = getattr(torch.ops, name)
    for function, fake in library._fakes.items():
        if hasattr(ops, function):
            torch.library.register_fake(f"{name}::{function}", fake)
    return ops


def _of_torch() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    folders = (include, include / "torch" / "csrc" / "api" / "include")
    return ["-DUSE_CUDA", library.STABLE_ABI, *(f"-I{folder}" for folder in folders)]


def _run(command: list[str]) -> None:
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
