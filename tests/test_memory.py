"""How much memory is free, images that do not fit, and memory that has run out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from nerftrain import memory, trainer
from nerftrain.cli import main
from nerftrain.errors import UserError
from nerftrain.scenes import Scene

GIB = 2**30


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container of its own, and a system with 8 GiB to spare."""
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    monkeypatch.setattr(memory, "_KNOWN", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * 2**20} kB\n")
    return tmp_path


def limit(group: Path, most: str, used: int, files: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files}\n")


def test_this_machine_has_memory():
    free = memory.free_memory()
    assert free is not None
    assert 2**26 < free < 2**50


def test_the_least_of_what_the_system_and_a_container_leave(group: Path):
    assert memory.free_memory() == 8 * GIB
    limit(group, "max", 3 * GIB, GIB)
    assert memory.free_memory() == 8 * GIB
    limit(group, str(4 * GIB), 3 * GIB, GIB)
    assert memory.free_memory() == 2 * GIB
    (group / "meminfo").write_text("MemTotal: 1 kB\n")  # of an old kernel: what there is at all
    limit(group, str(2**60), 0, 0)
    assert 2**26 < (memory.free_memory() or 0) < 2**50


def test_where_nothing_is_known_nothing_is_refused(group: Path, monkeypatch):
    (group / "meminfo").unlink()
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.free_memory() is None
    memory.check_images_fit(2**60)
    limit(group, str(4 * GIB), 3 * GIB, 0)
    assert memory.free_memory() == GIB


def test_images_that_do_not_fit_are_refused_with_how_small_would(group: Path):
    memory.check_images_fit(7 * GIB)
    with pytest.raises(UserError) as caught:
        memory.check_images_fit(28 * GIB)
    assert str(caught.value) == (
        "the images take 28.0 GiB of memory, of which 8.0 GiB are free: give a larger "
        "scene.downscale (images 3 times smaller take 3.1 GiB)"
    )


@pytest.mark.parametrize("kind", ["blender", "transforms"])
def test_a_scene_that_does_not_fit_is_one_line_and_leaves_nothing(
    kind: str, tiny_scene_root: Path, tmp_path: Path, monkeypatch, capsys
):
    if kind == "transforms":
        content = json.loads((tiny_scene_root / "transforms_train.json").read_text())
        for frame in content["frames"]:
            frame["file_path"] += ".png"
        (tiny_scene_root / "transforms.json").write_text(json.dumps(content))
    monkeypatch.setattr(memory, "free_memory", lambda: 5000)
    run_dir = tmp_path / "run"
    assert main([f"scene={kind}", f"scene.root={tiny_scene_root}", f"run_dir={run_dir}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "give a larger scene.downscale (images 3 times smaller take" in lines[0]
    assert not run_dir.exists()


def test_images_that_do_not_fit_on_the_gpu_are_refused():
    def to(device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    pixels = torch.empty(2**30, 3, dtype=torch.uint8)  # never touched
    scene = SimpleNamespace(splits={"train": SimpleNamespace(pixels=pixels)}, to=to)
    with pytest.raises(UserError, match=r"^the images take 3\.0 GiB, more than the GPU has free: "):
        trainer._on_device(cast("Scene", scene), torch.device("cuda"))


# Memory that runs out, in a process that may not have much


def limited(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in which `short()` leaves the process no more memory than 64 MiB."""
    begin = (
        "import resource, torch\n"
        "from nerftrain import memory\n"
        "from nerftrain.ops import library\n"
        "library.native(torch.zeros(1))\n"
        "def short():\n"
        "    taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20),) * 2)\n"
    )
    command = [sys.executable, "-c", begin + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize(
    "take",
    [
        "torch.empty(1 << 30)",
        "torch.ops.nerftrain.scan_sum(*scan, True, False)",
        "bytearray(1 << 30)",
    ],
)
def test_memory_that_has_run_out_is_known_by_every_name(take):
    code = (
        "scan = torch.ones(1 << 26), torch.zeros(1, dtype=torch.int64), torch.tensor([1 << 26])\n"
        "short()\n"
        f"try:\n    {take}\n"
        "except Exception as error:\n"
        "    print(memory.has_run_out(error), type(error).__name__, error)\n"
    )
    done = limited(code)
    assert done.stdout.startswith("True "), (done.stdout, done.stderr)


def test_other_errors_are_no_lack_of_memory():
    for error in (RuntimeError("CUDA error: an illegal memory access"), ValueError("empty")):
        assert not memory.has_run_out(error)
    assert not memory.has_run_out(RuntimeError('"aten::copy_" API call failed at ops.h'))
