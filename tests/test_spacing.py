"""Spacing: shares and distances are inverse to each other, and each curve is the one it says."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from nerftrain.spacing import Kind, to_distance, to_share

KINDS = get_args(Kind)
NEAR, FAR = torch.tensor([0.1, 2.0, 0.05]), torch.tensor([1000.0, 6.0, 30.0])
SHARES = torch.linspace(0, 1, 33).expand(3, 33)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distances_share_is_the_one_it_was_made_of(kind: Kind):
    distances = to_distance(kind, SHARES, NEAR, FAR)
    again = to_share(kind, distances, NEAR[:, None], FAR[:, None])
    torch.testing.assert_close(again, SHARES, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_distances_ascend_from_near_to_far(kind: Kind):
    distances = to_distance(kind, SHARES, NEAR, FAR)
    assert (distances.diff(dim=1) > 0).all()
    torch.testing.assert_close(distances[:, 0], NEAR)
    torch.testing.assert_close(distances[:, -1], FAR, rtol=2e-3, atol=0)
    assert (distances <= FAR[:, None]).all()


def test_disparity_is_even_in_one_over_distance_and_power_lies_between():
    disparity = 1 / to_distance("disparity", SHARES, NEAR, FAR)
    steps = disparity.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=2e-2, atol=0)
    halfway = {kind: to_distance(kind, SHARES, NEAR, FAR)[0, 16] for kind in KINDS}
    assert halfway["disparity"] < halfway["power"] < halfway["uniform"]


@pytest.mark.parametrize("far", [1e7, 1e30, float("inf")])
def test_disparity_reaches_to_a_far_end_without_end(far):
    shares = torch.linspace(0, 1, 5)[None]
    distances = to_distance("disparity", shares, torch.tensor([0.3]), torch.tensor([far]))[0]
    torch.testing.assert_close(distances[:4], 0.3 / (1 - shares[0, :4]), rtol=1e-4, atol=0)
    assert distances[4] >= 0.99 * min(far, 1e30)
