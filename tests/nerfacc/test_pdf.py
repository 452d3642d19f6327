"""Importance sampling and searching as nerfacc has them, against plain loops in float64."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nerftrain.errors import UserError
from nerftrain.nerfacc.data_specs import RayIntervals, RaySamples
from nerftrain.nerfacc.pdf import importance_sampling, searchsorted
from nerftrain.ops import library

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
Rows = list[list[float]]


@pytest.fixture(params=DEVICES, scope="module")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True, scope="module", params=["native", "reference"])
def _mode(request: pytest.FixtureRequest) -> Iterator[None]:
    library.set_mode(request.param)
    yield
    library.set_mode("auto")


properties = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Eighths, so that values meet edges exactly and float32 holds what float64 does.
eighths = st.integers(-16, 48).map(lambda n: n / 8)


@st.composite
def sorted_rows(draw: st.DrawFn, fewest: int = 1, most_rays: int = 5) -> Rows:
    rows = st.lists(eighths, min_size=fewest, max_size=9).map(sorted)
    return draw(st.lists(rows, min_size=1, max_size=most_rays))


@st.composite
def distributions(draw: st.DrawFn) -> list[tuple[list[float], list[float]]]:
    """Edges and a cdf that rises in every bin: there is no doubt where a quantile lies."""
    rays = []
    for _ in range(draw(st.integers(1, 5))):
        num = draw(st.integers(1, 7))
        lengths = draw(st.lists(st.integers(0, 5), min_size=num, max_size=num))
        masses = draw(st.lists(st.integers(1, 9), min_size=num, max_size=num))
        start, low = draw(eighths), draw(st.integers(0, 3)) / 7
        edges, cdf = [start], [low]
        for length, mass in zip(lengths, masses, strict=True):
            edges.append(edges[-1] + length / 8)
            cdf.append(cdf[-1] + mass / 40)
        rays.append((edges, cdf))
    return rays


def packed(rows: Rows) -> dict[str, torch.Tensor]:
    counts = torch.tensor([len(row) for row in rows])
    vals = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    rays = torch.arange(len(rows)).repeat_interleave(counts)
    info = torch.stack([counts.cumsum(0) - counts, counts], 1)
    return {"vals": vals, "packed_info": info, "ray_indices": rays}


def flattened(rows: Rows, device: torch.device, *names: str, dtype=torch.float64) -> RayIntervals:
    names = ("vals", *(names or ("packed_info", "ray_indices")))
    fields = {name: packed(rows)[name].to(device) for name in names}
    return RayIntervals(**fields | {"vals": fields["vals"].to(dtype)})


def expected_samples(edges: list[float], cdf: list[float], n: int, share: float):
    """Invert one ray's distribution sample by sample, and bound the samples."""
    samples = []
    for i in range(n):
        u = cdf[0] + (i + share) / n * (cdf[-1] - cdf[0])
        bin_ = max(b for b in range(len(edges) - 1) if cdf[b] <= u or b == 0)
        along = (u - cdf[bin_]) / (cdf[bin_ + 1] - cdf[bin_])
        samples.append(edges[bin_] + along * (edges[bin_ + 1] - edges[bin_]))
    if n < 2:
        return samples, [edges[0], edges[-1]] if n else []
    inner = [(a + b) / 2 for a, b in pairwise(samples)]
    first = max(edges[0], samples[0] - (samples[1] - samples[0]) / 2)
    last = min(edges[-1], samples[-1] + (samples[-1] - samples[-2]) / 2)
    return samples, [first, *inner, last]


def close(actual: torch.Tensor, expected: list[float]) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    tolerance = 1e-9 if actual.dtype == torch.float64 else 1e-5
    actual = actual.flatten().cpu().double()
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


@properties
@given(
    rays=distributions(), n=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_equal_counts_give_rows_where_quantiles_lie(device, rays, n, dtype):
    intervals = flattened([edges for edges, _ in rays], device, dtype=dtype)
    cdfs = flattened([cdf for _, cdf in rays], device, dtype=dtype).vals
    bounds, samples = importance_sampling(intervals, cdfs, n)
    assert bounds.vals.shape == (len(rays), n + 1)
    assert samples.vals.shape == (len(rays), n)
    assert bounds.vals.dtype == samples.vals.dtype == dtype
    assert bounds.packed_info is None
    wanted = [expected_samples(*ray, n, 0.5) for ray in rays]
    close(samples.vals, [t for ts, _ in wanted for t in ts])
    close(bounds.vals, [b for _, bs in wanted for b in bs])


@properties
@given(rays=distributions(), data=st.data())
def test_counts_of_each_ray_give_flattened_intervals_that_say_whose_they_are(device, rays, data):
    counts = data.draw(st.lists(st.integers(0, 6), min_size=len(rays), max_size=len(rays)))
    intervals = flattened([edges for edges, _ in rays], device)
    cdfs = flattened([cdf for _, cdf in rays], device).vals
    number = torch.tensor(counts, dtype=torch.int32, device=device)
    bounds, samples = importance_sampling(intervals, cdfs, number)
    wanted = [expected_samples(*ray, n, 0.5) for ray, n in zip(rays, counts, strict=True)]
    close(samples.vals, [t for ts, _ in wanted for t in ts])
    close(bounds.vals, [b for _, bs in wanted for b in bs])
    for found, rows in ((samples, [ts for ts, _ in wanted]), (bounds, [bs for _, bs in wanted])):
        assert torch.equal(found.packed_info.cpu(), packed(rows)["packed_info"])
        assert torch.equal(found.ray_indices.cpu(), packed(rows)["ray_indices"])
    left = [True] * len(bounds.vals)
    right = [True] * len(bounds.vals)
    for start, count in bounds.packed_info.tolist():
        if count:
            right[start] = left[start + count - 1] = False
    assert bounds.is_left.tolist() == left
    assert bounds.is_right.tolist() == right


@properties
@given(rays=distributions(), n=st.integers(1, 6), seed=st.integers(0, 99))
def test_stratified_samples_move_by_one_share_per_ray(device, rays, n, seed):
    """One number of torch's generator per ray, so a seed gives the same samples again."""
    intervals = flattened([edges for edges, _ in rays], device)
    cdfs = flattened([cdf for _, cdf in rays], device).vals
    torch.manual_seed(seed)
    _, samples = importance_sampling(intervals, cdfs, n, stratified=True)
    torch.manual_seed(seed)
    shares = torch.rand(len(rays), dtype=torch.float64, device=device).tolist()
    wanted = [expected_samples(*ray, n, share)[0] for ray, share in zip(rays, shares, strict=True)]
    close(samples.vals, [t for ts in wanted for t in ts])


def test_batched_edges_give_what_the_same_edges_flattened_give(device):
    vals = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)).sort(1)[0].to(device)
    cdfs = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)).sort(1)[0].to(device)
    rows = flattened(vals.tolist(), device, dtype=torch.float32)
    few = torch.tensor([0, 3, 1, 0, 7, 2], device=device)
    for n in (5, few):
        ours, theirs = (
            importance_sampling(t, cdfs.flatten(), n) for t in (RayIntervals(vals), rows)
        )
        assert torch.equal(ours[0].vals, theirs[0].vals)
        assert torch.equal(ours[1].vals, theirs[1].vals)
    deep = importance_sampling(RayIntervals(vals.view(2, 3, 9)), cdfs.view(2, 3, 9), 5)
    assert deep[0].vals.shape == (2, 3, 6)
    assert torch.equal(deep[1].vals.view(6, 5), importance_sampling(rows, cdfs, 5)[1].vals)


def test_the_published_example(device):
    intervals = RayIntervals(
        torch.tensor([0.0, 1.0, 0.0, 1.0, 2.0], device=device),
        packed_info=torch.tensor([[0, 2], [2, 3]], device=device),
    )
    cdfs = torch.tensor([0.0, 0.5, 0.0, 0.5, 1.0], device=device)
    bounds, samples = importance_sampling(intervals, cdfs, 2)
    assert bounds.vals.tolist() == [[0.0, 0.5, 1.0], [0.0, 1.0, 2.0]]
    assert samples.vals.tolist() == [[0.25, 0.75], [0.5, 1.5]]


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_a_cdf_that_does_not_rise_is_sampled_evenly_over_its_bins(device, level):
    vals = torch.tensor([[0.0, 1.0, 3.0]], device=device)
    bounds, samples = importance_sampling(RayIntervals(vals), torch.full_like(vals, level), 4)
    assert samples.vals.tolist() == [[0.25, 0.75, 1.5, 2.5]]
    assert bounds.vals.tolist() == [[0.0, 0.5, 1.125, 2.0, 3.0]]


def test_a_bin_without_mass_gets_no_sample(device):
    vals = torch.tensor([[0.0, 1.0, 2.0, 3.0]], device=device)
    cdfs = torch.tensor([[0.0, 0.5, 0.5, 1.0]], device=device)
    samples = importance_sampling(RayIntervals(vals), cdfs, 40)[1].vals
    assert not ((samples > 1) & (samples < 2)).any()
    # The quantile at which the distribution pauses is where it goes on.
    assert importance_sampling(RayIntervals(vals), cdfs, 1)[1].vals.tolist() == [[2.0]]


@properties
@given(seed=st.integers(0, 10_000), num=st.integers(2, 40), n=st.integers(1, 80))
def test_samples_ascend_within_their_intervals_and_these_within_the_ray(device, seed, num, n):
    """Whatever the cdf, of rounding errors too: with bins of no length, no mass and tiny mass."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(2, 7, num, generator=generator) ** 9 * 1e-3
    steps = steps * (torch.rand(2, 7, num, generator=generator) < 0.6)
    vals, cdfs = (steps.cumsum(2) + 1).to(device)
    bounds, samples = importance_sampling(RayIntervals(vals), cdfs, n, stratified=True)
    t, b = samples.vals, bounds.vals
    assert (t.diff(dim=1) >= 0).all()
    assert (b[:, :-1] <= t).all()
    assert (t <= b[:, 1:]).all()
    assert (b[:, 0] >= vals[:, 0]).all()
    assert (b[:, -1] <= vals[:, -1]).all()


def test_no_rays_have_no_samples_and_no_gradient_flows(device):
    vals = torch.zeros(0, 4, device=device)
    bounds, samples = importance_sampling(RayIntervals(vals), vals, 5)
    assert bounds.vals.shape == (0, 6)
    assert samples.vals.shape == (0, 5)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    bounds, samples = importance_sampling(RayIntervals(vals), vals, none)
    assert bounds.vals.shape == bounds.is_left.shape == samples.ray_indices.shape == (0,)
    assert bounds.packed_info.shape == (0, 2)
    cdfs = torch.tensor([[0.0, 0.2, 1.0]], device=device).requires_grad_()
    intervals = RayIntervals(torch.tensor([[0.0, 1.0, 2.0]], device=device))
    assert not importance_sampling(intervals, cdfs, 3)[1].vals.requires_grad


def test_half_precision_is_sampled_in_float32(device):
    vals = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float16, device=device)
    samples = importance_sampling(RayIntervals(vals), vals, 4)[1].vals
    assert samples.dtype == torch.float32
    assert samples.tolist() == [[0.25, 0.75, 1.25, 1.75]]


@pytest.mark.parametrize(
    ("n", "line"),
    [
        (0, "must be at least 1"),
        (torch.tensor([1, 2]), "one for each of 1 rays"),
        (torch.tensor([-1]), "negative"),
    ],
)
def test_counts_that_cannot_be_are_refused(n, line):
    vals = torch.tensor([[0.0, 1.0]])
    with pytest.raises(UserError, match=line):
        importance_sampling(RayIntervals(vals), vals, n)
    with pytest.raises(UserError, match="as many as edges"):
        importance_sampling(RayIntervals(vals), vals[:, :1], 1)


# ------------------------------------------------------------------------------------- searching


def expected_ids(keys: list[float], value: float) -> tuple[int, int]:
    right = bisect.bisect_right(keys, value)
    return max(min(right - 1, len(keys) - 2), 0), min(right, len(keys) - 1)


@properties
@given(keys=sorted_rows(), data=st.data(), known=st.sampled_from(["packed_info", "ray_indices"]))
def test_flattened_values_are_found_among_their_rays_keys(device, keys, data, known):
    rows = st.lists(eighths, max_size=6)
    values = data.draw(st.lists(rows, min_size=len(keys), max_size=len(keys)))
    found = searchsorted(flattened(keys, device), flattened(values, device, known))
    wanted, start = [], 0
    for row, among in zip(values, keys, strict=True):
        wanted += [tuple(start + i for i in expected_ids(among, value)) for value in row]
        start += len(among)
    assert list(zip(*(ids.tolist() for ids in found), strict=True)) == wanted
    assert all(ids.dtype == torch.int64 for ids in found)


@properties
@given(keys=sorted_rows(), data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_batched_values_are_found_relative_to_their_rays_first_key(device, keys, data, dtype):
    rows = st.lists(eighths, min_size=4, max_size=4)
    values = data.draw(st.lists(rows, min_size=len(keys), max_size=len(keys)))
    batched = RaySamples(torch.tensor(values, dtype=dtype, device=device))
    left, right = searchsorted(flattened(keys, device), batched)
    wanted = [[expected_ids(k, v) for v in row] for k, row in zip(keys, values, strict=True)]
    assert left.tolist() == [[i for i, _ in row] for row in wanted]
    assert right.tolist() == [[i for _, i in row] for row in wanted]


def test_batched_keys_serve_both_kinds_of_values(device):
    keys = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)).sort(1)[0].to(device)
    values = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)).to(device)
    relative = searchsorted(RayIntervals(keys), RaySamples(values))
    flat = flattened(values.tolist(), device, dtype=torch.float32)
    absolute = searchsorted(RayIntervals(keys), flat)
    for ours, theirs in zip(relative, absolute, strict=True):
        base = torch.arange(5, device=device)[:, None] * 7
        assert torch.equal((ours + base).flatten(), theirs)
    inside = (values >= keys[:, :1]) & (values < keys[:, -1:])
    assert inside.any()
    assert (keys.gather(1, relative[0]) <= values)[inside].all()
    assert (values < keys.gather(1, relative[1]))[inside].all()


def test_the_published_example_of_searching(device):
    keys = flattened([[0.0, 1.0], [0.0, 1.0, 2.0]], device, "packed_info")
    values = flattened([[0.5], [1.5, 2.5]], device, "packed_info")
    left, right = searchsorted(keys, values)
    assert left.tolist() == [0, 3, 3]
    assert right.tolist() == [1, 4, 4]


def test_rays_without_keys_are_survived(device):
    keys, values = [[0.0, 1.0], [], []], [[0.5], [0.5], [0.5]]
    left, right = searchsorted(flattened(keys, device), flattened(values, device))
    assert left[0] == 0
    assert right[0] == 1
    assert (left >= 0).all()
    assert (right < 2).all()


def test_what_belongs_to_no_ray_or_to_others_is_refused(device):
    three, two = (RayIntervals(torch.zeros(n, 2, device=device)) for n in (3, 2))
    with pytest.raises(UserError, match="of 3 rays and values of 2"):
        searchsorted(three, two)
    with pytest.raises(UserError, match="packed_info or ray_indices"):
        searchsorted(RayIntervals(torch.zeros(4, device=device)), two)


# Of six edges and two rays, on the CPU: what tensors hold is not looked at elsewhere.
@pytest.mark.parametrize(
    ("whose", "line"),
    [
        ({"packed_info": [[0, 3], [3, 60]]}, "gives ray 1 60 values from 3 on, but there are 6"),
        ({"packed_info": [[-3, 3], [3, 3]]}, "gives ray 0 3 values from -3"),
        ({"packed_info": [0, 6]}, "packed_info has shape"),
        ({"ray_indices": [-1, 0, 0, 1, 1, 1]}, "run from -1 to 1"),
        ({"ray_indices": [0, 0, 0, 1, 1, 2]}, "rays"),
        ({"ray_indices": [1, 1, 1, 0, 0, 0]}, "in no order"),
        ({"ray_indices": [0, 0, 1]}, r"ray_indices has shape \[3\], must be \[6\]"),
        ({"ray_indices": [0.0] * 6}, r"integers of shape \[N\]"),
    ],
)
def test_rays_that_do_not_own_the_values_are_refused(whose, line):
    edges = torch.linspace(0, 1, 3).repeat(2)
    wrong = RayIntervals(edges, **{name: torch.tensor(held) for name, held in whose.items()})
    right = RayIntervals(edges.view(2, 3))
    for keys, values in ((wrong, right), (right, wrong)):
        with pytest.raises(UserError, match=line):
            searchsorted(keys, values)
    with pytest.raises(UserError, match=line):
        importance_sampling(wrong, edges, torch.tensor([4, 4]))
