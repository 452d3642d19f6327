"""Cameras that a file lists are rendered as they are, wherever the scene has been moved to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import train_tiny

from nerftrain.cameras import look_at
from nerftrain.cli import main
from nerftrain.config import scene_plan
from nerftrain.errors import UserError
from nerftrain.shots import read_shots

SIZE = 32
PLACES = torch.tensor([[3.0, 0, 1], [0, 3, 1], [-3, 0, 2], [0, -3, 1.5]]).double()
POSES = look_at(PLACES, torch.zeros(3).double(), torch.tensor([0.0, 0, 1]).double())
LENS = {"fl_x": 30.0, "w": 24, "h": 16}


def rows(pose: torch.Tensor) -> list[list[float]]:
    return [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]


def transforms(file: Path, **content) -> Path:
    frames = [{"file_path": f"{i}.png", "transform_matrix": rows(p)} for i, p in enumerate(POSES)]
    file.write_text(json.dumps({**LENS, "frames": frames, **content}))
    return file


def path_of_nerfstudio(file: Path, **content) -> Path:
    cameras = [
        {"camera_to_world": [x for row in rows(pose) for x in row], "fov": 50.0, "aspect": 1.5}
        for pose in POSES
    ]
    size = {"render_width": 24, "render_height": 16}
    values = {"camera_type": "perspective", **size, "keyframes": [], "fps": 12.5, **content}
    file.write_text(json.dumps({"camera_path": cameras, **values}))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("shots"))


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.array(Image.open(file)) for file in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("kind", ["transforms", "nerfstudio"])
def test_the_test_views_cameras_in_a_file_give_the_test_views(run: Path, tmp_path: Path, kind: str):
    assert main(["render", str(run), "--split", "test"]) == 0
    expected = pictures(run / "renders/views-test-last")
    content = json.loads((run.parent / "scene/transforms_test.json").read_text())
    file = tmp_path / f"{kind}.json"
    if kind == "transforms":
        file.write_text(json.dumps({**content, "w": SIZE, "h": SIZE}))
    else:
        path_of_nerfstudio(
            file,
            camera_path=[
                {
                    "camera_to_world": frame["transform_matrix"],
                    "fov": math.degrees(content["camera_angle_x"]),
                }
                for frame in content["frames"]
            ],
            render_width=SIZE,
            render_height=SIZE,
        )
    assert main(["render", str(run), "--path", str(file)]) == 0
    found = pictures(run / f"renders/path-{kind}-test-last")
    assert len(found) == len(expected) == 2
    for image, other in zip(found, expected, strict=True):
        assert np.abs(image.astype(int) - other).max() <= 1
    assert len(list((run / "renders").glob(f"path-{kind}-test-last.*"))) == 1


def test_frames_come_to_lie_where_those_of_the_scene_do(tmp_path: Path):
    turn = [[0.0, 1, 0, 0.5], [0, 0, 1, -1], [1, 0, 0, 2]]
    for i in range(len(POSES)):
        Image.new("RGB", (LENS["w"], LENS["h"]), (9 * i, 5, 5)).save(tmp_path / f"{i}.png")
    file = transforms(tmp_path / "transforms.json", applied_transform=turn, applied_scale=0.5)
    plan = scene_plan("transforms")
    scene = replace(plan, values={**plan.values, "root": str(tmp_path)}).build()
    shots = read_shots(file, scene.world)
    assert shots is not None
    train = scene.splits["train"]
    chosen = [int(name[0]) for name in train.names]
    torch.testing.assert_close(shots.cameras.poses[chosen], train.cameras.poses)
    assert torch.equal(shots.cameras.intrinsics[chosen], train.cameras.intrinsics)
    own = read_shots(file, None)  # and in the dataset's own coordinates
    assert own is not None
    back = torch.tensor([*turn, [0.0, 0, 0, 1]]).double()
    back[:3] *= 0.5
    places = torch.cat([PLACES, torch.ones(4, 1).double()], 1) @ torch.linalg.inv(back).T
    torch.testing.assert_close(own.cameras.poses[:, :, 3].double(), places[:, :3])


def test_lenses_sizes_and_times_are_the_files(tmp_path: Path):
    file = transforms(
        tmp_path / "a.json", camera_model="OPENCV_FISHEYE", k1=0.01, cx=11.0, fl_y=31.0
    )
    content = json.loads(file.read_text())
    for i, frame in enumerate(content["frames"]):
        frame["time"] = i / 3
    content["frames"][2] |= {"w": 48, "h": 32, "fl_x": 60.0}
    file.write_text(json.dumps(content))
    shots = read_shots(file, None)
    assert shots is not None
    cameras = shots.cameras
    assert cameras.projection == "fisheye"
    assert cameras.widths.tolist() == [24, 24, 48, 24]
    assert cameras.intrinsics[0].tolist() == [30.0, 31.0, 11.0, 8.0]
    assert cameras.times is not None
    assert cameras.times.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert shots.fps is None


@pytest.mark.parametrize("kind", ["perspective", "fisheye", "equirectangular"])
def test_nerfstudios_kinds_of_cameras(tmp_path: Path, kind: str):
    shots = read_shots(path_of_nerfstudio(tmp_path / "a.json", camera_type=kind), None)
    assert shots is not None
    assert (shots.cameras.projection, shots.fps) == (kind, 12.5)
    fx, fy, cx, cy = shots.cameras.intrinsics[1].tolist()
    assert (cx, cy) == (12.0, 8.0)
    focal = 8 / math.tan(math.radians(25))
    around = pytest.approx([24 / (2 * math.pi), 16 / math.pi])
    assert [fx, fy] == (around if kind == "equirectangular" else pytest.approx([focal, focal]))


@pytest.mark.parametrize(
    ("write", "changes", "message"),
    [
        (transforms, {"w": 0}, "frame 0 ('0.png'): w = 0: give the size"),
        (transforms, {"h": None}, "h = None: give the size of the image to be rendered, in pixels"),
        (transforms, {"fl_x": None}, "neither fl_x nor camera_angle_x is given"),
        (transforms, {"w": 10**6, "h": 10**6, "fl_x": 1e6}, "images of more than"),
        (transforms, {"frames": [{"file_path": "a"}]}, "transform_matrix must be 4 rows of 4"),
        (path_of_nerfstudio, {"camera_type": "vr180"}, "camera_type = 'vr180' is not supported"),
        (path_of_nerfstudio, {"render_width": "x"}, "render_width = 'x': give the size"),
        (path_of_nerfstudio, {"camera_path": [3]}, "camera 0 is no object"),
        (path_of_nerfstudio, {"camera_path": [{"fov": 3}]}, "camera_to_world must be 4 rows"),
        (
            path_of_nerfstudio,
            {"camera_path": [{"camera_to_world": rows(POSES[0]), "fov": 180}]},
            "fov = 180: give the vertical angle of view in degrees",
        ),
        (
            path_of_nerfstudio,
            {"camera_path": [{"camera_to_world": rows(2 * POSES[0]), "fov": 50}]},
            "is not a rotation",
        ),
        (
            path_of_nerfstudio,
            {"camera_path": [{"camera_to_world": rows(POSES[0]), "fov": 50, "render_time": 3}]},
            "render_time = 3: must lie in 0..1",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, write, changes: dict, message: str):
    file = write(tmp_path / "a.json", **changes)
    with pytest.raises(UserError) as caught:
        read_shots(file, None)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_listed_cameras_are_as_many_as_they_are(run: Path, tmp_path: Path, capsys):
    file = transforms(tmp_path / "a.json")
    assert main(["render", str(run), "--path", str(file), "--frames", "5"]) == 2
    assert f"--frames has no effect: {file} lists its cameras" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"keyframes": []}', '{"frames": []}', "{"])
def test_files_of_other_kinds_are_left_to_others(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    assert read_shots(tmp_path / "a.json", None) is None
