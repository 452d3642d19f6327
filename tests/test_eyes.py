from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import train_tiny

from nerftrain.cameras import look_at
from nerftrain.cli import main
from nerftrain.errors import UserError
from nerftrain.eyes import Eye, read_path, vertical_fov, write_path

PLACES = torch.tensor([[3.0, 0, 1], [0, 3, 1], [-3, 0, 2]])
POSES = look_at(PLACES, torch.zeros(3), torch.tensor([0.0, 0, 1]))
EYES = [Eye(pose, 0.8, 1.6, None) for pose in POSES]


def test_an_eyes_camera_has_its_fov_and_aspect():
    wide = EYES[0].camera(320)
    assert (int(wide.widths[0]), int(wide.heights[0])) == (320, 200)
    assert wide.intrinsics[0].tolist() == pytest.approx([100 / math.tan(0.4)] * 2 + [160.0, 100.0])
    assert vertical_fov(wide, 0) == pytest.approx(0.8)
    tall = replace(EYES[0], aspect=0.5).camera(320)
    assert (int(tall.widths[0]), int(tall.heights[0])) == (160, 320)
    assert vertical_fov(tall, 0) == pytest.approx(0.8)


def test_a_path_is_read_as_it_was_written(tmp_path: Path):
    file = tmp_path / "new" / "a.json"
    timed = [replace(eye, time=time) for eye, time in zip(EYES, (0.0, 0.25, 1.0), strict=True)]
    write_path(file, timed)
    cameras = read_path(file, 100)
    torch.testing.assert_close(cameras.poses, POSES)
    assert cameras.times is not None
    assert cameras.times.tolist() == [0.0, 0.25, 1.0]
    assert set(cameras.widths.tolist()) == {100}
    write_path(file, EYES)
    assert read_path(file, 100).times is None


def test_a_path_named_as_a_built_in_one_is_a_path_of_its_own(tmp_path: Path):
    run = train_tiny(tmp_path)
    for name in ("still", "views"):
        write_path(tmp_path / f"{name}.json", EYES)
        command = ["render", str(run), "--path", str(tmp_path / f"{name}.json"), "--frames", "2"]
        assert main(command) == 0
        assert len(list((run / "renders" / f"path-{name}-test-last").iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pose": [[1, 0, 0, 0]]}, "3 rows of 4"),
        ({"pose": [[1, 0, 0, "x"]] * 3}, "no camera path"),
        ({"pose": [[math.nan, 0, 0, 0]] * 3}, "3 rows of 4"),
        ({"fov": 4.0}, "fov must lie"),
        ({"aspect": 0}, "aspect above 0"),
        ({"time": 2}, "between 0 and 1"),
        ({"fov": None}, "no camera path"),
    ],
)
def test_a_damaged_path_is_named(tmp_path: Path, change: dict[str, object], words: str):
    file = tmp_path / "a.json"
    write_path(file, EYES)
    content = json.loads(file.read_text())
    content["keyframes"][1].update(change)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as caught:
        read_path(file, 100)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"frames": []}', '{"keyframes": 3}', "{", "null"])
def test_what_is_no_path_is_said(tmp_path: Path, text: str):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UserError, match="no camera path"):
        read_path(file, 100)


def test_too_few_views_and_unreadable_places_are_said(tmp_path: Path):
    write_path(tmp_path / "a.json", EYES[:1])
    with pytest.raises(UserError, match="1 keyframes: a path needs two"):
        read_path(tmp_path / "a.json", 100)
    with pytest.raises(UserError, match="cannot be read"):
        read_path(tmp_path / "absent.json", 100)
    with pytest.raises(UserError, match="cannot be written"):
        write_path(tmp_path / "a.json" / "b.json", EYES)
