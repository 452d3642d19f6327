"""Spherical harmonics: against the reference, and as the orthonormal functions that they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops.spherical_harmonics import spherical_harmonics, spherical_harmonics_reference


@pytest.fixture
def directions(device, dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    random = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=1)
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    return torch.cat([axes, random]).to(device, dtype)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_spherical_harmonics_equal_their_reference_forward_and_backward(
    directions, assert_close, degree
):
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(len(directions), degree**2, generator=generator).to(directions)
    results = []
    for function in (spherical_harmonics, spherical_harmonics_reference):
        at = directions.clone().requires_grad_()
        # Degree 1 is constant: the reference has no graph.
        out = function(at, degree) + 0 * at.sum()
        results.append((out, *torch.autograd.grad(out, at, v)))
    assert_close(*results)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_gradients_to_directions_are_exact(device, degree):
    generator = torch.Generator().manual_seed(2)
    at = torch.randn(6, 3, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: spherical_harmonics(d, degree), at)


def test_they_are_orthonormal_on_the_sphere(device):
    heights, weights = np.polynomial.legendre.leggauss(8)  # exact for the products' degree, 6
    azimuths = np.arange(16) * (2 * math.pi / 16)
    z, azimuth = (torch.tensor(g.ravel()) for g in np.meshgrid(heights, azimuths, indexing="ij"))
    radius = (1 - z * z).sqrt()
    points = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z], 1).to(device)
    areas = torch.tensor(weights).repeat_interleave(16).to(device) * (2 * math.pi / 16)
    values = spherical_harmonics(points, 4)
    products = values.T @ (areas[:, None] * values)
    torch.testing.assert_close(products, torch.eye(16).to(products), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_lower_degrees_are_the_first_of_the_higher(directions, degree):
    whole = spherical_harmonics(directions, 4)
    assert torch.equal(spherical_harmonics(directions, degree), whole[:, : degree**2])


def test_no_directions_give_no_rows_and_strided_ones_the_same(directions, assert_close):
    assert spherical_harmonics(directions[:0], 4).shape == (0, 16)
    strided = directions.t().contiguous().t()
    assert not strided.is_contiguous()
    assert_close(spherical_harmonics(strided, 4), spherical_harmonics(directions, 4))


@pytest.mark.parametrize("degree", [-1, 0, 5])
def test_a_degree_that_is_not_there_is_refused(directions, degree):
    with pytest.raises(UserError, match=f"sh_degree={degree}: choose 1, 2, 3 or 4"):
        spherical_harmonics(directions, degree)
