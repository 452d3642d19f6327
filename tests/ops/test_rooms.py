"""Buffers of a fixed size: which rays have room, where their samples begin, what was there."""

from __future__ import annotations

import pytest
import torch

from nerftrain.ops.rooms import fit, fit_reference
from nerftrain.ops.visit import gather_rows


@pytest.mark.parametrize("room", [0, 5, 100, 10_000])
def test_rays_are_taken_in_their_order_until_one_does_not_fit(device, room):
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (300,), generator=generator).to(device)
    offsets, whole = fit(counts, room)
    for actual, expected in zip((offsets, whole), fit_reference(counts, room), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    assert int(offsets[-1]) <= room
    assert torch.equal(offsets.diff(), torch.where(whole, counts, 0))
    last = int(whole.sum())
    assert whole[:last].all()
    assert last == len(counts) or int(counts[: last + 1].sum()) > room


def test_no_rays_have_no_samples(device):
    offsets, whole = fit(torch.zeros(0, dtype=torch.int64, device=device), 7)
    assert offsets.tolist() == [0]
    assert len(whole) == 0


@pytest.mark.parametrize("width", [3, 4, 32])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_rows_are_gathered(device, width, kind):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(50, 2 * width, generator=generator).to(device, kind)
    rows = torch.randint(50, (77,), generator=generator).to(device)
    assert torch.equal(gather_rows(numbers, rows), numbers[rows])
    split = len(numbers) // 3
    assert torch.equal(gather_rows(numbers[:split], rows, numbers[split:]), numbers[rows])
    assert gather_rows(numbers, rows[:0]).shape == (0, 2 * width)
