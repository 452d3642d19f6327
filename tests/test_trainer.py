"""The training loop: it learns, ends when told, stops on what is no number, resumes bit for bit."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nerftrain import checkpoint, trainer
from nerftrain.composition import compose
from nerftrain.config import assemble, create_run_dir
from nerftrain.errors import RunError, UserError
from nerftrain.models import mlp
from nerftrain.models.dynamic import Warp
from nerftrain.rendering import see_surface
from nerftrain.report import EVALUATION_KEY, read_curve
from nerftrain.samplers.uniform import Uniform
from nerftrain.scenes import Depths, Scene
from nerftrain.trainer import Run, State, train

COMMON = [
    "trainer.sample_budget=2048",
    "trainer.max_seconds=null",
    "trainer.orbit_frames=0",
    "trainer.intervals.log=5",
    "scheduler.warmup_steps=10",
    "logger=none",
]
NGP = ["model=ngp", "model.encoding.log2_table_size=12", "model.encoding.finest_resolution=64"]
MLP = ["model=mlp", "model.depth=2", "model.width=32", "model.skip=1", "optimizer.lr=0.01"]
OCCGRID = [
    "sampler=occgrid",
    "sampler.grid.resolution=32",
    "sampler.grid.cells_per_update=4096",
    "sampler.grid.warmup_steps=16",
    "sampler.steps_per_diagonal=64",
]
UNIFORM = ["sampler=uniform", "sampler.num_samples=32"]
COARSE = ["sampler=hierarchical", "sampler.num_coarse=8", "sampler.num_fine=8"]
LATE_ROWS = "trainer.intervals.log=50"  # of the curve: none in a short run
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tiny_scene_root: Path, tmp_path: Path) -> MakeRun:
    """Assembles a tiny run in a folder of its own name, or again in one that exists."""

    def make(name: str, *overrides: str, choice: tuple[str, ...] = (*NGP, *OCCGRID)) -> Run:
        folder = tmp_path / name
        scene = ["scene=blender", f"scene.root={tiny_scene_root}", f"run_dir={folder}"]
        run = assemble(compose([*scene, *choice, *COMMON, *overrides]))
        return replace(run, run_dir=folder) if folder.exists() else create_run_dir(run)

    return make


def test_images_that_take_long_on_a_cpu_are_told(make_run, monkeypatch, caplog):
    train(make_run("small", "trainer.steps=2"))
    assert "take long" not in caplog.text
    monkeypatch.setattr(trainer, "LARGE_SIDE", 10)  # of 24x24
    train(make_run("large", "trainer.steps=2"))
    assert "images of 24x24 take long on a CPU: scene.downscale makes" in caplog.text
    assert "3 times smaller they are 8x8" in caplog.text


def everything_learnt(run: Run) -> dict[str, torch.Tensor]:
    return {**run.model.state_dict(), **run.sampler.state_dict()}


def assert_same_bits(one: Run, other: Run) -> None:
    theirs = everything_learnt(other)
    for name, value in everything_learnt(one).items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("background", ["random", "white", "black"])
@pytest.mark.parametrize("sampler", [OCCGRID, UNIFORM], ids=["occgrid", "uniform"])
@pytest.mark.parametrize("model", [NGP, MLP], ids=["ngp", "mlp"])
def test_every_choice_learns(
    make_run: MakeRun, model: list[str], sampler: list[str], background: str
) -> None:
    steps = "trainer.steps=150"
    run = make_run("run", steps, f"background={background}", choice=(*model, *sampler))
    train(run)
    rows = [row["loss"] for row in read_curve(run.run_dir) if "loss" in row]
    assert sum(rows[-4:]) / 4 < 0.7 * rows[0]


def test_a_run_leaves_its_figures_pictures_and_report(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.steps=10", "trainer.orbit_frames=2", "logger=tensorboard")
    final = train(run)
    written = json.loads((run.run_dir / "metrics.json").read_text())
    assert {k: written[k] for k in ("psnr", "steps", "num_views", "split")} == {
        "psnr": final["psnr"],
        "steps": 10,
        "num_views": 2,
        "split": "test",
    }
    for name in ("config.yaml", "env.json", "REPORT.md", "images/comparison.png", "video.mp4"):
        assert (run.run_dir / name).stat().st_size > 0, name
    assert any((run.run_dir / "tb").iterdir())
    assert checkpoint.load(checkpoint.find(run.run_dir, "last"))["step"] == 10


def test_resume_is_bit_identical(make_run: MakeRun) -> None:
    whole = make_run("whole", "trainer.steps=40", "trainer.ema_decay=0.9")
    train(whole)
    # The schedule follows trainer.steps, so the first half must be cut off, not told to be short.
    half = make_run("half", "trainer.steps=40", "trainer.ema_decay=0.9")
    state = State(half)
    with trainer.Journal(half, state) as journal, pytest.raises(KeyboardInterrupt):
        trainer.loop(half, state, _InterruptAt(journal, 20))  # type: ignore[arg-type]
    assert checkpoint.load(checkpoint.find(half.run_dir, "last"))["step"] == 20
    again = make_run("half", "trainer.steps=40", "trainer.ema_decay=0.9")
    train(again, resume=True)
    assert_same_bits(whole, again)
    assert [r["step"] for r in read_curve(again.run_dir) if "loss" in r] == list(range(5, 41, 5))


# As a GPU's torch says, and what is left of it where an op of ours has asked for the memory.
SHORT = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError('torch_call_dispatcher( "aten::new_empty", "", ..) API call failed at ops.h'),
    RuntimeError("DefaultCPUAllocator: ... Error code 12 (Cannot allocate memory)"),
    MemoryError(),
]


@pytest.mark.parametrize("short", SHORT, ids=lambda error: type(error).__name__)
def test_a_step_that_does_not_fit_into_memory_is_tried_again_with_half_the_samples(
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    short: Exception,
) -> None:
    run, step, faults = make_run("run", "trainer.steps=10"), trainer._step, [3, 3, 7]

    def stumbling(run: Run, state: State, scene: Scene, *key: Any) -> object:
        if faults and state.step == faults[0]:
            faults.pop(0)
            raise short
        budgets.append(state.sample_budget)
        return step(run, state, scene, *key)

    budgets: list[int] = []
    monkeypatch.setattr(trainer, "_step", stumbling)
    monkeypatch.setattr(trainer, "MIN_BUDGET", 1)
    final, whole = train(run), run.settings.sample_budget
    assert final["steps"] == 10
    assert budgets == [whole] * 3 + [whole // 4] * 4 + [whole // 8] * 3
    assert [m for m in caplog.messages if m.startswith("out of memory at step 3")] != []
    monkeypatch.setattr(trainer, "MIN_BUDGET", whole)
    faults[:] = [0]
    with pytest.raises(RunError, match=r"out of memory with .* take a smaller model"):
        train(make_run("other", "trainer.steps=10"))


def test_a_gpu_on_which_nothing_runs_any_more_is_not_short_of_memory(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> Any:
        def failing(*_: object) -> None:
            raise error

        return failing

    run = make_run("run", "trainer.steps=10")
    monkeypatch.setattr(trainer, "_step", fail(SHORT[1]))
    failed = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(torch.cuda, "empty_cache", fail(failed))
    with pytest.raises(RunError, match=r"the GPU failed at step 0 \(CUDA error: an illegal"):
        train(run)


def test_a_gpu_that_fails_leaves_a_line_that_says_how_to_go_on(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError(
            "CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA"
        )

    run = make_run("run", "trainer.steps=10")
    monkeypatch.setattr(trainer, "_step", failing)
    with pytest.raises(RunError) as caught:
        train(run)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith(f"nerftrain resume {run.run_dir}")


class _InterruptAt:
    """A journal that presses Ctrl-C after a step."""

    def __init__(self, journal: trainer.Journal, step: int) -> None:
        self.journal, self.step = journal, step

    def after_step(self, *args: object) -> None:
        self.journal.after_step(*args)  # type: ignore[arg-type]
        if self.journal.state.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)

    def is_due(self) -> bool:
        return self.journal.is_due()

    def interrupt(self) -> None:
        self.journal.interrupt()


def test_ctrl_c_saves_a_whole_step_and_names_the_command(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run", "trainer.steps=1000")
    state, before = State(run), signal.getsignal(signal.SIGINT)  # ignored in the background
    with trainer.Journal(run, state) as journal, pytest.raises(KeyboardInterrupt):
        trainer.loop(run, state, _InterruptAt(journal, 7))  # type: ignore[arg-type]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("interrupted at step 7, saved")
    assert last.endswith(f"nerftrain resume {run.run_dir}")
    saved = checkpoint.load(checkpoint.find(run.run_dir, "last"))
    assert saved["step"] == 7
    assert torch.equal(saved["model"]["encoding.table"], run.model.state_dict()["encoding.table"])
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def heard_hangup() -> Iterator[None]:
    """Hear of a terminal that goes, even where nohup has begun these tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard_hangup")
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGHUP, signal.SIGHUP]],
)
def test_ctrl_c_at_the_last_save_waits_for_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys, numbers: list[signal.Signals]
) -> None:
    save = checkpoint.save

    def interrupted(*arguments: Any) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    run = make_run("run", "trainer.steps=4")
    with pytest.raises(KeyboardInterrupt):
        train(run)
    assert checkpoint.load(checkpoint.find(run.run_dir, "last"))["step"] == 4
    assert "interrupted; the trained state is saved" in capsys.readouterr().out


def test_a_terminal_that_goes_does_not_end_what_nohup_has_begun(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def hung_up(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(make_run("run", "trainer.steps=4"))["steps"] == 4
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_ctrl_c_says_what_a_second_one_costs(
    make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run", "trainer.steps=1000")
    state = State(run)
    with trainer.Journal(run, state) as journal, pytest.raises(KeyboardInterrupt):
        trainer.loop(run, state, _InterruptAt(journal, 3))  # type: ignore[arg-type]
    assert "once more ends at once, without saving" in capfd.readouterr().err


@pytest.fixture
def deadly_sigterm() -> Iterator[None]:
    """Let SIGTERM fail the test where it would end the process."""

    def die(*_: object) -> None:
        raise AssertionError("the process would have ended")

    before = signal.signal(signal.SIGTERM, die)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_resumed_run_says_where_nothing_is_left_to_train(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_run("run", "trainer.steps=4"))
    assert "no step is left" not in capsys.readouterr().out
    assert train(make_run("run", "trainer.steps=3"), resume=True)["steps"] == 4
    assert "no step is left" in capsys.readouterr().out


def test_a_resumed_run_tells_how_it_began_and_the_peak_of_all_its_processes(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(command: str, peak: int, resume: bool = True) -> dict[str, Any]:
        monkeypatch.setattr(trainer.report, "command_line", lambda: command)
        monkeypatch.setattr(trainer.report, "peak_memory_bytes", lambda: peak)
        return train(make_run("run", "trainer.steps=4"), resume)

    assert process("nerftrain scene=x", 1 << 30, resume=False)["peak_memory_bytes"] == 1 << 30
    assert process("nerftrain resume run", 1 << 20)["peak_memory_bytes"] == 1 << 30
    assert process("nerftrain resume run", 1 << 31)["peak_memory_bytes"] == 1 << 31
    told = (make_run("run").run_dir / "REPORT.md").read_text()
    assert "```\nnerftrain scene=x\nnerftrain resume run\n```" in told


@pytest.mark.usefixtures("deadly_sigterm")
def test_sigterm_while_the_film_is_made_is_an_interruption(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run", "trainer.steps=4", "trainer.orbit_frames=2")
    monkeypatch.setattr(
        trainer.video, "orbit_video", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(KeyboardInterrupt):
        train(run)
    said = capsys.readouterr().out
    assert "| PSNR " in said
    assert "interrupted; the trained state is saved" in said
    assert said.endswith(f"nerftrain resume {run.run_dir}\n")


def test_a_run_that_trains_on_has_no_figures_of_fewer_steps(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_run("run", "trainer.steps=4"))
    longer = make_run("run", "trainer.steps=8")
    monkeypatch.setattr(trainer, "loop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(longer, resume=True)
    assert not (longer.run_dir / "metrics.json").exists()
    assert not (longer.run_dir / "REPORT.md").exists()
    same = make_run("run", "trainer.steps=4")
    monkeypatch.undo()
    assert train(same, resume=True)["steps"] == 4


def test_a_run_killed_between_its_first_best_and_its_first_last_goes_on(make_run: MakeRun) -> None:
    steps = "trainer.steps=12"
    whole = make_run("whole", steps)
    train(whole)
    killed = make_run("killed", steps)
    state = State(killed)
    with trainer.Journal(killed, state) as journal, pytest.raises(KeyboardInterrupt):
        trainer.loop(killed, state, _InterruptAt(journal, 6))  # type: ignore[arg-type]
    checkpoint.find(killed.run_dir, "last").rename(killed.run_dir / "checkpoints" / "best.pt")
    again = make_run("killed", steps)
    train(again, resume=True)
    assert_same_bits(whole, again)
    assert [r["step"] for r in read_curve(again.run_dir) if "loss" in r] == [5, 10]


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_its_best(make_run: MakeRun) -> None:
    first = make_run("run", "trainer.steps=6", "trainer.intervals.evaluate_seconds=1e-6")
    train(first)
    last = checkpoint.find(first.run_dir, "last")
    last.write_bytes(last.read_bytes()[:1000])
    longer = make_run("run", "trainer.steps=8")
    with pytest.raises(UserError, match=r"cut short; .* --checkpoint best"):
        train(longer, resume=True)
    assert train(longer, resume=True, checkpoint_name="best")["steps"] == 8
    assert checkpoint.load(last)["step"] == 8


def test_a_run_ended_before_its_first_checkpoint_begins_anew(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.steps=4")
    assert train(run, resume=True)["steps"] == 4


@pytest.mark.parametrize("part", ["model", "sampler"])
def test_weights_that_are_no_numbers_are_not_saved(make_run: MakeRun, part: str) -> None:
    run = make_run("run", "trainer.steps=4", "sampler=proposal", choice=NGP)
    with torch.no_grad():
        next(iter(getattr(run, part).parameters())).view(-1)[0] = torch.nan
    with (
        trainer.Journal(run, State(run)) as journal,
        pytest.raises(
            RunError, match=r"weights are not numbers by step 0: try a lower optimizer.lr"
        ),
    ):
        journal.save("last")
    assert not checkpoint.is_there(run.run_dir)


def test_a_full_disk_costs_no_figures(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys, caplog
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise UserError(f"{path} cannot be written")

    monkeypatch.setattr(checkpoint, "save", full)
    run = make_run("run", "trainer.steps=4")
    with pytest.raises(UserError, match=r"last.pt cannot be written"):
        train(run)
    assert "| PSNR" in capsys.readouterr().out
    assert (run.run_dir / "REPORT.md").is_file()

    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device", "comparison.png")

    monkeypatch.undo()
    monkeypatch.setattr(trainer.evaluation, "write_images", no_room)
    with pytest.raises(UserError, match=r"comparison.png cannot be written .*: make room there"):
        train(make_run("other", "trainer.steps=4"))
    assert "| PSNR" in capsys.readouterr().out


def test_two_runs_of_one_seed_are_the_same_and_of_another_are_not(make_run: MakeRun) -> None:
    runs = [make_run(f"run{i}", "trainer.steps=10", f"seed={s}") for i, s in enumerate((3, 3, 4))]
    # Initial weights are drawn while a run is assembled, so each is trained on its own afterwards.
    for run in runs:
        train(run)
    assert_same_bits(runs[0], runs[1])
    table = "encoding.table"
    assert not torch.equal(runs[0].model.state_dict()[table], runs[2].model.state_dict()[table])


def test_seconds_end_a_run_and_drive_its_schedule(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.max_seconds=0.5", "trainer.steps=1000000")
    final = train(run)
    assert 0.5 <= final["train_seconds"] < 5
    state = State(run)
    state.seconds = 0.25
    assert state.progress(run.settings) == 0.5
    state.step = 750_000
    assert state.progress(run.settings) == 0.75


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_term(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.steps=20")
    with torch.no_grad():
        run.model.color_mlp.weights[0].fill_(float("nan"))  # type: ignore[union-attr,index]
    with pytest.raises(RunError, match="the color term of the loss is not a number"):
        train(run)
    assert not (run.run_dir / "checkpoints").exists()


def test_the_number_of_rays_follows_the_sample_budget(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.steps=120", choice=(*NGP, *UNIFORM))
    train(run)
    last = [row for row in read_curve(run.run_dir) if "samples" in row][-1]
    assert last["samples"] == pytest.approx(2048, rel=0.1)


def test_averaged_weights_serve_evaluation_only(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.steps=30", "trainer.ema_decay=0.5")
    train(run)
    state = checkpoint.load(checkpoint.find(run.run_dir, "last"))
    assert state["ema"].keys() == dict(run.model.named_parameters()).keys()
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    live = State(run)
    live.load_state_dict(state, run)
    with trainer.averaged_weights(run, live):
        table = run.model.state_dict()["encoding.table"]
        assert torch.equal(table, state["ema"]["encoding.table"])
        assert not torch.equal(table, before["encoding.table"])
    assert torch.equal(run.model.state_dict()["encoding.table"], before["encoding.table"])


def test_an_extra_channel_is_composited_and_learns(make_run: MakeRun) -> None:
    from nerftrain.rendering import field_functions, render

    run = make_run("run", "trainer.steps=1", "model.extra_channels={height: 1}")
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(60):
        batch = run.scene.batch(generator, 256, torch.ones(256, 3))
        sigma_fn, rgb_sigma_fn = field_functions(run.model, batch.rays)
        samples = run.sampler.sample(batch.rays, sigma_fn, generator)
        rendering = render(samples, rgb_sigma_fn, batch.background, run.model.extra_channels)
        height = rendering.extras["height"]
        assert height.shape == (256, 1)
        error = (height[:, 0] - 0.7 * rendering.opacity.detach()).square().mean()
        run.optimizer.zero_grad()
        error.backward()
        run.optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.2 * errors[0]


def test_evaluations_write_a_preview_and_keep_the_best(make_run: MakeRun) -> None:
    often = "trainer.intervals.evaluate_seconds=0.01"
    run = make_run("run", "trainer.steps=10", often, "trainer.intervals.evaluate_views=1")
    train(run)
    psnrs = [row[EVALUATION_KEY] for row in read_curve(run.run_dir) if EVALUATION_KEY in row]
    assert len(psnrs) > 1
    assert checkpoint.load(checkpoint.find(run.run_dir, "best"))["best_psnr"] == max(psnrs)
    assert (run.run_dir / "images" / "preview.png").exists()


@pytest.mark.parametrize("choice", [(*NGP, *OCCGRID), (*MLP, *UNIFORM)])
@pytest.mark.parametrize("ends", [["trainer.steps=10"], ["trainer.steps=5", LATE_ROWS]])
def test_a_run_whose_rays_meet_nothing_ends_and_says_so(
    make_run: MakeRun, choice: tuple[str, ...], ends: list[str]
) -> None:
    run = make_run("run", "scene.near=20", "scene.far=30", *ends, choice=choice)
    with pytest.raises(UserError, match=r"met anything in 5 steps: .*scene.near=20 and scene.far"):
        train(run)


def test_few_rays_that_miss_a_small_scene_do_not_end_a_run(make_run: MakeRun) -> None:
    few = "trainer.max_rays=64", "trainer.intervals.log=1", "trainer.steps=8"
    run = make_run("run", "scene.extent=0.1", "seed=2", *few, choice=(*MLP, *UNIFORM))
    train(run)
    met = [row["samples"] for row in read_curve(run.run_dir) if "loss" in row]
    assert met[0] == 0
    assert max(met) > 0


@pytest.mark.parametrize(
    "key", ["trainer.orbit_frames", "trainer.max_rays", "trainer.sample_budget", "runtime.threads"]
)
def test_what_no_machine_holds_is_refused(make_run: MakeRun, key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}=1000000000: must be at most"):
        make_run("run", f"{key}=1000000000")


class Invalid(mlp.MLP):
    """A field of somebody's own that divides by zero."""

    def density(self, positions: torch.Tensor, times: torch.Tensor | None = None) -> torch.Tensor:
        return super().density(positions, times) * math.nan


def test_a_field_whose_densities_are_not_numbers_ends_a_run(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.steps=10")
    field = Invalid(2, 16, 1, 2, 2, Warp(1, 8, 1, 1, 0.1), None, aabb=run.scene.aabb)
    run = replace(run, model=field)
    with pytest.raises(UserError, match="must give densities that are numbers"):
        train(run)


class Greedy(mlp.MLP):
    """A field of somebody's own that gives all in one tensor."""

    def forward(self, *args: Any) -> Any:
        return torch.cat([part.view(len(args[0]), -1) for part in super().forward(*args)], 1)


class Dull(mlp.MLP):
    """A field of somebody's own that forgets to return its density."""

    def density(self, positions: torch.Tensor, times: torch.Tensor | None = None) -> Any:
        super().density(positions, times)


class Idle(Uniform):
    """A sampler of somebody's own that forgets to return what it has placed."""

    def sample(self, *args: Any, **more: Any) -> Any:
        super().sample(*args, **more)


@pytest.mark.parametrize(
    ("changes", "choice", "line"),
    [
        (["model", Greedy], UNIFORM, "Greedy.forward gives Tensor, must give two tensors: chan"),
        (["model", Greedy], COARSE, "Greedy.forward gives Tensor, must give two tensors: chan"),
        (["model", Dull], OCCGRID, "Dull.density gives NoneType, must give Tensor"),
        (["sampler", Idle], UNIFORM, "Idle.sample gives NoneType, must give Samples"),
    ],
)
def test_a_plugin_that_gives_something_else_is_named(
    make_run: MakeRun, changes: list[Any], choice: list[str], line: str
) -> None:
    part, kind = changes
    own = [f"{part}._target_={__name__}.{kind.__name__}", f"trusted=[{__name__}]"]
    with pytest.raises(UserError, match=f"^{line}"):
        train(make_run("run", *own, "trainer.steps=10", choice=(*MLP, *choice)))


def test_a_checkpoint_that_cannot_be_written_does_not_end_a_run(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def save(path: Path, state: dict) -> None:
        calls.append(path.stem)
        if len(calls) == 1:
            raise UserError(f"cannot write checkpoint {path}: No space left on device")
        real(path, state)

    real = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", save)
    run = make_run("run", "trainer.steps=10", "trainer.intervals.checkpoint_seconds=0.001")
    train(run)
    assert "No space left on device" in caplog.text
    assert checkpoint.load(checkpoint.find(run.run_dir, "last"))["step"] == 10


@pytest.mark.parametrize(
    "override",
    [
        "trainer.steps=0",
        "trainer.steps=-1",
        "trainer.max_seconds=0",
        "trainer.sample_budget=0",
        "trainer.max_rays=1",
        "trainer.ema_decay=1.0",
        "trainer.distortion_weight=-1.0",
        "trainer.depth_weight=-1.0",
        "trainer.depth_weight=0.1",  # of which this scene tells nothing
        "trainer.depth_spread=0",
        "trainer.depth_spread=1.5",
        "trainer.intervals.log=0",
        "trainer.intervals.evaluate_views=-2",
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(make_run: MakeRun, override: str) -> None:
    with pytest.raises(UserError, match=override.split("=")[0].split(".")[-1]):
        make_run("run", override)


def test_surfaces_come_to_lie_where_depths_are_known(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of grey views over white, which tell that something is there and not where."""
    medians = {}
    for weight in (0.0, 0.1):
        choice = (*NGP, *UNIFORM)
        run = make_run(f"run{weight}", "trainer.steps=150", "background=white", choice=choice)
        seen = run.scene.splits["train"]
        grey = torch.tensor([128, 128, 128, 255], dtype=torch.uint8).expand(len(seen.pixels), 4)
        depths = Depths(torch.full((len(grey),), 3.9).half())
        seen = replace(seen, pixels=grey.contiguous(), depths=depths)
        scene = replace(run.scene, splits={**run.scene.splits, "train": seen})
        run = replace(run, scene=scene, settings=replace(run.settings, depth_weight=weight))
        capsys.readouterr()
        train(run)
        told = f"depths of {len(grey):,} pixels are learnt from" in capsys.readouterr().out
        assert told == (weight > 0)
        white = torch.ones(3)
        _, found = see_surface(scene, seen.cameras, 0, run.model, run.sampler, white)
        medians[weight] = float(found.median())
        rows = [row for row in read_curve(run.run_dir) if "loss" in row]
        assert ("loss/depth" in rows[-1]) == (weight > 0)
    assert abs(medians[0.1] - 3.9) < 0.1 < abs(medians[0.0] - 3.9)


def test_real_lego_is_learnt_in_a_few_hundred_steps(
    real_scene: Callable[[str], Path], tmp_path: Path
) -> None:
    root = real_scene("blender/lego")
    overrides = ["scene=lego", f"scene.root={root}", "scene.downscale=4", "logger=none"]
    overrides += ["trainer.steps=300", "trainer.max_seconds=null", "trainer.orbit_frames=0"]
    overrides += ["trainer.sample_budget=4096", f"run_dir={tmp_path / 'lego'}"]
    run = create_run_dir(assemble(compose(overrides)))
    final = train(run)
    assert (final["num_views"], final["resolution"]) == (25, "100x100")
    assert final["psnr"] > 20  # dB; a blank white picture has 9
    assert run.sampler.describe()["occupied"] < 0.07
