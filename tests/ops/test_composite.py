"""Compositing: against its reference, against the formulas, and at the edges of both."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nerftrain.ops import library
from nerftrain.ops.composite import Composited, composite, composite_reference
from nerftrain.types import Samples

NAMES = (*Composited._fields, "density's gradient", "channels' gradient")
RAYS_OWN = NAMES[:4]  # the others are of samples
Composite = Callable[[Tensor, Tensor, Samples], Composited]


def random_inputs(samples: Samples, num_channels: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    like = samples.t_starts
    density = torch.rand(len(samples), generator=generator).pow(4) * 40  # from nothing to opaque
    density[::5] = 0
    channels = torch.randn(len(samples), num_channels, generator=generator)
    return density.to(like), channels.to(like)


def gradients(
    function: Composite, density: Tensor, channels: Tensor, samples: Samples, num_outputs: int = 7
) -> list:
    """The first outputs, and gradients for random gradients of all these."""
    inputs = [density.clone().requires_grad_(), channels.clone().requires_grad_()]
    out = function(*inputs, samples)[:num_outputs]
    generator = torch.Generator().manual_seed(2)
    v = [torch.randn(o.shape, generator=generator).to(o) for o in out]
    return [*out, *torch.autograd.grad(out, inputs, v)]


def one_ray(*intervals: tuple[float, float], like: torch.device) -> Samples:
    edges = torch.tensor(intervals, dtype=torch.float64)
    offsets = torch.tensor([0, len(intervals)])
    zeros = torch.zeros(len(intervals), dtype=torch.int64)
    return Samples(edges[:, 0].contiguous(), edges[:, 1].contiguous(), zeros, offsets).to(like)


@pytest.mark.parametrize("longest", [20, 300])  # a GPU takes 128 samples at a time
@pytest.mark.parametrize("num_channels", [0, 1, 3, 12])
@pytest.mark.parametrize("num_outputs", [2, 7])  # which have gradients
def test_composite_equals_its_reference_forward_and_backward(
    make_samples, dtype, assert_close, num_channels, longest, num_outputs
):
    samples = make_samples(longest=longest, dtype=dtype)
    inputs = random_inputs(samples, num_channels)
    actual = gradients(composite, *inputs, samples, num_outputs)
    expected = gradients(composite_reference, *inputs, samples, num_outputs)
    assert_close(actual, expected)
    assert actual[0].shape == (50, num_channels)


def test_gradients_to_density_and_channels_are_exact(make_samples):
    samples = make_samples(num_rays=5, longest=4, dtype=torch.float64)
    density, channels = random_inputs(samples, 2)
    inputs = (density.requires_grad_(), channels.requires_grad_())
    assert torch.autograd.gradcheck(lambda d, c: tuple(composite(d, c, samples)), inputs)


@pytest.mark.parametrize("function", [composite, composite_reference])
def test_outputs_are_the_sums_of_the_papers(make_samples, function):
    samples = make_samples(num_rays=8, longest=6, dtype=torch.float64)
    density, channels = random_inputs(samples)
    out = function(density, channels, samples)
    starts, ends, sigma = samples.t_starts.tolist(), samples.t_ends.tolist(), density.tolist()
    for r in range(8):
        ray = range(int(samples.offsets[r]), int(samples.offsets[r + 1]))
        middle = {i: (starts[i] + ends[i]) / 2 for i in ray}
        weight, transmittance = {}, 1.0
        for i in ray:
            kept = math.exp(-sigma[i] * (ends[i] - starts[i]))
            weight[i] = transmittance * (1 - kept)
            assert out.alphas[i].item() == pytest.approx(1 - kept)
            assert out.transmittance[i].item() == pytest.approx(transmittance)
            transmittance *= kept
            assert out.weights[i].item() == pytest.approx(weight[i])
        spread = sum(weight[i] * weight[j] * abs(middle[i] - middle[j]) for i in ray for j in ray)
        spread += sum(weight[i] ** 2 * (ends[i] - starts[i]) / 3 for i in ray)
        assert out.distortion[r].item() == pytest.approx(spread)
        assert out.opacity[r].item() == pytest.approx(1 - transmittance)
        assert out.depth[r].item() == pytest.approx(sum(weight[i] * middle[i] for i in ray))
        for k in range(3):
            value = sum(weight[i] * channels[i, k].item() for i in ray)
            assert out.channels[r, k].item() == pytest.approx(value)


@pytest.mark.parametrize("function", [composite, composite_reference])
def test_empty_rays_give_zeros(make_samples, dtype, function):
    samples = make_samples(dtype=dtype)
    out = function(*random_inputs(samples), samples)
    empty = samples.offsets[1:] == samples.offsets[:-1]
    assert empty.sum() > 10
    for values in (out.channels, out.opacity, out.depth, out.distortion):
        assert (values[empty] == 0).all()
        assert (values[~empty] != 0).any()


@pytest.mark.parametrize("function", [composite, composite_reference])
@pytest.mark.parametrize("num_rays", [0, 4])
def test_rays_without_any_sample_give_zeros_and_empty_gradients(device, dtype, function, num_rays):
    none = torch.zeros(0, dtype=dtype, device=device)
    indices = torch.zeros(0, dtype=torch.int64, device=device)
    offsets = torch.zeros(num_rays + 1, dtype=torch.int64, device=device)
    *out, v_density, v_channels = gradients(
        function, none, none.view(0, 3), Samples(none, none, indices, offsets)
    )
    shapes = [(num_rays, 3), (num_rays,), (num_rays,), (num_rays,), (0,), (0,), (0,)]
    assert [tuple(o.shape) for o in out] == shapes
    assert all((o == 0).all() for o in out)
    assert v_density.shape == (0,)
    assert v_channels.shape == (0, 3)


def test_weights_sum_to_the_opacity(make_samples, dtype, assert_close):
    samples = make_samples(dtype=dtype)
    out = composite(*random_inputs(samples), samples)
    sums = torch.zeros_like(out.opacity).index_add(0, samples.ray_indices, out.weights)
    assert_close(sums, out.opacity)
    assert out.weights.min() >= 0
    assert out.opacity.max() <= 1 + 1e-6


@pytest.mark.parametrize("function", [composite, composite_reference])
@pytest.mark.parametrize("opaque", [1e4, 1e10, 3e38])
def test_an_opaque_sample_hides_what_is_behind_it_and_nothing_else(device, dtype, function, opaque):
    samples = one_ray((1, 2), (2, 3), (3, 4), (5, 6), like=device)
    density = torch.tensor([0.5, opaque, 2.0, opaque], dtype=dtype, device=device)
    channels = torch.eye(4, dtype=dtype, device=device)
    # Without the opacities of samples, which do not care what is in front of them.
    *out, v_density, v_channels = gradients(function, density, channels, samples, 5)
    kept = math.exp(-0.5)
    expected = torch.tensor([1 - kept, kept, 0, 0], dtype=dtype, device=device)
    torch.testing.assert_close(out[4], expected)
    torch.testing.assert_close(out[0][0], expected)
    assert all(o.isfinite().all() for o in out)
    assert v_density.isfinite().all()
    assert (v_density[2:] == 0).all()
    assert v_density[0] != 0
    assert (v_channels[2:] == 0).all()


def test_gradients_of_rays_with_huge_densities_are_finite(make_samples, dtype):
    samples = make_samples(dtype=dtype)
    density, channels = random_inputs(samples)
    density[::7] = 1e30
    assert all(x.isfinite().all() for x in gradients(composite, density, channels, samples))


def test_extra_channels_do_not_change_the_first(make_samples, dtype):
    samples = make_samples(dtype=dtype)
    density, channels = random_inputs(samples, 5)
    more, fewer = (composite(density, c.contiguous(), samples) for c in (channels, channels[:, :3]))
    assert torch.equal(more.channels[:, :3], fewer.channels)
    for name in ("opacity", "depth", "distortion", "weights"):
        assert torch.equal(getattr(more, name), getattr(fewer, name))


@pytest.mark.parametrize("num_channels", [3, 5])
def test_a_ray_does_not_depend_on_its_neighbours(make_samples, dtype, num_channels):
    samples = make_samples(dtype=dtype)
    first, last = samples.offsets[17], samples.offsets[19]  # rays 17 and 18
    density, channels = random_inputs(samples, num_channels)
    of_others = torch.ones_like(density, dtype=torch.bool)
    of_others[first:last] = False
    expected = gradients(composite, density, channels, samples)
    density[of_others], channels[of_others] = math.nan, math.inf
    actual = gradients(composite, density, channels, samples)
    for name, one, other in zip(NAMES, actual, expected, strict=True):
        own = slice(17, 19) if name in RAYS_OWN else slice(first, last)
        assert torch.equal(one[own], other[own]), name


def test_a_ray_may_lie_anywhere(make_samples, dtype, assert_close):
    samples = make_samples(dtype=dtype)
    density, channels = random_inputs(samples)
    whole = composite(density, channels, samples)
    first, last = samples.offsets[17], samples.offsets[19]  # rays 17 and 18
    part = Samples(
        samples.t_starts[first:last],
        samples.t_ends[first:last],
        samples.ray_indices[first:last] - 17,
        samples.offsets[17:20] - first,
    )
    alone = composite(density[first:last], channels[first:last], part)
    # A GPU adds up single precision by where a ray lies, all else in the order of its samples.
    in_order = library.on_cpu(density) or dtype == torch.float64
    compare = torch.testing.assert_close if in_order else assert_close
    exactly = {"rtol": 0, "atol": 0} if in_order else {}
    compare(alone.channels, whole.channels[17:19], **exactly)
    compare(alone.weights, whole.weights[first:last], **exactly)


def test_where_there_are_no_rays_all_rows_are_cleared(device, dtype):
    rows = torch.ones(9, dtype=dtype, device=device)
    nobodys = torch.zeros(9, dtype=torch.int64, device=device)
    samples = Samples(rows, rows + 1, nobodys, nobodys[:1])
    out = gradients(composite, rows, torch.ones_like(rows[:, None]).repeat(1, 3), samples)
    for name, value in zip(NAMES, out, strict=True):
        assert value.shape[0] == (0 if name in RAYS_OWN else 9)
        assert (value == 0).all(), name


def test_distortion_vanishes_for_one_infinitely_thin_sample(device):
    ones = torch.ones(1, 1, dtype=torch.float64, device=device)
    thin = composite(1e12 * ones[0], ones, one_ray((2.0, 2.0 + 1e-9), like=device))
    thick = composite(1e12 * ones[0], ones, one_ray((2.0, 2.5), like=device))
    assert thin.opacity.item() == pytest.approx(1.0)
    assert thin.distortion.item() == pytest.approx(0.0, abs=1e-9)
    assert thick.distortion.item() == pytest.approx(0.5 / 3)


def test_strided_inputs_and_intervals_of_another_precision_are_taken(make_samples, assert_close):
    samples = make_samples()
    density, channels = (x.double() for x in random_inputs(samples))
    expected = composite_reference(density, channels, samples)
    wide = torch.stack([samples.t_starts, samples.t_ends], 1)
    strided = Samples(wide[:, 0], wide[:, 1], samples.ray_indices, samples.offsets)
    across = channels.t().contiguous().t()
    sparse = torch.stack([density, density], 1)[:, 0]
    assert not any(t.is_contiguous() for t in (wide[:, 0], across, sparse))
    assert_close(composite(sparse, across, strided), expected)
    wide = wide.double()
    doubled = Samples(wide[:, 0], wide[:, 1], samples.ray_indices, samples.offsets)
    assert_close(composite(density, channels, doubled), expected)


def test_results_are_the_same_bits_with_any_number_of_threads(make_samples, threads):
    samples = make_samples(num_rays=3000)
    inputs = random_inputs(samples)
    threads(1)
    alone = gradients(composite, *inputs, samples)
    threads(2)
    together = gradients(composite, *inputs, samples)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
