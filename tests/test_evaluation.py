from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nerftrain import checkpoint, evaluation, report, video
from nerftrain.errors import UserError
from nerftrain.refinement import Refinement
from nerftrain.scenes import Scene, Split
from nerftrain.types import Cameras, Rendering

WIDTH, HEIGHT, VIEWS = 20, 16, 5
WHITE = torch.ones(3)


class Model(torch.nn.Module):
    name = "toy"

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(shift))


def some_split(name: str, channels: int = 4) -> Split:
    generator = torch.Generator().manual_seed(3)
    poses = torch.eye(4)[:3].repeat(VIEWS, 1, 1)
    angles = torch.arange(VIEWS) * 0.3
    poses[:, 0, 3], poses[:, 2, 3] = 4 * angles.sin(), 4 * angles.cos()
    cameras = Cameras(
        poses=poses,
        intrinsics=torch.tensor([25.0, 25.0, WIDTH / 2, HEIGHT / 2]).repeat(VIEWS, 1),
        widths=torch.full((VIEWS,), WIDTH),
        heights=torch.full((VIEWS,), HEIGHT),
    )
    count = VIEWS * WIDTH * HEIGHT
    pixels = torch.randint(64, 192, (count, channels), generator=generator).byte()
    return Split(name, cameras, pixels, tuple(f"test/r_{i}.png" for i in range(VIEWS)))


@pytest.fixture
def scene(tmp_path) -> Scene:
    splits = {"train": some_split("train"), "test": some_split("test")}
    box = torch.tensor([-1.0] * 3 + [1.0] * 3)
    return Scene("toy", splits, box, 2.0, 6.0, tmp_path)


@pytest.fixture
def rendered(monkeypatch) -> list[int]:
    """Replaces rendering by the truth over the background, off by the model's shift."""
    indices = []

    def render(scene, cameras, index, model, sampler, background) -> Rendering:
        indices.append(index)
        rays = int(cameras.widths[index] * cameras.heights[index])
        pixels = scene.splits["test"].image(index % VIEWS).reshape(-1, 4)[:rays]
        rgb, alpha = pixels[:, :3], pixels[:, 3:]
        rgb = rgb * alpha + background * (1 - alpha) + model.shift
        depth = torch.linspace(2, 6, rays)
        opacity = torch.linspace(0, 1, rays)
        return Rendering(rgb, opacity, depth * opacity, 0 * depth, {}, depth)

    monkeypatch.setattr(video.rendering, "render_image", render)
    return indices


def evaluate(scene, model, split="test", background=WHITE, **more) -> evaluation.Evaluation:
    options = {"views": None, "with_lpips": False, **more}
    return evaluation.evaluate(scene, split, model, None, background, **options)


def test_a_known_error_has_its_known_psnr(scene, rendered):
    result = evaluate(scene, Model(0.1), background=torch.zeros(3))  # white would clamp the error
    assert result.psnr == pytest.approx(20.0, abs=0.01)
    assert [score.psnr for score in result.per_view] == pytest.approx([20.0] * VIEWS, abs=0.01)
    assert [score.name for score in result.per_view] == [f"r_{i}" for i in range(VIEWS)]
    assert 0.5 < result.ssim < 1.0


@pytest.mark.parametrize(("value", "name"), [(1.0, "white"), (0.0, "black")])
def test_truth_and_prediction_share_the_background(scene, rendered, value, name):
    result = evaluate(scene, Model(), background=torch.full((3,), value))
    assert result.psnr == pytest.approx(100.0)
    assert result.background == name


def test_the_mean_is_of_per_image_psnrs(scene, rendered, monkeypatch):
    scores = iter([20.0, 30.0])
    monkeypatch.setattr(evaluation.metrics, "psnr", lambda *_: next(scores))
    assert evaluate(scene, Model(), views=2).psnr == pytest.approx(25.0)


def test_the_protocol_is_named(scene, rendered):
    summary = evaluate(scene, Model(), views=2).summary()
    named = {key: summary[key] for key in ("num_views", "split", "resolution", "background")}
    expected = ("2", "test", "20x16", "white")
    assert tuple(map(str, named.values())) == expected


@pytest.mark.parametrize(
    ("views", "expected"),
    [(None, [0, 1, 2, 3, 4]), (2, [0, 2]), (9, [0, 1, 2, 3, 4])],
)
def test_views_are_evenly_spaced(scene, rendered, views, expected):
    evaluate(scene, Model(), views=views)
    assert rendered == expected


def test_no_views_is_a_user_error(scene, rendered):
    with pytest.raises(UserError, match="at least 1"):
        evaluate(scene, Model(), views=0)


def test_an_absent_split_lists_those_that_exist(scene, rendered):
    with pytest.raises(UserError, match=r"did you mean test\? It has: train, test"):
        evaluate(scene, Model(), split="tset")
    with pytest.raises(UserError, match="scene toy has no split 'val'; it has: train, test"):
        evaluate(scene, Model(), split="val")
    assert evaluation.validation_split(scene) == "test"


def test_the_model_trains_on_afterwards(scene, rendered):
    model = Model()
    evaluate(scene, model)
    assert model.training
    assert torch.is_grad_enabled()


def test_lpips_is_a_mean_or_none_with_its_reason(scene, rendered, monkeypatch):
    monkeypatch.setattr(evaluation.metrics, "load_lpips", lambda: (lambda *_: 0.25, ""))
    assert evaluate(scene, Model(), with_lpips=True).lpips == 0.25
    monkeypatch.setattr(evaluation.metrics, "load_lpips", lambda: (None, "no weights"))
    result = evaluate(scene, Model(), with_lpips=True)
    assert (result.lpips, result.lpips_missing) == (None, "no weights")


def test_images_show_truth_prediction_error_and_depth(scene, rendered, tmp_path):
    result = evaluate(scene, Model(0.1), num_pictures=2)
    sheet = evaluation.write_images(tmp_path / "images", result)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    kinds = ["depth", "error-x5", "prediction", "truth"]
    singles = [f"{n:02d}-r_{view}-{kind}.png" for n, view in ((0, 0), (1, 2)) for kind in kinds]
    assert names == sorted([*singles, "comparison.png"])
    error = np.asarray(Image.open(tmp_path / "images" / "00-r_0-error-x5.png"))
    assert np.median(error) == pytest.approx(0.5 * 255, abs=2)
    assert Image.open(sheet).width > 4 * WIDTH


def test_images_called_alike_are_told_apart_by_their_folders(scene, rendered, tmp_path):
    test = scene.splits["test"]
    names = ("left/0001.png", "right/0001.png", *test.names[2:])
    nested = replace(scene, splits={**scene.splits, "test": replace(test, names=names)})
    result = evaluate(nested, Model(), num_pictures=5)
    assert [view.name for view in result.per_view[:3]] == ["left/0001", "right/0001", "r_2"]
    evaluation.write_images(tmp_path, result)
    assert (tmp_path / "01-right-0001-truth.png").is_file()


def test_names_are_compared_once_however_many_views_there_are(scene, rendered):
    class Names(tuple):
        times_read = 0

        def __iter__(self):
            Names.times_read += 1
            return super().__iter__()

    test = scene.splits["test"]
    named = replace(scene, splits={**scene.splits, "test": replace(test, names=Names(test.names))})
    assert [view.name for view in evaluate(named, Model()).per_view] == [
        f"r_{i}" for i in range(VIEWS)
    ]
    assert Names.times_read == 1


def test_images_of_earlier_views_are_removed_and_nothing_else(scene, rendered, tmp_path):
    evaluation.write_images(tmp_path, evaluate(scene, Model(), num_pictures=5))
    others = ["preview.png", "00-notes.png", "mine-truth.png", "02-r_2-truth.jpg"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / "04-r_4-error-x9.png").touch()  # of another version
    evaluation.write_images(tmp_path, evaluate(scene, Model(), views=2, num_pictures=6))
    kept = [f"{n:02d}-r_{v}-{k}.png" for n, v in ((0, 0), (1, 2)) for k in evaluation.COLUMNS]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([*kept, *others, "comparison.png"])


def test_the_depth_image_is_red_near_blue_far_and_white_where_see_through():
    depth = np.array([[2.0, 5.4, 6.0, 4.0]])
    image = evaluation.depth_image(depth, np.array([[1.0, 1.0, 1.0, 0.2]]))
    near, far, _, nothing = image[0].astype(int)
    assert near[0] > near[2] + 50
    assert far[2] > far[0] + 50
    assert nothing.tolist() == [255, 255, 255]
    assert (evaluation.depth_image(depth, np.zeros((1, 4))) == 255).all()


def test_turbo_passes_through_its_published_ends():
    blue, green, red = evaluation.turbo(np.array([0.0, 0.5, 1.0]))
    assert blue == pytest.approx([0.14, 0.09, 0.11], abs=0.01)
    assert green.argmax() == 1
    assert red[0] > 0.4
    assert red[1:].max() < 0.1


@pytest.fixture
def run(scene, tmp_path):
    """A run with a checkpoint whose averaged weights are exact, unlike its last ones."""
    state = {"step": 40, "seconds": 2.5, "model": Model(0.1).state_dict(), "sampler": {}}
    state["ema"] = {"shift": torch.tensor(0.0)}
    checkpoint.save(tmp_path / "run" / "checkpoints" / "last.pt", state)
    background = SimpleNamespace(train="random", evaluation="white")
    return SimpleNamespace(
        scene=scene,
        model=Model(),
        sampler=object(),
        refinement=Refinement(
            False, False, 0.1, 0.1, cameras=scene.splits["train"].cameras, aabb=scene.aabb
        ),
        background=background,
        seed=1,
        run_dir=tmp_path / "run",
    )


def test_evaluating_a_run_uses_averaged_weights_and_writes_everything(run, rendered, capsys):
    result = evaluation.evaluate_run(run, "test", "last", 3)
    folder = run.run_dir / "eval" / "test-last"
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["psnr"] == result.psnr == pytest.approx(100.0)
    assert (figures["steps"], figures["train_seconds"], figures["num_views"]) == (40, 2.5, 3)
    assert len(json.loads((folder / "views.json").read_text())) == 3
    assert (folder / "images" / "comparison.png").is_file()
    assert "100.00" in capsys.readouterr().out


def test_what_is_written_may_lie_elsewhere(run, rendered, tmp_path):
    evaluation.evaluate_run(run, "test", "last", 1, tmp_path / "scores")
    assert (tmp_path / "scores" / "test-last" / "metrics.json").is_file()
    written = evaluation.render_run(run, "test", "orbit", 2, "last", out=tmp_path / "films")
    assert written == tmp_path / "films" / "orbit-test-last.mp4"
    assert sorted(path.name for path in run.run_dir.iterdir()) == ["checkpoints"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_rendered(
    run, rendered, tmp_path
):
    (tmp_path / "file").write_text("")
    for write in (
        lambda: evaluation.evaluate_run(run, "test", "last", 1, tmp_path / "file"),
        lambda: evaluation.render_run(run, "test", "orbit", 2, "last", out=tmp_path / "file"),
    ):
        with pytest.raises(UserError, match=r"cannot be written \(.*: give another .* by --out"):
            write()
    assert rendered == []


def test_an_evaluation_tells_the_seed_that_was_trained_with(run, rendered):
    path = checkpoint.find(run.run_dir, "last")
    checkpoint.save(path, {**checkpoint.load(path), "config": {"seed": 3}})
    run.seed = 5  # as an override of the command line says
    evaluation.evaluate_run(run, "test", "last", 1)
    figures = json.loads((run.run_dir / "eval" / "test-last" / "metrics.json").read_text())
    assert figures["seed"] == 3


def test_evaluating_a_run_checks_before_it_renders(run, rendered):
    with pytest.raises(UserError, match="no split 'val'"):
        evaluation.evaluate_run(run, "val", "last", None)
    with pytest.raises(UserError, match="present: last"):
        evaluation.evaluate_run(run, "test", "best", None)
    assert rendered == []


@pytest.mark.parametrize("path", ["views", "orbit", "spiral", "interpolate"])
def test_rendering_a_run_writes_film_and_frames(run, rendered, path):
    written = evaluation.render_run(run, "test", path, 3, "last")
    expected = VIEWS if path == "views" else 3
    assert written == run.run_dir / "renders" / f"{path}-test-last.mp4"
    assert written.stat().st_size > 0
    assert len(list(written.with_suffix("").glob("*.png"))) == expected


def test_a_shorter_film_leaves_no_frames_of_a_longer_one(run, rendered, monkeypatch):
    with pytest.raises(UserError, match=r"^--frames=1000000000: must be at most 100000$"):
        evaluation.render_run(run, "test", "orbit", 10**9, "last")
    frames = evaluation.render_run(run, "test", "orbit", 5, "last").with_suffix("")
    evaluation.render_run(run, "test", "orbit", 2, "last")
    assert sorted(path.name for path in frames.iterdir()) == ["0000.png", "0001.png"]
    evaluation.render_run(run, "test", "orbit", 3, "last")
    monkeypatch.setattr(video, "_write_h264", full_disk)
    with pytest.raises(UserError):
        evaluation.render_run(run, "test", "orbit", 2, "last")
    assert len(list(frames.iterdir())) == 3


def test_a_film_of_panoramas(run, rendered, monkeypatch):
    def render(scene, cameras, index, *_):
        assert cameras.projection == "equirectangular"
        rays = int(cameras.widths[index] * cameras.heights[index])
        return Rendering(torch.zeros(rays, 3), *[torch.zeros(rays)] * 3, {}, torch.zeros(rays))

    monkeypatch.setattr(video.rendering, "render_image", render)
    written = evaluation.render_run(run, "test", "spiral", 2, "last", panorama=True)
    assert written.name == "spiral-test-last-panorama.mp4"
    frame = Image.open(written.with_suffix("") / "0001.png")
    assert frame.size == (2 * WIDTH, WIDTH)


def test_transparent_frames_lie_over_any_background_as_they_were_rendered(run, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    colors, opacity = torch.rand(WIDTH * HEIGHT, 3, generator=generator), torch.ones(WIDTH * HEIGHT)
    opacity[:50], opacity[50:90] = 0, torch.linspace(0.1, 0.9, 40)

    def render(scene, cameras, index, model, sampler, background):
        seen = colors * opacity[:, None] + background * (1 - opacity[:, None])
        return Rendering(seen, opacity, opacity, opacity, {}, opacity)

    monkeypatch.setattr(video.rendering, "render_image", render)
    plain = evaluation.render_run(run, "test", "orbit", 2, "last")
    written = evaluation.render_run(run, "test", "orbit", 2, "last", transparent=True)
    assert written == run.run_dir / "renders" / "orbit-test-last-transparent.mp4"
    frame = Image.open(written.with_suffix("") / "0001.png")
    assert frame.mode == "RGBA"
    values = np.asarray(frame).reshape(-1, 4).astype(int)
    assert np.abs(values[:, 3] - (opacity * 255).numpy()).max() <= 0.5
    assert np.abs(values[90:, :3] - (colors[90:] * 255).numpy()).max() <= 0.5
    assert np.abs(values[50:90, :3] - (colors[50:90] * 255).numpy()).max() <= 0.51
    assert (values[:50] == 0).all()
    white = Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")
    expected = np.asarray(Image.open(plain.with_suffix("") / "0001.png")).astype(int)
    assert np.abs(np.asarray(white).astype(int) - expected).max() <= 2
    (over,) = video.lay_over([np.asarray(frame)], WHITE)
    assert np.abs(over.astype(int) - expected).max() <= 2
    with pytest.raises(UserError, match="--transparent has no effect on --depth"):
        evaluation.render_run(run, "test", "orbit", 2, "last", depth=True, transparent=True)


def test_distances_are_kept_in_the_datasets_units_and_coloured_alike(run, monkeypatch):
    seen = []

    def see(scene, cameras, index, model, sampler, background):
        distances = torch.linspace(2, 6, WIDTH * HEIGHT) + index
        distances[:7] = torch.inf
        seen.append(distances.view(HEIGHT, WIDTH))
        return torch.zeros(WIDTH * HEIGHT, 3), distances

    monkeypatch.setattr(video.rendering, "see_surface", see)
    world = torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=torch.float64))
    run.scene = replace(run.scene, world=world)
    frames = evaluation.render_run(run, "test", "orbit", 4, "last", None, True).with_suffix("")
    written = evaluation.render_run(run, "test", "orbit", 3, "last", None, True)
    assert written == run.run_dir / "renders" / "orbit-test-last-depth.mp4"
    assert written.stat().st_size > 0
    names = [f"000{i}.{kind}" for i in range(3) for kind in ("npy", "png")]
    assert sorted(path.name for path in frames.iterdir()) == names
    first, second = (np.load(frames / f"000{i}.npy") for i in range(2))
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, 2 * seen[0].numpy())

    colours = [np.asarray(Image.open(frames / f"000{i}.png")).astype(int) for i in range(2)]
    assert (colours[0][np.isinf(first)] == 255).all()
    # What is equally far away is of one colour in all frames.
    place = np.unravel_index(np.argmin(np.abs(second - first[8, 3])), second.shape)
    assert np.abs(colours[1][place] - colours[0][8, 3]).max() <= 3
    assert np.abs(colours[1][8, 3] - colours[0][8, 3]).max() > 30


def full_disk(*_: object) -> None:
    raise OSError("no space left")


def test_views_of_several_sizes_make_one_film_and_frames_of_their_own_size(run, rendered):
    test = run.scene.splits["test"]
    test.cameras.widths[1] = 10
    test.cameras.heights[3] = 9
    written = evaluation.render_run(run, "test", "views", 3, "last")
    assert written.stat().st_size > 0
    sizes = [Image.open(path).size for path in sorted(written.with_suffix("").glob("*.png"))]
    assert sizes == [(WIDTH, HEIGHT), (10, HEIGHT), (WIDTH, HEIGHT), (WIDTH, 9), (WIDTH, HEIGHT)]


def test_an_unknown_path_lists_the_known(run, rendered):
    with pytest.raises(UserError, match=r"did you mean orbit\? There are: views, orbit, spiral"):
        evaluation.render_run(run, "test", "obrit", 3, "last")
    with pytest.raises(UserError, match="no camera path 'zigzag'; there are: views, orbit"):
        evaluation.render_run(run, "test", "zigzag", 3, "last")


@pytest.fixture
def moving_run(run):
    """The run of a scene that moves, its test views at the times 0, 0.25 and so on."""
    splits = {}
    for name, split in run.scene.splits.items():
        cameras = replace(split.cameras, times=torch.linspace(0, 1, VIEWS))
        splits[name] = replace(split, cameras=cameras)
    run.scene = replace(run.scene, splits=splits)
    return run


@pytest.fixture
def filmed(monkeypatch) -> list[Cameras]:
    """Collects the cameras of films, none of which is rendered."""
    seen = []

    def render(scene, cameras, *others):
        seen.append(cameras)
        return iter([np.zeros((HEIGHT, WIDTH, 3), np.uint8)])

    monkeypatch.setattr(video, "render_frames", render)
    return seen


def test_an_orbit_moves_through_space_and_time_at_once(moving_run, filmed):
    evaluation.render_run(moving_run, "test", "orbit", 5, "last")
    assert filmed[0].times.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert len(filmed[0].poses.unique(dim=0)) == 5


@pytest.mark.parametrize(("path", "frames"), [("orbit", 4), ("interpolate", 4), ("views", VIEWS)])
def test_time_can_be_stopped_while_the_camera_moves(moving_run, filmed, path, frames):
    written = evaluation.render_run(moving_run, "test", path, 4, "last", 0.3)
    torch.testing.assert_close(filmed[0].times, torch.full((frames,), 0.3))
    assert len(filmed[0].poses.unique(dim=0)) == frames
    assert written.name == f"{path}-time0.3-test-last.mp4"  # beside the film of moving time


def test_the_camera_can_stand_still_while_time_moves(moving_run, filmed):
    evaluation.render_run(moving_run, "test", "still", 5, "last")
    assert filmed[0].times.tolist() == [0, 0.25, 0.5, 0.75, 1]
    first = moving_run.scene.splits["test"].cameras.poses[0]
    assert torch.equal(filmed[0].poses, first.expand(5, 3, 4))


@pytest.mark.parametrize(
    ("path", "time", "words"),
    [("still", None, "--path still has no effect"), ("orbit", 0.5, "--time has no effect")],
)
def test_a_still_scene_has_no_time_to_move_or_stop(run, filmed, path, time, words):
    with pytest.raises(UserError, match=words):
        evaluation.render_run(run, "test", path, 5, "last", time)
    assert filmed == []


@pytest.mark.parametrize(
    ("path", "time", "words"),
    [
        ("still", 0.5, "leave one out"),
        ("orbit", 1.5, "--time 1.5: give 0 "),
        ("orbit", -0.1, "--time -0.1: give 0 "),
        ("orbit", float("nan"), "--time nan: give 0 "),
    ],
)
def test_a_time_that_cannot_be_is_refused(moving_run, filmed, path, time, words):
    with pytest.raises(UserError, match=words):
        evaluation.render_run(moving_run, "test", path, 5, "last", time)
    assert filmed == []


def test_images_of_several_sizes_are_not_given_one_resolution(scene, rendered):
    cameras = scene.splits["test"].cameras
    widths = cameras.widths.clone()
    widths[0] = 10
    assert evaluation._resolution(replace(cameras, widths=widths), [0, 1]) == "2 sizes"


def test_a_table_of_the_figures_can_be_shown(scene, rendered):
    assert "test, 5 views" in report.final_table(evaluate(scene, Model(0.1)).summary())
