"""What every CUDA kernel takes of a GPU, read off what ptxas said while it compiled.

A kernel is to live in registers: spilled ones and arrays indexed at run time (a stack frame) lie in
memory, which a GPU reads hundreds of cycles later. ALLOWED names those that may, each with why.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# A kernel's name as it stands in the table, and the reason why it may use local memory.
ALLOWED: dict[str, str] = {}

_ENTRY = re.compile(r"Compiling entry function '(?P<kernel>[^']+)' for 'sm_(?P<arch>\d+)a?'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class KernelUse(NamedTuple):
    """The registers of a thread, the shared memory of a block and the bytes in local memory."""

    kernel: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def in_local_memory(self) -> int:
        """The bytes that a thread keeps or moves outside its registers."""
        return self.stack + self.spill_stores + self.spill_loads


def parse(log: str) -> list[KernelUse]:
    """Return the use of each kernel and architecture, sorted by both.

    Raises ValueError where a kernel's figures are missing: such a log proves nothing.
    """
    uses = []
    blocks = re.split(r"(?=ptxas info\s*: Compiling entry function)", log)[1:]
    for block in blocks:
        entry, memory, registers = (
            _ENTRY.search(block),
            _MEMORY.search(block),
            _REGISTERS.search(block),
        )
        if not (entry and memory and registers):
            raise ValueError(f"ptxas says too little about a kernel: {block.splitlines()[0]}")
        shared = _SHARED.search(block)
        figures = (int(registers[1]), int(shared[1]) if shared else 0, *map(int, memory.groups()))
        uses.append(KernelUse(entry["kernel"], int(entry["arch"]), *figures))
    names = _demangled([use.kernel for use in uses])
    return sorted(use._replace(kernel=name) for use, name in zip(uses, names, strict=True))


def of_library(path: Path) -> list[KernelUse]:
    """Return the use of the kernels of a library that library.build made."""
    return parse(path.with_suffix(".log").read_text(encoding="utf-8"))


def offenders(uses: Iterable[KernelUse]) -> list[KernelUse]:
    """Return the kernels that use local memory without being allowed to."""
    return [use for use in uses if use.in_local_memory and use.kernel not in ALLOWED]


def table(uses: Iterable[KernelUse]) -> str:
    """Write a row per kernel: registers by architecture, then the most bytes on any of them."""
    by_kernel: dict[str, dict[int, KernelUse]] = {}
    for use in uses:
        by_kernel.setdefault(use.kernel, {})[use.architecture] = use
    architectures = sorted({a for row in by_kernel.values() for a in row})
    width = max(map(len, by_kernel), default=0)
    head = "".join(f"{f'sm_{a}':>8}" for a in architectures)
    lines = [
        "Registers of a thread by architecture; the most bytes of shared memory, stack and spills.",
        f"{'kernel':<{width}}{head}{'shared':>8}{'stack':>8}{'spills':>8}",
    ]
    lines += (f"{name:<{width}}{_cells(row, architectures)}" for name, row in by_kernel.items())
    return "\n".join(lines)


def _cells(row: dict[int, KernelUse], architectures: list[int]) -> str:
    registers = (row[a].registers if a in row else "-" for a in architectures)
    uses = row.values()
    spills = max(use.spill_stores + use.spill_loads for use in uses)
    figures = (*registers, max(u.shared for u in uses), max(u.stack for u in uses), spills)
    return "".join(f"{figure:>8}" for figure in figures)


def _demangled(names: list[str]) -> list[str]:
    tool = shutil.which("cu++filt") or shutil.which("c++filt") or shutil.which("llvm-cxxfilt")
    if tool is None or not names:
        return names
    result = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return [_short(line) for line in result.stdout.splitlines()]


def _short(name: str) -> str:
    """Leave out what all kernels have in common: result, namespace and parameters."""
    name = name.replace("nerftrain::", "").removeprefix("void ").replace("> >", ">>")
    return "".join(_before_parameters(name))


def _before_parameters(name: str) -> Iterator[str]:
    depth = 0
    for letter in name:
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return
        yield letter
