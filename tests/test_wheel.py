"""The wheel, not only the checkout, works: installed alone, read-only, from another folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = [
    "scene.resolution=24",
    "scene.num_train=4",
    "scene.num_test=1",
    "trainer.steps=4",
    "trainer.orbit_frames=0",
    "trainer.sample_budget=2048",
    "sampler.grid.resolution=32",
    "model.encoding.log2_table_size=10",
    "model.encoding.finest_resolution=64",
    "logger=none",
    "runtime.device=cpu",
    "runtime.ops=native",
]


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder without what could lead it back to the checkout."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a release would hold."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("the wheel: pip install build")
    folder = tmp_path_factory.mktemp("wheel")
    offline = importlib.util.find_spec("hatchling") is not None
    isolation = ["--no-isolation"] if offline else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", folder, REPOSITORY]
    result = run(*command, cwd=folder)
    if result.returncode and not offline:
        pytest.skip(f"hatchling cannot be had: {(result.stdout + result.stderr).splitlines()[-1]}")
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with the wheel in a read-only folder; the rest is this environment's."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("installing the wheel: needs pip")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    result = run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    set_writable(packages, False)
    yield folder
    set_writable(packages, True)


def set_writable(folder: Path, writable: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writable else mode & ~0o222)


def files_of(folder: Path) -> dict[str, int]:
    """Every file and when it was written: even root, whom no mode holds back, leaves a trace."""
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def test_the_wheel_is_pure_and_holds_configuration_and_sources(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "csrc"):
        paths = [p for p in (REPOSITORY / folder).rglob("*") if p.is_file()]
        expected = {f"nerftrain/{p.relative_to(REPOSITORY).as_posix()}" for p in paths}
        assert len(expected) > 10
        assert expected <= names
    assert not [n for n in names if n.startswith(("tests/", "docs/")) or n.endswith(".pyc")]


def test_help_works_from_another_folder(installed, tmp_path):
    result = run(installed / "bin" / "nerftrain", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "scene" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_training_runs_from_a_read_only_installation(installed, tmp_path):
    (packages,) = installed.glob("lib/python*/site-packages")
    before = files_of(packages)
    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    command = installed / "bin" / "nerftrain"
    result = run(command, *TINY, "run_dir=run", cwd=work, NERFTRAIN_CACHE=str(cache))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "compiled in" in result.stderr  # the sources in the wheel are all there
    assert json.loads((work / "run" / "metrics.json").read_text())["steps"] == 4
    assert {p.name for p in work.iterdir()} == {"run"}
    assert "ops" in {p.name for p in cache.iterdir()}
    assert files_of(packages) == before

    where = "import nerftrain; print(nerftrain.__file__)"
    imported = run(installed / "bin" / "python", "-c", where, cwd=work).stdout.strip()
    assert Path(imported).is_relative_to(packages)
