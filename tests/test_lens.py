"""Lenses that bend: the model, its inverse, and what does not invert."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.cameras import image_rays, interpolate, look_at, orbit, spiral
from nerftrain.errors import UserError
from nerftrain.lens import check_invertible, distort, pinholes_around, undistort
from nerftrain.types import Cameras

LENSES = {
    "phone": (0.058, -0.081, -0.001, 0.0002),
    "barrel": (-0.25, 0.06, 0.001, 0.001),
    "pincushion": (0.3, 0.1, 0.0, 0.0),
    "tangential": (0.0, 0.0, 0.01, -0.01),
    "none": (0.0, 0.0, 0.0, 0.0),
}


def camera(*coefficients: float, focal: float = 60.0) -> Cameras:
    position = torch.tensor([[3.0, 1.0, 1.0]])
    return Cameras(
        poses=look_at(position, torch.zeros(3), torch.tensor([0.0, 0, 1])),
        intrinsics=torch.tensor([[focal, focal * 1.1, 39.0, 31.0]]),
        widths=torch.tensor([80]),
        heights=torch.tensor([60]),
        distortion=torch.tensor([coefficients]) if coefficients else None,
    )


def opencv(x: float, y: float, k1: float, k2: float, p1: float, p2: float) -> tuple[float, float]:
    """The formula of OpenCV's documentation, number by number."""
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
        y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
    )


@pytest.mark.parametrize("lens", LENSES)
def test_points_bend_as_opencv_says(lens: str):
    k = LENSES[lens]
    x, y = distort(torch.tensor([0.4]), torch.tensor([-0.7]), torch.tensor([k]))
    assert (float(x), float(y)) == pytest.approx(opencv(0.4, -0.7, *k), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lens", LENSES)
def test_the_inverse_leads_back(lens: str, dtype: torch.dtype):
    side = torch.linspace(-0.6, 0.6, 41, dtype=dtype)
    x, y = (t.flatten() for t in torch.meshgrid(side, side, indexing="xy"))
    k = torch.tensor(LENSES[lens], dtype=dtype).expand(len(x), 4)
    back = undistort(*distort(x, y, k), k)
    tolerance = {"atol": 1e-5 if dtype == torch.float32 else 1e-12, "rtol": 0}
    torch.testing.assert_close(back[0], x, **tolerance)
    torch.testing.assert_close(back[1], y, **tolerance)


@pytest.mark.parametrize("lens", LENSES)
def test_a_pixels_ray_passes_through_what_the_lens_shows_there(lens: str):
    cameras = camera(*LENSES[lens])
    rays = image_rays(cameras, 0, 0.0, 1.0)
    torch.testing.assert_close(rays.directions.norm(dim=1), torch.ones(4800))
    pose, (fx, fy, cx, cy) = cameras.poses[0], cameras.intrinsics[0].tolist()
    for pixel in (0, 79, 2440, 4720, 4799):
        point = rays.origins[pixel] + 2.5 * rays.directions[pixel]
        right, up, backward = (pose[:, :3].T @ (point - pose[:, 3])).tolist()
        u, v = opencv(right / -backward, -up / -backward, *LENSES[lens])
        place = (fx * u + cx, fy * v + cy)
        assert place == pytest.approx((pixel % 80 + 0.5, pixel // 80 + 0.5), abs=1e-3)


def test_a_lens_that_does_not_bend_is_the_pinhole():
    straight = image_rays(camera(), 0, 0.0, 1.0)
    zeros = image_rays(camera(0.0, 0.0, 0.0, 0.0), 0, 0.0, 1.0)
    torch.testing.assert_close(zeros.directions, straight.directions)


@pytest.mark.parametrize("lens", LENSES)
def test_lenses_that_invert_pass(lens: str):
    check_invertible(camera(*LENSES[lens]), "cameras.bin")
    check_invertible(camera(), "cameras.bin")


@pytest.mark.parametrize("k", [(-0.4, 0.0, 0.0, 0.0), (-2.0, 1.0, 0, 0), (0, 0, 0.5, 0.5)])
def test_a_lens_that_folds_within_its_image_is_refused(k: tuple[float, ...]):
    good, bad = camera(*LENSES["phone"]), camera(*k)
    pair = Cameras(*(torch.cat([a, b]) for a, b in _fields(good, bad)), distortion=_both(good, bad))
    with pytest.raises(UserError, match="does not invert") as caught:
        check_invertible(pair, "sparse/0/cameras.bin")
    text = str(caught.value)
    assert text.startswith("sparse/0/cameras.bin")
    assert f"k1={k[0]:.4g}" in text
    assert "\n" not in text


def test_a_fold_outside_of_the_image_does_no_harm():
    check_invertible(camera(-0.4, 0.0, 0.0, 0.0, focal=90.0), "cameras.bin")


@pytest.mark.parametrize("lens", LENSES)
def test_pinholes_around_a_lens_see_all_that_it_sees(lens: str):
    cameras = camera(*LENSES[lens])
    around = pinholes_around(cameras)
    assert around.distortion is None
    rays = image_rays(cameras, 0, 0.0, 1.0)
    pose, (fx, fy, cx, cy) = around.poses[0], around.intrinsics[0]
    right, up, backward = (rays.directions @ pose[:, :3]).unbind(1)
    u, v = cx + fx * right / -backward, cy - fy * up / -backward
    assert u.min() >= 0
    assert v.min() >= 0
    assert u.max() <= int(around.widths[0])
    assert v.max() <= int(around.heights[0])
    assert int(around.widths[0]) <= 3 * 80  # and not everything else too


@pytest.mark.parametrize("path", [orbit, spiral, interpolate])
def test_videos_show_the_scene_without_the_lens(path):
    frames = path(camera(*LENSES["barrel"]), 3)
    assert frames.distortion is None
    assert frames.intrinsics[0].tolist() == camera().intrinsics[0].tolist()


@pytest.mark.parametrize("path", [orbit, spiral, interpolate])
def test_videos_have_the_size_that_most_images_have(path):
    """One portrait that comes first by name does not make the film one."""
    wide = camera()
    cameras = Cameras(
        poses=wide.poses.repeat(3, 1, 1),
        intrinsics=torch.cat([wide.intrinsics.flip(1), wide.intrinsics, wide.intrinsics]),
        widths=torch.tensor([60, 80, 80]),
        heights=torch.tensor([80, 60, 60]),
    )
    frames = path(cameras, 2)
    assert frames.widths.tolist() == [80, 80]
    assert frames.heights.tolist() == [60, 60]
    assert torch.equal(frames.intrinsics[1], wide.intrinsics[0])


def _fields(a: Cameras, b: Cameras) -> list[tuple[Tensor, Tensor]]:
    return [(getattr(a, n), getattr(b, n)) for n in ("poses", "intrinsics", "widths", "heights")]


def _both(a: Cameras, b: Cameras) -> Tensor:
    assert a.distortion is not None
    assert b.distortion is not None
    return torch.cat([a.distortion, b.distortion])
