"""The benchmark script: its rows are there, its stages add up, it leaves the program as it was."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from nerftrain import nerfacc, trainer
from nerftrain.scenes import Scene

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench.py"
TINY = [
    "runtime=cpu",
    "model.encoding.log2_table_size=10",
    "model.encoding.finest_resolution=64",
    "sampler.grid.resolution=32",
    "sampler.grid.cells_per_update=4096",
    "sampler.grid.update_every=2",
    "sampler.steps_per_diagonal=64",
    "trainer.sample_budget=1024",
]
DIFFERENTIABLE = {
    "hash_encode",
    "spherical_harmonics",
    "mlp",
    "ngp",
    "composite",
    "over_background",
    "color_error",
}
Bench = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(script: ModuleType, tiny_scene_root: Path, tmp_path: Path) -> Bench:
    def run(*arguments: str) -> dict[str, Any]:
        file = tmp_path / "bench.json"
        scene = ["scene=blender", f"scene.root={tiny_scene_root}"]
        assert script.main([*arguments, *scene, *TINY, "--json", str(file)]) == 0
        return json.loads(file.read_text())

    return run


def table(document: dict[str, Any], title: str) -> dict[str, list[Any]]:
    rows = next(t["rows"] for t in document["tables"] if t["title"] == title)
    return {row[0]: row[1:] for row in rows}


def test_stages_add_up_to_the_step(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    document = bench("--warmup", "3", "--steps", "4")
    rows = table(document, "Stages of a step")
    total = rows.pop("total")
    for name in ("rays", "sample selection", "composite", "loss", "optimiser", "other"):
        assert name in rows
    # One op, march and all: nothing in it is timed by itself.
    assert "density without gradient" in rows
    assert "march" not in rows
    for name in ("field", "grid update"):
        assert {f"{name}: rest", f"{name}: encode", f"{name}: MLPs"} <= set(rows)
    assert {"backward: rest", "backward: hash_encode_bwd", "backward: composite_bwd"} <= set(rows)
    assert sum(row[0] for row in rows.values()) == pytest.approx(total[0])
    assert sum(row[1] for row in rows.values()) == pytest.approx(100)
    printed = capsys.readouterr().out
    assert printed.startswith("# Benchmark: stages\n")
    assert "## Throughput" in printed
    assert "| total " in printed


def test_stages_count_rays_samples_and_what_the_grid_discards(bench: Bench) -> None:
    document = bench("stages", "--warmup", "3", "--steps", "2")
    figures = table(document, "Throughput")
    for name in ("rays", "samples with gradient", "densities without gradient"):
        (per_step,), (per_second,) = figures[f"{name} per step"], figures[f"{name} per second"]
        assert per_step > 0
        assert per_second == pytest.approx(per_step / figures["ms per step"][0] * 1000)
    shares = table(document, "Who takes a step's time")
    assert all(share > 0 for _, share in shares.values())
    assert sum(share for _, share in shares.values()) == pytest.approx(100)
    per_ray, discarded = zip(*table(document, "Discarded samples").values(), strict=True)
    assert list(per_ray) == sorted(per_ray, reverse=True)
    assert discarded[0] == 0
    assert 0 < discarded[1] <= discarded[-1] <= 100


def test_timers_are_taken_out_again(bench: Bench) -> None:
    watched = ((Scene, "batch"), (torch.Tensor, "backward"), (trainer, "field_functions"))
    before = [getattr(owner, name) for owner, name in watched]
    bench("--warmup", "1", "--steps", "1")
    assert [getattr(owner, name) for owner, name in watched] == before
    assert isinstance(torch.ops.nerftrain.hash_encode_bwd, type(torch.ops.aten.add))


def test_a_stage_does_not_count_those_inside_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(script, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    stages = script.Stages(torch.device("cpu"))

    def inner() -> None:
        clock.now += 2

    def outer() -> None:
        clock.now += 3
        stages.timed(inner, ": encode")()
        stages.timed(inner, "march")()

    clock.now += 1
    stages.timed(outer, "field")()
    assert stages.seconds == {"other": 1, "field": 3, "field: encode": 2, "march": 2}
    names = [row[0] for row in stages.rows(1)]
    assert names == ["march", "field: rest", "field: encode", "other", "total"]


def test_ops_compare_every_op_that_has_a_reference(script: ModuleType, bench: Bench) -> None:
    document = bench("ops", "--warmup", "3", "--repeats", "1")
    rows = table(document, "Ops against their torch references")
    suffix = "_reference"
    names = {n[: -len(suffix)] for m in script.OPS for n in dir(m) if n.endswith(suffix)}
    # Which half precision there is for is a GPU's to say.
    assert set(rows) == names - {"hash_encode_half", "ngp_half", "ngp_half_density", "warp_half"}
    for name, (_, forward, reference, ratio, *backward) in rows.items():
        assert ratio == pytest.approx(reference / forward)
        assert all((figure is not None) == (name in DIFFERENTIABLE) for figure in backward)
    rows = table(document, "nerfacc's names against torch alone")
    assert {name.partition(" / ")[0] for name in rows} <= set(nerfacc.__all__)
    assert len(rows) == 5
    assert all(None not in row for row in rows.values())


def test_bounds_are_what_kernels_are_measured_against(bench: Bench) -> None:
    document = bench("bounds", "--repeats", "1")
    for title, column in (("Products", 1), ("Memory", 1)):
        rows = list(table(document, title).values())
        assert rows[0][2] == 100
        for row in rows[1:]:
            assert row[2] == pytest.approx(100 * row[column] / rows[0][column])
    assert all(min(row) > 0 for row in table(document, "Gathers by size").values())


def test_what_is_measured_against_the_facade_is_the_same(script: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([3, 0, 5, 1, 0])
    packed_info = torch.stack([counts.cumsum(0) - counts, counts], -1)
    rays = torch.arange(5).repeat_interleave(counts)
    x, rgb = torch.rand(9, generator=generator), torch.rand(9, 3, generator=generator)
    ends = torch.arange(1, 10) * 0.3
    for function, other in (
        (nerfacc.exclusive_sum, script._torch_sum),
        (nerfacc.exclusive_sum, script._torch_sum_of_all),
        (nerfacc.exclusive_prod, script._torch_prod),
    ):
        torch.testing.assert_close(function(x, packed_info), other(x, packed_info))
    where = (ends - 0.2, ends, rays, 5, lambda *_: (rgb, x))
    for torch_sum in (script._torch_sum, script._torch_sum_of_all):
        theirs = script._torch_rendering_by(torch_sum)(*where)
        for ours, others in zip(nerfacc.rendering(*where), theirs, strict=False):
            torch.testing.assert_close(ours, others)


def test_curve_scores_the_test_split_at_marks_and_at_the_end(bench: Bench) -> None:
    document = bench("curve", "--marks", "0", "--views", "1", "trainer.steps=3")
    rows, views = [t["rows"] for t in document["tables"]]
    assert [(row[1], row[4]) for row in rows] == [(1, 1), (3, 2)]  # steps, views
    ((_, num_views, median, least),) = views
    assert num_views == 2
    assert median >= least > 0


def test_what_cannot_be_measured_is_refused(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["ops", "scene=nowhere"]) == 2
    assert "scene=nowhere: no such scene" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        script.main(["start", "scene=demo"])
    with pytest.raises(SystemExit, match="2"):
        script.main(["--steps", "0"])
