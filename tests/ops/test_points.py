"""Where samples lie."""

from __future__ import annotations

import pytest
import torch

from nerftrain.ops.points import (
    sample_points,
    sample_points_reference,
    unit_points,
    unit_points_reference,
)
from nerftrain.types import Rays, Samples


def rays_of(num: int, dtype: torch.dtype, device: torch.device) -> Rays:
    generator = torch.Generator().manual_seed(0)
    origins = torch.randn(num, 3, generator=generator, dtype=dtype)
    directions = torch.randn(num, 3, generator=generator, dtype=dtype)
    bounds = torch.zeros(num, dtype=dtype), torch.ones(num, dtype=dtype)
    times = torch.rand(num, generator=generator, dtype=dtype)
    return Rays(origins, directions, *bounds, times=times).to(device)


def where(samples: Samples) -> tuple[torch.Tensor, ...]:
    return samples.t_starts, samples.t_ends, samples.ray_indices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_equal_the_reference(make_samples, device, dtype):
    samples = make_samples(dtype=dtype)
    rays = rays_of(len(samples.offsets) - 1, dtype, device)
    expected = sample_points_reference(rays, *where(samples))
    for actual, wanted in zip(sample_points(rays, *where(samples)), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_no_samples_have_no_points(device):
    nothing = torch.zeros(0, device=device)
    points = sample_points(rays_of(3, torch.float32, device), nothing, nothing, nothing.long())
    assert [tuple(t.shape) for t in points] == [(0, 3), (0, 3), (0,)]


def test_gradients_reach_rays_that_ask_for_them(make_samples, device):
    samples = make_samples()
    rays = rays_of(len(samples.offsets) - 1, torch.float32, device)
    rays.origins.requires_grad_()
    sample_points(rays, *where(samples))[0].sum().backward()
    counts = samples.offsets.diff().float()
    torch.testing.assert_close(rays.origins.grad, counts[:, None].expand(-1, 3))


@pytest.mark.parametrize("contraction", ["none", "l2", "linf"])
def test_places_in_the_unit_cube_equal_the_reference(make_samples, device, dtype, contraction):
    samples = make_samples(dtype=dtype)
    rays = rays_of(len(samples.offsets) - 1, dtype, device)
    box = torch.tensor([-1.0, -0.5, -0.25, 0.5, 0.25, 1.0], dtype=dtype, device=device)
    actual = unit_points(rays, *where(samples), box, contraction)
    expected = unit_points_reference(rays, *where(samples), box, contraction)
    assert (expected > 0.75).any()  # places beyond the box, which are folded, are among them
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    if contraction != "none":
        assert bool(((actual >= 0) & (actual <= 1)).all())
