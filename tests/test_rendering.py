"""Rendering: one's own field through sigma_fn and rgb_sigma_fn, backgrounds, images in chunks."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate

from nerftrain import assemble, compose, rendering
from nerftrain.errors import UserError
from nerftrain.models import RadianceField
from nerftrain.ops.visit import select
from nerftrain.rendering import (
    Background,
    field_functions,
    half_way,
    render,
    render_image,
    see_surface,
)
from nerftrain.samplers import occgrid
from nerftrain.samplers.uniform import Uniform
from nerftrain.scenes import Scene
from nerftrain.scenes.blender import load_scene
from nerftrain.trainer import Run
from nerftrain.types import Batch, Rays, Samples, Thresholds

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])


class Ball(RadianceField):
    """An opaque ball of radius 1, red, with its distance to the centre as an extra channel."""

    def __init__(self) -> None:
        super().__init__({"radius": 1}, BOX)

    def density(self, positions: torch.Tensor, times: torch.Tensor | None = None) -> torch.Tensor:
        return 200.0 * (positions.norm(dim=-1) < 1).float()

    def forward(self, positions, directions, times=None):
        red = torch.tensor([1.0, 0.0, 0.0]).expand(len(positions), 3)
        radius = positions.norm(dim=-1, keepdim=True)
        return torch.cat([red, radius], -1), self.density(positions)


@pytest.fixture
def scene(tiny_scene_root) -> Scene:
    return load_scene("tiny", str(tiny_scene_root), None, 1.0, False, 2.0, 6.0, 1.5)


def test_a_known_ball_is_seen_where_it_is(scene: Scene) -> None:
    view = render_image(
        scene,
        scene.splits["train"].cameras,
        0,
        Ball(),
        Uniform(256, "uniform", aabb=BOX),
        torch.zeros(3),
    )
    middle = 12 * 24 + 12
    assert view.opacity[middle] == pytest.approx(1, abs=1e-3)
    assert view.rgb[middle].tolist() == pytest.approx([1, 0, 0], abs=1e-3)
    eye = scene.splits["train"].cameras.poses[0, :, 3].norm()
    assert view.depth[middle] == pytest.approx(float(eye) - 1, abs=0.05)
    assert view.extras["radius"][middle, 0] == pytest.approx(1, abs=0.05)


def test_chunks_do_not_show(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (
        scene,
        scene.splits["train"].cameras,
        0,
        Ball(),
        Uniform(32, "uniform", aabb=BOX),
        torch.ones(3),
    )
    whole = render_image(*arguments)
    monkeypatch.setattr(rendering, "CHUNK", 100)
    parts = render_image(*arguments)
    assert torch.equal(whole.rgb, parts.rgb)
    assert torch.equal(whole.weights, parts.weights)
    assert torch.equal(whole.extras["radius"], parts.extras["radius"])


class NarrowBall(Ball):
    """A ball that runs out of memory where many are asked for."""

    most = 0

    def forward(self, positions, directions, times=None):
        if len(positions) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(positions, directions, times)


def test_rays_are_fewer_where_memory_runs_out(scene, monkeypatch) -> None:
    where = scene, scene.splits["train"].cameras, 0
    how = Uniform(32, "uniform", aabb=BOX), torch.ones(3)
    monkeypatch.setattr(rendering, "CHUNK", 100)
    monkeypatch.setattr(rendering, "_chunk_size", lambda *_: 6400)
    ball = NarrowBall()
    ball.most = 32 * 300
    assert torch.equal(render_image(*where, ball, *how).rgb, render_image(*where, Ball(), *how).rgb)
    ball.most = 32 * 50
    with pytest.raises(RuntimeError, match="out of memory"):
        render_image(*where, ball, *how)


@pytest.mark.parametrize(
    ("free", "marched", "size"),
    [
        (139 << 30, True, 1 << 20),
        (23 << 30, True, 1 << 18),
        (1 << 28, True, 1 << 14),
        (139 << 30, False, 1 << 16),
        (8 << 30, False, 1 << 14),
    ],
)
def test_a_gpu_renders_as_many_rays_as_its_memory_holds(free, marched, size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 141 << 30))
    assert rendering._chunk_size(torch.device("cuda"), marched) == size


def test_rays_that_meet_nothing_show_the_background(scene: Scene) -> None:
    batch = scene.batch(torch.Generator().manual_seed(0), 64, torch.rand(64, 3))
    _, rgb_sigma_fn = field_functions(Ball(), batch.rays)
    samples = Uniform(8, "uniform", aabb=torch.tensor([9.0, 9, 9, 10, 10, 10])).sample(
        batch.rays, lambda *_: torch.zeros(0)
    )
    assert len(samples) == 0
    assert torch.equal(
        render(samples, rgb_sigma_fn, batch.background, {"radius": 1}).rgb, batch.background
    )


def test_anyones_functions_plug_in() -> None:
    from nerftrain.types import Samples

    samples = Samples(
        torch.tensor([0.0, 1.0]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([0, 0]),
        torch.tensor([0, 2]),
    )
    seen = []

    def rgb_sigma_fn(t_starts, t_ends, ray_indices):
        seen.append((t_starts, t_ends, ray_indices))
        return torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), torch.tensor([0.5, 1e3])

    out = render(samples, rgb_sigma_fn, torch.ones(3))
    first = 1 - torch.exp(torch.tensor(-0.5))
    torch.testing.assert_close(out.rgb[0], torch.tensor([first, 1 - first, 0.0]))
    assert torch.equal(seen[0][2], samples.ray_indices)


FOUR = Samples(
    torch.arange(4.0), torch.arange(4.0) + 1, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 4])
)
RED, THIN = torch.tensor([[1.0, 0, 0]]).repeat(4, 1), torch.ones(4)


@pytest.mark.parametrize(
    ("channels", "density", "line"),
    [
        (RED, THIN[:1], r"density has shape \[1\], must be \[4\]"),
        (RED, THIN.repeat(2), r"density has shape \[8\], must be \[4\]"),
        (RED, THIN[:, None], r"density has shape \[4, 1\].*squeeze\(-1\)"),
        (RED[:2], THIN, r"colour has shape \[2, 3\], must be \[4, K\]"),
        (RED[0], THIN, r"colour has shape \[3\]"),
        (THIN, RED, r"colour has shape \[4\].*colour first"),
        (RED[:, :2], THIN, "gives 2 channels: must be 3"),
    ],
)
def test_fields_of_other_shapes_are_refused(channels, density, line) -> None:
    with pytest.raises(UserError, match=line):
        render(FOUR, lambda *_: (channels, density), torch.ones(3))


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (0, 3)])
def test_backgrounds_of_other_rays_are_refused(shape) -> None:
    with pytest.raises(UserError, match=r"background has shape .* must be \[2, 3\]"):
        render(FOUR, lambda *_: (RED, THIN), torch.ones(shape))


def test_channels_that_nothing_names_are_refused_beside_those_that_are_named() -> None:
    five = torch.cat([RED, RED[:, :2]], 1)
    assert not render(FOUR, lambda *_: (five, THIN), torch.ones(3)).extras
    with pytest.raises(UserError, match="gives 5 channels: must be 4"):
        render(FOUR, lambda *_: (five, THIN), torch.ones(3), {"radius": 1})


def test_the_field_is_asked_along_the_rays_that_were_sampled() -> None:
    rays = Rays(torch.zeros(5, 3), torch.ones(5, 3), torch.zeros(5), torch.ones(5))
    with pytest.raises(UserError, match="samples of 2 rays, but field_functions of 5"):
        render(FOUR, field_functions(Ball(), rays)[1], torch.ones(3))


@pytest.mark.parametrize("sampler", ["occgrid", "proposal", "hierarchical", "uniform"])
@pytest.mark.parametrize("model", ["mlp", "ngp"])
@pytest.mark.usefixtures("single_precision")
def test_rays_in_float64_are_rendered_as_those_in_float32(model, sampler) -> None:
    small = {"mlp": ["model.width=16"], "ngp": ["model.encoding.log2_table_size=8"]}[model]
    names = ["scene=demo", f"model={model}", f"sampler={sampler}", "runtime=cpu", *small]
    run = assemble(compose(names))
    batch = run.scene.batch(torch.Generator().manual_seed(0), 8, torch.ones(8, 3))
    double = replace(
        batch.rays,
        **{name: getattr(batch.rays, name).double() for name in ("origins", "directions", "near")},
    )
    views = []
    for rays in (batch.rays, double):
        for generator in (None, torch.Generator().manual_seed(1)):
            sigma_fn, rgb_sigma_fn = field_functions(run.model, rays)
            samples = run.sampler.sample(rays, sigma_fn, generator)
            views.append(render(samples, rgb_sigma_fn, batch.background).rgb)
    for single, wide in zip(views[:2], views[2:], strict=True):
        assert float(single.detach().std()) > 0
        torch.testing.assert_close(wide.float(), single, rtol=1e-3, atol=1e-3)


def test_backgrounds_are_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    assert Background("white", "white").sample(5, generator).unique().tolist() == [1]
    assert Background("black", "black").sample(5, generator).unique().tolist() == [0]
    colors = Background("random", "white").sample(1000, generator)
    assert 0.45 < colors.mean() < 0.55
    assert len(colors.unique(dim=0)) == 1000


@pytest.mark.parametrize("extra", [None, {"semantics": 2}])
@pytest.mark.usefixtures("single_precision")
def test_an_image_drawn_by_one_op_is_the_one_that_samples_make(monkeypatch, extra):
    small = [
        "model.encoding.log2_table_size=10",
        "model.encoding.finest_resolution=64",
        "sampler.grid.resolution=32",
        "sampler.steps_per_diagonal=64",
        "trainer.sample_budget=1024",
    ]
    run = assemble(compose(["scene=demo", "model=ngp", "runtime=cpu", *small]))
    config = {k: v for k, v in run.config["model"].items() if k not in ("name", "hints")}
    model = instantiate(config, aabb=run.scene.aabb, extra_channels=extra)
    model.density_mlp.weights[1].data[0] += 0.3  # or nothing is opaque
    background = torch.tensor([0.2, 0.5, 0.9])
    where = (run.scene, run.scene.splits["train"].cameras, 0, model, run.sampler, background)
    drawn = render_image(*where)
    asked: list[int] = []
    monkeypatch.setattr(type(model), "drawing", lambda *_: asked.append(1))
    made = render_image(*where)
    assert asked
    assert 0.05 < float(made.opacity.mean()) < 0.95
    for name in ("rgb", "opacity", "depth"):
        torch.testing.assert_close(getattr(drawn, name), getattr(made, name), rtol=1e-3, atol=2e-3)
    assert drawn.extras.keys() == made.extras.keys() == (extra or {}).keys()
    for name in extra or {}:
        torch.testing.assert_close(drawn.extras[name], made.extras[name], rtol=1e-3, atol=2e-3)


@pytest.fixture
def fog(monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Batch, list[int]]:
    """A run whose rays end within samples, some of its rays, and how often a field is revisited."""
    small = ["model.encoding.log2_table_size=10", "sampler.grid.resolution=32"]
    # How thick the fog is follows from these, whatever presets say.
    small += ["model.encoding.num_levels=6", "sampler.steps_per_diagonal=384"]
    run = assemble(compose(["scene=demo", "model=ngp", "runtime=cpu", *small]))
    run.model.encoding.table.data.uniform_(0, 2)  # type: ignore[union-attr]
    run.model.density_mlp.weights[1].data[0] += 0.3  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    batch = run.scene.batch(generator, 300, torch.ones(300, 3))
    again, revisit = [], type(run.model).revisit
    monkeypatch.setattr(
        type(run.model), "revisit", lambda *a: again.append(len(a[2])) or revisit(*a)
    )
    return run, batch, again


def test_samples_that_were_visited_are_rendered_from_what_was_looked_up(fog) -> None:
    run, batch, again = fog
    found = []
    for remember in (True, False):
        sigma_fn, rgb_sigma_fn = field_functions(run.model, batch.rays, remember)
        samples = run.sampler.sample(batch.rays, sigma_fn)
        view = render(samples, rgb_sigma_fn, batch.background)
        run.model.zero_grad()
        (view.rgb - batch.target).square().mean().backward()
        found.append([view.rgb.detach(), *(p.grad.clone() for p in run.model.parameters())])
        assert again == [len(samples)]
    assert 0 < len(samples) < run.sampler.num_evaluated
    for actual, expected in zip(*found, strict=True):
        assert float((actual - expected).norm()) < 0.01 * float(expected.norm())


@pytest.mark.parametrize("kind", ["view", "training", "before an update", "fading"])
def test_samples_are_the_same_whoever_finds_them(fog, kind) -> None:
    run, batch, _ = fog
    sampler = run.sampler
    # Where the field fades no threshold is above its mean opacity.
    sampler._min_weight.fill_(0.9 if kind == "fading" else 0.02)
    if kind == "before an update":
        sampler._steps = sampler.settings.update_every - 1
    sigma_fn, _ = field_functions(run.model, batch.rays)

    def generator() -> torch.Generator | None:
        return None if kind == "view" else torch.Generator().manual_seed(1)

    found = sampler.sample(batch.rays, sigma_fn, generator())
    num_evaluated, last = sampler.num_evaluated, sampler.last
    visited = sampler.sample(batch.rays, lambda *at: sigma_fn(*at), generator())
    assert len(found) > 0
    assert len(found) == pytest.approx(len(visited), rel=0.02)  # some lie at the threshold
    both = set(found.t_starts.tolist()) & set(visited.t_starts.tolist())
    assert len(both) > 0.98 * len(set(visited.t_starts.tolist()))
    assert len(found) <= num_evaluated <= sampler.num_evaluated
    # What was found where is kept for the grid, if that will ask for it.
    assert (last is not None) == (kind in ("before an update", "fading"))


def test_other_samples_than_those_visited_last_are_looked_up(fog) -> None:
    run, batch, again = fog
    sigma_fn, rgb_sigma_fn = field_functions(run.model, batch.rays, remember=True)
    samples = run.sampler.sample(batch.rays, sigma_fn)
    view = render(samples, rgb_sigma_fn, batch.background)
    assert len(again) == 1
    run.sampler.sample(batch.rays, sigma_fn)  # of the same rays, but what it found is not theirs
    torch.testing.assert_close(render(samples, rgb_sigma_fn, batch.background).rgb, view.rgb)
    assert len(again) == 1
    marching, _ = run.sampler.marching(batch.rays)
    found = sigma_fn.find(marching, Thresholds(0.9, 0.0, 0.0), everything=True).samples
    some = select(found, torch.arange(len(found)) % 3 > 0)
    views = [render(s, rgb_sigma_fn, batch.background) for s in (some, replace(some, picked=None))]
    torch.testing.assert_close(views[0].rgb, views[1].rgb)
    assert again[1:] == [len(some)]


def test_rays_are_marched_once_whoever_draws_them(monkeypatch):
    """A march is a quarter of a view: one that nobody draws from would be lost."""
    run = assemble(compose(["scene=demo", "model=mlp", "runtime=cpu", "model.width=16"]))
    marches: list[int] = []
    march = occgrid.ops.march
    monkeypatch.setattr(occgrid.ops, "march", lambda *a: marches.append(1) or march(*a))
    background = torch.ones(3)
    where = (run.scene, run.scene.splits["train"].cameras, 0, run.model, run.sampler, background)
    render_image(*where)
    assert len(marches) == -(-200 * 200 // rendering.CHUNK)


def test_half_of_the_light_is_gone_where_the_weights_say() -> None:
    generator = torch.Generator().manual_seed(4)
    counts = [3, 0, 5, 1, 0, 4, 0]
    weights = torch.rand(sum(counts), generator=generator) * 0.4
    weights[8] = 0.9  # the ray of one sample
    starts = torch.arange(sum(counts)) * 1.0
    offsets = torch.tensor([0, *counts]).cumsum(0)
    rays = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    found = half_way(Samples(starts, starts + 1, rays, offsets), weights)
    for ray in range(len(counts)):
        total, expected = 0.0, float("inf")
        for row in range(int(offsets[ray]), int(offsets[ray + 1])):
            weight = float(weights[row])
            if total < 0.5 <= total + weight:
                expected = float(starts[row]) + (0.5 - total) / weight
            total += weight
        assert float(found[ray]) == pytest.approx(expected, abs=1e-5)
    assert found.isfinite().any()
    assert found.isinf().sum() > counts.count(0)


def test_a_thin_veil_before_a_ball_does_not_move_its_surface(scene: Scene) -> None:
    class Veiled(Ball):
        def density(self, positions, times=None):
            veil = 0.05 * (positions.norm(dim=-1) < 1.4).float()
            return super().density(positions) + veil

    sampler = Uniform(256, "uniform", aabb=BOX)
    cameras = scene.splits["train"].cameras
    _, distances = see_surface(scene, cameras, 0, Veiled(), sampler, torch.zeros(3))
    middle = 12 * 24 + 12
    eye = cameras.poses[0, :, 3].norm()
    assert float(distances[middle]) == pytest.approx(float(eye) - 1, abs=0.02)
    assert distances[0].isinf()
