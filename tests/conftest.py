"""Fixtures that several test files share."""

import contextlib
import functools
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

import cuda_on_host

from nerftrain.scenes.demo import render_folder

# Files with tests of ten seconds and more.
LONG = {
    "test_cuda_build.py",
    "test_played_ptx.py",
    "test_posing.py",
    "test_recording.py",
    "test_refinement.py",
    "test_wheel.py",
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, or a process is left alone with it while others have ended."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have to show: their property `printed`, whatever process ran them."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties if report.when == "call" else ():
            if name == "printed":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(str(text))


@pytest.fixture
def single_precision() -> Iterator[None]:
    """Keep CPU kernels from rounding to bfloat16, so that references are met to all digits."""
    import torch

    from nerftrain.ops import library

    library.native(torch.zeros(1))
    rounds = torch.ops.nerftrain.use_lanes(0) >= library.CPU_ISA["avx512_bf16"]
    torch.ops.nerftrain.use_lanes(library.CPU_ISA["avx512"] if rounds else 0)
    yield
    torch.ops.nerftrain.use_lanes(0)


@pytest.fixture(scope="session")
def emulated_ops(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The CUDA sources, as C++ of the host."""
    with _first_of_all_processes(tmp_path_factory, "emulated") as folder:
        return cuda_on_host.load_ops(folder, "nerftrain_emulated")


@pytest.fixture(scope="session")
def _played_library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with _first_of_all_processes(tmp_path_factory, "played") as folder:
        return cuda_on_host.load_ops(folder, "nerftrain_played", "-DPLAYED_PTX")


@pytest.fixture(scope="session")
def _played_ptx(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    @functools.cache
    def compiled(architecture: int) -> Path:
        with _first_of_all_processes(tmp_path_factory, "played") as folder:
            source = cuda_on_host.all_sources(folder)
            return cuda_on_host.compile_ptx(source, folder, architecture)

    return compiled


@pytest.fixture
def played_ops(
    monkeypatch: pytest.MonkeyPatch, _played_library: Any, _played_ptx: Callable[[int], Path]
) -> Any:
    """The CUDA kernels as nvcc compiles them, of which the host plays the PTX."""
    monkeypatch.setenv("PLAYED_PTX", str(_played_ptx(90)))
    return _played_library


@pytest.fixture
def played_ops_75(
    monkeypatch: pytest.MonkeyPatch, _played_library: Any, _played_ptx: Callable[[int], Path]
) -> Any:
    """As played_ops, for the oldest GPUs that have tensor cores for half precision."""
    monkeypatch.setenv("PLAYED_PTX", str(_played_ptx(75)))
    return _played_library


@contextlib.contextmanager
def _first_of_all_processes(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Lock a folder that all processes of these tests share: what one has built, serves all."""
    import fcntl  # here, for Windows lacks it

    folder = factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def real_scene() -> Callable[[str], Path]:
    """Find the folder of a real scene, as blender/lego; a test is skipped where its own is not."""
    folder = os.environ.get("NERFTRAIN_TEST_DATA")
    if not folder:
        pytest.skip("real scenes: set NERFTRAIN_TEST_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.fail(f"NERFTRAIN_TEST_DATA={folder} is not a folder")

    def find(name: str) -> Path:
        scene = Path(folder).resolve() / name
        if not scene.is_dir():
            pytest.skip(f"real scenes: {name} is not in {folder}")
        return scene

    return find


@pytest.fixture(scope="session")
def _rendered_tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_scene")
    render_folder(folder, 24, 6, 2)
    return folder


@pytest.fixture
def own_scene(real_scene: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copy a real scene, which may be read only, to spoil it."""

    def copy(name: str) -> Path:
        root = shutil.copytree(real_scene(name), tmp_path / "own")
        for path in (root, *root.rglob("*")):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
        return root

    return copy


@pytest.fixture(scope="session")
def pycolmap() -> Any:
    """What COLMAP models are read with; some Pythons and machines have no wheels of it."""
    return pytest.importorskip("pycolmap", reason="COLMAP models: pip install pycolmap")


@pytest.fixture
def tiny_scene_root(_rendered_tiny_scene: Path, tmp_path: Path) -> Path:
    """A Blender folder of one's own: 6 train and 2 test views of 24x24 pixels with alpha."""
    return shutil.copytree(_rendered_tiny_scene, tmp_path / "tiny")


@dataclass
class FileServer:
    """Public files as the web serves them, with its faults."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)  # path without the leading slash
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # of the next answers: bytes until they break off
    statuses: list[int] = field(default_factory=list)  # of the next answers
    content_type: str = "application/zip"
    says_length: bool = True
    requests: list[str] = field(default_factory=list)  # what range each asked for, "" for none
    sent: int = 0  # bytes of files

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


@pytest.fixture
def file_server() -> Iterator[FileServer]:
    """Serve files on this machine."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, state)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        server.shutdown()


def _answer(handler: BaseHTTPRequestHandler, state: FileServer) -> None:
    state.requests.append(handler.headers.get("Range") or "")
    content = state.files.get(handler.path[1:])
    status = state.statuses.pop(0) if state.statuses else 200 if content is not None else 404
    if status != 200 or content is None:
        handler.send_error(status)
        return
    tag = f'"{hash(content)}"'
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
    start = int(wanted[1]) if wanted and state.ranges else 0
    if handler.headers.get("If-Range") not in (None, tag):
        wanted, start = None, 0
    if start and start >= len(content):
        handler.send_error(416)
        return
    handler.send_response(206 if wanted and state.ranges else 200)
    if wanted and state.ranges:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    if state.says_length:
        handler.send_header("Content-Length", str(len(content) - start))
    handler.send_header("Content-Type", state.content_type)
    handler.send_header("ETag", tag)
    # Before the client sees a byte: it may close this answer unread and ask for the next.
    end = start + state.cuts.pop(0) if state.cuts else len(content)
    state.sent += len(content[start:end])
    handler.end_headers()
    handler.wfile.write(content[start:end])
    handler.close_connection = True
