"""Models: shapes, ranges, extra channels and gradients; the ngp's two layouts, the mlp's skip."""

import pytest
import torch
from torch.nn import functional

from nerftrain.composition import compose
from nerftrain.config import build
from nerftrain.errors import UserError
from nerftrain.models import RadianceField, mlp
from nerftrain.models.encodings import FrequencyEncoding, truncated_exp
from nerftrain.ops import library

BOX = torch.tensor([-1.0, -2.0, -3.0, 1.0, 2.0, 3.0])
CHOICES = ["ngp", "ngp_16x2", "mlp"]


def make(name: str, *overrides: str) -> RadianceField:
    small = ["model.encoding.log2_table_size=12"] if name.startswith("ngp") else []
    torch.manual_seed(0)
    return build(compose([f"model={name}", *small, *overrides]).model, aabb=BOX)


def points(num: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    positions = (torch.rand(num, 3, generator=generator) * 2 - 1) * BOX[3:]
    return positions, functional.normalize(torch.randn(num, 3, generator=generator), dim=-1)


@pytest.mark.parametrize("name", CHOICES)
def test_colours_lie_in_0_to_1_and_densities_are_not_negative(name: str) -> None:
    channels, density = make(name)(*points())
    assert channels.shape == (50, 3)
    assert density.shape == (50,)
    assert ((channels >= 0) & (channels <= 1)).all()
    assert (density >= 0).all()


@pytest.mark.parametrize("name", CHOICES)
def test_density_alone_is_the_density_of_the_whole(name: str) -> None:
    model = make(name)
    positions, directions = points()
    torch.testing.assert_close(model.density(positions), model(positions, directions)[1])


@pytest.mark.parametrize("name", CHOICES)
def test_colour_depends_on_the_direction_and_density_does_not(name: str) -> None:
    model = make(name)
    positions, directions = points()
    one, other = model(positions, directions), model(positions, -directions)
    assert not torch.allclose(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("name", CHOICES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = make(name)
    channels, density = model(*points(500))
    (channels.sum() + density.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", CHOICES)
def test_extra_channels_follow_the_colour_unbounded(name: str) -> None:
    model = make(name, "model.extra_channels={semantics: 2, height: 1}")
    channels, _ = model(*points())
    assert channels.shape == (50, 6)
    assert (channels[:, 3:] < 0).any()
    assert model.extra_channels == {"semantics": 2, "height": 1}


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("name", CHOICES)
def test_compiled_ops_and_references_agree(name: str) -> None:
    model = make(name)
    native = model(*points())
    library.set_mode("reference")
    try:
        reference = model(*points())
    finally:
        library.set_mode("auto")
    torch.testing.assert_close(native[0], reference[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(native[1], reference[1], rtol=1e-4, atol=1e-5)


def test_the_nerf_mlp_takes_double_precision() -> None:
    field, (positions, directions) = make("mlp"), points()
    field.eval()
    expected = field(positions, directions)
    actual = field.double()(positions.double(), directions.double())
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a.float(), e, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_nerf_mlp_rounds_products_where_a_cpu_multiplies_so(monkeypatch, training) -> None:
    field, (positions, directions) = make("mlp").train(training), points()
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda _: False)
    exact = field(positions, directions)
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda _: True)
    rounded = field(positions, directions)
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("num", [0, 1, mlp.BLOCK, 2 * mlp.BLOCK + 300])
def test_the_nerf_mlp_takes_a_block_at_a_time_without_gradients(monkeypatch, num, rounds) -> None:
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda _: rounds)
    field, (positions, directions) = make("mlp", "model.width=16"), points(num)
    with_gradients = [*field(positions, directions), field.density(positions)]
    sizes, linear = set[int](), functional.linear

    def spied(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        sizes.add(len(x))
        return linear(x, *weights)

    monkeypatch.setattr(functional, "linear", spied)
    with torch.no_grad():
        without = [*field(positions, directions), field.density(positions)]
    assert max(sizes) <= mlp.BLOCK
    bounds = {"rtol": 0.02, "atol": 1e-3} if rounds else {"rtol": 1e-5, "atol": 1e-6}
    for a, b in zip(without, with_gradients, strict=True):
        torch.testing.assert_close(a, b, **bounds)


@pytest.mark.parametrize(("skip", "said"), [(0, False), (2, False), (3, True), (4, True)])
def test_a_skip_after_the_last_layer_says_that_it_has_no_effect(
    skip: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make("mlp", "model.depth=3", f"model.skip={skip}")
    assert (f"skip={skip} has no effect on 3 layers" in caplog.text) == said


def test_the_published_layout_has_its_published_size() -> None:
    published = build(compose(["model=ngp_16x2"]).model, aabb=BOX)
    levels = published.encoding.levels
    assert len(levels.resolutions) == 16
    assert (levels.resolutions[0], levels.resolutions[-1]) == (16, 4096)
    assert max(b - a for a, b in zip(levels.offsets[:-1], levels.offsets[1:], strict=True)) == 2**19
    assert published.encoding.table.shape[1] == 2


@pytest.mark.parametrize(
    "override",
    [
        "model.encoding.num_levels=0",
        "model.encoding.features_per_level=3",
        "model.encoding.log2_table_size=40",
        "model.encoding.finest_resolution=4",
        "model.sh_degree=9",
        "model.width=0",
        "model.width=1000000000",
        "model.color_layers=1000000000",
        "model.geometry_features=1000000000",
        "model.extra_channels={a: 0}",
        "model.extra_channels={a: 1000000000}",
    ],
)
def test_impossible_sizes_are_refused_by_name(override: str) -> None:
    with pytest.raises(UserError, match=override.split("=")[0].split(".")[-1]):
        build(compose(["model=ngp", override]).model, aabb=BOX)


@pytest.mark.parametrize("key", ["depth", "width", "position_frequencies", "direction_frequencies"])
def test_sizes_that_no_memory_holds_are_refused_by_name(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}=1000000000: must be at most"):
        build(compose(["model=mlp", f"model.{key}=1000000000"]).model, aabb=BOX)


def test_frequencies_are_sines_and_cosines_of_powers_of_two() -> None:
    x = torch.tensor([[0.1, 0.2, 0.3]])
    out = FrequencyEncoding(2)(x)
    angles = torch.cat([x, 2 * x], -1)
    torch.testing.assert_close(out, torch.cat([x, angles.sin(), angles.cos()], -1))


def test_the_density_activation_neither_overflows_nor_explodes() -> None:
    x = torch.tensor([0.0, 20.0, 200.0], requires_grad=True)
    y = truncated_exp(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad[0] == pytest.approx(1)
    assert x.grad[1] == x.grad[2] == pytest.approx(float(torch.tensor(15.0).exp()), rel=1e-5)


@pytest.mark.parametrize("driven_to", [-8.0, -12.0, -60.0, -1e4])
def test_an_mlp_that_has_been_driven_to_nothing_still_learns(driven_to: float) -> None:
    model = make("mlp")
    with torch.no_grad():
        model.density_head.weight.zero_()
        model.density_head.bias.fill_(driven_to)
    density = model.density(points()[0])
    expected = torch.nn.functional.softplus(torch.full((50,), driven_to))
    torch.testing.assert_close(density, expected, rtol=1e-5, atol=1e-9)
    density.mean().backward()
    assert model.density_head.bias.grad is not None
    assert 6e-3 < float(model.density_head.bias.grad) < 7e-3  # as at -5
