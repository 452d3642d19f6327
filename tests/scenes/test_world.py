"""Worlds: cameras brought to a common place, tilt and size, and views kept for the test."""

import math

import pytest
import torch
from torch import Tensor

from nerftrain.cameras import look_at
from nerftrain.errors import UserError
from nerftrain.scenes.world import holdout, move, normalization, robust_focus, scale_of


def level_ring(num_cameras: int = 12) -> Tensor:
    """Poses [C, 3, 4] on a circle of radius 3, 1 above the origin, that look at the origin."""
    angles = torch.arange(num_cameras, dtype=torch.float64) * (2 * math.pi / num_cameras)
    positions = torch.stack([3 * angles.cos(), 3 * angles.sin(), torch.ones_like(angles)], 1)
    return look_at(
        positions, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1]).double()
    )


def any_similarity(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    rotation *= torch.linalg.det(rotation).sign()
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3] = rotation * float(torch.rand((), generator=generator) * 5 + 0.1)
    world[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64) * 100
    return world


@pytest.mark.parametrize("seed", range(4))
def test_a_capture_in_any_coordinates_comes_to_stand_upright_in_the_box(seed: int):
    captured = move(level_ring(), any_similarity(seed))
    poses = move(captured, normalization(captured, center=True, up=True, scale=True))
    positions = poses[:, :, 3]
    torch.testing.assert_close(positions.norm(dim=1), torch.ones(12).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        positions[:, 2], torch.full((12,), 10**-0.5).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(poses[:, :, 2], positions, atol=1e-4, rtol=0)  # look at the origin
    assert (poses[:, 2, 1] > 0.9).all()  # upright


def test_each_part_can_be_switched_off():
    captured = move(level_ring(), any_similarity(1))
    none = normalization(captured, center=False, up=False, scale=False)
    assert torch.equal(none, torch.eye(4, dtype=torch.float64))
    centred = normalization(captured, center=True, up=False, scale=False)
    assert torch.equal(centred[:3, :3], none[:3, :3])
    turned = normalization(captured, center=False, up=True, scale=False)
    assert turned[:3, 3].tolist() == [0, 0, 0]
    assert scale_of(turned) == pytest.approx(1)
    scaled = normalization(captured, center=False, up=False, scale=True)
    largest = float(captured[:, :, 3].norm(dim=1).max())
    torch.testing.assert_close(scaled[:3, :3], torch.eye(3).double() / largest)


def test_moved_poses_see_moved_points_in_the_same_pixels():
    poses, world = level_ring(5), any_similarity(2)
    point = torch.tensor([0.3, -0.2, 0.5]).double()
    before = poses[:, :, :3].transpose(1, 2) @ (point - poses[:, :, 3])[:, :, None]
    moved = move(poses, world)
    there = world[:3, :3] @ point + world[:3, 3]
    after = moved[:, :, :3].transpose(1, 2) @ (there - moved[:, :, 3])[:, :, None]
    torch.testing.assert_close(after, before * scale_of(world), rtol=1e-9, atol=1e-9)
    identity = torch.eye(3).double().expand(5, 3, 3)
    torch.testing.assert_close(moved[:, :, :3].transpose(1, 2) @ moved[:, :, :3], identity)


def test_upside_down_is_turned_by_half():
    captured = move(level_ring(), torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]).double()))
    world = normalization(captured, center=False, up=True, scale=False)
    torch.testing.assert_close(world, torch.diag(torch.tensor([1.0, -1, -1, 1]).double()))


def test_cameras_that_look_straight_down_stay_above_the_ground():
    """Nothing but the backward axes tells up from down in a drone's pictures."""
    grid = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    positions = torch.cat([grid, torch.full((16, 1), 5.0).double()], 1)
    angles = torch.arange(16).double() * (math.pi / 8)
    zero = torch.zeros_like(angles)
    right = torch.stack([angles.cos(), angles.sin(), zero], 1)
    upward = torch.stack([-angles.sin(), angles.cos(), zero], 1)
    backward = torch.tensor([0.0, 0, 1]).double().expand(16, 3)
    poses = torch.stack([right, upward, backward, positions], 2)
    world = normalization(poses, center=True, up=True, scale=True)
    assert float(world[2, 2]) > 0


def test_a_few_stray_cameras_hardly_move_the_focus_or_the_scale():
    poses = level_ring(20)
    strays = move(poses[:2], any_similarity(3))  # 100 units away, looking anywhere
    world = normalization(torch.cat([poses, strays]), center=True, up=False, scale=True)
    assert float(robust_focus(torch.cat([poses, strays])).norm()) < 0.05
    assert scale_of(world) == pytest.approx(10**-0.5, rel=0.05)


def test_parallel_cameras_are_centred_amid_themselves():
    positions = torch.tensor([[0.0, 10, 0], [1, 10, 0], [2, 10, 0], [3, 10, 0]]).double()
    axes = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]).double()  # look along -y, z upwards
    poses = torch.cat([axes.expand(4, 3, 3), positions[:, :, None]], 2)
    moved = move(poses, normalization(poses, center=True, up=True, scale=True))
    torch.testing.assert_close(moved[:, :, 3].mean(0), torch.zeros(3).double(), atol=1e-6, rtol=0)
    assert float(moved[:, :, 3].norm(dim=1).max()) == pytest.approx(1)


@pytest.mark.parametrize("num_cameras", [1, 5])
def test_cameras_in_one_point_are_refused(num_cameras: int):
    poses = level_ring(num_cameras)
    poses[:, :, 3] = torch.tensor([4e5, -3e6, 7.0]).double()
    with pytest.raises(UserError, match="in one point"):
        normalization(poses, center=True, up=True, scale=True)


def test_every_nth_image_by_name_is_held_out_starting_with_the_first():
    names = [f"{letter}.jpg" for letter in "jihgfedcba"]
    train, test = holdout(names, 8)
    assert [names[i] for i in test] == ["a.jpg", "i.jpg"]
    assert [names[i] for i in train] == [f"{letter}.jpg" for letter in "bcdefghj"]


@pytest.mark.parametrize(("num_images", "every"), [(1, 8), (0, 8), (5, 1), (5, 0)])
def test_a_split_without_a_train_or_test_image_is_refused(num_images: int, every: int):
    with pytest.raises(UserError, match=r"test_every|at least 2"):
        holdout([str(i) for i in range(num_images)], every)
