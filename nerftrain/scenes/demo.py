"""A scene of our own: toys on a chequered table, rendered on the spot into the Blender layout."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nerftrain.cameras import look_at
from nerftrain.errors import UserError
from nerftrain.paths import cache_dir
from nerftrain.scenes import Scene, blender
from nerftrain.scenes.toys import CAMERA_ANGLE, render_view

VERSION = 2  # of what is rendered: part of the cache's key
CAMERA_DISTANCE = 4.0
MOST = {"resolution": 2048, "num_train": 10_000, "num_test": 10_000}

_log = logging.getLogger(__name__)


def load_scene(name: str, resolution: int, num_train: int, num_test: int) -> Scene:
    """Render the demo scene, or find it in the user's cache, and read it like any Blender folder.

    Args:
        name: of the scene.
        resolution: pixels, width and height of every view.
        num_train: views that are trained on.
        num_test: views that are judged.

    Raises:
        UserError: a number is below 1 or far too large, or no folder can be written to.
    """
    numbers = {"resolution": resolution, "num_train": num_train, "num_test": num_test}
    for key, value in numbers.items():
        if not 1 <= value <= MOST[key]:
            raise UserError(f"scene.{key}={value}: give at least 1, at most {MOST[key]}")
    key = hashlib.sha256(json.dumps([VERSION, numbers]).encode()).hexdigest()[:16]
    folder = cache_dir() / "demo" / key
    try:
        if not _is_complete(folder, num_train, num_test):
            _render_into(folder, resolution, num_train, num_test)
        return _read(name, folder)
    except OSError as error:
        _log.warning(
            "%s cannot be written (%s): the demo scene is rendered for this run alone; set "
            "NERFTRAIN_CACHE to a folder that can",
            folder.parent,
            error.strerror,
        )
    return _load_uncached(name, resolution, num_train, num_test)


def _load_uncached(name: str, resolution: int, num_train: int, num_test: int) -> Scene:
    try:
        with tempfile.TemporaryDirectory(prefix="nerftrain-demo-") as folder:
            render_folder(Path(folder), resolution, num_train, num_test)
            return _read(name, Path(folder))
    except OSError as error:
        raise UserError(
            f"the demo scene cannot be written to any folder ({error}): make room, or set "
            "NERFTRAIN_CACHE or TMPDIR to a folder that can be written"
        ) from error


def _read(name: str, folder: Path) -> Scene:
    return blender.load_scene(name, str(folder), None, 1.0, False, 2.0, 6.0, 1.5)


# The cache


def _is_complete(folder: Path, num_train: int, num_test: int) -> bool:
    names = ["transforms_train.json", "transforms_test.json"]
    names += [f"train/r_{i}.png" for i in range(num_train)]
    names += [f"test/r_{i}.png" for i in range(num_test)]
    return all((folder / name).is_file() for name in names)


def _render_into(folder: Path, resolution: int, num_train: int, num_test: int) -> None:
    """Render beside folder, then rename: nobody sees half a scene, whoever else writes it too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        render_folder(partial, resolution, num_train, num_test)
        if folder.exists() and not _is_complete(folder, num_train, num_test):
            shutil.rmtree(folder)
        try:
            partial.rename(folder)
        except OSError:
            if not _is_complete(folder, num_train, num_test):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# Views


def render_folder(folder: Path, resolution: int, num_train: int, num_test: int) -> None:
    """Write transforms_*.json, train/r_*.png and test/r_*.png into an existing folder."""
    views = {"train": _train_poses(num_train), "test": _test_poses(num_test)}
    jobs = []
    for split, poses in views.items():
        (folder / split).mkdir()
        _write_transforms(folder, split, poses)
        jobs += [(pose, folder / split / f"r_{index}.png") for index, pose in enumerate(poses)]

    def render(job: tuple[Tensor, Path]) -> None:
        pose, path = job
        Image.fromarray(render_view(pose, resolution).numpy()).save(path)

    with _one_thread_per_operation() as num_threads, ThreadPoolExecutor(num_threads) as pool:
        done = pool.map(render, jobs)
        for _ in tqdm(done, total=len(jobs), desc="rendering the demo scene", disable=None):
            pass


@contextmanager
def _one_thread_per_operation() -> Iterator[int]:
    """Let whole views run side by side instead; yields how many should.

    A view is thousands of short operations: threads that meet at the end of each wait longer than
    they work as soon as the machine has anything else to do.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield min(num_threads, 4)  # more would queue for Python's lock
    finally:
        torch.set_num_threads(num_threads)


def _write_transforms(folder: Path, split: str, poses: Tensor) -> None:
    frames = [
        {"file_path": f"./{split}/r_{index}", "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]}
        for index, pose in enumerate(poses)
    ]
    content = json.dumps({"camera_angle_x": CAMERA_ANGLE, "frames": frames}, indent=1)
    (folder / f"transforms_{split}.json").write_text(content)


def _train_poses(num_views: int) -> Tensor:
    """Spread cameras evenly over the sphere between 10 degrees below the horizon and 80 above."""
    order = torch.arange(num_views, dtype=torch.float64)
    golden_angle = math.pi * (3 - math.sqrt(5))
    low, high = math.sin(math.radians(-10)), math.sin(math.radians(80))
    return _poses_at(
        order * golden_angle, torch.asin(low + (high - low) * (order + 0.5) / num_views)
    )


def _test_poses(num_views: int) -> Tensor:
    """Make one turn that rises from 15 to 45 degrees and falls back."""
    turn = (torch.arange(num_views, dtype=torch.float64) + 0.25) * (2 * math.pi / num_views)
    return _poses_at(turn, torch.deg2rad(30 - 15 * torch.cos(turn)))


def _poses_at(azimuths: Tensor, elevations: Tensor) -> Tensor:
    offsets = [
        elevations.cos() * azimuths.cos(),
        elevations.cos() * azimuths.sin(),
        elevations.sin(),
    ]
    positions = CAMERA_DISTANCE * torch.stack(offsets, dim=1)
    return look_at(positions, torch.zeros(3).double(), torch.tensor([0.0, 0.0, 1.0]).double())
