import json
import logging
import math
from pathlib import Path

import pytest
import torch

from nerftrain.errors import UserError
from nerftrain.scenes import Scene
from nerftrain.scenes.dnerf import load_scene


def load(root: Path | None, **changes) -> Scene:
    values = {
        "name": "dnerf_tiny",
        "root": None if root is None else str(root),
        "data_root": None,
        "downscale": 1.0,
        "skip_missing": False,
        "near": 2.0,
        "far": 6.0,
        "extent": 1.5,
    }
    return load_scene(**(values | changes))


def refused(root: Path | None, **changes) -> str:
    """The text of the error, which must be one line."""
    with pytest.raises(UserError) as caught:
        load(root, **changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


def set_times(root: Path, split: str, times: list) -> None:
    """Give the first frames of a split these times; None takes a frame's time away."""
    path = root / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    for frame, time in zip(content["frames"], times, strict=False):
        frame.pop("time", None)
        frame.update({} if time is None else {"time": time})
    path.write_text(json.dumps(content))


TRAIN_TIMES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.fixture
def moving_root(tiny_scene_root: Path) -> Path:
    """A D-NeRF folder of one's own: 6 train and 2 test views of 24x24 pixels with alpha."""
    set_times(tiny_scene_root, "train", TRAIN_TIMES)
    set_times(tiny_scene_root, "test", [0.0, 0.5])
    return tiny_scene_root


# What is read


def test_every_camera_has_its_time(moving_root):
    scene = load(moving_root)
    assert scene.is_dynamic
    torch.testing.assert_close(scene.splits["train"].cameras.times, torch.tensor(TRAIN_TIMES))
    torch.testing.assert_close(scene.splits["test"].cameras.times, torch.tensor([0.0, 0.5]))
    assert scene.splits["train"].image(0).shape == (24, 24, 4)
    assert scene.aabb.tolist() == [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]


def test_rays_carry_the_time_of_their_camera(moving_root):
    scene = load(moving_root)
    batch = scene.batch(torch.Generator().manual_seed(0), 50, torch.zeros(50, 3))
    assert batch.rays.cameras is not None
    assert torch.equal(batch.rays.times, torch.tensor(TRAIN_TIMES)[batch.rays.cameras])


def test_times_stay_with_their_frames_where_images_are_missing(moving_root):
    (moving_root / "train" / "r_2.png").unlink()
    times = load(moving_root, skip_missing=True).splits["train"].cameras.times
    torch.testing.assert_close(times, torch.tensor([0.0, 0.2, 0.6, 0.8, 1.0]))


@pytest.mark.parametrize("whole", [0, 1])
def test_times_may_be_whole_numbers(moving_root, whole):
    set_times(moving_root, "train", [whole])
    assert load(moving_root).splits["train"].cameras.times[0] == whole


@pytest.mark.parametrize(
    "place", ["dnerf/tiny", "d-nerf/tiny", "D-NeRF/tiny", "dnerf/data/tiny", "tiny"]
)
def test_folder_is_found_by_name_under_the_data_root(moving_root, tmp_path, place):
    target = tmp_path / "data" / place
    target.parent.mkdir(parents=True)
    moving_root.rename(target)
    assert load(None, data_root=str(tmp_path / "data")).root == target


def test_the_still_lego_of_a_data_root_is_not_taken_for_the_moving_one(moving_root, tmp_path):
    target = tmp_path / "data" / "dnerf" / "lego"
    target.parent.mkdir(parents=True)
    moving_root.rename(target)
    for place in ("lego", "nerf_synthetic/lego"):
        still = tmp_path / "data" / place
        still.mkdir(parents=True)
        (still / "transforms_train.json").write_text("{}")
    scene = load(None, name="dnerf_lego", data_root=str(tmp_path / "data"))
    assert scene.root == target
    assert scene.name != "lego"  # outputs of the two lie apart


# What is warned about


@pytest.mark.parametrize("times", [[0.0, 1.0], [0.07, 0.5], [0.3, 0.91]])
def test_times_between_training_times_are_seen(moving_root, caplog, times):
    set_times(moving_root, "test", times)
    load(moving_root)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([0.0, 0.05, 0.1, 0.15, 0.2, 0.25], [0.2, 0.75]),  # after the end
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [0.75, 0.1]),  # before the start
        ([0.0, 0.05, 0.1, 0.9, 0.95, 1.0], [0.9, 0.5]),  # in a hole
        ([0.5] * 6, [0.5, 0.51]),  # beside the only moment
    ],
)
def test_times_that_training_never_saw_are_warned_about_once(moving_root, caplog, train, test):
    set_times(moving_root, "train", train)
    set_times(moving_root, "test", test)
    (moving_root / "transforms_val.json").write_text(
        (moving_root / "transforms_test.json").read_text()
    )
    with caplog.at_level(logging.WARNING):
        load(moving_root)
    assert len(caplog.records) == 1
    assert f"1 of 2 in test (time {test[1]:g}), 1 of 2 in val" in caplog.text
    assert "never saw" in caplog.text


def test_val_in_place_of_test_is_warned_about_once(moving_root, caplog):
    set_times(moving_root, "train", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25])
    (moving_root / "transforms_test.json").rename(moving_root / "transforms_val.json")
    load(moving_root)
    assert "1 of 2 in val" in caplog.text
    assert "in test" not in caplog.text


def test_the_test_split_of_lego_is_warned_about(moving_root, tmp_path, caplog):
    root = moving_root.rename(tmp_path / "lego")
    load(root)
    assert caplog.text == ""  # a folder of one's own, without a val split to judge by
    (root / "transforms_val.json").write_text((root / "transforms_test.json").read_text())
    load(root)
    assert len(caplog.records) == 1
    assert "--split val" in caplog.text


# What is refused: one line with the remedy


def test_folder_without_times_is_a_blender_scene(tiny_scene_root):
    text = refused(tiny_scene_root)
    assert "no frame has a time" in text
    assert f"scene=blender scene.root={tiny_scene_root}" in text


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_time_is_named_by_its_frame(moving_root, split):
    set_times(moving_root, split, [0.0, None])
    text = refused(moving_root)
    assert f"transforms_{split}.json: frame 1 ('./{split}/r_1') has no time" in text
    assert "0 for the first moment and 1 for the last" in text


@pytest.mark.parametrize("time", ["0.5", True, math.nan, math.inf, [0.5]])
def test_time_that_is_no_number(moving_root, time):
    set_times(moving_root, "train", [0.0, time])
    assert "frame 1 ('./train/r_1') has time" in refused(moving_root)


@pytest.mark.parametrize(("time", "words"), [(149, "from 0 to 149"), (-0.5, "from -0.5 to 1")])
@pytest.mark.parametrize("split", ["train", "test"])
def test_time_outside_0_to_1_says_how_to_rescale(moving_root, time, words, split):
    set_times(moving_root, split, [0.0, time, 1.0])
    set_times(moving_root, split, [0.0 if time > 0 else 1.0, time])
    text = refused(moving_root)
    assert f"transforms_{split}.json: times run {words}" in text
    assert "(time - first) / (last - first)" in text


def test_name_not_under_the_data_root(moving_root):
    text = refused(None, name="dnerf_hook", data_root=str(moving_root.parent))
    assert "dnerf/hook, d-nerf/hook, D-NeRF/hook" in text
    assert f"scene.root={moving_root} would work" in text


def test_a_still_scene_is_not_offered_in_place_of_a_missing_one(tiny_scene_root):
    text = refused(None, name="dnerf_hook", data_root=str(tiny_scene_root.parent))
    assert "would work" not in text


def test_neither_root_nor_data_root():
    text = refused(None)
    assert "dnerf/tiny" in text
    assert "scene.root=" in text


def test_folder_of_another_kind(tmp_path):
    assert "no D-NeRF folder" in refused(tmp_path)


@pytest.mark.parametrize("values", [{"downscale": 0.5}, {"near": 7.0}, {"extent": 0.0}])
def test_useless_values(moving_root, values):
    assert f"scene.{next(iter(values))}=" in refused(moving_root, **values)


# Real data


@pytest.mark.parametrize(("name", "count"), [("bouncingballs", 150), ("jumpingjacks", 200)])
def test_real_scenes_load(real_scene, caplog, name, count):
    root = real_scene(f"dnerf/{name}").parents[1]
    scene = load(None, name=f"dnerf_{name}", data_root=str(root), downscale=4.0)
    assert {key: len(split) for key, split in scene.splits.items()} == {
        "train": count,
        "test": 20,
        "val": 20,
    }
    train = scene.splits["train"]
    assert train.image(0).shape == (100, 100, 4)
    torch.testing.assert_close(train.cameras.times, torch.linspace(0, 1, count))
    # All cameras look at the origin from 4 units away: near and far hold the box.
    distances = train.cameras.poses[:, :, 3].norm(dim=1)
    assert 3.9 < distances.min() <= distances.max() < 4.1
    assert caplog.text == ""
