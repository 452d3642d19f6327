"""The CUDA side compiles and links for every architecture, on machines without a GPU too."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nerftrain.ops import cuda_report, library
from nerftrain.paths import cache_dir


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, so that everything is compiled."""
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path))
    cache_dir.cache_clear()
    yield tmp_path
    cache_dir.cache_clear()


def undefined_symbols(path: Path) -> list[str]:
    """Names that the dynamic linker has to find elsewhere, less weak ones and the C runtimes'."""
    command = ["nm", "-D", "--undefined-only", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    strong = [line.split() for line in lines if " w " not in line]
    # The C and C++ runtimes' symbols carry versions; torch's do not.
    return [name for _, name in strong if "@" not in name]


@pytest.mark.skipif(
    library.find_nvcc() is None, reason="nvcc was not found: pip install 'nerftrain[cuda]'"
)
def test_cuda_ops_compile_link_and_stay_in_registers_on_every_architecture(cache, record_property):
    try:
        built = library.build("cuda", library.ALL_ARCHITECTURES)
    except library.BuildError as error:
        pytest.fail(f"{error}\n{error.log}")
    assert sorted((cache / "ops").iterdir()) == [built.with_suffix(".log"), built]
    assert library.build("cuda", (90,)) == built  # which serves each of its architectures

    uses = cuda_report.of_library(built)
    record_property("printed", cuda_report.table(uses))
    kernels = {use.kernel for use in uses}
    assert len(uses) == len(kernels) * len(library.ALL_ARCHITECTURES)
    assert {
        "each_kernel<MarchCount>",
        "each_level_kernel<HashEncodeForward<float, 2, 3>>",
    } <= kernels
    assert cuda_report.offenders(uses) == []
    assert cuda_report.ALLOWED.keys() <= kernels  # none that is no more

    binary = built.read_bytes()
    assert set(library.ALL_ARCHITECTURES) >= {75, 80, 86, 89, 90, 100, 120}
    assert [a for a in library.ALL_ARCHITECTURES if b"sm_%d" % a not in binary] == []

    names = undefined_symbols(built)
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    elsewhere = [name for name in names if not hasattr(torch_cpu, name)]
    assert len(names) > 20
    # What a torch without CUDA lacks, and one with it has: streams and error messages, no more.
    unknown = [
        n for n in elsewhere if not (n.startswith(("aoti_torch_", "torch_")) and "cuda" in n)
    ]
    assert unknown == []
