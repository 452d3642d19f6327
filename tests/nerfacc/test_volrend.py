"""Volume rendering: against loops over each ray's samples in float64, forward and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.nerfacc import (
    accumulate_along_rays,
    pack_info,
    render_transmittance_from_alpha,
    render_transmittance_from_density,
    render_visibility_from_alpha,
    render_visibility_from_density,
    render_weight_from_alpha,
    render_weight_from_density,
    rendering,
)
from nerftrain.nerfacc.volrend import accumulate_along_rays_

thorough = settings(max_examples=40, deadline=None, derandomize=True)
chunk_sizes = st.lists(st.integers(0, 6), max_size=8)
seeds = st.integers(0, 10_000)
# Compared with loops that sum in another order; depths are divided by opacities from 1e-4 up.
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


class Scene:
    """Random samples of rays with the given numbers of them: densities 0 to 1e4, opacities 0 to 1.

    Of both, a third each lie at the ends of their ranges.
    """

    def __init__(self, counts: list[int], seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        n = sum(counts)

        def random(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        steps = random(n, 2) * 0.4 + 0.05
        ends = steps.sum(1).cumsum(0)
        which = torch.randint(0, 3, (n,), generator=generator)
        sigmas = 10 ** (random(n) * 6 - 2)
        sigmas = sigmas.masked_fill(which == 0, 0).masked_fill(which == 1, 1e4)
        alphas = random(n).masked_fill(which == 0, 0).masked_fill(which == 1, 1)
        self.counts, self.n_rays = counts, len(counts)
        self.t_starts, self.t_ends = (ends - steps[:, 0]).to(device), ends.to(device)
        self.ray_indices = torch.arange(self.n_rays).repeat_interleave(torch.tensor(counts).long())
        self.ray_indices = self.ray_indices.to(device)
        self.sigmas, self.alphas = (x.to(device).requires_grad_() for x in (sigmas, alphas))
        self.rgbs = random(n, 3).to(device).requires_grad_()
        self.prefix = random(n).to(device)

    def rays(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split(self.counts) if self.counts else ()

    @property
    def chunks(self) -> dict:
        return {"ray_indices": self.ray_indices, "n_rays": self.n_rays}


def transmittance(scene: Scene, kept: Tensor) -> Tensor:
    """What arrives at each sample, where each keeps a share of what it gets."""
    out = []
    for ray in scene.rays(kept):
        arrives = 1 + 0 * kept.sum()  # which torch knows to depend on nothing
        for share in ray:
            out.append(arrives)
            arrives = arrives * share
    return torch.stack(out) if out else kept * 0


def sums(scene: Scene, weighted: Tensor) -> Tensor:
    """Sum [N, D] by ray: [R, D]."""
    rays = [ray.sum(0) for ray in scene.rays(weighted)]
    return torch.stack(rays) if rays else weighted[:0]


def rendered(scene: Scene, kept: Tensor, rgbs: Tensor) -> tuple[Tensor, ...]:
    """Colours, opacities, depths, weights, transmittances, opacities of samples."""
    trans = transmittance(scene, kept)
    alphas = 1 - kept
    weights = trans * alphas
    middle = (scene.t_starts + scene.t_ends) / 2
    opacities = sums(scene, weights[:, None])
    eps = torch.finfo(weights.dtype).eps
    depths = sums(scene, (weights * middle)[:, None]) / opacities.clamp_min(eps)
    return sums(scene, weights[:, None] * rgbs), opacities, depths, weights, trans, alphas


def compare(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], *inputs: Tensor) -> None:
    """Outputs, and gradients for random gradients of all outputs."""
    generator = torch.Generator().manual_seed(7)
    v = [torch.randn(e.shape, generator=generator).to(e) for e in expected]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, **CLOSE)
    grads = [
        torch.autograd.grad(
            outs, inputs, v, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for outs in (actual, expected)
    ]
    for a, e in zip(*grads, strict=True):
        torch.testing.assert_close(a, e, **CLOSE)


@thorough
@given(counts=chunk_sizes, seed=seeds)
def test_rendering_densities_is_the_papers_sums(device, counts, seed):
    scene = Scene(counts, seed, device)
    colors, opacities, depths, extras = rendering(
        scene.t_starts,
        scene.t_ends,
        **scene.chunks,
        rgb_sigma_fn=lambda *_: (scene.rgbs, scene.sigmas),
    )
    kept = torch.exp(-scene.sigmas * (scene.t_ends - scene.t_starts))
    actual = (colors, opacities, depths, extras["weights"], extras["trans"], extras["alphas"])
    if sum(counts):
        compare(actual, rendered(scene, kept, scene.rgbs), scene.sigmas, scene.rgbs)
        assert extras["sigmas"] is scene.sigmas
        assert extras["rgbs"] is scene.rgbs
    assert set(extras) == {"weights", "trans", "alphas", "sigmas", "rgbs"}
    assert colors.shape == (len(counts), 3)
    assert opacities.shape == depths.shape == (len(counts), 1)


@thorough
@given(counts=chunk_sizes, seed=seeds)
def test_rendering_opacities_is_the_papers_sums(device, counts, seed):
    scene = Scene(counts, seed, device)
    colors, opacities, depths, extras = rendering(
        scene.t_starts,
        scene.t_ends,
        **scene.chunks,
        rgb_alpha_fn=lambda *_: (scene.rgbs, scene.alphas),
    )
    actual = (colors, opacities, depths, extras["weights"], extras["trans"], extras["alphas"])
    if sum(counts):
        expected = rendered(scene, 1 - scene.alphas, scene.rgbs)
        compare(actual, expected, scene.alphas, scene.rgbs)
    assert set(extras) == {"weights", "trans", "alphas", "rgbs"}
    assert colors.shape == (len(counts), 3)


@thorough
@given(counts=chunk_sizes, seed=seeds, with_prefix=st.booleans(), with_packed=st.booleans())
def test_weights_are_transmittance_times_opacity(device, counts, seed, with_prefix, with_packed):
    scene = Scene(counts, seed, device)
    chunks = {"packed_info": pack_info(**scene.chunks)} if with_packed else scene.chunks
    prefix = scene.prefix if with_prefix else None
    factor = scene.prefix if with_prefix else 1.0
    intervals = (scene.t_starts, scene.t_ends)
    kept = torch.exp(-scene.sigmas * (scene.t_ends - scene.t_starts))
    trans = transmittance(scene, kept) * factor
    expected = (trans * (1 - kept), trans, 1 - kept)
    weights = render_weight_from_density(*intervals, scene.sigmas, **chunks, prefix_trans=prefix)
    alone = render_transmittance_from_density(
        *intervals, scene.sigmas, **chunks, prefix_trans=prefix
    )
    compare(weights, expected, scene.sigmas)
    compare(alone, expected[1:], scene.sigmas)

    trans = transmittance(scene, 1 - scene.alphas) * factor
    expected = (trans * scene.alphas, trans)
    weights = render_weight_from_alpha(scene.alphas, **chunks, prefix_trans=prefix)
    alone = render_transmittance_from_alpha(scene.alphas, **chunks, prefix_trans=prefix)
    compare(weights, expected, scene.alphas)
    compare((alone,), expected[1:], scene.alphas)


@thorough
@given(counts=chunk_sizes, seed=seeds, eps=st.sampled_from([0.0, 1e-4, 0.4]))
@pytest.mark.parametrize("alpha_thre", [0.0, 0.3])
def test_visible_is_what_light_reaches_and_what_is_not_clear(device, counts, seed, eps, alpha_thre):
    scene = Scene(counts, seed, device)
    limits = {"early_stop_eps": eps, "alpha_thre": alpha_thre}
    trans = transmittance(scene, 1 - scene.alphas).tolist()
    pairs = zip(trans, scene.alphas.tolist(), strict=True)
    expected = [t >= eps and a >= alpha_thre for t, a in pairs]
    seen = render_visibility_from_alpha(scene.alphas, **scene.chunks, **limits)
    assert seen.dtype == torch.bool
    assert seen.tolist() == expected
    # Densities whose opacities these are; those of opacity 1 are infinite in none of the sums.
    sigmas = -torch.log1p(-scene.alphas.detach().clamp(max=1 - 1e-12))
    seen = render_visibility_from_density(
        torch.zeros_like(sigmas), torch.ones_like(sigmas), sigmas, **scene.chunks, **limits
    )
    again = transmittance(scene, torch.exp(-sigmas)).tolist()
    pairs = zip(again, (1 - torch.exp(-sigmas)).tolist(), strict=True)
    clear = [abs(t - eps) > 1e-9 for t in again]
    expected = [t >= eps and a >= alpha_thre for t, a in pairs]
    assert [s for s, c in zip(seen.tolist(), clear, strict=True) if c] == [
        e for e, c in zip(expected, clear, strict=True) if c
    ]


def test_samples_at_the_limits_are_seen(device):
    alphas = torch.tensor([0.5, 0.5, 0.25], device=device)
    packed = torch.tensor([[0, 3]], device=device)
    limits = {"early_stop_eps": 0.5, "alpha_thre": 0.5}
    seen = render_visibility_from_alpha(alphas, packed, **limits)
    assert seen.tolist() == [True, True, False]
    assert render_visibility_from_alpha(alphas, packed, None, None, 0.25).all()


def test_what_comes_from_before_the_samples_hides_them(device):
    alphas = torch.tensor([0.1, 0.1], device=device)
    packed = torch.tensor([[0, 1], [1, 1]], device=device)
    prefix = torch.tensor([1e-5, 0.5], device=device)
    seen = render_visibility_from_alpha(alphas, packed, prefix_trans=prefix)
    assert seen.tolist() == [False, True]


@pytest.mark.parametrize("kind", ["sigma", "alpha"])
def test_batched_rays_render_as_flattened_ones_do(device, kind):
    scene = Scene([5] * 4, 3, device)
    values = scene.sigmas if kind == "sigma" else scene.alphas

    def render(shape: tuple[int, ...], **chunks) -> list[Tensor]:
        def field(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor | None):
            assert t_starts.shape == t_ends.shape == shape
            assert (ray_indices is None) == (not chunks)
            return scene.rgbs.reshape(*shape, 3), values.reshape(shape)

        intervals = (t.reshape(shape) for t in (scene.t_starts, scene.t_ends))
        *out, extras = rendering(*intervals, **chunks, **{f"rgb_{kind}_fn": field})
        return [*out, *(extras[k].flatten() for k in ("weights", "trans", "alphas"))]

    flattened = render((20,), **scene.chunks)
    compare(tuple(render((4, 5))), tuple(flattened), values, scene.rgbs)


@pytest.mark.parametrize("batched", [True, False])
def test_gradients_reach_the_intervals_too(device, batched):
    scene = Scene([3, 3], 5, device)
    chunks = {} if batched else scene.chunks
    shape = (2, 3) if batched else (6,)
    rgbs, sigmas = scene.rgbs.detach().reshape(*shape, 3), torch.rand(6).double() * 4
    sigmas = sigmas.to(device).reshape(shape)

    def render(t_starts: Tensor, t_ends: Tensor) -> tuple[Tensor, ...]:
        field = {"rgb_sigma_fn": lambda *_: (rgbs, sigmas)}
        return rendering(t_starts, t_ends, **chunks, **field)[:3]

    intervals = (t.reshape(shape).clone().requires_grad_() for t in (scene.t_starts, scene.t_ends))
    assert torch.autograd.gradcheck(render, tuple(intervals))


def test_a_sample_behind_something_opaque_still_learns_whether_it_is_needed(device):
    alphas = torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64, device=device, requires_grad=True)
    weights, _ = render_weight_from_alpha(alphas, torch.tensor([[0, 3]], device=device))
    (v,) = torch.autograd.grad(weights[2], alphas)
    # w_2 = (1 - a_0) (1 - a_1) a_2
    assert v.tolist() == [0.0, -0.5 * 0.25, 0.0]


def test_small_opacities_keep_their_digits(device):
    one = torch.ones(1, device=device)
    weights, _, alphas = render_weight_from_density(
        0 * one, one, 1e-9 * one, torch.tensor([[0, 1]], device=device)
    )
    torch.testing.assert_close(alphas, 1e-9 * one, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights, alphas, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["rgb_sigma_fn", "rgb_alpha_fn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_rays", [0, 3])
def test_without_samples_the_field_is_not_asked_and_the_background_is_seen(
    device, name, dtype, n_rays
):
    none = torch.zeros(0, dtype=dtype, device=device)
    rays = torch.zeros(0, dtype=torch.int64, device=device)
    background = torch.tensor([0.1, 0.2, 0.3], dtype=dtype, device=device)
    colors, opacities, depths, extras = rendering(
        none, none, rays, n_rays, **{name: lambda *_: pytest.fail("asked")}, render_bkgd=background
    )
    assert torch.equal(colors, background.expand(n_rays, 3))
    assert opacities.tolist() == depths.tolist() == [[0.0]] * n_rays
    assert colors.dtype == opacities.dtype == depths.dtype == extras["rgbs"].dtype == dtype
    assert extras["rgbs"].shape == (0, 3)
    colors.sum().backward()
    with torch.no_grad():
        colors, *_ = rendering(none, none, rays, n_rays, **{name: lambda *_: None})
    assert not colors.requires_grad


def test_batched_rays_without_samples_are_rendered(device):
    none = torch.zeros(4, 0, device=device)
    out = rendering(none, none, rgb_sigma_fn=lambda *_: pytest.fail("asked"))
    assert [tuple(o.shape) for o in out[:3]] == [(4, 3), (4, 1), (4, 1)]
    assert all((o == 0).all() for o in out[:3])


def test_a_background_shines_through_what_is_clear(device):
    starts = torch.tensor([1.0, 2.0], device=device)
    background = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], device=device)
    rgbs = torch.full((2, 3), 0.5, device=device)
    alphas = torch.tensor([0.25, 1.0], device=device)
    rays = torch.tensor([0, 1], device=device)
    colors, *_ = rendering(
        starts, starts + 1, rays, 2, rgb_alpha_fn=lambda *_: (rgbs, alphas), render_bkgd=background
    )
    expected = torch.tensor([[0.875, 0.125, 0.5], [0.5, 0.5, 0.5]], device=device)
    torch.testing.assert_close(colors, expected)


def test_half_precision_fields_render_in_that_of_the_intervals(device):
    scene = Scene([4, 0, 3], 6, device)
    rgbs = scene.rgbs.detach().half()
    # Depths are divided by at least the colours' eps: all rays here are well above it.
    sigmas = torch.full((7,), 1.5, device=device).half()
    out = rendering(
        scene.t_starts.float(),
        scene.t_ends.float(),
        **scene.chunks,
        rgb_sigma_fn=lambda *_: (rgbs, sigmas),
    )
    kept = torch.exp(-sigmas.double() * (scene.t_ends - scene.t_starts))
    expected = rendered(scene, kept, rgbs.double())
    for actual, e in zip(out[:3], expected[:3], strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), e, rtol=1e-5, atol=1e-6)


def test_float32_is_as_good_as_its_digits(device):
    scene = Scene([6, 0, 3, 5], 8, device)
    kept = torch.exp(-scene.sigmas * (scene.t_ends - scene.t_starts))
    expected = rendered(scene, kept, scene.rgbs)
    fields = scene.rgbs.float(), scene.sigmas.float()
    intervals = scene.t_starts.float(), scene.t_ends.float()
    out = rendering(*intervals, **scene.chunks, rgb_sigma_fn=lambda *_: fields)
    for actual, e in zip(out[:3], expected[:3], strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), e.detach(), rtol=1e-4, atol=1e-5)


def test_a_render_compiles_whole_and_equals_the_eager_one(device):
    scene = Scene([6, 0, 3, 5], 9, device)

    def render(rgbs: Tensor, sigmas: Tensor) -> tuple[Tensor, ...]:
        field = {"rgb_sigma_fn": lambda *_: (rgbs, sigmas)}
        *out, extras = rendering(scene.t_starts, scene.t_ends, **scene.chunks, **field)
        weights, trans = render_weight_from_alpha(extras["alphas"], **scene.chunks)
        return (*out, weights, trans)

    compiled = torch.compile(render, fullgraph=True, backend="aot_eager")
    inputs = scene.rgbs, scene.sigmas
    compare(compiled(*inputs), render(*inputs), *inputs)


@pytest.mark.parametrize("name", ["rgb_sigma_fn", "rgb_alpha_fn"])
def test_fields_of_other_shapes_are_refused(device, name):
    t = torch.zeros(4, device=device)
    rays = torch.zeros(4, dtype=torch.int64, device=device)

    def render(rgbs: Tensor, values: Tensor) -> None:
        rendering(t, t, rays, 1, **{name: lambda *_: (rgbs, values)})

    with pytest.raises(UserError, match="accumulate_along_rays"):
        render(torch.zeros(4, 5, device=device), t)
    with pytest.raises(UserError, match="squeeze"):
        render(torch.zeros(4, 3, device=device), t[:, None])
    render(torch.zeros(4, 3, device=device), t)


def test_what_cannot_be_rendered_is_refused(device):
    t = torch.zeros(4, device=device)
    rays = torch.zeros(4, dtype=torch.int64, device=device)
    with pytest.raises(UserError, match="rgb_sigma_fn or rgb_alpha_fn"):
        rendering(t, t, rays, 1)
    field = {"rgb_sigma_fn": lambda *_: pytest.fail("asked")}
    with pytest.raises(UserError, match="differ in shape"):
        rendering(t, t, rays[:2], 1, **field)
    with pytest.raises(UserError, match="number of rays"):
        rendering(t, t, rays, **field)


@pytest.mark.parametrize("name", ["rgb_sigma_fn", "rgb_alpha_fn"])
@pytest.mark.parametrize(
    ("rays", "line"),
    [
        ([-1, 0], "run from -1 to 0, but n_rays is 2"),
        ([0, 2], "run from 0 to 2, but n_rays is 2"),
        ([1, 0], "in no order"),
    ],
)
def test_samples_of_no_rays_are_refused_on_the_cpu_before_the_field_is_asked(name, rays, line):
    field = {name: lambda *_: pytest.fail("asked")}
    with pytest.raises(UserError, match=line):
        rendering(torch.zeros(2), torch.ones(2), torch.tensor(rays), 2, **field)


@pytest.mark.parametrize("shape", [(2,), (3, 3), (2, 4)])
def test_backgrounds_of_other_rays_are_refused(device, shape):
    t, fields = torch.zeros(2, 5, device=device), torch.zeros(2, 5, 3, device=device)
    with pytest.raises(UserError, match="background has shape"):
        rendering(
            *(t, t + 1),
            rgb_sigma_fn=lambda *_: (fields, t),
            render_bkgd=torch.zeros(shape, device=device),
        )


@pytest.mark.parametrize(
    "whose",
    [{"packed_info": torch.tensor([[0, 9]])}, {"ray_indices": torch.tensor([0]), "n_rays": 1}],
)
def test_samples_that_belong_to_no_ray_are_refused(whose):
    t = torch.rand(4)
    for function in (render_weight_from_density, render_visibility_from_density):
        with pytest.raises(UserError, match=r"there are 4 of all rays|must be \[4\]"):
            function(t, t, t, **whose)
    for function in (render_weight_from_alpha, render_visibility_from_alpha):
        with pytest.raises(UserError, match=r"there are 4 of all rays|must be \[4\]"):
            function(t, **whose)


def test_intervals_of_another_number_than_their_densities_are_refused(device):
    t, rays = torch.zeros(4, device=device), torch.zeros(4, device=device).long()
    with pytest.raises(UserError, match="t_starts, t_ends and sigmas differ in shape"):
        render_weight_from_density(t[:1], t, t, ray_indices=rays, n_rays=1)
    with pytest.raises(UserError, match=r"t_ends has shape \[2, 3\], must be \[2, 4\]"):
        rendering(t.repeat(2, 1), t[:3].repeat(2, 1), rgb_sigma_fn=lambda *_: pytest.fail("asked"))


# --------------------------------------------------------------------------------- accumulation


@thorough
@given(counts=chunk_sizes, seed=seeds, shuffled=st.booleans(), columns=st.integers(0, 4))
def test_accumulation_is_a_loop_over_samples_in_any_order(device, counts, seed, shuffled, columns):
    scene = Scene(counts, seed, device)
    generator = torch.Generator().manual_seed(seed)
    n = sum(counts)
    order = torch.randperm(n, generator=generator) if shuffled else torch.arange(n)
    rays = scene.ray_indices[order.to(device)]
    weights = scene.alphas
    values = torch.randn(n, columns, generator=generator).double().to(device).requires_grad_()
    expected = [torch.zeros(columns).double().to(device) for _ in counts]
    for i, ray in enumerate(rays.tolist()):
        expected[ray] = expected[ray] + weights[i] * values[i]
    out = accumulate_along_rays(weights, values, rays, scene.n_rays)
    assert out.shape == (scene.n_rays, columns)
    if n and columns:
        compare((out,), (torch.stack(expected),), weights, values)
    again = torch.ones_like(out)
    accumulate_along_rays_(weights.detach(), values.detach(), rays, again)
    torch.testing.assert_close(again, out.detach() + 1)


def test_without_values_weights_are_summed(device):
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0], device=device)
    rays = torch.tensor([2, 0, 2, 0], device=device)
    assert accumulate_along_rays(weights, None, rays, 4).tolist() == [[10], [0], [5], [0]]
    assert accumulate_along_rays(weights.reshape(2, 2)).tolist() == [[3], [12]]


def test_batched_values_are_summed_along_their_samples(device):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 4, generator=generator).to(device)
    values = torch.rand(3, 4, 2, generator=generator).to(device)
    expected = torch.einsum("rn,rnd->rd", weights, values)
    torch.testing.assert_close(accumulate_along_rays(weights, values), expected)
    outputs = torch.zeros(3, 2, device=device)
    accumulate_along_rays_(weights, values, outputs=outputs)
    torch.testing.assert_close(outputs, expected)


def test_half_precision_is_kept(device):
    weights = torch.full((3000,), 1.0, device=device).half()
    rays = torch.zeros(3000, dtype=torch.int64, device=device)
    out = accumulate_along_rays(weights, None, rays, 1)
    assert out.dtype == torch.float16
    assert out.item() == 3000  # half precision alone stops counting at 2048


def test_what_does_not_fit_is_not_accumulated(device):
    weights, rays = torch.zeros(4, device=device), torch.zeros(4, device=device).long()
    with pytest.raises(UserError, match="number of rays"):
        accumulate_along_rays(weights, None, rays)
    with pytest.raises(UserError, match="values have the shape"):
        accumulate_along_rays(weights, weights, rays, 1)
    with pytest.raises(UserError, match="differ in shape"):
        accumulate_along_rays(weights, None, rays[:3], 1)
    with pytest.raises(UserError, match="outputs of shape"):
        accumulate_along_rays_(weights, None, rays)
    with pytest.raises(UserError, match=r"give \[1, 1\]"):
        accumulate_along_rays_(weights, None, rays, torch.zeros(1, 2, device=device))
