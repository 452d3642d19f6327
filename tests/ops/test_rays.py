"""Pixels and rays through them: against the references, and through what a camera looks at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.cameras import look_at
from nerftrain.ops.rays import (
    draw_pixels,
    draw_pixels_reference,
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


@pytest.mark.parametrize("num_rays", [0, 1, 5000])
@pytest.mark.parametrize("before", [-7, 0, 3 * 2**31 + 5])
@pytest.mark.parametrize("live", [None, torch.int32, torch.int64, 0])
def test_pixels_are_drawn_as_by_torch(device, num_rays, before, live):
    width, height, total = 7, 5, 140
    pixels = None
    if live is not None:
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randperm(140, generator=generator)[: 60 if live else 0]
        pixels, total = pixels.to(device, live or torch.int32), len(pixels) or 1
    numbers = torch.tensor(before, device=device), num_rays, total, 37, pixels, width, height
    actual, expected = draw_pixels(*numbers), draw_pixels_reference(*numbers)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.int64
        assert a.shape == (num_rays,)
        assert torch.equal(a, e)
    these, cameras, x, y = actual
    assert torch.equal(these, (cameras * height + y) * width + x)
    assert ((x >= 0) & (x < width) & (y >= 0) & (y < height)).all()
    if num_rays >= total and not live:
        assert len(these.unique()) == total


def test_more_pixels_than_a_tensor_of_them_could_hold_here_are_drawn_from(device):
    total = 3_000_000_019
    numbers = torch.tensor(total - 2, device=device), 9, total, 1_854_101_978, None, 60_000, 40_000
    actual = draw_pixels(*numbers)
    assert torch.equal(torch.stack(actual), torch.stack(draw_pixels_reference(*numbers)))
    assert int(actual[1].max()) == 1


@pytest.mark.parametrize(
    ("numbers", "pixels", "size"),
    [
        ((0, 1), 0, (4, 3)),
        ((12, 0), 0, (4, 3)),
        ((2**40, 2**30), 0, (4, 3)),
        ((12, 5), 11, (4, 3)),
        ((12, 5), 0, (0, 3)),
        ((12, 5), 0, (4, 0)),
    ],
)
def test_what_would_divide_by_zero_or_read_elsewhere_is_refused(device, numbers, pixels, size):
    drawn = torch.zeros((), dtype=torch.int64, device=device)
    inputs = torch.zeros(pixels, dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError, match="draw_pixels: "):
        draw_pixels(drawn, 5, *numbers, inputs, *size)


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
