"""Whole views rendered one after the other, and films made of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nerftrain import cameras as camera_paths
from nerftrain import rendering
from nerftrain.errors import UserError
from nerftrain.models import RadianceField
from nerftrain.scenes import Scene
from nerftrain.types import Cameras, Rendering

_log = logging.getLogger(__name__)

FRAMES_PER_SECOND = 30


@contextlib.contextmanager
def evaluation_mode(*modules: object) -> Iterator[None]:
    """Turn gradients off and modules to evaluation, and put back what was there before."""
    live = [module for module in modules if isinstance(module, torch.nn.Module)]
    before = [(part, part.training) for module in live for part in module.modules()]
    try:
        for module in live:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            part.training = training


def render_view(
    scene: Scene,
    cameras: Cameras,
    index: int,
    model: RadianceField,
    sampler: Any,
    background: Tensor,
) -> Rendering:
    """Render camera ``index`` over a background [3]: H*W rays row-major, on the model's device."""
    device = device_of(model)
    with evaluation_mode(model, sampler):
        return rendering.render_image(
            scene, cameras.to(device), index, model, sampler, background.to(device)
        )


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device of the model's weights, the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def render_frames(
    scene: Scene,
    cameras: Cameras,
    model: RadianceField,
    sampler: Any,
    background: Tensor,
    transparent: bool = False,
) -> Iterator[np.ndarray]:
    """Yield a frame [H, W, 3] uint8 for each camera, with a progress line on a terminal.

    Transparent ones are [H, W, 4], with opacity at the end and nothing of the background.
    """
    behind = torch.zeros_like(background) if transparent else background
    for index in tqdm(
        range(len(cameras)), desc="rendering", unit="frame", leave=False, disable=None
    ):
        seen = render_view(scene, cameras, index, model, sampler, behind)
        colors = seen.rgb.float()
        if transparent:
            opacity = seen.opacity.float()[:, None].clamp(0, 1)
            colors = torch.cat([colors / opacity.clamp_min(1 / 255), opacity], 1)
        height, width = int(cameras.heights[index]), int(cameras.widths[index])
        yield to_uint8(colors.reshape(height, width, -1))


def lay_over(frames: Iterable[np.ndarray], background: Tensor) -> Iterator[np.ndarray]:
    """Lay transparent frames [H, W, 4] uint8 over a background [3] in 0..1: [H, W, 3] uint8."""
    behind = background.float().cpu().numpy() * 255
    for frame in frames:
        opacity = frame[..., 3:].astype(np.float32) / 255
        yield (frame[..., :3] * opacity + behind * (1 - opacity)).round().astype(np.uint8)


def render_depths(
    scene: Scene, cameras: Cameras, model: RadianceField, sampler: Any, background: Tensor
) -> Iterator[np.ndarray]:
    """Yield how far along its rays each camera sees, [H, W] float32, infinite where nothing is."""
    device = device_of(model)
    seeing = scene, cameras.to(device)
    how = model, sampler, background.to(device)
    for index in tqdm(
        range(len(cameras)), desc="rendering depth", unit="frame", leave=False, disable=None
    ):
        with evaluation_mode(model, sampler):
            distances = rendering.see_surface(*seeing, index, *how)[1]
        height, width = int(cameras.heights[index]), int(cameras.widths[index])
        yield distances.view(height, width).float().cpu().numpy()


def orbit_video(
    scene: Scene,
    model: RadianceField,
    sampler: Any,
    background: Tensor,
    path: Path,
    *,
    num_frames: int,
    size_limit: int,
) -> Path:
    """Film an orbit derived from the test cameras, its longer side at most ``size_limit`` pixels.

    Returns:
        Where the film lies: ``path``, or a GIF beside it where there is no ffmpeg.

    Raises:
        UserError: where it cannot be written.
    """
    split = scene.splits.get("test") or scene.splits["train"]
    cameras = shrink(camera_paths.orbit(split.cameras.to("cpu"), num_frames), size_limit)
    return write_video(
        path, render_frames(scene, cameras, model, sampler, background), FRAMES_PER_SECOND
    )


def shrink(cameras: Cameras, size_limit: int) -> Cameras:
    """Return the cameras with images whose longer side is at most ``size_limit`` pixels."""
    longer = torch.maximum(cameras.widths, cameras.heights)  # [C]
    factor = (size_limit / longer).clamp(max=1.0)
    widths = (cameras.widths * factor).round().long().clamp(min=1)
    heights = (cameras.heights * factor).round().long().clamp(min=1)
    # Each axis by its own ratio: rounding to whole pixels must not shift the principal point.
    ratio = torch.stack([widths / cameras.widths, heights / cameras.heights] * 2, -1)  # [C, 4]
    intrinsics = cameras.intrinsics * ratio.to(cameras.intrinsics.dtype)
    return replace(cameras, widths=widths, heights=heights, intrinsics=intrinsics)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> Path:
    """Write frames [H, W, 3] uint8 as H.264 (yuv420p), or as a GIF where there is no ffmpeg.

    Returns:
        Where the film lies: ``path``, or its .gif twin.

    Raises:
        UserError: where there is no frame, or the file cannot be written.
    """
    path = Path(path)
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise UserError(f"a video of no frames was asked for ({path}); ask for at least one")
    missing = why_no_ffmpeg()
    if missing:
        path = path.with_suffix(".gif")
        _log.warning(
            "%s, so the film is an animated GIF: %s (pip install imageio-ffmpeg)", missing, path
        )
    write = _write_gif if missing else _write_h264
    partial = path.with_name(f".part-{path.name}")  # the suffix tells ffmpeg the container
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial, chain([first], remaining), fps)
        partial.replace(path)
    except OSError as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"cannot write video {path}: {cause[0]}; check the free space and permissions there"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def keep_frames(folder: Path, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass frames [H, W, 3 or 4] uint8 on, each written to ``folder`` as a numbered PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:04d}.png")
        yield frame


def drop_later_frames(folder: Path, count: int) -> None:
    """Remove what is left of an earlier, longer film: what is numbered from ``count`` on."""
    for path in (*folder.glob("*.png"), *folder.glob("*.npy")):
        number = path.stem
        if number.isdecimal() and number == f"{int(number):04d}" and int(number) >= count:
            path.unlink(missing_ok=True)


def centered(frames: Iterable[np.ndarray], cameras: Cameras) -> Iterator[np.ndarray]:
    """Lay the frames [H, W, 3] uint8 of cameras of several sizes on black ones of one size."""
    height, width = int(cameras.heights.max()), int(cameras.widths.max())
    for frame in frames:
        down, right = height - frame.shape[0], width - frame.shape[1]
        margins = ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0))
        yield np.pad(frame, margins)


def write_png(path: Path, image: Tensor) -> None:
    """Write an image [H, W, 3] in 0..1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(image)).save(path)


def to_uint8(image: Tensor) -> np.ndarray:
    """Round colours in 0..1, clamped, to bytes."""
    return (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def why_no_ffmpeg() -> str:
    """Say why films can be neither written nor read; nothing where they can."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return "there is no ffmpeg"
    return ""


def _write_h264(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    import imageio_ffmpeg

    first = _even(next(frames))
    height, width = first.shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,  # pyright: ignore[reportArgumentType] (any number does)
        codec="libx264",
        quality=8,
        macro_block_size=2,
    )
    writer.send(None)
    try:
        for frame in chain([first], map(_even, frames)):
            assert frame.shape == first.shape, (frame.shape, first.shape)
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
    try:  # imageio-ffmpeg does not look at ffmpeg's exit status: only reading back tells
        imageio_ffmpeg.count_frames_and_secs(str(path))
    except (RuntimeError, OSError) as error:
        raise OSError("ffmpeg could not finish the file") from error


def _even(frame: np.ndarray) -> np.ndarray:
    """Repeat the last row or column where a side is odd: yuv420p halves both."""
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")


def _write_gif(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    images = [Image.fromarray(frame).quantize(256) for frame in frames]
    # Browsers slow down what is faster than 50 frames a second.
    milliseconds = max(20, round(1000 / fps))
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
