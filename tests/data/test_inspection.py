"""What a folder is, every fault that training would hit, and pictures of what is there."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from nerftrain.cli import main
from nerftrain.config import scene_plan
from nerftrain.data.inspection import Inspection, inspect
from nerftrain.errors import UserError


def look(folder: Path, kind: str | None = None) -> Inspection:
    return inspect(folder, folder.parent / "out", scene_plan, kind)


def edit(root: Path, change, split: str = "train") -> None:
    path = root / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def add_times(root: Path) -> None:
    for split in ("train", "test"):

        def add(content) -> None:
            for i, frame in enumerate(content["frames"]):
                frame["time"] = i / 5

        edit(root, add, split)


def test_a_good_folder_has_no_fault(tiny_scene_root):
    found = look(tiny_scene_root)
    assert found.kind.kind == "blender"
    assert found.faults == found.notes == []
    text = "\n".join(found.lines())
    assert "train    6 cameras, 6 images, 24x24, alpha" in text
    assert "test     2 cameras, 2 images" in text
    assert "fx 33.39 fy 33.39 cx 12 cy 12, no distortion (8)" in text
    assert f"nerftrain scene=blender scene.root={tiny_scene_root}" in text


def test_times_tell_a_scene_that_moves(tiny_scene_root):
    add_times(tiny_scene_root)
    found = look(tiny_scene_root)
    assert found.kind.kind == "dnerf"
    assert found.faults == []
    assert "6 times in 0..1" in "\n".join(found.lines())


def test_pictures_show_every_split(tiny_scene_root):
    found = look(tiny_scene_root)
    sheet, plot = (Image.open(path).convert("RGB") for path in found.pictures)
    assert [path.name for path in found.pictures] == ["contact_sheet.png", "cameras.png"]
    for picture in (sheet, plot):
        colors = {color for _, color in picture.getcolors(1 << 24)}
        assert {(38, 99, 191), (214, 96, 20)} <= colors
        assert len(colors) > 50


def spoil(root: Path) -> None:
    """Put one fault of each kind into a folder."""

    def change(content) -> None:
        frames = content["frames"]
        frames[0]["transform_matrix"][0][:3] = [2.0, 0.0, 0.0]
        frames[1].pop("file_path")

    edit(root, change)
    (root / "train" / "r_2.png").unlink()
    (root / "test" / "r_1.png").unlink()
    content = (root / "train" / "r_3.png").read_bytes()
    (root / "train" / "r_3.png").write_bytes(content[: len(content) // 2])
    (root / "test" / "r_0.png").write_text("no image")


def test_all_faults_are_listed_at_once(tiny_scene_root):
    spoil(tiny_scene_root)
    with Image.open(tiny_scene_root / "train" / "r_5.png") as image:
        image.resize((20, 24)).save(tiny_scene_root / "train" / "r_5.png")
    found = look(tiny_scene_root)
    expected = [
        "frame 0 ('./train/r_0'): the upper left 3x3 of transform_matrix is not a rotation",
        "frame 1 has no file_path",
        "frame 2 ('./train/r_2') has no image",
        "r_3.png is truncated or no image",
        "images of different sizes",
        "frame 1 ('./test/r_1') has no image",
        "r_0.png is truncated or no image",
    ]
    for text in expected:
        assert sum(text in fault for fault in found.faults) == 1, text
    assert len(found.faults) == len(expected)
    assert all("\n" not in fault for fault in found.faults)
    assert all(path.is_file() for path in found.pictures)


def test_every_fault_of_times_is_listed(tiny_scene_root):
    add_times(tiny_scene_root)

    def change(content) -> None:
        content["frames"][1].pop("time")
        content["frames"][2]["time"] = "now"
        content["frames"][3]["time"] = 1.5

    edit(tiny_scene_root, change)
    faults = look(tiny_scene_root).faults
    assert len(faults) == 3
    assert "frame 1 ('./train/r_1') has no time" in faults[0]
    assert "frame 2 ('./train/r_2') has time 'now'" in faults[1]
    assert "outside 0..1" in faults[2]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content.update(camera_angle_x=39.6), "camera_angle_x is 39.6"),
        (lambda content: content.update(frames=[]), "the list of frames is empty"),
        (lambda content: content.update(frames={}), "frames must be a list"),
    ],
)
def test_a_fault_of_a_whole_file_is_told_beside_those_of_the_others(tiny_scene_root, change, text):
    edit(tiny_scene_root, change)
    (tiny_scene_root / "test" / "r_1.png").unlink()
    faults = look(tiny_scene_root).faults
    assert len(faults) == 2
    assert text in faults[0]
    assert "r_1" in faults[1]


def test_broken_json_is_told(tiny_scene_root):
    (tiny_scene_root / "transforms_test.json").write_text("{")
    assert "not valid JSON" in "".join(look(tiny_scene_root).faults)


def test_a_missing_test_split_is_told_beside_other_faults(tiny_scene_root):
    (tiny_scene_root / "transforms_test.json").unlink()
    (tiny_scene_root / "train" / "r_2.png").unlink()
    faults = look(tiny_scene_root).faults
    assert len(faults) == 2
    assert "neither transforms_test.json" in faults[0]


def test_what_only_training_itself_refuses_is_told(tiny_scene_root, monkeypatch):
    import nerftrain.scenes.blender

    def refuse(*_, **__):
        raise UserError("the moon is in the wrong house")

    monkeypatch.setattr(nerftrain.scenes.blender, "load_splits", refuse)
    assert look(tiny_scene_root).faults == ["the moon is in the wrong house"]


def test_what_training_warns_of_is_a_note_and_is_not_logged(tiny_scene_root, caplog):
    add_times(tiny_scene_root)
    edit(tiny_scene_root, lambda content: content["frames"].__delitem__(slice(2, 6)))
    edit(tiny_scene_root, lambda content: content["frames"][1].update(time=1.0), "test")
    with caplog.at_level(logging.WARNING):
        found = look(tiny_scene_root)
    assert found.faults == []
    assert any("never saw" in note for note in found.notes)


@pytest.mark.parametrize("place", ["empty", "above", "file", "nowhere"])
def test_what_is_no_scene_is_refused_in_one_line(tiny_scene_root, place):
    above = tiny_scene_root.parent
    (above / "empty").mkdir()
    folders = {
        "empty": (above / "empty", "looked for transforms_train.json"),
        "above": (above, f"scenes in it: {tiny_scene_root}"),
        "file": (tiny_scene_root / "transforms_train.json", "is a file"),
        "nowhere": (above / "nowhere", "does not exist"),
    }
    folder, text = folders[place]
    with pytest.raises(UserError) as caught:
        look(folder)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kind_that_does_not_exist_or_does_not_fit_is_refused(tiny_scene_root):
    with pytest.raises(UserError, match="did you mean blender"):
        look(tiny_scene_root, "blendr")
    with pytest.raises(UserError, match="is no scene of kind dnerf"):
        look(tiny_scene_root, "dnerf")


# The command line


def test_what_nerfstudio_made_is_read_by_its_transforms(tiny_scene_root, tmp_path):
    pycolmap = pytest.importorskip("pycolmap", reason="COLMAP models: pip install pycolmap")
    folder = tmp_path / "capture"
    (folder / "colmap/sparse/0").mkdir(parents=True)
    pycolmap.Reconstruction().write(str(folder / "colmap/sparse/0"))
    content = json.loads((tiny_scene_root / "transforms_train.json").read_text())
    for frame in content["frames"]:
        frame["file_path"] = str(tiny_scene_root / f"{frame['file_path']}.png")
    (folder / "transforms.json").write_text(json.dumps(content))
    assert look(folder).kind.kind == "transforms"
    (folder / "transforms.json").unlink()
    assert look(folder).kind.kind == "colmap"


def test_the_exit_status_and_the_lines_tell_faults(tiny_scene_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", str(tiny_scene_root)]) == 0
    captured = capsys.readouterr()
    assert "no fault" in captured.out
    assert captured.err == ""
    assert (tmp_path / "outputs" / "data" / "tiny" / "cameras.png").is_file()
    spoil(tiny_scene_root)
    assert main(["data", "check", str(tiny_scene_root), "--out", "here"]) == 2
    captured = capsys.readouterr()
    assert "6 faults" in captured.out
    assert len(captured.err.splitlines()) == 6
    assert (tmp_path / "here" / "contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [([], "PATH"), (["nowhere"], "does not exist"), (["x", "--kin", "y", "z"], "--help")],
)
def test_a_mistake_gets_one_line(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert text in lines[0]
    assert list(tmp_path.iterdir()) == []


# Real scenes


def test_real_scenes_have_no_fault(real_scene, tmp_path):
    found = inspect(real_scene("blender/lego"), tmp_path, scene_plan)
    assert (found.kind.kind, found.faults, found.notes) == ("blender", [], [])
    assert len(found.views) == 125


def test_a_real_moving_scene_has_no_fault(real_scene, tmp_path):
    found = inspect(real_scene("dnerf/bouncingballs"), tmp_path, scene_plan)
    assert (found.kind.kind, found.faults) == ("dnerf", [])
    assert len({view.time for view in found.views}) > 100


def test_faults_in_a_real_scene_are_found(own_scene, tmp_path):
    root = own_scene("blender/lego")
    for index in (3, 50, 97):
        (root / "train" / f"r_{index}.png").unlink()
    path = root / "test" / "r_8.png"
    path.write_bytes(path.read_bytes()[:-5000])
    faults = inspect(root, tmp_path / "out", scene_plan).faults
    assert len(faults) == 4
    assert "r_8.png is truncated" in faults[3]
