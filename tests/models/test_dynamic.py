"""Fields that change with time: where they start, what learns, and what stays as it was without."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nerftrain.composition import compose
from nerftrain.config import build
from nerftrain.errors import UserError
from nerftrain.models import RadianceField
from nerftrain.models.dynamic import Warp, WarpField
from nerftrain.models.encodings import HashEncoding
from nerftrain.ops import library
from nerftrain.optimizers import adam

BOX = torch.tensor([-1.0, -2.0, -3.0, 1.0, 2.0, 3.0])
NGP = [
    "model=ngp",
    "model.width=64",
    "model.encoding.log2_table_size=12",
    "model.spacetime.log2_table_size=12",
]
MLP = ["model=mlp", "model.depth=3", "model.width=32", "model.skip=2"]
VARIANTS = {
    "ngp, spacetime": [*NGP, "model.motion=spacetime"],
    "ngp, warp": [*NGP, "model.motion=warp"],
    "mlp, warp": MLP,
}
EACH = pytest.mark.parametrize("variant", VARIANTS)


def make(overrides: list[str], is_dynamic: bool = True) -> RadianceField:
    torch.manual_seed(0)
    return build(compose(overrides).model, aabb=BOX, contraction="none", is_dynamic=is_dynamic)


def points(num: int = 500, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positions = (torch.rand(num, 3, generator=generator) * 2 - 1) * BOX[3:]
    directions = torch.randn(num, 3, generator=generator)
    times = torch.rand(num, generator=generator)
    return positions, torch.nn.functional.normalize(directions, dim=-1), times


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Batches this small are slower on more, and far slower where other work takes turns."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_warp_starts_as_the_identity_and_learns_in_every_layer() -> None:
    torch.manual_seed(0)
    warp = WarpField(Warp(4, 64, 4, 4, 0.1))
    positions, times = torch.rand(200, 3), torch.rand(200)
    moved = warp(positions, times)
    torch.testing.assert_close(moved, positions, rtol=0, atol=1e-3)
    moved.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in warp.parameters())


@pytest.mark.usefixtures("single_precision")
@EACH
def test_density_and_colour_follow_time(variant: str) -> None:
    model = make(VARIANTS[variant])
    for parameter in model.parameters():  # away from the start, where nothing moves yet
        parameter.data += 0.1 * torch.randn_like(parameter)
    positions, directions, times = points()
    one = model(positions, directions, times)
    other = model(positions, directions, 1 - times)
    for before, after in zip(one, other, strict=True):
        assert not torch.allclose(before, after, rtol=1e-3)
    torch.testing.assert_close(model.density(positions, times), one[1])
    assert all(value.isfinite().all() for value in one)


@EACH
@pytest.mark.parametrize("time", [0.0, 1.0, -3.0, 7.0])
def test_the_ends_of_time_and_what_lies_beyond_them_are_finite(variant: str, time: float) -> None:
    positions, directions, _ = points(50)
    channels, density = make(VARIANTS[variant])(positions, directions, torch.full((50,), time))
    assert channels.isfinite().all()
    assert density.isfinite().all()


@EACH
def test_gradients_reach_every_parameter(variant: str) -> None:
    model = make(VARIANTS[variant])
    channels, density = model(*points())
    (channels.sum() + density.sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.usefixtures("single_precision")
@EACH
def test_compiled_ops_and_references_agree(variant: str) -> None:
    results = []
    for mode in ("auto", "reference"):
        library.set_mode(mode)
        try:
            model = make(VARIANTS[variant])
            for module in model.modules():
                if isinstance(module, HashEncoding):
                    module.storage = "float32"  # the reference knows no other
            channels, density = model(*points())
            (channels.sum() + density.sum()).backward()
            results.append((channels, density, *[p.grad for p in model.parameters()]))
        finally:
            library.set_mode("auto")
    for native, reference in zip(*results, strict=True):
        # Gradients of the finest cells to positions are large and of either sign.
        torch.testing.assert_close(native, reference, rtol=1e-3, atol=1e-3)


@EACH
def test_a_dynamic_field_without_times_says_what_it_needs(variant: str) -> None:
    model = make(VARIANTS[variant])
    positions, directions, _ = points(5)
    with pytest.raises(UserError, match="dynamic: its field needs a time"):
        model.density(positions)
    with pytest.raises(UserError, match="dynamic: its field needs a time"):
        model(positions, directions, None)


@pytest.mark.parametrize("motion", ["spacetime", "warp"])
def test_a_static_ngp_has_the_parameters_that_it_has_without_time(motion: str) -> None:
    sizes = ["model.encoding.num_levels=8", "model.color_layers=2"]
    model = make([*NGP, *sizes, f"model.motion={motion}"], is_dynamic=False)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "encoding.table": (model.encoding.levels.offsets[-1], 4),
        "density_mlp.weights.0": (64, 32),
        "density_mlp.weights.1": (16, 64),
        "color_mlp.weights.0": (64, 31),
        "color_mlp.weights.1": (64, 64),
        "color_mlp.weights.2": (3, 64),
    }
    # Nothing else draws random numbers between them: a seed gives what it gave.
    torch.manual_seed(0)
    table = torch.empty(shapes["encoding.table"]).uniform_(-1e-4, 1e-4)
    first = torch.nn.init.xavier_uniform_(torch.empty(64, 32))
    assert torch.equal(model.encoding.table, table)
    assert torch.equal(model.density_mlp.weights[0], first)


@EACH
def test_a_static_field_ignores_times(variant: str) -> None:
    model = make(VARIANTS[variant], is_dynamic=False)
    positions, directions, times = points()
    with_times, without = model(positions, directions, times), model(positions, directions)
    assert all(torch.equal(a, b) for a, b in zip(with_times, without, strict=True))
    assert not [name for name, _ in model.named_parameters() if "warp" in name or "time" in name]


def test_the_optimizer_knows_both_tables_as_tables() -> None:
    model = make(VARIANTS["ngp, spacetime"])
    groups = adam(0.01, 1e-15, 1e-6, [0.9, 0.99], True, model=model).param_groups
    tables = [group["params"] for group in groups if group["skip"]]
    assert [[len(p) for p in params] for params in tables] == [
        [model.encoding.levels.offsets[-1], model.spacetime.levels.offsets[-1]]
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.spacetime.num_levels=0", "model.spacetime.num_levels=0"),
        ("model.spacetime.base_time=0", "model.spacetime.base_time=0"),
        ("model.spacetime.finest_time=1", "base_time=4, finest_time=1"),
        ("model.warp.depth=0", "model.warp.depth=0"),
        ("model.warp.depth=65", "model.warp.depth=65: must be at most 64"),
        ("model.warp.width=5000", "model.warp.width=5000: must be at most 4096"),
        ("model.warp.time_frequencies=99", "time_frequencies=99: must be at most 32"),
        ("model.warp.time_frequencies=-1", "model.warp.time_frequencies=-1"),
        ("model.warp.reach=0", "model.warp.reach=0"),
        ("model.warp.reach=1e9", "model.warp.reach=1000000000.0: must be at most 10"),
    ],
)
@pytest.mark.parametrize("moves", [True, False])
def test_impossible_settings_are_refused_by_name(override: str, message: str, moves: bool) -> None:
    for motion in ("spacetime", "warp"):  # whether it is what they are of or not
        with pytest.raises(UserError, match=message):
            make([*NGP, f"model.motion={motion}", override], moves)


def test_no_such_motion_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean warp"):
        make([*NGP, "model.motion=wrap"])


def blob(positions: Tensor, times: Tensor) -> Tensor:
    """Give the colour [N, 3] of a ball that crosses the box."""
    angles = math.pi * times
    centre = torch.stack([-angles.cos(), angles.sin(), 0 * angles], -1) * BOX[3:] / 2
    inside = torch.exp(-3 * ((positions - centre) / BOX[3:]).square().sum(-1))
    return 0.1 + inside[:, None] * torch.tensor([0.8, 0.4, 0.6])


def error_after_training(overrides: list[str], is_dynamic: bool, steps: int) -> float:
    model = make(overrides, is_dynamic)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-15)
    for step in range(steps):
        positions, directions, times = points(1024, seed=step)
        loss = (model(positions, directions, times)[0] - blob(positions, times)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    positions, directions, times = points(4096, seed=10**6)
    with torch.no_grad():
        colours = model(positions, directions, times)[0]
    return float((colours - blob(positions, times)).square().mean())


@EACH
def test_what_moves_is_learnt_far_better_with_time_than_without(variant: str, one_thread) -> None:
    # Encodings about as fine as what is to be learnt.
    finest = ["model.encoding.finest_resolution=32", "model.spacetime.finest_resolution=16"]
    smooth = [*finest, "model.spacetime.base_resolution=4"] if "ngp" in variant else []
    overrides = [*VARIANTS[variant], *(smooth or ["model.position_frequencies=3"])]
    still, moving = (error_after_training(overrides, dynamic, 120) for dynamic in (False, True))
    assert still > 0.004
    assert moving < 0.4 * still
