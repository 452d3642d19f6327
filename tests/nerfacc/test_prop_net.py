"""Proposal networks as nerfacc has them: what is sampled, what is learnt, and by whom."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nerftrain.errors import UserError
from nerftrain.nerfacc.data_specs import RayIntervals
from nerftrain.nerfacc.estimators.base import AbstractEstimator
from nerftrain.nerfacc.estimators.prop_net import (
    PropNetEstimator,
    get_proposal_requires_grad_fn,
    pdf_loss,
)
from nerftrain.ops import library

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RADIUS = 0.5


@pytest.fixture(params=DEVICES, scope="module")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True, scope="module")
def _compiled_ops() -> Iterator[None]:
    library.set_mode("native")
    yield
    library.set_mode("auto")


properties = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def fog(starts: Tensor, ends: Tensor) -> Tensor:
    """A density that rises with distance."""
    return (starts + ends) / 2


def transmittance(sigmas: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    depths = (sigmas * (ends - starts)).cumsum(1)
    return torch.cat([torch.ones_like(depths[:, :1]), (-depths[:, :-1]).exp()], 1)


# -------------------------------------------------------------------------------------- sampling


def distances(kind: str, shares: list[float], near: float, far: float) -> list[float]:
    if kind == "uniform":
        return [near + s * (far - near) for s in shares]
    return [1 / (s / far + (1 - s) / near) for s in shares]


def invert(edges: list[float], cdf: list[float], n: int) -> list[float]:
    """Bound n intervals about the quantiles of one ray's distribution."""
    samples = []
    for i in range(n):
        u = cdf[0] + (i + 0.5) / n * (cdf[-1] - cdf[0])
        bin_ = min(max(bisect.bisect_right(cdf, u) - 1, 0), len(edges) - 2)
        along = (u - cdf[bin_]) / (cdf[bin_ + 1] - cdf[bin_])
        samples.append(edges[bin_] + along * (edges[bin_ + 1] - edges[bin_]))
    if n == 1:
        return [edges[0], edges[-1]]
    first = max(edges[0], 1.5 * samples[0] - 0.5 * samples[1])
    last = min(edges[-1], 1.5 * samples[-1] - 0.5 * samples[-2])
    return [first, *((a + b) / 2 for a, b in pairwise(samples)), last]


@properties
@given(
    kind=st.sampled_from(["uniform", "lindisp"]),
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    near=st.floats(0.2, 2),
    length=st.floats(0.5, 8),
)
def test_levels_are_drawn_where_the_former_one_found_mass(device, kind, counts, near, length):
    far = near + length
    shares, cdf = [0.0, 1.0], [0.0, 1.0]
    for level, count in enumerate(counts):
        shares = invert(shares, cdf, count)
        t = distances(kind, shares, near, far)
        if level < len(counts) - 1:
            depth, cdf = 0.0, []
            for start, end in pairwise(t):
                cdf.append(1 - math.exp(-depth))
                depth += (start + end) / 2 * (end - start)
            cdf.append(1.0)
    *few, last = counts
    functions: list[Callable] = [fog] * len(few)
    starts, ends = (
        PropNetEstimator()
        .to(device)
        .sampling(functions, few, last, 3, near, far, sampling_type=kind)
    )
    assert starts.shape == ends.shape == (3, last)
    wanted = torch.tensor(t, device=device).expand(3, -1)
    torch.testing.assert_close(starts, wanted[:, :-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ends, wanted[:, 1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["uniform", "lindisp"])
def test_planes_may_be_numbers_or_tensors_of_each_ray(device, kind):
    estimator = PropNetEstimator().to(device)
    near = torch.tensor([0.5, 1.0, 2.0, 0.1], device=device)
    far = torch.tensor([4.0, 8.0, 3.0, 9.0], device=device)
    flat = torch.stack(estimator.sampling([fog], [8], 7, 4, near, far, kind))
    column = estimator.sampling([fog], [8], 7, 4, near[:, None], far[:, None], kind)
    assert torch.equal(flat, torch.stack(column))
    for ray in range(4):
        planes = near[ray].item(), far[ray].item()
        alone = torch.stack(estimator.sampling([fog], [8], 7, 1, *planes, kind))
        torch.testing.assert_close(flat[:, ray : ray + 1], alone)
        single = estimator.sampling([fog], [8], 7, 1, near[ray], far[ray], kind)
        torch.testing.assert_close(torch.stack(single), alone)


def test_disparity_reaches_infinity(device):
    estimator = PropNetEstimator().to(device)
    starts, ends = estimator.sampling([], [], 4, 1, 1.0, math.inf)
    torch.testing.assert_close(starts[0], torch.tensor([1.0, 4 / 3, 2.0, 4.0], device=device))
    assert ends[0, -1] > 7
    starts, ends = estimator.sampling([], [], 1, 1, 0.05, math.inf)
    assert starts.item() == pytest.approx(0.05)
    assert ends.item() == math.inf
    assert estimator.sampling([], [], 1, 1, 0.1, 1e12)[1].item() == pytest.approx(1e12)


def test_stratified_samples_differ_from_ray_to_ray_and_repeat_with_the_seed(device):
    estimator, results = PropNetEstimator().to(device), []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(estimator.sampling([fog], [8], 7, 5, 1.0, 4.0, "uniform", stratified=True))
    assert torch.equal(results[0][0], results[1][0])
    starts, ends = results[0]
    assert (starts[1:] != starts[:-1]).any(1).all()
    assert torch.equal(starts[:, 1:], ends[:, :-1])
    assert (ends >= starts).all()
    assert starts.min() >= 1
    assert ends.max() <= 4


def test_no_rays_are_sampled_and_learnt_from(device):
    sigma = nn.Parameter(torch.ones((), device=device))
    optimizer = torch.optim.SGD([sigma], 1.0)
    estimator = PropNetEstimator(optimizer).to(device)
    starts, ends = estimator.sampling(
        [lambda a, _: a * sigma], [8], 5, 0, 1.0, 2.0, requires_grad=True
    )
    assert starts.shape == ends.shape == (0, 5)
    assert estimator.update_every_n_steps(starts, requires_grad=True) == 0.0
    assert sigma.item() == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prop_samples": [8, 8]}, "1 prop_sigma_fns and 2 prop_samples"),
        ({"sampling_type": "cubic"}, "sampling_type=cubic: choose from uniform, lindisp"),
        ({"near_plane": 0.0}, "lindisp needs near_plane above 0"),
        ({"prop_sigma_fns": [lambda a, _: a[:, :3]]}, r"densities \(2, 8\), not \(2, 3\)"),
        ({"num_samples": 0}, "must be at least 1"),
        ({"near_plane": torch.ones(3)}, r"near_plane has shape \[3\], must be \[2\]"),
        ({"far_plane": torch.ones(2, 2)}, "far_plane has shape"),
    ],
)
def test_what_cannot_be_sampled_is_refused(changes, line):
    arguments = {"prop_sigma_fns": [fog], "prop_samples": [8], "num_samples": 4, "n_rays": 2}
    arguments |= {"near_plane": 1.0, "far_plane": 2.0}
    with pytest.raises(UserError, match=line):
        PropNetEstimator().sampling(**arguments | changes)


# -------------------------------------------------------------------------------------- the loss


def expected_loss(query: list[float], w: list[float], key: list[float], outer: list[float]):
    """Measure eq. 13 interval by interval: which key bins each touches, from edge to edge."""
    losses = []
    last = len(key) - 1
    for (start, end), weight in zip(pairwise(query), w, strict=True):
        low = max(min(bisect.bisect_right(key, start) - 1, last - 1), 0)
        high = min(bisect.bisect_right(key, end), last)
        excess = max(weight - sum(outer[low:high]), 0.0)
        losses.append(excess**2 / (weight + 1e-7))
    return losses


@st.composite
def histograms(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Edges in eighths, so that query and key meet exactly, and weights in twentieths."""
    edges = sorted(draw(st.lists(st.integers(0, 16), min_size=2, max_size=7)))
    weights = draw(st.lists(st.integers(0, 8), min_size=len(edges) - 1, max_size=len(edges) - 1))
    return [e / 8 for e in edges], [w / 20 for w in weights]


def ragged(rows: list[tuple[list[float], list[float]]], device) -> tuple[RayIntervals, Tensor]:
    counts = torch.tensor([len(edges) for edges, _ in rows])
    info = torch.stack([counts.cumsum(0) - counts, counts], 1)
    cdfs = [[0.0, *torch.tensor(w, dtype=torch.float64).cumsum(0).tolist()] for _, w in rows]
    left = [i < len(edges) - 1 for edges, _ in rows for i in range(len(edges))]
    right = [i > 0 for edges, _ in rows for i in range(len(edges))]
    intervals = RayIntervals(
        torch.tensor([e for edges, _ in rows for e in edges], dtype=torch.float64, device=device),
        info.to(device),
        torch.arange(len(rows)).repeat_interleave(counts).to(device),
        torch.tensor(left, device=device),
        torch.tensor(right, device=device),
    )
    flat = torch.tensor([c for row in cdfs for c in row], dtype=torch.float64, device=device)
    return intervals, flat


@properties
@given(rays=st.lists(st.tuples(histograms(), histograms()), min_size=1, max_size=5))
def test_the_loss_of_flattened_and_of_batched_intervals_is_eq_13(device, rays):
    query, cdfs_query = ragged([q for q, _ in rays], device)
    key, cdfs_key = ragged([k for _, k in rays], device)
    wanted = [expected_loss(*q, *k) for q, k in rays]
    loss = pdf_loss(query, cdfs_query, key, cdfs_key)
    every = torch.tensor([x for row in wanted for x in row], dtype=torch.float64, device=device)
    torch.testing.assert_close(loss, every, rtol=1e-6, atol=1e-12)
    for (start, num), row in zip(query.packed_info.tolist(), wanted, strict=True):
        ray = [query.packed_info[:, 0].tolist().index(start)]
        alone = RayIntervals(query.vals[start : start + num][None])
        first, count = key.packed_info[ray[0]].tolist()
        row_of_key = RayIntervals(key.vals[first : first + count][None])
        cdfs = cdfs_query[start : start + num][None], cdfs_key[first : first + count][None]
        batched = pdf_loss(alone, cdfs[0], row_of_key, cdfs[1])
        assert batched.shape == (1, num - 1)
        expected = torch.tensor([row], dtype=torch.float64, device=device)
        torch.testing.assert_close(batched, expected, rtol=1e-6, atol=1e-12)


def random_histogram(rays: int, bins: int, seed: int, device) -> tuple[RayIntervals, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.rand(rays, bins + 1, generator=generator, dtype=torch.float64).sort(1)[0]
    weights = torch.rand(rays, bins, generator=generator, dtype=torch.float64) / bins
    cdfs = torch.cat([torch.zeros(rays, 1, dtype=torch.float64), weights.cumsum(1)], 1)
    return RayIntervals(edges.to(device)), cdfs.to(device)


def test_gradients_of_the_loss_are_exact(device):
    query, cdfs_query = random_histogram(3, 9, 0, device)
    key, cdfs_key = random_histogram(3, 6, 1, device)
    assert pdf_loss(query, cdfs_query, key, cdfs_key).gt(0).any()
    cdfs = cdfs_query.requires_grad_(), (cdfs_key * 0.3).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: pdf_loss(query, q, key, k), cdfs)


def test_rows_among_flattened_keys_cost_what_they_cost_among_rows(device):
    query, cdfs_query = random_histogram(3, 9, 0, device)
    key, cdfs_key = random_histogram(3, 6, 1, device)
    starts = torch.arange(3, device=device) * 7
    chunks = torch.stack([starts, torch.full_like(starts, 7)], 1)
    flat = RayIntervals(key.vals.flatten(), chunks)
    loss = pdf_loss(query, cdfs_query, flat, cdfs_key.flatten())
    assert torch.equal(loss, pdf_loss(query, cdfs_query, key, cdfs_key))


def test_flattened_queries_must_say_which_edges_make_an_interval(device):
    key, cdfs = random_histogram(2, 3, 0, device)
    chunks = torch.tensor([[0, 4], [4, 4]], device=device)
    query = RayIntervals(key.vals.flatten(), chunks)
    with pytest.raises(UserError, match="is_left and is_right"):
        pdf_loss(query, cdfs.flatten(), key, cdfs)


@pytest.mark.parametrize("name", ["cdfs_query", "cdfs_key"])
def test_cdfs_of_other_shapes_than_their_edges_are_refused(device, name):
    key, cdfs = random_histogram(2, 3, 0, device)
    given = {"cdfs_query": cdfs, "cdfs_key": cdfs} | {name: cdfs[:, :-1]}
    with pytest.raises(UserError, match=rf"{name} has shape \[2, 3\], must be \[2, 4\]"):
        pdf_loss(segments_query=key, segments_key=key, **given)


# -------------------------------------------------------------------------------------- learning


def two_levels(device, **changes) -> tuple[PropNetEstimator, list[nn.Parameter], Tensor, Tensor]:
    """Sample two levels of learnable density, with gradients unless the caller changes that."""
    scales = [nn.Parameter(torch.tensor(x, device=device)) for x in (0.2, 0.3)]
    estimator = PropNetEstimator(torch.optim.SGD(scales, 0.1)).to(device)
    functions = [lambda a, b, s=s: s * fog(a, b) for s in scales]
    arguments = {"requires_grad": True, "sampling_type": "uniform"} | changes
    return estimator, scales, *estimator.sampling(functions, [6, 5], 8, 4, 1.0, 3.0, **arguments)


def test_the_loss_is_the_sum_of_the_levels_means_and_scaled(device):
    estimator, _, starts, ends = two_levels(device)
    trans = transmittance(3 * fog(starts, ends), starts, ends)
    *levels, (query, nothing) = estimator.prop_cache
    assert nothing is None
    assert [len(edges.vals[0]) for edges, _ in levels] == [7, 6]
    weights = torch.cat([trans, torch.zeros_like(trans[:, :1])], 1).double().diff(dim=1).neg()
    wanted = 0.0
    for key, cdfs in levels:
        outer = cdfs.detach().double().diff(dim=1).tolist()
        rows = zip(query.vals.tolist(), weights.tolist(), key.vals.tolist(), outer, strict=True)
        losses = [x for row in rows for x in expected_loss(*row)]
        wanted += sum(losses) / len(losses)
    assert wanted > 1e-3
    loss = estimator.compute_loss(trans, loss_scaler=5.0)
    assert loss.item() == pytest.approx(5 * wanted, rel=1e-4)
    assert estimator.prop_cache == []
    assert estimator.compute_loss(trans).item() == 0.0


def test_gradients_reach_proposals_alone(device):
    estimator, scales, starts, ends = two_levels(device)
    assert not starts.requires_grad
    assert not estimator.prop_cache[0][0].vals.requires_grad
    field = nn.Parameter(torch.tensor(3.0, device=device))
    trans = transmittance(field * fog(starts, ends), starts, ends)
    with torch.no_grad():  # a caller may render so
        loss = estimator.compute_loss(trans)
    loss.backward()
    assert field.grad is None
    assert all(scale.grad < 0 for scale in scales)  # more density would bound more


def test_one_level_does_not_teach_the_level_before_it(device):
    estimator, scales, starts, ends = two_levels(device)
    trans = transmittance(3 * fog(starts, ends), starts, ends)
    del estimator.prop_cache[0]
    estimator.compute_loss(trans).backward()
    assert scales[0].grad is None
    assert scales[1].grad != 0


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_without_gradients_nothing_is_kept_and_only_the_schedule_moves(device):
    estimator, scales, starts, _ = two_levels(device, requires_grad=False)
    assert estimator.prop_cache == []
    assert estimator.compute_loss(starts).item() == 0.0
    estimator.scheduler = torch.optim.lr_scheduler.ExponentialLR(estimator.optimizer, 0.5)
    assert estimator.update_every_n_steps(starts) == 0.0
    assert estimator.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert [scale.item() for scale in scales] == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_proposals_are_asked_with_gradients_only_where_they_are_wanted(device, requires_grad):
    asked = []

    def sigma_fn(starts: Tensor, ends: Tensor) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return fog(starts, ends)

    estimator = PropNetEstimator().to(device)
    estimator.sampling([sigma_fn] * 2, [6, 5], 8, 4, 1.0, 3.0, requires_grad=requires_grad)
    assert asked == [requires_grad] * 2


def test_a_step_descends_and_moves_the_schedule(device):
    estimator, scales, starts, ends = two_levels(device)
    estimator.scheduler = torch.optim.lr_scheduler.ExponentialLR(estimator.optimizer, 0.5)
    trans = transmittance(3 * fog(starts, ends), starts, ends)
    with torch.no_grad():
        loss = estimator.update_every_n_steps(trans, requires_grad=True)
    assert isinstance(loss, float)
    assert loss > 0
    assert estimator.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    moved = [scale.item() for scale in scales]
    steps = [0.2 - 0.1 * scales[0].grad.item(), 0.3 - 0.1 * scales[1].grad.item()]
    assert moved == pytest.approx(steps)
    assert moved[0] > 0.2


def test_sampling_anew_forgets_what_was_not_used(device):
    estimator, scales, *_ = two_levels(device)
    estimator.sampling(
        [lambda a, b: scales[0] * fog(a, b)], [6], 8, 2, 1.0, 3.0, requires_grad=True
    )
    assert [len(edges.vals) for edges, _ in estimator.prop_cache] == [2, 2]
    assert estimator.compute_loss(torch.ones(2, 8, device=device)).isfinite()


def test_transmittances_of_another_shape_are_refused_and_nothing_is_used_up(device):
    estimator, _, starts, _ = two_levels(device)
    with pytest.raises(UserError, match=r"trans has shape \[4, 7\], must be \[4, 8\]"):
        estimator.compute_loss(starts[:, 1:])
    assert len(estimator.prop_cache) == 3


def test_steps_that_cannot_be_taken_are_refused(device):
    estimator, _, starts, _ = two_levels(device, requires_grad=False)
    with pytest.raises(UserError, match="requires_grad=True"):
        estimator.update_every_n_steps(starts, requires_grad=True)
    with pytest.raises(UserError, match="optimizer"):
        PropNetEstimator().update_every_n_steps(starts, requires_grad=True)


@properties
@given(target=st.floats(0, 8), num_steps=st.integers(1, 60))
def test_proposals_learn_ever_more_rarely(target, num_steps):
    function = get_proposal_requires_grad_fn(target, num_steps)
    taught = [step for step in range(200) if function(step)]
    since, wanted = 0, []
    for step in range(200):
        if since > min(step / num_steps, 1) * target:
            wanted.append(step)
            since = 0
        since += 1
    assert taught == wanted


def test_by_default_every_step_is_learnt_from_at_first_and_every_sixth_in_the_end():
    function = get_proposal_requires_grad_fn()
    taught = [step for step in range(2000) if function(step)]
    assert taught[:5] == [1, 2, 3, 4, 5]
    assert {b - a for a, b in pairwise(taught[-50:])} == {6}


def test_an_estimator_follows_its_module_and_keeps_nothing_in_checkpoints(device):
    estimator = PropNetEstimator().to(device)
    assert isinstance(estimator, AbstractEstimator)
    assert estimator.device.type == device.type
    assert estimator.state_dict() == {}
    for method in (AbstractEstimator().sampling, AbstractEstimator().update_every_n_steps):
        with pytest.raises(NotImplementedError):
            method()


# ------------------------------------------------------------------------------ a ball to look at


class ProposalField(nn.Module):
    """A small density field over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, positions: Tensor) -> Tensor:
        angles = (
            positions[..., None, :] * (2.0 ** torch.arange(4, device=positions.device))[:, None]
        )
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)
        return nn.functional.softplus(self.layers(waves).squeeze(-1) - 1) * 4


def test_proposals_learn_to_look_at_the_surface_of_a_ball(device):
    torch.manual_seed(0)
    origins = nn.functional.normalize(torch.randn(96, 3), dim=1) * 4
    targets = (torch.rand(96, 3) - 0.5) * 0.5
    directions = nn.functional.normalize(targets - origins, dim=1).to(device)
    origins = origins.to(device)

    def radii(starts: Tensor, ends: Tensor) -> Tensor:
        middles = (starts + ends)[..., None] / 2
        return (origins[:, None] + directions[:, None] * middles).norm(dim=-1)

    def sigma_fn(field: ProposalField) -> Callable[[Tensor, Tensor], Tensor]:
        def sigmas(starts: Tensor, ends: Tensor) -> Tensor:
            middles = (starts + ends)[..., None] / 2
            return field(origins[:, None] + directions[:, None] * middles)

        return sigmas

    def share_near_the_surface(starts: Tensor, ends: Tensor) -> float:
        return ((radii(starts, ends) - RADIUS).abs() < 0.2).float().mean().item()

    fields = nn.ModuleList([ProposalField(), ProposalField()]).to(device)
    estimator = PropNetEstimator(torch.optim.Adam(fields.parameters(), 0.01)).to(device)
    functions = [sigma_fn(field) for field in fields]
    where = ([32, 24], 16, 96, 2.0, 6.0, "uniform")
    brightness = nn.Parameter(torch.tensor(60.0, device=device))
    before = share_near_the_surface(*estimator.sampling(functions, *where))
    is_due = get_proposal_requires_grad_fn(target=1.0, num_steps=200)
    losses = []
    for step in range(301):
        due = is_due(step)
        starts, ends = estimator.sampling(functions, *where, stratified=True, requires_grad=due)
        ball = brightness * (radii(starts, ends) < RADIUS)
        trans = transmittance(ball, starts, ends)
        loss = estimator.update_every_n_steps(trans, requires_grad=due)
        losses += [loss] if due else []
    after = share_near_the_surface(*estimator.sampling(functions, *where))
    assert before < 0.3
    assert after > 0.6
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    assert brightness.grad is None
