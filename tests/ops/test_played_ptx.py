"""The host that plays a GPU for compiled kernels finds what a GPU does not forgive."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cuda_on_host
import pytest

HERE = Path(__file__).parent
FAULTS = {
    "none": None,
    "race": "a race: ld.shared.f32",
    "late write": "a race: st.shared.u32",
    "beyond shared memory": "beyond shared memory",
    "unaligned": "not aligned",
    "a lane that is absent": "a lane that does not take part",
    "a lane that has ended": "lanes wait for others that never come",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program and its PTX."""
    folder = tmp_path_factory.mktemp("faulty")
    source, program = HERE / "faulty_kernels.cu", folder / "faulty"
    ptx = cuda_on_host.compile_ptx(source, folder)
    as_cpp = folder / "faulty.cpp"
    as_cpp.write_text(f'#include "{source}"\n')
    cuda_on_host.compile_host(as_cpp, program, "-DPLAYED_PTX", "-rdynamic")
    return program, ptx


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_gpu_does_not_forgive_is_found(program: tuple[Path, Path], fault: str) -> None:
    command = [str(program[0]), str(list(FAULTS).index(fault))]
    environment = {**os.environ, "PLAYED_PTX": str(program[1])}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = FAULTS[fault]
    if expected is None:
        assert ran.stderr == ""
        assert [float(x) for x in ran.stdout.split()] == [
            pytest.approx(496 - 2**-15, abs=1e-6)
        ] * 32
    else:
        assert ran.returncode != 0
        assert "faulty_kernel" in ran.stderr
        assert expected in ran.stderr
