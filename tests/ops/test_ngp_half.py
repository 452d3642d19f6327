"""The ngp in half precision on a GPU's tensor cores: what torch makes of the same roundings."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from nerftrain.ops import library
from nerftrain.ops.hash_encoding import HashLevels, hash_encode_reference
from nerftrain.ops.ngp import ngp_reference
from nerftrain.ops.ngp_half import (
    Encoded,
    agrees,
    can_do,
    can_do_density,
    density_half,
    look_up,
    ngp_half,
    ngp_half_density,
    ngp_half_density_reference,
    ngp_half_reference,
)

Networks = tuple[list[Tensor], list[Tensor]]


def make(
    device: torch.device,
    num: int,
    geometry: int,
    color_layers: int,
    channels: int,
    sh_degree: int,
    grids: tuple[tuple[int, int, int], ...] = ((8, 4, 3),),
) -> tuple[list[Encoded], Tensor, Networks]:
    """Make grids of (levels, features, axes), directions and networks 64 wide."""
    generator = torch.Generator().manual_seed(num)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=generator) * scale
        return numbers.to(device).requires_grad_()

    encoded = []
    for levels, features, axes in grids:
        layout = HashLevels.geometric(levels, 4, 64, 10, (2, 8) if axes == 4 else None)
        table = normal(layout.offsets[-1], features, scale=0.5)
        where = torch.rand(num, axes, generator=generator).to(device).requires_grad_()
        encoded.append(Encoded(where, table, table.detach().half(), layout))
    num_features = sum(levels * features for levels, features, _ in grids)

    def layer(outputs: int, inputs: int) -> Tensor:
        return normal(outputs, inputs, scale=(2 / inputs) ** 0.5)

    hidden = [layer(64, 64) for _ in range(color_layers - 1)]
    inputs = layer(64, geometry + sh_degree**2)
    networks = (
        [layer(64, num_features), layer(1 + geometry, 64)],
        [inputs, *hidden, layer(channels, 64)],
    )
    directions = torch.nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=1)
    return encoded, directions.to(device), networks


def tables_of(encoded: list[Encoded]) -> list[Tensor]:
    return [e.table for e in encoded]


def leaves(encoded: list[Encoded], networks: Networks) -> list[Tensor]:
    return [*(t for e in encoded for t in e[:2]), *networks[0], *networks[1]]


@pytest.fixture(autouse=True)
def _needs_tensor_cores(device: torch.device) -> None:
    if not library.has_tensor_cores(torch.zeros(1, device=device)):
        pytest.skip("no tensor cores: see the emulated device")


SHAPES = {
    "default": (300, 15, 2, 3, 4),
    "one colour layer": (40, 7, 1, 3, 4),
    "extra channels": (129, 15, 2, 5, 3),
    "one sample": (1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_half_precision_is_what_torch_makes_of_the_same_roundings(
    device: torch.device, shape: tuple[int, ...]
) -> None:
    encoded, directions, networks = make(device, *shape)
    generator = torch.Generator().manual_seed(1)
    # As small as a loss over thousands of rays makes them: below half precision's normal numbers.
    v = [
        (torch.randn(size, generator=generator) * 1e-6).to(device)
        for size in ((shape[0], shape[3]), (shape[0],))
    ]

    def run(function: object) -> tuple[list[Tensor], list[Tensor]]:
        outputs = function(encoded, directions, *networks, shape[4])  # type: ignore[operator]
        return list(outputs), list(torch.autograd.grad(outputs, leaves(encoded, networks), v))

    assert can_do(tables_of(encoded), *networks)
    (actual, actual_grads), (expected, expected_grads) = run(ngp_half), run(ngp_half_reference)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-3, atol=1e-4)
    for a, e in zip(actual_grads, expected_grads, strict=True):
        assert float((a - e).abs().mean()) <= 3e-3 * float(e.abs().mean())
    density = ngp_half_density(encoded, networks[0])
    assert torch.equal(density, actual[1])
    known = look_up(encoded)
    assert torch.equal(ngp_half_density(encoded, networks[0], known), density)
    from_known = run(partial(ngp_half, known=known))
    for a, e in zip((*from_known[0], *from_known[1]), (*actual, *actual_grads), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)
    expected_density = ngp_half_density_reference(encoded, networks[0])
    torch.testing.assert_close(density, expected_density, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("num", "width", "grid"), [(300, 16, (3, 2, 3)), (1, 1, (1, 2, 3)), (150, 64, (5, 8, 3))]
)
def test_a_density_alone_may_be_of_a_narrow_network(
    device: torch.device, num: int, width: int, grid: tuple[int, int, int]
) -> None:
    encoded, _, networks = make(device, num, 1, 1, 3, 1, grids=(grid,))
    weights = [networks[0][0][:width], networks[0][1][:1, :width]]
    parts = [*(t for e in encoded for t in e[:2]), *networks[0]]
    v = torch.randn(num, generator=torch.Generator().manual_seed(1)).mul(1e-6).to(device)
    assert can_do_density(tables_of(encoded), weights)

    def run(function: object) -> tuple[Tensor, ...]:
        density = function(encoded, weights)  # type: ignore[operator]
        return density, *torch.autograd.grad(density, parts, v)

    (actual, *grads), (expected, *expected_grads) = (
        run(density_half),
        run(ngp_half_density_reference),
    )
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=1e-4)
    assert torch.equal(actual, ngp_half_density(encoded, weights))
    for a, e in zip(grads, expected_grads, strict=True):
        assert float((a - e).abs().mean()) <= 3e-3 * float(e.abs().mean())


def test_rows_of_nobody_are_left_alone_and_learn_nothing(device: torch.device) -> None:
    encoded, directions, networks = make(device, 300, 15, 2, 3, 4)
    num = 161  # rows that count: the last of them in the middle of a tile
    used, known = torch.tensor([7, num], device=device), look_up(encoded)
    known[num:] = float("nan")
    directions[num:] = float("nan")
    v = torch.randn(300, 3, device=device), torch.randn(300, device=device)
    v[0][num:] = v[1][num:] = float("nan")
    parts = leaves(encoded, networks)
    actual = ngp_half(encoded, directions, *networks, 4, known, used)
    grads = torch.autograd.grad(actual, parts, v)
    few = [e._replace(positions=e.positions[:num]) for e in encoded]
    expected = ngp_half(few, directions[:num], *networks, 4, known[:num])
    wanted = torch.autograd.grad(expected, parts, [t[:num] for t in v])
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a[:num], e)
    for a, e in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
    density = ngp_half_density(encoded, networks[0], used=used)
    assert torch.equal(density[:num], expected[1])


def test_a_grid_of_space_and_one_of_time_stand_beside_each_other(device: torch.device) -> None:
    shape = (70, 15, 2, 3, 4)
    encoded, directions, networks = make(device, *shape, grids=((8, 4, 3), (4, 4, 4)))
    actual = ngp_half(encoded, directions, *networks, 4)
    expected = ngp_half_reference(encoded, directions, *networks, 4)
    v = [torch.randn_like(t) for t in expected]
    parts = leaves(encoded, networks)
    grads = [torch.autograd.grad(outputs, parts, v) for outputs in (actual, expected)]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-3, atol=1e-4)
    for a, e in zip(*grads, strict=True):
        assert float((a - e).abs().mean()) <= 3e-3 * float(e.abs().mean())


def test_half_precision_is_near_single_precision(device: torch.device) -> None:
    encoded, directions, networks = make(device, 200, 15, 2, 3, 4)
    channels, density = ngp_half(encoded, directions, *networks, 4)
    from nerftrain.ops.hash_encoding import hash_encode_reference

    features = hash_encode_reference(encoded[0].positions, encoded[0].table, encoded[0].levels)
    expected = ngp_reference(features, directions, *networks, 4)
    assert float((channels - expected[0]).detach().abs().mean()) < 1e-3
    assert float((density / expected[1] - 1).abs().mean()) < 5e-3


def test_what_exceeds_half_precision_saturates_and_poisons_nothing(device: torch.device) -> None:
    encoded, directions, networks = make(device, 20, 15, 2, 3, 4)
    channels, density = ngp_half(encoded, directions, *networks, 4)
    v = torch.full_like(density, 1e30)
    grads = torch.autograd.grad([channels, density], leaves(encoded, networks)[1:], [channels, v])
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_no_sample_is_no_work(device: torch.device) -> None:
    encoded, directions, networks = make(device, 0, 15, 2, 3, 4)
    outputs = ngp_half(encoded, directions, *networks, 4)
    assert [t.shape for t in outputs] == [(0, 3), (0,)]
    grads = torch.autograd.grad(outputs, networks[1], [torch.zeros_like(t) for t in outputs])
    assert all(not grad.any() for grad in grads)


def test_other_networks_are_for_other_kernels(device: torch.device) -> None:
    for change in ({"geometry": 16}, {"color_layers": 3}, {"channels": 9}):
        sizes = {"geometry": 15, "color_layers": 2, "channels": 3, **change}
        encoded, _, networks = make(device, 5, sh_degree=4, **sizes)
        assert not can_do(tables_of(encoded), *networks)
    encoded, _, networks = make(device, 5, 15, 2, 3, 4, grids=((17, 4, 3),))
    assert not can_do(tables_of(encoded), *networks)
    encoded, _, networks = make(device, 5, 15, 2, 3, 4, grids=((8, 1, 3),))
    assert not can_do(tables_of(encoded), *networks)
    encoded, _, networks = make(device, 5, 15, 2, 3, 4)
    doubles = [weight.double() for weight in networks[0]]
    assert not can_do(tables_of(encoded), doubles, networks[1])
    assert not can_do(tables_of(encoded), [*networks[0], networks[0][1]], networks[1])


def test_other_widths_are_refused_by_the_op_itself(device: torch.device) -> None:
    features = torch.zeros(3, 16, dtype=torch.float16, device=device)
    weights = torch.zeros(72 * 16 + 72, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match="these widths are for others"):
        torch.ops.nerftrain.ngp_half_density(features, weights, [16, 72, 1], none)


@pytest.mark.parametrize("wrong", ["ngp_half_bwd", "ngp_half_density_bwd"])
def test_kernels_that_give_wrong_numbers_are_found_out(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    assert agrees(device)
    right = torch.ops.nerftrain

    class Wrong:
        def __getattr__(self, name: str) -> object:
            op = getattr(right, name)
            if name != wrong:
                return op
            return lambda *a: [v.flip(0) for v in op(*a)]

    monkeypatch.setattr(torch.ops, "nerftrain", Wrong())
    assert not agrees(device)


@pytest.mark.parametrize("features", [2, 4, 8])
@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("offset", [0, 1])  # of hashed levels: neighbours are read at once, or not
def test_features_are_looked_up_wherever_levels_begin(
    device: torch.device, features: int, axes: int, offset: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    times = (3, 5) if axes == 4 else ()
    levels = HashLevels((3, 9), (0, 320 + offset, 320 + offset + 128), times)
    table = torch.randn(levels.offsets[-1], features, generator=generator).to(device)
    places = torch.rand(200, axes, generator=generator) * 1.2 - 0.1  # some of them outside
    places[0], places[1] = 1.0, torch.nan
    encoded = Encoded(places.to(device), table, table.half(), levels)
    expected = hash_encode_reference(places.nan_to_num(0).to(device), table.half().float(), levels)
    torch.testing.assert_close(look_up([encoded]).float(), expected, rtol=1e-3, atol=2e-3)
