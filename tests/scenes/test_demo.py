import json
import logging
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from nerftrain.cameras import look_at
from nerftrain.errors import UserError
from nerftrain.paths import cache_dir
from nerftrain.scenes import demo, toys


@pytest.fixture(autouse=True)
def _one_thread_per_operation():
    """Small pictures on a busy machine: threads would wait for each other longer than they work."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NERFTRAIN_CACHE", str(tmp_path / "cache"))
    cache_dir.cache_clear()
    yield tmp_path / "cache"
    cache_dir.cache_clear()


def test_scene_has_the_asked_views_size_and_alpha(cache):
    scene = demo.load_scene("demo", 32, 5, 2)
    train, test = scene.splits["train"], scene.splits["test"]
    assert (len(train), len(test)) == (5, 2)
    assert train.image(0).shape == (32, 32, 4)
    alpha = train.pixels[:, 3]
    assert alpha.min() == 0
    assert alpha.max() == 255
    assert ((alpha > 0) & (alpha < 255)).any()  # smooth outlines
    assert scene.aabb.tolist() == [-1.5] * 3 + [1.5] * 3
    assert (scene.near, scene.far) == (2.0, 6.0)
    distances = train.cameras.poses[:, :, 3].norm(dim=1)
    torch.testing.assert_close(distances, torch.full((5,), 4.0))


def test_folder_has_the_blender_layout(tiny_scene_root):
    content = json.loads((tiny_scene_root / "transforms_train.json").read_text())
    assert content["camera_angle_x"] == 0.69
    assert [frame["file_path"] for frame in content["frames"][:2]] == ["./train/r_0", "./train/r_1"]
    assert sorted(path.name for path in tiny_scene_root.iterdir()) == [
        "test",
        "train",
        "transforms_test.json",
        "transforms_train.json",
    ]
    with Image.open(tiny_scene_root / "test" / "r_1.png") as image:
        assert (image.size, image.mode) == ((24, 24), "RGBA")


def test_rendering_leaves_the_number_of_threads_as_it_was(tmp_path):
    torch.set_num_threads(2)
    demo.render_folder(tmp_path, 8, 1, 1)
    assert torch.get_num_threads() == 2


def test_rendering_twice_gives_the_same_bytes(tiny_scene_root, tmp_path):
    (tmp_path / "again").mkdir()
    demo.render_folder(tmp_path / "again", 24, 6, 2)
    files = sorted(path for path in tiny_scene_root.rglob("*") if path.is_file())
    assert len(files) == 10
    for path in files:
        again = tmp_path / "again" / path.relative_to(tiny_scene_root)
        assert again.read_bytes() == path.read_bytes()


def test_scene_stays_inside_its_box_and_every_picture():
    poses = torch.cat([demo._train_poses(8), demo._test_poses(2)])
    for pose in poses:
        alpha = toys.render_view(pose, 80)[..., 3]
        edge = torch.cat([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert edge.max() == 0
        assert (alpha == 255).sum() > 100


def test_outline_can_be_seen_through():
    # Background that is closed in by the scene on its left and right.
    alpha = toys.render_view(demo._test_poses(1)[0], 100)[..., 3] > 127
    left, right = alpha.cummax(dim=1).values, alpha.flip(1).cummax(dim=1).values.flip(1)
    assert (~alpha & left & right).sum() > 50


def test_solids_are_held_by_their_bounding_spheres():
    generator = torch.Generator().manual_seed(0)
    for solid in toys._SOLIDS:
        directions = torch.randn(3, 20_000, generator=generator)
        shell = directions / directions.norm(dim=0) * solid.radius
        assert solid.distance(shell).min() > -1e-3


def test_second_load_reads_the_cache(cache, monkeypatch):
    first = demo.load_scene("demo", 16, 2, 1)
    monkeypatch.setattr(demo, "render_folder", lambda *_: pytest.fail("rendered again"))
    again = demo.load_scene("demo", 16, 2, 1)
    assert torch.equal(first.splits["train"].pixels, again.splits["train"].pixels)
    assert again.root == first.root
    assert cache in first.root.parents


def test_other_parameters_are_another_cache_entry(cache):
    roots = {demo.load_scene("demo", *numbers).root for numbers in [(16, 2, 1), (16, 1, 2)]}
    assert len(roots) == 2


def test_damaged_cache_entry_is_rendered_again(cache):
    first = demo.load_scene("demo", 16, 2, 1)
    (first.root / "train" / "r_1.png").unlink()
    again = demo.load_scene("demo", 16, 2, 1)
    assert torch.equal(first.splits["train"].pixels, again.splits["train"].pixels)


def test_interrupted_rendering_leaves_nothing_behind(cache, monkeypatch):
    def interrupt(pose, resolution):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "render_view", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.load_scene("demo", 16, 2, 1)
    assert list((cache / "demo").iterdir()) == []


def test_two_writers_at_once_both_succeed(cache, monkeypatch):
    render, others = demo.render_folder, []

    def render_while_another_finishes(*arguments):
        monkeypatch.setattr(demo, "render_folder", render)
        others.append(demo.load_scene("demo", 16, 2, 1))
        render(*arguments)

    monkeypatch.setattr(demo, "render_folder", render_while_another_finishes)
    mine, (other,) = demo.load_scene("demo", 16, 2, 1), others
    assert mine.root == other.root
    assert torch.equal(mine.splits["train"].pixels, other.splits["train"].pixels)
    assert [path.name for path in (cache / "demo").iterdir()] == [mine.root.name]


def test_unwritable_cache_is_warned_about_and_does_without(cache, caplog):
    cache.mkdir()
    (cache / "demo").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        scene = demo.load_scene("demo", 16, 2, 1)
    assert "NERFTRAIN_CACHE" in caplog.text
    assert len(scene.splits["train"]) == 2
    assert not scene.root.exists()  # the temporary folder is gone


def test_nothing_writable_is_one_clear_line(cache, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "render_folder", refuse)
    with pytest.raises(UserError, match="NERFTRAIN_CACHE") as caught:
        demo.load_scene("demo", 16, 2, 1)
    assert "No space left" in str(caught.value)


@pytest.mark.parametrize(
    "numbers", [(0, 2, 1), (16, 0, 1), (16, 2, -1), (10**5, 2, 1), (16, 10**9, 1), (16, 2, 10**9)]
)
def test_numbers_below_one_or_far_too_large_are_refused_by_name(cache, numbers):
    with pytest.raises(UserError, match=r"^scene\.(resolution|num_train|num_test)=-?\d+: "):
        demo.load_scene("demo", *numbers)
    assert not (cache / "demo").exists()


def test_grazing_views_see_the_whole_table():
    position = torch.tensor([-1.0372, 3.8584, -0.1926])  # just above the table's top
    pose = look_at(position[None], torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))[0]
    opaque = toys.render_view(pose, 100)[..., 3] > 0
    around = torch.linspace(0, 2 * math.pi, 100)
    rim = torch.stack([0.9 * around.cos(), 0.9 * around.sin(), torch.full_like(around, -0.57)], -1)
    x, y, z = ((rim - pose[:, 3]) @ pose[:, :3]).unbind(-1)  # points inside the table's top
    focal = 50 / math.tan(toys.CAMERA_ANGLE / 2)
    columns, rows = (50 - focal * x / z).long(), (50 + focal * y / z).long()
    assert opaque[rows, columns].all()
