from pathlib import Path

import pytest
import torch

from nerftrain.scenes import Scene, Split, composite_over
from nerftrain.types import Cameras


def make_scene(sizes: list[tuple[int, int]], channels: int = 4) -> Scene:
    """A scene whose pixels tell where they are: red the image, green the column, blue the row."""
    rows = [
        [camera, x, y, (camera * 50 + x * 7 + y * 3) % 256][:channels]
        for camera, (width, height) in enumerate(sizes)
        for y in range(height)
        for x in range(width)
    ]
    num_cameras = len(sizes)
    cameras = Cameras(
        poses=torch.eye(4)[:3].repeat(num_cameras, 1, 1),
        intrinsics=torch.tensor([4.0, 4.0, 2.0, 2.0]).repeat(num_cameras, 1),
        widths=torch.tensor([width for width, _ in sizes]),
        heights=torch.tensor([height for _, height in sizes]),
    )
    split = Split("train", cameras, torch.tensor(rows, dtype=torch.uint8), ("a.png",) * num_cameras)
    box = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    return Scene("test", {"train": split, "test": split}, box, 2.0, 6.0, Path())


EQUAL, MIXED = [(4, 3)] * 3, [(4, 3), (2, 5), (3, 3)]


@pytest.mark.parametrize("sizes", [EQUAL, MIXED])
def test_every_pixel_is_located_in_its_image(sizes):
    split = make_scene(sizes).splits["train"]
    located = torch.stack(split.locate(torch.arange(len(split.pixels))), dim=1)
    assert torch.equal(located, split.pixels[:, :3].long())


@pytest.mark.parametrize("sizes", [EQUAL, MIXED])
def test_images_are_cut_where_they_begin(sizes):
    split = make_scene(sizes).splits["train"]
    for index, (width, height) in enumerate(sizes):
        image = split.image(index)
        assert image.shape == (height, width, 4)
        assert (image[..., 0] * 255 == index).all()
        torch.testing.assert_close(image[0, :, 1] * 255, torch.arange(width).float())
    assert split.offsets.tolist()[-1] == len(split.pixels)


@pytest.mark.parametrize("sizes", [EQUAL, MIXED])
def test_target_belongs_to_the_ray(sizes):
    scene = make_scene(sizes, channels=3)
    batch = scene.batch(torch.Generator().manual_seed(0), 500, torch.zeros(500, 3))
    camera, x, y = (batch.target * 255).round().unbind(1)
    assert batch.rays.cameras is not None
    assert torch.equal(batch.rays.cameras, camera.long())
    expected = torch.stack([(x + 0.5 - 2) / 4, -(y + 0.5 - 2) / 4], dim=1)
    directions = batch.rays.directions
    torch.testing.assert_close(directions[:, :2] / -directions[:, 2:], expected)
    assert (batch.rays.near == 2.0).all()
    assert (batch.rays.far == 6.0).all()


def test_every_pixel_is_drawn_equally_often():
    scene = make_scene(MIXED)
    num_pixels, draws = len(scene.splits["train"].pixels), 310_000
    batch = scene.batch(torch.Generator().manual_seed(3), draws, torch.zeros(draws, 3))
    rays = batch.rays
    assert rays.cameras is not None
    places = torch.cat([rays.cameras[:, None].float(), rays.directions], dim=1)
    counts = places.unique(dim=0, return_counts=True)[1].double()
    assert len(counts) == num_pixels == 31
    # Each count is binomial with mean 10,000: 5 standard deviations are 5 %.
    assert (counts / 10_000 - 1).abs().max() < 0.05


@pytest.mark.parametrize("before", [0, 7, 2**31 - 1])
@pytest.mark.parametrize("live", [None, 18])
def test_in_order_no_pixel_comes_again_before_all_others_have(before, live):
    scene, generator = make_scene(MIXED), torch.Generator().manual_seed(3)
    pixels = None if live is None else torch.randperm(31, generator=generator)[:live].int()
    drawn, places = torch.tensor(before), []
    for num in (5, 1, 40):
        background = torch.zeros(num, 3)
        rays = scene.batch(generator, num, background, pixels, drawn).rays
        assert rays.cameras is not None
        places.append(torch.cat([rays.cameras[:, None].float(), rays.directions], dim=1))
        drawn.add_(num)
    total = live or 31
    in_order = torch.cat(places)
    assert len(in_order[:total].unique(dim=0)) == total
    assert torch.equal(in_order[total:], in_order[: len(in_order) - total])


def test_in_order_each_batch_is_spread_evenly_over_all_images():
    scene, generator = make_scene([(30, 20)] * 50), torch.Generator()
    for before in range(0, 10_000, 999):
        drawn = torch.tensor(before)
        rays = scene.batch(generator, 500, torch.zeros(500, 3), None, drawn).rays
        each = torch.bincount(rays.cameras, minlength=50)  # 10 of each: drawn regardless 3 to 20
        assert int(each.min()) >= 8
        assert int(each.max()) <= 12


def test_batches_repeat_with_the_seed_and_change_with_it():
    scene = make_scene(EQUAL)
    background = torch.rand(64, 3)
    first, again, other = (
        scene.batch(torch.Generator().manual_seed(seed), 64, background).target
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_background_shows_through_by_one_minus_alpha():
    scene = make_scene(EQUAL)
    generator = torch.Generator().manual_seed(0)
    background = torch.rand(200, 3, generator=generator)
    batch = scene.batch(torch.Generator().manual_seed(5), 200, background)
    bare = scene.batch(torch.Generator().manual_seed(5), 200, torch.zeros(200, 3))
    full = scene.batch(torch.Generator().manual_seed(5), 200, torch.ones(200, 3))
    share = full.target - bare.target  # 1 - alpha
    torch.testing.assert_close(batch.target, bare.target + share * background)
    assert share.min() >= 0
    assert share.max() > 0.9
    assert torch.equal(batch.background, background)


def test_compositing_is_exact_at_both_ends_of_alpha():
    colors = torch.tensor([[0.3, 0.6, 0.9, 0.0], [0.3, 0.6, 0.9, 1.0]])
    background = torch.tensor([0.1, 0.7, 0.2])
    result = composite_over(colors, background)
    assert torch.equal(result[0], background)
    assert torch.equal(result[1], colors[1, :3])
    assert torch.equal(composite_over(colors[:, :3], background), colors[:, :3])


def test_a_moved_scene_keeps_everything():
    scene = make_scene(MIXED)
    moved = scene.to("cpu")
    assert moved.has_alpha
    assert not make_scene(EQUAL, channels=3).has_alpha
    assert torch.equal(moved.splits["test"].pixels, scene.splits["test"].pixels)
    assert scene.to("meta").aabb.device.type == "meta"
    assert scene.to("meta").splits["train"].cameras.poses.device.type == "meta"
