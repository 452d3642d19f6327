"""What callers give: shapes are checked on every device, what tensors hold on the CPU alone."""

from __future__ import annotations

import pytest
import torch

from nerftrain.checks import (
    check_background,
    check_packed_info,
    check_ray_indices,
    check_ray_range,
    check_shape,
)
from nerftrain.errors import UserError


def test_a_shape_is_told_with_the_one_that_is_needed():
    check_shape("x", torch.zeros(4, 3), ("R", 3))
    with pytest.raises(UserError, match=r"^x has shape \[4, 2\], must be \[R, 3\]: transpose it$"):
        check_shape("x", torch.zeros(4, 2), ("R", 3), "transpose it")
    with pytest.raises(UserError, match=r"\[4\], must be \[4, 1\]$"):
        check_shape("x", torch.zeros(4), (4, 1))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (1, 3), (5, 1), ()])
def test_backgrounds_are_one_colour_or_one_of_each_ray(shape):
    check_background(torch.zeros(shape), 5)


@pytest.mark.parametrize("shape", [(4, 3), (5,), (5, 4), (0, 3), (1, 5, 3)])
def test_other_backgrounds_are_refused(shape):
    with pytest.raises(UserError, match=r"must be \[5, 3\]: or give one colour"):
        check_background(torch.zeros(shape), 5)


@pytest.mark.parametrize(
    ("indices", "num_rays", "line"),
    [
        ([-1, 0], 2, "run from -1 to 0, but n_rays is 2"),
        ([0, 2], 2, "run from 0 to 2, but n_rays is 2"),
        ([-1], None, "counted from 0"),
        ([1, 0, 1], 2, "in no order"),
        ([0], 0, "n_rays is 0"),
        ([[0]], 1, r"integers of shape \[N\]"),
        ([0.0], 1, r"integers of shape \[N\]"),
    ],
)
def test_indices_of_no_rays_are_refused(indices, num_rays, line):
    with pytest.raises(UserError, match=line):
        check_ray_indices(torch.tensor(indices), num_rays)


@pytest.mark.parametrize("num_rays", [None, 0, 3])
def test_no_indices_are_of_any_rays(num_rays):
    check_ray_indices(torch.zeros(0, dtype=torch.int32), num_rays)
    check_ray_range(torch.zeros(0, dtype=torch.int64), num_rays)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("chunks", "line"),
    [
        ([[0, 2], [2, 4]], "gives ray 1 4 values from 2 on, but there are 5 of all rays: make it"),
        ([[6, 1]], "ray 0 1 values from 6"),
        ([[-1, 2]], "2 values from -1"),
        ([[3, -1]], "-1 values from 3"),
        ([[1, 2**31 - 1]], "ray 0"),
    ],
)
def test_chunks_beyond_the_values_are_refused(chunks, line, dtype):
    with pytest.raises(UserError, match=line):
        check_packed_info(torch.tensor(chunks, dtype=dtype), 5)


def test_chunks_may_leave_gaps_and_be_empty_anywhere():
    check_packed_info(torch.tensor([[3, 2], [0, 2], [5, 0], [9, 0]]), 5)
    check_packed_info(torch.zeros(0, 2, dtype=torch.int64), 0)


def test_nobody_waits_for_another_device():
    """What a tensor holds cannot be read here: to look at it is an error."""
    elsewhere = torch.empty(4, 2, dtype=torch.int64, device="meta")
    check_packed_info(elsewhere, 1)
    check_ray_indices(elsewhere[:, 0], 1)
    with pytest.raises(UserError, match="packed_info has shape"):
        check_packed_info(elsewhere[:, 0], 1)
