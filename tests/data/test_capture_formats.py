"""Captures are recognised, and all that is wrong with one is listed at once."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nerftrain.config import scene_plan
from nerftrain.data.inspection import Inspection, inspect

FOCAL = 12 / math.tan(0.69 / 2)


def look(folder: Path, kind: str | None = None) -> Inspection:
    return inspect(folder, folder.parent / "out", scene_plan, kind)


def frames_of(root: Path) -> list[dict]:
    return json.loads((root / "transforms_train.json").read_text())["frames"]


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Turn a rotation [3, 3] into w x y z: the eigenvector of Bar-Itzhack's matrix."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotation.ravel()
    matrix = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [xy + yx, yy - xx - zz, 0, 0],
            [xz + zx, yz + zy, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    _, vectors = np.linalg.eigh(matrix)  # of the lower triangle
    x, y, z, w = vectors[:, -1]
    return np.array([w, x, y, z])


@pytest.fixture
def capture(tiny_scene_root: Path, tmp_path: Path) -> Path:
    """Six photographs without alpha in images/, and nothing that says what they are."""
    root = tmp_path / "capture"
    (root / "images").mkdir(parents=True)
    for path in (tiny_scene_root / "train").glob("*.png"):
        with Image.open(path) as image:
            image.convert("RGB").save(root / "images" / path.name)
    return root


@pytest.fixture
def colmap_root(capture: Path, tiny_scene_root: Path, pycolmap: Any) -> Path:
    model = capture / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(f"1 PINHOLE 24 24 {FOCAL} {FOCAL} 12 12\n")
    lines = []
    for index, frame in enumerate(frames_of(tiny_scene_root), 1):
        pose = np.array(frame["transform_matrix"])
        rotation = (pose[:3, :3] * [1, -1, -1]).T
        place = -rotation @ pose[:3, 3]
        numbers = " ".join(repr(float(value)) for value in [*quaternion(rotation), *place])
        lines += [f"{index} {numbers} 1 r_{index - 1}.png", ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    (model / "points3D.txt").write_text("")
    return capture


@pytest.fixture
def transforms_root(capture: Path, tiny_scene_root: Path) -> Path:
    frames = frames_of(tiny_scene_root)
    for index, frame in enumerate(frames):
        frame["file_path"] = f"images/r_{index}.png"
    content = {"fl_x": FOCAL, "cx": 12, "cy": 12, "w": 24, "h": 24, "frames": frames}
    (capture / "transforms.json").write_text(json.dumps(content))
    return capture


@pytest.mark.parametrize("kind", ["colmap", "transforms"])
def test_a_good_capture_has_no_fault(kind, request):
    root = request.getfixturevalue(f"{kind}_root")
    found = look(root)
    assert (found.kind.kind, found.faults) == (kind, [])
    text = "\n".join(found.lines())
    assert "train    5 cameras, 5 images, 24x24, no alpha" in text
    assert "test     1 cameras" in text
    assert f"fx {FOCAL:.2f} fy {FOCAL:.2f} cx 12 cy 12, no distortion (6)" in text


def test_both_kinds_in_one_folder_are_named(colmap_root, transforms_root):
    found = look(colmap_root)
    assert (found.kind.kind, found.others) == ("colmap", ["transforms"])
    assert look(colmap_root, "transforms").kind.kind == "transforms"


def spoil(root: Path) -> None:
    (root / "images" / "r_1.png").unlink()
    (root / "images" / "r_4.png").unlink()
    content = (root / "images" / "r_2.png").read_bytes()
    (root / "images" / "r_2.png").write_bytes(content[: len(content) // 2])
    with Image.open(root / "images" / "r_3.png") as image:
        image.convert("RGBA").resize((24, 12)).save(root / "images" / "r_3.png")


@pytest.mark.parametrize("kind", ["colmap", "transforms"])
def test_all_faults_of_a_capture_are_listed_at_once(kind, request):
    root = request.getfixturevalue(f"{kind}_root")
    spoil(root)
    faults = look(root).faults
    shape = {"colmap": "is 24x12, but its camera", "transforms": "which contradicts w = 24"}[kind]
    for text in ("r_1.png", "r_4.png", "r_2.png is truncated", "with alpha", shape):
        assert sum(text in fault for fault in faults) == 1, text
    assert len(faults) == 5


def test_a_capture_with_shrunk_images_only_is_read_as_it_must_be_trained(colmap_root):
    (colmap_root / "images").rename(colmap_root / "images_2")
    for path in (colmap_root / "images_2").iterdir():
        with Image.open(path) as image:
            image.resize((12, 12)).save(path)
    found = look(colmap_root)
    assert found.faults == []
    assert "scene.downscale=2" in found.lines()[-1]


def write_masks(root: Path, *names: str, size: tuple[int, int] = (24, 24)) -> None:
    """Write masks that hide the upper half."""
    (root / "masks").mkdir(exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[size[1] // 2 :] = 255
    for name in names:
        Image.fromarray(pixels).save(root / "masks" / name)


def test_masks_that_training_must_be_told_of_are_found(colmap_root):
    assert "scene.masks" not in "".join(look(colmap_root).lines())
    write_masks(colmap_root, *(f"r_{i}.png" for i in range(6)))
    found = look(colmap_root)
    assert ([o.override for o in found.offers], found.faults) == (["scene.masks=masks"], [])
    assert found.notes == []
    assert "  masks    in masks, which scene.masks=masks takes" in found.lines()
    assert found.lines()[-1].endswith(" scene.masks=masks")
    (colmap_root / "masks" / "r_5.png").unlink()
    assert "1 of 6 images have no mask, such as r_5.png" in "".join(look(colmap_root).notes)


def test_every_mask_that_does_not_fit_is_a_fault(colmap_root):
    write_masks(colmap_root, *(f"r_{i}.png.png" for i in range(4)))
    write_masks(colmap_root, "r_4.png", "r_5.png.png", size=(24, 20))
    faults = look(colmap_root).faults
    assert len(faults) == 2
    for name, fault in zip(("r_4.png", "r_5.png.png"), faults, strict=True):
        assert f"masks/{name} is 24x20, but its photograph" in fault


def test_a_folder_of_other_masks_is_left_alone(colmap_root):
    write_masks(colmap_root, "elsewhere.png")
    found = look(colmap_root)
    assert (found.offers, found.faults) == ([], [])


def test_a_damaged_model_is_told(colmap_root):
    (colmap_root / "sparse" / "0" / "images.txt").write_text("1 2 3\n")
    faults = look(colmap_root).faults
    assert len(faults) == 1
    assert "images.txt, line 1" in faults[0]


def test_an_unknown_camera_model_is_told(colmap_root):
    (colmap_root / "sparse" / "0" / "cameras.txt").write_text("1 FOV 24 24 30 30 12 12 0.5\n")
    assert "FOV; supported are SIMPLE_PINHOLE" in "".join(look(colmap_root).faults)


def edit(root: Path, change) -> None:
    content = json.loads((root / "transforms.json").read_text())
    change(content)
    (root / "transforms.json").write_text(json.dumps(content))


def test_lenses_that_do_not_invert_are_told_with_the_other_faults(transforms_root):
    edit(transforms_root, lambda content: content.update(k1=-3.0))
    (transforms_root / "images" / "r_1.png").unlink()
    faults = look(transforms_root).faults
    assert len(faults) == 2
    assert "does not invert" in faults[1]


def test_fisheyes_and_panoramas_are_described(transforms_root):
    edit(transforms_root, lambda content: content.update(is_fisheye=True, k1=0.01, k4=-0.002))
    found = look(transforms_root)
    assert found.faults == []
    lens = (
        f"fisheye, fx {FOCAL:.2f} fy {FOCAL:.2f} cx 12 cy 12 k1 0.01 k2 0 p1 0 p2 0 k3 0 k4 -0.002"
    )
    assert f"{lens} (6)" in "\n".join(found.lines())
    edit(transforms_root, lambda content: content.update(is_fisheye=False, k1=0, k4=0))
    edit(transforms_root, lambda content: content.update(camera_model="EQUIRECTANGULAR"))
    assert "lens     equirectangular, a panorama (6)" in "\n".join(look(transforms_root).lines())


def test_lenses_of_two_kinds_and_a_circle_that_is_none_are_told(transforms_root):
    def change(content) -> None:
        content["fisheye_crop_radius"] = "large"
        content["frames"][3]["is_fisheye"] = True

    edit(transforms_root, change)
    faults = look(transforms_root).faults
    assert len(faults) == 2
    assert "fisheye_crop_radius = 'large': give a finite number" in faults[0]
    assert "lenses of several kinds, perspective and fisheye" in faults[1]


def test_what_a_file_says_of_its_place_and_its_lists_is_checked_beside_the_images(transforms_root):
    lists = {"train_filenames": ["images/r_0.png"], "test_filenames": ["images/r_9.png"]}
    edit(transforms_root, lambda content: content.update(aabb_scale=0.5, **lists))
    (transforms_root / "images" / "r_1.png").unlink()
    faults = look(transforms_root).faults
    assert len(faults) == 3
    for text in ("aabb_scale = 0.5", "r_9.png", "r_1.png"):
        assert any(text in fault for fault in faults)


def test_times_of_a_capture_are_checked(transforms_root):
    def change(content) -> None:
        for index, frame in enumerate(content["frames"]):
            frame["time"] = index / 4

    edit(transforms_root, change)
    assert "times run from 0 to 1.25" in "".join(look(transforms_root).faults)


def test_cameras_in_one_point_are_told_and_drawn(transforms_root):
    def change(content) -> None:
        for frame in content["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] = 1.0

    edit(transforms_root, change)
    found = look(transforms_root)
    assert "in one point" in "".join(found.faults)
    assert all(path.is_file() for path in found.pictures)


@pytest.mark.usefixtures("pycolmap")
def test_a_real_capture_has_no_fault(real_scene, tmp_path):
    for kind in ("colmap", "transforms"):
        found = inspect(real_scene("mip360/bonsai"), tmp_path, scene_plan, kind)
        assert (found.kind.kind, found.faults) == (kind, [])
        splits = [view.split for view in found.views]
        assert (splits.count("train"), splits.count("test")) == (255, 37)


@pytest.mark.usefixtures("pycolmap")
def test_faults_in_a_real_capture_are_found(own_scene, tmp_path):
    root = own_scene("mip360/bonsai")
    images = sorted((root / "images").iterdir())
    images[7].unlink()
    images[9].write_bytes(images[9].read_bytes()[:20_000])
    faults = inspect(root, tmp_path / "out", scene_plan, "colmap").faults
    assert len(faults) == 2
    assert images[7].name in faults[0]
    assert f"{images[9].name} is truncated" in faults[1]
