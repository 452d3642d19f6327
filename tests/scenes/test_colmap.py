"""COLMAP folders: models of either format, every lens, images of any size, and what is refused."""

from __future__ import annotations

import logging
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from colmap_captures import (
    HEIGHT,
    PARAMETERS,
    ROTATIONS,
    WIDTH,
    capture,
    load,
    refused,
    turned_on_its_side,
)
from PIL import Image

from nerftrain import lens, paths
from nerftrain.cameras import pixel_rays
from nerftrain.errors import UserError
from nerftrain.scenes import Scene, images
from nerftrain.scenes.colmap_model import read_model
from nerftrain.scenes.images import decode, read_gray, read_header, shrink
from nerftrain.scenes.photos import photo_names

pycolmap = pytest.importorskip("pycolmap", reason="COLMAP models: pip install pycolmap")

NEWER = pytest.mark.skipif(
    not hasattr(pycolmap.CameraModelId, "EQUIRECTANGULAR"), reason="panoramas: pycolmap 4.1"
)
MODELS = [
    pytest.param(model, marks=NEWER) if model == "EQUIRECTANGULAR" else model
    for model in lens.MODELS
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path / "cache"))
    paths.cache_dir.cache_clear()
    yield tmp_path / "cache" / "images"
    paths.cache_dir.cache_clear()


def assert_same(a: Scene, b: Scene) -> None:
    for key, split in a.splits.items():
        other = b.splits[key]
        assert split.names == other.names
        assert torch.equal(split.pixels, other.pixels)
        for name in ("poses", "intrinsics", "widths", "heights"):
            torch.testing.assert_close(getattr(split.cameras, name), getattr(other.cameras, name))
        assert (split.cameras.distortion is None) == (other.cameras.distortion is None)


# --- Cameras -------------------------------------------------------------------------------------


@pytest.mark.parametrize("downscale", [1.0, 2.0])
@pytest.mark.parametrize("model", MODELS)
def test_the_ray_of_the_pixel_where_colmap_sees_a_point_passes_through_it(
    tmp_path: Path, model: str, downscale: float
):
    reconstruction = capture(tmp_path, model, portraits=3)
    scene = load(tmp_path, downscale=downscale)
    assert scene.world is not None
    images = {image.name: image for image in reconstruction.images.values()}
    generator = np.random.default_rng(1)
    num_seen = 0
    for split in scene.splits.values():
        bends = any(word in model for word in ("RADIAL", "OPENCV"))
        assert (split.cameras.distortion is not None) == bends
        for i, name in enumerate(split.names):
            point = np.array([1.0, 2, 3]) + generator.uniform(-0.8, 0.8, 3)
            camera = images[name].camera
            seen = images[name].cam_from_world() * point
            u, v = camera.img_from_cam(seen) / downscale
            x, y = torch.tensor([[u - 0.5], [v - 0.5]]).float()
            rays = pixel_rays(split.cameras, torch.tensor([i]), x, y, 0.1, 10.0)
            there = scene.world[:3, :3] @ torch.from_numpy(point) + scene.world[:3, 3]
            towards = there.float() - rays.origins[0]
            miss = torch.linalg.cross(towards, rays.directions[0]).norm() / towards.norm()
            assert float(miss) < 1e-5
            assert float(towards @ rays.directions[0]) > 0
            num_seen += 1
    assert num_seen == 10


@pytest.mark.parametrize("model", MODELS)
def test_text_and_binary_models_make_the_same_scene(tmp_path: Path, model: str):
    capture(tmp_path / "binary", model)
    capture(tmp_path / "text", model, binary=False)
    assert_same(load(tmp_path / "binary"), load(tmp_path / "text"))


@pytest.mark.parametrize("place", ["sparse/0", "sparse", ".", "sparse/7"])
def test_the_model_is_found_wherever_colmap_has_put_it(tmp_path: Path, place: str):
    capture(tmp_path, place=place)
    scene = load(tmp_path)
    assert len(scene.splits["train"]) + len(scene.splits["test"]) == 10
    assert scene.contraction == "l2"
    assert scene.aabb.tolist() == [-1, -1, -1, 1, 1, 1]


def test_of_several_models_the_largest_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    capture(tmp_path, num_images=4, place="sparse/0")
    capture(tmp_path, num_images=9, place="sparse/1")
    capture(tmp_path, num_images=5, place="sparse/2", binary=False)
    with caplog.at_level(logging.WARNING):
        scene = load(tmp_path)
    assert sum(len(split) for split in scene.splits.values()) == 9
    assert "taking the largest, 1" in caplog.text


def test_cameras_come_to_stand_level_in_the_box(tmp_path: Path):
    capture(tmp_path)
    poses = torch.cat([split.cameras.poses for split in load(tmp_path).splits.values()])
    torch.testing.assert_close(poses[:, :, 3].norm(dim=1), torch.ones(10), atol=1e-4, rtol=0)
    heights = torch.full((10,), 1.5 / np.hypot(4, 1.5))
    torch.testing.assert_close(poses[:, 2, 3], heights, atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
@pytest.mark.parametrize(("orientation", "turns"), ROTATIONS.items())
@pytest.mark.parametrize(("downscale", "suffix"), [(1.0, ".png"), (1.5, ".png"), (1.0, ".tif")])
def test_photographs_stored_on_their_side_make_the_scene_of_upright_ones(
    tmp_path: Path, model: str, orientation: int, turns: int, downscale: float, suffix: str
):
    capture(tmp_path / "upright", model, suffix=suffix)
    turned_on_its_side(tmp_path / "side", model, turns, suffix)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (tmp_path / "side/images").iterdir():
        with Image.open(path) as image:
            image = image.rotate(90 * turns, expand=True)
        image.save(path, exif=exif)
    upright = load(tmp_path / "upright", downscale=downscale)
    for _ in range(2):  # the second time from the cache
        assert_same(upright, load(tmp_path / "side", downscale=downscale))


@NEWER
def test_a_panorama_that_exif_turns_is_refused(tmp_path: Path):
    capture(tmp_path, "EQUIRECTANGULAR")
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(tmp_path / "images/view_03.png") as image:
        image.load()
    image.save(tmp_path / "images/view_03.png", exif=exif)
    assert "view_03.png is a panorama that its EXIF turns: write it upright" in refused(tmp_path)


def test_every_nth_image_by_name_is_for_the_test(tmp_path: Path):
    capture(tmp_path)
    scene = load(tmp_path, test_every=4)
    assert scene.splits["test"].names == ("view_01.png", "view_05.png", "view_09.png")
    assert len(scene.splits["train"]) == 7


def test_points_are_not_needed(tmp_path: Path):
    capture(tmp_path)
    whole = load(tmp_path)
    for name in ("points3D.bin", "rigs.bin", "frames.bin"):
        (tmp_path / "sparse/0" / name).unlink(missing_ok=True)
    assert_same(load(tmp_path), whole)
    (tmp_path / "sparse/0/points3D.bin").write_bytes(b"\xff" * 20)  # on these pycolmap hangs
    assert_same(load(tmp_path), whole)


# --- Images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ROTATIONS)
def test_heif_comes_upright_by_itself(tmp_path: Path, orientation: int):
    pytest.importorskip("pillow_heif").register_heif_opener()
    capture(tmp_path)
    before = load(tmp_path).splits["train"]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            image = image.rotate(90 * ROTATIONS[orientation], expand=True)
        # By bytes it writes the turn where HEIF has it, as telephones do.
        image.save(path.with_suffix(".HEIC"), exif=exif.tobytes(), quality=-1, chroma=444)
        path.unlink()
    after = load(tmp_path).splits["train"]
    assert torch.equal(after.cameras.intrinsics, before.cameras.intrinsics)
    difference = after.pixels.int() - before.pixels.int()
    assert difference.abs().max() <= 3  # colours are stored as luma and chroma


def test_a_model_where_nerfstudio_leaves_it_is_found(tmp_path: Path):
    capture(tmp_path)
    before = load(tmp_path)
    (tmp_path / "colmap").mkdir()
    (tmp_path / "sparse").rename(tmp_path / "colmap/sparse")
    assert_same(load(tmp_path), before)


@pytest.mark.parametrize("suffix", [".png", ".png.png"])  # by stem, or as COLMAP has them
def test_masks_are_found_by_the_names_of_images(tmp_path: Path, caplog, suffix: str):
    capture(tmp_path)
    (tmp_path / "masks").mkdir()
    assert "holds no mask of the images" in refused(tmp_path, masks="masks")
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, : WIDTH // 2] = 0
    for number in range(2, 11):
        Image.fromarray(mask).save(tmp_path / "masks" / f"view_{number:02d}{suffix}")
    scene = load(tmp_path, masks="masks")
    assert "1 of 10 images have no mask, such as view_01.png: all of their pixels" in caplog.text
    assert load(tmp_path).splits["train"].valid is None
    for split in scene.splits.values():
        for index, name in enumerate(split.names):
            expected = torch.from_numpy(mask > 0) | (name == "view_01.png")
            assert torch.equal(split.valid_of(index), expected)


def test_grey_levels_of_16_bits_are_those_of_8(tmp_path: Path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "16.png")
    Image.fromarray((levels * 257).astype(np.int32)).save(tmp_path / "32.tif")
    for name in ("16.png", "32.tif"):
        found = decode(read_header(tmp_path / name))
        assert found.shape == (16, 16, 3)
        assert torch.equal(found[:, :, 1], torch.from_numpy(levels.astype(np.uint8)))
        assert np.array_equal(read_gray(tmp_path / name), levels)


@pytest.mark.parametrize(("factor", "kind"), [(1e-4, np.float32), (1000, np.int32)])
def test_numbers_whose_range_nobody_knows_are_refused(tmp_path: Path, factor: float, kind: type):
    levels = (np.arange(256).reshape(16, 16) * factor).astype(kind)
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="whose range nobody knows: save it with 8 or 16 bits"):
        decode(read_header(tmp_path / "a.tif"))


def test_heif_beside_what_was_made_of_it_is_left_alone(tmp_path: Path):
    capture(tmp_path)
    before = load(tmp_path)
    for path in list((tmp_path / "images").iterdir()):
        path.with_suffix(".HEIC").write_bytes(b"")
        path.rename(path.with_suffix(".webp"))
    names = [f"view_{index:02d}.webp" for index in range(1, 11)]
    assert photo_names(tmp_path / "images") == names
    assert torch.equal(load(tmp_path).splits["train"].pixels, before.splits["train"].pixels)


def test_heif_says_which_package_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._missing_heif.cache_clear()
    (tmp_path / "IMG_1.HEIC").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'nerftrain\[heif\]'"):
        read_header(tmp_path / "IMG_1.HEIC")
    images._missing_heif.cache_clear()


def test_portraits_and_landscapes_keep_their_own_pixels(tmp_path: Path):
    capture(tmp_path, portraits=4)
    train = load(tmp_path).splits["train"]
    for i, name in enumerate(train.names):
        expected = np.asarray(Image.open(tmp_path / "images" / name))
        assert torch.equal((train.image(i) * 255).round().byte(), torch.tensor(expected))
    assert set(train.cameras.widths.tolist()) == {WIDTH, HEIGHT}


def test_names_match_whatever_their_suffix_and_extra_files_are_left_alone(tmp_path: Path):
    capture(tmp_path)
    before = load(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_suffix(".PNG"))
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "aaa_extra.png")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"no image")
    after = load(tmp_path)
    assert torch.equal(after.splits["train"].pixels, before.splits["train"].pixels)


@pytest.mark.parametrize("binary", [True, False])
def test_names_with_folders_and_spaces_are_found(tmp_path: Path, binary: bool):
    capture(tmp_path, binary=binary)
    (tmp_path / "images" / "left").mkdir()
    for path in (tmp_path / "images").glob("*.png"):
        path.rename(path.parent / "left" / path.name.replace("view_", "my view"))
    file = tmp_path / "sparse/0" / ("images.bin" if binary else "images.txt")
    file.write_bytes(file.read_bytes().replace(b"view_", b"left/my view"))
    assert load(tmp_path).splits["test"].names[0] == "my view01.png"


def test_images_called_alike_are_told_apart_by_their_folders(tmp_path: Path):
    capture(tmp_path, binary=False)
    file = tmp_path / "sparse/0/images.txt"
    for side, name in (("left", "view_02.png"), ("right", "view_03.png")):
        (tmp_path / "images" / side).mkdir()
        (tmp_path / "images" / name).rename(tmp_path / "images" / side / "0001.png")
        file.write_text(file.read_text().replace(name, f"{side}/0001.png"))
    scene = load(tmp_path)
    names = [*scene.splits["train"].names, *scene.splits["test"].names]
    assert {"left/0001.png", "right/0001.png", "view_04.png"} < {*names}


def shrink_folder(root: Path, factor: int) -> None:
    (root / f"images_{factor}").mkdir()
    for path in (root / "images").iterdir():
        image = torch.tensor(np.asarray(Image.open(path)))
        small = shrink(image, image.shape[1] // factor, image.shape[0] // factor)
        Image.fromarray(small.numpy()).save(root / f"images_{factor}" / path.name)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_folder_of_shrunk_images_and_shrinking_on_the_spot_agree(tmp_path: Path, factor: int):
    capture(tmp_path, portraits=3)
    on_the_spot = load(tmp_path, downscale=float(factor))
    shrink_folder(tmp_path, factor)
    shutil.rmtree(tmp_path / "images")  # so that nothing else can have been read
    assert_same(load(tmp_path, downscale=float(factor)), on_the_spot)


def test_the_real_size_of_the_shrunk_images_decides_the_intrinsics(tmp_path: Path):
    capture(tmp_path)
    (tmp_path / "images_2").mkdir()
    for path in (tmp_path / "images").iterdir():
        Image.open(path).resize((25, 19)).save(tmp_path / "images_2" / path.name)
    cameras = load(tmp_path, downscale=2.0).splits["train"].cameras
    expected = [40 * 25 / 48, 41 * 19 / 36, 23 * 25 / 48, 19 * 19 / 36]
    assert cameras.intrinsics[0].tolist() == pytest.approx(expected)


def test_an_uneven_factor_averages_over_areas_in_their_place(tmp_path: Path):
    """A ramp stays a ramp: each new pixel is the mean of its own area, not of a shifted one."""
    ramp = torch.arange(533.0).mul(0.4).round().byte()[:, None, None].expand(533, 6, 3)
    small = shrink(ramp, 6, 266)[:, 0, 0].float()
    centres = (torch.arange(266) + 0.5) * 533 / 266 - 0.5
    assert float((small - 0.4 * centres).abs().max()) <= 1.0
    assert float((small - 0.4 * centres).mean().abs()) < 0.05
    capture(tmp_path)
    cameras = load(tmp_path, downscale=1.5).splits["train"].cameras
    assert (int(cameras.widths[0]), int(cameras.heights[0])) == (32, 24)


def test_shrunk_images_are_read_from_the_cache_the_next_time(tmp_path: Path, cache: Path):
    capture(tmp_path)
    first = load(tmp_path, downscale=2.0)
    entries = sorted(cache.iterdir())
    assert len(entries) == 10
    assert all(entry.suffix == ".npz" for entry in entries)  # no partial files
    for entry in entries:
        np.savez(entry, image=np.full((HEIGHT // 2, WIDTH // 2, 3), 7, np.uint8))
    assert (load(tmp_path, downscale=2.0).splits["train"].pixels == 7).all()
    for path in (tmp_path / "images").iterdir():  # a changed source is not that image any more
        os.utime(path, ns=(1, 1))
    assert_same(load(tmp_path, downscale=2.0), first)
    assert len(list(cache.iterdir())) == 20
    load(tmp_path, downscale=3.0)
    assert len(list(cache.iterdir())) == 30


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other size", "no archive"])
def test_a_damaged_cache_entry_is_made_again(tmp_path: Path, cache: Path, damage: str):
    capture(tmp_path)
    first = load(tmp_path, downscale=2.0)
    whole = {entry: entry.read_bytes() for entry in cache.iterdir()}
    for entry, content in whole.items():
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 255
        other = {"cut": content[:-40], "empty": b"", "flipped": bytes(flipped)}
        entry.write_bytes(other.get(damage, b"nonsense"))
        if damage == "other size":
            np.savez(entry, image=np.zeros((3, 3, 3), np.uint8))
    assert_same(load(tmp_path, downscale=2.0), first)
    assert all(np.load(entry)["image"].shape == (18, 24, 3) for entry in whole)


def test_a_cache_that_cannot_be_written_is_one_warning(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    capture(tmp_path)
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        scene = load(tmp_path, downscale=2.0)
    assert len(scene.splits["train"]) == 8
    assert caplog.text.count("cannot be kept") == 1


def test_alpha_is_kept_where_all_images_have_it(tmp_path: Path):
    capture(tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    for file in files[:-1]:
        Image.open(file).convert("RGBA").save(file)
    text = refused(tmp_path)
    assert "alpha" in text
    Image.open(files[-1]).convert("RGBA").save(files[-1])
    assert load(tmp_path).has_alpha


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", ["FULL_OPENCV", "THIN_PRISM_FISHEYE"])
def test_an_unsupported_camera_is_named_with_the_supported_ones(
    tmp_path: Path, model: str, binary: bool
):
    capture(tmp_path, model, binary)
    text = refused(tmp_path)
    assert model in text
    assert all(name in text for name in lens.MODELS)


def test_a_camera_that_nobody_knows_is_named(tmp_path: Path):
    capture(tmp_path / "text", binary=False)
    cameras = tmp_path / "text/sparse/0/cameras.txt"
    cameras.write_text(cameras.read_text().replace(" PINHOLE ", " PLENOPTIC "))
    assert "PLENOPTIC" in refused(tmp_path / "text")
    capture(tmp_path / "binary")
    cameras = tmp_path / "binary/sparse/0/cameras.bin"
    content = bytearray(cameras.read_bytes())
    content[12:16] = struct.pack("<i", 99)
    cameras.write_bytes(content)
    text = refused(tmp_path / "binary")
    assert "number 99" in text
    assert "SIMPLE_RADIAL" in text


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin"])
@pytest.mark.parametrize("size", [0, 3, 8, 20, 40, 60, -1, -30, "longer", "count"])
def test_damaged_binary_files_are_named(tmp_path: Path, name: str, size: int | str):
    capture(tmp_path)
    path = tmp_path / "sparse/0" / name
    content = path.read_bytes()
    if size == "longer":
        content += b"\0"
    elif size == "count":
        content = struct.pack("<Q", 2**50) + content[8:]
    else:
        assert isinstance(size, int)
        content = content[:size]
    path.write_bytes(content)
    text = refused(tmp_path)
    assert str(path) in text
    assert "restore" in text


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("cameras.txt", "40.0 41.0", "40.0"),
        ("cameras.txt", "40 41", "forty 41"),
        ("cameras.txt", "1 PINHOLE 48", "1 PINHOLE 0"),
        ("cameras.txt", "1 PINHOLE", "PINHOLE"),
        ("images.txt", " view_10.png", ""),
        ("images.txt", "1 view_10.png", "5 view_10.png"),
        ("images.txt", "1 view_10.png", "x view_10.png"),
    ],
)
def test_damaged_text_files_are_named(tmp_path: Path, name: str, old: str, new: str):
    capture(tmp_path, binary=False)
    path = tmp_path / "sparse/0" / name
    content = path.read_text()
    if old not in content:
        old, new = old.replace("40.0 41.0", "40 41"), new.replace("40.0", "40")
    assert old in content
    path.write_text(content.replace(old, new, 1))
    text = refused(tmp_path)
    assert str(path) in text


def test_a_pose_that_is_not_a_number_is_refused(tmp_path: Path):
    capture(tmp_path)
    path = tmp_path / "sparse/0/images.bin"
    content = bytearray(path.read_bytes())
    content[12:20] = struct.pack("<d", float("nan"))
    path.write_bytes(content)
    assert "view_" in refused(tmp_path)


@pytest.mark.parametrize("binary", [True, False])
def test_a_model_without_registered_images_is_refused(tmp_path: Path, binary: bool):
    capture(tmp_path, binary=binary)
    content = struct.pack("<Q", 0) if binary else b"# Image list\n"
    (tmp_path / "sparse/0" / ("images.bin" if binary else "images.txt")).write_bytes(content)
    assert "no registered image" in refused(tmp_path)


def test_a_model_whose_images_no_file_matches_is_refused_even_when_missing_ones_are_skipped(
    tmp_path: Path,
):
    capture(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    for skip in (False, True):
        text = refused(tmp_path, skip_missing=skip)
        assert "10 of the 10 images" in text
        assert "view_01.png" in text
        assert "other_view_01.png" in text


def test_missing_images_are_an_error_or_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    capture(tmp_path)
    (tmp_path / "images" / "view_03.png").unlink()
    text = refused(tmp_path)
    assert "view_03.png" in text
    assert "skip_missing=true" in text
    with caplog.at_level(logging.WARNING):
        scene = load(tmp_path, skip_missing=True)
    assert sum(len(split) for split in scene.splits.values()) == 9
    assert "view_03.png" in caplog.text


def test_images_may_lie_beside_the_model(tmp_path: Path):
    capture(tmp_path)
    apart = load(tmp_path).splits["train"]
    for path in (tmp_path / "images").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "images").rmdir()
    beside = load(tmp_path).splits["train"]
    assert beside.names == apart.names
    assert torch.equal(beside.pixels, apart.pixels)


def test_a_missing_folder_of_images_names_what_would_work(tmp_path: Path):
    capture(tmp_path)
    shrink_folder(tmp_path, 4)
    shutil.rmtree(tmp_path / "images")
    assert "scene.downscale=4 would work" in refused(tmp_path, downscale=2.0)
    assert len(load(tmp_path, downscale=4.0).splits["train"]) == 8


def test_turned_images_are_refused(tmp_path: Path):
    capture(tmp_path)
    path = tmp_path / "images" / "view_05.png"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    text = refused(tmp_path)
    assert "view_05.png is 36x48" in text
    assert "48x36" in text


def test_cameras_in_one_point_are_refused(tmp_path: Path):
    capture(tmp_path, binary=False)
    path = tmp_path / "sparse/0/images.txt"
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        fields = line.split()
        if line.endswith(".png"):
            lines[i] = " ".join([*fields[:5], "0", "0", "0", *fields[8:]])
    path.write_text("\n".join(lines) + "\n")
    assert "in one point" in refused(tmp_path)


def test_a_lens_that_folds_is_refused_with_the_file_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(PARAMETERS, "SIMPLE_RADIAL", [40.0, 23.0, 19.0, -0.9])
    capture(tmp_path, "SIMPLE_RADIAL")
    text = refused(tmp_path)
    assert "sparse/0/cameras.bin" in text
    assert "does not invert" in text


def test_a_truncated_image_is_named(tmp_path: Path):
    capture(tmp_path)
    path = tmp_path / "images" / "view_04.png"
    path.write_bytes(path.read_bytes()[:-60])
    assert "view_04.png" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"downscale": 0.5}, "scene.downscale=0.5"),
        ({"downscale": float("nan")}, "scene.downscale=nan"),
        ({"downscale": 1000.0}, "leaves nothing"),
        ({"near": 5.0, "far": 2.0}, "near < far"),
        ({"test_every": 1}, "scene.test_every=1"),
        ({"images": "photos"}, "photos is missing"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, changes: dict, words: str):
    capture(tmp_path)
    assert words in refused(tmp_path, **changes)


def test_a_folder_without_a_model_names_what_would_work(tmp_path: Path):
    capture(tmp_path / "garden")
    assert f"scene.root={tmp_path / 'garden'} would work" in refused(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "nerftrain data pose makes" in refused(tmp_path / "empty")
    Image.new("RGB", (4, 3)).save(tmp_path / "empty" / "IMG_1.JPG")
    assert f"nerftrain data pose {tmp_path / 'empty'}" in refused(tmp_path / "empty")
    (tmp_path / "empty" / "transforms.json").write_text("{}")
    assert "scene=transforms would work" in refused(tmp_path / "empty")
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "is a file" in refused(tmp_path / "garden/sparse/0/cameras.bin")


@pytest.mark.parametrize("group", ["", "mip360", "360_v2", "mipnerf360", "nerf_360"])
def test_scenes_are_found_under_the_data_root(tmp_path: Path, group: str):
    capture(tmp_path / group / "garden")
    scene = load(None, name="garden", data_root=str(tmp_path))
    assert scene.root == tmp_path / group / "garden"
    assert "'bonsai'" in refused(None, name="bonsai", data_root=str(tmp_path))
    assert "NERFTRAIN_DATA" in refused(None, name="bonsai")


def test_without_pycolmap_the_remedy_is_its_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    capture(tmp_path)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert "pip install pycolmap" in refused(tmp_path)


# --- A real capture ------------------------------------------------------------------------------


def test_bonsai_at_half_size(real_scene: Callable[[str], Path]):
    root = real_scene("mip360/bonsai")
    scene = load(None, name="bonsai", data_root=str(root.parents[1]), downscale=2.0)
    train, test = scene.splits["train"], scene.splits["test"]
    assert (len(train), len(test)) == (255, 37)
    assert test.names[:2] == ("DSCF5565.JPG", "DSCF5573.JPG")
    assert set(train.cameras.widths.tolist()) == {400}
    assert set(train.cameras.heights.tolist()) == {266}
    assert train.cameras.distortion is None
    assert not scene.has_alpha
    # COLMAP's own points, moved by the scene's world, fall on the pixels where it found them.
    model = pycolmap.Reconstruction(str(root / "sparse/0"))
    image = next(i for i in model.images.values() if i.name == train.names[40])
    found = [p for p in image.points2D if p.has_point3D()]
    points = np.array([model.points3D[p.point3D_id].xyz for p in found])
    seen = torch.tensor(np.array([p.xy for p in found])) * torch.tensor([400 / 800, 266 / 533])
    assert scene.world is not None
    there = torch.tensor(points) @ scene.world[:3, :3].T + scene.world[:3, 3]
    pose, (fx, fy, cx, cy) = train.cameras.poses[40].double(), train.cameras.intrinsics[40]
    right, up, backward = ((there - pose[:, 3]) @ pose[:, :3]).unbind(1)
    shown = torch.stack([cx + fx * right / -backward, cy - fy * up / -backward], 1)
    assert float((shown - seen).norm(dim=1).median()) < 0.3
    assert float((shown - seen).mean(0).abs().max()) < 0.05


def test_views_come_sorted_by_name(tmp_path: Path):
    capture(tmp_path)
    names = [view.name for view in read_model(tmp_path / "sparse/0")]
    assert names == sorted(names)
