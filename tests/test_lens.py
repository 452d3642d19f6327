"""Lenses that bend, fisheyes and panoramas: the models, their inverse, and what does not invert."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerftrain.cameras import image_rays, interpolate, look_at, orbit, spiral, still
from nerftrain.errors import UserError
from nerftrain.lens import (
    Lens,
    as_pinholes,
    check_invertible,
    distort,
    have_rays,
    pinholes_around,
    together,
    undistort,
    widest_angle,
)
from nerftrain.types import Cameras, Projection

LENSES = {
    "phone": (0.058, -0.081, -0.001, 0.0002),
    "barrel": (-0.25, 0.06, 0.001, 0.001),
    "pincushion": (0.3, 0.1, 0.0, 0.0),
    "tangential": (0.0, 0.0, 0.01, -0.01),
    "metashape": (-0.1, 0.05, 0.001, -0.0005, -0.02, 0.004),
    "none": (0.0, 0.0, 0.0, 0.0),
}
FISHEYES = {
    "equidistant": (),
    "gopro": (0.03, 0.0, 0.0, 0.0, -0.004, 0.0005),
    "flat": (-0.02, -0.001, 0.0, 0.0, 0.0, 0.0),
    "crooked": (0.02, 0.0, 0.002, -0.003),
}


def camera(
    *coefficients: float, focal: float = 60.0, projection: Projection = "perspective"
) -> Cameras:
    position = torch.tensor([[3.0, 1.0, 1.0]])
    return Cameras(
        poses=look_at(position, torch.zeros(3), torch.tensor([0.0, 0, 1])),
        intrinsics=torch.tensor([[focal, focal * 1.1, 39.0, 31.0]]),
        widths=torch.tensor([80]),
        heights=torch.tensor([60]),
        distortion=torch.tensor([coefficients]) if coefficients else None,
        projection=projection,
    )


def fisheye(lens: str, focal: float = 30.0) -> Cameras:
    """Of 30 pixels per radian the corners of the image are 92 degrees off the axis."""
    return camera(*FISHEYES[lens], focal=focal, projection="fisheye")


def seen_by(cameras: Cameras, points: Tensor) -> Tensor:
    """Return how far right, down and ahead of the camera points [N, 3] of the world are."""
    pose = cameras.poses[0]
    right, up, backward = ((points - pose[:, 3]) @ pose[:, :3]).unbind(1)
    return torch.stack([right, -up, -backward], 1)


def opencv(
    x: float,
    y: float,
    k1: float = 0,
    k2: float = 0,
    p1: float = 0,
    p2: float = 0,
    k3: float = 0,
    k4: float = 0,
) -> tuple[float, float]:
    """The formula of OpenCV's documentation, number by number; k4 is nerfstudio's."""
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
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
    k = torch.tensor(LENSES[lens], dtype=dtype).expand(len(x), -1)
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
    assert around is not None
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


# Fisheyes and panoramas


@pytest.mark.parametrize("lens", FISHEYES)
def test_a_fisheyes_pixel_sees_what_opencvs_fisheye_model_shows_there(lens: str):
    cameras = fisheye(lens)
    rays = image_rays(cameras, 0, 0.0, 1.0)
    torch.testing.assert_close(rays.directions.norm(dim=1), torch.ones(4800))
    fx, fy, cx, cy = cameras.intrinsics[0].tolist()
    angles = []
    for pixel in (0, 79, 2440, 2479, 4720, 4799):
        right, down, ahead = seen_by(cameras, rays.origins + 2.5 * rays.directions)[pixel].tolist()
        off = math.hypot(right, down)
        angles.append(math.atan2(off, ahead))
        u, v = opencv(angles[-1] * right / off, angles[-1] * down / off, *FISHEYES[lens])
        place = (fx * u + cx, fy * v + cy)
        assert place == pytest.approx((pixel % 80 + 0.5, pixel // 80 + 0.5), abs=1e-3)
    assert max(angles) > math.radians(85)
    assert widest_angle(cameras) == pytest.approx(max(angles), abs=0.03)  # of centres of pixels


def test_the_middle_of_a_fisheye_is_straight_ahead():
    cameras = replace(fisheye("gopro"), intrinsics=torch.tensor([[30.0, 30.0, 40.5, 30.5]]))
    directions = image_rays(cameras, 0, 0.0, 1.0).directions
    torch.testing.assert_close(directions[30 * 80 + 40], -cameras.poses[0, :, 2])
    assert bool(directions.isfinite().all())


def test_a_panorama_has_longitude_and_latitude():
    pixels_per_radian = 80 / (2 * math.pi), 40 / math.pi
    cameras = replace(
        camera(projection="equirectangular"),
        intrinsics=torch.tensor([[*pixels_per_radian, 40.0, 20.0]]),
        heights=torch.tensor([40]),
    )
    rays = image_rays(cameras, 0, 0.0, 1.0)
    seen = seen_by(cameras, rays.origins + rays.directions).view(40, 80, 3)
    down = math.pi * ((torch.arange(40) + 0.5) / 40 - 0.5)
    around = 2 * math.pi * ((torch.arange(80) + 0.5) / 80 - 0.5)
    torch.testing.assert_close(seen[..., 1], down.sin()[:, None].expand(40, 80))
    torch.testing.assert_close(torch.atan2(seen[..., 0], seen[..., 2])[7], around)
    assert have_rays(cameras) is None
    assert pinholes_around(cameras) is None


def test_what_lies_beyond_a_fisheyes_circle_has_no_ray():
    """Half a turn from the axis is the end of the world; of a lens that folds, the fold is."""
    far = fisheye("equidistant", focal=10.0)
    inside = have_rays(far)
    assert inside is not None
    x, y = torch.arange(80) + 0.5, torch.arange(60)[:, None] + 0.5
    angles = torch.hypot((x - 39) / 10, (y - 31) / 11)
    assert torch.equal(inside.view(60, 80), angles <= math.pi)
    assert bool(image_rays(far, 0, 0.0, 1.0).directions.isfinite().all())

    folds = camera(-0.3, 0.0, 0.0, 0.0, focal=20.0, projection="fisheye")  # where a = 1.05
    shown = have_rays(folds)
    assert shown is not None
    reach = 1 - 0.3 * 0.99  # less than where the slope, 1 - 0.9 a^2, has come to a tenth: a = 1
    assert bool(shown.view(60, 80)[31, 39 - int(20 * reach) : 39 + int(20 * reach)].all())
    assert not bool(shown.view(60, 80)[31, [39 - 16, 39 + 16]].any())
    assert bool(image_rays(folds, 0, 0.0, 1.0).directions.isfinite().all())
    check_invertible(folds, "cameras.bin")


@pytest.mark.parametrize("lens", FISHEYES)
def test_every_pixel_of_a_common_fisheye_has_its_ray(lens: str):
    check_invertible(fisheye(lens), "cameras.bin")
    assert have_rays(fisheye(lens)) is None
    assert have_rays(camera(*LENSES["barrel"])) is None


def test_a_fisheye_that_shows_nothing_is_refused():
    aside = camera(-0.3, 0.0, 0.0, 0.0, focal=2.0, projection="fisheye")
    aside = replace(aside, intrinsics=torch.tensor([[2.0, 2.0, 900.0, 31.0]]))
    with pytest.raises(UserError, match="does not invert over the whole 80x60 image"):
        check_invertible(aside, "cameras.bin")


@pytest.mark.parametrize("lens", FISHEYES)
def test_pinholes_around_a_narrow_fisheye_see_all_that_it_sees(lens: str):
    cameras = fisheye(lens, focal=45.0)
    around = pinholes_around(cameras)
    assert around is not None
    assert (around.distortion, around.projection) == (None, "perspective")
    rays = image_rays(cameras, 0, 0.0, 1.0)
    fx, fy, cx, cy = around.intrinsics[0]
    right, down, ahead = seen_by(cameras, rays.origins + rays.directions).unbind(1)
    u, v = cx + fx * right / ahead, cy + fy * down / ahead
    assert min(u.min(), v.min()) >= 0
    assert u.max() <= int(around.widths[0])
    assert v.max() <= int(around.heights[0])
    assert pinholes_around(fisheye(lens)) is None  # but none sees as much as a wide one


def test_pinholes_in_the_place_of_wide_lenses_see_a_right_angle():
    for cameras in (fisheye("gopro"), camera(focal=12.0, projection="equirectangular")):
        pinholes = as_pinholes(cameras)
        assert (pinholes.distortion, pinholes.projection) == (None, "perspective")
        assert pinholes.intrinsics.tolist() == [[40.0, 40.0, 40.0, 30.0]]
    assert as_pinholes(fisheye("gopro", focal=300.0)).intrinsics[0, 0] == 300
    barrel = camera(*LENSES["barrel"])
    assert torch.equal(as_pinholes(barrel).intrinsics, barrel.intrinsics)


def test_a_scene_has_lenses_of_one_kind():
    lens = Lens(80, 60, (60.0, 60.0, 40.0, 30.0), (0.1, 0, 0, 0, 0, 0))
    faults, kind = together([lens, lens], "cameras.bin")
    assert faults is not None
    assert (kind, faults.shape) == ("perspective", (2, 4))
    bent = replace(lens, distortion=(0.1, 0, 0, 0, 0.2, 0), projection="fisheye")
    faults, kind = together([bent], "cameras.bin")
    assert faults is not None
    assert (kind, faults.shape) == ("fisheye", (1, 6))
    assert together([replace(lens, distortion=(0.0,) * 6)], "cameras.bin")[0] is None
    with pytest.raises(UserError, match="lenses of several kinds, perspective and fisheye"):
        together([lens, bent], "cameras.bin")


# Films


@pytest.mark.parametrize("path", [orbit, spiral, interpolate, still])
def test_films_of_a_fisheyes_scene_are_of_pinholes(path):
    frames = path(fisheye("gopro"), 3)
    assert (frames.distortion, frames.projection) == (None, "perspective")
    assert frames.intrinsics.tolist() == [[40.0, 40.0, 40.0, 30.0]] * 3


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
