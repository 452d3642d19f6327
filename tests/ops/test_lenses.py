"""Rays of lenses that bend, fisheyes and panoramas: against the reference; what they mean is in
test_lens.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.cameras import look_at
from nerftrain.ops.lenses import lens_rays, lens_rays_reference

KINDS = {
    "opencv": ("perspective", (-0.1, 0.05, 0.004, -0.003)),
    "metashape": ("perspective", (-0.1, 0.05, 0.001, -0.0005, -0.02, 0.004)),
    "straight": ("fisheye", None),
    "fisheye": ("fisheye", (0.03, 0.002, 0.0, 0.0, -0.004, 0.0005)),
    "crooked": ("fisheye", (0.02, 0.0, 0.002, -0.003)),
    "panorama": ("equirectangular", None),
}


def cameras(device: torch.device, dtype: torch.dtype, focal: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(4, 3, generator=generator, dtype=dtype) * 3
    poses = look_at(positions, torch.zeros(3, dtype=dtype), torch.tensor([0, 0, 1.0]).to(dtype))
    sizes = focal * (1 + 0.2 * torch.rand(4, 2, generator=generator, dtype=dtype))
    middles = torch.tensor([60.0, 45.0]).to(dtype) + torch.rand(4, 2, generator=generator)
    return poses.to(device), torch.cat([sizes, middles.to(dtype)], 1).to(device)


def pixels(device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = (torch.randint(0, most, (5000,), generator=generator) for most in (4, 120, 90))
    return [numbers.to(device) for numbers in drawn]


@pytest.mark.parametrize("kind", KINDS)
def test_rays_equal_those_of_torch(device, dtype, assert_close, kind):
    projection, faults = KINDS[kind]
    focal = {"perspective": 90.0, "fisheye": 45.0, "equirectangular": 20.0}[projection]
    poses, intrinsics = cameras(device, dtype, focal)
    distortion = None
    if faults is not None:
        each = torch.linspace(0.2, 1, 4, dtype=dtype)[:, None]  # no two lenses alike
        distortion = (each * torch.tensor(faults, dtype=dtype)).to(device)
    given = poses, intrinsics, distortion, projection, *pixels(device)
    actual = lens_rays(*given)
    assert_close(actual, lens_rays_reference(*given))
    assert_close(actual[1].norm(dim=1), torch.ones(5000, device=device, dtype=dtype))


def test_where_a_fisheye_shows_nothing_rays_go_somewhere(device, dtype):
    poses, intrinsics = cameras(device, dtype, 8.0)
    folds = torch.tensor([-0.3, 0.0, 0.0, 0.0], dtype=dtype, device=device).repeat(4, 1)
    for find in (lens_rays, lens_rays_reference):
        origins, directions = find(poses, intrinsics, folds, "fisheye", *pixels(device))
        assert bool(origins.isfinite().all())
        assert float((directions.norm(dim=1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("leaf", [0, 1, 2])
@pytest.mark.parametrize("kind", ["opencv", "fisheye"])
def test_gradients_reach_cameras_and_their_lenses(device, kind, leaf):
    projection, faults = KINDS[kind]
    distortion = torch.tensor(faults, dtype=torch.float64, device=device).repeat(4, 1)
    numbers = [*cameras(device, torch.float64, 50.0), distortion]
    numbers[leaf].requires_grad_()
    rows = torch.arange(4, device=device)
    assert torch.autograd.gradcheck(
        lambda _: lens_rays(*numbers, projection, rows, rows * 9, rows * 5), numbers[leaf]
    )


def test_what_is_no_lens_is_refused(device):
    numbers = cameras(device, torch.float32, 50.0)
    with pytest.raises(RuntimeError, match="lens_rays: distortion has 4 or 6 columns"):
        lens_rays(*numbers, torch.zeros(4, 5, device=device), "perspective", *pixels(device))
