"""Steps that ask a GPU nothing: in buffers of fixed sizes, recorded once and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_runs import SAMPLERS, make_dynamic
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from nerftrain import recording, trainer
from nerftrain.composition import compose
from nerftrain.config import assemble, create_run_dir
from nerftrain.models.ngp import NGP
from nerftrain.ops import library
from nerftrain.optimizers import Adam
from nerftrain.recording import AGAIN, RECORDS, Counts, Pace, Recorder
from nerftrain.rendering import field_functions, render
from nerftrain.report import read_curve
from nerftrain.runtime import Runtime
from nerftrain.samplers.uniform import Uniform
from nerftrain.scenes import Depths
from nerftrain.trainer import SPARE, Run, State, train
from nerftrain.types import Rays, Samples, SigmaFn

COMMON = [
    "trainer.sample_budget=1024",
    "trainer.max_seconds=null",
    "trainer.orbit_frames=0",
    "trainer.intervals.log=5",
    "scheduler.warmup_steps=10",
    "logger=none",
    "optimizer.lr=0.01",
]
REFINED = "refine.poses=true"
MODELS = {
    "ngp": ["model.encoding.log2_table_size=12", "model.encoding.finest_resolution=64"],
    "mlp": ["model.depth=2", "model.width=32", "model.skip=1"],
}
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tiny_scene_root: Path, tmp_path: Path) -> MakeRun:
    """Assembles a tiny run of a model and a sampler."""

    def make(
        model: str, sampler: str, *overrides: str, where: str = "cpu", moving: bool = False
    ) -> Run:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        if moving:
            make_dynamic(tiny_scene_root)
        kind = "dnerf" if moving else "blender"
        scene = [f"scene={kind}", f"scene.root={tiny_scene_root}", f"run_dir={folder}"]
        scene.append(f"runtime={where}")
        choice = [f"model={model}", *MODELS[model], f"sampler={sampler}", *SAMPLERS[sampler]]
        return assemble(compose([*scene, *choice, *COMMON, *overrides]))

    return make


def with_depths(run: Run) -> Run:
    """Let a run know how far away what half of its pixels show is, more or less."""
    train = run.scene.splits["train"]
    pixels = torch.arange(0, len(train.pixels), 2)
    depths = 4.0 + torch.rand(len(pixels), generator=torch.Generator().manual_seed(3))
    train = replace(train, depths=Depths(depths.half(), pixels))
    scene = replace(run.scene, splits={**run.scene.splits, "train": train})
    return replace(run, scene=scene, settings=replace(run.settings, depth_weight=0.01))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU take the ways of a GPU, as far as it has the ops for them."""
    library.native(torch.zeros(1))
    monkeypatch.setattr(Runtime, "has_fixed_rooms", True)


# ------------------------------------------------------------------------------------ nothing asked


def without_numbers(thing: Any) -> Any:
    """Copy something with the shapes of its tensors alone."""
    if isinstance(thing, Tensor):
        return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype)
    if isinstance(thing, dict):
        return {key: without_numbers(value) for key, value in thing.items()}
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(
            thing, **{f.name: without_numbers(getattr(thing, f.name)) for f in fields(thing)}
        )
    return thing


def forget_numbers(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(without_numbers(parameter))
        for name, buffer in part._buffers.items():
            part._buffers[name] = without_numbers(buffer)
        for name, value in vars(part).items():
            if isinstance(value, Tensor) or (is_dataclass(value) and name == "grid"):
                setattr(part, name, without_numbers(value))


def _from_the_host(*_: object, **__: object) -> None:
    raise AssertionError("numbers are copied from the host")


def _set_rows(tensor: Tensor, rows: object, value: object) -> None:
    """Assign as tensors do, but no plain numbers to some rows: they would be copied."""
    if not isinstance(value, Tensor) and isinstance(rows, Tensor):
        _from_the_host()
    _assign(tensor, rows, value)


_assign = Tensor.__setitem__


# All that changes on the way, within a few steps: warm-up, annealing, updates.
SOON = {
    "occgrid": ["sampler.grid.update_every=2", "sampler.grid.warmup_steps=4"],
    "proposal": ["sampler.teaching.anneal_steps=4", "sampler.teaching.update_warmup=4"],
}


@pytest.mark.parametrize(
    ("model", "sampler", "motion"),
    [
        *((model, sampler, []) for model in MODELS for sampler in SAMPLERS),
        *(("ngp", "occgrid", [f"model.motion={motion}"]) for motion in ("spacetime", "warp")),
        ("mlp", "occgrid", ["model.warp.depth=2"]),
        *(("ngp", sampler, [REFINED]) for sampler in SAMPLERS),
        ("ngp", "occgrid", ["model.motion=warp", REFINED]),
    ],
)
def test_a_step_with_a_room_depends_on_no_number_of_the_device(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, model: str, sampler: str, motion: list[str]
) -> None:
    more = ["trainer.distortion_weight=0.01", *SOON.get(sampler, []), *motion]
    run = with_depths(make_run(model, sampler, *more, moving=bool(motion) and motion != [REFINED]))
    state, scene = State(run), run.scene
    sizes = [split._common_size for split in scene.splits.values()]  # the host's, found only once
    library.native(torch.zeros(1))
    monkeypatch.setattr(library, "on_cpu", lambda _: False)
    with FakeTensorMode():
        forget_numbers(run.model)
        forget_numbers(run.sampler)
        forget_numbers(run.refinement)
        scene = without_numbers(scene)
        state.drawn = torch.zeros((), dtype=torch.int64)
        for split, size in zip(scene.splits.values(), sizes, strict=True):
            vars(split)["_common_size"] = size
        rates = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-15, "weight_decay": 0.0, "skip": False}
        learning = (run.model, run.sampler, run.refinement)
        every = [p for part in learning for p in part.parameters()]
        optimizer = Adam([{"params": every}], rates)
        run = replace(run, optimizer=optimizer, scene=scene)
        for _ in range(12):
            taken = trainer._step(run, state, scene, 128, 1024, None)
            run.sampler.update(state.step, run.model.density, state.generator)
            state.step += 1
            for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
                monkeypatch.setattr(owner, name, _from_the_host)  # a copy, which nobody can record
            monkeypatch.setattr(Tensor, "__setitem__", _set_rows)
        assert taken.counted.shape == (3,)
        assert all(term.shape == () for term in taken.terms.values())
        assert {"color", "distortion", "depth"} <= {*taken.terms}
        if sampler == "occgrid":  # and this would have shown it
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                trainer._step(run, state, scene, 128, None, None)


# ------------------------------------------------------------------------------- the same is learnt


def gradients(
    run: Run, room: int | None, num_rays: int = 200
) -> tuple[list[Tensor], trainer.Taken]:
    """Take one step from the same state; what the parameters' gradients are."""
    state = State(run)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.sampler.train()
    taken = trainer._step(run, state, run.scene, num_rays, room, None)
    learning = (run.model, run.sampler, run.refinement)
    grads = [p.grad for part in learning for p in part.parameters()]
    return [torch.zeros(()) if g is None else g.clone() for g in grads], taken


def settle(run: Run, steps: int = 40) -> None:
    """Train a little, so that a grid has empty cells and a field has surfaces."""
    state = State(run)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(steps):
        trainer._step(run, state, run.scene, 200, None, None)
        run.sampler.update(state.step, run.model.density, state.generator)
        state.step += 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_room_for_all_a_step_learns_what_it_learns_without(
    make_run: MakeRun, sampler: str
) -> None:
    more = {
        "occgrid": ["sampler.min_weight=0.0", "sampler.alpha_thre=0.0"],
        "proposal": ["sampler.min_weight=0.0", "sampler.min_opacity=0.0"],
    }
    # All rays meet so large a box: what is drawn for a ray depends on how many do.
    run = with_depths(make_run("ngp", sampler, "scene.extent=4", REFINED, *more.get(sampler, [])))
    settle(run)
    expected, asked = gradients(run, None)
    actual, taken = gradients(run, 1 << 14)
    for name, term in asked.terms.items():
        torch.testing.assert_close(taken.terms[name], term, rtol=1e-5, atol=1e-7)
    assert taken.counted[0] == asked.counted[0]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-7)
    assert actual[-1].abs().max() > 1e-6  # of cameras, which have none but by where samples lie


def test_rays_without_room_do_not_count(make_run: MakeRun) -> None:
    run = make_run("ngp", "occgrid", "sampler.min_weight=0.0", "sampler.alpha_thre=0.0")
    settle(run)
    _, all_of_them = gradients(run, None)
    _, taken = gradients(run, int(all_of_them.counted[1]) // 2)
    num_whole = int(taken.counted[0])
    assert taken.whole is not None
    assert 0 < num_whole < 200
    assert taken.whole.tolist() == [True] * num_whole + [False] * (200 - num_whole)
    error = torch.nn.functional.smooth_l1_loss(
        all_of_them.rgb, all_of_them.target, reduction="none"
    )
    torch.testing.assert_close(taken.terms["color"], error[:num_whole].mean())


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_fixed_rooms_train(make_run: MakeRun, sampler: str) -> None:
    run = create_run_dir(make_run("ngp", sampler, "trainer.steps=120"))
    train(run)
    rows = [row for row in read_curve(run.run_dir) if "loss" in row]
    assert rows[-1]["loss/color"] < 0.5 * rows[0]["loss/color"]
    assert rows[-1]["samples"] > 0.5 * 1024 / (2 if sampler == "hierarchical" else 1)
    assert len({row["rays"] for row in rows}) < len(rows)  # not another number every time


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_sampler_that_knows_of_no_room_is_asked_for_numbers(make_run: MakeRun) -> None:
    class Halves(Uniform):
        def sample(self, rays: Rays, sigma_fn: SigmaFn, generator: Any = None) -> Samples:  # type: ignore[override]
            return super().sample(rays, sigma_fn, generator)

    run = create_run_dir(make_run("ngp", "uniform", "trainer.steps=20"))
    run.sampler.__class__ = Halves
    train(run)
    assert len([row for row in read_curve(run.run_dir) if "loss" in row]) == 4


@torch.no_grad()
def error_of(run: Run, num_rays: int = 500) -> float:
    """Measure the error at the same pixels every time: a step's own has a few dozen others."""
    white = torch.ones(num_rays, 3)
    batch = run.scene.batch(torch.Generator().manual_seed(5), num_rays, white)
    sigma_fn, rgb_sigma_fn = field_functions(run.model, batch.rays)
    samples = run.sampler.sample(batch.rays, sigma_fn, None, room=1 << 15)
    assert bool(samples.whole.all())
    view = render(samples, rgb_sigma_fn, batch.background)
    return float((view.rgb - batch.target).square().mean())


@pytest.fixture(params=["emulated_ops", "played_ops"])
def kernels_of_a_gpu(request: pytest.FixtureRequest) -> Any:
    """The CUDA ops by a GPU that the host plays: as C++, and as nvcc compiles them."""
    return request.getfixturevalue(request.param)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("sampler", "steps", "motion", "refined"),
    [
        ("occgrid", 40, None, False),
        ("proposal", 5, None, False),
        ("occgrid", 10, "spacetime", False),
        ("occgrid", 10, "warp", False),
        ("occgrid", 10, None, True),
    ],
)
def test_training_goes_by_the_kernels_of_a_gpu(
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    kernels_of_a_gpu: Any,
    sampler: str,
    steps: int,
    motion: str | None,
    refined: bool,
) -> None:
    called: set[str] = set()
    beside_fours: list[str] = []  # what compositing cannot read in fours, so ray by ray

    class Watched:
        def __getattr__(self, name: str) -> Any:
            called.add(name)
            op = getattr(kernels_of_a_gpu, name)
            if not name.startswith("composite_"):
                return op

            def watched(*tensors: Tensor) -> Any:
                beside_fours.extend(name for t in tensors if t.data_ptr() % 16)
                return op(*tensors)

            return watched

    monkeypatch.setattr(torch.ops, "nerftrain", Watched())
    monkeypatch.setattr(library, "on_cpu", lambda _: False)
    small = ["trainer.sample_budget=256", f"trainer.steps={steps}", "model.width=64"]
    few = ["trainer.intervals.evaluate_seconds=null", "sampler.grid.update_every=8"]
    few = few[: 2 if sampler == "occgrid" else 1]
    if sampler == "occgrid" and steps < 40:  # few looks at cells, which take most of the time
        few.append("sampler.grid.warmup_steps=512")
    few += [f"model.motion={motion}"] if motion else []
    few += [REFINED] if refined else []
    run = create_run_dir(make_run("ngp", sampler, *small, *few, moving=motion is not None))
    assert isinstance(run.model, NGP)
    assert (run.model.spacetime is not None) == (motion == "spacetime")
    assert (run.model.warp is not None) == (motion == "warp")
    state, learns = State(run), steps == 40
    before = error_of(run) if learns else 0.0
    with trainer.Journal(run, state) as journal:
        trainer.loop(run, state, journal)
    rows = [row for row in read_curve(run.run_dir) if "loss" in row]
    assert rows[-1]["step"] == steps
    assert not beside_fours
    if learns:
        assert error_of(run) < 0.7 * before
    fields = {"hash_encode_half", "ngp_half_density", "ngp_half_fwd", "ngp_half_bwd"}
    assert {*fields, "composite_fwd", "composite_bwd", "adam_placed_"} <= called
    assert {"draw_pixels", "over_background_fwd", "over_background_bwd", "color_error"} <= called
    if sampler == "occgrid":
        assert {"march_runs", "march_fill", "select_pick", "select_more_", "fit"} <= called
        assert not {"march_count", "visit_count", "hash_encode_fwd"} & called
    else:  # proposals' fields too
        assert "ngp_half_density_bwd" in called
        assert "hash_encode_fwd" not in called
    if sampler == "occgrid":
        assert "gather_rows" in called  # kept samples find their features again
    moves = run.refinement.moves
    if moves is not None:
        assert moves.isfinite().all()
        assert (moves.abs().amax(1) > 0).all()  # of every camera
    if motion == "warp" and not refined:  # which asks for gradients that it does not give
        assert {"warp_half_fwd", "warp_half_bwd"} <= called


@pytest.mark.usefixtures("as_on_a_gpu")
def test_rays_that_go_on_in_rounds_see_what_one_round_sees(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, kernels_of_a_gpu: Any
) -> None:
    monkeypatch.setattr(torch.ops, "nerftrain", kernels_of_a_gpu)
    monkeypatch.setattr(library, "on_cpu", lambda _: False)
    steps = ["sampler.steps_per_diagonal=300", "sampler.early_stop_eps=0.9"]
    run = make_run("ngp", "occgrid", "model.width=64", "sampler.min_weight=0.0", *steps)
    sampler, model = run.sampler, run.model
    for step in range(32):  # a ball of fog in the middle
        generator = torch.Generator().manual_seed(step)
        sampler.update(step, lambda x, _: 20.0 * (x.norm(dim=-1) < 0.8), generator)
    rays = run.scene.batch(torch.Generator().manual_seed(0), 300, torch.ones(300, 3)).rays

    def seen() -> tuple[Samples, Any]:
        density, _ = field_functions(model, rays, remember=True)
        samples = sampler.sample(rays, density, torch.Generator().manual_seed(1), room=6000)
        known = density.recall(samples)  # type: ignore[attr-defined]
        assert known is not None
        return samples, known

    monkeypatch.setattr("nerftrain.samplers.occgrid.ROUND", 20)
    in_rounds, known = seen()
    few = int(sampler.num_evaluated)
    monkeypatch.setattr("nerftrain.samplers.occgrid.ROUND", 10_000)
    at_once, known_at_once = seen()
    assert few < int(sampler.num_evaluated)  # rays that were opaque did not go on
    num = int(at_once.offsets[-1])
    assert num > 1000
    assert torch.equal(in_rounds.offsets, at_once.offsets)
    for name in ("t_starts", "t_ends", "ray_indices"):
        assert torch.equal(getattr(in_rounds, name)[:num], getattr(at_once, name)[:num])
    for a, b in zip(known, known_at_once, strict=True):
        assert torch.equal(a[:num], b[:num])


# ---------------------------------------------------------------------------------------- recording


class Graph:
    """Stands in for a CUDA graph: what is captured is called again."""

    made: ClassVar[list[Graph]] = []
    error: str | None = None

    def __init__(self) -> None:
        self.replays = 0
        self.made.append(self)

    def register_generator_state(self, generator: torch.Generator) -> None:
        assert isinstance(generator, torch.Generator)

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert pool == "pool"

    def capture_end(self) -> None:
        if self.error:
            raise RuntimeError(self.error)

    def replay(self) -> None:
        self.replays += 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_on_cuda_are_recorded_and_learn_as_launched_ones(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, sampler: str, refined: bool
) -> None:
    recorders: list[Recorder] = []
    recorded: list[int] = []

    class Watched(Recorder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            recorders.append(self)

        def step(self, *key: Any) -> Any:
            taken = super().step(*key)
            recorded.append(self.num_records)
            return taken

    monkeypatch.setattr(trainer, "Recorder", Watched)
    losses = []
    for graph in ("true", "false"):
        more = [f"runtime.cuda_graph={graph}", "model.width=64", "trainer.steps=400"]
        more += [REFINED] if refined else []
        run = create_run_dir(make_run("ngp", sampler, *more, where="auto"))
        train(run)
        rows = [row for row in read_curve(run.run_dir) if "loss" in row]
        losses.append(sum(row["loss/color"] for row in rows[-10:]) / 10)
    assert recorders[0].why_not is None
    assert max(recorded) > 0
    assert recorders[1].why_not == "runtime.cuda_graph=false"
    assert losses[0] == pytest.approx(losses[1], rel=0.3)


class FakeSampler:
    recorded = ("last",)
    last = 0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder[str]:
    monkeypatch.setattr(Graph, "made", [])
    monkeypatch.setattr(Graph, "error", None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    sampler = FakeSampler()

    def take(*key: object) -> str:
        sampler.last += 1
        return f"{key} {sampler.last}"

    return Recorder(take, torch.Generator(), sampler, None)


def test_a_step_that_comes_again_is_recorded_and_replayed(recorder: Recorder[str]) -> None:
    taken = [recorder.step(64, "a") for _ in range(AGAIN + 4)]
    assert taken == [f"(64, 'a') {min(i, AGAIN) + 1}" for i in range(AGAIN + 4)]
    assert [graph.replays for graph in Graph.made] == [4]
    assert recorder.step(64, "b") == f"(64, 'b') {AGAIN + 2}"
    assert recorder._sampler.last == AGAIN + 2
    assert recorder.step(64, "a") == taken[-1]
    assert recorder._sampler.last == AGAIN + 1  # what the recorded step leaves behind


def test_steps_that_change_are_not_recorded_and_old_records_go(recorder: Recorder[str]) -> None:
    for number in range(3 * AGAIN):
        recorder.step(number)
    assert Graph.made == []
    for number in range(RECORDS + 2):
        for _ in range(AGAIN + 1):
            recorder.step(number)
    assert recorder.num_records == RECORDS
    recorder.step(RECORDS + 1)
    assert Graph.made[-1].replays == 2
    recorder.forget()
    assert recorder.num_records == 0


def test_a_step_that_cannot_be_recorded_is_taken_and_why_is_said_once(
    recorder: Recorder[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Graph, "error", "operation not permitted\nwhen stream is capturing")
    with caplog.at_level(logging.WARNING):
        for _ in range(AGAIN + 5):
            assert recorder.step(1).startswith("(1,)")
    assert len(caplog.messages) == len(Graph.made) == 1
    assert "operation not permitted (runtime.cuda_graph=false does not try)" in caplog.text
    assert recorder.why_not == "operation not permitted"


def test_too_little_memory_is_for_the_trainer(
    recorder: Recorder[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(*_: object) -> str:
        if Graph.made:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ""

    recorder._take = take
    for _ in range(AGAIN):
        recorder.step(1)
    monkeypatch.setattr(
        Graph, "error", "capture was invalidated"
    )  # said last, and beside the point
    with pytest.raises(torch.OutOfMemoryError):
        recorder.step(1)


def test_counts_come_at_once_where_nothing_is_late() -> None:
    pace = Pace(torch.device("cpu"))
    assert pace.passed(64, torch.tensor([60, 1000, 4000])) == Counts(64, 60, 1000, 4000)
    assert pace.settle() < 0.1
    with recording.own_stream(torch.device("cpu")):
        pass


def test_the_number_of_rays_leaps_to_what_fits_and_stays(make_run: MakeRun) -> None:
    run = make_run("ngp", "occgrid", "trainer.max_rays=4096")
    state, settings = State(run), run.settings
    state.follow_budget(settings, None, leaps=True)
    state.follow_budget(settings, Counts(99, 99, 10, 10), leaps=True)  # of another number of rays
    assert state.num_rays == 512
    state.follow_budget(settings, Counts(512, 512, 512, 512), leaps=True)  # half of the room
    assert state.num_rays == 1024  # twice as many, and no more at once
    budget = state.sample_budget
    state.follow_budget(settings, Counts(1024, 700, budget, 0), leaps=True)  # a third left out
    assert state.num_rays == 1024
    state.follow_budget(settings, Counts(1024, 1024, budget - 20, 0), leaps=True)  # a few too few
    assert state.num_rays == pytest.approx(1024 * SPARE, rel=0.1)
    drawn = int(state.num_rays)
    state.follow_budget(settings, Counts(drawn, drawn // 2, budget, 0), leaps=True)  # half left out
    assert state.num_rays == pytest.approx(drawn / 2 * SPARE, rel=0.1)
    for _ in range(20):
        state.follow_budget(settings, Counts(int(state.num_rays), int(state.num_rays), 1, 1), True)
    assert state.num_rays == 4096
