"""Fixtures that several test files share."""

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

from nerftrain.scenes.demo import render_folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real scenes; tests on them are skipped without it."""
    folder = os.environ.get("NERFTRAIN_TEST_DATA")
    if not folder:
        pytest.skip("real scenes: set NERFTRAIN_TEST_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.fail(f"NERFTRAIN_TEST_DATA={folder} is not a folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def _rendered_tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_scene")
    render_folder(folder, 24, 6, 2)
    return folder


@pytest.fixture
def tiny_scene_root(_rendered_tiny_scene: Path, tmp_path: Path) -> Path:
    """A Blender folder of one's own: 6 train and 2 test views of 24x24 pixels with alpha."""
    return shutil.copytree(_rendered_tiny_scene, tmp_path / "tiny")
