"""Scores of a model on a split, and the pictures that go with them.

Protocol: PSNR is the mean of the per-image PSNRs of the unquantised prediction, clamped to 0..1;
the ground truth is composited over the same background in sRGB, rgb * a + background * (1 - a).
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from nerftrain import cameras as camera_paths
from nerftrain import checkpoint, metrics, report, video
from nerftrain.bounds import MOST_FRAMES, check_at_most
from nerftrain.errors import UserError
from nerftrain.eyes import read_path
from nerftrain.models import RadianceField
from nerftrain.refinement import Refinement
from nerftrain.scenes import Scene, Split, composite_over
from nerftrain.scenes.world import move, scale_of
from nerftrain.shots import read_shots
from nerftrain.types import Cameras

_log = logging.getLogger(__name__)

SPAN = 1, 99  # percentiles of what is seen: so far the colours of distances reach
ERROR_GAIN = 5  # the amplification of error images, part of their file names
SHEET_COLUMN = 400  # pixels, the widest column of the contact sheet
COLUMNS = ("truth", "prediction", f"error-x{ERROR_GAIN}", "depth")
_PICTURE_FILE = re.compile(r"\d{2}-.*-(truth|prediction|error-x\d+|depth)\.png")
PATHS: dict[str, Callable[[Cameras, int], Cameras]] = {
    "orbit": camera_paths.orbit,
    "spiral": camera_paths.spiral,
    "interpolate": camera_paths.interpolate,
    "still": camera_paths.still,
}
PATH_FILE = ".json"  # how the name of a path in a file ends
FRAMES = 120  # of a path, unless another number is asked for
STILL = "still"  # the path on which nothing moves but time
VIEWS = "views"  # in place of a path: the cameras of the split themselves


class Run(Protocol):
    """What evaluation needs of a finished run, all of it built from the run's own config."""

    @property
    def scene(self) -> Scene: ...  # noqa: D102
    @property
    def model(self) -> RadianceField: ...  # noqa: D102
    @property
    def sampler(self) -> Any: ...  # noqa: D102
    @property
    def refinement(self) -> Refinement: ...  # noqa: D102
    @property
    def background(self) -> Any: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def run_dir(self) -> Path: ...  # noqa: D102


@dataclass(frozen=True)
class ViewScore:
    """The figures of one view."""

    name: str
    psnr: float  # dB
    ssim: float | None
    lpips: float | None


@dataclass(frozen=True)
class Picture:
    """One rendered view beside its truth."""

    name: str
    prediction: Tensor  # [H, W, 3]
    truth: Tensor  # [H, W, 3]
    depth: Tensor  # [H, W] distance, divided by the opacity
    opacity: Tensor  # [H, W]
    # [H, W] bool, the pixels that count; None: all. In others the prediction is the truth.
    valid: Tensor | None = None

    @property
    def psnr(self) -> float:
        """The PSNR in dB of the pixels that count."""
        pair = self.prediction, self.truth
        return metrics.psnr(*(pair if self.valid is None else (x[self.valid] for x in pair)))

    def cpu(self) -> Picture:
        """Copy it to the CPU."""
        parts = {key: value for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{key: value.cpu() for key, value in parts.items()})


@dataclass(frozen=True)
class Evaluation:
    """The figures of a split with the protocol that gives them meaning."""

    split: str
    num_views: int
    resolution: str  # e.g. 400x400, width x height
    background: str
    psnr: float  # dB, mean of per-image PSNR
    ssim: float | None
    lpips: float | None
    lpips_missing: str  # why there is no LPIPS; empty where there is
    per_view: tuple[ViewScore, ...]
    pictures: tuple[Picture, ...]  # on the CPU

    def summary(self) -> dict[str, Any]:
        """Return the figures and their protocol as plain values, without the single views."""
        keys = ("psnr", "ssim", "lpips", "num_views", "split", "resolution", "background")
        return {key: getattr(self, key) for key in keys}

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of each view as plain values."""
        return [asdict(score) for score in self.per_view]


def background_color(name: str) -> Tensor:
    """Return the colour [3] of the background called ``white`` or ``black``."""
    return torch.full((3,), {"white": 1.0, "black": 0.0}[name])


def validation_split(scene: Scene) -> str:
    """Return the split to look at during training: val, or test where there is none."""
    return next((name for name in ("val", "test") if name in scene.splits), "train")


def find_split(scene: Scene, name: str) -> Split:
    """Return a split of the scene.

    Raises:
        UserError: where it does not exist, with the ones that do.
    """
    if name not in scene.splits:
        close = difflib.get_close_matches(name, list(scene.splits), n=1)
        hint = f"; did you mean {close[0]}? It has" if close else "; it has"
        raise UserError(
            f"scene {scene.name} has no split '{name}'{hint}: {', '.join(scene.splits)}"
        )
    return scene.splits[name]


def evaluate(
    scene: Scene,
    split_name: str,
    model: RadianceField,
    sampler: Any,
    background: Tensor,
    *,
    views: int | None,
    with_lpips: bool,
    num_pictures: int = 0,
) -> Evaluation:
    """Score a model on a split over a background [3].

    Args:
        scene: the scene.
        split_name: one of its splits.
        model: the model; its training mode is put back afterwards.
        sampler: the sampler, treated alike.
        background: the colour [3] behind prediction and truth.
        views: how many evenly spaced views; None for all.
        with_lpips: measures LPIPS too, where it can be had.
        num_pictures: how many evenly spaced views are kept for ``write_images``.

    Raises:
        UserError: for a split that does not exist or fewer than one view.
    """
    split = find_split(scene, split_name)
    chosen = spaced(len(split.cameras), views)
    kept = {chosen[i] for i in spaced(len(chosen), num_pictures)} if num_pictures else set()
    lpips, missing = metrics.load_lpips() if with_lpips else (None, "not asked for")
    scores, pictures = [], []
    for index in tqdm(
        chosen, desc=f"evaluating {split_name}", unit="view", leave=False, disable=None
    ):
        picture = _picture(scene, split, index, model, sampler, background)
        scores.append(_score(picture, lpips))
        if index in kept:
            pictures.append(picture.cpu())
    return Evaluation(
        split=split_name,
        num_views=len(chosen),
        resolution=_resolution(split.cameras, chosen),
        background=_color_name(background),
        psnr=float(np.mean([score.psnr for score in scores])),
        ssim=_mean([score.ssim for score in scores]),
        lpips=_mean([score.lpips for score in scores]),
        lpips_missing="" if lpips else missing,
        per_view=tuple(scores),
        pictures=tuple(pictures),
    )


def spaced(count: int, wanted: int | None) -> list[int]:
    """Return at most ``wanted`` evenly spaced indices out of ``count``, all of them for None.

    Raises:
        UserError: where fewer than one is wanted.
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    if wanted < 1:
        raise UserError(f"views must be at least 1 or left out for all, not {wanted}")
    return [index * count // wanted for index in range(wanted)]


def _picture(
    scene: Scene, split: Split, index: int, model: RadianceField, sampler: Any, background: Tensor
) -> Picture:
    rendering = video.render_view(scene, split.cameras, index, model, sampler, background)
    device = rendering.rgb.device
    truth = composite_over(split.image(index).to(device), background.to(device)).float()
    height, width = truth.shape[:2]
    valid = split.valid_of(index)
    prediction = rendering.rgb.float().reshape(height, width, 3).clamp(0, 1)
    if valid is not None:
        valid = valid.to(device)
        prediction = torch.where(valid[:, :, None], prediction, truth)
    opacity = rendering.opacity.float().reshape(height, width)
    depth = rendering.depth.float().reshape(height, width)
    return Picture(
        name=split.labels[index],
        prediction=prediction,
        truth=truth,
        depth=depth
        / opacity.clamp_min(1e-6),  # empty rays have no distance; the depth image leaves them out
        opacity=opacity,
        valid=valid,
    )


def _score(picture: Picture, lpips: metrics.ImageMetric | None) -> ViewScore:
    pair = prediction, truth = picture.prediction, picture.truth
    if picture.valid is not None:  # what does not count must not show in windows that reach into it
        pair = prediction * picture.valid[:, :, None], truth * picture.valid[:, :, None]
    similarity = metrics.ssim(*pair, picture.valid)
    return ViewScore(picture.name, picture.psnr, similarity, lpips(*pair) if lpips else None)


def _resolution(cameras: Cameras, chosen: list[int]) -> str:
    sizes = {f"{int(cameras.widths[i])}x{int(cameras.heights[i])}" for i in chosen}
    return sizes.pop() if len(sizes) == 1 else f"{len(sizes)} sizes"


def _color_name(background: Tensor) -> str:
    values = [round(value, 3) for value in background.tolist()]
    return {(1.0,) * 3: "white", (0.0,) * 3: "black"}.get(tuple(values), f"rgb{tuple(values)}")


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present and len(present) == len(values) else None


def write_images(folder: Path, evaluation: Evaluation) -> Path:
    """Write truth, prediction, amplified error and depth of each kept view, and all in one sheet.

    Those of other views, which an earlier call has left in the folder, are removed.

    Returns:
        The sheet, ``comparison.png``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows, written = [], set()
    for number, picture in enumerate(evaluation.pictures):
        images = _images(picture)
        for column, image in images.items():
            file = f"{number:02d}-{picture.name.replace('/', '-')}-{column}.png"
            path = folder / file
            image.save(path)
            written.add(path)
        rows.append((f"{picture.name}  {picture.psnr:.2f} dB", images))
    sheet = folder / "comparison.png"
    _sheet(rows).save(sheet)
    for path in set(folder.glob("*.png")) - written:
        if _PICTURE_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)
    return sheet


def _images(picture: Picture) -> dict[str, Image.Image]:
    error = (picture.prediction - picture.truth).abs() * ERROR_GAIN
    depth = depth_image(picture.depth.numpy(), picture.opacity.numpy())
    arrays = [
        *(video.to_uint8(image) for image in (picture.truth, picture.prediction, error)),
        depth,
    ]
    return dict(zip(COLUMNS, map(Image.fromarray, arrays), strict=True))


def depth_image(
    depth: np.ndarray, opacity: np.ndarray, span: tuple[float, float] | None = None
) -> np.ndarray:
    """Colour a depth map [H, W] as bytes [H, W, 3]: near is red, far is blue, see-through is white.

    Args:
        depth: [H, W].
        opacity: [H, W]; what is at most half opaque is see-through.
        span: what is reddest and what is bluest; None: from the 1st to the 99th percentile of what
            is not see-through, so that a few stray pixels do not take up all colours.
    """
    solid = opacity > 0.5
    image = np.full((*depth.shape, 3), 255, np.uint8)
    if solid.any():
        near, far = np.percentile(depth[solid], SPAN) if span is None else span
        position = np.clip((depth[solid] - near) / max(far - near, 1e-6), 0, 1)
        image[solid] = (turbo(1 - position) * 255).round().astype(np.uint8)
    return image


# A polynomial fit of the Turbo colour map (A. Mikhailov, 2019): red, green, blue by rising power.
_TURBO = np.array(
    [
        [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
        [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
        [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
    ]
)


def turbo(values: np.ndarray) -> np.ndarray:
    """Map values [...] in 0..1 to the colours [..., 3] in 0..1 of Turbo."""
    powers = values[..., None] ** np.arange(6)
    return np.clip(powers @ _TURBO.T, 0, 1)


def _sheet(rows: list[tuple[str, dict[str, Image.Image]]]) -> Image.Image:
    """Set labelled rows of images, columns as wide as the widest, at most SHEET_COLUMN pixels."""
    gap, label = 4, 16  # pixels
    widest = max((image.width for _, images in rows for image in images.values()), default=1)
    column = min(SHEET_COLUMN, widest)
    heights = [round(images["truth"].height * column / images["truth"].width) for _, images in rows]
    width = len(COLUMNS) * (column + gap) + gap
    sheet = Image.new(
        "RGB", (width, label + sum(height + label + gap for height in heights)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(COLUMNS):
        draw.text((gap + number * (column + gap), 2), title, fill="black")
    top = label
    for (caption, images), height in zip(rows, heights, strict=True):
        draw.text((gap, top + 2), caption, fill="black")
        for number, image in enumerate(images.values()):
            sheet.paste(
                image.resize((column, height)), (gap + number * (column + gap), top + label)
            )
        top += height + label + gap
    return sheet


def evaluate_run(
    run: Run, split: str, checkpoint_name: str, views: int | None, out: Path | None = None
) -> Evaluation:
    """Score a checkpoint of a run on a split; writes and shows the figures.

    Everything lies in ``run_dir/eval/<split>-<checkpoint>``: metrics.json, views.json and images.

    Args:
        run: the run, built from its own config.
        split: one of the scene's splits.
        checkpoint_name: last, best or a path.
        views: how many evenly spaced views; None for all.
        out: a folder in place of ``run_dir/eval``.

    Raises:
        UserError: for a split or a checkpoint that does not exist or does not fit, and a folder
            that cannot be written.
    """
    find_split(run.scene, split)
    state, label = load_into(run, checkpoint_name)
    folder = make_folder((out or run.run_dir / "eval") / f"{split}-{label}")
    background = background_color(run.background.evaluation)
    result = evaluate(
        as_found(run),
        split,
        run.model,
        run.sampler,
        background,
        views=views,
        with_lpips=True,
        num_pictures=6,
    )
    final = {**result.summary(), **_training_figures(state, run.seed)}
    report.write_metrics(folder, final)
    (folder / "views.json").write_text(json.dumps(result.rows(), indent=1) + "\n", encoding="utf-8")
    write_images(folder / "images", result)
    report.say(report.final_table(final))
    if result.lpips_missing:
        report.say(f"no LPIPS: {result.lpips_missing}")
    report.say(f"written to {folder}")
    return result


def render_run(
    run: Run,
    split: str,
    path: str,
    frames: int | None,
    checkpoint_name: str,
    time: float | None = None,
    depth: bool = False,
    panorama: bool = False,
    transparent: bool = False,
    out: Path | None = None,
) -> Path:
    """Render a split, or a camera path derived from it, to a film and single frames.

    Both lie in ``run_dir/renders``: ``<path>-<split>-<checkpoint>.mp4`` and a folder of PNGs; a
    time is part of the name, ``<path>-time<time>-...``, and so are ``-panorama``, ``-depth`` and
    ``-transparent`` at its end. With depth there is beside each PNG what it shows, .npy, [H, W]
    float32: how far along each pixel's ray, in the dataset's units, half of its light has gone;
    infinite where it never has.

    Args:
        run: the run, built from its own config.
        split: one of the scene's splits.
        path: views (the split's own cameras), orbit, spiral, interpolate, still, or a file of a
            path (see `eyes`) or of cameras (see `shots`).
        frames: how many frames a path has, FRAMES where it is None; the split's own views, and the
            cameras of a file, are all rendered.
        checkpoint_name: last, best or a path to a file.
        time: of all frames, 0..1; None: time moves along the path.
        depth: whether distances are wanted in place of colours.
        panorama: whether all is to be seen that is around the cameras.
        transparent: whether the PNGs keep opacity in place of the background, which the film has.
        out: a folder in place of ``run_dir/renders``.

    Raises:
        UserError: for a split, path, time or checkpoint that does not exist or does not fit, for
            far too many frames, and a folder that cannot be written.
    """
    if depth and transparent:
        raise UserError("--transparent has no effect on --depth: leave one of them out")
    count = FRAMES if frames is None else frames
    check_at_most(MOST_FRAMES, **{"--frames": count})
    cameras = find_split(run.scene, split).cameras.to("cpu")
    fps = video.FRAMES_PER_SECOND if path != VIEWS else 4  # unrelated views need time to be seen
    if Path(path).suffix == PATH_FILE:
        shots = read_shots(Path(path), run.scene.world)
        if shots is None:
            longest = int(torch.maximum(cameras.widths, cameras.heights).max())
            keys = _timed_like(read_path(Path(path), longest), run.scene)
            cameras = camera_paths.interpolate(keys, count)
        elif frames is not None:
            raise UserError(f"--frames has no effect: {path} lists its cameras; leave it out")
        else:
            cameras, fps = _timed_like(shots.cameras, run.scene), shots.fps or fps
        cameras = stop_time(cameras, time, run.scene.name)
        path = f"path-{Path(path).stem}"
    else:
        cameras = _path_cameras(cameras, path, count)
        cameras = _at_time(cameras, path, time, run.scene.name)
    _, label = load_into(run, checkpoint_name)
    if path == VIEWS:
        poses = find_split(as_found(run), split).cameras.poses
        cameras = replace(cameras, poses=poses.to("cpu"))
    name = f"{path if time is None else f'{path}-time{time:g}'}-{split}-{label}"
    if panorama:
        name += "-panorama"
        up = camera_paths.up_vector(find_split(run.scene, split).cameras.poses.double().cpu())
        cameras = camera_paths.panoramas(cameras, up.to(cameras.poses))
    folder = make_folder(out or run.run_dir / "renders")
    background = background_color(run.background.evaluation)
    what = run.scene, cameras, run.model, run.sampler, background
    if depth:
        name += "-depth"
        scale = 1.0 if run.scene.world is None else scale_of(run.scene.world)
        images = _depth_frames(folder / name, (d / scale for d in video.render_depths(*what)))
    else:
        name += "-transparent" if transparent else ""
        images = video.render_frames(*what, transparent)
    kept = video.keep_frames(folder / name, images)
    if transparent:
        kept = video.lay_over(kept, background)
    written = video.write_video(folder / f"{name}.mp4", video.centered(kept, cameras), fps)
    video.drop_later_frames(folder / name, len(cameras))
    report.say(f"{len(cameras)} frames: {written} and {folder / name}")
    return written


def make_folder(folder: Path) -> Path:
    """Make a folder; what takes long must not end before one that cannot be written.

    Raises:
        UserError: that is so.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): give another place by --out"
        ) from None


def _depth_frames(folder: Path, distances: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Write distances [H, W] to a folder, and then colour them, all of them alike."""
    folder.mkdir(parents=True, exist_ok=True)
    files, spans = [], []
    for number, distance in enumerate(distances):
        files.append(folder / f"{number:04d}.npy")
        np.save(files[-1], distance)
        seen = distance[np.isfinite(distance)]
        if len(seen):
            spans.append(np.percentile(seen, SPAN))
    span = np.median(spans, 0) if spans else (0.0, 1.0)
    for file in files:
        distance = np.load(file)
        seen = np.isfinite(distance)
        yield depth_image(np.where(seen, distance, 0), seen, (span[0], span[1]))


def _timed_like(cameras: Cameras, scene: Scene) -> Cameras:
    """Give keyframes times where the scene moves and they have none, and take them where not."""
    if not scene.is_dynamic:
        return replace(cameras, times=None)
    if cameras.times is not None:
        return cameras
    return replace(cameras, times=torch.linspace(0, 1, len(cameras)))


def _path_cameras(cameras: Cameras, path: str, frames: int) -> Cameras:
    if path == VIEWS:
        return cameras
    if path not in PATHS:
        close = difflib.get_close_matches(path, [VIEWS, *PATHS], n=1)
        hint = f"; did you mean {close[0]}? There are" if close else "; there are"
        raise UserError(
            f"no camera path '{path}'{hint}: {', '.join([VIEWS, *PATHS])}, "
            f"and files *{PATH_FILE}: what nerftrain view has saved, a transforms.json, or a path "
            "of nerfstudio's"
        )
    return PATHS[path](cameras, frames)


def _at_time(cameras: Cameras, path: str, time: float | None, scene_name: str) -> Cameras:
    """Stop the time of cameras, unless it is None."""
    if cameras.times is None and path == STILL:
        raise UserError(
            f"--path still has no effect: nothing moves in scene {scene_name}; leave it out"
        )
    if path == STILL and time is not None:
        raise UserError("--path still with --time is one image over and over: leave one out")
    return stop_time(cameras, time, scene_name)


def stop_time(cameras: Cameras, time: float | None, scene_name: str) -> Cameras:
    """Let cameras all show one time 0..1; None leaves theirs.

    Raises:
        UserError: it is no time, or nothing moves.
    """
    if time is None:
        return cameras
    if cameras.times is None:
        raise UserError(f"--time has no effect: nothing moves in scene {scene_name}; leave it out")
    if not 0 <= time <= 1:
        raise UserError(f"--time {time:g}: give 0 for the first moment to 1 for the last")
    return replace(cameras, times=torch.full_like(cameras.times, time))


def load_into(run: Run, checkpoint_name: str) -> tuple[Mapping[str, Any], str]:
    """Fill the run's model (averaged weights, where there are) and the rest: state and label."""
    path = checkpoint.find(run.run_dir, checkpoint_name)
    state = checkpoint.load(path)
    live = {"model": run.model, "sampler": run.sampler, "refinement": run.refinement}
    checkpoint.restore(state, **live, use_ema=True)
    _log.info("checkpoint %s of step %s", path, state["step"])
    return state, path.stem


def as_found(run: Run) -> Scene:
    """Return the run's scene with the training cameras where they have been found to be."""
    if run.refinement.poses_are_true:
        return run.scene
    train = run.scene.splits["train"]
    cameras = run.refinement.cameras(train.cameras)
    return replace(run.scene, splits={**run.scene.splits, "train": replace(train, cameras=cameras)})


def write_cameras(run: Run) -> None:
    """Write cameras.json: poses and gains of the training images, where any were learnt.

    Poses [4, 4] are in the dataset's own coordinates.
    """
    found = run.refinement.describe()
    if not found:
        return
    split = as_found(run).splits["train"]
    poses, world = split.cameras.poses.double().cpu(), run.scene.world
    if world is not None:
        poses = move(poses, torch.linalg.inv(world.double().cpu()))
    last = poses.new_tensor([[0.0, 0.0, 0.0, 1.0]])
    gains = run.refinement.image_gains()
    frames = [
        {
            "file_path": name,
            "transform_matrix": torch.cat([poses[i], last]).tolist(),
            "gain": [1.0, 1.0, 1.0] if gains is None else gains[i].tolist(),
        }
        for i, name in enumerate(split.names)
    ]
    listed = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    report.say(f"refined (root mean square: {listed}): {report.write_cameras(run.run_dir, frames)}")


def _training_figures(state: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Tell how a checkpoint was trained; ``seed`` is for one that does not say."""
    trained_with = state.get("config", {}).get("seed", seed)
    return {"steps": state["step"], "train_seconds": state.get("seconds"), "seed": trained_with}
