"""Every instruction set's kernels agree with the references, each in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nerftrain.errors import UserError
from nerftrain.ops import library

PROGRAM = """
import itertools
import sys
import torch
from nerftrain.ops import adam, hash_encoding, library, march, mlp
from nerftrain.types import Rays

library.set_mode("native")
torch.manual_seed(0)
of_space = hash_encoding.HashLevels.geometric(6, 4, 128, 12)
of_time = hash_encoding.HashLevels.geometric(6, 4, 64, 12, (3, 20))
try:
    library.native(torch.zeros(1))
    mlp.mlp(torch.zeros(4, 4), [torch.zeros(4, 4)])
except RuntimeError as error:
    sys.exit(f"absent: {error}")
for levels, features in itertools.product((of_space, of_time), (2, 4, 8)):
    table = torch.randn(levels.offsets[-1], features, requires_grad=True)
    positions = torch.rand(301, levels.num_axes, requires_grad=True)
    outs = []
    for encode in (hash_encoding.hash_encode, hash_encoding.hash_encode_reference):
        out = encode(positions, table, levels)
        outs.append((out, *torch.autograd.grad((out * out).sum(), (table, positions))))
    torch.testing.assert_close(outs[0][0], outs[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outs[0][1], outs[1][1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outs[0][2] / 128, outs[1][2] / 128, rtol=1e-4, atol=1e-4)
weights = [torch.randn(16, 7), torch.randn(16, 16), torch.randn(3, 16)]
x = torch.randn(700, 7)
torch.testing.assert_close(mlp.mlp(x, weights), mlp.mlp_reference(x, weights), rtol=1e-4, atol=1e-3)
ours = [torch.randn(1000) for _ in range(3)] + [torch.rand(1000)]
ours[1][::3] = 0
theirs = [t.clone() for t in ours]
for skip in (False, True):
    rates = adam.AdamRates(lr=0.01, beta1=0.9, beta2=0.99, eps=1e-15, weight_decay=0.1, skip=skip)
    adam.adam_step(*ours, rates, 3)
    adam.adam_reference(*theirs, rates, 3)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def marched_twice(rays, jitter, grid, steps):
    # the two passes of the body that CUDA has, too
    how = (rays.origins, rays.directions, *march.Marching(jitter, grid, steps).arguments(rays))
    counts, ends = torch.ops.nerftrain.march_count(*how)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    more = (offsets, int(offsets[-1]))
    written = torch.ops.nerftrain.march_write(*how, *more)
    return (*written, offsets, ends)


origins, targets = 4 * torch.rand(2501, 3) - 2, 2 * torch.rand(2501, 3) - 1
directions = torch.nn.functional.normalize(targets - origins, dim=1)
directions[::7, 0] = 0
directions[1::7, 1:] = 0
origins[::11] = (origins[::11] * 8).round() / 8  # on faces of cells
origins[5], directions[6], directions[8], origins[9] = torch.nan, torch.nan, 0, 1e30
near = torch.rand(2501)
rays = Rays(origins, directions, near, near + 4 * torch.rand(2501) - 0.2)
block = torch.arange(256) // 4
chequered = (block[:, None, None] + block[:, None] + block) % 2 == 0
for flags, settings in itertools.product(
    (torch.rand(1, 33, 16, 70) < 0.03, torch.rand(3, 32, 32, 32) < 0.3, chequered[None]),
    (
        (0.01, 0.0, 1000),
        (0.03, 0.0, 1000, 7),
        (0.01, 0.0, 50, 1),
        (0.01, 0.0, 5, 0),
        (0.01, 0.01, 1000),
        (0.0, 0.0, 200),
    ),
):
    grid = march.pack_grid(flags, (-1.0, -1.0, -0.7, 1.0, 1.2, 1.0))
    steps, jitter = march.March(*settings), torch.rand(len(rays))
    samples, ends = march.march_to(rays, jitter, grid, steps)
    packed = (samples.t_starts, samples.t_ends, samples.ray_indices, samples.offsets, ends)
    assert (len(samples) > 20) == (steps.max_samples > 0)
    for one, other in zip(packed, marched_twice(rays, jitter, grid, steps)):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
print("agree")
"""


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_kernels_of_an_instruction_set_agree_with_the_references(lanes: int) -> None:
    result = run(PROGRAM, NERFTRAIN_LANES=str(lanes))
    if "absent: " in result.stderr and "lacks the instruction set" in result.stderr:
        pytest.skip(f"this CPU lacks vectors of {lanes} floats")
    assert result.stdout.endswith("agree\n"), result.stderr


def test_machines_other_than_x86_are_served_by_portable_kernels_alone(tmp_path: Path) -> None:
    elsewhere = """
import platform
from nerftrain.ops import library
platform.machine = lambda: "aarch64"
library.CPU_FLAGS += ("-DNERFTRAIN_PORTABLE",)
"""
    asks = "\nprint([library._cpu_has(lanes) for lanes in library.CPU_ISA.values()])\n"
    result = run(elsewhere + PROGRAM + asks, NERFTRAIN_CACHE=str(tmp_path))
    assert result.stdout.endswith("agree\n[True, True, False, False, False, False]\n"), (
        result.stderr
    )


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ on PATH")
def test_what_clang_makes_agrees_with_the_references(tmp_path: Path) -> None:
    library.native(torch.zeros(1))
    lanes = min(torch.ops.nerftrain.use_lanes(0), library.CPU_ISA["avx512"])
    environment = {"CXX": "clang++", "NERFTRAIN_LANES": str(lanes)}
    result = run(PROGRAM, **environment, NERFTRAIN_CACHE=str(tmp_path))
    assert result.stdout.endswith("agree\n"), result.stderr


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_instruction_set_is_chosen_by_name_and_a_missing_one_refused_in_a_line() -> None:
    probe = torch.zeros(1)
    if not library.native(probe):
        pytest.skip("the compiled ops are not in use")
    best = torch.ops.nerftrain.use_lanes(0)
    try:
        library.set_cpu_isa("portable")
        assert torch.ops.nerftrain.use_lanes(-1) == 4  # asks for nothing
        assert not library.multiplies_bfloat16(probe)
        missing = [name for name, lanes in library.CPU_ISA.items() if lanes > best]
        for name in missing:
            with pytest.raises(UserError, match=rf"^runtime\.cpu_isa={name}: .* choose .*portable"):
                library.set_cpu_isa(name)
        library.set_cpu_isa("auto")
        assert torch.ops.nerftrain.use_lanes(-1) == best
        assert library.multiplies_bfloat16(probe) == (best >= 32)
    finally:
        torch.ops.nerftrain.use_lanes(0)
