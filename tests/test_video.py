from __future__ import annotations

import logging
import resource
import sys
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from nerftrain import video
from nerftrain.errors import UserError
from nerftrain.scenes import Scene, Split
from nerftrain.types import Cameras, Rendering


def some_cameras(count: int = 3, width: int = 20, height: int = 16) -> Cameras:
    poses = torch.eye(4)[:3].repeat(count, 1, 1)
    poses[:, 2, 3] = 4.0
    poses[:, 0, 3] = torch.arange(count) * 0.1
    return Cameras(
        poses=poses,
        intrinsics=torch.tensor([25.0, 25.0, width / 2, height / 2]).repeat(count, 1),
        widths=torch.full((count,), width),
        heights=torch.full((count,), height),
    )


def render_flat(scene, cameras, index, model, sampler, background) -> Rendering:
    """A grey that depends on the camera, half see-through."""
    rays = int(cameras.widths[index] * cameras.heights[index])
    grey = torch.full((rays, 3), 0.1 * (index + 1), requires_grad=True) * 1.0
    ones = torch.ones(rays)
    return Rendering(grey, ones, 4.0 * ones, 0 * ones, {}, ones)


@pytest.fixture
def scene(tmp_path) -> Scene:
    cameras = some_cameras()
    split = Split("test", cameras, torch.zeros(3 * 320, 4, dtype=torch.uint8), ("a", "b", "c"))
    splits = {"train": replace(split, name="train"), "test": split}
    return Scene("toy", splits, torch.tensor([-1.0] * 3 + [1.0] * 3), 2.0, 6.0, tmp_path)


@pytest.fixture
def frames() -> list[np.ndarray]:
    ramp = np.linspace(0, 255, 5).astype(np.uint8)
    return [np.full((16, 20, 3), value, np.uint8) for value in ramp]


def read(path) -> tuple[dict, list[np.ndarray]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader]


def test_a_film_holds_its_frames_in_order_as_h264(tmp_path, frames):
    path = video.write_video(tmp_path / "new" / "film.mp4", iter(frames), 10)
    meta, films = read(path)
    assert (meta["codec"], meta["fps"], meta["size"]) == ("h264", 10.0, (20, 16))
    assert meta["pix_fmt"].startswith("yuv420p")
    means = [film.mean() for film in films]
    assert means == pytest.approx([frame.mean() for frame in frames], abs=6)
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_odd_sides_are_padded_not_scaled(tmp_path):
    frame = np.zeros((15, 21, 3), np.uint8)
    frame[:, 10:] = 255
    path = video.write_video(tmp_path / "odd.mp4", [frame] * 3, 10)
    meta, films = read(path)
    assert meta["size"] == (22, 16)
    assert films[0][:15, :21].astype(int) == pytest.approx(frame.astype(int), abs=40)


def test_without_ffmpeg_there_is_a_gif_and_a_warning(tmp_path, frames, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with caplog.at_level(logging.WARNING):
        path = video.write_video(tmp_path / "film.mp4", frames, 10)
    assert path == tmp_path / "film.gif"
    assert "imageio-ffmpeg" in caplog.text
    with Image.open(path) as film:
        assert film.n_frames == len(frames)
    assert not (tmp_path / "film.mp4").exists()


def test_a_full_disk_leaves_the_previous_film(tmp_path, frames):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"earlier")
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(UserError, match="free space") as caught:
            video.write_video(path, noise, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_no_frames_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        video.write_video(tmp_path / "film.mp4", [], 10)


def test_shrunk_cameras_see_the_same_directions():
    cameras = some_cameras(2, 300, 200)
    small = video.shrink(cameras, 90)
    assert (int(small.widths[0]), int(small.heights[0])) == (90, 60)
    assert torch.allclose(small.intrinsics, cameras.intrinsics * 0.3)
    assert torch.equal(video.shrink(cameras, 300).intrinsics, cameras.intrinsics)


def test_rendering_a_view_leaves_modes_and_gradients_as_they_were(scene, monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout())
    model[1].eval()
    seen = []

    def render(*arguments) -> Rendering:
        seen.append((model.training, torch.is_grad_enabled()))
        return render_flat(*arguments)

    monkeypatch.setattr(video.rendering, "render_image", render)
    frames = video.render_frames(scene, some_cameras(), model, None, torch.ones(3))
    next(frames)
    assert seen == [(False, False)]
    # Between two frames too: a generator must not leak its modes to whoever draws from it.
    assert [m.training for m in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_an_orbit_is_filmed_within_the_size_limit(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(video.rendering, "render_image", render_flat)
    model = torch.nn.Linear(3, 3)
    film = tmp_path / "video.mp4"
    path = video.orbit_video(scene, model, None, torch.ones(3), film, num_frames=4, size_limit=10)
    meta, films = read(path)
    assert meta["size"] == (10, 8)
    assert len(films) == 4


def test_frames_are_kept_on_their_way(tmp_path, frames):
    passed = list(video.keep_frames(tmp_path / "frames", frames))
    assert len(passed) == 5
    names = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert names == [f"{i:04d}.png" for i in range(5)]
    assert (np.asarray(Image.open(tmp_path / "frames" / names[3])) == frames[3]).all()


def test_frames_of_a_longer_film_are_dropped_and_nothing_else(tmp_path, frames):
    list(video.keep_frames(tmp_path, frames))
    others = ["00004.png", "4.png", "0004.jpg", "0004-mine.png", "notes.png", "12345.txt"]
    for name in (*others, "10000.png"):
        (tmp_path / name).touch()
    video.drop_later_frames(tmp_path, 2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(["0000.png", "0001.png", *others])
