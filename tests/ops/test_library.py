"""Building, caching and loading the native library, and what each op registers with torch."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from registered import CPU_ONLY, GPU_ONLY, registered_ops

from nerftrain import ops
from nerftrain.errors import UserError
from nerftrain.ops import library
from nerftrain.ops.composite import composite
from nerftrain.ops.hash_encoding import HashLevels, hash_encode
from nerftrain.ops.mlp import BEST
from nerftrain.ops.spherical_harmonics import spherical_harmonics
from nerftrain.paths import cache_dir

TOY = 'extern "C" int answer() { return 42; }\n'
COMPILER = """#!/bin/sh
# A compiler whose version, speed and health the test decides; its calls are logged.
[ "$1" = --version ] && cat "{folder}/version" && exit
echo "$@" >> "{folder}/calls"
cat "{folder}/error" >&2 && exit 1
if [ -e "{folder}/meet" ]; then  # wait until two builds are under way
  touch "{folder}/meet/$(basename "$PWD")"
  for _ in $(seq 200); do [ $(ls -A "{folder}/meet" | wc -l) -ge 2 ] && break; sleep 0.1; done
fi
exec "{real}" "$@"
"""


@dataclass
class Toy:
    """A csrc of one line, a compiler to build it with and a cache of its own."""

    folder: Path

    @property
    def csrc(self) -> Path:
        return self.folder / "csrc"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def calls(self) -> int:
        log = self.folder / "calls"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def break_compiler(self, says: str = "toy.cpp:1:1: error: this compiler is broken") -> None:
        (self.folder / "error").write_text(says + "\n")

    def key(self) -> Path:
        library._version.cache_clear()  # a process asks a compiler only once
        return library._Plan("cpu", None).target


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    toy = Toy(tmp_path)
    (toy.csrc / "cpu").mkdir(parents=True)
    (toy.csrc / "nerftrain.cpp").write_text(TOY)
    (toy.csrc / "cpu" / "toy.cpp").write_text("int unused;\n")
    compiler = tmp_path / "c++"
    compiler.write_text(COMPILER.format(folder=tmp_path, real=library.find_cxx()))
    compiler.chmod(0o755)
    (tmp_path / "version").write_text("toy c++ 1.0\n")
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("NERFTRAIN_CACHE", str(toy.cache))
    monkeypatch.setattr(library, "data_dir", lambda name: tmp_path / name)
    cache_dir.cache_clear()
    yield toy
    cache_dir.cache_clear()
    library._version.cache_clear()


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a new process: nothing loaded yet, the default mode."""
    monkeypatch.setattr(library, "_load", functools.cache(library._load.__wrapped__))
    monkeypatch.setattr(library, "_mode", "auto")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDA_HOME")}
    command = [sys.executable, "-c", code]
    environment = inherited | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------- building, caching


def test_a_build_lands_in_the_cache_that_the_user_names(toy, capfd):
    built = library.build("cpu")
    assert built.parent == toy.cache / "ops"
    assert ctypes.CDLL(str(built)).answer() == 42
    assert [p.name for p in built.parent.iterdir()] == [built.name]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert "compiling the CPU ops (about 40 s, once per machine)" in said[0]
    assert re.search(r"compiled in \d+\.\d s", said[1])


def test_a_cached_library_needs_no_compiler_run_and_says_nothing(toy, capfd):
    built, calls = library.build("cpu"), toy.calls()
    assert calls > 0
    toy.break_compiler()
    capfd.readouterr()
    assert library.build("cpu") == built
    assert toy.calls() == calls
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("says", "remedy"),
    [
        (
            "g++-9: error: unrecognized command line option '-std=c++20'; did you mean ...",
            "the C++ compiler does not know C++20: install g++ 10",
        ),
        (
            "error: invalid value 'c++20' in '-std=c++20'",
            "the C++ compiler does not know C++20: install g++ 10",
        ),
        (
            "nvcc warning : The -std=c++20 flag is not supported with the configured host "
            "compiler. Flag will be ignored.\nbit_cast.h(29): error: type name is not allowed",
            "the C++ compiler does not know C++20",
        ),
        (
            "nvcc fatal   : Value 'c++20' is not defined for option 'std'",
            "this nvcc does not know C++20: pip install",
        ),
        (
            "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later "
            "than 13 are not supported! The nvcc flag '-allow-unsupported-compiler' can be used",
            "install g++-13 and set CXX=g++-13",
        ),
        (
            "error: #error -- unsupported clang version! clang version must be less than 18 and "
            "greater than 3.2 .",
            "no clang as new as 18",
        ),
    ],
)
def test_what_is_wrong_with_a_compiler_is_said_with_the_remedy(toy, says, remedy):
    toy.break_compiler(says)
    with pytest.raises(library.BuildError, match=re.escape(remedy)) as caught:
        library.build("cpu")
    assert len(str(caught.value).splitlines()) == 1
    assert says in caught.value.log


@pytest.mark.parametrize(
    ("environment", "on_path", "expected"),
    [
        ({}, ["g++"], []),
        ({}, ["clang++"], ["-ccbin", "clang++"]),
        ({"CXX": "g++-12"}, ["g++", "g++-12"], ["-ccbin", "g++-12"]),
        ({"CXX": "g++-12", "NVCC_CCBIN": "g++-11"}, ["g++"], []),
        ({"CXX": "g++-12", "NVCC_PREPEND_FLAGS": "-ccbin=g++-11"}, ["g++"], []),
        ({"CXX": "g++-12", "NVCC_APPEND_FLAGS": "--compiler-bindir g++-11"}, ["g++"], []),
        ({"CXX": "g++-12", "NVCC_APPEND_FLAGS": "-lineinfo"}, ["g++"], ["-ccbin", "g++-12"]),
    ],
)
def test_nvcc_calls_the_compiler_that_the_user_names(monkeypatch, environment, on_path, expected):
    for name in ("CXX", "NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(library.shutil, "which", lambda name: name if name in on_path else None)
    assert library._host_compiler() == expected


def test_a_failed_build_names_its_cause_and_leaves_nothing_behind(toy):
    toy.break_compiler()
    with pytest.raises(library.BuildError, match="error: this compiler is broken") as caught:
        library.build("cpu")
    assert "nerftrain doctor" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "toy.cpp" in caught.value.log
    assert list((toy.cache / "ops").iterdir()) == []
    (toy.folder / "error").unlink()
    assert library.build("cpu").exists()  # and the next attempt is not held up


def test_what_a_killed_build_left_does_not_block_the_next(toy):
    left = toy.cache / "ops" / ".build-killed"
    left.mkdir(parents=True)
    (left / "build.ninja").write_text("broken")
    (left / ".ninja_lock").touch()
    (toy.cache / "ops" / "lock").touch()
    assert ctypes.CDLL(str(library.build("cpu"))).answer() == 42


def test_two_processes_that_build_at_once_both_succeed_and_leave_one_library(toy):
    (toy.folder / "meet").mkdir()
    code = (
        "import sys, pathlib\nfrom nerftrain.ops import library\n"
        "library.data_dir = lambda name: pathlib.Path(sys.argv[1])\nprint(library.build('cpu'))"
    )
    command = [sys.executable, "-c", code, str(toy.csrc)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert toy.calls() == 6  # two sources and a link, twice: neither waited for the other
    assert [str(p) for p in (toy.cache / "ops").iterdir()] == [outputs[0]]
    assert ctypes.CDLL(outputs[0]).answer() == 42


def edit_source(toy: Toy, _: pytest.MonkeyPatch) -> None:
    (toy.csrc / "cpu" / "toy.cpp").write_text("int changed;\n")


def add_header(toy: Toy, _: pytest.MonkeyPatch) -> None:
    (toy.csrc / "cpu" / "toy.h").touch()


def upgrade_torch(_: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "99.0")


def upgrade_compiler(toy: Toy, _: pytest.MonkeyPatch) -> None:
    (toy.folder / "version").write_text("toy c++ 2.0\n")


def change_flags(_: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "CPU_FLAGS", (*library.CPU_FLAGS, "-g"))


def change_isa_flags(_: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ISA_FLAGS", {"_avx2": "-mavx2"})


def change_machine(_: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.platform, "machine", lambda: "riscv64")


CHANGES = (
    edit_source,
    add_header,
    upgrade_torch,
    upgrade_compiler,
    change_flags,
    change_isa_flags,
    change_machine,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_decides_the_outcome_changes_the_key(toy, monkeypatch, change):
    before = toy.key()
    assert toy.key() == before
    change(toy, monkeypatch)
    assert toy.key() != before


@pytest.mark.parametrize("architectures", [(80,), (80, 90)])
def test_cuda_architectures_change_the_key(toy, monkeypatch, architectures):
    monkeypatch.setattr(library, "find_nvcc", lambda: str(toy.folder / "c++"))
    keys = {library._Plan("cuda", a).target.name for a in ((75,), architectures)}
    assert len(keys) == 2


def test_cxx_decides_the_compiler_and_a_wrong_one_falls_back(toy, monkeypatch):
    assert library.find_cxx() == str(toy.folder / "c++")
    monkeypatch.setenv("CXX", str(toy.folder / "missing"))
    assert library.find_cxx() not in (None, str(toy.folder / "missing"))


def test_folders_with_spaces_and_dollars_reach_the_compiler_whole(toy, monkeypatch):
    monkeypatch.setattr(torch, "__file__", "/my $files/torch/__init__.py")
    text = library._Plan("cpu", None).files()["build.ninja"]
    commands = [line.partition(" = ")[2] for line in text.splitlines() if "command = " in line]
    words = [shlex.split(command.replace("$$", "$")) for command in commands]
    assert "/my $files/torch/include" in words[0]
    assert words[1][-2:] == ["-ltorch", "-ltorch_cpu"]


def test_cuda_home_decides_nvcc(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert library.find_nvcc() == str(nvcc)


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that cannot be made, for root too: its parent is a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path / "file" / "cache"))
    cache_dir.cache_clear()
    yield tmp_path / "file" / "cache"
    if cache_dir().parent == Path(tempfile.gettempdir()):
        shutil.rmtree(cache_dir())
    cache_dir.cache_clear()


def test_a_cache_that_cannot_be_written_gives_way_to_a_temporary_one(no_cache, caplog):
    folder = cache_dir()
    assert folder.parent == Path(tempfile.gettempdir())
    assert list(folder.iterdir()) == []
    assert cache_dir() == folder
    assert len(caplog.messages) == 1
    assert str(no_cache) in caplog.text
    assert "set NERFTRAIN_CACHE" in caplog.text


# ---------------------------------------------------------------------------------- falling back

# Every op in a small training, of which nothing may hang on a compiler.
TRAINING = """
import torch
from nerftrain.errors import UserError
from nerftrain.ops import adam, composite, hash_encoding, library, march, mlp, spherical_harmonics
from nerftrain.types import Rays
torch.manual_seed(0)
levels = hash_encoding.HashLevels.geometric(3, 4, 16, 10)
parameters = [torch.rand(levels.offsets[-1], 4), torch.randn(16, 16) / 4, torch.randn(4, 16) / 4]
moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=1)
ones = torch.ones(64)
rays = Rays(-3 * directions, directions, 0.5 * ones, 6 * ones)
grid = march.pack_grid(torch.ones(1, 16, 16, 16, dtype=torch.bool), (-1, -1, -1, 1, 1, 1))
steps = march.March(0.05, 0.0, 200)
target = directions.abs()
rates = adam.AdamRates(0.03, 0.9, 0.99, 1e-8, 0.0, True)
losses = []
for step in range(1, 16):
    samples = march.march(rays, ones * 0.5, grid, steps)
    middle = (samples.t_starts + samples.t_ends)[:, None] / 2
    at, along = rays.origins[samples.ray_indices], directions[samples.ray_indices]
    leaves = [p.requires_grad_() for p in parameters]
    features = hash_encoding.hash_encode((at + middle * along) / 2 + 0.5, leaves[0], levels)
    view = spherical_harmonics.spherical_harmonics(along, 2)
    out = mlp.mlp(torch.cat([features, view], 1), leaves[1:])
    seen = march.visible_samples(samples, out[:, 0].detach().exp(), 0.0, 0.0, 0.0)
    assert seen.all()
    image = composite.composite(out[:, 0].exp(), out[:, 1:].sigmoid(), samples)
    loss = (image.channels - target).square().mean()
    losses.append(loss.item())
    gradients = torch.autograd.grad(loss, leaves)
    parameters = [p.detach() for p in parameters]
    for p, g, m in zip(parameters, gradients, moments):
        adam.adam_step(p, g, *m, rates, step)
assert losses[-1] < 0.5 * losses[0], losses
library.set_mode("native")
try:
    spherical_harmonics.spherical_harmonics(directions, 2)
except UserError as error:
    print(error)
"""


def test_without_a_compiler_training_goes_on_with_exactly_one_warning(tmp_path):
    result = run_python(TRAINING, PATH=str(tmp_path), NERFTRAIN_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr
    warnings = result.stderr.splitlines()
    assert len(warnings) == 1
    assert "torch references serve (slow)" in warnings[0]
    assert "install g++ or clang" in warnings[0]
    assert result.stdout.startswith("runtime.ops=native, but no C++ compiler was found: install")


def test_a_compiler_that_fails_is_said_once_and_refused_where_compiled_ops_are_asked_for(
    toy, unloaded, caplog
):
    toy.break_compiler()
    x = torch.zeros(2, 3)
    assert not library.native(x)
    calls = toy.calls()
    assert not library.native(x)
    assert toy.calls() == calls  # it is not tried again
    assert len(caplog.messages) == 1
    assert "error: this compiler is broken" in caplog.messages[0]
    library.set_mode("native")
    with pytest.raises(UserError, match=r"runtime\.ops=native, but .*this compiler is broken"):
        library.native(x)


def test_on_windows_no_compiler_is_asked_and_wsl_is_named(toy, unloaded, caplog, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not library.native(torch.zeros(1))
    assert toy.calls() == 0
    assert len(caplog.messages) == 1
    assert "(slow): there are none for Windows: use WSL" in caplog.text


def test_without_ninja_the_warning_says_what_to_install(toy, unloaded, caplog, monkeypatch):
    monkeypatch.setattr(library, "_ninja", lambda: str(toy.folder / "missing"))
    assert not library.native(torch.zeros(1))
    assert "pip install ninja" in caplog.text


def test_a_library_that_does_not_load_gives_way_to_the_references(unloaded, caplog, monkeypatch):
    monkeypatch.setattr(library, "build", lambda _: Path("missing.so"))
    assert not library.native(torch.zeros(1))
    assert "missing.so" in caplog.text


def test_reference_mode_neither_builds_nor_warns(unloaded, caplog, monkeypatch):
    monkeypatch.setattr(library, "build", lambda _: pytest.fail("built"))
    library.set_mode("reference")
    assert not library.native(torch.zeros(1))
    assert caplog.messages == []


def test_tensors_on_different_devices_are_refused(device):
    with pytest.raises(UserError, match=r"lie on .* and .*: move them with \.to\("):
        library.native(torch.zeros(1, device=device), torch.zeros(1, device="meta"))


def test_a_device_without_compiled_ops_is_served_by_references(unloaded):
    out = spherical_harmonics(torch.zeros(5, 3, device="meta"), 3)
    assert out.shape == (5, 9)
    library.set_mode("native")
    with pytest.raises(UserError, match="no compiled ops for meta"):
        library.native(out)


def test_status_builds_nothing_and_names_what_would_be_built(toy):
    rows = library.status()
    assert rows["C++ compiler"] == f"{toy.folder / 'c++'} (toy c++ 1.0)"
    assert "built on first use" in rows["cpu ops"]
    assert toy.calls() == 0
    library.build("cpu")
    assert library.status()["cpu ops"].endswith("(built)")


# ------------------------------------------------------------------------------- the ops in torch

for module in pkgutil.iter_modules(ops.__path__, "nerftrain.ops."):
    importlib.import_module(module.name)  # registers what its ops' outputs look like


def op_arguments(device: torch.device) -> dict[str, list[tuple]]:
    """One or more sets of arguments for every op."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype).to(device)

    flags = random(2, 16, 16, 16) < 0.5
    cells, blocks = (random(2, 64).mul(2**40).long(), random(2, 1).mul(2**40).long())
    poses = torch.eye(4, device=device)[:3].repeat(3, 1, 1)
    sizes = torch.tensor([[20.0, 10.0]] * 3, device=device)
    counts = torch.zeros(3, 11, 21, dtype=torch.int32, device=device)
    aabb = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
    offsets = torch.tensor([0, 4, 4, 9], device=device)
    ray_offsets = torch.zeros(6, dtype=torch.int64, device=device)
    keep = torch.ones(9, dtype=torch.bool, device=device)
    slices = offsets[:0].int()  # none of time
    march = [random(5, 3), random(5, 3), random(5), random(5) + 3, random(5), slices]
    boxes = aabb + [2 * bound for bound in aabb]
    pixels = [torch.tensor(x, device=device) for x in ([0, 1, 1], [5, 0, 2], [1, 1, 9])]
    march += [cells, blocks, boxes, [16] * 3, 16, 0.1, 0.0, 50, 20]
    arguments: dict[str, list[tuple]] = {
        "pack_grid": [(flags,)],
        "slice_grid": [(cells, random(3, 2, 8, 8, 8) < 0.5)],
        "visible_cells": [
            (poses, 9 * random(3, 4), sizes, counts, 1.0, boxes, [16] * 3, 0.1),
            (poses, 9 * random(3, 4), sizes, counts[:0], 1.0, aabb, [16] * 3, 0.1),
        ],
        "draw_pixels": [
            (offsets[1], 7, 10, 3, torch.arange(n, dtype=torch.int32, device=device), 5, 2)
            for n in (0, 10)
        ],
        "lens_rays": [
            (random(2, 3, 4), random(2, 4), faults, *how, *pixels)
            for faults, how in (
                (random(2, 4), (0, 6)),
                (random(2, 6), (1, 12)),
                (random(0, 4), (2, 0)),
            )
        ],
        "pixel_colors": [
            ((random(10, n) * 255).to(torch.uint8), offsets, random(4, 3)) for n in (3, 4)
        ],
        "march_count": [tuple(march)],
        "march_write": [(*march, ray_offsets, 0)],
        "select_count": [(keep, offsets)],
    }
    for dtype in (torch.float32, torch.float64):
        density, channels = random(9, dtype=dtype), random(9, 4, dtype=dtype)
        starts = torch.arange(9, device=device, dtype=dtype)
        packed = (density, channels, starts, starts + 1, offsets)
        rays = [random(3, dtype=dtype) for _ in range(5)]
        v_rays = (random(3, 4, dtype=dtype), *rays[2:])
        table, positions = random(157, 2, dtype=dtype), random(7, 3, dtype=dtype)
        levels, v = ([4, 4, 4, 9, 9, 9], [0, 125, 157]), random(7, 4, dtype=dtype)
        # The same table over four axes: again one level in order, the other hashed.
        moving = (random(7, 4, dtype=dtype), table)
        moving_levels = ([2, 2, 2, 3, 8, 8, 8, 4], [0, 125, 157])
        matrix = [random(6, 4, dtype=dtype) for _ in range(4)]
        one = torch.ones((), device=device)
        points = random(7, 3, dtype=dtype) * 4
        fine, coarse = (
            (random(5, n + 1, dtype=dtype).sort(1).values, random(5, n, dtype=dtype))
            for n in (6, 3)
        )
        intervals = (density, starts, starts + 1, offsets)
        visited = torch.tensor([1, 0, 3], device=device)
        round_offsets = torch.tensor([0, 2, 2, 4], device=device)
        a_round = starts[:4], starts[:4] + 1
        seen = visited.clone(), *(ray.clone() for ray in rays[:2])
        twice = torch.zeros(18, dtype=torch.int64, device=device)
        kept = random(18, dtype=dtype), random(18, dtype=dtype), twice, twice.clone()
        # Out of order, with a gap and without elements.
        chunks = [torch.tensor(x, device=device) for x in ([5, 0, 9], [4, 3, 0])]
        spans = torch.tensor([[0, 4], [4, 0], [4, 5]], device=device)
        bounds = torch.tensor([[0, 5], [5, 0], [5, 6]], device=device)
        more: dict[str, list[tuple]] = {
            "visible_samples": [
                (density, starts, starts + 1, offsets, density[:2], 0.1, light)
                for light in (density[:0], density[:3])
            ],
            "visit_count": [(offsets, visited, rays[0], 0.5, 2)],
            "visit_pick": [(starts, starts + 1, offsets, visited, round_offsets, 4)],
            "visit_take_": [
                (density[:4], *a_round, round_offsets, offsets, *seen, density.clone())
            ],
            "pixel_rays": [(random(2, 3, 4, dtype=dtype), random(2, 4, dtype=dtype), *pixels)],
            "over_background_fwd": [(points[:3], rays[0], points[3:6])],
            "over_background_bwd": [(points[:3], points[3:6])],
            "color_error": [
                (points[:3], points[3:6], keep[:3], offsets[1], 0.5),
                (points[:3], points[3:6], keep[:0], offsets[:0], float("inf")),
            ],
            "sample_points": [(points, points, *a_round, round_offsets)],
            "unit_points": [
                (points, points, *a_round, round_offsets, points[:2].flatten(), folding)
                for folding in range(3)
            ],
            "alpha_shares": [intervals],
            "fit": [(offsets[1:], 5)],
            "gather_rows": [
                (random(7, 4, dtype=dtype), offsets.clamp(max=6), random(2, 4, dtype=dtype)),
                (random(7, 3, dtype=dtype), offsets[:0], random(0, 3, dtype=dtype)),
            ],
            "select_pick": [(keep, starts, starts + 1, offsets, offsets, 9)],
            "select_more_": [
                (keep, starts, starts + 1, offsets, 2 * offsets, offsets.diff(), 9, *kept)
            ],
            "composite_fwd": [packed],
            "composite_bwd": [
                (*packed, density, density, *rays[:2], *v_rays, density, density, density),
                (*packed, density, density, *rays[:2], v_rays[0], *[density[:0]] * 6),
            ],
            "hash_encode_fwd": [(positions, table, *levels), (*moving, *moving_levels)],
            "hash_encode_bwd": [
                *[(positions, table, v, *levels, to) for to in (False, True)],
                *[(*moving, v, *moving_levels, to) for to in (False, True)],
            ],
            "spherical_harmonics_fwd": [(positions, degree) for degree in (1, 4)],
            "spherical_harmonics_bwd": [(positions, random(7, 9, dtype=dtype), 3)],
            "contract_fwd": [(points, infinity_norm) for infinity_norm in (False, True)],
            "contract_bwd": [(points, positions, infinity) for infinity in (False, True)],
            "invert_cdf": [(*coarse, random(5, dtype=dtype), 4, 0.01)],
            "interlevel_fwd": [(*fine, *coarse)],
            "interlevel_bwd": [(*fine, *coarse, random(5, dtype=dtype))],
            "sample_importance": [(starts, starts, spans, rays[0], spans, bounds, 9, 11)],
            "search_edges": [(starts, spans, density, spans)],
            "distortion_fwd": [intervals],
            "distortion_bwd": [(*intervals, random(3, dtype=dtype))],
            "scan_sum": [
                (density, *chunks, inclusive, reverse)
                for inclusive in (False, True)
                for reverse in (False, True)
            ],
            "scan_prod_fwd": [(density, *chunks, inclusive) for inclusive in (False, True)],
            "scan_prod_bwd": [(density, *chunks, starts, inclusive) for inclusive in (False, True)],
            "ray_offsets": [(starts.long() // 2, 6)],
            "ray_sums": [
                (channels, starts.long() // 2, torch.tensor(in_order, device=device), 6)
                for in_order in (False, True)
            ],
            "adam_": [(*matrix, 0.1, 0.9, 0.99, 1e-8, 0.01, 3, skip) for skip in (False, True)],
            "adam_placed_": [
                (*matrix, copy, matrix[1][0, 0].float(), one, 0.9, 0.99, 1e-8, 0.01, True)
                for copy in (matrix[0].half(), matrix[0][:0].half())
            ],
        }
        for name, sets in more.items():
            arguments[name] = arguments.get(name, []) + sets
    if not library.on_cpu(flags):
        runs, nums = torch.tensor([[7 << 32]] * 5, device=device), ray_offsets[:5].int() + 1
        ends = 2 * torch.arange(6, device=device)
        none = ray_offsets[:0]
        empty = torch.zeros_like(cells, dtype=torch.uint8)
        arguments["march_runs"] = [(*march, empty, first) for first in (none.int(), nums)]
        arguments["march_fill"] = [(march[2], march[4], runs, nums, 0.1, 0.0, 50, ends, 12)]
        half = random(157, 2).half(), [4, 4, 4, 9, 9, 9], [0, 125, 157]
        arguments["hash_encode_half"] = [(random(7, 3), *half, none)]
        features, networks = random(7, 24).half(), (random(64 * 32), random(64 * (15 + 8)))
        arguments["ngp_half_density"] = [(features, networks[0], [24, 64, 8], none)]
        alone = features, random(16 * 25), random(7), [24, 16, 1], none, 4096.0
        arguments["ngp_half_density_bwd"] = [alone]
        shape = [24, 64, 8], [7 + 9, 64, 7], 3
        arguments["ngp_half_fwd"] = [(features, random(7, 3), *networks, *shape, none)]
        v = random(7, 7), random(7)
        both = features, random(7, 3), *networks, *v, *shape
        arguments["ngp_half_bwd"] = [(*both, used, 4096.0) for used in (none, offsets[:2])]
        moved = random(7, 3), random(7), random(64 * (12 + 3 * 64 + 3))
        arguments["warp_half_fwd"] = [(*moved, 1, 1, 0.1, none)]
        v = random(7, 3), 1, 1, 0.1
        arguments["warp_half_bwd"] = [(*moved, *v, used, 4096.0) for used in (none, offsets[:2])]
    else:
        weights = random(6 * 8 + 8 * 3)
        arguments["march"] = [tuple(march)]
        arguments["mlp_fwd"] = [(random(7, 6), weights, [6, 8, 3], BEST)]
        arguments["mlp_bwd"] = [(random(7, 6), weights, random(7, 3), [6, 8, 3], BEST)]
        matrix, copy = [random(6, 4) for _ in range(4)], random(6, 4).half()
        rates = 0.1, 0.9, 0.99, 1e-8, 0.01, 3, True
        arguments["adam_with_copy_"] = [(*matrix, copy, *rates, clear) for clear in (False, True)]
        hashed = [4, 4, 4, 9, 9, 9], [0, 125, 157]
        arguments["hash_encode_bwd_"] = [(random(7, 3), random(157, 2), random(7, 4), *hashed)]
        networks = random(6 * 8 + 8 * 3), random(6 * 8 + 8 * 4)
        shape = ([6, 8, 3], [6, 8, 4], 2, BEST)
        inputs = random(7, 6), random(7, 3), *networks
        arguments["ngp_density"] = [(inputs[0], networks[0], shape[0], BEST)]
        distances = torch.arange(9.0), torch.arange(9.0) + 1, offsets
        grids = random(157, 2), [4, 4, 4, 9, 9, 9], [0, 125, 157]
        moving_grids = random(157, 2), [2, 2, 2, 3, 8, 8, 8, 4], [0, 125, 157]
        none, warp = (random(0, 2), [], []), (random(12 * 8 + 8 * 3), [12, 8, 3], 1, 1, 0.1)
        still = random(0), [], 0, 0, 0.0
        fields = ((*none, *still), 4), ((*moving_grids, *still), 8), ((*none, *warp), 4)
        for more, num_inputs in fields:
            mlp_of = random(5 * num_inputs), [num_inputs, 5]
            ends = (*mlp_of, torch.tensor([-1.0, -1, -1, 1, 1, 1]), 1, 0.1, BEST)
            field = (*march[:2], random(5), *grids, *more, *ends, *march[2:])
            finds = arguments.setdefault("find_ngp", [])
            finds += [(*field, 0.1, 0.1, *asked) for asked in ((False, True), (True, False))]
            color = random(3 * 5), [5, 3], 1, 0.1, 0.1
            arguments.setdefault("render_ngp", []).append((*field, *color))
        arguments["select"] = [(keep, *distances)]
        arguments["ngp_fwd"] = [(*inputs, *shape)]
        arguments["ngp_bwd"] = [(*inputs, random(7, 4), random(7), *shape)]
    return arguments


@pytest.mark.parametrize("name", registered_ops())
def test_every_op_keeps_its_promises_to_torch(device, name):
    library.native(torch.zeros(1, device=device))
    on_cpu = library.on_cpu(torch.zeros(1, device=device))
    if name in (GPU_ONLY if on_cpu else CPU_ONLY):
        pytest.skip(f"its kernels are for {'a GPU' if on_cpu else 'the CPU'}")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if name != "march_runs":  # which leaves the runs that a ray does not need as they are
        checks = (*checks, "test_aot_dispatch_dynamic")
    for arguments in op_arguments(device)[name]:
        op = getattr(torch.ops.nerftrain, name).default
        torch.library.opcheck(op, arguments, test_utils=checks)


def test_a_render_compiles_whole_and_equals_the_eager_one(device, make_samples):
    levels = HashLevels.geometric(3, 4, 20, 10)
    samples = make_samples()
    generator = torch.Generator().manual_seed(1)
    positions = torch.rand(len(samples), 3, generator=generator).to(device)
    table = torch.randn(levels.offsets[-1], 4, generator=generator).to(device).requires_grad_()

    def render(positions: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = hash_encode(positions, table, levels)
        return tuple(composite(features[:, 0].exp(), features[:, 1:4].sigmoid(), samples))

    compiled = torch.compile(render, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, render):
        out = function(positions, table)
        loss = out[0].square().sum() + out[3].sum()
        results.append((*out, *torch.autograd.grad(loss, table)))
    # A GPU adds gradients up in any order.
    tolerance = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(*results, **tolerance)


COMPILED_FIRST = """
import torch
from nerftrain.ops.spherical_harmonics import spherical_harmonics
encode = torch.compile(lambda d: spherical_harmonics(d, 4), fullgraph=True, backend="aot_eager")
print(encode(torch.eye(3)).shape)
from nerftrain.ops.hash_encoding import HashLevels, hash_encode
from nerftrain.ops.importance import sample_importance  # noqa: F401  registers the module's fakes
levels = HashLevels((4,), (0, 125))
encode = torch.compile(lambda t: hash_encode(torch.eye(3), t, levels), fullgraph=True,
                       backend="aot_eager")
print(encode(torch.zeros(125, 2)).shape)
"""


def test_ops_may_be_compiled_before_the_library_is_loaded_and_imported_after_it():
    result = run_python(COMPILED_FIRST)
    assert result.stdout.split("\n")[:2] == ["torch.Size([3, 16])", "torch.Size([3, 2])"], (
        result.stderr
    )


def test_threads_that_need_the_ops_at_once_compile_them_once(monkeypatch):
    builds: list[str] = []

    def build(device_type: str) -> Path:
        builds.append(device_type)
        time.sleep(0.2)
        raise library.BuildError("no compiler")

    monkeypatch.setattr(library, "build", build)
    monkeypatch.setattr(library, "_load", functools.cache(library._load.__wrapped__))
    library.set_mode("auto")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(library.native, [torch.zeros(1)] * 4)) == [False] * 4
    library.set_mode("native")
    assert builds == ["cpu"]
