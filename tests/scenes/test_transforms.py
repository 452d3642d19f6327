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
from nerftrain.scenes import Scene, colmap
from nerftrain.scenes.toys import CAMERA_ANGLE
from nerftrain.scenes.transforms import load_scene

SIZE = 24  # pixels, width and height of the tiny scene
FOCAL = 0.5 * SIZE / math.tan(0.5 * CAMERA_ANGLE)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tiny_scene_root: Path) -> Path:
    """A capture of one's own: 8 photographs of 24x24 pixels, images/r_0.jpg to r_7.jpg."""
    folder = tiny_scene_root.parent / "capture"
    (folder / "images").mkdir(parents=True)
    frames = []
    for split in ("train", "test"):
        content = json.loads((tiny_scene_root / f"transforms_{split}.json").read_text())
        for frame in content["frames"]:
            path = f"images/r_{len(frames)}.jpg"
            with Image.open(tiny_scene_root / f"{frame['file_path']}.png") as image:
                image.convert("RGB").save(folder / path, quality=95)
            frames.append({"file_path": path, "transform_matrix": frame["transform_matrix"]})
    content = {"fl_x": FOCAL, "fl_y": FOCAL, "w": SIZE, "h": SIZE, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def load(root: Path | None, **changes) -> Scene:
    values = {
        "name": "capture",
        "root": None if root is None else str(root),
        "downscale": 1.0,
        "skip_missing": False,
        "test_every": 8,
        "contraction": "auto",
        "center": True,
        "up": True,
        "scale": True,
        "near": 0.05,
        "far": 1000.0,
    }
    return load_scene(**(values | changes))


def refused(root: Path | None, **changes) -> str:
    """The text of the error, which must be one line."""
    with pytest.raises(UserError) as caught:
        load(root, **changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


def edit(root: Path, change) -> None:
    path = root / "transforms.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_keys(root: Path, *without: str, **values) -> None:
    def change(content) -> None:
        for key in without:
            content.pop(key)
        content.update(values)

    edit(root, change)


def set_frame(root: Path, index: int, **values) -> None:
    edit(root, lambda content: content["frames"][index].update(values))


def poses_in_file(root: Path) -> torch.Tensor:
    """[C, 4, 4] float64, in the file's order."""
    frames = json.loads((root / "transforms.json").read_text())["frames"]
    return torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)


def by_name(scene: Scene) -> dict[str, tuple[str, int]]:
    return {
        name: (split, index)
        for split in ("train", "test")
        for index, name in enumerate(scene.splits[split].names)
    }


def lens_of(scene: Scene, name: str) -> list[float]:
    split, index = by_name(scene)[name]
    return scene.splits[split].cameras.intrinsics[index].tolist()


# Cameras and where they lie


def test_world_brings_the_files_cameras_to_the_scenes(root):
    scene = load(root)
    train = scene.splits["train"]
    assert train.names == tuple(f"r_{i}.jpg" for i in range(1, 8))
    assert scene.splits["test"].names == ("r_0.jpg",)
    assert scene.world is not None
    expected = poses_in_file(root)[1:, :3, 3] @ scene.world[:3, :3].T + scene.world[:3, 3]
    torch.testing.assert_close(train.cameras.poses[:, :, 3].double(), expected, atol=1e-6, rtol=0)
    # What the cameras look at comes to the origin, the farthest of them to distance 1.
    positions = torch.cat([s.cameras.poses[:, :, 3] for s in scene.splits.values()])
    assert positions.norm(dim=1).max().item() == pytest.approx(1, abs=1e-5)
    assert scene.aabb.tolist() == [-1, -1, -1, 1, 1, 1]
    assert not scene.has_alpha


def test_frames_of_one_image_are_never_on_both_sides(root, caplog):
    def repeat(content) -> None:
        content["frames"] += [
            content["frames"][i] | {"file_path": f"./images/r_{i}.jpg"} for i in (0, 3)
        ]

    edit(root, repeat)
    scene = load(root, test_every=4)
    assert "2 frames name images that others name, too, such as 'images/r_0.jpg'" in caplog.text
    assert scene.splits["test"].names == ("r_0.jpg", "r_0.jpg", "r_4.jpg")
    assert scene.splits["train"].names == tuple(f"r_{i}.jpg" for i in (1, 2, 3, 3, 5, 6, 7))


def test_images_called_alike_are_told_apart_by_their_folders(root):
    for side, index in (("left", 1), ("right", 5)):
        (root / "images" / side).mkdir()
        (root / "images" / f"r_{index}.jpg").rename(root / "images" / side / "0001.jpg")
        set_frame(root, index, file_path=f"images/{side}/0001.jpg")
    assert {"left/0001.jpg", "right/0001.jpg", "r_2.jpg"} < {*by_name(load(root))}


def test_images_called_alike_may_be_named_by_their_whole_paths(root, monkeypatch):
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    (root / "images" / "r_5.jpg").rename(elsewhere / "r_1.jpg")
    set_frame(root, 5, file_path=str(elsewhere / "r_1.jpg"))
    monkeypatch.chdir(root.parent)
    names = {*by_name(load(Path(root.name)))}
    assert {f"{root.name}/images/r_1.jpg", "elsewhere/r_1.jpg"} < names


def test_the_files_own_coordinates_can_be_kept(root):
    scene = load(root, center=False, up=False, scale=False)
    assert torch.equal(scene.world, torch.eye(4).double())
    expected = poses_in_file(root)[1:, :3].float()
    torch.testing.assert_close(scene.splits["train"].cameras.poses, expected)


def test_world_starts_before_the_transform_that_nerfstudio_applied(root):
    before = load(root)
    turn = torch.tensor([[0.0, 0, 1, 5], [1, 0, 0, -2], [0, 1, 0, 0.5]], dtype=torch.float64)

    def apply(content) -> None:
        for frame in content["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:3] = turn[:, :3].numpy() @ pose[:3]
            pose[:3, 3] = 0.4 * (pose[:3, 3] + turn[:, 3].numpy())
            frame["transform_matrix"] = pose.tolist()
        content.update(applied_transform=turn.tolist(), applied_scale=0.4)

    edit(root, apply)
    after = load(root)
    # Only what is ahead may differ: up is found anew, and the shortest turn to it.
    turn = after.world @ before.world.inverse()
    torch.testing.assert_close(turn[2], torch.tensor([0.0, 0, 1, 0]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(4).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("aabb_scale", [None, 2, 16, 128])
def test_a_scene_that_goes_on_around_its_box_is_contracted(root, aabb_scale):
    set_keys(root, **({} if aabb_scale is None else {"aabb_scale": aabb_scale}))
    scene = load(root)
    assert (scene.contraction, scene.far) == ("l2", 1000.0)
    assert load(root, contraction="linf").contraction == "linf"


@pytest.mark.parametrize(
    ("keys", "corner"),
    [
        ({}, [0.5 / 0.33] * 3),
        ({"scale": 0.25, "offset": [0.5, 0.25, 1.0]}, [2.0, 3.0, 0.0]),
    ],
)
def test_aabb_scale_of_1_is_a_box_where_instant_ngp_has_it(root, keys, corner):
    set_keys(root, aabb_scale=1, **keys)
    scene = load(root)
    assert scene.contraction == "none"
    assert scene.world is not None
    mapped = scene.world @ torch.tensor([*corner, 1.0], dtype=torch.float64)
    torch.testing.assert_close(mapped[:3], torch.ones(3).double())
    # Rays end where they have left the box: not a thousand units on.
    train = scene.splits["train"].cameras
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    reach = (train.poses[:, None, :, 3] - corners).norm(dim=2).max().item()
    assert reach <= scene.far < reach + 2


def test_a_scene_without_surroundings_can_be_asked_for(root):
    scene = load(root, contraction="none")
    assert scene.contraction == "none"
    assert scene.far < 3


# Lenses


def test_focal_lengths_and_centre_are_read(root):
    set_keys(root, fl_x=30.0, fl_y=31.0, cx=11.0, cy=12.5)
    assert lens_of(load(root), "r_3.jpg") == [30, 31, 11, 12.5]


def test_an_angle_alone_takes_the_size_from_the_images(root):
    set_keys(root, "fl_x", "fl_y", "w", "h", camera_angle_x=CAMERA_ANGLE)
    expected = [FOCAL, FOCAL, SIZE / 2, SIZE / 2]
    assert lens_of(load(root), "r_3.jpg") == pytest.approx(expected)


def test_both_angles_are_read(root):
    set_keys(root, "fl_x", "fl_y", camera_angle_x=math.pi / 2, camera_angle_y=2 * math.atan(0.5))
    assert lens_of(load(root), "r_3.jpg")[:2] == pytest.approx([12, 24])


def test_a_shared_angle_is_of_the_shared_size(root):
    set_keys(root, "fl_x", "fl_y", camera_angle_x=CAMERA_ANGLE)
    crop(root, 2, 16, 24)
    set_frame(root, 2, w=16, h=24)
    assert lens_of(load(root), "r_2.jpg") == pytest.approx([FOCAL, FOCAL, 8, 12])


def test_focal_length_goes_before_the_angle(root):
    set_keys(root, camera_angle_x=1.5, camera_angle_y=1.5)
    assert lens_of(load(root), "r_3.jpg")[:2] == pytest.approx([FOCAL, FOCAL])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"fl_x": 40.0, "fl_y": 41.0}, [40, 41, 11, 12]),
        ({"fl_x": 40.0}, [40, 40, 11, 12]),
        ({"camera_angle_x": math.pi / 2}, [12, 12, 11, 12]),
        ({"cx": 13.0}, [FOCAL, FOCAL, 13, 12]),
    ],
)
def test_a_frames_own_lens_goes_before_the_shared_one(root, keys, expected):
    set_keys(root, cx=11.0)
    set_frame(root, 2, **keys)
    scene = load(root)
    assert lens_of(scene, "r_2.jpg") == pytest.approx(expected)
    assert lens_of(scene, "r_3.jpg") == pytest.approx([FOCAL, FOCAL, 11, 12])


def test_lengths_follow_images_smaller_than_the_file_says(root):
    set_keys(root, fl_x=4 * FOCAL, fl_y=4 * FOCAL, cx=40.0, cy=48.0, w=4 * SIZE, h=4 * SIZE)
    assert lens_of(load(root), "r_3.jpg") == pytest.approx([FOCAL, FOCAL, 10, 12])


def test_distortion_is_kept_per_frame(root):
    assert load(root).splits["train"].cameras.distortion is None
    set_keys(root, k1=0.02, k2=-0.01, p1=0.001, p2=-0.002, k3=0, k4=0.0, is_fisheye=False)
    set_frame(root, 2, k1=0.03)
    distortion = load(root).splits["train"].cameras.distortion
    torch.testing.assert_close(distortion[0], torch.tensor([0.02, -0.01, 0.001, -0.002]))
    torch.testing.assert_close(distortion[1], torch.tensor([0.03, -0.01, 0.001, -0.002]))


def test_metashapes_k3_and_k4_bend_too(root):
    set_keys(root, camera_model="OPENCV", k1=0.02, k3=0.003, k4=-0.0004)
    cameras = load(root).splits["train"].cameras
    assert cameras.projection == "perspective"
    expected = torch.tensor([0.02, 0, 0, 0, 0.003, -0.0004]).expand(7, 6)
    torch.testing.assert_close(cameras.distortion, expected)


@pytest.mark.parametrize("mark", [{"is_fisheye": True}, {"camera_model": "OPENCV_FISHEYE"}])
def test_a_fisheye_by_instant_ngps_word_and_by_nerfstudios(root, mark):
    set_keys(root, **mark, k1=0.02, k2=0.001, k3=0.0, k4=0.0003, camera_angle_x=0.8)
    split = load(root).splits["train"]
    cameras = split.cameras
    assert cameras.projection == "fisheye"
    assert cameras.intrinsics[0].tolist() == pytest.approx([FOCAL, FOCAL, SIZE / 2, SIZE / 2])
    expected = torch.tensor([0.02, 0.001, 0, 0, 0, 0.0003]).expand(7, 6)
    torch.testing.assert_close(cameras.distortion, expected)
    assert split.valid is None


def test_what_lies_beyond_a_fisheyes_circle_does_not_count(root, caplog):
    """Nor does what a mask takes out besides."""
    set_keys(root, is_fisheye=True, fl_x=3.0, fl_y=3.0)
    split = load(root).splits["train"]
    assert "corners of the images lie 180 degrees off the axis" in caplog.text
    assert caplog.text.count("% of the pixels lie beyond what its fisheye shows") == 1
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    circle = torch.hypot(x - SIZE / 2, y - SIZE / 2) / 3 <= math.pi
    assert 0.4 < float(circle.float().mean()) < 0.6
    assert torch.equal(split.valid_of(4), circle)

    mask = torch.full((SIZE, SIZE), 255, dtype=torch.uint8)
    mask[:, : SIZE // 2] = 0
    Image.fromarray(mask.numpy()).save(root / "mask.png")
    set_frame(root, 2, mask_path="mask.png")
    caplog.clear()
    split = load(root).splits["train"]
    assert "corners" not in caplog.text  # for who gives masks knows of them
    index = split.names.index("r_2.jpg")
    assert torch.equal(split.valid_of(index), circle & (mask > 0))
    assert torch.equal(split.valid_of(index + 1), circle)


@pytest.mark.parametrize("downscale", [1.0, 2.0])
def test_a_circle_that_the_file_gives_is_all_that_counts(root, downscale):
    set_keys(root, is_fisheye=True, fisheye_crop_radius=9)
    split = load(root, downscale=downscale).splits["train"]
    side = round(SIZE / downscale)
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    circle = torch.hypot(x - side / 2, y - side / 2) <= 9 / downscale
    assert torch.equal(split.valid_of(4), circle)
    assert not bool(circle.all())


def test_a_panorama_needs_no_focal_length(root):
    set_keys(root, "fl_x", "fl_y", camera_model="EQUIRECTANGULAR")
    cameras = load(root, downscale=2.0).splits["train"].cameras
    assert cameras.projection == "equirectangular"
    half = SIZE / 2
    expected = [half / (2 * math.pi), half / math.pi, half / 2, half / 2]
    assert cameras.intrinsics[3].tolist() == pytest.approx(expected)
    # nerfstudio's convention, where it is written out.
    set_keys(root, fl_x=SIZE / 2, fl_y=SIZE)
    assert lens_of(load(root, downscale=2.0), "r_3.jpg") == pytest.approx(expected)


@pytest.mark.parametrize("model", ["OPENCV", "PINHOLE", "SIMPLE_RADIAL"])
def test_models_of_pinhole_lenses_are_accepted(root, model):
    set_keys(root, camera_model=model)
    assert load(root)


# Images


def crop(root: Path, index: int, width: int, height: int) -> None:
    path = root / "images" / f"r_{index}.jpg"
    with Image.open(path) as image:
        image.crop((0, 0, width, height)).save(path, quality=95)


def test_portrait_and_landscape_lie_side_by_side(root):
    crop(root, 2, 24, 16)
    crop(root, 5, 16, 24)
    set_frame(root, 2, w=24, h=16)
    set_frame(root, 5, w=16, h=24, cx=7.0)
    scene = load(root, downscale=2.0)
    train = scene.splits["train"]
    shapes = {name: tuple(train.image(i).shape) for i, name in enumerate(train.names)}
    assert shapes["r_2.jpg"] == (8, 12, 3)
    assert shapes["r_5.jpg"] == (12, 8, 3)
    assert shapes["r_1.jpg"] == (12, 12, 3)
    # The centre of the shared lens is that of another size.
    assert lens_of(scene, "r_2.jpg") == pytest.approx([FOCAL / 2, FOCAL / 2, 6, 4])
    assert lens_of(scene, "r_5.jpg") == pytest.approx([FOCAL / 2, FOCAL / 2, 3.5, 6])


def test_an_angle_shared_by_images_of_several_sizes_is_warned_about(root, caplog):
    crop(root, 5, 16, 24)
    set_keys(root, "w", "h")
    load(root)
    assert caplog.text == ""
    set_keys(root, "fl_x", "fl_y", camera_angle_x=CAMERA_ANGLE)
    load(root)
    assert len(caplog.records) == 1
    assert "fl_x" in caplog.text


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("images/r_1", "r_1.jpg"),
        ("./images/r_1.jpg", "r_1.JPG"),
        (".\\images\\r_1.jpg", "r_1.jpg"),
        ("images/r_1.jpeg", "r_1.JPEG"),
    ],
)
def test_image_is_found_by_its_path(root, written, on_disk):
    (root / "images" / "r_1.jpg").rename(root / "images" / on_disk)
    set_frame(root, 1, file_path=written)
    assert load(root).splits["train"].names[0] == on_disk


def test_png_with_alpha_and_extra_images_are_fine(root):
    for path in (root / "images").glob("*.jpg"):
        with Image.open(path) as image:
            image.convert("RGBA").save(path.with_suffix(".PNG"))
        path.unlink()
    for index in range(8):
        set_frame(root, index, file_path=f"images/r_{index}.png")
    shutil.copy(root / "images" / "r_0.PNG", root / "images" / "another.PNG")
    scene = load(root)
    assert scene.has_alpha
    assert len(scene.splits["train"]) + len(scene.splits["test"]) == 8


def test_missing_images_are_skipped_on_request(root, caplog):
    (root / "images" / "r_3.jpg").unlink()
    assert "1 of 8 frames have no image" in refused(root)
    with caplog.at_level(logging.WARNING):
        names = load(root, skip_missing=True).splits["train"].names
    assert names == tuple(f"r_{i}.jpg" for i in (1, 2, 4, 5, 6, 7))
    assert "1 of 8" in caplog.text


@pytest.mark.parametrize("states_size", [True, False])
def test_shrunk_copies_beside_the_images_are_used(root, states_size):
    if not states_size:  # then lengths are of the images as the file names them
        set_keys(root, "w", "h")
    (root / "images_4").mkdir()
    for index in range(8):
        Image.new("RGB", (6, 6), (10 * index, 0, 0)).save(root / "images_4" / f"r_{index}.png")
    scene = load(root, downscale=4.0)
    assert scene.splits["train"].image(2).shape == (6, 6, 3)
    assert (scene.splits["train"].image(2)[..., 0] * 255).round().unique().tolist() == [30]
    assert lens_of(scene, "r_3.png") == pytest.approx([FOCAL / 4, FOCAL / 4, 3, 3])


def test_copies_of_another_shape_are_refused(root):
    (root / "images_2").mkdir()
    for index in range(8):
        Image.new("RGB", (12, 12 if index else 8)).save(root / "images_2" / f"r_{index}.png")
    text = refused(root, downscale=2.0)
    assert "r_0.png is 12x8, no shrunk copy of" in text
    assert f"remove {root / 'images_2'}" in text


def test_images_are_shrunk_where_there_are_no_copies(root):
    (root / "images_4").mkdir()
    Image.new("RGB", (6, 6)).save(root / "images_4" / "r_0.png")  # of one image alone
    scene = load(root, downscale=4.0)
    full = load(root).splits["train"].image(2)
    expected = full.view(6, 4, 6, 4, 3).mean(dim=(1, 3))
    assert (scene.splits["train"].image(2) - expected).abs().max() < 1 / 255
    assert lens_of(scene, "r_3.jpg") == pytest.approx([FOCAL / 4, FOCAL / 4, 3, 3])


# Splits


def test_every_nth_image_by_name_is_a_test_view(root):
    edit(root, lambda content: content["frames"].reverse())
    scene = load(root, test_every=3)
    assert set(scene.splits["test"].names) == {"r_0.jpg", "r_3.jpg", "r_6.jpg"}
    assert set(scene.splits["train"].names) == {f"r_{i}.jpg" for i in (1, 2, 4, 5, 7)}


def files(*indices: int) -> list[str]:
    return [f"./images/r_{index}.jpg" for index in indices]


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train": [0, 1, 2, 3, 4], "val": [5], "test": [6, 7]}, {"test": [6, 7], "val": [5]}),
        ({"train": [0, 1, 2, 3, 4], "val": [5, 6, 7]}, {"test": [5, 6, 7], "val": [5, 6, 7]}),
        ({"train": [0, 1, 2, 3, 4]}, {"test": [5, 6, 7]}),
        ({"test": [5, 6, 7]}, {"test": [5, 6, 7]}),
        ({"val": [5, 6, 7]}, {"test": [5, 6, 7], "val": [5, 6, 7]}),
    ],
)
def test_lists_of_the_file_make_the_splits(root, lists, expected):
    set_keys(root, **{f"{split}_filenames": files(*indices) for split, indices in lists.items()})
    found = {key: [int(n[2]) for n in split.names] for key, split in load(root).splits.items()}
    assert found == {"train": [0, 1, 2, 3, 4], **expected}


def test_lists_that_share_or_forget_frames_are_warned_about(root, caplog):
    set_keys(root, train_filenames=files(0, 1, 2, 3), test_filenames=files(3, 4))
    load(root)
    assert "1 test views are trained on as well" in caplog.text
    assert "3 frames are in none of its lists" in caplog.text


def test_lists_outlive_missing_images(root):
    set_keys(root, train_filenames=files(0, 1, 2, 3), test_filenames=files(4, 5, 6, 7))
    (root / "images" / "r_5.jpg").unlink()
    assert load(root, skip_missing=True).splits["test"].names == ("r_4.jpg", "r_6.jpg", "r_7.jpg")


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"test_filenames": ["images/r_9.jpg"]}, "test_filenames lists 'images/r_9.jpg', which no"),
        ({"test_filenames": "images/r_0.jpg"}, "test_filenames must be a list"),
        ({"test_filenames": files(*range(8))}, "no image for train"),
        ({"train_filenames": files(*range(8))}, "no image for test"),
    ],
)
def test_useless_lists(root, lists, words):
    set_keys(root, **lists)
    assert words in refused(root)


# Time


def test_frames_with_times_make_a_scene_that_moves(root):
    assert not load(root).is_dynamic
    for index in range(8):
        set_frame(root, index, time=index / 7)
    scene = load(root)
    torch.testing.assert_close(scene.splits["train"].cameras.times, torch.arange(1, 8) / 7)


def test_times_are_checked(root, caplog):
    set_frame(root, 1, time=0.5)
    assert "frame 0 ('images/r_0.jpg') has no time" in refused(root)
    for index in range(8):
        set_frame(root, index, time=index)
    assert "times run from 0 to 7, outside 0..1" in refused(root)
    for index in range(8):
        set_frame(root, index, time=0.9 * (index == 0) + 0.01 * index)
    load(root)
    assert "never saw: 1 of 1 in test (time 0.9)" in caplog.text


# What is refused: one line with the remedy


def test_folders_of_other_kinds(root, tiny_scene_root, tmp_path):
    assert "scene.root=FOLDER" in refused(None)
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert f"scene.root={root}" in refused(root / "transforms.json")
    assert "scene=blender" in refused(tiny_scene_root)
    (root / "transforms.json").rename(tmp_path / "kept.json")
    (root / "sparse").mkdir()
    assert "scene=colmap" in refused(root)
    (root / "sparse").rmdir()
    assert "has no transforms.json" in refused(root)
    shutil.copy(tmp_path / "kept.json", root / "images" / "transforms.json")
    assert f"scene.root={root / 'images'}" in refused(root)


def test_no_frames(root):
    set_keys(root, frames=[])
    assert "the list of frames is empty" in refused(root)


def test_no_image_at_all(root):
    shutil.rmtree(root / "images")
    assert "8 of 8 frames have no image" in refused(root, skip_missing=True)


def test_all_cameras_in_one_point(root):
    def gather(content) -> None:
        for frame in content["frames"]:
            for row in range(3):
                frame["transform_matrix"][row][3] = 1.0

    edit(root, gather)
    assert "all 8 cameras are in one point" in refused(root)
    set_keys(root, aabb_scale=1)
    assert "all 8 cameras are in one point" in refused(root)


def test_images_that_contradict_the_size(root):
    crop(root, 4, 24, 16)
    text = refused(root)
    assert "frame 4 ('images/r_4.jpg')" in text
    assert "r_4.jpg is 24x16, which contradicts w = 24, h = 24" in text
    assert "its own w h fl_x fl_y" in text


def test_a_turned_image_is_recognised(root):
    crop(root, 4, 16, 24)
    set_frame(root, 4, w=24, h=16)
    assert "turned by a quarter" in refused(root)


def test_images_with_and_without_alpha(root):
    with Image.open(root / "images" / "r_3.jpg") as image:
        image.convert("RGBA").save(root / "images" / "r_3.png")
    set_frame(root, 3, file_path="images/r_3.png")
    text = refused(root)
    assert "with alpha (r_3.png)" in text


def test_lenses_of_several_kinds(root):
    set_frame(root, 3, is_fisheye=True)
    assert "transforms.json has lenses of several kinds, perspective and fisheye" in refused(root)


def test_distortion_that_does_not_invert(root):
    set_frame(root, 3, k1=-5.0)
    text = refused(root)
    assert "transforms.json" in text
    assert "k1=-5" in text
    assert "does not invert" in text


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"camera_model": "VR180_L"}, "camera_model 'VR180_L' is not supported"),
        ({"camera_model": 3}, "camera_model 3 is not supported"),
        ({"camera_model": ["OPENCV"]}, "camera_model ['OPENCV'] is not supported"),
        ({"k5": 0.01}, "k5 = 0.01 is not supported"),
        ({"s1": -0.01}, "s1 = -0.01 is not supported"),
        ({"latlong": True}, "latlong = True is not supported"),
        ({"k4": "0.1"}, "k4 = '0.1': give a finite number"),
        ({"is_fisheye": True, "fl_x": None, "fl_y": None, "camera_angle_x": 2.0}, "a fisheye"),
        ({"camera_model": "EQUIRECTANGULAR", "k1": 0.1}, "a panorama with k1 k2"),
        ({"fisheye_crop_radius": -3}, "fisheye_crop_radius = -3: give the circle's radius"),
        ({"fl_x": 0}, "fl_x = 0"),
        ({"fl_x": 0.2}, "fl_x = 0.2, of an image of 24 pixels, sees all of a half space"),
        ({"fl_y": -3.5}, "fl_y = -3.5"),
        ({"fl_x": "30"}, "fl_x = '30': give a finite number"),
        ({"cx": math.nan}, "cx = nan: give a finite number"),
        ({"k1": [0.1]}, "k1 = [0.1]: give a finite number"),
        ({"w": 0}, "give the image's size in pixels"),
        ({"fl_x": None, "fl_y": None}, "neither fl_x nor camera_angle_x"),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": 51.7}, "radians"),
        ({"aabb_scale": 0.5}, "aabb_scale = 0.5"),
        ({"aabb_scale": "16"}, "aabb_scale = '16'"),
        ({"aabb_scale": 1, "scale": 0}, "scale = 0"),
        ({"aabb_scale": 1, "offset": [0.5]}, "offset = [0.5]"),
        ({"applied_scale": -1}, "applied_scale = -1"),
        ({"applied_transform": [[1, 0, 0]]}, "applied_transform must be 3 rows"),
        ({"applied_transform": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]}, "not a rotation"),
    ],
)
def test_useless_keys(root, keys, words):
    set_keys(root, **keys)
    text = refused(root)
    assert words in text
    assert "transforms.json" in text


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"camera_model": "ORTHOPHOTO"}, "camera_model 'ORTHOPHOTO' is not supported"),
        ({"k6": 0.01}, "k6 = 0.01 is not supported"),
        ({"cx": math.nan}, "cx = nan: give a finite number"),
        ({"h": -24}, "h = -24"),
    ],
)
def test_useless_keys_of_a_frame(root, keys, words):
    set_frame(root, 2, **keys)
    text = refused(root)
    assert words in text
    assert "frame 2 ('images/r_2.jpg')" in text


@pytest.mark.parametrize(
    "values",
    [
        {"downscale": 0.5},
        {"downscale": math.nan},
        {"near": 2000.0},
        {"far": math.inf},
        {"test_every": 1},
    ],
)
def test_useless_values(root, values):
    assert f"scene.{next(iter(values))}=" in refused(root, **values)


# Real data


def test_real_bonsai_loads(real_scene):
    scene = load(real_scene("mip360/bonsai"), downscale=8.0)
    train, test = scene.splits["train"], scene.splits["test"]
    assert (len(train), len(test)) == (255, 37)
    assert test.names[:2] == ("DSCF5565.JPG", "DSCF5573.JPG")
    assert train.image(0).shape == (67, 100, 3)
    assert scene.contraction == "l2"
    expected = [825.98 / 8, 826.20 * 67 / 533, 50, 33.5]
    assert train.cameras.intrinsics[0].tolist() == pytest.approx(expected, abs=0.01)
    # Its cameras stand around a table, upright.
    assert (train.cameras.poses[:, 2, 1] > 0.5).all()
    assert train.cameras.poses[:, :, 3].norm(dim=1).max() == pytest.approx(1, abs=0.05)


@pytest.mark.usefixtures("pycolmap")
def test_real_bonsai_is_the_same_by_its_colmap_model(real_scene):
    folder = real_scene("mip360/bonsai")
    ours = load(folder, downscale=8.0)
    theirs = colmap.load_scene(
        "bonsai", str(folder), None, "images", 8.0, False, 8, True, True, True, 0.05, 1000.0, "l2"
    )
    for split in ("train", "test"):
        one, other = ours.splits[split], theirs.splits[split]
        assert one.names == other.names
        assert torch.equal(one.pixels, other.pixels)
        torch.testing.assert_close(one.cameras.intrinsics, other.cameras.intrinsics)
        # Which way is ahead is left open: compare what no turn about the vertical changes.
        a, b = one.cameras.poses, other.cameras.poses
        heights = a[:, 2, 3], b[:, 2, 3]
        torch.testing.assert_close(*heights, atol=1e-4, rtol=0)
        distances = [torch.cdist(p[:, :, 3].double(), p[:, :, 3].double()) for p in (a, b)]
        torch.testing.assert_close(*distances, atol=1e-4, rtol=0)
        relative = [p[0, :, :3].T @ p[:, :, :3] for p in (a, b)]
        torch.testing.assert_close(*relative, atol=1e-4, rtol=0)
