"""Poses and exposure that are learnt: what is found, what it costs nobody, what is refused."""

import importlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from nerftrain import checkpoint, evaluation, trainer
from nerftrain.cameras import pixel_rays
from nerftrain.composition import compose
from nerftrain.config import SNAPSHOT, assemble, create_run_dir, load_run
from nerftrain.errors import UserError
from nerftrain.losses import ColorLoss
from nerftrain.refinement import Refinement, rotated
from nerftrain.rendering import field_functions, render
from nerftrain.report import read_curve
from nerftrain.scenes import Scene
from nerftrain.scenes.demo import render_folder
from nerftrain.trainer import Run
from nerftrain.types import Batch, Cameras, Rays
from tests.tiny_runs import SAMPLERS, frames_of

SCRIPTS = Path(__file__).parents[1] / "scripts"
RATES = (1e-3, 1e-2)
BOX = torch.tensor([-1.0, -1, -1, 3, 1, 1])  # of half size 2
COMMON = [
    "trainer.sample_budget=8192",
    "trainer.max_seconds=null",
    "trainer.orbit_frames=0",
    "trainer.intervals.log=50",
    "logger=none",
    "runtime=cpu",
    "runtime.threads=1",
]
NGP = ["model=ngp", "model.encoding.log2_table_size=12", "model.encoding.finest_resolution=64"]
MLP = ["model=mlp", "model.depth=2", "model.width=32", "model.skip=1"]
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tiny_scene_root: Path, tmp_path: Path) -> MakeRun:
    def make(
        name: str, *overrides: str, choice: tuple[str, ...] = (*NGP, *SAMPLERS["occgrid"])
    ) -> Run:
        folder = tmp_path / name
        scene = ["scene=blender", f"scene.root={tiny_scene_root}", f"run_dir={folder}"]
        run = assemble(compose([*scene, *choice, *COMMON, *overrides]))
        return replace(run, run_dir=folder) if folder.exists() else create_run_dir(run)

    return make


def some_cameras(num: int = 9) -> Cameras:
    generator = torch.Generator().manual_seed(3)
    rotations = torch.linalg.qr(torch.randn(num, 3, 3, generator=generator)).Q
    rotations = rotations * torch.linalg.det(rotations)[:, None, None]
    positions = 3 * torch.randn(num, 3, 1, generator=generator)
    size = torch.full((num,), 16)
    intrinsics = torch.tensor([[20.0, 20.0, 8.0, 8.0]]).expand(num, 4)
    return Cameras(torch.cat([rotations, positions], 2), intrinsics, size, size)


def refined(cameras: Cameras, size: float = 0.05) -> Refinement:
    refinement = Refinement(True, True, *RATES, cameras=cameras, aabb=BOX)
    generator = torch.Generator().manual_seed(4)
    assert refinement.moves is not None
    assert refinement.gains is not None
    with torch.no_grad():
        refinement.moves.normal_(0, size, generator=generator)
        refinement.gains.normal_(0, 0.3, generator=generator)
    return refinement


def test_turning_is_the_exponential_of_the_cross_product() -> None:
    generator = torch.Generator().manual_seed(1)
    turns = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    turns[:10] *= 1e-5
    vectors = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    x, y, z = turns.unbind(1)
    none = torch.zeros_like(x)
    crosses = torch.stack([none, -z, y, z, none, -x, -y, x, none], 1).view(-1, 3, 3)
    expected = (torch.matrix_exp(crosses) @ vectors[:, :, None])[:, :, 0]
    torch.testing.assert_close(rotated(vectors, turns), expected, rtol=1e-9, atol=1e-9)
    single = rotated(vectors.float(), turns.float())
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=1e-6)


def test_a_turn_of_nothing_has_the_slope_of_a_small_one() -> None:
    vectors = torch.randn(4, 3, dtype=torch.float64)
    turns = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: rotated(vectors, t), (turns,), atol=1e-5)


def test_rays_move_as_their_cameras_do() -> None:
    cameras = some_cameras()
    refinement = refined(cameras)
    which = torch.arange(9).repeat_interleave(4)
    x, y = torch.arange(36) % 16, torch.arange(36) * 7 % 16
    given = pixel_rays(cameras, which, x, y, 0.1, 5)
    colors = torch.zeros(36, 3)
    moved = refinement.corrected(Batch(given, colors, colors)).rays
    expected = pixel_rays(refinement.cameras(cameras), which, x, y, 0.1, 5)
    torch.testing.assert_close(moved.origins, expected.origins)
    torch.testing.assert_close(moved.directions, expected.directions, rtol=1e-5, atol=1e-6)
    assert (moved.directions - given.directions).abs().max() > 0.03
    assert moved.origins.requires_grad
    assert moved.directions.requires_grad


def scene_moves(cameras: Cameras) -> dict[str, Tensor]:
    """What a scene that turns, shifts or grows a little would ask of all cameras, [C, 6]."""
    places = cameras.poses[:, :, 3] / 2  # in halves of the box
    turn = torch.tensor([0.02, -0.01, 0.03]).expand(len(cameras), 3)
    none = torch.zeros_like(turn)
    return {
        "turn": torch.cat([turn, torch.linalg.cross(turn, places)], 1),
        "shift": torch.cat([none, turn], 1),
        "growth": torch.cat([none, 0.05 * places], 1),
    }


@pytest.mark.parametrize("what", ["turn", "shift", "growth"])
def test_what_the_scene_could_do_with_all_cameras_moves_none(what: str) -> None:
    cameras = some_cameras()
    refinement = Refinement(True, False, *RATES, cameras=cameras, aabb=BOX)
    assert refinement.moves is not None
    refinement.moves.data = scene_moves(cameras)[what]
    torch.testing.assert_close(refinement.cameras(cameras).poses, cameras.poses)
    refinement.moves.data[0, :3] += 0.1  # of one camera alone
    moved = refinement.cameras(cameras).poses - cameras.poses
    assert moved[0].abs().max() > 0.03


def test_two_cameras_and_cameras_in_one_place_can_be_refined() -> None:
    for cameras in (some_cameras(2), some_cameras(1)):
        poses = refined(cameras).cameras(cameras).poses
        assert poses.isfinite().all()


def test_exposure_is_one_on_average_and_weighs_what_is_rendered() -> None:
    cameras = some_cameras()
    refinement = refined(cameras)
    gains = refinement.image_gains()
    assert gains is not None
    torch.testing.assert_close(gains.log().mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    ones = torch.ones(4, 3)
    which = torch.tensor([2, 2, 5, 8])
    rays = Rays(ones, ones, ones[:, 0], ones[:, 0], cameras=which)
    exposure = refinement.exposure(rays)
    assert exposure is not None
    torch.testing.assert_close(exposure, gains[which])
    prediction, target = torch.rand(4, 3), torch.rand(4, 3)
    loss = ColorLoss("huber").exposed(exposure)
    torch.testing.assert_close(
        loss(prediction, target), ColorLoss("huber")(prediction * gains[which], target)
    )
    assert ColorLoss("l2").exposed(None) == ColorLoss("l2")


def test_without_it_batches_and_cameras_are_what_they_were() -> None:
    cameras = some_cameras()
    nothing = Refinement(False, False, *RATES, cameras=cameras, aabb=BOX)
    given = pixel_rays(cameras, torch.arange(9), torch.arange(9), torch.arange(9), 0.1, 5)
    batch = Batch(given, torch.zeros(9, 3), torch.zeros(9, 3))
    assert nothing.corrected(batch) is batch
    assert nothing.cameras(cameras) is cameras
    assert nothing.exposure(given) is None
    assert nothing.describe() == {}
    assert nothing.groups() == []


@pytest.mark.parametrize(
    ("model", "sampler"),
    [(m, s) for m in ("ngp", "mlp") for s in SAMPLERS],
)
def test_cameras_learn_with_every_model_and_sampler(
    make_run: MakeRun, model: str, sampler: str
) -> None:
    choice = f"sampler={sampler}", *SAMPLERS[sampler], *(NGP if model == "ngp" else MLP)
    run = make_run("run", "refine=poses", "trainer.steps=30", choice=choice)
    trainer.train(run)
    moves = run.refinement.moves
    assert moves is not None
    assert moves.isfinite().all()
    assert (moves.abs().amax(1) > 1e-5).all()  # of every camera


def test_slopes_are_those_of_the_error(make_run: MakeRun) -> None:
    """Moving cameras by a little changes the error by as much as gradients say.

    The compiled ops, which round, give the gradients of torch's.
    """
    run = make_run("run", "refine=poses", "trainer.steps=100")
    trainer.train(run)
    by_torch = make_run("torch", "refine=poses", "model.backend=torch")
    by_torch.model.load_state_dict(run.model.state_dict())
    by_torch.refinement.load_state_dict(run.refinement.state_dict())
    numbers = torch.Generator().manual_seed(0)
    batch = run.scene.batch(numbers, 2048, torch.zeros(2048, 3))
    given = run.refinement.corrected(batch).rays.detach()

    sigma_fn, _ = field_functions(run.model, given)
    samples = run.sampler.sample(given, sigma_fn)  # the same for all: they do not move with rays

    def error(of: Run) -> Tensor:
        rays = of.refinement.corrected(batch).rays
        _, rgb_sigma_fn = field_functions(of.model, rays)
        rendering = render(samples, rgb_sigma_fn, batch.background)
        return (rendering.rgb - batch.target).square().mean()

    moves, learnt = by_torch.refinement.moves, run.refinement.moves
    assert moves is not None
    assert learnt is not None
    (slope,) = torch.autograd.grad(error(by_torch), [moves])
    (compiled,) = torch.autograd.grad(error(run), [learnt])
    assert (compiled - slope).norm() < 0.1 * slope.norm()

    direction, size = slope / slope.norm(), 1e-3
    with torch.no_grad():
        moves += size * direction
        after = error(by_torch)
        moves -= 2 * size * direction
        before = error(by_torch)
    # Directions of views turn, too, whose share is left out: hence not to the last digit.
    measured = float(after - before) / (2 * size)
    assert float((slope * direction).sum()) == pytest.approx(measured, rel=0.15)


def moved_scene(scene: Scene, degrees: float) -> Scene:
    """Turn each training camera by so many degrees, about an axis of its own."""
    train = scene.splits["train"]
    noise = Refinement(True, False, *RATES, cameras=train.cameras, aabb=scene.aabb)
    assert noise.moves is not None
    axes = torch.randn(len(train), 3, generator=torch.Generator().manual_seed(7))
    noise.moves.data[:, :3] = math.radians(degrees) * axes / axes.norm(dim=1, keepdim=True)
    cameras = noise.cameras(train.cameras)
    return replace(scene, splits={**scene.splits, "train": replace(train, cameras=cameras)})


def apart(one: Cameras, other: Cameras) -> float:
    """Measure the root mean square of the angles between cameras' axes, degrees."""
    turn = one.poses[:, :, :3].transpose(1, 2) @ other.poses[:, :, :3]
    cosines = (turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    return math.degrees(float(cosines.clamp(-1, 1).acos().square().mean().sqrt()))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the demo scene before darkness, as photographs without alpha."""
    folder = tmp_path_factory.mktemp("photographs")
    render_folder(folder, 64, 40, 4)
    for file in folder.rglob("*.png"):
        with Image.open(file) as image:
            dark = Image.new("RGBA", image.size, (0, 0, 0, 255))
            opaque = Image.alpha_composite(dark, image.convert("RGBA")).convert("RGB")
        opaque.save(file)
    return folder


def exposed(folder: Path, copy: Path, stops: float) -> Tensor:
    """Copy photographs, those that are trained on exposed each in its own way: their gains."""
    shutil.copytree(folder, copy)
    frames = frames_of(copy, "train")[1]
    generator = torch.Generator().manual_seed(7)
    gains = (stops * math.log(2) * torch.randn(len(frames), 3, generator=generator)).exp()
    for frame, gain in zip(frames, gains, strict=True):
        file = copy / f"{frame['file_path']}.png"
        with Image.open(file) as image:
            channels = [
                band.point(lambda value, g=float(g): round(min(value * g, 255)))
                for band, g in zip(image.split(), gain, strict=True)
            ]
        Image.merge("RGB", channels).save(file)
    return gains


def learn(folder: Path, run_dir: Path, *overrides: str, degrees: float = 0.0) -> tuple[Run, dict]:
    """Train on photographs, with cameras that are given wrongly by so many degrees."""
    choice = [*NGP, *SAMPLERS["occgrid"], *COMMON, "trainer.steps=500"]
    scene = ["scene=blender", f"scene.root={folder}", f"run_dir={run_dir}"]
    run = create_run_dir(assemble(compose([*scene, *choice, *overrides])))
    if degrees:
        run = replace(run, scene=moved_scene(run.scene, degrees))
    return run, trainer.train(run)


def test_cameras_that_were_given_wrongly_are_found(photographs: Path, tmp_path: Path) -> None:
    wrong, final = learn(photographs, tmp_path / "none", degrees=2.0)
    true = assemble(compose(["scene=blender", f"scene.root={photographs}"])).scene.splits["train"]
    assert apart(wrong.scene.splits["train"].cameras, true.cameras) == pytest.approx(2, rel=0.2)
    overrides = "refine=poses", "refine.pose_lr=0.001"
    run, refined_final = learn(photographs, tmp_path / "poses", *overrides, degrees=2.0)
    found = evaluation.as_found(run).splits["train"].cameras
    assert apart(found, true.cameras) < 1.0
    assert refined_final["psnr"] > final["psnr"] + 1


def test_exposure_that_changes_from_image_to_image_is_found(
    photographs: Path, tmp_path: Path
) -> None:
    gains = exposed(photographs, tmp_path / "changing", 0.3)
    _, final = learn(tmp_path / "changing", tmp_path / "none")
    run, refined_final = learn(tmp_path / "changing", tmp_path / "exposure", "refine=exposure")
    found = run.refinement.image_gains()
    assert found is not None
    wrong = gains.log2() - gains.log2().mean(0)
    assert (found.log2() - wrong).square().mean().sqrt() < 0.5 * wrong.square().mean().sqrt()
    assert refined_final["psnr"] > final["psnr"] + 0.3
    written = json.loads((run.run_dir / "cameras.json").read_text())["frames"]
    torch.testing.assert_close(torch.tensor([frame["gain"] for frame in written]), found.detach())


def test_the_curve_tells_the_psnr_of_colours_as_images_have_exposed_them(
    photographs: Path, tmp_path: Path
) -> None:
    quick = "refine.exposure_lr=0.5", "trainer.steps=10", "trainer.intervals.log=5"
    run, _ = learn(photographs, tmp_path / "run", "refine=exposure", "trainer.loss=l2", *quick)
    rows = [row for row in read_curve(run.run_dir) if "loss" in row]
    for row in rows:  # the loss is half the squared error
        assert row["psnr"] == pytest.approx(-10 * math.log10(2 * row["loss/color"]), abs=0.01)
    assert rows[-1]["refine/gain"] > 0.1


def test_cameras_are_written_in_the_datasets_coordinates(make_run: MakeRun) -> None:
    run = make_run("run", "refine=poses", "trainer.steps=5")
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3] = 0.5 * rotated(torch.eye(3), torch.tensor([[0.3, -0.2, 0.9]]).expand(3, 3)).T
    world[:3, 3] = torch.tensor([1.0, 2, 3])
    run = replace(run, scene=replace(run.scene, world=world))
    trainer.train(run)
    content = json.loads((run.run_dir / "cameras.json").read_text())
    found = evaluation.as_found(run).splits["train"]
    assert [frame["file_path"] for frame in content["frames"]] == list(found.names)
    for frame, pose in zip(content["frames"], found.cameras.poses.double(), strict=True):
        back = world @ torch.tensor(frame["transform_matrix"], dtype=torch.float64)
        back[:3, :3] /= 0.5
        torch.testing.assert_close(back[:3], pose, atol=1e-5, rtol=1e-5)


def test_going_on_is_bit_identical_and_a_checkpoint_knows_the_cameras(make_run: MakeRun) -> None:
    whole = make_run("whole", "refine=poses", "trainer.steps=30")
    trainer.train(whole)
    half = make_run("half", "refine=poses", "trainer.steps=30")
    state = trainer.State(half)
    with trainer.Journal(half, state) as journal, pytest.raises(KeyboardInterrupt):
        trainer.loop(half, state, InterruptAt(journal, 15))  # type: ignore[arg-type]
    again = make_run("half", "refine=poses", "trainer.steps=30")
    trainer.train(again, resume=True)
    expected = whole.refinement.state_dict()
    for name, value in again.refinement.state_dict().items():
        assert torch.equal(value, expected[name]), name
    loaded = assemble(load_run(whole.run_dir, []), whole.run_dir)
    evaluation.load_into(loaded, "last")
    here, there = (evaluation.as_found(run).splits["train"].cameras for run in (whole, loaded))
    assert torch.equal(here.poses, there.poses)
    assert not torch.equal(here.poses, whole.scene.splits["train"].cameras.poses)


class InterruptAt:
    """A journal that is told of an interruption at a step."""

    def __init__(self, journal: trainer.Journal, step: int) -> None:
        self.journal, self.step = journal, step

    def is_due(self) -> bool:
        return self.journal.is_due()

    def after_step(self, *taken: object) -> None:
        self.journal.after_step(*taken)  # type: ignore[arg-type]
        if self.journal.state.step == self.step:
            self.journal.interrupt()
            raise KeyboardInterrupt


def test_runs_of_before_are_evaluated_and_gone_on_with(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.steps=5")
    trainer.train(run)
    cfg = OmegaConf.load(run.run_dir / SNAPSHOT)
    del cfg["refine"]
    OmegaConf.save(cfg, run.run_dir / SNAPSHOT)
    path = checkpoint.find(run.run_dir, "last")
    state = dict(checkpoint.load(path))
    del state["refinement"]
    checkpoint.save(path, state)
    older = assemble(load_run(run.run_dir, ["trainer.steps=8"]), run.run_dir)
    evaluation.load_into(older, "last")
    assert trainer.train(older, resume=True)["steps"] == 8


def test_a_checkpoint_of_other_corrections_is_refused(make_run: MakeRun) -> None:
    run = make_run("run", "trainer.steps=5")
    trainer.train(run)
    other = replace(make_run("other", "refine=poses", "trainer.steps=5"), run_dir=run.run_dir)
    with pytest.raises(UserError, match=r"of refine 'none'.*'moves' is missing.*use refine=none"):
        evaluation.load_into(other, "last")


def test_silhouettes_rule_nothing_out_where_cameras_may_stand_elsewhere(make_run: MakeRun) -> None:
    assert make_run("given").sampler.live_pixels is not None
    assert make_run("found", "refine=poses").sampler.live_pixels is None


def test_training_views_are_judged_from_where_they_were_taken(make_run: MakeRun) -> None:
    run = make_run("run", "refine=poses", "refine.pose_lr=0.01", "trainer.steps=40")
    trainer.train(run)
    field = "train", run.model, run.sampler, torch.ones(3)
    given, found = (
        evaluation.evaluate(scene, *field, views=None, with_lpips=False).psnr
        for scene in (run.scene, evaluation.as_found(run))
    )
    loaded = assemble(load_run(run.run_dir, []), run.run_dir)
    judged = evaluation.evaluate_run(loaded, "train", "last", None).psnr
    assert judged == pytest.approx(found, abs=1e-4)
    assert judged != pytest.approx(given, abs=1e-3)


def test_the_script_tells_what_is_left_of_known_errors(
    tiny_scene_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("refine_check")
    amounts = ["--degrees", "1", "--shift", "0.01", "--stops", "0.5", "--refine", "none,poses"]
    run = ["scene=blender", f"scene.root={tiny_scene_root}", *NGP, *COMMON, "trainer.steps=40"]
    monkeypatch.setattr("sys.argv", ["refine_check.py", *amounts, *run])
    script.main()
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0] == script.HEADER
    none, poses = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table[2:])
    assert (none[0], none[2], poses[0], poses[2]) == ("none", "40", "poses", "40")
    assert float(none[3]) == pytest.approx(math.sqrt(3), rel=0.4)  # of six cameras
    assert float(none[4]) == pytest.approx(math.sqrt(3) * 0.01 * 1.5, rel=0.4)
    assert float(none[5]) == pytest.approx(0.5, rel=0.4)
    assert none[3] != poses[3]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("refine=exposure", "exposure=true needs photographs without alpha"),
        ("refine.pose_lr=0", "must be more than 0"),
        ("refine.exposure_lr=-1", "must be more than 0"),
        ("refine.pose_lr=100", "refine.pose_lr=100.0: must be at most 0.5"),
        ("refine.exposure_lr=1e9", "refine.exposure_lr=1000000000.0: must be at most 0.5"),
    ],
)
def test_what_cannot_be_learnt_is_refused(make_run: MakeRun, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_run("run", override)


def test_torchs_own_optimizers_take_the_cameras_at_their_rate(make_run: MakeRun) -> None:
    optimizer = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1"]
    others = ["eps", "weight_decay", "betas", "skip_unseen", "warp_lr"]
    run = make_run("run", "refine=poses", *optimizer, *(f"~optimizer.{key}" for key in others))
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.1, 2e-4]
    assert run.optimizer.param_groups[1]["params"] == [run.refinement.moves]
