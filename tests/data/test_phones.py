"""Cameras out of what telephones' apps leave: folders made here as those apps lay them out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerftrain.cli import main
from nerftrain.config import scene_plan
from nerftrain.scenes.world import scale_of

WIDTH, HEIGHT, FOCAL = 32, 24, 40.0


def arkit_poses(count):
    """Place cameras on a ring, 1.5 above the ground of a world whose +y is up, looking inwards."""
    poses = []
    for angle in np.arange(count) * 2 * math.pi / count:
        place = np.array([3 * math.sin(angle), 1.5, 3 * math.cos(angle)])
        back = place / np.linalg.norm(place)
        right = np.cross([0, 1, 0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, place], 1)
        poses.append(pose)
    return poses


def draw(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (shade, 90, 120)).save(path)


def polycam(folder, poses, corrected=False, scores=None, names=None):
    kind = "corrected_" if corrected else ""
    cameras = folder / "keyframes" / f"{kind}cameras"
    cameras.mkdir(parents=True)
    values = {"fx": FOCAL, "fy": FOCAL, "cx": 16.5, "cy": 11.5, "width": WIDTH, "height": HEIGHT}
    for i, pose in enumerate(poses):
        name = names[i] if names else str(1000 + i)
        camera = {f"t_{r}{c}": pose[r, c] for r in range(3) for c in range(4)} | values
        camera["blur_score"] = scores[i] if scores else 1.0
        (cameras / f"{name}.json").write_text(json.dumps(camera))
        draw(folder / "keyframes" / f"{kind}images" / f"{name}.jpg", i)
    return folder


def quaternion(pose):
    """Return x y z w of a rotation that turns by less than 180 degrees."""
    w = math.sqrt(max(0.0, 1 + np.trace(pose[:3, :3]))) / 2
    r = pose[:3, :3]
    xyz = [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]
    return [*(v / (4 * w) for v in xyz), w]


def record3d(folder, cameras, metadata="metadata.json", images="rgb", **content):
    folder.mkdir(exist_ok=True)
    values = {
        "K": [FOCAL, 0, 0, 0, FOCAL, 0, 16.5, 11.5, 1],
        "w": WIDTH,
        "h": HEIGHT,
        "poses": [[*quaternion(pose), *pose[:3, 3]] for pose in cameras],
        **content,
    }
    (folder / metadata).write_text(json.dumps(values))
    for i in range(len(cameras)):
        draw(folder / images / f"{i}.jpg", i)
    return folder


def frames_of(folder):
    return json.loads((folder / "transforms.json").read_text())["frames"]


def load(folder, **changes):
    plan = scene_plan("transforms")
    return replace(plan, values={**plan.values, "root": str(folder), **changes}).build()


def upright(poses):
    """Name the axes of a world whose +y is up so that its +z is, and stay right-handed."""
    return np.stack(poses)[:, [2, 0, 1, 3]]


@pytest.mark.parametrize("make", [polycam, record3d])
def test_a_capture_becomes_a_scene_with_its_cameras(tmp_path, make, capsys):
    poses = arkit_poses(12)
    if make is record3d:  # the one that looks back turns by 180 degrees
        poses = [pose for i, pose in enumerate(poses) if i != 6]
    folder = make(tmp_path / "capture", poses)
    assert main(["data", "phone", str(folder)]) == 0
    assert f"{len(poses)} frames of {'Polycam' if make is polycam else 'Record3D'}, all taken" in (
        text := capsys.readouterr().out
    )
    assert f"nerftrain scene=transforms scene.root={folder} refine=poses" in text
    found = [frame["transform_matrix"] for frame in frames_of(folder)]
    np.testing.assert_allclose(found, upright(poses), atol=1e-6)
    assert {
        tuple(frame[k] for k in ("fl_x", "fl_y", "cx", "cy", "w", "h"))
        for frame in frames_of(folder)
    } == {(40.0, 40.0, 16.5, 11.5, 32, 24)}
    assert main(["data", "check", str(folder), "--out", str(tmp_path / "out")]) == 0
    scene = load(folder)
    cameras = scene.splits["train"].cameras
    # All look down at the middle of the ring, from one height: what is up is up.
    up = cameras.poses[:, :3, 1]
    assert (up[:, 2] > 0.8).all()
    assert torch.allclose(cameras.poses[:, 2, 3], cameras.poses[:1, 2, 3], atol=1e-4)


def test_cameras_without_drift_are_taken_where_there_are_some(tmp_path, capsys):
    poses = arkit_poses(6)
    folder = polycam(tmp_path, poses[::-1])
    polycam(folder, poses, corrected=True)
    assert main(["data", "phone", str(folder)]) == 0
    found = [frame["transform_matrix"] for frame in frames_of(folder)]
    np.testing.assert_allclose(found, upright(poses), atol=1e-6)
    assert all("corrected_images" in frame["file_path"] for frame in frames_of(folder))
    assert "drifted" not in capsys.readouterr().out


def test_polycams_depths_are_named_and_can_be_trained_on(tmp_path, capsys):
    folder = polycam(tmp_path / "capture", arkit_poses(9), corrected=True)
    (folder / "keyframes/depth").mkdir()
    for i in range(8):  # of the last there is none
        values = np.full((HEIGHT // 4, WIDTH // 4), 2500, np.uint16)  # millimetres
        Image.fromarray(values).save(folder / f"keyframes/depth/{1000 + i}.png")
    assert main(["data", "phone", str(folder)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(" refine=poses scene.depths=maps")
    assert main(["data", "check", str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "  depths   of 8 images, which scene.depths=maps takes" in said
    assert "scene.depths=maps" in said.splitlines()[-1]
    scene = load(folder, depths="maps")
    train = scene.splits["train"]
    assert train.depths is not None
    middle = train.depths.values.view(-1, HEIGHT, WIDTH)[0, HEIGHT // 2, WIDTH // 2]
    assert abs(float(middle) / scale_of(scene.world) - 2.5) < 0.01
    (folder / "keyframes/depth/1003.png").write_bytes(b"nothing")
    assert main(["data", "check", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "depth/1003.png is truncated or no image" in capsys.readouterr().err


def test_frames_lie_in_the_order_of_their_numbers(tmp_path):
    folder = polycam(tmp_path, arkit_poses(4), names=["9", "100", "20", "3"])
    assert main(["data", "phone", str(folder)]) == 0
    stems = [Path(frame["file_path"]).stem for frame in frames_of(folder)]
    assert stems == ["3", "9", "20", "100"]


def test_of_frames_near_each_other_the_sharpest_is_taken(tmp_path, capsys):
    folder = polycam(tmp_path, arkit_poses(9), scores=[1, 5, 2, 9, 3, 3, 2, 2, 2])
    assert main(["data", "phone", str(folder), "--frames", "3"]) == 0
    assert [Path(f["file_path"]).stem for f in frames_of(folder)] == ["1001", "1003", "1007"]
    assert "9 frames of Polycam, 3 of 9 taken" in capsys.readouterr().out


def test_what_lacks_an_image_or_a_camera_is_left_out_and_told(tmp_path, capsys):
    folder = polycam(tmp_path, arkit_poses(6))
    (folder / "keyframes/images/1002.jpg").unlink()
    (folder / "keyframes/cameras/1004.json").unlink()
    assert main(["data", "phone", str(folder)]) == 0
    assert len(frames_of(folder)) == 4
    assert "left out 2, camera or image missing" in capsys.readouterr().out


def test_an_unpacked_r3d_is_read_with_a_lens_for_each_frame(tmp_path):
    poses = arkit_poses(5)
    lenses = [[40 + i, 41 + i, 16, 12] for i in range(5)]
    extra = {"metadata": "metadata", "images": "rgbd", "perFrameIntrinsicCoeffs": lenses}
    folder = record3d(tmp_path, poses, **extra)
    (folder / "rgbd" / "0.depth").write_bytes(b"lzfse")
    assert main(["data", "phone", str(folder)]) == 0
    assert [[f["fl_x"], f["fl_y"]] for f in frames_of(folder)] == [
        [40 + i, 41 + i] for i in range(5)
    ]
    assert all(frame["file_path"].startswith("rgbd/") for frame in frames_of(folder))


def test_a_principal_point_of_an_image_that_was_turned_is_not_taken(tmp_path):
    folder = record3d(tmp_path, arkit_poses(5), K=[FOCAL, 0, 0, 0, FOCAL, 0, 12.0, 16.0, 1])
    assert main(["data", "phone", str(folder)]) == 0
    assert {(frame["cx"], frame["cy"]) for frame in frames_of(folder)} == {(16.0, 12.0)}


def _break_json(folder):
    (folder / "keyframes/cameras/1001.json").write_text("{")


def _break_pose(folder):
    path = folder / "keyframes/cameras/1001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"t_11": None}))


@pytest.mark.parametrize(
    ("make", "fault", "said"),
    [
        (polycam, _break_json, "1001.json is no JSON"),
        (polycam, _break_pose, "t_11 must be numbers"),
        (polycam, lambda f: (f / "transforms.json").write_text("{}"), "is there already"),
        (polycam, lambda f: [p.unlink() for p in f.glob("keyframes/images/*")], "no camera has an"),
        (record3d, lambda f: record3d(f, [], K=[1, 2]), "K must be 9 numbers"),
        (record3d, lambda f: record3d(f, [], poses=[[0, 0]]), "poses must be 7 numbers each"),
        (record3d, lambda f: record3d(f, [], poses=[[0] * 7] * 4), "pose 0 has no direction"),
        (record3d, lambda f: record3d(f, [], poses=[[0, 0, 0, 1, 0, 0, 0]], w="x"), "w and h must"),
        (record3d, lambda f: record3d(f, [], poses=[["a"] * 7]), "poses must be 7 numbers each"),
        (record3d, lambda f: (f / "metadata.json").write_text("[]"), "expected an object"),
    ],
)
def test_what_is_broken_is_one_line_and_nothing_is_written(tmp_path, make, fault, said, capsys):
    folder = make(tmp_path, arkit_poses(5))
    fault(folder)
    before = sorted(folder.rglob("*"))
    assert main(["data", "phone", str(folder)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_folders_of_other_kinds_are_refused(tmp_path, capsys):
    assert main(["data", "phone", str(tmp_path / "absent")]) == 2
    assert "absent does not exist" in capsys.readouterr().err
    assert main(["data", "phone", str(tmp_path)]) == 2
    assert "neither keyframes" in capsys.readouterr().err
    (tmp_path / "x.r3d").write_bytes(b"PK")
    assert main(["data", "phone", str(tmp_path / "x.r3d")]) == 2
    assert "unpack it" in capsys.readouterr().err


def test_others_commands_name_the_one_that_reads_it(tmp_path, capsys):
    folder = polycam(tmp_path / "capture", arkit_poses(4))
    assert main(["data", "check", str(folder)]) == 2
    assert (
        f"take the cameras of Polycam by nerftrain data phone {folder}" in capsys.readouterr().err
    )
    telephone = record3d(tmp_path / "film", arkit_poses(3))
    for app, path in (("Polycam", folder), ("Record3D", telephone)):
        assert main(["scene=transforms", f"scene.root={path}"]) == 2
        assert f"data phone {path} takes the cameras of {app}" in capsys.readouterr().err
