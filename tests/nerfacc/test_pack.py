"""Chunks of rays from the ray indices of samples."""

from __future__ import annotations

import pytest
import torch

from nerftrain.errors import UserError
from nerftrain.nerfacc import RayIntervals, RaySamples, pack_info


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_chunks_start_where_the_ray_before_ends(device, dtype):
    rays = torch.tensor([1, 1, 2, 4, 4, 4], dtype=dtype, device=device)
    packed = pack_info(rays, n_rays=6)
    assert packed.tolist() == [[0, 0], [0, 2], [2, 1], [3, 0], [3, 3], [6, 0]]
    assert packed.dtype == dtype
    assert packed.device == rays.device


def test_without_a_number_the_last_ray_with_a_sample_is_the_last(device):
    rays = torch.tensor([0, 0, 3], device=device)
    assert pack_info(rays).tolist() == [[0, 2], [2, 0], [2, 0], [2, 1]]


@pytest.mark.parametrize(("n_rays", "rows"), [(None, 0), (0, 0), (3, 3)])
def test_no_samples_make_empty_chunks(device, n_rays, rows):
    packed = pack_info(torch.zeros(0, dtype=torch.int64, device=device), n_rays)
    assert packed.tolist() == [[0, 0]] * rows
    assert packed.shape == (rows, 2)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3)])
def test_what_are_no_indices_is_refused(wrong):
    with pytest.raises(UserError, match=r"integers of shape \[N\]"):
        pack_info(wrong)


def test_values_along_rays_know_their_device_and_take_fields_in_nerfaccs_order(device):
    vals, packed, rays, flags = (torch.zeros(2, device=device) for _ in range(4))
    samples = RaySamples(vals, packed, rays, flags)
    assert samples.packed_info is packed
    assert samples.ray_indices is rays
    assert samples.is_valid is flags
    intervals = RayIntervals(vals, packed, rays, flags, packed)
    assert intervals.is_left is flags
    assert intervals.is_right is packed
    assert samples.device == intervals.device == vals.device
    assert RaySamples(vals).packed_info is None


@pytest.mark.parametrize(
    ("rays", "n_rays", "line"),
    [
        ([-1, 0], 2, "run from -1 to 0, but n_rays is 2"),
        ([0, 2], 2, "run from 0 to 2, but n_rays is 2"),
        ([-1, 0], None, "run from -1 to 0"),
        ([1, 0], 2, "in no order"),
    ],
)
def test_indices_of_no_rays_are_refused_on_the_cpu(rays, n_rays, line):
    with pytest.raises(UserError, match=line):
        pack_info(torch.tensor(rays), n_rays)
