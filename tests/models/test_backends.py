"""Who evaluates the hash grid and its MLPs: compiled ops, torch, or tiny-cuda-nn where it is."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn

from nerftrain import assemble, compose
from nerftrain.errors import UserError
from nerftrain.models.dynamic import Spacetime
from nerftrain.models.ngp import NGP
from nerftrain.models.tcnn import TcnnEncoding
from nerftrain.ops import library
from nerftrain.ops.march import March, Marching, pack_grid
from nerftrain.types import Rays, Thresholds

SMALL = (
    "scene=demo",
    "model=ngp",
    "model.encoding.log2_table_size=10",
    "model.encoding.finest_resolution=64",
    "model.encoding.storage=float32",
    "model.color_layers=2",
    "model.encoding.num_levels=8",
    "sampler.grid.resolution=32",
    "runtime=cpu",
)


def model(*overrides: str) -> Any:
    return assemble(compose([*SMALL, *overrides])).model


def points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(50, 3, generator=generator) - 0.5
    return positions, nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=1)


def test_a_gpu_evaluates_the_field_in_half_precision_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, emulated_ops: Any
) -> None:
    positions, directions = points()
    wide = "model.width=64"
    exact = model(wide, "model.backend=torch")
    field, changed = model(wide), model(wide)
    changed.__class__ = type("Changed", (NGP,), {"activate": lambda self, raw: raw.sigmoid()})
    monkeypatch.setattr(torch.ops, "nerftrain", emulated_ops)
    monkeypatch.setattr(library, "on_cpu", lambda _: False)
    assert field.evaluated_by() == "compiled ops in half precision"
    assert {exact.evaluated_by(), changed.evaluated_by()} == {"torch", "compiled ops"}
    channels, density = field(positions, directions)
    expected, expected_density = exact(positions, directions)
    assert 0 < float((channels - expected).detach().abs().mean()) < 2e-3
    assert float((density / expected_density - 1).detach().abs().mean()) < 2e-3
    with torch.no_grad():
        torch.testing.assert_close(field.density(positions), density)
    library.set_half_precision(False)
    try:
        assert field.evaluated_by() == "compiled ops"
        torch.testing.assert_close(field(positions, directions)[0], expected, rtol=1e-4, atol=1e-5)
    finally:
        library.set_half_precision(True)


@pytest.mark.usefixtures("single_precision")
def test_torch_and_compiled_ops_give_the_same_field_and_gradients():
    figures = []
    for backend in ("native", "torch"):
        field = model(f"model.backend={backend}")
        assert field.evaluated_by() == ("torch" if backend == "torch" else "compiled ops")
        positions, directions = points()
        channels, density = field(positions, directions)
        torch.testing.assert_close(field.density(positions), density)
        (channels.sum() + density.sum()).backward()
        gradients = [p.grad for p in field.parameters()]
        assert all(g is not None for g in gradients)
        figures.append([channels, density, *gradients])
    for compiled, by_torch in zip(*figures, strict=True):
        torch.testing.assert_close(compiled, by_torch, rtol=1e-3, atol=1e-6)


def test_compiled_ops_that_do_not_serve_are_an_error_where_they_are_asked_for():
    with pytest.raises(UserError, match=r"model.backend=native.*doctor"):
        model("model.backend=native", "runtime.ops=reference")
    field = model("model.backend=auto", "runtime.ops=reference")
    assert field.evaluated_by() == "torch"


def test_tiny_cuda_nn_without_a_gpu_or_without_the_package_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU.*model.backend=auto"):
        model("model.backend=tcnn")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(InstantiationException, match=r"pip install.*tiny-cuda-nn.*backend=auto"):
        built()


def built() -> NGP:
    """Build the model alone: no other part may believe that there is a GPU."""
    config = compose([*SMALL, "model.backend=tcnn"])
    arguments = {k: v for k, v in config.model.items() if k not in ("name", "hints")}
    return instantiate(arguments, aabb=torch.tensor([-1.0, -1, -1, 1, 1, 1]))


class StandIn(nn.Module):
    """What tiny-cuda-nn's modules look like from outside: one flat `params`, half precision out."""

    def __init__(self, num_inputs: int, num_outputs: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.num_outputs = config, num_outputs
        self.params = nn.Parameter(torch.rand(num_inputs * num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype in (torch.float32, torch.float16)
        assert len(x), "CUDA error: invalid argument"
        return (x.float() @ self.params.view(-1, self.num_outputs)).half()


def test_tiny_cuda_nn_gets_what_the_config_says(monkeypatch):
    def encoding(num_inputs: int, config: dict[str, Any]) -> StandIn:
        return StandIn(num_inputs, config["n_levels"] * config["n_features_per_level"], config)

    package = SimpleNamespace(Encoding=encoding, Network=StandIn)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", package)
    made = built()
    assert made.evaluated_by() == "tiny-cuda-nn"
    grid: Any = made.encoding.table
    assert grid.config == {
        "otype": "HashGrid",
        "n_levels": 8,
        "n_features_per_level": 4,
        "log2_hashmap_size": 10,
        "base_resolution": 16,
        "per_level_scale": pytest.approx(4 ** (1 / 7)),
    }
    networks: Any = made.density_mlp.network, made.color_mlp.network
    assert [n.config["otype"] for n in networks] == ["FullyFusedMLP"] * 2
    assert [n.config["n_hidden_layers"] for n in networks] == [1, 2]
    channels, density = made(*points())
    assert channels.dtype == density.dtype == torch.float32
    torch.testing.assert_close(made.density(points()[0]), density)
    assert ((channels >= 0) & (channels <= 1)).all()
    (channels.sum() + density.sum()).backward()
    assert all(p.grad is not None for p in made.parameters())
    nothing = [t[:0] for t in made(*(t[:0] for t in points()))]
    assert [t.shape for t in nothing] == [(0, 3), (0,)]
    assert made.find(None, None, None) is None  # type: ignore[arg-type]


def test_tiny_cuda_nn_has_no_grid_over_time(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace())

    grid = Spacetime(2, 2, 10, 4, 8, 2, 4).build()
    with pytest.raises(UserError, match=r"motion=warp"):
        TcnnEncoding(grid)


def test_ops_along_rays_leave_fields_that_others_have_changed_alone():
    class Denser(NGP):
        def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
            return 2 * super().density(positions, times)

    positions, directions = points()
    ones = torch.ones(50)
    rays = Rays(positions, directions, 0 * ones, ones)
    cells = torch.ones(1, 16, 16, 16, dtype=torch.bool)
    marching = Marching(0 * ones, pack_grid(cells, (-1, -1, -1, 1, 1, 1)), March(0.1, 0.0, 100))
    made = model()
    thresholds = Thresholds(0.1, 0.0, 0.0)
    assert made.find(rays, marching, thresholds) is not None
    draw = made.drawing(rays)
    assert draw is not None
    assert draw(marching, thresholds).opacity.shape == (50,)
    made.__class__ = Denser
    assert made.find(rays, marching, thresholds) is None
    assert made.drawing(rays) is None

    class Rotated(type(made.encoding)):
        def forward(self, positions: Tensor) -> Tensor:
            return super().forward(positions.flip(1))

    made = model()
    made.encoding.__class__ = Rotated
    assert made.find(rays, marching, thresholds) is None
