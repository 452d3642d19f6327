"""The nouns: rays and samples whose fields do not go together are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nerftrain.errors import UserError
from nerftrain.types import Rays, Samples

COLUMN = torch.ones(4)
INDICES = torch.zeros(4, dtype=torch.int64)
RAYS = Rays(torch.ones(4, 3), torch.ones(4, 3), COLUMN, COLUMN, COLUMN, INDICES)
SAMPLES = Samples(COLUMN, COLUMN, INDICES, torch.tensor([0, 4]))


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("origins", (4, 2), r"\[R, 3\]"),
        ("origins", (3,), r"\[R, 3\]"),
        ("directions", (2, 3), r"\[4, 3\]"),
        ("directions", (4, 4), r"\[4, 3\]"),
        *((name, (2,), r"\[4\]") for name in ("near", "far", "times", "cameras")),
        ("near", (4, 1), r"\[4\]"),
        ("far", (), r"\[4\]"),
    ],
)
def test_rays_of_fields_of_different_lengths_are_refused(name, shape, wanted):
    given = ", ".join(map(str, shape))
    line = rf"^rays\.{name} has shape \[{given}\], must be {wanted}"
    with pytest.raises(UserError, match=line):
        replace(RAYS, **{name: torch.ones(shape)})


@pytest.mark.parametrize("name", ["t_starts", "t_ends", "ray_indices"])
def test_samples_of_fields_of_different_lengths_are_refused(name):
    with pytest.raises(UserError, match="all fields have as many rows"):
        replace(SAMPLES, **{name: getattr(SAMPLES, name)[:2]})


def test_rays_are_taken_in_parts_and_moved():
    assert [len(part) for part in RAYS.split(3)] == [3, 1]
    assert len(RAYS[INDICES]) == len(RAYS.to("cpu")) == len(RAYS.detach()) == 4


def test_rays_in_float32_are_those_themselves():
    assert RAYS.float() is RAYS
    wide = replace(RAYS, origins=RAYS.origins.double(), far=RAYS.far.double(), times=None)
    single = wide.float()
    assert {t.dtype for t in (single.origins, single.directions, single.far)} == {torch.float32}
    assert single.times is None
    assert single.cameras is RAYS.cameras
