"""Samplers: what they place, what they skip, what they learn, what a checkpoint keeps."""

import math
import re
from dataclasses import replace

import pytest
import torch

from nerftrain.cameras import pixel_rays
from nerftrain.errors import UserError
from nerftrain.ops import march as ops
from nerftrain.samplers.occgrid import FIRST_STRIDE, STRIDES, UNKNOWN, GridSettings, OccGrid
from nerftrain.samplers.uniform import Uniform
from nerftrain.scenes import Scene
from nerftrain.scenes.blender import load_scene
from nerftrain.types import Rays, Samples, SigmaFn, Thresholds


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    from nerftrain.scenes.demo import render_folder

    root = tmp_path_factory.mktemp("scene")
    render_folder(root, 32, 8, 2)
    return load_scene("tiny", str(root), None, 1.0, False, 2.0, 6.0, 1.5)


def grid_settings(**changes: object) -> GridSettings:
    values = {
        "resolution": 32,
        "num_levels": 1,
        "update_every": 1,
        "num_times": 1,
        "warmup_steps": 4,
        "cells_per_update": 32**3,
        "ema_decay": 0.5,
        "occ_thre": 0.01,
        "carve": False,
    }
    return GridSettings(**{**values, **changes})  # type: ignore[arg-type]


def occgrid(scene: Scene, **changes: object) -> OccGrid:
    train = scene.splits["train"]
    march = {"steps_per_diagonal": 256, "cone_angle": 0.0, "early_stop_eps": 1e-3}
    march |= {"alpha_thre": 0.0, "min_weight": 1e-3, "max_steps": 1024, "finer_views": 1.0}
    march |= {"far": math.inf}
    march |= {key: changes.pop(key) for key in list(changes) if key in march}  # type: ignore[misc]
    return OccGrid(
        grid_settings(**changes),
        **march,  # type: ignore[arg-type]
        aabb=scene.aabb,
        cameras=train.cameras,
        near=scene.near,
        masks=train.masks(),
    )


def ball(positions: torch.Tensor, times: torch.Tensor | None = None) -> torch.Tensor:
    return 100.0 * (positions.norm(dim=-1) < 0.5).float()


def rays_of(scene: Scene, num: int = 512) -> Rays:
    return scene.batch(torch.Generator().manual_seed(0), num, torch.ones(num, 3)).rays


def sigma_of(rays: Rays):
    def sigma_fn(t_starts, t_ends, ray_indices):
        middle = (t_starts + t_ends)[:, None] / 2
        return ball(rays.origins[ray_indices] + middle * rays.directions[ray_indices])

    return sigma_fn


def learnt(scene: Scene, updates: int = 12, **changes: object) -> OccGrid:
    sampler = occgrid(scene, **changes)
    generator = torch.Generator().manual_seed(0)
    for step in range(updates):
        sampler.update(step, ball, generator)
    return sampler


def assert_packed(samples: Samples, num_rays: int) -> None:
    assert samples.offsets[0] == 0
    assert samples.offsets[-1] == len(samples)
    counts = samples.offsets[1:] - samples.offsets[:-1]
    assert torch.equal(samples.ray_indices, torch.arange(num_rays).repeat_interleave(counts))
    same_ray = samples.ray_indices[1:] == samples.ray_indices[:-1]
    assert (samples.t_starts[1:] >= samples.t_ends[:-1] - 1e-5)[same_ray].all()


def test_the_grid_learns_where_the_field_is_and_forgets_the_rest(scene: Scene) -> None:
    sampler = learnt(scene)
    share = sampler.describe()["occupied"]
    ball_share = 4 / 3 * 3.14159 * 0.5**3 / 27
    assert 0.8 * ball_share < share < 2 * ball_share
    centre = sampler.grid.occupied[0, 16, 16, 16]
    corner = sampler.grid.occupied[0, 1, 1, 1]
    assert centre
    assert not corner


def test_samples_lie_in_occupied_cells_and_stop_behind_the_surface(scene: Scene) -> None:
    sampler, rays = learnt(scene), rays_of(scene)
    samples = sampler.sample(rays, sigma_of(rays))
    assert_packed(samples, len(rays))
    assert 0 < len(samples) < 0.2 * sampler.num_marched
    middle = (samples.t_starts + samples.t_ends)[:, None] / 2
    points = rays.origins[samples.ray_indices] + middle * rays.directions[samples.ray_indices]
    assert (points.norm(dim=-1) < 0.55).all()
    assert (points.norm(dim=-1) > 0.3).all()  # the inside is hidden


def test_a_field_that_fades_away_keeps_samples_to_come_back_by(scene: Scene) -> None:
    sampler, rays = learnt(scene), rays_of(scene)
    generator = torch.Generator().manual_seed(0)
    faint = sampler.sample(rays, lambda starts, ends, indices: 1e-3 * starts, generator)
    assert len(faint) > 0.1 * sampler.num_marched > 0


def test_rounds_change_nothing_but_the_number_of_evaluations(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, rays = learnt(scene), rays_of(scene)
    some = sampler.sample(rays, sigma_of(rays))
    evaluated = sampler.num_evaluated
    monkeypatch.setattr("nerftrain.samplers.occgrid.ROUND", 10_000)
    all_at_once = sampler.sample(rays, sigma_of(rays))
    assert torch.equal(some.t_starts, all_at_once.t_starts)
    assert torch.equal(some.offsets, all_at_once.offsets)
    assert evaluated < sampler.num_evaluated == sampler.num_marched


def test_rays_end_where_no_sample_can_weigh_enough(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, rays = learnt(scene), rays_of(scene)
    sampler._min_weight.fill_(0.05)
    monkeypatch.setattr("nerftrain.samplers.occgrid.ROUND", 8)
    opaque = sigma_of(rays)
    some = sampler.sample(rays, lambda *at: 0.1 * opaque(*at))
    evaluated = sampler.num_evaluated
    monkeypatch.setattr(
        OccGrid, "_all_thresholds", lambda self, t: Thresholds(self.early_stop_eps, *t)
    )
    further = sampler.sample(rays, lambda *at: 0.1 * opaque(*at))
    assert len(some) > 100
    assert torch.equal(some.t_starts, further.t_starts)
    assert torch.equal(some.offsets, further.offsets)
    assert evaluated < sampler.num_evaluated


def test_a_new_grid_skips_nothing_that_is_visible(scene: Scene) -> None:
    sampler = occgrid(scene)
    assert sampler.describe()["occupied"] == pytest.approx(float(sampler.visible.float().mean()))
    assert (sampler.occupancy[sampler.visible] == UNKNOWN).all()


def test_cells_not_looked_at_stay_occupied(scene: Scene) -> None:
    sampler = learnt(scene, updates=1, cells_per_update=1000, warmup_steps=10**6)
    looked_at = (sampler.occupancy != UNKNOWN).sum()
    assert looked_at <= 1000 + (~sampler.visible).sum()
    assert sampler.describe()["occupied"] > 0.9 * float(sampler.visible.float().mean())


def test_strides_of_what_is_recorded_are_few_and_end_at_the_full_resolution(scene: Scene) -> None:
    sampler, generator = occgrid(scene, warmup_steps=48, update_every=1000), torch.Generator()
    rays, phases, spacings = rays_of(scene, 64), [], []
    for step in range(60):
        phases.append(sampler.phase())
        samples = sampler.sample(rays, lambda t, *_: torch.ones_like(t), generator, room=4096)
        used = int(samples.offsets[-1])
        spacings.append(float((samples.t_ends - samples.t_starts)[:used].median()))
        sampler.update(step, ball, generator)
    assert phases == sorted(phases, reverse=True)
    assert len(set(phases)) == STRIDES + 1
    assert phases[0] == pytest.approx(FIRST_STRIDE * sampler.march.step)
    assert phases[-1] == pytest.approx(sampler.march.step)
    assert spacings == pytest.approx(phases, rel=1e-3)  # a recorded step is of the stride it names


def test_weights_too_small_to_see_do_not_starve_a_new_field(scene: Scene) -> None:
    sampler, rays = occgrid(scene), rays_of(scene)
    samples = sampler.sample(rays, lambda t, *_: torch.full_like(t, 1e-3))
    assert len(samples) == sampler.num_marched > 0


def test_only_pixels_whose_rays_can_have_samples_are_drawn(scene: Scene) -> None:
    train = scene.splits["train"]
    sampler = occgrid(scene, carve=True, resolution=128)
    everything = torch.arange(len(train.pixels))
    assert sampler.live_pixels is not None
    live = torch.zeros(len(train.pixels), dtype=torch.bool)
    live[sampler.live_pixels.long()] = True
    rays = pixel_rays(train.cameras, *train.locate(everything), scene.near, scene.far)
    samples = ops.march(rays, torch.full_like(rays.near, 0.5), sampler.grid, sampler.march)
    hit = samples.offsets.diff() > 0
    assert not (hit & ~live).any()
    assert hit.sum() <= live.sum() < 0.9 * len(live)
    batch = scene.batch(
        torch.Generator().manual_seed(0), 500, torch.zeros(500, 3), sampler.live_pixels
    )
    drawn = ops.march(
        batch.rays, torch.full_like(batch.rays.near, 0.5), sampler.grid, sampler.march
    )
    assert (drawn.offsets.diff() > 0).float().mean() > 0.9 * hit.sum() / live.sum()
    assert occgrid(scene).live_pixels is None


def test_transparent_pixels_carve_cells_and_nothing_opaque(scene: Scene) -> None:
    carved, whole = occgrid(scene, carve=True), occgrid(scene)
    assert carved.visible.sum() < 0.8 * whole.visible.sum()
    opaque = scene.splits["train"].masks()
    assert opaque is not None
    train = scene.splits["train"]
    from nerftrain.cameras import image_rays

    for index in range(2):
        rays = image_rays(train.cameras, index, scene.near, scene.far)
        samples = ops.march(rays, torch.full_like(rays.near, 0.5), carved.grid, carved.march)
        hit = samples.offsets[1:] > samples.offsets[:-1]
        assert hit[opaque[index].flatten()].all()
        assert not hit.all()


def test_cells_that_training_rays_see_stay_on(scene: Scene) -> None:
    sampler, rays = learnt(scene), rays_of(scene)
    blind, generator = learnt(scene), torch.Generator().manual_seed(0)
    for step in range(100, 130):
        kept = sampler.sample(rays, sigma_of(rays), torch.Generator().manual_seed(7))
        # Random points find nothing: only the rays know that there is matter.
        sampler.update(step, lambda p, _: torch.zeros(len(p)), generator)
        blind.update(step, lambda p, _: torch.zeros(len(p)), generator)
    assert len(kept) > 0
    middle = (kept.t_starts + kept.t_ends)[:, None] / 2
    points = rays.origins[kept.ray_indices] + middle * rays.directions[kept.ray_indices]
    cells = ((points / 1.5 * 0.5 + 0.5) * 32).long()
    assert sampler.grid.occupied[0][tuple(cells.T)].all()
    assert (sampler.occupancy[0][tuple(cells.T)] > 0.1).all()
    assert (blind.occupancy[0][tuple(cells.T)] < 0.01).all()


def moving_ball(positions: torch.Tensor, times: torch.Tensor | None) -> torch.Tensor:
    """Cross the box along x, from -1 to 1."""
    assert times is not None
    centers = torch.stack([2 * times - 1, *[torch.zeros_like(times)] * 2], -1)
    return 100.0 * ((positions - centers).norm(dim=-1) < 0.3).float()


def moving(scene: Scene, num: int = 2000) -> tuple[Scene, Rays, SigmaFn]:
    """A scene whose cameras have times, and rays that meet what moves there."""
    train, rays = scene.splits["train"], rays_of(scene, num)
    cameras = replace(train.cameras, times=torch.linspace(0, 1, len(train.cameras)))
    times = torch.rand(num, generator=torch.Generator().manual_seed(1))
    rays = replace(rays, times=times)

    def sigma_fn(t_starts, t_ends, ray_indices):
        middle = (t_starts + t_ends)[:, None] / 2
        points = rays.origins[ray_indices] + middle * rays.directions[ray_indices]
        return moving_ball(points, times[ray_indices])

    splits = {"train": replace(train, cameras=cameras)}
    return replace(scene, splits=splits), rays, sigma_fn


def taught(scene: Scene, rays: Rays, sigma_fn: SigmaFn, **changes: object) -> OccGrid:
    sampler = occgrid(scene, ema_decay=0.9, num_times=4, **changes)
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        sampler.sample(rays, sigma_fn, generator)
        sampler.update(step, moving_ball, generator)
    return sampler


def test_what_moves_is_looked_for_where_it_is_at_the_time(scene: Scene) -> None:
    scene, rays, sigma_fn = moving(scene)
    marched, seen = [], []
    for num_slices in (1, 4, 16):
        sampler = taught(scene, rays, sigma_fn, time_slices=num_slices)
        seen.append(len(sampler.sample(rays, sigma_fn)))
        marched.append(sampler.num_marched)
        assert sampler.grid.num_slices == num_slices
    assert marched[1] < 0.7 * marched[0]
    assert marched[2] < 0.5 * marched[0]
    assert min(seen) > 0.99 * max(seen)  # and nothing is lost


def test_what_comes_to_lie_beside_something_is_found_soon_where_things_move(scene: Scene) -> None:
    moving_scene = moving(scene)[0]
    found = []
    for which in (moving_scene, scene):  # the second is told that nothing moves
        sampler, generator = occgrid(which, cells_per_update=1024), torch.Generator().manual_seed(0)
        for step in range(60):
            radius = 0.5 if step < 30 else 0.6

            def field(positions, times, radius=radius):
                return 100.0 * (positions.norm(dim=-1) < radius).float()

            sampler.update(step, field, generator)
        middles = (
            torch.stack(torch.meshgrid([torch.arange(32)] * 3, indexing="ij"), -1) + 0.5
        ) / 32
        distances = ((middles * 2 - 1) * 1.5).norm(dim=-1)
        shell = (distances > 0.52) & (distances < 0.58)
        found.append(float((sampler.occupancy[0] > sampler.threshold)[shell].float().mean()))
    assert found[0] > 0.95
    assert found[0] > found[1] + 0.05


def test_no_slice_of_time_is_empty_before_anything_is_known(scene: Scene) -> None:
    scene, rays, sigma_fn = moving(scene)
    counts = []
    for num_slices in (1, 16):
        sampler = occgrid(scene, time_slices=num_slices)
        sampler.sample(rays, sigma_fn)
        counts.append(sampler.num_marched)
    assert counts[0] == counts[1] > 0


def test_what_stands_still_has_no_slices(scene: Scene) -> None:
    assert learnt(scene, time_slices=16).grid.num_slices == 1


def test_a_checkpoint_brings_slices_of_time_back(scene: Scene) -> None:
    scene, rays, sigma_fn = moving(scene)
    first = taught(scene, rays, sigma_fn, time_slices=8)
    again = occgrid(scene, time_slices=8)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.grid.cells, first.grid.cells)
    assert again.grid.num_slices == 8


def test_outer_levels_cover_what_inner_levels_hold(scene: Scene) -> None:
    sampler = learnt(scene, num_levels=2)
    inner, outer = sampler.grid.occupied
    pooled = torch.nn.functional.max_pool3d(inner[None].float(), 2)[0] > 0
    assert (outer[8:24, 8:24, 8:24] | ~pooled).all()
    rays = rays_of(scene)
    both = sampler.sample(rays, sigma_of(rays))
    alone = learnt(scene).sample(rays, sigma_of(rays))
    assert len(both) == pytest.approx(len(alone), rel=0.1)


def test_a_checkpoint_brings_the_grid_back(scene: Scene) -> None:
    sampler, again = learnt(scene), occgrid(scene)
    again.load_state_dict(sampler.state_dict())
    assert torch.equal(sampler.grid.cells, again.grid.cells)
    rays = rays_of(scene)
    assert torch.equal(
        sampler.sample(rays, sigma_of(rays)).t_starts, again.sample(rays, sigma_of(rays)).t_starts
    )


def test_jitter_is_drawn_in_training_only(scene: Scene) -> None:
    sampler, rays = learnt(scene), rays_of(scene)
    generators = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    drawn = [sampler.sample(rays, sigma_of(rays), g).t_starts for g in generators]
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or not torch.equal(drawn[0], drawn[2])
    fixed = [sampler.sample(rays, sigma_of(rays)).t_starts for _ in range(2)]
    assert torch.equal(fixed[0], fixed[1])


def test_no_gradient_is_recorded(scene: Scene) -> None:
    weight = torch.ones((), requires_grad=True)
    sampler, rays = learnt(scene), rays_of(scene)
    sigma_fn = sigma_of(rays)
    samples = sampler.sample(rays, lambda *a: sigma_fn(*a) * weight)
    assert not samples.t_starts.requires_grad
    assert weight.grad is None


def test_uniform_fills_the_box_with_equal_intervals(scene: Scene) -> None:
    rays = rays_of(scene)
    samples = Uniform(16, "uniform", aabb=scene.aabb).sample(rays, lambda *_: torch.zeros(0))
    assert_packed(samples, len(rays))
    counts = samples.offsets[1:] - samples.offsets[:-1]
    assert set(counts.tolist()) <= {0, 16}
    lengths = (samples.t_ends - samples.t_starts).view(-1, 16)
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths), rtol=1e-3, atol=1e-4)
    entry = samples.t_starts.view(-1, 16)[:, 0]
    points = rays.origins[counts > 0] + entry[:, None] * rays.directions[counts > 0]
    on_wall = points.abs().amax(-1).sub(1.5).abs() < 1e-4
    assert (on_wall | (entry == scene.near)).all()
    assert on_wall.float().mean() > 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"resolution": 20},
        {"resolution": 2**40},
        {"resolution": 1024, "num_levels": 2},
        {"num_levels": 0},
        {"num_levels": 17},
        {"update_every": 0},
        {"num_times": 10**9},
        {"time_slices": 10**9},
        {"cells_per_update": 10**9},
        {"ema_decay": 1.0},
    ],
)
def test_grids_that_cannot_be_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        grid_settings(**wrong)


@pytest.mark.parametrize("room", [None, 4096])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wrong", [lambda d: d[:1], lambda d: d.repeat(2), lambda d: d[:, None]])
def test_a_field_of_another_number_of_densities_is_refused(scene, wrong, training, room) -> None:
    sampler, rays = learnt(scene), rays_of(scene, 64)
    sigma_fn, generator = sigma_of(rays), torch.Generator() if training else None
    with pytest.raises(UserError, match=r"a field's density has shape .*a value per sample"):
        sampler.sample(rays, lambda *at: wrong(sigma_fn(*at)), generator, room)


@pytest.mark.parametrize("wrong", [lambda d: d[:5], lambda d: d.repeat(2), lambda d: d[:, None]])
def test_a_grid_does_not_learn_from_another_number_of_densities(scene: Scene, wrong) -> None:
    with pytest.raises(UserError, match="a field's density has shape"):
        occgrid(scene).update(0, lambda *at: wrong(ball(*at)), torch.Generator())


@pytest.mark.parametrize("room", [None, 4096])
def test_rays_in_float64_are_marched_as_those_in_float32(scene: Scene, room: int | None) -> None:
    sampler, rays = learnt(scene), rays_of(scene, 64)
    names = ("origins", "directions", "near", "far")
    double = replace(rays, **{name: getattr(rays, name).double() for name in names})
    samples, same = (sampler.sample(r, sigma_of(rays), None, room) for r in (rays, double))
    assert torch.equal(samples.t_starts, same.t_starts)
    assert torch.equal(samples.offsets, same.offsets)
    (marching, _), (also, _) = (sampler.marching(r) for r in (rays, double))
    assert torch.equal(marching.jitter, also.jitter)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"steps_per_diagonal": 10**9}, "steps_per_diagonal=1000000000: must be at most 65536"),
        ({"max_steps": 2**40}, "max_steps=1099511627776: must be at most 65536"),
        ({"early_stop_eps": 1.0}, "early_stop_eps=1.0: must be less than 1"),
        ({"alpha_thre": 1.0}, "alpha_thre=1.0: must be less than 1"),
        ({"min_weight": -1.0}, "min_weight=-1.0: must not be negative"),
        ({"cone_angle": 1e30}, "cone_angle=1e\\+30: must be at most 1$"),
        ({"finer_views": 1e30}, "finer_views=1e\\+30: must be at most 64$"),
        ({"warmup_steps": -1}, "warmup_steps=-1: must not be negative"),
        ({"occ_thre": -0.01}, "occ_thre=-0.01: must not be negative"),
        ({"max_steps": 64}, "max_steps=64: rays would be over .* give at least [0-9]+, a larger"),
        ({"steps_per_diagonal": 65536, "num_levels": 16}, "to 85137.7: a larger scene.near"),
    ],
)
def test_marches_that_cannot_be_are_refused(scene: Scene, wrong: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        occgrid(scene, **wrong)


@pytest.mark.parametrize("changes", [{}, {"num_levels": 3, "cone_angle": 0.02}, {"far": 4.0}])
def test_as_many_steps_as_are_asked_for_cross_the_scene(scene: Scene, changes: dict) -> None:
    with pytest.raises(UserError) as refused:
        occgrid(scene, max_steps=8, **changes)
    needed = int(re.findall(r"give at least (\d+)", str(refused.value))[0])
    rays = rays_of(scene)
    rays = replace(rays, far=torch.full_like(rays.far, changes.get("far", 1e3)))
    marches = []
    for max_steps in (needed, 1024):
        sampler = occgrid(scene, max_steps=max_steps, **changes)
        sampler.occupancy.fill_(UNKNOWN)  # nothing is known to be empty
        sampler.visible.fill_(True)
        sampler._find_visible()
        sampler._steps = 4  # after warm-up, in which steps are longer
        marches.append(ops.march(rays, *sampler.marching(rays)[0]))
    cut, whole = marches
    assert torch.equal(cut.t_ends, whole.t_ends)
    assert int(whole.offsets.diff().max()) > 0.7 * needed


def test_far_too_many_samples_are_refused(scene: Scene) -> None:
    with pytest.raises(UserError, match="num_samples=1000000000: must be at most 65536"):
        Uniform(10**9, "uniform", aabb=scene.aabb)
