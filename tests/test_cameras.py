import math
from dataclasses import replace

import pytest
import torch

from nerftrain.cameras import (
    image_rays,
    interpolate,
    look_at,
    orbit,
    panoramas,
    pixel_rays,
    spiral,
    still,
)
from nerftrain.errors import UserError
from nerftrain.types import Cameras

UP = torch.tensor([0.0, 0.0, 1.0])


def ring(
    num_cameras: int,
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
    distance: float = 4.0,
    elevation: float = 0.5,
    times: torch.Tensor | None = None,
) -> Cameras:
    """Cameras on a horizontal circle that look at target; 40 x 30 pixels, not square."""
    azimuths = torch.arange(num_cameras) * (2 * math.pi / num_cameras)
    height = torch.full_like(azimuths, math.sin(elevation))
    around = math.cos(elevation) * torch.stack([azimuths.cos(), azimuths.sin()], dim=1)
    positions = torch.tensor(target) + distance * torch.cat([around, height[:, None]], dim=1)
    return Cameras(
        poses=look_at(positions, torch.tensor(target), UP),
        intrinsics=torch.tensor([50.0, 60.0, 19.0, 16.0]).repeat(num_cameras, 1),
        widths=torch.full((num_cameras,), 40),
        heights=torch.full((num_cameras,), 30),
        times=times,
    )


def project(cameras: Cameras, camera: int, point: torch.Tensor) -> tuple[float, float]:
    """Pixel coordinates of a world point, written from the pinhole model, not from the code."""
    pose, (fx, fy, cx, cy) = cameras.poses[camera], cameras.intrinsics[camera].tolist()
    right, up, backward = (pose[:, :3].T @ (point - pose[:, 3])).tolist()
    return cx + fx * right / -backward, cy - fy * up / -backward


def test_ray_of_the_pixel_that_a_point_projects_to_passes_through_the_point():
    cameras = ring(5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(40, (50,), generator=generator)
    y = torch.randint(30, (50,), generator=generator)
    indices = torch.randint(5, (50,), generator=generator)
    rays = pixel_rays(cameras, indices, x, y, 2.0, 6.0)
    for r in range(50):
        point = rays.origins[r] + 3.7 * rays.directions[r]
        expected = (x[r].item() + 0.5, y[r].item() + 0.5)
        assert project(cameras, int(indices[r]), point) == pytest.approx(expected, abs=1e-3)


def test_directions_have_unit_length_and_rays_their_bounds():
    rays = image_rays(ring(3), 1, 2.0, 6.0)
    torch.testing.assert_close(rays.directions.norm(dim=1), torch.ones(1200))
    assert (rays.near == 2.0).all()
    assert (rays.far == 6.0).all()
    assert (rays.cameras == 1).all()
    assert rays.times is None
    assert {t.dtype for t in (rays.origins, rays.directions, rays.near)} == {torch.float32}


def test_centre_pixel_looks_along_minus_z_and_image_axes_point_right_and_down():
    camera = Cameras(
        poses=torch.eye(4)[None, :3],
        intrinsics=torch.tensor([[10.0, 10.0, 1.5, 1.5]]),
        widths=torch.tensor([3]),
        heights=torch.tensor([3]),
    )
    directions = image_rays(camera, 0, 0.0, 1.0).directions.view(3, 3, 3)  # rows, columns, xyz
    torch.testing.assert_close(directions[1, 1], torch.tensor([0.0, 0.0, -1.0]))
    assert directions[1, 2, 0] > 0
    assert directions[0, 1, 1] > 0
    assert directions[2, 1, 1] < 0


def test_image_rays_are_the_pixel_rays_row_by_row():
    cameras = ring(4)
    rays = image_rays(cameras, 2, 2.0, 6.0)
    x, y = torch.tensor([0, 39, 7]), torch.tensor([0, 0, 11])
    single = pixel_rays(cameras, torch.tensor([2, 2, 2]), x, y, 2.0, 6.0)
    torch.testing.assert_close(rays[y * 40 + x].directions, single.directions)


def test_rays_carry_the_time_of_their_camera():
    cameras = ring(3, times=torch.tensor([0.0, 0.5, 1.0]))
    zero = torch.zeros(2, dtype=torch.int64)
    rays = pixel_rays(cameras, torch.tensor([2, 1]), zero, zero, 2.0, 6.0)
    assert rays.times is not None
    assert rays.times.tolist() == [1.0, 0.5]


def assert_is_rotation(poses: torch.Tensor) -> None:
    rotation = poses[:, :, :3]
    identity = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation.transpose(1, 2) @ rotation, identity, atol=1e-5, rtol=0)
    assert (torch.linalg.det(rotation) > 0).all()


@pytest.mark.parametrize("path", [orbit, spiral, interpolate, still])
def test_paths_keep_the_size_and_intrinsics_of_camera_0(path):
    cameras = ring(6, times=torch.linspace(0, 1, 6))
    frames = path(cameras, 9)
    assert len(frames) == 9
    assert_is_rotation(frames.poses)
    assert frames.poses.dtype == torch.float32
    assert (frames.intrinsics == cameras.intrinsics[0]).all()
    assert (frames.widths == 40).all()
    assert (frames.heights == 30).all()
    torch.testing.assert_close(frames.times, torch.linspace(0, 1, 9))


@pytest.mark.parametrize("path", [orbit, spiral, interpolate, still])
@pytest.mark.parametrize(("num_cameras", "num_frames"), [(1, 1), (1, 5), (2, 3), (6, 1)])
def test_paths_are_finite_for_any_number_of_cameras_and_frames(path, num_cameras, num_frames):
    frames = path(ring(num_cameras), num_frames)
    assert len(frames) == num_frames
    assert_is_rotation(frames.poses)
    assert frames.poses.isfinite().all()


@pytest.mark.parametrize("path", [orbit, spiral, interpolate, still])
def test_a_path_of_no_frames_is_refused(path):
    with pytest.raises(UserError, match="at least 1"):
        path(ring(3), 0)


def test_panoramas_are_level_and_begin_behind():
    """The camera looks down on the middle; its panorama has the horizon at half its height."""
    cameras = ring(3, elevation=0.6, times=torch.tensor([0.1, 0.2, 0.3]))
    around = panoramas(cameras, UP)
    assert (around.widths.tolist(), around.heights.tolist()) == ([80] * 3, [40] * 3)
    assert torch.equal(around.times, cameras.times)
    for camera in range(3):
        rays = image_rays(around, camera, 0.0, 1.0)
        directions = rays.directions.view(40, 80, 3)
        torch.testing.assert_close(rays.origins[0], cameras.poses[camera, :, 3])
        assert float(directions[19, :, 2].min()) > 0 > float(directions[20, :, 2].max())
        assert float(directions[0, :, 2].min()) > 0.99
        ahead = -cameras.poses[camera, :2, 2]
        ahead = ahead / ahead.norm()
        assert float(directions[19, 39:41, :2].sum(0) @ ahead) > 1.98
        right = cameras.poses[camera, :2, 0]
        assert float(directions[19, 60, :2] @ right) > 0.99


def test_the_panorama_of_a_camera_that_looks_straight_down_is_upright():
    pose = torch.tensor([[[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]]])  # its upper side is -x
    around = panoramas(replace(ring(1), poses=pose), UP)
    directions = image_rays(around, 0, 0.0, 1.0).directions.view(40, 80, 3)
    assert float(directions[0, :, 2].min()) > 0.99
    assert float(directions[19, 39, 0]) < -0.99


def test_still_is_camera_0_even_where_another_size_is_more_common():
    cameras = ring(4, times=torch.tensor([0.75, 0.5, 0.25, 0.5]))
    cameras.widths[0], cameras.intrinsics[0, 2] = 20, 9.0
    frames = still(cameras, 3)
    assert torch.equal(frames.poses, cameras.poses[:1].repeat(3, 1, 1))
    assert torch.equal(frames.intrinsics, cameras.intrinsics[:1].repeat(3, 1))
    assert frames.widths.tolist() == [20, 20, 20]
    assert frames.times.tolist() == [0.25, 0.5, 0.75]


def test_orbit_circles_the_point_looked_at_at_the_cameras_distance_and_height():
    target = torch.tensor([1.0, -2.0, 0.5])
    cameras = ring(7, target=(1.0, -2.0, 0.5), distance=3.0, elevation=0.4)
    frames = orbit(cameras, 8)
    offsets = frames.poses[:, :, 3] - target
    torch.testing.assert_close(offsets.norm(dim=1), torch.full((8,), 3.0))
    torch.testing.assert_close(offsets[:, 2], torch.full((8,), 3.0 * math.sin(0.4)))
    torch.testing.assert_close(offsets.sum(0)[:2], torch.zeros(2), atol=1e-4, rtol=0)
    # Frame 0 is camera 0's own place; every frame looks at the target and stands upright.
    torch.testing.assert_close(frames.poses[0], cameras.poses[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.poses[:, :, 2], offsets / 3.0, atol=1e-4, rtol=0)
    assert (frames.poses[:, 2, 1] > 0).all()


def test_orbit_finds_up_whatever_axis_it_is():
    cameras = ring(7)
    turned = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # z becomes y, as in many captures
    frames = orbit(Cameras(turned @ cameras.poses, *list(vars(cameras).values())[1:]), 4)
    torch.testing.assert_close(frames.poses, turned @ orbit(cameras, 4).poses, atol=1e-4, rtol=0)


def test_spiral_stays_between_the_heights_of_the_cameras():
    low, high = ring(6, elevation=0.1), ring(6, elevation=0.9)
    poses = torch.cat([low.poses, high.poses])
    both = Cameras(poses, *(torch.cat([t, t]) for t in list(vars(low).values())[1:4]))
    heights = spiral(both, 20).poses[:, 2, 3]
    assert 4 * math.sin(0.1) - 1e-3 <= heights.min()
    assert heights.min() < 4 * math.sin(0.2)
    assert 4 * math.sin(0.8) < heights.max()
    assert heights.max() <= 4 * math.sin(0.9) + 1e-3


def test_interpolation_passes_through_every_camera():
    cameras = ring(5)
    frames = interpolate(cameras, 9)  # every other frame is a camera
    torch.testing.assert_close(frames.poses[::2], cameras.poses, atol=1e-5, rtol=0)


def test_interpolation_halves_the_turn_between_two_cameras():
    cameras = ring(8)
    middle = interpolate(cameras, 15).poses[1, :, :3]
    turns = [torch.trace(p[:, :3].T @ middle) for p in cameras.poses[:2]]
    torch.testing.assert_close(turns[0], turns[1], atol=1e-5, rtol=0)
    assert turns[0] > 2.5  # the shorter way round
