"""Rays through pixels: against the reference, and straight through what a camera looks at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.cameras import look_at
from nerftrain.ops.rays import (
    pixel_colors,
    pixel_colors_reference,
    pixel_rays,
    pixel_rays_reference,
)


def cameras(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(4, 3, generator=generator, dtype=dtype) * 3
    poses = look_at(positions, torch.zeros(3, dtype=dtype), torch.tensor([0, 0, 1.0]).to(dtype))
    lens = torch.rand(4, 4, generator=generator, dtype=dtype) * 50 + 50
    return poses.to(device), lens.to(device)


def test_rays_equal_those_of_torch(device, dtype, assert_close):
    generator = torch.Generator().manual_seed(1)
    indices, x, y = (
        torch.randint(0, most, (5000,), generator=generator).to(device) for most in (4, 120, 90)
    )
    numbers = cameras(device, dtype)
    actual = pixel_rays(*numbers, indices, x, y)
    assert_close(actual, pixel_rays_reference(*numbers, indices, x, y))
    assert_close(actual[1].norm(dim=1), torch.ones(5000, device=device, dtype=dtype))


@pytest.mark.parametrize("num_channels", [3, 4])
def test_colors_lie_over_their_backgrounds(device, num_channels):
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (700, num_channels), generator=generator, dtype=torch.uint8)
    if num_channels == 4:
        pixels[::3, 3], pixels[1::3, 3] = 0, 255
    drawn = torch.randint(0, 700, (3000,), generator=generator)
    background = torch.rand(3000, 3, generator=generator)
    numbers = pixels.to(device), drawn.to(device), background.to(device)
    actual = pixel_colors(*numbers)
    torch.testing.assert_close(actual, pixel_colors_reference(*numbers), rtol=1e-5, atol=1e-6)
    if num_channels == 4:  # what hides all or nothing does so to the last bit
        actual, color = actual.cpu(), pixels[drawn, :3].float() / 255
        assert torch.equal(actual[drawn % 3 == 0], background[drawn % 3 == 0])
        assert torch.equal(actual[drawn % 3 == 1], color[drawn % 3 == 1])


def test_the_middle_pixel_looks_at_the_target(device, assert_close):
    poses, lens = cameras(device, torch.float64)
    lens[:, 2], lens[:, 3] = 30.5, 20.5
    rows = torch.arange(4, device=device)
    middle = torch.full_like(rows, 30), torch.full_like(rows, 20)
    origins, directions = pixel_rays(poses, lens, rows, *middle)
    assert_close(directions, -origins / origins.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("leaf", [0, 1])
def test_gradients_reach_cameras(device, leaf):
    numbers = list(cameras(device, torch.float64))
    numbers[leaf].requires_grad_()
    rows = torch.arange(4, device=device)
    assert torch.autograd.gradcheck(
        lambda _: pixel_rays(*numbers, rows, rows * 9, rows * 5), numbers[leaf]
    )
