import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerftrain.errors import UserError
from nerftrain.scenes import Scene, composite_over, images
from nerftrain.scenes.blender import load_scene
from nerftrain.scenes.images import shrink


def load(root: Path | None, **changes) -> Scene:
    values = {
        "name": "tiny",
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


def edit(root: Path, change, split: str = "train") -> None:
    """Apply change to the content of a transforms file."""
    path = root / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_pose(root: Path, change, frame: int = 1) -> None:
    def change_pose(content) -> None:
        pose = np.array(content["frames"][frame]["transform_matrix"])
        content["frames"][frame]["transform_matrix"] = change(pose).tolist()

    edit(root, change_pose)


# What is read


def test_scene_holds_the_folders_images_and_cameras(tiny_scene_root):
    scene = load(tiny_scene_root)
    train = scene.splits["train"]
    assert (len(train), len(scene.splits["test"])) == (6, 2)
    assert train.names[:2] == ("r_0.png", "r_1.png")
    with Image.open(tiny_scene_root / "train" / "r_3.png") as image:
        expected = torch.from_numpy(np.array(image)).float() / 255
    assert torch.equal(train.image(3), expected)
    content = json.loads((tiny_scene_root / "transforms_train.json").read_text())
    pose = torch.tensor(content["frames"][3]["transform_matrix"])[:3]
    torch.testing.assert_close(train.cameras.poses[3], pose)
    # Half the width is seen under half the angle.
    fx, fy, cx, cy = train.cameras.intrinsics[0].tolist()
    assert math.atan(12 / fx) == pytest.approx(0.69 / 2)
    assert (fy, cx, cy) == (fx, 12, 12)
    assert scene.aabb.tolist() == [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]


@pytest.mark.parametrize("place", ["tiny", "blender/tiny", "nerf_synthetic/tiny"])
def test_folder_is_found_by_name_under_the_data_root(tiny_scene_root, tmp_path, place):
    target = tmp_path / "data" / place
    target.parent.mkdir(parents=True)
    tiny_scene_root.rename(target)
    assert load(None, data_root=str(tmp_path / "data")).root == target


def test_val_is_read_and_stands_in_for_a_missing_test_split(tiny_scene_root):
    test = tiny_scene_root / "transforms_test.json"
    shutil.copy(test, tiny_scene_root / "transforms_val.json")
    assert set(load(tiny_scene_root).splits) == {"train", "test", "val"}
    test.unlink()
    scene = load(tiny_scene_root)
    assert scene.splits["test"].name == "val"


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("train/r_1", "r_1.png"),
        ("./train/r_1.png", "r_1.png"),
        ("./train/r_1", "r_1.PNG"),
        ("./train/r_1.png", "r_1.PNG"),
        (".\\train\\r_1", "r_1.png"),
        ("./train/r_1", "r_1.tar.png"),
    ],
)
def test_image_is_found_by_its_path(tiny_scene_root, written, on_disk):
    (tiny_scene_root / "train" / "r_1.png").rename(tiny_scene_root / "train" / on_disk)
    edit(tiny_scene_root, lambda content: content["frames"][1].update(file_path=written))
    if on_disk == "r_1.tar.png":
        assert "1 of 6 frames have no image" in refused(tiny_scene_root)
    else:
        assert load(tiny_scene_root).splits["train"].names[1] == on_disk


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_images_without_alpha_are_read(tiny_scene_root, suffix):
    for path in tiny_scene_root.rglob("*.png"):
        with Image.open(path) as image:
            image.convert("RGB").save(path.with_suffix(suffix), quality=95)
        path.unlink()
    scene = load(tiny_scene_root)
    assert not scene.has_alpha
    assert scene.splits["train"].image(0).shape == (24, 24, 3)


def test_extra_files_are_ignored(tiny_scene_root):
    shutil.copy(
        tiny_scene_root / "train" / "r_0.png", tiny_scene_root / "train" / "r_0_depth_0001.png"
    )
    assert len(load(tiny_scene_root).splits["train"]) == 6


def test_so_many_views_are_trained_on_as_one_asks_for(tiny_scene_root):
    whole, few = load(tiny_scene_root), load(tiny_scene_root, train_views=3)
    its = whole.splits["train"]
    chosen = [0, len(its) // 3, 2 * len(its) // 3]
    assert few.splits["train"].names == tuple(its.names[i] for i in chosen)
    assert torch.equal(few.splits["train"].cameras.poses, its.cameras.poses[chosen])
    assert torch.equal(few.splits["train"].image(1), its.image(chosen[1]))
    assert few.splits["test"].names == whole.splits["test"].names
    assert len(load(tiny_scene_root, train_views=99).splits["train"]) == len(its)
    with pytest.raises(UserError, match="train_views=0: give 1 or more"):
        load(tiny_scene_root, train_views=0)


def test_missing_images_are_skipped_on_request(tiny_scene_root, caplog):
    (tiny_scene_root / "train" / "r_2.png").unlink()
    with caplog.at_level(logging.WARNING):
        train = load(tiny_scene_root, skip_missing=True).splits["train"]
    assert train.names == ("r_0.png", "r_1.png", "r_3.png", "r_4.png", "r_5.png")
    assert len(train.cameras) == 5
    assert "1 of 6" in caplog.text


# Shrinking


def premultiplied_box_mean(image: torch.Tensor) -> torch.Tensor:
    """[H, W, 4] in 0..1 -> [H / 2, W / 2, 4], colour times alpha."""
    premultiplied = torch.cat([image[..., :3] * image[..., 3:], image[..., 3:]], dim=-1)
    return sum(premultiplied[i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4


def test_half_size_is_the_box_mean_of_premultiplied_colour():
    # Random colours where alpha is 0 too: they must not reach the result.
    image = torch.randint(256, (16, 24, 4), generator=torch.Generator().manual_seed(0)).byte()
    image[:6, :, 3] = 0
    image[6:10, ::2, 3] = 0
    small = shrink(image, 12, 8).float() / 255
    expected = premultiplied_box_mean(image.float() / 255)
    # A level of alpha and a level of colour, rounded half a level each.
    assert (small[..., :3] * small[..., 3:] - expected[..., :3]).abs().max() < 1.01 / 255
    assert (small[..., 3] - expected[..., 3]).abs().max() < 0.51 / 255
    assert (small[:3] == 0).all()


def test_opaque_images_shrink_to_their_mean():
    image = torch.randint(256, (9, 9, 3), generator=torch.Generator().manual_seed(0)).byte()
    expected = image.float().view(3, 3, 3, 3, 3).mean(dim=(1, 3)).round()
    assert torch.equal(shrink(image, 3, 3).float(), expected)


@pytest.mark.parametrize(("downscale", "size"), [(2.0, 12), (1.5, 16), (5.0, 5), (24.0, 1)])
def test_cameras_follow_the_size_of_their_images(tiny_scene_root, downscale, size):
    scene = load(tiny_scene_root, downscale=downscale)
    cameras = scene.splits["train"].cameras
    assert scene.splits["train"].image(0).shape == (size, size, 4)
    full = load(tiny_scene_root).splits["train"].cameras.intrinsics
    torch.testing.assert_close(cameras.intrinsics, full * size / 24)


# What is refused: one line with the remedy


def test_neither_root_nor_data_root():
    text = refused(None)
    assert "scene.root=" in text
    assert "NERFTRAIN_DATA" in text
    assert "data_root=" in text


def test_missing_data_root(tmp_path):
    text = refused(None, data_root=str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in text
    assert "NERFTRAIN_DATA" in text


def test_name_not_under_the_data_root(tiny_scene_root):
    text = refused(None, name="lego", data_root=str(tiny_scene_root.parent))
    assert "nerf_synthetic/lego" in text
    assert f"scene.root={tiny_scene_root} would work" in text


def test_missing_root(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")


def test_folder_without_transforms_train(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    text = refused(tmp_path)
    assert "looked for transforms_train.json" in text
    assert "found notes.txt" in text
    assert "scene.root=FOLDER" in text


def test_folder_beside_a_scene_names_the_scene(tiny_scene_root):
    remedy = f"scene.root={tiny_scene_root} would work"
    assert remedy in refused(tiny_scene_root / "train")
    assert remedy in refused(tiny_scene_root.parent)
    assert f"scene.root={tiny_scene_root}" in refused(tiny_scene_root / "transforms_train.json")


def test_no_split_to_judge_by(tiny_scene_root):
    (tiny_scene_root / "transforms_test.json").unlink()
    text = refused(tiny_scene_root)
    assert "transforms_test.json" in text
    assert "transforms_val.json" in text


def test_broken_json(tiny_scene_root):
    path = tiny_scene_root / "transforms_train.json"
    path.write_text('{"camera_angle_x": 0.69,\n "frames": [}')
    assert f"{path}, line 2, column 13: not valid JSON" in refused(tiny_scene_root)
    path.write_bytes(b"\xff\xfe\x00\xd8")
    assert "restore the file" in refused(tiny_scene_root)
    path.write_text("[" * 100_000)
    assert "restore the file" in refused(tiny_scene_root)


@pytest.mark.parametrize("content", [[], "text", {"camera_angle_x": 0.69}])
def test_json_of_another_shape(tiny_scene_root, content):
    (tiny_scene_root / "transforms_train.json").write_text(json.dumps(content))
    assert "frames" in refused(tiny_scene_root)


@pytest.mark.parametrize("angle", [None, 0, -0.5, math.pi, 39.6, math.nan, math.inf, "0.69", True])
def test_absurd_camera_angle(tiny_scene_root, angle):
    edit(tiny_scene_root, lambda content: content.update(camera_angle_x=angle))
    text = refused(tiny_scene_root)
    assert "camera_angle_x" in text
    assert "radians" in text


def test_missing_camera_angle(tiny_scene_root):
    edit(tiny_scene_root, lambda content: content.pop("camera_angle_x"))
    assert "camera_angle_x is missing" in refused(tiny_scene_root)


@pytest.mark.parametrize("frames", [{"0": {}}, "r_0", 3])
def test_frames_that_are_no_list(tiny_scene_root, frames):
    edit(tiny_scene_root, lambda content: content.update(frames=frames))
    assert "frames must be a list" in refused(tiny_scene_root)


def test_empty_split(tiny_scene_root):
    edit(tiny_scene_root, lambda content: content["frames"].clear(), "test")
    text = refused(tiny_scene_root)
    assert "transforms_test.json" in text
    assert "empty" in text


@pytest.mark.parametrize("frame", ["r_0", None, {}, {"file_path": 3}, {"file_path": ""}])
def test_frame_without_a_path(tiny_scene_root, frame):
    edit(tiny_scene_root, lambda content: content["frames"].insert(4, frame))
    assert "frame 4 has no file_path" in refused(tiny_scene_root)


def test_missing_images_are_counted_and_named(tiny_scene_root):
    for index in (1, 2, 4, 5):
        (tiny_scene_root / "train" / f"r_{index}.png").unlink()
    text = refused(tiny_scene_root)
    assert "4 of 6 frames" in text
    assert all(f"./train/r_{index}" in text for index in (1, 2, 4))
    assert "r_5" not in text
    assert "scene.skip_missing=true" in text


def test_no_image_at_all_is_refused_even_if_missing_ones_are_skipped(tiny_scene_root):
    shutil.rmtree(tiny_scene_root / "train")
    assert "6 of 6 frames" in refused(tiny_scene_root, skip_missing=True)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_image(tiny_scene_root, share, suffix):
    path = tiny_scene_root / "train" / "r_4.png"
    if suffix == ".jpg":
        for image_path in (tiny_scene_root / "train").iterdir():
            with Image.open(image_path) as image:
                image.convert("RGB").save(image_path.with_suffix(suffix))
            image_path.unlink()
        path = path.with_suffix(suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    text = refused(tiny_scene_root)
    assert str(path) in text
    assert "truncated or no image" in text


def test_file_that_is_no_image(tiny_scene_root):
    (tiny_scene_root / "test" / "r_0.png").write_text("not a picture")
    assert "r_0.png is truncated or no image" in refused(tiny_scene_root)


def test_image_that_rights_keep_to_others(tiny_scene_root, monkeypatch):
    def locked(path, *_args, **_kwargs):
        if path.name == "r_1.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    opened = images.open_image
    monkeypatch.setattr(images, "open_image", locked)
    expected = "r_1.png cannot be read (Permission denied): check its name and its rights"
    assert expected in refused(tiny_scene_root)


def test_image_of_a_kind_that_pillow_knows_by_name_only(tiny_scene_root):
    path = tiny_scene_root / "test" / "r_0.png"
    Image.new("RGB", (8, 8)).save(path, "DDS")
    content = bytearray(path.read_bytes())
    content[80:84] = bytes(4)  # the flags that tell how its pixels are stored
    path.write_bytes(content)
    assert "r_0.png is truncated or no image" in refused(tiny_scene_root)


def test_images_of_different_sizes(tiny_scene_root):
    path = tiny_scene_root / "train" / "r_3.png"
    with Image.open(path) as image:
        image.resize((20, 24)).save(path)
    text = refused(tiny_scene_root)
    assert "r_0.png is 24x24" in text
    assert "r_3.png is 20x24" in text


def test_images_with_and_without_alpha(tiny_scene_root):
    path = tiny_scene_root / "train" / "r_3.png"
    with Image.open(path) as image:
        image.convert("RGB").save(path)
    text = refused(tiny_scene_root)
    assert "with alpha (r_0.png)" in text
    assert "without (r_3.png)" in text


@pytest.mark.parametrize(
    "matrix",
    [None, 3, "identity", [], [[1.0] * 4] * 3, [[1.0] * 3] * 4, [1.0] * 16, [[1.0] * 4, 2, 3, 4]],
)
def test_pose_that_is_no_4x4_matrix(tiny_scene_root, matrix):
    edit(tiny_scene_root, lambda content: content["frames"][2].update(transform_matrix=matrix))
    text = refused(tiny_scene_root)
    assert "frame 2 ('./train/r_2')" in text
    assert "4 rows of 4 numbers" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, "1.0", None, True, 10**400])
def test_pose_with_something_that_is_no_finite_number(tiny_scene_root, value):
    def change(content) -> None:
        content["frames"][2]["transform_matrix"][1][3] = value

    edit(tiny_scene_root, change)
    text = refused(tiny_scene_root)
    assert "frame 2" in text
    assert "finite numbers" in text


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda pose: pose @ np.diag([2.0, 2, 2, 1]), id="scale"),
        pytest.param(lambda pose: pose @ np.diag([1.0, 1, -1, 1]), id="mirror"),
        pytest.param(lambda pose: pose * [0.0, 0, 0, 1], id="zero"),
        pytest.param(lambda pose: pose + 0.01 * np.eye(4, k=1) * [0, 1, 1, 0], id="shear"),
    ],
)
def test_pose_that_is_no_rotation(tiny_scene_root, change):
    edit_pose(tiny_scene_root, change)
    text = refused(tiny_scene_root)
    assert "frame 1" in text
    assert "not a rotation" in text


def test_pose_written_in_columns(tiny_scene_root):
    edit_pose(tiny_scene_root, lambda pose: pose.T)
    assert "last row of transform_matrix must be 0 0 0 1" in refused(tiny_scene_root)


def test_pose_rounded_to_four_digits_is_accepted(tiny_scene_root):
    edit_pose(tiny_scene_root, lambda pose: pose.round(4))
    assert len(load(tiny_scene_root).splits["train"]) == 6


@pytest.mark.parametrize("downscale", [0.5, 0.0, -1.0, math.nan, math.inf, 100.0])
def test_useless_downscale(tiny_scene_root, downscale):
    assert f"scene.downscale={downscale}" in refused(tiny_scene_root, downscale=downscale)


@pytest.mark.parametrize(
    "bounds", [{"near": 6.0}, {"near": -1.0}, {"near": math.nan}, {"far": math.inf}, {"far": 1.0}]
)
def test_bounds_out_of_order(tiny_scene_root, bounds):
    assert "0 <= near < far" in refused(tiny_scene_root, **bounds)


@pytest.mark.parametrize("extent", [0.0, -1.5, math.nan, 1e-46, 1e20])
def test_empty_box(tiny_scene_root, extent):
    assert f"scene.extent={extent}" in refused(tiny_scene_root, extent=extent)


def test_name_that_no_file_system_takes(tmp_path):
    assert "cannot be read" in refused(tmp_path / ("x" * 5000))


def test_times_of_a_moving_scene_are_warned_about(tiny_scene_root, caplog):
    edit(tiny_scene_root, lambda content: content["frames"][0].update(time=0.5))
    with caplog.at_level(logging.WARNING):
        assert load(tiny_scene_root).splits["train"].cameras.times is None
    assert "time" in caplog.text


# Real data


def test_real_lego_loads(real_scene):
    root = real_scene("blender/lego").parents[1]
    scene = load_scene("lego", None, str(root), 1.0, False, 2.0, 6.0, 1.5)
    assert (len(scene.splits["train"]), len(scene.splits["test"])) == (100, 25)
    assert scene.splits["test"].image(24).shape == (400, 400, 4)
    assert scene.splits["test"].names[1] == "r_8.png"
    assert scene.has_alpha
    assert scene.splits["train"].cameras.intrinsics[0, 0].item() == pytest.approx(
        555.5555, abs=1e-3
    )


def test_real_lego_at_half_size_is_the_published_half_size(real_scene, tmp_path):
    # A few views are enough; the folder of links keeps the loader's whole way in the test.
    source, root = real_scene("blender_800/lego"), real_scene("blender/lego").parents[1]
    for split, count in (("train", 3), ("test", 2)):
        content = json.loads((source / f"transforms_{split}.json").read_text())
        content["frames"] = content["frames"][:count]
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(content))
        (tmp_path / split).symlink_to(source / split)
    half = load(tmp_path, downscale=2.0)
    full = load_scene("lego", None, str(root), 1.0, False, 2.0, 6.0, 1.5)
    for split in ("train", "test"):
        ours, theirs = half.splits[split], full.splits[split]
        torch.testing.assert_close(ours.cameras.intrinsics[0], theirs.cameras.intrinsics[0])
        for index in range(len(ours)):
            for background in (0.0, 1.0):
                behind = torch.full((3,), background)
                difference = composite_over(ours.image(index), behind) - composite_over(
                    theirs.image(index), behind
                )
                # Both round colour and alpha to whole levels, each in its own way.
                assert difference.abs().max() * 255 < 2
