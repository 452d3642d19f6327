"""The host that plays a GPU for compiled kernels: what it finds, and what it counts."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cuda_on_host
import pytest
import torch

from nerftrain.ops import library
from nerftrain.ops.composite import composite
from nerftrain.ops.march import March, march, pack_grid, visible_samples
from nerftrain.types import Rays

HERE = Path(__file__).parent
FAULTS = {
    "none": None,
    "race": "a race: ld.shared.f32",
    "late write": "a race: st.shared.u32",
    "beyond shared memory": "beyond shared memory",
    "unaligned": "not aligned",
    "a lane that is absent": "a lane that does not take part",
    "a lane that has ended": "a lane that has ended is waited for",
    "a sum that others still add to": "a race: ld.shared.u32",
    "a wide read": "a race: ld.shared.v4.f32",
    "late write of what its thread has read, too": "a race: st.shared.u32",
    "a read beyond a tensor": "beyond the tensors that it may touch so: ld.global.f32",
    "a write to what is only read": "beyond the tensors that it may touch so: st.global.u32",
    "a read of what a lane beside it writes": "a race: ld.global.f32",
    "a write to the row of another block": "a race: st.global.f32",
    "a read of a total that others still add to": "a race: ld.global.f32",
}


# The fewest and the most clocks of a warp, but for those in which it begins and ends.
CLOCKS = {
    "256 sums, each of the last": (256 * 4, 256 * 4.2),
    "four chains of 64": (256, 256 * 1.2),
    "8 loads, each of the last": (8 * 250, 8 * 350),
    "8 loads at once": (250, 400),
    "64 stores of 32 to one bank": (64 * 32, 64 * 36),
}


class Program(NamedTuple):
    """Kernels that nvcc has compiled, and what launches them."""

    file: Path
    ptx: Path

    def run(self, argument: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PLAYED_PTX": str(self.ptx)}
        command = [str(self.file), str(argument)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Program]:
    """Compile a file of kernels beside this one."""

    @cache
    def compiled(name: str) -> Program:
        folder = tmp_path_factory.mktemp(name)
        source, target, as_cpp = HERE / f"{name}.cu", folder / name, folder / f"{name}.cpp"
        ptx = cuda_on_host.compile_ptx(source, folder)
        as_cpp.write_text(f'#include "{source}"\n')
        cuda_on_host.compile_host(as_cpp, target, "-DPLAYED_PTX", "-rdynamic")
        return Program(target, ptx)

    return compiled


@pytest.mark.parametrize("what", CLOCKS)
def test_how_long_a_gpu_would_take_follows_from_what_waits_for_what(
    program: Callable[[str], Program], what: str
) -> None:
    ran = program("timed_kernels").run(list(CLOCKS).index(what))
    assert ran.returncode == 0, ran.stderr
    clocks = float(ran.stdout.split()[-1]) * 1755 - 100  # at a clock rate, after a launch
    fewest, most = CLOCKS[what]
    assert fewest <= clocks <= most + 100


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_gpu_does_not_forgive_is_found(
    program: Callable[[str], Program], fault: str
) -> None:
    ran = program("faulty_kernels").run(list(FAULTS).index(fault))
    expected = FAULTS[fault]
    if expected is None:
        assert ran.stderr == ""
        assert [float(x) for x in ran.stdout.split()] == [
            pytest.approx(496 - 2**-15, abs=1e-6)
        ] * 64
    else:
        assert ran.returncode != 0
        assert "faulty_kernel" in ran.stderr
        assert expected in ran.stderr


class Counts(NamedTuple):
    """What a kernel has done (struct Counts of played_ptx.h)."""

    warps: int
    instructions: int  # issued to a warp
    of_lanes: int
    global_requests: int
    global_sectors: int  # of 32 bytes
    shared_requests: int
    shared_passes: int
    microseconds: float  # that processors would take (timed_ptx.h)


def counted(processors: int = 0) -> dict[str, Counts]:
    """Counts by kernel since they were last asked for.

    From now on they tell the time that so many processors take; none: no time.
    """
    library_file = Path(os.environ["PLAYED_PTX"]).with_name("nerftrain_played.so")
    played = ctypes.CDLL(str(library_file))
    played.played_counts.restype = ctypes.c_char_p
    found = {}
    for line in played.played_counts().decode().splitlines():
        name, *counts, microseconds = line.split()
        found[re.sub(r"^_ZN9nerftrain\d+", "", name)] = Counts(
            *map(int, counts), microseconds=float(microseconds)
        )
    played.time_on_processors(processors)
    return found


def test_what_kernels_do_for_many_rays(
    played_ops: Any,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """Rays that look at few cells wait little for those that look at many, and bytes are few."""
    monkeypatch.setattr(torch.ops, "nerftrain", played_ops)
    monkeypatch.setattr(library, "on_cpu", lambda _: False)
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, 64)
    ball = (axis.view(-1, 1, 1) ** 2 + axis.view(-1, 1) ** 2 + axis**2).sqrt()
    grid = pack_grid(((ball > 0.55) & (ball < 0.65))[None], (-1, -1, -1, 1, 1, 1))
    targets = torch.rand(6000, 3, generator=generator) * 2 - 1
    origins = torch.nn.functional.normalize(torch.randn(6000, 3, generator=generator)) * 3
    directions = torch.nn.functional.normalize(targets - origins)
    near, far = torch.full((6000,), 1.0), torch.full((6000,), 6.0)
    rays = Rays(origins, directions, near, far)
    counted(processors=2)
    samples = march(rays, near - 0.5, grid, March(0.01, 0.0, 1024))
    density = torch.rand(len(samples), generator=generator).mul(9).requires_grad_()
    colors = torch.rand(len(samples), 3, generator=generator, requires_grad=True)
    seen = composite(density, colors, samples)
    torch.autograd.grad(seen.channels.sum() + seen.opacity.sum(), (density, colors))
    visible_samples(samples, density.detach(), 1e-3, 0.0, 1e-3)
    kernels = counted()
    rows = [
        f"{name[:44]:44} {c.instructions / 6000:9.1f} {c.of_lanes / c.instructions:5.1f} "
        f"{c.global_sectors * 32 / 6000:11.0f} {c.shared_passes / max(c.shared_requests, 1):6.2f} "
        f"{c.microseconds:6.1f}"
        for name, c in sorted(kernels.items())
    ]
    head = f"{'PTX, of 6000 rays':44} {'a ray':>9} lanes {'bytes a ray':>11} passes {'us':>6}"
    record_property("printed", "\n".join([head, *rows]))

    def of(start: str) -> Counts:
        return next(counts for name, counts in kernels.items() if name.startswith(start))

    box = of("march_boxes_kernel")
    assert box.of_lanes / box.instructions > 13  # of 32
    for start, most in (("composite_forward", 36), ("composite_backward", 48)):
        # Little more than each number once.
        assert of(start).global_sectors * 32 < 1.2 * most * len(samples) + 200 * 6000
