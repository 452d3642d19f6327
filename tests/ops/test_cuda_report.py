"""Reading what ptxas says of kernels; no compiler is needed."""

from __future__ import annotations

import pytest

from nerftrain.ops import cuda_report
from nerftrain.ops.cuda_report import KernelUse

SYMBOL = "_ZN9nerftrain11each_kernelINS_17CompositeBackwardIfEEEEvlT_"
# Of nvcc 13.0, the second kernel as it would be with a spill and shared memory.
LOG = f"""\
[1/2] nvcc -Xptxas=-v -c composite.cu -o composite.o
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '{SYMBOL}' for 'sm_90'
ptxas info    : Function properties for {SYMBOL}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 48 registers, used 0 barriers
ptxas info    : Compile time = 61.693 ms
ptxas info    : Compiling entry function '{SYMBOL}' for 'sm_120'
ptxas info    : Function properties for {SYMBOL}
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem
"""
KERNEL = "each_kernel<CompositeBackward<float>>"


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    """Demangled without a tool, which machines may lack."""
    name = "void nerftrain::each_kernel<nerftrain::CompositeBackward<float> >(long, nerftrain::X)"
    short = cuda_report._short(name)
    monkeypatch.setattr(cuda_report, "_demangled", lambda names: [short] * len(names))


def test_the_figures_of_each_kernel_and_architecture_are_read():
    assert cuda_report.parse(LOG) == [
        KernelUse(KERNEL, 90, 48, 0, 0, 0, 0),
        KernelUse(KERNEL, 120, 255, 1024, 8, 4, 12),
    ]


def test_a_kernel_that_spills_is_an_offender_unless_it_is_allowed(monkeypatch):
    uses = cuda_report.parse(LOG)
    assert cuda_report.offenders(uses) == uses[1:]
    monkeypatch.setattr(cuda_report, "ALLOWED", {KERNEL: "a reason"})
    assert cuda_report.offenders(uses) == []


def test_the_table_has_a_row_per_kernel_and_a_column_per_architecture():
    _, head, row = cuda_report.table(cuda_report.parse(LOG)).splitlines()
    assert head.split() == ["kernel", "sm_90", "sm_120", "shared", "stack", "spills"]
    assert row.split() == [KERNEL, "48", "255", "1024", "8", "16"]


@pytest.mark.parametrize("missing", ["Used 48 registers", "0 bytes stack frame, "])
def test_a_log_without_a_kernels_figures_proves_nothing(missing):
    with pytest.raises(ValueError, match="too little about a kernel"):
        cuda_report.parse(LOG.replace(missing, ""))
