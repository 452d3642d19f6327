"""Proposal and hierarchical sampling: where they look, what teaches them, what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.losses import ColorLoss
from nerftrain.models import RadianceField
from nerftrain.models.encodings import HashEncoding
from nerftrain.rendering import field_functions, render
from nerftrain.samplers import Sampler
from nerftrain.samplers.hierarchical import Hierarchical
from nerftrain.samplers.proposal import Level, Proposal, Teaching
from nerftrain.types import Batch, Rays, Samples

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
RADIUS = 0.5


class Ball(RadianceField):
    """An opaque red ball."""

    def __init__(self) -> None:
        super().__init__(None, BOX)
        self.calls = 0

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        return 60.0 * (positions.norm(dim=-1) < RADIUS)

    def forward(
        self, positions: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        color = torch.tensor([1.0, 0, 0]).expand(len(positions), 3)
        return color, self.density(positions)


class Learnable(Ball):
    """The same with a brightness that can be learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness = torch.nn.Parameter(torch.tensor(0.2))

    def forward(
        self, positions: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        color, density = super().forward(positions, directions, times)
        return color * self.brightness, density


def rays_at_the_ball(num: int = 128) -> Rays:
    generator = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=1) * 4
    targets = (torch.rand(num, 3, generator=generator) - 0.5) * 0.5
    directions = torch.nn.functional.normalize(targets - origins, dim=1)
    return Rays(origins, directions, torch.full((num,), 2.0), torch.full((num,), 6.0))


def proposal(num_levels: int = 1, **changes: object) -> Proposal:
    torch.manual_seed(0)
    teaching = {"anneal_steps": 50, "anneal_slope": 10.0, "update_every": 3, "update_warmup": 20}
    teaching |= {"share": 1.0, "fog_weight": 0.0}
    teaching |= {key: changes.pop(key) for key in list(changes) if key in teaching}  # type: ignore[misc]
    values = {
        "levels": [Level(32, HashEncoding(4, 2, 12, 8, 32), 16) for _ in range(num_levels)],
        "num_samples": 16,
        "spacing": "uniform",
        "padding": 0.01,
        "early_stop_eps": 1e-3,
        "min_opacity": 0.0,
        "min_weight": 0.0,
        "teaching": Teaching(**teaching, weight=1.0),  # type: ignore[arg-type]
        **changes,
    }
    return Proposal(**values, aabb=BOX, near=2.0)  # type: ignore[arg-type]


def hierarchical(make_field=Ball) -> Hierarchical:
    return Hierarchical(32, 64, "uniform", make_field=make_field, aabb=BOX)


def step(sampler: Sampler, field: RadianceField, rays: Rays, generator: torch.Generator):
    """Sample, render and sum up what the sampler adds to the loss, as the trainer does."""
    sigma_fn, rgb_sigma_fn = field_functions(field, rays)
    samples = sampler.sample(rays, sigma_fn, generator)
    rendering = render(samples, rgb_sigma_fn, torch.ones(len(rays), 3))
    batch = Batch(rays, torch.zeros(len(rays), 3), torch.ones(len(rays), 3))
    return samples, sampler.loss_terms(ColorLoss("huber"), batch, rendering)


def taught(sampler: Proposal, steps: int = 120, rays: Rays | None = None) -> Proposal:
    generator, rays = torch.Generator().manual_seed(1), rays or rays_at_the_ball()
    optimizer = torch.optim.Adam(sampler.parameters(), 0.02)
    for number in range(steps):
        _, terms = step(sampler, Ball(), rays, generator)
        if terms:
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
        sampler.update(number, Ball().density, generator)
    return sampler


def share_near_the_surface(samples: Samples, rays: Rays) -> float:
    middles = (samples.t_starts + samples.t_ends) / 2
    radius = rays.at(middles, samples.ray_indices)[0].norm(dim=1)
    return float(((radius - RADIUS).abs() < 0.2).float().mean())


@pytest.mark.parametrize("levels", [1, 2])
def test_proposals_learn_to_look_at_the_surface(levels: int):
    rays, ball = rays_at_the_ball(), Ball()
    sigma_fn, _ = field_functions(ball, rays)
    before = share_near_the_surface(proposal(levels).sample(rays, sigma_fn), rays)
    after = share_near_the_surface(taught(proposal(levels)).sample(rays, sigma_fn), rays)
    assert before < 0.4
    assert after > 0.6


def test_the_same_number_of_samples_lies_on_every_ray_that_meets_the_box():
    rays = rays_at_the_ball(9)
    rays.origins[4] = torch.tensor([9.0, 9.0, 9.0])
    rays.directions[4] = torch.tensor([1.0, 0.0, 0.0])
    for generator in (None, torch.Generator().manual_seed(0)):
        samples = proposal().sample(rays, field_functions(Ball(), rays)[0], generator)
        assert samples.offsets.diff().tolist() == [16] * 4 + [0] + [16] * 4
        assert torch.equal(
            samples.ray_indices, torch.arange(9).repeat_interleave(samples.offsets.diff())
        )
        inside = samples.ray_indices[1:] == samples.ray_indices[:-1]
        assert (samples.t_starts[1:] >= samples.t_ends[:-1])[inside].all()
        assert not samples.t_starts.requires_grad


def test_samples_that_nobody_sees_are_left_out_without_changing_the_picture():
    rays, ball = rays_at_the_ball(), Ball()
    sigma_fn, rgb_sigma_fn = field_functions(ball, rays)
    pictures, counts = [], []
    for min_weight in (0.0, 1e-3):
        samples = taught(proposal(min_weight=min_weight)).sample(rays, sigma_fn)
        pictures.append(render(samples, rgb_sigma_fn, torch.zeros(3)).rgb)
        counts.append(len(samples))
    assert counts[1] < 0.6 * counts[0]
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=0.02)


def test_rays_that_meet_nothing_fade_and_are_not_followed():
    """Half of the rays pass the ball by: in the end the field is asked about the others alone."""
    rays = rays_at_the_ball(64)
    rays.origins[::2] = torch.tensor([0.0, 1.2, -4.0])
    rays.directions[::2] = torch.tensor([0.0, 0.0, 1.0])
    sampler = proposal(min_opacity=0.05, min_weight=1e-3, anneal_steps=0, fog_weight=1e-2)
    samples = taught(sampler, 400, rays).sample(rays, field_functions(Ball(), rays)[0])
    assert sampler.num_evaluated < 64 * 32 // 8 + 40 * 16  # 24 rays or more were not followed
    assert (samples.offsets.diff()[1::2] > 0).all()


@pytest.mark.parametrize("min_weight", [0.0, 1e-3])
def test_gradients_of_the_interlevel_loss_reach_proposals_alone(min_weight: float):
    sampler, field = proposal(2, min_weight=min_weight), Learnable()
    _, terms = step(sampler, field, rays_at_the_ball(), torch.Generator().manual_seed(0))
    terms["interlevel"].backward()
    assert field.brightness.grad is None
    for proposal_field in sampler.fields:
        assert proposal_field.encoding.table.grad.abs().sum() > 0


def test_proposals_learn_ever_more_rarely():
    sampler, generator, learnt = proposal(), torch.Generator().manual_seed(0), []
    for number in range(40):
        _, terms = step(sampler, Ball(), rays_at_the_ball(4), generator)
        learnt += [number] if terms else []
        sampler.update(number, Ball().density, generator)
    gaps = torch.tensor(learnt).diff().tolist()
    assert gaps[0] == 1
    assert gaps == sorted(gaps)
    assert gaps[-1] == 3


def test_a_share_of_the_rays_is_enough_to_learn_from():
    """Samples are the same as ever, and the gradient is of the first quarter of the rays alone."""
    rays, others = rays_at_the_ball(64), rays_at_the_ball(64)
    others.origins[16:], others.directions[16:] = rays.origins[:48], rays.directions[:48]
    outcomes = []
    for share, these in ((0.25, rays), (1.0, rays), (0.25, others)):
        sampler = proposal(2, share=share)
        samples, terms = step(sampler, Ball(), these, torch.Generator().manual_seed(0))
        terms["interlevel"].backward()
        outcomes.append((samples, [field.encoding.table.grad for field in sampler.fields]))
    (few, gradients), (every, _), (_, expected) = outcomes
    torch.testing.assert_close(few.t_starts, every.t_starts)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_an_impossible_share_is_refused(share: float):
    with pytest.raises(UserError, match="share"):
        proposal(share=share)


@pytest.mark.parametrize("make", [proposal, lambda: proposal(min_weight=1e-3), hierarchical])
def test_rays_that_all_pass_by_have_no_samples(make):
    rays = rays_at_the_ball(5)
    rays.origins[:] = torch.tensor([9.0, 9.0, 9.0])
    rays.directions[:] = torch.tensor([1.0, 0.0, 0.0])
    for generator in (None, torch.Generator().manual_seed(0)):
        samples, terms = step(make(), Ball(), rays, generator)
        assert samples.offsets.tolist() == [0] * 6
        assert all(term.isfinite() for term in terms.values())


def test_weights_are_flattened_at_first():
    teaching = Teaching(100, 10.0, 5, 100, 1.0, 1.0, 0.0)
    powers = [teaching.anneal(number) for number in (0, 10, 50, 100, 1000)]
    assert powers == sorted(powers)
    assert powers[0] == 0
    assert powers[-2:] == [1, 1]
    assert powers[1] == pytest.approx(10 * 0.1 / (9 * 0.1 + 1))  # mip-NeRF 360, section 4


def test_unbounded_space_is_sampled_from_near_to_far():
    torch.manual_seed(0)
    teaching = Teaching(0, 10.0, 1, 0, 1.0, 1.0, 0.0)
    level = Level(64, HashEncoding(4, 2, 12, 8, 32), 16)
    sampler = Proposal(
        [level],
        32,
        "disparity",
        0.01,
        1e-3,
        0.0,
        0.0,
        teaching,
        aabb=BOX,
        contraction="l2",
        near=0.1,
    )
    rays = Rays(torch.zeros(3, 3), torch.eye(3), torch.full((3,), 0.1), torch.full((3,), 1000.0))
    samples = sampler.sample(rays, field_functions(Ball(), rays)[0])
    assert samples.offsets.tolist() == [0, 32, 64, 96]
    assert samples.t_starts.min() < 0.2
    assert samples.t_ends.max() > 5


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"num_samples": 0}, "num_samples=0: must be at least 1"),
        ({"levels": []}, "levels=0: must be at least 1"),
        ({"num_samples": 10**9}, "num_samples=1000000000: must be at most 65536"),
        ({"early_stop_eps": 1.0}, "early_stop_eps=1.0: must be less than 1"),
        ({"min_opacity": 1.0}, "min_opacity=1.0: must be less than 1"),
        ({"padding": -1.0}, "padding=-1.0: must not be negative"),
        ({"update_every": 0}, "update_every=0: must be at least 1"),
    ],
)
def test_proposals_that_cannot_be_are_refused(wrong: dict, line: str):
    with pytest.raises(UserError, match=line):
        proposal(**wrong)


def test_disparity_from_distance_zero_is_refused():
    with pytest.raises(UserError, match=r"needs scene\.near above 0"):
        Proposal(
            [Level(8, HashEncoding(1, 2, 8, 8, 8), 8)],
            *(8, "disparity", 0.01, 1e-3, 0.0, 0.0, Teaching(0, 1.0, 1, 0, 1.0, 1.0, 0.0)),
            aabb=BOX,
            near=0.0,
        )


def test_the_fine_network_sees_all_coarse_samples_and_more_at_the_surface():
    rays = rays_at_the_ball()
    sampler = hierarchical()
    samples = sampler.sample(rays, field_functions(Ball(), rays)[0])
    assert samples.offsets.diff().tolist() == [32 + 64 + 1] * len(rays)
    inside = samples.ray_indices[1:] == samples.ray_indices[:-1]
    assert torch.equal(samples.t_starts[1:][inside], samples.t_ends[:-1][inside])
    # Of even samples over the way through the box, 3 to 5.2 long, less than a third are so near.
    assert share_near_the_surface(samples, rays) > 0.5


def test_the_coarse_network_learns_from_the_colours_and_only_in_training():
    rays, sampler = rays_at_the_ball(), hierarchical(Learnable)
    _, terms = step(sampler, Ball(), rays, torch.Generator().manual_seed(0))
    assert list(terms) == ["coarse"]
    terms["coarse"].backward()
    assert sampler.coarse.brightness.grad.abs() > 0
    assert not any(p.requires_grad for p in Ball().parameters())
    sampler.sample(rays, field_functions(Ball(), rays)[0])
    batch = Batch(rays, torch.zeros(len(rays), 3), torch.ones(3))
    rendering = render(
        sampler.sample(rays, field_functions(Ball(), rays)[0]),
        field_functions(Ball(), rays)[1],
        torch.ones(3),
    )
    assert sampler.loss_terms(ColorLoss("huber"), batch, rendering) == {}


@pytest.mark.parametrize("room", [None, 4096])
@pytest.mark.parametrize("wrong", [lambda d: d[:1], lambda d: d.repeat(2), lambda d: d[:, None]])
def test_a_field_of_another_number_of_densities_is_refused(wrong, room: int | None):
    rays = rays_at_the_ball(8)
    sigma_fn, _ = field_functions(Ball(), rays)
    with pytest.raises(UserError, match=r"a field's density has shape .*a value per sample"):
        proposal(min_weight=1e-3).sample(rays, lambda *at: wrong(sigma_fn(*at)), None, room)


class Misshapen(Ball):
    """A ball that tells of its first point alone."""

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        return super().density(positions)[:1]


class Swapped(Ball):
    """A ball that gives its density first."""

    def forward(self, *at: Tensor) -> tuple[Tensor, Tensor]:
        color, density = super().forward(*at)
        return density, color


@pytest.mark.parametrize(
    ("field", "training", "line"),
    [
        (Misshapen, False, "density has shape"),
        (Misshapen, True, "density has shape"),
        (Swapped, True, "colour has shape .*colour first"),
    ],
)
def test_a_coarse_field_of_other_shapes_is_refused(field, training: bool, line: str):
    rays, generator = rays_at_the_ball(8), torch.Generator() if training else None
    with pytest.raises(UserError, match=line):
        hierarchical(field).sample(rays, field_functions(Ball(), rays)[0], generator)


class Single(Ball):
    """A field of one layer in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        return self.layer(positions)[:, 0].exp()


@pytest.mark.parametrize("room", [None, 4096])
def test_coarse_to_fine_takes_rays_in_float64(room: int | None):
    torch.manual_seed(0)
    rays = rays_at_the_ball(8)
    names = ("origins", "directions", "near", "far")
    double = replace(rays, **{name: getattr(rays, name).double() for name in names})
    sigma_fn, _ = field_functions(Ball(), rays)
    sampler = hierarchical(Single)
    single, same = (sampler.sample(r, sigma_fn, None, room) for r in (rays, double))
    assert torch.equal(single.t_starts, same.t_starts)
    assert torch.equal(single.offsets, same.offsets)
