"""Hash encoding: against its reference, what interpolation must do, and with hostile input."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops import library
from nerftrain.ops.hash_encoding import HashLevels, hash_encode, hash_encode_reference

BOTH = pytest.mark.parametrize("function", [hash_encode, hash_encode_reference])
# Two of five levels dense, over space and over space and time.
MIXED = HashLevels.geometric(num_levels=5, base=4, finest=60, log2_table_size=10)
MOVING = HashLevels.geometric(num_levels=5, base=2, finest=30, log2_table_size=10, time=(3, 12))
AXES = pytest.mark.parametrize("levels", [MIXED, MOVING], ids=["3 axes", "4 axes"])
# (features per level, levels): those of the presets, small tables; then the rest on a few levels.
LAYOUTS = {
    "16x2": (2, HashLevels.geometric(16, 16, 512, 13)),
    "8x4": (4, HashLevels.geometric(8, 16, 1024, 13)),
    "5x1": (1, MIXED),
    "5x8": (8, MIXED),
    "8x4 in time": (4, HashLevels.geometric(8, 16, 1024, 13, (2, 40))),
    "5x1 in time": (1, MOVING),
    "5x2 in time": (2, MOVING),
    "5x8 in time": (8, MOVING),
}


def random_table(levels: HashLevels, features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(levels.offsets[-1], features, generator=generator, dtype=torch.float64)


def random_positions(num: int, num_axes: int = 3, seed: int = 1) -> Tensor:
    """Half of them anywhere, half in runs as along rays, which often share a cell."""
    generator = torch.Generator().manual_seed(seed)
    anywhere = torch.rand(num // 2, num_axes, generator=generator, dtype=torch.float64)
    start = torch.rand(10, 1, num_axes, generator=generator, dtype=torch.float64)
    steps = torch.linspace(0, 0.1, (num - num // 2) // 10, dtype=torch.float64)
    return torch.cat([anywhere, ((start + steps[:, None]) % 1).flatten(0, 1)])


def gradients(function: Callable, positions: Tensor, table: Tensor, levels: HashLevels) -> tuple:
    inputs = [positions.clone().requires_grad_(), table.clone().requires_grad_()]
    features = function(*inputs, levels)
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(features.shape, generator=generator).to(features)
    return features, *torch.autograd.grad(features, inputs, v)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num", [20, 1000])
def test_hash_encode_equals_its_reference_forward_and_backward(
    device, dtype, assert_close, layout, num
):
    features, levels = LAYOUTS[layout]
    table = random_table(levels, features).to(device, dtype)
    positions = random_positions(num, levels.num_axes).to(device, dtype)
    actual = gradients(hash_encode, positions, table, levels)
    expected = gradients(hash_encode_reference, positions, table, levels)
    assert_close(actual[0], expected[0])
    assert_close(actual[2], expected[2])
    # To the positions, in cells rather than in units of the box.
    finest = levels.resolutions[-1]
    assert_close(actual[1] / finest, expected[1] / finest)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_samples_along_rays_are_summed_cell_by_cell(
    device, dtype, assert_close, layout
):
    features, levels = LAYOUTS[layout]
    num, axes = 203, levels.num_axes
    table = random_table(levels, features).to(device, dtype).requires_grad_()
    starts, ends = random_positions(18, axes)[:9], random_positions(18, axes, seed=4)[:9]
    places = torch.arange(num, dtype=torch.float64) / 23
    where = starts[places.long()].lerp(ends[places.long()], (places % 1)[:, None])
    v = torch.randn(num, len(levels.resolutions) * features, dtype=torch.float64)
    v[::5], v[40:70], v[100, 0] = 0, 0, float("nan")
    found = []
    for function in (hash_encode, hash_encode_reference):
        encoded = function(where.to(device, dtype), table, levels)
        found.append(torch.autograd.grad(encoded, table, v.to(device, dtype))[0])
    nowhere = [gradient.isnan() for gradient in found]
    assert 0 < int(nowhere[0].sum()) <= 2**axes
    assert torch.equal(*nowhere)
    assert_close(*(gradient.nan_to_num(0) for gradient in found))


# One level in order, one hashed.
@pytest.mark.parametrize(
    "levels",
    [HashLevels((3, 6), (0, 64, 96)), HashLevels((1, 6), (0, 32, 64), (3, 2))],
    ids=["3 axes", "4 axes"],
)
@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_gradients_to_table_and_positions_are_exact(device, features, levels):
    generator = torch.Generator().manual_seed(3)
    cells = torch.randint(6, (5, levels.num_axes), generator=generator)
    within = torch.rand(cells.shape, generator=generator, dtype=torch.float64) * 0.6 + 0.2
    positions = ((cells + within) / 6).to(device)  # off the faces of both levels' cells
    table = random_table(levels, features).to(device)
    inputs = (positions.requires_grad_(), table.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, t: hash_encode(p, t, levels), inputs)


@BOTH
@pytest.mark.parametrize("time", [None, (2, 7)], ids=["3 axes", "4 axes"])
def test_levels_in_order_reproduce_a_linear_function_of_the_vertices(device, function, time):
    levels = HashLevels.geometric(3, 5, 20, 17, time)
    axes = levels.num_axes
    slopes = torch.tensor([[2.0, -1.0, 0.5, 4.0], [1.0, 3.0, -2.0, -0.5]]).double()[:, :axes]
    table = torch.full((levels.offsets[-1], 2), torch.nan, dtype=torch.float64)  # between levels
    for cells, first in zip(levels.cells, levels.offsets, strict=False):
        ticks = [torch.arange(n + 1) / n for n in reversed(cells)]
        vertices = torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1).flip(-1)  # x fastest
        values = vertices.reshape(-1, axes).double() @ slopes.T + 0.25
        table[first : first + len(values)] = values
    positions = random_positions(200, axes).to(device)
    out = function(positions, table.to(device), levels)
    expected = positions @ slopes.T.to(device) + 0.25
    torch.testing.assert_close(out, expected.repeat(1, 3))


@BOTH
@pytest.mark.parametrize("times", [(), (50,)], ids=["3 axes", "4 axes"])
def test_hashed_vertices_lie_where_the_paper_puts_them(device, function, times):
    levels = HashLevels((50,), (0, 256), times)
    vertices = torch.tensor(list(itertools.product((0, 7, 33, 50), repeat=levels.num_axes)))
    table = torch.arange(256, dtype=torch.float64, device=device)[:, None]
    out = function(vertices.to(device) / 50.0, table.expand(-1, 1).contiguous(), levels)
    primes = (1, 2654435761, 805459861, 3674653429)[: levels.num_axes]
    hashes = [
        [v * p % 2**32 for v, p in zip(row, primes, strict=True)] for row in vertices.tolist()
    ]
    expected = [functools.reduce(operator.xor, row) % 256 for row in hashes]
    torch.testing.assert_close(out[:, 0].cpu(), torch.tensor(expected).double(), atol=1e-3, rtol=0)


@AXES
def test_the_gradient_to_the_table_keeps_the_sum_of_each_level(device, dtype, levels):
    table = random_table(levels, 2).to(device, dtype)
    positions = random_positions(3000, levels.num_axes).to(device, dtype)
    table.requires_grad_()
    v = torch.ones(len(positions), 5, 2).to(table)
    hash_encode(positions, table, levels).backward(v.flatten(1))
    for first, last in itertools.pairwise(levels.offsets):
        total = table.grad[first:last].sum(0)
        torch.testing.assert_close(total, torch.full_like(total, 3000.0), rtol=1e-4, atol=0)


@BOTH
@AXES
@pytest.mark.parametrize("features", [1, 4])
def test_positions_outside_the_box_count_as_on_its_faces_and_nan_as_zero(
    device, dtype, function, features, levels
):
    inf, nan = float("inf"), float("nan")
    hostile = [[-5, 0.5, 0.5, 0.2], [0.25, 1e30, -1e30, 3], [inf, -inf, 2, nan], [nan, 0.5, nan, 1]]
    faces = [[0, 0.5, 0.5, 0.2], [0.25, 1, 0, 1], [1, 0, 1, 0], [0, 0.5, 0, 1]]
    hostile, faces = (torch.tensor(rows)[:, : levels.num_axes] for rows in (hostile, faces))
    table = random_table(levels, features).to(device, dtype)
    actual = gradients(function, hostile.to(table), table, levels)
    expected = gradients(function, faces.to(table), table, levels)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[2], expected[2])
    assert actual[1].isfinite().all()
    outside = ~((hostile >= 0) & (hostile <= 1))
    assert (actual[1].cpu()[outside] == 0).all()
    assert (actual[1].cpu()[~outside] != 0).all()


@BOTH
@AXES
def test_no_positions_give_no_rows_and_a_zero_gradient(device, dtype, function, levels):
    table, axes = random_table(levels, 2).to(device, dtype), levels.num_axes
    features, v_positions, v_table = gradients(function, table.new_zeros(0, axes), table, levels)
    assert features.shape == (0, 10)
    assert v_positions.shape == (0, axes)
    assert (v_table == 0).all()
    assert v_table.shape == table.shape


def test_gradients_are_made_only_for_what_asks_for_them(device, dtype):
    table, positions = random_table(MIXED, 2).to(device, dtype), random_positions(100)
    positions = positions.to(device, dtype)
    hash_encode(positions, table.requires_grad_(), MIXED).sum().backward()
    assert positions.grad is None
    only_positions = positions.clone().requires_grad_()
    hash_encode(only_positions, table.detach(), MIXED).sum().backward()
    assert (only_positions.grad != 0).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_the_same_bits_with_any_number_of_threads(threads, dtype, layout):
    features, levels = LAYOUTS[layout]
    positions = random_positions(4000, levels.num_axes).to(dtype)
    inputs = positions, random_table(levels, features).to(dtype), levels
    threads(1)
    alone = gradients(hash_encode, *inputs)
    threads(2)
    together = gradients(hash_encode, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_the_reference_gives_the_same_bits_with_any_number_of_threads(threads):
    # So many that torch shares them out, in cells that they have in common.
    positions, table = random_positions(40_000).float(), random_table(MIXED, 4).float()
    threads(1)
    alone = gradients(hash_encode_reference, positions, table, MIXED)
    threads(2)
    together = gradients(hash_encode_reference, positions, table, MIXED)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_strided_inputs_are_taken(device, dtype, assert_close):
    table, positions = random_table(MIXED, 2).to(device, dtype), random_positions(100)
    positions = positions.to(device, dtype)
    expected = gradients(hash_encode, positions, table, MIXED)
    strided = positions.t().contiguous().t(), table.t().contiguous().t()
    assert not any(t.is_contiguous() for t in strided)
    assert_close(gradients(hash_encode, *strided, MIXED), expected)


@pytest.mark.parametrize("features", [0, 3, 16])
def test_an_impossible_number_of_features_is_refused(device, features):
    table = torch.zeros(MIXED.offsets[-1], features, device=device)
    with pytest.raises(UserError, match=f"features_per_level={features}: choose 1, 2, 4 or 8"):
        hash_encode(torch.zeros(2, 3, device=device), table, MIXED)


@AXES
def test_positions_of_other_axes_than_the_levels_are_refused(device, levels):
    axes = levels.num_axes
    table = random_table(levels, 2).to(device)
    with pytest.raises(UserError, match=f"positions have {7 - axes} axes, the levels {axes}"):
        hash_encode(torch.zeros(2, 7 - axes, device=device), table, levels)


@pytest.mark.parametrize(
    ("resolutions", "offsets"),
    [
        ([4, 4, 4, 0], [0, 125]),
        ([4, 4, 4, 2**25], [0, 125]),
        ([4, 4, 4], [0, 125]),
        ([4, 4, 4, 4], [0, 125, 250]),
        ([4, 4, 4, 4], [0, 0]),
        ([8] * 4, [0, 1]),  # a hash of one entry
    ],
)
def test_levels_that_would_lead_outside_the_table_are_refused(device, resolutions, offsets):
    inputs = torch.zeros(2, 4, device=device), torch.zeros(125, 2, device=device)
    library.native(*inputs)
    with pytest.raises(RuntimeError, match="hash encoding"):
        torch.ops.nerftrain.hash_encode_fwd(*inputs, resolutions, offsets)


def test_the_finest_levels_of_space_and_time_count_their_vertices_without_overflow(device):
    levels = HashLevels.geometric(2, 2**20, 2**20, 10, (2**20, 2**20))  # 2^80 vertices
    table, positions = random_table(levels, 2).to(device), random_positions(100, 4).to(device)
    expected = hash_encode_reference(positions, table, levels)
    torch.testing.assert_close(hash_encode(positions, table, levels), expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    num_levels=st.integers(2, 24),
    base=st.integers(1, 64),
    growth=st.integers(1, 200),
    log2_table_size=st.integers(4, 19),
    time=st.none() | st.tuples(st.integers(1, 20), st.integers(1, 20)).map(sorted).map(tuple),
)
def test_levels_grow_from_base_to_finest_within_the_table_size(
    num_levels, base, growth, log2_table_size, time
):
    finest = base * growth
    levels = HashLevels.geometric(num_levels, base, finest, log2_table_size, time)
    assert levels.resolutions[0] == base
    assert levels.resolutions[-1] == finest
    assert list(levels.resolutions) == sorted(levels.resolutions)
    sizes = [last - first for first, last in itertools.pairwise(levels.offsets)]
    times = levels.times or [0] * num_levels
    assert all(first % 8 == 0 for first in levels.offsets)
    for size, r, t in zip(sizes, levels.resolutions, times, strict=True):
        vertices = (r + 1) ** 3 * (t + 1)
        stored = size - 7 <= vertices <= size  # in order, to the next multiple of 8
        assert stored if vertices <= 2**log2_table_size else size == 2**log2_table_size
    if time:
        assert (times[0], times[-1]) == time


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("time", [None, (3, 20)])
def test_a_table_in_half_precision_is_read_in_the_place_of_the_one_that_learns(features, time):
    levels = HashLevels.geometric(5, 4, 64, 12, time)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(levels.offsets[-1], features, generator=generator)
    table = table.half().float().requires_grad_()  # so that rounding loses nothing
    positions = torch.rand(500, levels.num_axes, generator=generator)
    plain = hash_encode(positions, table, levels)
    half = hash_encode(positions, table, levels, table.detach().half())
    torch.testing.assert_close(half, plain)
    (expected,), (actual,) = (torch.autograd.grad((y * y).sum(), table) for y in (plain, half))
    torch.testing.assert_close(actual, expected)
