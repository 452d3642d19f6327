"""The training loop, and what it must remember to be taken up again."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor

from nerftrain import checkpoint, evaluation, memory, report, video
from nerftrain.bounds import MOST_BUDGET, MOST_FRAMES, MOST_RAYS, check_at_most
from nerftrain.checks import check_made
from nerftrain.errors import RunError, UserError
from nerftrain.losses import ColorLoss, Kind, depth_loss, distortion_loss, mean_of_whole
from nerftrain.models import RadianceField
from nerftrain.ops.adam import refresh_half_copies
from nerftrain.optimizers import Adam
from nerftrain.recording import Counts, Pace, Recorder, own_stream
from nerftrain.refinement import Refinement
from nerftrain.rendering import Background, field_functions, render
from nerftrain.runtime import Runtime
from nerftrain.samplers import Sampler
from nerftrain.scenes import Scene
from nerftrain.schedules import Schedule
from nerftrain.spacing import Kind as Spacing
from nerftrain.types import Batch, Cameras, Rendering, Samples

_log = logging.getLogger(__name__)

FIRST_RAYS = 512  # of the first step; then their number follows the sample budget
MIN_RAYS = 64
MIN_BUDGET = 1024  # samples of a step
LARGE_SIDE = 1600  # pixels, of images on a CPU; nerfstudio shrinks larger ones by itself
FILM_PIXELS = 800  # the longer side of the video at the end, at most
GROWTH = 1.2  # of the number of rays from step to step, at most
# Where a GPU is not asked for numbers, rays that find no room are marched in vain: how many are
# drawn for each that is likely to find room, how many there may come to be until their number is
# chosen anew (what is recorded is of one number), and what it is a multiple of.
SPARE, MOST_SPARE, RAYS_APART = 1.25, 1.8, 64
ENOUGH_RAYS = 2048  # to tell that all miss: of what fills 1 % of images, one in 10**9 times


@dataclass(frozen=True)
class Intervals:
    """How often a run logs, evaluates and saves.

    What each means is said in conf/trainer/default.yaml.
    """

    log: int
    evaluate_seconds: float | None
    evaluate_views: int
    checkpoint_seconds: float | None

    def __post_init__(self) -> None:
        """Refuse, with a UserError, intervals that never end."""
        for name in ("log", "evaluate_seconds", "evaluate_views", "checkpoint_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}={value}: must be more than 0")


@dataclass(frozen=True)
class Settings:
    """How a run trains; what each means is said in conf/trainer/default.yaml."""

    steps: int
    max_seconds: float | None
    sample_budget: int
    max_rays: int
    loss: Kind
    distortion_weight: float
    distortion_spacing: Spacing
    ema_decay: float | None
    orbit_frames: int
    intervals: Intervals
    huber_delta: float = 1.0
    depth_weight: float = 0.0
    depth_spread: float = 0.01

    @property
    def color_loss(self) -> ColorLoss:
        """What makes the first term of the loss, and samplers' own."""
        return ColorLoss(self.loss, self.huber_delta)

    def __post_init__(self) -> None:
        """Refuse, with a UserError, what cannot be trained with."""
        if self.huber_delta <= 0:
            raise UserError(f"huber_delta={self.huber_delta}: must be more than 0")
        for name in ("steps", "max_seconds", "sample_budget"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}={value}: must be more than 0")
        if self.max_rays < MIN_RAYS:
            raise UserError(f"max_rays={self.max_rays}: must be at least {MIN_RAYS}")
        if min(self.distortion_weight, self.depth_weight, self.orbit_frames) < 0:
            raise UserError("distortion_weight, depth_weight and orbit_frames must not be negative")
        if not 0 < self.depth_spread < 1:
            raise UserError(
                f"depth_spread={self.depth_spread}: must be more than 0 and less than 1"
            )
        check_at_most(MOST_FRAMES, orbit_frames=self.orbit_frames)
        check_at_most(MOST_RAYS, max_rays=self.max_rays)
        check_at_most(MOST_BUDGET, sample_budget=self.sample_budget)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(
                f"ema_decay={self.ema_decay}: must be between 0 and 1, or null for none"
            )


@dataclass(frozen=True)
class Run:
    """Everything that a run is made of, built and checked."""

    scene: Scene
    model: RadianceField
    sampler: Sampler
    refinement: Refinement
    optimizer: torch.optim.Optimizer
    scheduler: Schedule
    background: Background
    settings: Settings
    runtime: Runtime
    logger: report.TensorBoard
    seed: int
    config: dict[str, Any]
    run_dir: Path

    def __post_init__(self) -> None:
        """Refuse, with a UserError, a loss of what the scene does not tell."""
        weight, wanted = self.settings.depth_weight, self.config["scene"].get("depths")
        if weight > 0 and self.scene.splits["train"].depths is None and wanted != "auto":
            raise UserError(
                f"trainer.depth_weight={weight:g} has no effect, for no depth is known in "
                f"{self.scene.name}: leave it out; scene=colmap reads some by scene.depths=points, "
                "scene=transforms by scene.depths=maps"
            )


@dataclass(frozen=True)
class Taken:
    """What a step was, in tensors whose numbers nobody need know yet."""

    terms: dict[str, Tensor]  # of the loss, []
    rgb: Tensor  # [R, 3], as each ray's image has exposed it
    target: Tensor  # [R, 3]
    whole: Tensor | None  # [R], the rays that count; None: all
    counted: Tensor  # [3] int64: rays that count, samples, densities without gradient


class State:
    """What changes from step to step besides weights, optimiser and sampler."""

    def __init__(self, run: Run) -> None:
        """Start at step zero with the run's seed."""
        self.step = 0
        self.seconds = 0.0  # of training alone
        self.num_rays = float(min(FIRST_RAYS, run.settings.max_rays))
        self.sample_budget = run.settings.sample_budget  # less where memory has run out
        self.best_psnr = float("-inf")
        command = report.command_line()
        self.commands = [] if command is None else [command]  # by which the run came here
        self.earlier_peak = 0  # bytes of memory, of the processes before this one
        self.sums: dict[str, Tensor] = {}  # of each term of the loss over all steps
        self.generator = run.runtime.generator(run.seed)
        # Pixels so far, counted from anywhere; on the device, where recorded steps count on.
        anywhere = {"generator": self.generator, "device": self.generator.device}
        self.drawn = torch.randint(2**31, (), **anywhere)
        parameters = run.model.named_parameters() if run.settings.ema_decay else ()
        self.ema = {name: p.detach().clone() for name, p in parameters}

    def peak_memory_bytes(self) -> int | None:
        """Return the peak of memory of all processes that the run has had; None: not known."""
        return max(report.peak_memory_bytes() or 0, self.earlier_peak) or None

    def progress(self, settings: Settings) -> float:
        """Return the share of the run that is done.

        It follows whichever of steps and seconds will end the run.
        """
        by_seconds = self.seconds / settings.max_seconds if settings.max_seconds else 0.0
        return min(1.0, max(self.step / settings.steps, by_seconds))

    def follow_budget(self, settings: Settings, counts: Counts | None, leaps: bool) -> None:
        """Choose the next number of rays so that a step has sample_budget samples with gradients.

        Densities without gradient cost about a quarter of such a sample: four times the budget is
        their limit. In leaps it stays as it is until it would be off by far, for what a GPU has
        recorded is of one number of rays; then counts come late, and those of another number, or
        None, change nothing.
        """
        if counts is None or (leaps and counts.drawn != int(self.num_rays)):
            return
        fit = self.sample_budget / max(counts.samples, counts.evaluated / 4, 1.0)
        if not leaps:
            self.num_rays *= min(GROWTH, 0.8 + 0.2 * fit)
        else:
            fitting = fit * counts.whole / counts.drawn  # of the rays drawn; more than 1: too few
            if 1 / MOST_SPARE < fitting <= 1:
                return
            growth = min(SPARE * fitting, 2.0)
            self.num_rays = RAYS_APART * round(self.num_rays * growth / RAYS_APART)
        self.num_rays = min(max(self.num_rays, MIN_RAYS), settings.max_rays)

    def make_do(self) -> None:
        """Halve the samples of a step, after one that did not fit into memory.

        Raises RunError where not even a small step fits.
        """
        if self.sample_budget // 2 < MIN_BUDGET:
            raise RunError(
                f"out of memory with {self.sample_budget} samples a step: free some, or take a "
                "smaller model (model.encoding.log2_table_size)"
            )
        self.sample_budget //= 2
        self.num_rays = max(self.num_rays / 2, MIN_RAYS)

    def notice(self, terms: dict[str, Tensor]) -> None:
        """Add terms of the loss to their sums: once one was no number, no sum is one any more."""
        for name, term in terms.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(term)
            self.sums[name].add_(term.detach())

    def follow_weights(self, run: Run) -> None:
        """Move the averaged weights towards the weights."""
        for name, parameter in run.model.named_parameters() if self.ema else ():
            self.ema[name].lerp_(parameter.detach(), 1 - float(run.settings.ema_decay or 0))

    def state_dict(self, run: Run) -> dict[str, Any]:
        """Collect everything that going on needs."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "num_rays": self.num_rays,
            "best_psnr": self.best_psnr,
            "commands": self.commands,
            "peak_memory_bytes": self.peak_memory_bytes(),
            "random": self.generator.get_state(),
            "drawn": self.drawn,
            "ema": self.ema,
            "model": run.model.state_dict(),
            "sampler": run.sampler.state_dict(),
            "refinement": run.refinement.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "config": run.config,
        }

    def load_state_dict(self, state: dict[str, Any], run: Run) -> None:
        """Go on from a checkpoint.

        Raises UserError where it is not of this run's objects.
        """
        rates = [group["lr"] for group in run.optimizer.param_groups]
        checkpoint.restore(
            state,
            model=run.model,
            sampler=run.sampler,
            refinement=run.refinement,
            optimizer=run.optimizer,
        )
        # The run's config, overrides of the command line included, says what the rates are.
        for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate
        self.step, self.seconds = state["step"], state["seconds"]
        self.num_rays, self.best_psnr = state["num_rays"], state["best_psnr"]
        earlier = state.get("commands", [])  # older checkpoints do not say, nor of memory
        self.commands = [*earlier, *(c for c in self.commands if c not in earlier[-1:])]
        self.earlier_peak = state.get("peak_memory_bytes") or 0
        self.generator.set_state(state["random"])
        self.drawn.copy_(state.get("drawn", self.drawn))  # older checkpoints do not say
        for name, value in state["ema"].items() if self.ema else ():
            self.ema[name].copy_(value)


def train(run: Run, resume: bool = False, checkpoint_name: str | None = None) -> dict[str, Any]:
    """Train to the end, evaluate, and write everything that a run leaves behind.

    A run is resumed from the checkpoint of that name or path, or else from its last one. Returns
    the final figures. Raises KeyboardInterrupt after an interrupted run has been saved,
    RunError where the loss is no longer a number, UserError where a checkpoint cannot be read, a
    file not be written, or rays meet nothing.
    """
    state = State(run)
    if resume and (checkpoint_name is not None or checkpoint.is_there(run.run_dir)):
        _take_up(run, state, checkpoint_name)
    else:  # what was ended before its first checkpoint begins anew
        report.say(f"training {run.run_dir}")
    if state.progress(run.settings) < 1:
        report.forget_results(run.run_dir)  # those of fewer steps
    else:
        report.say(
            f"no step is left after {state.seconds:.0f} s: trainer.steps and trainer.max_seconds "
            "are of the run as a whole, more of them train on"
        )
    by, device = run.model.evaluated_by(), run.runtime.torch_device
    report.say(f"the field is evaluated by {by} on {device}")
    depths = run.scene.splits["train"].depths
    if depths is not None and run.settings.depth_weight > 0:
        count = int(depths.values.count_nonzero())
        report.say(f"depths of {count:,} pixels are learnt from, as scene.depths says")
    if device.type == "cpu":
        _warn_of_large_images(run.scene.splits["train"].cameras)
    report.write_env(run.run_dir)
    if run.scene.world is not None:
        report.write_world(run.run_dir, run.scene.world)
    unsaved = None
    with Journal(run, state) as journal:
        loop(run, state, journal)
        journal.stop_if_all_is_empty()
        with _interruptible() as interrupted:
            try:
                journal.save("last")
            except UserError as error:  # a full disk must not cost the figures
                unsaved = error
    try:
        if interrupted.is_set():
            raise KeyboardInterrupt
        # Signals that would end it in silence.
        with _handled(signal.default_int_handler, signal.SIGTERM, *_hangup()):
            final = _finish(run, state)
    except KeyboardInterrupt:
        if unsaved is None:
            report.say(f"interrupted; the trained state is saved: {_resume_command(run)}")
        raise
    if unsaved is not None:
        raise unsaved
    return final


def _take_up(run: Run, state: State, checkpoint_name: str | None) -> None:
    if checkpoint_name is None:
        path = checkpoint.find_last(run.run_dir)
    else:
        path = checkpoint.find(run.run_dir, checkpoint_name)
    state.load_state_dict(checkpoint.load(path), run)
    report.say(f"resuming {run.run_dir} at step {state.step}")


def _warn_of_large_images(cameras: Cameras) -> None:
    largest = int(torch.argmax(cameras.widths * cameras.heights))
    width, height = int(cameras.widths[largest]), int(cameras.heights[largest])
    if max(width, height) > LARGE_SIDE:
        smaller = math.ceil(max(width, height) / LARGE_SIDE)
        _log.warning(
            "images of %dx%d take long on a CPU: scene.downscale makes them smaller, %d times "
            "smaller they are %dx%d",
            *(width, height, smaller, round(width / smaller), round(height / smaller)),
        )


def _on_device(scene: Scene, device: torch.device) -> Scene:
    """Copy a scene to the device; raises UserError where its images do not fit."""
    try:
        return scene.to(device)
    except RuntimeError as error:
        if not memory.has_run_out(error):
            raise
        taken = sum(split.pixels.nbytes for split in scene.splits.values()) / 2**30
        raise UserError(
            f"the images take {taken:.1f} GiB, more than the GPU has free: give a larger "
            "scene.downscale, or train by runtime=cpu"
        ) from error


def loop(run: Run, state: State, journal: Journal) -> None:
    """Train until the run's steps or seconds are done; the journal is told of every step.

    A step that does not fit into a GPU's memory is tried again with half the samples. Raises
    RunError where the GPU fails.
    """
    settings, optimizer, sampler = run.settings, run.optimizer, run.sampler
    device, fixed = run.runtime.torch_device, _has_rooms(run)
    scene = _on_device(run.scene, device)
    base_rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    run.model.train()
    take = partial(_step, run, state, scene)
    steps = Recorder(take, state.generator, sampler, _why_not_recorded(run))
    pace = Pace(device)
    with _interruptible() as interrupted, own_stream(device):
        while state.progress(settings) < 1:
            started = time.perf_counter()

            factor = run.scheduler.factor(state.step, state.progress(settings))
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["initial_lr"], group["lr"] = rate, rate * factor

            try:
                _bring_up_to_date(run)
                room = state.sample_budget if fixed else None
                taken = steps.step(int(state.num_rays), room, sampler.phase())
                sampler.update(state.step, run.model.density, state.generator)
            except (RuntimeError, MemoryError) as error:
                steps.forget()
                _after_fault(run, state, error)
                continue

            state.step += 1
            counts = pace.passed(len(taken.rgb), taken.counted)
            state.follow_budget(settings, counts, leaps=fixed)
            state.seconds += time.perf_counter() - started
            if journal.is_due() or state.progress(settings) >= 1:
                state.seconds += pace.settle()
            journal.after_step(taken, counts)

            if interrupted.is_set():
                journal.interrupt()
                raise KeyboardInterrupt


def _has_rooms(run: Run) -> bool:
    """Tell whether samples lie in buffers of fixed sizes; samplers of others may know of none."""
    return run.runtime.has_fixed_rooms and "room" in signature(run.sampler.sample).parameters


def _why_not_recorded(run: Run) -> str | None:
    """Say why steps are launched kernel by kernel; None: they can be recorded."""
    if run.runtime.torch_device.type != "cuda" or not _has_rooms(run):
        return "there is no GPU with compiled ops, or the sampler takes no room"
    if not run.runtime.cuda_graph:
        return "runtime.cuda_graph=false"
    if not isinstance(run.optimizer, Adam):
        return "the optimizer takes its rate from the host"
    return None


def _bring_up_to_date(run: Run) -> None:
    """Put what the host has changed where a recorded step reads it."""
    if isinstance(run.optimizer, Adam):
        run.optimizer.place_rates()
    if run.runtime.has_fixed_rooms:
        refresh_half_copies([*run.model.parameters(), *run.sampler.parameters()])


def _step(
    run: Run, state: State, scene: Scene, num_rays: int, room: int | None, _phase: Hashable
) -> Taken:
    """Take one step, with samples in buffers of fixed sizes where there is a room."""
    model, sampler, optimizer, generator = run.model, run.sampler, run.optimizer, state.generator
    colors = run.background.sample(num_rays, generator)
    batch = scene.batch(generator, num_rays, colors, sampler.live_pixels, state.drawn)
    state.drawn.add_(num_rays)
    batch = run.refinement.corrected(batch)
    sigma_fn, rgb_sigma_fn = field_functions(model, batch.rays, remember=True)
    with run.runtime.autocast():
        roomy = {} if room is None else {"room": room}
        samples = sampler.sample(batch.rays.detach(), sigma_fn, generator, **roomy)
        check_made(samples, Samples, sampler, "sample")
        rendering = render(samples, rgb_sigma_fn, batch.background, model.extra_channels)
        terms = loss_terms(run, batch, samples, rendering)
    seen = run.refinement.exposed(rendering.rgb.detach(), batch.rays)  # by the gains of this step

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    total = next(iter(terms.values())) if len(terms) == 1 else torch.stack([*terms.values()]).sum()
    total.backward()
    optimizer.step()
    state.follow_weights(run)
    state.notice(terms)
    return Taken(
        {name: term.detach() for name, term in terms.items()},
        seen,
        batch.target,
        samples.whole,
        _count(num_rays, samples, sampler.num_evaluated, asked=room is None),
    )


def _count(num_rays: int, samples: Samples, num_evaluated: int | Tensor, asked: bool) -> Tensor:
    """Count rays that count, samples and densities: [3], on the host where it was asked anyway."""
    if asked:
        return torch.tensor([num_rays, len(samples), int(num_evaluated)])
    last = samples.offsets[-1]
    whole = last.new_full((), num_rays) if samples.whole is None else samples.whole.sum()
    known = isinstance(num_evaluated, Tensor)
    evaluated = num_evaluated if known else last.new_full((), num_evaluated)
    return torch.stack([whole, last, evaluated])


def _after_fault(run: Run, state: State, error: Exception) -> None:
    """Make do with less memory; say how to go on where the GPU has failed; pass others on."""
    if memory.has_run_out(error):
        run.optimizer.zero_grad(set_to_none=True)
        try:
            torch.cuda.empty_cache()
        except RuntimeError as failed:  # of a GPU on which no call succeeds any more
            error = failed
        else:
            state.make_do()
            _log.warning(
                "out of %s at step %d: going on with %d samples a step",
                "GPU memory" if run.runtime.torch_device.type == "cuda" else "memory",
                state.step,
                state.sample_budget,
            )
            return
    if "CUDA error" in str(error):
        cause = str(error).splitlines()[0]
        raise RunError(
            f"the GPU failed at step {state.step} ({cause}); from the last checkpoint go on with: "
            f"{_resume_command(run)}"
        ) from error
    raise error


def loss_terms(run: Run, batch: Batch, samples: Samples, rendering: Rendering) -> dict[str, Tensor]:
    """Name every term of the loss, weights included: their sum is what is minimised."""
    settings = run.settings
    color_loss = settings.color_loss.exposed(run.refinement.exposure(batch.rays))
    terms = {"color": color_loss(rendering.rgb, batch.target, samples.whole)}
    if settings.distortion_weight > 0:
        spread = distortion_loss(rendering, samples, batch.rays, settings.distortion_spacing)
        terms["distortion"] = settings.distortion_weight * spread
    if settings.depth_weight > 0 and batch.depths is not None:
        known = batch.depths, settings.depth_spread
        terms["depth"] = settings.depth_weight * depth_loss(rendering.weights, samples, *known)
    return terms | run.sampler.loss_terms(color_loss, batch, rendering)


def _resume_command(run: Run) -> str:
    return f"{report.program('nerftrain')} resume {run.run_dir}"


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Let Ctrl-C, SIGTERM and the loss of the terminal end the loop after a whole step.

    A second Ctrl-C or SIGTERM ends it at once; of a terminal's end shells tell once more.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number not in _hangup():
            raise KeyboardInterrupt
        asked.set()  # an evaluation may have to end first: silence would invite the second one
        report.say_amid("ending after this step, saved; once more ends at once, without saving")

    with _handled(ask, signal.SIGINT, signal.SIGTERM, *_hangup()):
        yield asked


def _hangup() -> list[int]:
    """Name the signal of a terminal that goes, such as by ssh, unless nohup keeps it off."""
    number = getattr(signal, "SIGHUP", None)  # Windows has none
    return [] if number is None or signal.getsignal(number) is signal.SIG_IGN else [number]


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any], *signals: int) -> Iterator[None]:
    """Handle signals so for a while, in the main thread, which alone gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handler) for number in signals]
    try:
        yield
    finally:
        for number, earlier in zip(signals, before, strict=True):
            signal.signal(number, earlier)


class Journal:
    """What a run tells and saves while it trains; the time that this takes is not training time."""

    def __init__(self, run: Run, state: State) -> None:
        self.run, self.state = run, state
        self.intervals = run.settings.intervals
        run.logger.open(run.run_dir, state.step or None, state.seconds)
        self.curve = report.Curve(run.run_dir, state.step)
        self.progress = report.Progress(run.settings.steps, run.settings.max_seconds)
        self.last_evaluated = self.last_saved = self.last_seconds = state.seconds
        self.rays = self.samples = self.steps = 0  # counted since the last row
        self.has_met_anything = False
        self.rays_so_far = self.steps_so_far = 0  # counted since the run was begun or taken up

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.progress.close()
        self.curve.close()
        if kind is not None:  # else the final figures follow
            self.run.logger.close()

    def is_due(self) -> bool:
        """Tell whether `after_step` will look at numbers."""
        return self.state.step % self.intervals.log == 0 or self._due_to("evaluate", "checkpoint")

    def _due_to(self, *what: str) -> bool:
        lasts = {"evaluate": self.last_evaluated, "checkpoint": self.last_saved}
        waits = {"evaluate": self.intervals.evaluate_seconds}
        waits["checkpoint"] = self.intervals.checkpoint_seconds
        seconds = self.state.seconds
        return any((wait := waits[name]) and seconds - lasts[name] >= wait for name in what)

    def after_step(self, taken: Taken, counts: Counts | None) -> None:
        """Log, evaluate and save as often as the settings say."""
        if counts is not None:
            self.rays += counts.whole
            self.samples += counts.samples
            self.steps += 1
            self.has_met_anything |= counts.samples > 0
            self.rays_so_far += counts.drawn
            self.steps_so_far += 1
        if self.state.step % self.intervals.log == 0:
            self._log(taken)
        if self._due_to("evaluate"):
            self.last_evaluated = self.state.seconds
            self._evaluate()
        if self._due_to("checkpoint"):
            self._try_to_save("last")

    def _stop_if_bad(self) -> None:
        for name, total in self.state.sums.items():
            if not math.isfinite(total):  # a synchronisation on CUDA
                self._stop(f"the {name} term of the loss is not a number")

    def _stop(self, why: str) -> NoReturn:
        where = f"the last good state is in {self.run.run_dir / checkpoint.FOLDER}"
        raise RunError(
            f"{why} by step {self.state.step}: try a lower optimizer.lr ({where}, if any was saved)"
        )

    def stop_if_all_is_empty(self) -> None:
        """Refuse to go on where none of many rays has had a sample: nothing will ever be learnt."""
        if self.has_met_anything or self.rays_so_far < ENOUGH_RAYS:
            return
        scene = self.run.scene
        low, high = (f"{[round(x, 6) for x in c]}" for c in scene.aabb.view(2, 3).tolist())
        raise UserError(
            f"no ray has met anything in {self.steps_so_far} steps: what there is to see must lie "
            f"in the scene's box, {low} to {high}, and between scene.near={scene.near:g} and "
            f"scene.far={scene.far:g} from the cameras; a model of your own must give densities "
            "that are numbers and not negative"
        )

    def _log(self, taken: Taken) -> None:
        self._stop_if_bad()
        self.stop_if_all_is_empty()
        state = self.state
        seconds = max(state.seconds - self.last_seconds, 1e-9)
        figures: dict[str, float | None] = {
            f"loss/{name}": float(term) for name, term in taken.terms.items()
        }
        figures["loss"] = sum(float(term) for term in taken.terms.values())
        error = mean_of_whole((taken.rgb - taken.target).square().mean(1), taken.whole)
        figures["psnr"] = -10 * float(error.clamp(min=1e-10).log10())
        figures["lr"] = self.run.optimizer.param_groups[0]["lr"]
        steps = max(self.steps, 1)
        figures["rays"], figures["samples"] = self.rays / steps, self.samples / steps
        figures["rays_per_second"], figures["samples_per_second"] = (
            self.rays / seconds,
            self.samples / seconds,
        )
        for part, said in (("sampler", self.run.sampler), ("refine", self.run.refinement)):
            figures |= {f"{part}/{name}": value for name, value in said.describe().items()}
        self.curve.write(state.step, state.seconds, **figures)
        self.run.logger.scalars(figures, state.step, state.seconds)
        self.progress.update(state.step, state.seconds, figures)
        self.last_seconds, self.rays, self.samples, self.steps = state.seconds, 0, 0, 0

    def _evaluate(self) -> None:
        self._stop_if_bad()
        self.stop_if_all_is_empty()
        run, state = self.run, self.state
        with averaged_weights(run, state):
            result = _score(
                run,
                evaluation.validation_split(run.scene),
                self.intervals.evaluate_views,
                pictures=1,
            )
        psnr = {report.EVALUATION_KEY: result.psnr}
        self.curve.write(state.step, state.seconds, **psnr)
        run.logger.scalars(psnr, state.step, state.seconds)
        picture = result.pictures[0]
        pair = torch.cat([picture.truth, picture.prediction], 1)
        run.logger.image("preview", pair, state.step)
        video.write_png(run.run_dir / "images" / "preview.png", pair)
        if result.psnr > state.best_psnr:
            state.best_psnr = result.psnr
            self._try_to_save("best")

    def _try_to_save(self, name: str) -> None:
        try:
            self.save(name)
        except UserError as error:  # a full disk may have room again by the next time
            _log.warning("training goes on: %s", error)

    def interrupt(self) -> None:
        """Save, and end with the command that goes on."""
        self.save("last")
        self.progress.close()  # or its last line would follow
        command = _resume_command(self.run)
        report.say(f"interrupted at step {self.state.step}, saved; go on with: {command}")

    def save(self, name: str) -> None:
        """Write a checkpoint.

        Raises:
            RunError: the weights are no longer numbers.
            UserError: it cannot be written.
        """
        self._stop_if_bad()
        learnt = (*self.run.model.parameters(), *self.run.sampler.parameters())
        if not all(bool(parameter.isfinite().all()) for parameter in learnt):
            # Where densities are none nothing is sampled, and the loss is that of empty space.
            self._stop("weights are not numbers")
        if name == "last":
            self.last_saved = self.state.seconds
        checkpoint.save(
            self.run.run_dir / checkpoint.FOLDER / f"{name}.pt", self.state.state_dict(self.run)
        )


@contextmanager
def averaged_weights(run: Run, state: State) -> Iterator[None]:
    """Put the averaged weights, where there are some, in the model's place for a while."""
    parameters = dict(run.model.named_parameters()) if state.ema else {}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.ema[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def _score(
    run: Run, split: str, views: int | None, pictures: int, with_lpips: bool = False
) -> evaluation.Evaluation:
    background = evaluation.background_color(run.background.evaluation)
    return evaluation.evaluate(
        evaluation.as_found(run),
        split,
        run.model,
        run.sampler,
        background,
        views=views,
        with_lpips=with_lpips,
        num_pictures=pictures,
    )


def _finish(run: Run, state: State) -> dict[str, Any]:
    """Evaluate the whole test split and write figures, pictures, film and report.

    The figures come first: whatever fails after them, they are there.
    """
    split = "test" if "test" in run.scene.splits else evaluation.validation_split(run.scene)
    with averaged_weights(run, state):
        result = _score(run, split, None, pictures=6, with_lpips=True)
        final = {
            **result.summary(),
            "steps": state.step,
            "train_seconds": state.seconds,
            "peak_memory_bytes": state.peak_memory_bytes(),
            "seed": run.seed,
        }
        try:
            report.write_metrics(run.run_dir, final)
            evaluation.write_images(run.run_dir / "images", result)
            evaluation.write_cameras(run)
            _film(run)
            run.logger.hparams(run.config, final)
            run.logger.close()
            command = "\n".join(state.commands) or None
            report.write_report(run.run_dir, final, result.rows(), run.config, command=command)
        except OSError as error:
            where = error.filename or run.run_dir
            raise UserError(
                f"{where} cannot be written ({error.strerror or error}): make room there; the "
                f"trained state writes it again, {_resume_command(run)}"
            ) from error
        finally:  # they have been found, whatever else fails
            report.print_final(run.run_dir, final)
    return final


def _film(run: Run) -> None:
    if not run.settings.orbit_frames:
        return
    background = evaluation.background_color(run.background.evaluation)
    frames = {"num_frames": run.settings.orbit_frames, "size_limit": FILM_PIXELS}
    path = run.run_dir / "video.mp4"
    try:
        video.orbit_video(run.scene, run.model, run.sampler, background, path, **frames)
    except UserError as error:  # a full disk must not cost the report
        _log.warning("no video: %s", error)
