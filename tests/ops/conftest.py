"""Devices, random inputs and tolerances that the tests of the ops share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from rounding import rounded, rounded_mlp
from torch import Tensor

from nerftrain.ops import library
from nerftrain.ops.march import Grid, pack_grid
from nerftrain.ops.warp import moved_by
from nerftrain.types import Rays, Samples

# GPUs that the host plays run the CUDA kernels on tensors of the CPU: as C++ (emulated_cuda), and
# as nvcc compiles them (played_ptx.h).
HOSTS = {"emulated": "emulated_ops", "played": "played_ops", "played_75": "played_ops_75"}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else ["emulated", "played"])]
# Of what is compiled in another way for GPUs before sm_80.
FILES_75 = ("test_hash_encoding.py", "test_ngp_half.py")
CPU_FILES = ("test_visit_ngp.py",)
# Sums of a few dozen terms near one, in another order than the reference's.
TOLERANCES = {
    torch.float32: {"rtol": 1e-4, "atol": 2e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of devices on every one."""
    if "device" in metafunc.fixturenames:
        older = Path(str(metafunc.module.__file__)).name in FILES_75 and "played" in DEVICES
        devices = [*DEVICES, *(["played_75"] if older else [])]
        metafunc.parametrize("device", devices, indirect=True, scope="session")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """A device that is present."""
    return torch.device("cpu" if request.param in HOSTS else request.param)


@pytest.fixture(autouse=True)
def _on_an_emulated_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CUDA kernels serve in tests of the emulated device."""
    callspec = getattr(request.node, "callspec", None)
    where = callspec.params.get("device", "cpu") if callspec else "cpu"
    of_the_cpu = {"lanes", "threads"} & {*request.fixturenames}
    of_the_cpu = of_the_cpu or request.node.path.name in CPU_FILES
    if where != "cpu" and of_the_cpu:
        pytest.skip("its kernels are for the CPU")
    if where in HOSTS:
        monkeypatch.setattr(torch.ops, "nerftrain", request.getfixturevalue(HOSTS[where]))
        monkeypatch.setattr(library, "on_cpu", lambda _: False)


@pytest.fixture(scope="session", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="session")
def assert_close() -> Callable[[object, object], None]:
    """Compare tensors, or sequences of them, within what their number type allows."""

    def compare(actual: object, expected: object) -> None:
        if isinstance(actual, Tensor):
            tolerance = TOLERANCES[actual.dtype]
            if actual.is_cuda:  # which adds up in any order
                tolerance = tolerance | {"atol": 2 * tolerance["atol"]}
            torch.testing.assert_close(actual, expected, **tolerance)
            return
        for a, e in zip(actual, expected, strict=True):
            compare(a, e)

    return compare


@pytest.fixture(autouse=True, scope="module")
def _compiled_ops() -> Iterator[None]:
    """A failed build fails these tests: references must not be compared with themselves."""
    library.set_mode("native")
    yield
    library.set_mode("auto")


@pytest.fixture(params=[4, 8, 16, 32, 64], ids=["portable", "avx2", "avx512", "avx512_bf16", "amx"])
def lanes(request: pytest.FixtureRequest) -> int:
    """Every instruction set that this CPU has."""
    try:
        assert library.native(torch.zeros(1))
        torch.ops.nerftrain.use_lanes(request.param)
    except RuntimeError as error:
        pytest.skip(f"{request.param} lanes: {str(error).splitlines()[0]}")
    finally:
        torch.ops.nerftrain.use_lanes(0)
    return request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_samples(device: torch.device) -> Callable[..., Samples]:
    """Make random packed samples; the first, the last and every third ray are empty."""

    def make(num_rays: int = 50, longest: int = 20, seed: int = 0, **kind: torch.dtype) -> Samples:
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(1, longest + 1, (num_rays,), generator=generator)
        counts[::3] = counts[-1:] = 0
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        rays = torch.arange(num_rays).repeat_interleave(counts)
        # Gaps and lengths alternate, so that intervals ascend and may leave holes between them.
        lengths = torch.rand(len(rays), 2, generator=generator, **kind) * 0.2
        ends = lengths.sum(1).cumsum(0)
        before = torch.cat([ends.new_zeros(1), ends])[offsets[:-1]]
        t_ends = ends - before[rays] + 0.5
        return Samples(t_ends - lengths[:, 0], t_ends, rays, offsets).to(device)

    return make


@pytest.fixture(scope="session")
def make_rays(device: torch.device) -> Callable[..., Rays]:
    """Make rays about the cube from -1 to 1: some start within it, some miss it."""

    def make(num_rays: int = 300, seed: int = 0, reach: float = 2.0) -> Rays:
        generator = torch.Generator().manual_seed(seed)
        origins = (torch.rand(num_rays, 3, generator=generator) * 2 - 1) * reach
        targets = torch.rand(num_rays, 3, generator=generator) * 2 - 1
        directions = torch.nn.functional.normalize(targets - origins, dim=1)
        near = torch.rand(num_rays, generator=generator) * 0.5
        far = near + torch.rand(num_rays, generator=generator) * 3 * reach
        return Rays(origins, directions, near, far).to(device)

    return make


@pytest.fixture(scope="session")
def chequered(device: torch.device) -> Grid:
    """Make a chequerboard of 4**3 cells: some rays meet more than a march has room to note."""
    blocks = torch.arange(72).view(-1, 1, 1) + torch.arange(72).view(-1, 1) + torch.arange(72)
    flags = (blocks % 2 == 0)[None]
    for axis in (1, 2, 3):
        flags = flags.repeat_interleave(4, dim=axis)
    return pack_grid(flags.to(device), (-1, -1, -1, 1, 1, 1))


@pytest.fixture(scope="session")
def make_grid(device: torch.device) -> Callable[..., Grid]:
    """Make a grid with holes of all sizes: of 16**3 cells, of 4**3 cells and of single ones."""

    def make(
        num_levels: int = 1,
        resolution: int = 32,
        share: float = 0.6,
        aabb: tuple[float, ...] = (-1, -1, -1, 1, 1, 1),
        seed: int = 0,
    ) -> Grid:
        generator = torch.Generator().manual_seed(seed)
        flags = torch.ones(num_levels, resolution, resolution, resolution, dtype=torch.bool)
        for block in (1, 4, 16):
            side = resolution // block
            kept = torch.rand(num_levels, side, side, side, generator=generator) < share
            for axis in (1, 2, 3):
                kept = kept.repeat_interleave(block, dim=axis)
            flags &= kept
        return pack_grid(flags.to(device), aabb)

    return make


@pytest.fixture
def rounded_networks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager]:
    """Lets references round as kernels in bfloat16 do, within a context."""

    @contextmanager
    def rounding() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("nerftrain.ops.ngp.mlp_reference", rounded_mlp)
            patch.setattr("nerftrain.ops.visit_ngp.moved_by", partial(moved_by, rounding=rounded))
            yield

    return rounding
