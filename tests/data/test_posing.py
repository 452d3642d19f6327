"""From photographs, or a film, to cameras that agree with the true ones; and what is refused."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from corner_of_a_room import (
    FISHEYE,
    FOCAL_LENGTH,
    HEIGHT,
    WIDTH,
    true_poses,
    write_photographs,
)
from PIL import Image

from nerftrain.cli import main
from nerftrain.config import scene_plan
from nerftrain.data import posing
from nerftrain.data.colmap_process import Database, run_step
from nerftrain.data.inspection import inspect
from nerftrain.data.posed import Posed
from nerftrain.data.posing import pose
from nerftrain.data.posing_place import Place, what_is_unread
from nerftrain.errors import RunError, UserError
from nerftrain.lens import MODELS
from nerftrain.scenes import Scene
from nerftrain.scenes.colmap_model import View, import_pycolmap, read_model

pytestmark = pytest.mark.usefixtures("pycolmap")

COUNT = 9
PRIOR = "SELECT prior_focal_length FROM cameras"


@pytest.fixture(scope="session")
def _pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("room"), COUNT)


@pytest.fixture
def photos(_pictures: Path, tmp_path: Path) -> Path:
    """A folder of one's own of photographs whose cameras are known."""
    return shutil.copytree(_pictures, tmp_path / "photos")


def find(source: Path, **changes: Any) -> Posed:
    asked = {"out": None, "frames": None, "pairs": "auto", "camera": "OPENCV"} | changes
    return pose(source, say=lambda _: None, **asked)


def refused(source: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        find(source, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_agree(found: list[View], true: np.ndarray, share: float, degrees: float) -> None:
    """Check positions and directions [C, 3, 4] after the similarity that fits the positions best.

    (Umeyama, "Least-squares estimation of transformation parameters", PAMI 1991.)
    """
    poses = np.stack([view.pose.numpy() for view in found])
    centred, wanted = (p[:, :, 3] - p[:, :, 3].mean(0) for p in (poses, true))
    u, sizes, vt = np.linalg.svd(wanted.T @ centred)
    signs = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ signs @ vt
    scale = (sizes * signs.diagonal()).sum() / (centred**2).sum()
    span = np.linalg.norm(wanted, axis=1).max()
    off = np.linalg.norm(scale * centred @ rotation.T - wanted, axis=1) / span
    turned = np.arccos(
        np.clip(
            (np.einsum("cij,cij->c", rotation @ poses[:, :, :3], true[:, :, :3]) - 1) / 2, -1, 1
        )
    )
    assert off.max() < share  # of the cameras' distance from their middle
    assert np.degrees(turned).max() < degrees


def load(root: Path) -> Scene:
    """Read a scene's folder as `nerftrain scene=colmap scene.root=ROOT` does."""
    plan = scene_plan("colmap")
    return replace(plan, values={**plan.values, "root": str(root)}).build()


# Lenses and masks


def knows_panoramas() -> bool:
    with contextlib.suppress(UserError):
        return "EQUIRECTANGULAR" in import_pycolmap().CameraModelId.__members__
    return False


needs_panoramas = pytest.mark.skipif(not knows_panoramas(), reason="panoramas: pycolmap 4.1")


def match_alone(photos: Path, camera: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """Go no further than to matches, and tell which focal lengths COLMAP counts as known."""
    shutil.rmtree(photos / "sparse", ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(posing, "_map", stop)
        with pytest.raises(KeyboardInterrupt):
            find(photos, camera=camera)
    with contextlib.closing(sqlite3.connect(photos / "colmap.db")) as database:
        return tuple(known for (known,) in database.execute(PRIOR))


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_fisheyes_cameras_and_its_lens_are_found(tmp_path: Path, monkeypatch):
    """Of features that were matched for a lens of the wrong kind; and there is a way back."""
    photos = write_photographs(tmp_path / "wide", COUNT, lens="fisheye")
    assert match_alone(photos, "OPENCV", monkeypatch) == (0,)
    found = find(photos, camera="OPENCV_FISHEYE")
    assert len(found.models[0]["names"]) == COUNT
    assert found.models[0]["error"] < 0.3
    views = read_model(photos / "sparse" / "0")
    check_agree(views, true_poses(COUNT), share=0.01, degrees=0.5)
    assert views[0].lens.projection == "fisheye"
    focal = FISHEYE[0]
    assert views[0].lens.intrinsics == pytest.approx((focal, focal, 200, 150), rel=0.02)
    assert load(photos).splits["train"].cameras.projection == "fisheye"
    assert inspect(photos, tmp_path / "drawn", scene_plan).faults == []
    assert match_alone(photos, "RADIAL_FISHEYE", monkeypatch) == (1,)
    assert match_alone(photos, "OPENCV", monkeypatch) == (0,)


@needs_panoramas
def test_panoramas_are_posed_whole(tmp_path: Path, monkeypatch):
    """As they are, not cut into pinholes' pictures."""
    photos = write_photographs(tmp_path / "around", COUNT, lens="panorama")
    match_alone(photos, "OPENCV", monkeypatch)
    find(photos, camera="EQUIRECTANGULAR")
    views = read_model(photos / "sparse" / "0")
    check_agree(views, true_poses(COUNT), share=0.02, degrees=1.0)
    assert load(photos).splits["train"].cameras.projection == "equirectangular"
    assert inspect(photos, tmp_path / "drawn", scene_plan).faults == []
    assert match_alone(photos, "SIMPLE_RADIAL", monkeypatch) == (0,)


@needs_panoramas
def test_what_may_be_panoramas_is_told(tmp_path: Path):
    for index in range(3):
        Image.new("RGB", (64, 32)).save(tmp_path / f"{index}.png")
    for camera, told in (("OPENCV", True), ("EQUIRECTANGULAR", False)):
        said: list[str] = []
        with pytest.raises(UserError, match="cameras of none of the 3 photographs"):
            pose(tmp_path, None, None, "auto", camera, said.append)
        assert any("take --camera EQUIRECTANGULAR" in line for line in said) == told


def test_a_lens_that_an_older_pycolmap_does_not_know(photos: Path, monkeypatch):
    models = SimpleNamespace(__members__={"OPENCV": 4})
    monkeypatch.setattr(import_pycolmap(), "CameraModelId", models)
    text = refused(photos, camera="EQUIRECTANGULAR")
    assert text.endswith("is not known to this pycolmap: pip install -U pycolmap")


@pytest.fixture
def driven(photos: Path) -> Path:
    """The photographs with a hood of many colours across their lower third, and masks of it."""
    chance = np.random.default_rng(1)
    hood = chance.integers(0, 256, (25, 100, 3), dtype=np.uint8)
    hood = Image.fromarray(hood).resize((WIDTH, 100), Image.Resampling.BICUBIC)
    mask = np.full((HEIGHT // 2, WIDTH // 2), 255, np.uint8)  # half as large, as some are
    mask[-50:] = 0
    (photos / "masks").mkdir()
    for path in sorted(photos.glob("*.png")):
        with Image.open(path) as image:
            image.paste(hood, (0, HEIGHT - 100))
            image.save(path)
        Image.fromarray(mask).save(photos / "masks" / path.name)
    return photos


def test_masks_keep_features_off_what_moves_with_the_camera(driven: Path, capsys):
    assert main(["data", "pose", str(driven), "--masks", str(driven / "masks")]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"scene.root={driven} scene.masks=masks\n")
    left = {path.name for path in driven.iterdir() if path.suffix != ".png"}
    assert left == {"colmap.db", "masks", "sparse"}
    places = np.concatenate(
        [Database(driven / "colmap.db").keypoints(f"view_{i:02d}.png") for i in range(COUNT)]
    )
    assert len(places) > 1000
    assert places[:, 1].max() < HEIGHT - 100
    assert places[:, 1].max() > HEIGHT - 110
    check_agree(read_model(driven / "sparse" / "0"), true_poses(COUNT), share=0.01, degrees=0.5)


def test_masks_elsewhere_lie_as_photographs_on_their_side_are_shown(driven: Path, tmp_path: Path):
    """What the camera turned shows upright, and so do these masks; COLMAP takes it as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    masks = tmp_path / "of them"
    masks.mkdir()
    for path in sorted(driven.glob("*.png")):
        with Image.open(path) as image:
            image.load()
        image.save(path, exif=exif)
        with Image.open(driven / "masks" / path.name) as mask:
            mask.rotate(-90, expand=True).save(masks / f"{path.name}.png")
    shutil.rmtree(driven / "masks")
    found = find(driven, masks=masks)
    assert found.keys == f" 'scene.masks=\"{masks}\"'"
    places = Database(driven / "colmap.db").keypoints("view_03.png")
    assert HEIGHT - 110 < places[:, 1].max() < HEIGHT - 100


def test_masks_that_do_not_fit_are_refused(driven: Path, tmp_path: Path, monkeypatch):
    masks = driven / "masks"
    assert "is no folder" in refused(driven, masks=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no mask of the photographs, such as view_00.png or view_00.png.png" in refused(
        driven, masks=tmp_path / "empty"
    )
    assert "is among the photographs of --nested" in refused(driven, masks=masks, nested=True)
    Image.new("L", (WIDTH, WIDTH)).save(masks / "view_02.png")
    assert "give a mask of the same size" in refused(driven, masks=masks)
    (masks / "view_02.png").unlink()
    assert not (driven / "colmap.db").exists()

    monkeypatch.setattr(posing, "_match", stop)  # with features, and no more
    with pytest.raises(KeyboardInterrupt):
        find(driven)
    text = refused(driven, masks=masks)
    assert "colmap.db holds features of view_00.png where its mask is black" in text


# Photographs


def test_a_stopped_command_goes_on_to_the_true_cameras(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (photos / "._view_00.png").write_bytes(b"no image")
    show = posing._show

    def stop(bar: Any, done: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt
        show(bar, done)

    monkeypatch.setattr(posing, "_show", stop)
    assert main(["data", "pose", str(photos)]) == 130
    assert f"the same command goes on: nerftrain data pose {photos}" in capfd.readouterr().err
    assert 3 <= Database(photos / "colmap.db").count("keypoints") < COUNT

    monkeypatch.setattr(posing, "_show", show)
    (photos / "another.dng").write_bytes(b"")
    assert main(["data", "pose", str(photos)]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "leaving out 1 photograph of a kind that is not read" in printed.out
    (photos / "another.dng").unlink()
    assert "9 of 9 photographs" in printed.out
    assert printed.out.endswith(f"train it: nerftrain scene=colmap scene.root={photos}\n")
    assert sorted(path.name for path in photos.iterdir() if path.suffix != ".png") == [
        "colmap.db",
        "sparse",
    ]
    views = read_model(photos / "sparse" / "0")
    check_agree(views, true_poses(COUNT), share=0.01, degrees=0.5)
    assert {view.lens for view in views} == {views[0].lens}  # one camera, before and after
    fx, fy, *_ = views[0].lens.intrinsics
    assert (fx, fy) == (
        pytest.approx(FOCAL_LENGTH, rel=0.02),
        pytest.approx(FOCAL_LENGTH, rel=0.02),
    )
    assert (photos / "sparse" / "0" / "points3D.bin").stat().st_size > 1000

    scene = load(photos)
    assert len(scene.splits["train"]) + len(scene.splits["test"]) == COUNT
    assert inspect(photos, photos.parent / "drawn", scene_plan).faults == []
    assert "has cameras already" in refused(photos)


def test_files_that_colmap_cannot_read_tell_their_focal_length(photos: Path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 35  # mm, were this film (EXIF 2.32, table 8)
    for path in photos.iterdir():
        with Image.open(path) as image:
            suffix = ".HEIC" if path.stem.endswith("1") else ".webp"
            image.save(path.with_suffix(suffix), exif=exif.tobytes(), quality=95)
        path.unlink()
    find(photos, camera="SIMPLE_PINHOLE")
    with sqlite3.connect(photos / "colmap.db") as database:
        focal_lengths = {
            np.frombuffer(row[0])[0] for row in database.execute("SELECT params FROM cameras")
        }
    assert len(focal_lengths) == 1
    diagonal = np.hypot(WIDTH, HEIGHT) / np.hypot(36, 24)  # pixels for each mm of film
    assert focal_lengths.pop() == pytest.approx(35 * diagonal, rel=1e-3)


def test_features_outlive_a_change_of_lens_and_files_of_all_kinds_are_taken(
    photos: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("pillow_heif").register_heif_opener()
    turn_and_convert(photos)
    out = photos.parent / "scene"
    found = find(photos, out=out, pairs="neighbours")
    assert Database(out / "colmap.db").count("two_view_geometries") == COUNT * (COUNT - 1) // 2
    assert sorted(c["size"] for c in found.models[0]["cameras"]) == ["300x400", "400x300"]
    assert found.left_out() == found.warnings() == []
    assert (out / "images").is_symlink()
    assert found.keys == ""

    shutil.rmtree(out / "sparse")
    jobs = []

    def run(job: dict[str, Any], *others: Any) -> Any:
        jobs.append(job)
        return run_step(job, *others)

    monkeypatch.setattr(posing, "run_step", run)
    found = find(photos, out=out, camera="SIMPLE_PINHOLE")
    assert [job["step"] for job in jobs] == ["extract", "match", "map"]
    assert jobs[0]["batches"] == []
    assert {camera["model"] for camera in found.models[0]["cameras"]} == {"SIMPLE_PINHOLE"}
    scene = load(out)
    names = (*scene.splits["train"].names, *scene.splits["test"].names)
    assert sorted(names) == found.photographs


def test_folders_in_a_folder_are_taken_together(photos: Path):
    root = photos.parent / "rig"
    for index, path in enumerate(sorted(photos.iterdir())):
        folder = root / ("left" if index % 2 else "right/close")
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.save(
                folder / f"{index:02d}{'.webp' if index in (3, 4) else '.png'}", lossless=True
            )
    (root / ".hidden").mkdir()
    shutil.copy(photos / "view_00.png", root / ".hidden")
    (root / "images").mkdir()
    assert "give another one by --out" in refused(root, nested=True)
    (root / "images").rmdir()
    words = refused(root)
    assert f"did you mean {root / 'left'}?" in words
    found = find(root, nested=True)
    assert found.place.out == root
    assert found.left_out() == found.warnings() == []
    assert found.photographs[0] == "left/01.png"
    assert found.photographs[-1] == "right/close/08.png"
    assert len(found.models[0]["cameras"]) == 2  # of each folder one
    scene = load(root)
    assert sum(map(len, scene.splits.values())) == COUNT


def test_nothing_in_folders_is_said(tmp_path: Path):
    (tmp_path / "a").mkdir()
    assert "holds no photographs, nor do folders in it" in refused(tmp_path, nested=True)
    (tmp_path / "film.mp4").write_bytes(b"")
    assert "needs a folder of photographs" in refused(tmp_path / "film.mp4", nested=True)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / folder / "1.jpg")
    assert "or all folders in it, --nested?" in refused(tmp_path)


def turn_and_convert(photos: Path) -> None:
    """Make portraits of two photographs, and other kinds of files of four."""
    for index in (2, 5):
        path = photos / f"view_{index:02d}.png"
        with Image.open(path) as image:
            turned = image.rotate(90, expand=True)
        turned.save(path)
    for index, suffix in ((1, ".JPG"), (3, ".WEBP"), (6, ".TIF"), (7, ".HEIC")):
        path = photos / f"view_{index:02d}.png"
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix), quality=95)
        path.unlink()


def test_real_photographs_are_placed_as_in_their_published_model(
    real_scene: Callable[[str], Path], tmp_path: Path
):
    bonsai = real_scene("mip360/bonsai")
    views = read_model(bonsai / "sparse" / "0")[:8]
    (tmp_path / "images").mkdir()
    for view in views:
        shutil.copy(bonsai / "images" / view.name, tmp_path / "images")
    found = find(tmp_path)
    assert found.place.out == tmp_path
    assert found.left_out() == []
    poses = np.stack([view.pose.numpy() for view in views])
    # Of eight neighbours the lens is found less well than of all 292.
    check_agree(read_model(tmp_path / "sparse" / "0"), poses, share=0.02, degrees=2.0)


# Refusals


def test_what_holds_nothing_to_pose_is_refused(tmp_path: Path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no photographs" in refused(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("")
    assert "neither a folder of photographs nor a film" in refused(tmp_path / "notes.txt")
    (tmp_path / "shots").mkdir()
    for index in range(2):
        Image.new("RGB", (40, 30)).save(tmp_path / "shots" / f"{index}.jpg")
    assert f"did you mean {tmp_path / 'shots'}?" in refused(tmp_path)
    assert "holds 2 photographs: at least 3" in refused(tmp_path / "shots", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photographs_of_a_kind_that_is_not_read_are_named(tmp_path: Path):
    for name in ("IMG_2.DNG", "IMG_1.DNG", "._IMG_0.DNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    words = refused(tmp_path)
    assert "holds 2 photographs of a kind that is not read, such as IMG_1.DNG" in words
    assert "make JPEGs of them" in words
    Image.new("RGB", (4, 3)).save(tmp_path / "IMG_2.jpg")  # the same photograph, readable
    assert str(what_is_unread(tmp_path)).startswith("1 photograph of a kind")
    Image.new("RGB", (4, 3)).save(tmp_path / "IMG_1.jpg")
    assert what_is_unread(tmp_path) is None
    assert what_is_unread(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("transforms.json", "transforms"),
        ("transforms_train.json", "blender"),
        ("sparse/0/images.bin", "colmap"),
    ],
)
def test_a_folder_with_cameras_is_left_alone(photos: Path, file: str, kind: str):
    (photos / file).parent.mkdir(parents=True, exist_ok=True)
    (photos / file).write_text("{}")
    (photos / file).with_name("cameras.bin").write_bytes(b"")
    text = refused(photos)
    assert f"nerftrain scene={kind} scene.root={photos}" in text
    assert "--out" in text


def test_nothing_is_overwritten(photos: Path, tmp_path: Path):
    (photos / "sparse" / "0").mkdir(parents=True)
    assert "sparse/0 is there, but is no model: remove it" in refused(photos)
    (tmp_path / "out" / "images").mkdir(parents=True)
    assert "images is there already" in refused(photos, out=tmp_path / "out")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(photos, out=tmp_path / "file")
    assert "check its rights" in refused(photos, out=Path("/proc/nowhere"))


def test_photographs_that_training_would_refuse_are_named(photos: Path):
    (photos / "view_03.png").write_text("no image")
    assert "view_03.png is truncated or no image" in refused(photos)
    Image.new("RGBA", (WIDTH, HEIGHT)).save(photos / "view_03.png")
    assert "with alpha (view_03.png)" in refused(photos)


def test_photographs_without_anything_on_them_find_no_cameras(tmp_path: Path):
    for index in range(3):
        Image.new("RGB", (64, 48), (90, 90, 90)).save(tmp_path / f"{index}.png")
    text = refused(tmp_path, pairs="neighbours")
    assert "cameras of none of the 3 photographs" in text
    assert "try --pairs all" in text
    assert not (tmp_path / "sparse").exists()


def test_a_database_of_other_photographs_is_not_mixed_in(photos: Path):
    schema = (
        "CREATE TABLE cameras (camera_id, width, height); CREATE TABLE keypoints (image_id);"
        "CREATE TABLE descriptors (image_id); CREATE TABLE images (image_id, name, camera_id);"
        "INSERT INTO cameras VALUES (1, 400, 300);"
    )
    with sqlite3.connect(photos / "colmap.db") as connection:
        connection.executescript(schema + "INSERT INTO images VALUES (1, 'gone.png', 1)")
    text = refused(photos)
    assert "such as gone.png: remove it" in text
    with sqlite3.connect(photos / "colmap.db") as connection:
        connection.executescript(
            "UPDATE images SET name = 'view_00.png'; UPDATE cameras SET width = 401"
        )
    assert "another size, such as view_00.png" in refused(photos)
    (photos / "colmap.db").write_bytes(b"no database" * 100)
    assert "colmap.db is damaged" in refused(photos)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--camera", "FISHEYE"], "--camera"),
        (["--pairs", "some"], "--pairs"),
        (["--frames", "2"], "must be at least 3"),
        (["--frames", "many"], "invalid whole number value"),
        (["--frames", "10"], "no effect on a folder of photographs"),
        ([], "holds no photographs"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys, arguments: list[str], words: str):
    photos = tmp_path
    if arguments == ["--frames", "10"]:
        Image.new("RGB", (4, 3)).save(tmp_path / "one.png")
    assert main(["data", "pose", str(photos), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]


def test_the_lenses_that_are_offered_are_those_that_are_read(capsys):
    assert main(["data", "pose", "nowhere", "--camera", "FISHEYE"]) == 2
    error = capsys.readouterr().err
    offered = error.partition("choose from")[2]
    names = set(re.findall(r"[A-Z_]{2,}", offered))
    assert names <= set(MODELS)
    assert {"OPENCV", "OPENCV_FISHEYE"} <= names


def test_without_pycolmap_the_remedy_is_its_pip_command(
    photos: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert "pip install pycolmap" in refused(photos)


def test_folders_of_photographs_lead_here(photos: Path, tmp_path: Path):
    with pytest.raises(UserError, match=f"nerftrain data pose {photos}"):
        inspect(photos, tmp_path / "drawn", scene_plan)


def test_a_lens_that_training_cannot_undo_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise UserError("it folds")

    monkeypatch.setattr(posing, "check_invertible", refuse)
    for index in range(5, COUNT):
        (photos / f"view_{index:02d}.png").unlink()
    assert "it folds; or try --camera SIMPLE_RADIAL" in refused(photos)
    assert not (photos / "sparse").exists()


def test_a_model_of_few_of_the_photographs_is_warned_of():
    names = [f"{index}.jpg" for index in range(10)]
    model = {"names": names[:4], "points": 50, "error": 0.5, "cameras": []}
    other = {**model, "names": names[5:8]}
    place = Place(Path("/photos"), Path("/photos"), None)
    posed = Posed(place, names, [model, other], "take more", "", 1.0)
    text = "\n".join(posed.lines())
    assert "4 of 10 photographs" in text
    assert "left out 4.jpg, 5.jpg, 6.jpg, 7.jpg, 8.jpg and 1 more" in text
    assert "of 3 more photographs" in text
    assert posed.warnings() == ["only 4 of 10 photographs have found their cameras: take more"]
    model["names"] = names[:5]
    assert posed.warnings() == []
    model["names"] = names[:8]  # the other one's, too
    assert "dropped" not in "\n".join(posed.lines())


def test_a_lens_that_no_camera_has_is_warned_of():
    def warned(**numbers: float) -> list[str]:
        camera = {"model": "OPENCV", "size": "800x533", "n": 3, "numbers": numbers}
        model = {"names": ["0.jpg"], "points": 50, "error": 0.9, "cameras": [camera, camera]}
        place = Place(Path("/photos"), Path("/photos"), None)
        return Posed(place, ["0.jpg"], [model], "take more", "", 1.0).warnings()

    assert warned(f=700.0, k=0.1) == warned(fx=823.6, fy=823.0) == warned(fx=700.0, fy=719.0) == []
    (line,) = warned(fx=740.08, fy=688.12)
    assert "fx 740.1 and fy 688.1" in line
    assert line.endswith("cameras may be wrong; take more")


# COLMAP's processes


def extract_job(photos: Path) -> dict[str, Any]:
    names = sorted(path.name for path in photos.iterdir())
    batch = {"folder": str(photos), "names": names, "camera_id": None}
    database = str(photos.parent / "some.db")
    return {
        "step": "extract",
        "database": database,
        "batches": [batch],
        "camera_model": "PINHOLE",
    }


def test_a_step_ends_with_the_process_that_asked_for_it(photos: Path):
    job = extract_job(photos)
    command = [sys.executable, "-m", "nerftrain.data.colmap_steps"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        child.communicate(json.dumps(job).encode() + b"\n")
    assert child.returncode == 1
    assert Database(Path(job["database"])).count("keypoints") < COUNT


def test_a_step_that_fails_tells_where_it_is_written_up(photos: Path):
    job = extract_job(photos) | {"camera_model": "NO_SUCH_LENS"}
    log = photos.parent / "colmap.log"
    with pytest.raises(RunError) as caught:
        run_step(job, log, lambda _: None)
    assert str(log) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert log.read_text().splitlines()[-1].strip() in str(caught.value)


@pytest.mark.parametrize(
    ("count", "every", "pairs"), [(9, True, 36), (9, False, 36), (24, False, 193)]
)
def test_the_number_of_pairs_is_known(count: int, every: bool, pairs: int):
    assert posing._num_pairs(count, every) == pairs


def test_poses_of_the_room_are_rotations():
    rotations = torch.tensor(true_poses(COUNT))[:, :, :3]
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3).double(), atol=1e-5)
