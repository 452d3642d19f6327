"""Depths by COLMAP's points: in the pixels that show them, whatever the format, lens or turn."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from colmap_captures import ROTATIONS, capture, load, refused, turned_on_its_side
from PIL import Image

from nerftrain import paths
from nerftrain.cameras import pixel_rays
from nerftrain.scenes import Scene, Split
from nerftrain.scenes.colmap_points import LEAST_TRACK, read_points

pycolmap = pytest.importorskip("pycolmap", reason="COLMAP models: pip install pycolmap")


PLACES = np.array([1.0, 2, 3]) + np.random.default_rng(1).uniform(-0.8, 0.8, (40, 3))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path / "cache"))
    paths.cache_dir.cache_clear()
    yield
    paths.cache_dir.cache_clear()


def add_points(root: Path, binary: bool = True, images_each: int = 10, shift: float = 0.0) -> None:
    """Find PLACES in the images of a capture, as COLMAP does."""
    folder = root / "sparse/0"
    model = pycolmap.Reconstruction(str(folder))
    for image in model.images.values():
        seen = [image.project_point(place) for place in PLACES]
        assert all(xy is not None for xy in seen)
        points = [
            pycolmap.Point2D(np.array([7.0, 5.0])),
            *(pycolmap.Point2D(xy + shift) for xy in seen),
        ]
        image.points2D = pycolmap.Point2DList(points)  # the first of them is of no point
    for number, place in enumerate(PLACES, start=1):
        track = pycolmap.Track()
        for image in sorted(model.images)[:images_each]:
            track.add_element(image, number)
        model.add_point3D(place, track)
    for file in folder.iterdir():
        file.unlink()
    (model.write_binary if binary else model.write_text)(str(folder))


def depths_of(split: Split) -> torch.Tensor:
    """Look up those of all pixels, [P]."""
    assert split.depths is not None
    return split.depths.at(torch.arange(len(split.pixels)))


def in_space(scene: Scene, split: Split) -> torch.Tensor:
    """Follow the rays of all pixels whose depth is known, to the dataset's coordinates [n, 3]."""
    depths = depths_of(split)
    pixels = depths.nonzero()[:, 0]
    rays = pixel_rays(split.cameras, *split.locate(pixels), 0.0, 1.0)
    ends = rays.origins + depths[pixels][:, None] * rays.directions
    assert scene.world is not None
    back = torch.linalg.inv(scene.world)
    return ends.double() @ back[:3, :3].T + back[:3, 3]


def assert_right(scene: Scene, coarseness: float = 1.0) -> None:
    """Check that depths are where the points are, as exactly as pixels are small."""
    assert scene.splits["test"].depths is None
    train = scene.splits["train"]
    ends = in_space(scene, train)
    assert 0.7 * len(PLACES) * len(train) < len(ends) <= len(PLACES) * len(train)
    off = torch.cdist(ends, torch.from_numpy(PLACES)).amin(1)
    # Half a pixel's diagonal at a focal length of 30 pixels or more, from 5.2 away at most.
    assert off.max() < 0.71 * coarseness / 30 * 5.2
    depths = depths_of(train)
    distances = torch.cdist(train.cameras.poses[:, :, 3].double(), moved(scene)).float()
    for index in range(len(train)):
        its = depths[int(train.offsets[index]) : int(train.offsets[index + 1])]
        nearest = (its[its > 0][:, None] - distances[index]).abs() / its[its > 0][:, None]
        assert nearest.amin(1).max() < 1e-3  # float16


def moved(scene: Scene) -> torch.Tensor:
    assert scene.world is not None
    return torch.from_numpy(PLACES) @ scene.world[:3, :3].T + scene.world[:3, 3]


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
@pytest.mark.parametrize("binary", [True, False])
def test_points_give_depths_to_the_pixels_that_show_them(tmp_path: Path, model: str, binary: bool):
    capture(tmp_path, model, binary, num_points=0)
    add_points(tmp_path, binary)
    assert_right(load(tmp_path, depths="points"))
    assert_right(load(tmp_path, depths="points", downscale=1.5), coarseness=1.5)
    assert_right(load(tmp_path, depths="auto"))
    assert load(tmp_path).splits["train"].depths is None


@pytest.mark.parametrize(("orientation", "turns"), ROTATIONS.items())
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_points_turn_with_photographs(tmp_path: Path, orientation: int, turns: int, suffix: str):
    turned_on_its_side(tmp_path, "OPENCV", turns, suffix, num_points=0)
    add_points(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            image = image.rotate(90 * turns, expand=True)
        image.save(path, exif=exif)
    assert_right(load(tmp_path, depths="points"))


@pytest.mark.parametrize("binary", [True, False])
def test_points_that_few_images_show_are_left_out(tmp_path: Path, binary: bool):
    for folder, images_each in ((tmp_path / "3", LEAST_TRACK), (tmp_path / "2", LEAST_TRACK - 1)):
        capture(folder, binary=binary, num_points=0)
        add_points(folder, binary, images_each)
    found = read_points(tmp_path / "3/sparse/0")
    assert sum(len(xy) for xy, _ in found.values()) == len(PLACES) * LEAST_TRACK
    said = refused(tmp_path / "2", depths="points")
    assert "shows a point of" in said
    assert "2/sparse/0 that 3 images show: leave it out" in said
    assert load(tmp_path / "2", depths="auto").splits["train"].depths is None


def test_the_nearest_of_several_points_in_a_pixel_counts(tmp_path: Path):
    capture(tmp_path, num_points=0)
    add_points(tmp_path)
    fine, coarse = (load(tmp_path, depths="points", downscale=d).splits["train"] for d in (1.0, 6))
    for index in range(len(fine)):
        span = slice(int(fine.offsets[index]), int(fine.offsets[index + 1]))
        few = slice(int(coarse.offsets[index]), int(coarse.offsets[index + 1]))
        depths = depths_of(fine)[span].view(36, 48)
        blocks = torch.where(depths > 0, depths, torch.inf).view(6, 6, 8, 6).amin((1, 3))
        expected = torch.where(blocks.isfinite(), blocks, 0.0)
        assert torch.equal(depths_of(coarse)[few].view(6, 8), expected)


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_damaged_points_are_named(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture):
    capture(tmp_path, num_points=0)
    add_points(tmp_path)
    path = tmp_path / "sparse/0/points3D.bin"
    for content in (path.read_bytes()[:size], struct.pack("<Q", 2**60) + bytes(100)):
        path.write_bytes(content)
        assert f"{path} is damaged or cut short" in refused(tmp_path, depths="points")
        caplog.clear()
        assert load(tmp_path, depths="auto").splits["train"].depths is None
        assert f"{path} is damaged or cut short" in caplog.text
        assert "going on without depths" in caplog.text


def test_a_model_without_points_is_told_where_they_are_asked_for(tmp_path: Path, caplog):
    capture(tmp_path, num_points=0)
    (tmp_path / "sparse/0/points3D.bin").unlink()
    said = refused(tmp_path, depths="points")
    assert f"no image to train on shows a point of {tmp_path / 'sparse/0'}" in said
    assert load(tmp_path, depths="auto").splits["train"].depths is None
    assert not caplog.records


def test_points_outside_of_every_image_give_no_depths(tmp_path: Path):
    capture(tmp_path, num_points=0)
    add_points(tmp_path, shift=1000.0)
    assert "no image to train on shows a point" in refused(tmp_path, depths="points")
    assert load(tmp_path, depths="auto").splits["train"].depths is None


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("points3D.txt", "1 ", "x ", "expected POINT3D_ID X Y Z R G B ERROR and its images"),
        ("images.txt", "\n7 5 -1 ", "\n7 5 ", "expected X Y POINT3D_ID of each"),
        ("images.txt", "\n7 5 -1 ", "\n7 five -1 ", "expected X Y POINT3D_ID, could not convert"),
    ],
)
def test_damaged_points_of_text_files_are_named(
    tmp_path: Path, file: str, old: str, new: str, message: str
):
    capture(tmp_path, binary=False, num_points=0)
    add_points(tmp_path, binary=False)
    path = tmp_path / "sparse/0" / file
    text = path.read_text()
    at = text.index(old, text.rindex("#"))
    path.write_text(text[:at] + new + text[at + len(old) :])
    said = refused(tmp_path, depths="points")
    assert str(path) in said
    assert message in said


def test_so_many_images_are_trained_on_as_one_asks_for(tmp_path: Path):
    capture(tmp_path, num_points=0)
    add_points(tmp_path)
    whole, few = load(tmp_path), load(tmp_path, train_views=3, depths="points")
    train = whole.splits["train"].names
    assert few.splits["train"].names == (train[0], train[2], train[5])
    assert few.splits["test"].names == whole.splits["test"].names
    assert torch.equal(few.splits["train"].cameras.poses[1], whole.splits["train"].cameras.poses[2])
    assert_right(few)
    assert len(load(tmp_path, train_views=100).splits["train"]) == len(train)
    assert "scene.train_views=0: give 1 or more" in refused(tmp_path, train_views=0)
