"""Scans within chunks and sums over rays: against loops, in any order, at zeros and at gaps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops.scan import (
    ray_offsets,
    ray_offsets_reference,
    scan_prod,
    scan_prod_reference,
    scan_sum,
    scan_sum_reference,
    sum_along_rays,
    sum_along_rays_reference,
)

SCANS = [
    *[("sum", i, r) for i in (False, True) for r in (False, True)],
    *[("prod", i, False) for i in (False, True)],
]


def scan(values: Tensor, starts: Tensor, counts: Tensor, kind: tuple, suffix: str = "") -> Tensor:
    name, inclusive, reverse = kind
    if name == "prod":
        function = scan_prod_reference if suffix else scan_prod
        return function(values, starts, counts, inclusive)
    function = scan_sum_reference if suffix else scan_sum
    return function(values, starts, counts, inclusive, reverse)


def by_loops(values: list, starts: list, counts: list, kind: tuple) -> list:
    name, inclusive, reverse = kind
    out = [0.0] * len(values)
    for start, count in zip(starts, counts, strict=True):
        total = 1.0 if name == "prod" else 0.0
        places = range(start, start + count)
        for i in reversed(places) if reverse else places:
            before = total
            total = total * values[i] if name == "prod" else total + values[i]
            out[i] = total if inclusive else before
    return out


@pytest.fixture
def chunks(device) -> tuple[Tensor, Tensor]:
    """Random chunks out of order, many empty, with gaps, over 400 values."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 12, (40,), generator=generator)
    counts[::4] = 0
    gaps = torch.randint(0, 3, (40,), generator=generator)
    starts = (counts + gaps).cumsum(0) - counts
    order = torch.randperm(40, generator=generator)
    return starts[order].to(device), counts[order].to(device)


@pytest.fixture
def values(device, dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(400, generator=generator, dtype=torch.float64) * 2 - 0.5
    values[::7] = 0
    values[1::21] = 0  # two zeros in one chunk, one beside the other
    return values.to(device, dtype)


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("suffix", ["", "_reference"])
def test_scans_are_what_loops_find(values, chunks, assert_close, kind, suffix):
    expected = by_loops(values.tolist(), *(c.tolist() for c in chunks), kind)
    out = scan(values, *chunks, kind, suffix)
    assert_close(out, torch.tensor(expected, dtype=torch.float64).to(out))


@pytest.mark.parametrize("kind", SCANS)
def test_scans_equal_their_references_forward_and_backward(values, chunks, assert_close, kind):
    v = torch.randn(400, generator=torch.Generator().manual_seed(2)).to(values)
    results = []
    for suffix in ("", "_reference"):
        at = values.clone().requires_grad_()
        out = scan(at, *chunks, kind, suffix)
        results.append((out, *torch.autograd.grad(out, at, v)))
    assert_close(*results)


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("zeros", [[], [0], [2], [4], [1, 3], [0, 1, 2, 3, 4]])
def test_gradients_are_exact_with_any_zeros(device, kind, zeros):
    values = torch.tensor([0.5, -1.5, 2.0, 0.7, 1.1, 0.3, 0.9], dtype=torch.float64, device=device)
    values[zeros] = 0
    starts, counts = (torch.tensor(x, device=device) for x in ([5, 0], [2, 5]))
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scan(x, starts, counts, kind), values)


def test_sums_can_be_differentiated_twice(values, chunks):
    at = values[:150].double().requires_grad_()
    starts, counts = chunks[0][:9] % 100, chunks[1][:9] * 0 + 3
    starts = starts.sort().values + torch.arange(9, device=starts.device) * 3
    assert torch.autograd.gradgradcheck(lambda x: scan_sum(x.square(), starts, counts, False), at)


def test_what_no_chunk_owns_gives_zero_and_has_no_gradient(device, dtype):
    values = torch.full((6,), 3.0, dtype=dtype, device=device, requires_grad=True)
    starts, counts = (torch.tensor(x, device=device) for x in ([4, 1], [1, 2]))
    for kind in SCANS:
        out = scan(values, starts, counts, kind)
        (v,) = torch.autograd.grad(out, values, torch.ones_like(out))
        assert (out[[0, 3, 5]] == 0).all()
        assert (v[[0, 3, 5]] == 0).all()


@pytest.mark.parametrize("suffix", ["", "_reference"])
@pytest.mark.parametrize("kind", SCANS)
def test_chunks_beyond_the_values_are_cut(device, dtype, kind, suffix):
    values = torch.tensor([2.0, 3.0, 5.0], dtype=dtype, device=device)
    big = 2**62
    starts, counts = (torch.tensor(x, device=device) for x in ([1, 3, 7, big], [big, 4, 2, -big]))
    out = scan(values, starts, counts, kind, suffix)
    expected = by_loops([2.0, 3.0, 5.0], [1], [2], kind)
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64).to(out))


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("suffix", ["", "_reference"])
@pytest.mark.parametrize("num_chunks", [0, 3])
def test_nothing_gives_nothing(device, dtype, kind, suffix, num_chunks):
    values = torch.zeros(0, dtype=dtype, device=device, requires_grad=True)
    none = torch.zeros(num_chunks, dtype=torch.int64, device=device)
    out = scan(values, none, none, kind, suffix)
    (v,) = torch.autograd.grad(out.sum(), values)
    assert out.shape == v.shape == (0,)


def test_scans_of_matrices_are_refused(device):
    none = torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(UserError, match="flatten"):
        scan_sum(torch.zeros(2, 3, device=device), none, none)


def test_other_types_and_strides_are_taken(device):
    values = torch.arange(12, device=device).half()[::2]
    starts, counts = torch.tensor([[0, 2], [2, 4]], dtype=torch.int32, device=device).unbind(1)
    out = scan_sum(values, starts, counts)
    assert out.dtype == torch.float32
    assert out.tolist() == [0, 2, 4, 10, 18, 28]


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("num_columns", [0, 1, 3])
def test_sums_along_rays_equal_their_reference(device, dtype, assert_close, sort, num_columns):
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(500, num_columns, generator=generator).to(device, dtype)
    rays = torch.randint(1, 38, (500,), generator=generator)  # the first and the last are empty
    rays = (rays.sort().values if sort else rays).to(device)
    v = torch.randn(40, num_columns, generator=generator).to(values)
    results = []
    for function in (sum_along_rays, sum_along_rays_reference):
        at = values.clone().requires_grad_()
        out = function(at, rays, 40)
        results.append((out, *torch.autograd.grad(out, at, v)))
    assert_close(*results)
    assert (results[0][0][[0, 39]] == 0).all()


def test_sums_along_rays_do_not_depend_on_other_rays_or_on_threads(device, threads):
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(20000, 3, generator=generator).to(device)
    rays = torch.randint(0, 3000, (20000,), generator=generator).sort().values.to(device)
    threads(1)
    alone = sum_along_rays(values, rays, 3000)
    threads(2)
    assert torch.equal(sum_along_rays(values, rays, 3000), alone)
    # Shuffled but for the order within each ray: the same bits.
    keys = torch.randperm(3000, generator=generator).to(device)[rays]
    order = keys.argsort(stable=True)
    assert not torch.equal(rays[order], rays)
    assert torch.equal(sum_along_rays(values[order], rays[order], 3000), alone)


@pytest.mark.parametrize("num_rays", [0, 4])
def test_rays_without_samples_sum_to_zeros(device, dtype, num_rays):
    values = torch.zeros(0, 3, dtype=dtype, device=device, requires_grad=True)
    rays = torch.zeros(0, dtype=torch.int64, device=device)
    out = sum_along_rays(values, rays, num_rays)
    assert out.shape == (num_rays, 3)
    assert (out == 0).all()
    assert torch.autograd.grad(out.sum(), values)[0].shape == (0, 3)


def test_a_ray_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="n_rays is 2"):
        sum_along_rays(torch.zeros(3, 1), torch.tensor([0, 1, 2]), 2)


@pytest.mark.parametrize("num_samples", [0, 1, 15, 16, 17, 200])
@pytest.mark.parametrize("num_rays", [0, 1, 7, 90, 9000])
def test_rays_begin_where_bisection_finds_them(device, num_samples, num_rays):
    generator = torch.Generator().manual_seed(0)
    for highest in (1, max(num_rays, 1), 200):  # few rays, all, and some beyond the last
        rays = torch.randint(0, highest, (num_samples,), generator=generator).sort().values
        offsets = ray_offsets(rays.to(device), num_rays)
        assert torch.equal(offsets, ray_offsets_reference(rays.to(device), num_rays))
        assert offsets.dtype == torch.int64


def test_rays_out_of_order_begin_within_the_samples(device):
    generator = torch.Generator().manual_seed(0)
    for num_rays in (50, 9000):  # the latter in ranges of their own
        rays = torch.randint(-3, num_rays + 10, (500,), generator=generator)
        offsets = ray_offsets(rays.to(device), num_rays)
        assert (offsets.diff() >= 0).all()
        assert int(offsets[0]) >= 0
        assert int(offsets[-1]) <= 500


@pytest.mark.parametrize("num_values", range(10))
def test_sums_of_chunks_of_any_length_are_those_of_torch(device, num_values):
    values = torch.arange(1.0, num_values + 1, device=device)
    whole = [torch.tensor([n], device=device) for n in (0, num_values)]
    assert torch.equal(scan_sum(values, *whole), values.cumsum(0))
    assert torch.equal(scan_sum(values, *whole, inclusive=False), values.cumsum(0) - values)
    backward = values.flip(0).cumsum(0).flip(0)
    assert torch.equal(scan_sum(values, *whole, reverse=True), backward)
