"""C++ programs over csrc: most without torch, no GPU, and every bad access or number fatal."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from nerftrain.ops import library
from nerftrain.paths import data_dir

HERE = Path(__file__).parent
# No optimisation: it would take most of the time, and hide what the sanitizers look for.
FLAGS = ("-std=c++20", "-O0", "-g", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Werror")
SANITIZERS = (
    "-fsanitize=address,undefined,float-cast-overflow",  # the last is no part of undefined
    "-fno-sanitize-recover=all",
)


def run_program(name: str, folder: Path, *more: str, checks: tuple[str, ...] = SANITIZERS) -> str:
    """Compile and run one of the programs beside this file; return what it printed."""
    program = folder / name
    include = f"-I{data_dir('csrc') / 'common'}"
    source = str(HERE / f"{name}.cpp")
    flags = [*FLAGS, *checks, include]
    command = [library.find_cxx(), *flags, source, *more, "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if checks and ("unrecognized" in compiled.stderr or "cannot find" in compiled.stderr):
        pytest.skip(f"this compiler has no sanitizers: {compiled.stderr.splitlines()[-1]}")
    assert compiled.returncode == 0, compiled.stderr
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    ran = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_launches_visit_every_piece_once_beyond_32_bits_too(tmp_path):
    assert run_program("launch_arithmetic", tmp_path) == "ok\n"


def test_hostile_inputs_are_read_and_written_within_bounds(tmp_path):
    assert run_program("hostile_inputs", tmp_path) == "ok\n"


def test_bfloat16_kernels_multiply_as_those_in_single_precision(tmp_path):
    csrc = data_dir("csrc")
    kinds = ("portable", "avx512bf16", "amx")
    kernels = [str(csrc / "cpu" / f"{ops}_{kind}.cpp") for ops in ("mlp", "ngp") for kind in kinds]
    # The machine's own intrinsics are not asked for; what the compiler says of vectors as wide as
    # no register here does not matter.
    played = ("-D__AMX_BF16__", f"-I{HERE / 'emulated_avx512'}", f"-I{csrc}", "-Wno-psabi")
    assert run_program("bfloat16_kernels", tmp_path, *played, *kernels) == "ok\n"


@pytest.mark.parametrize("lanes", [library.CPU_ISA["avx512_bf16"]], indirect=True)
@pytest.mark.usefixtures("lanes")
def test_amx_kernels_as_compiled_multiply_as_those_in_single_precision(tmp_path):
    built, torch_libraries = library.build("cpu"), Path(torch.__file__).parent / "lib"
    linked = [str(built), f"-L{torch_libraries}", "-Wl,--disable-new-dtags"]
    linked += [f"-Wl,-rpath,{folder}" for folder in (built.parent, torch_libraries)]
    emulated = [str(HERE / "emulated_amx.cpp"), f"-I{data_dir('csrc')}"]
    printed = run_program("bfloat16_kernels", tmp_path, *emulated, *linked, checks=())
    if printed == "absent\n":
        pytest.skip("the compiler of the CPU ops knows no AMX")
    assert printed == "ok\n"
