"""Hash encoding: against its reference, what interpolation must do, and with hostile input."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops.hash_encoding import HashLevels, hash_encode, hash_encode_reference

BOTH = pytest.mark.parametrize("function", [hash_encode, hash_encode_reference])
MIXED = HashLevels.geometric(num_levels=5, base=4, finest=60, log2_table_size=10)  # two dense
# (features per level, levels): those of the presets, small tables; then the rest on a few levels.
LAYOUTS = {
    "16x2": (2, HashLevels.geometric(16, 16, 512, 13)),
    "8x4": (4, HashLevels.geometric(8, 16, 1024, 13)),
    "5x1": (1, MIXED),
    "5x8": (8, MIXED),
}


def random_table(levels: HashLevels, features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(levels.offsets[-1], features, generator=generator, dtype=torch.float64)


def random_positions(num: int, seed: int = 1) -> Tensor:
    """Half of them anywhere, half in runs as along rays, which often share a cell."""
    generator = torch.Generator().manual_seed(seed)
    anywhere = torch.rand(num // 2, 3, generator=generator, dtype=torch.float64)
    start = torch.rand(10, 1, 3, generator=generator, dtype=torch.float64)
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
    positions = random_positions(num).to(device, dtype)
    actual = gradients(hash_encode, positions, table, levels)
    expected = gradients(hash_encode_reference, positions, table, levels)
    assert_close(actual[0], expected[0])
    assert_close(actual[2], expected[2])
    # To the positions, in cells rather than in units of the box.
    finest = levels.resolutions[-1]
    assert_close(actual[1] / finest, expected[1] / finest)


@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_gradients_to_table_and_positions_are_exact(device, features):
    levels = HashLevels((3, 6), (0, 64, 96))  # one in order, one hashed
    generator = torch.Generator().manual_seed(3)
    cells = torch.randint(6, (5, 3), generator=generator)
    within = torch.rand(5, 3, generator=generator, dtype=torch.float64) * 0.6 + 0.2
    positions = ((cells + within) / 6).to(device)  # off the faces of both levels' cells
    table = random_table(levels, features).to(device)
    inputs = (positions.requires_grad_(), table.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, t: hash_encode(p, t, levels), inputs)


@BOTH
def test_levels_in_order_reproduce_a_linear_function_of_the_vertices(device, function):
    levels = HashLevels.geometric(3, 5, 20, 14)
    slopes = torch.tensor([[2.0, -1.0, 0.5], [1.0, 3.0, -2.0]], dtype=torch.float64)
    tables = []
    for resolution in levels.resolutions:
        z, y, x = (torch.arange(resolution + 1) / resolution for _ in range(3))
        vertices = torch.stack(torch.meshgrid(z, y, x, indexing="ij"), -1).flip(-1)  # x fastest
        tables.append(vertices.reshape(-1, 3).double() @ slopes.T + 0.25)
    positions = random_positions(200).to(device)
    out = function(positions, torch.cat(tables).to(device), levels)
    expected = positions @ slopes.T.to(device) + 0.25
    torch.testing.assert_close(out, expected.repeat(1, 3))


@BOTH
def test_hashed_vertices_lie_where_the_paper_puts_them(device, function):
    levels = HashLevels((50,), (0, 256))
    vertices = torch.tensor(list(itertools.product((0, 7, 33, 50), repeat=3)))
    table = torch.arange(256, dtype=torch.float64, device=device)[:, None]
    out = function(vertices.to(device) / 50.0, table.expand(-1, 1).contiguous(), levels)
    primes = (1, 2654435761, 805459861)
    hashes = [
        [v * p % 2**32 for v, p in zip(row, primes, strict=True)] for row in vertices.tolist()
    ]
    expected = [(x ^ y ^ z) % 256 for x, y, z in hashes]
    torch.testing.assert_close(out[:, 0].cpu(), torch.tensor(expected).double(), atol=1e-3, rtol=0)


def test_the_gradient_to_the_table_keeps_the_sum_of_each_level(device, dtype):
    table = random_table(MIXED, 2).to(device, dtype)
    positions = random_positions(3000).to(device, dtype)
    table.requires_grad_()
    v = torch.ones(len(positions), 5, 2).to(table)
    hash_encode(positions, table, MIXED).backward(v.flatten(1))
    for first, last in itertools.pairwise(MIXED.offsets):
        total = table.grad[first:last].sum(0)
        torch.testing.assert_close(total, torch.full_like(total, 3000.0), rtol=1e-4, atol=0)


@BOTH
@pytest.mark.parametrize("features", [1, 4])
def test_positions_outside_the_box_count_as_on_its_faces_and_nan_as_zero(
    device, dtype, function, features
):
    inf, nan = float("inf"), float("nan")
    hostile = torch.tensor([[-5, 0.5, 0.5], [0.25, 1e30, -1e30], [inf, -inf, 2], [nan, 0.5, nan]])
    faces = torch.tensor([[0, 0.5, 0.5], [0.25, 1, 0], [1, 0, 1], [0, 0.5, 0]])
    table = random_table(MIXED, features).to(device, dtype)
    actual = gradients(function, hostile.to(table), table, MIXED)
    expected = gradients(function, faces.to(table), table, MIXED)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[2], expected[2])
    assert actual[1].isfinite().all()
    outside = ~((hostile >= 0) & (hostile <= 1))
    assert (actual[1].cpu()[outside] == 0).all()
    assert (actual[1].cpu()[~outside] != 0).all()


@BOTH
def test_no_positions_give_no_rows_and_a_zero_gradient(device, dtype, function):
    table = random_table(MIXED, 2).to(device, dtype)
    features, v_positions, v_table = gradients(function, table.new_zeros(0, 3), table, MIXED)
    assert features.shape == (0, 10)
    assert v_positions.shape == (0, 3)
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
    inputs = random_positions(4000).to(dtype), random_table(levels, features).to(dtype), levels
    threads(1)
    alone = gradients(hash_encode, *inputs)
    threads(2)
    together = gradients(hash_encode, *inputs)
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


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    num_levels=st.integers(2, 24),
    base=st.integers(1, 64),
    growth=st.integers(1, 200),
    log2_table_size=st.integers(4, 19),
)
def test_levels_grow_from_base_to_finest_within_the_table_size(
    num_levels, base, growth, log2_table_size
):
    finest = base * growth
    levels = HashLevels.geometric(num_levels, base, finest, log2_table_size)
    assert levels.resolutions[0] == base
    assert levels.resolutions[-1] == finest
    assert list(levels.resolutions) == sorted(levels.resolutions)
    sizes = [last - first for first, last in itertools.pairwise(levels.offsets)]
    assert sizes == [min((r + 1) ** 3, 2**log2_table_size) for r in levels.resolutions]
