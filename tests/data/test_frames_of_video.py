"""Frames of a film: spread over all of it, sharp, turned as it says, and kept for the next time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from corner_of_a_room import photographs, true_poses
from PIL import Image, ImageFilter

from nerftrain import video
from nerftrain.cli import main
from nerftrain.data import frames_of_video
from nerftrain.data.frames_of_video import is_taken, sharpness, take_frames
from nerftrain.errors import UserError
from nerftrain.scenes.colmap_model import read_model
from nerftrain.video import write_video

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")


def blurred(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(2)))


def film(path: Path, frames: list[np.ndarray]) -> Path:
    return write_video(path, frames, 12)


def greys(count: int) -> list[np.ndarray]:
    """Make frames that grow brighter; every fifth has fine stripes, the others are flat."""
    frames = []
    for index in range(count):
        frame = np.full((48, 64, 3), 20 + 4 * index, np.uint8)
        if index % 5 == 3:
            frame[:, ::8] += 15
        frames.append(frame)
    return frames


def read(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.jpg"))]


def test_of_each_stretch_the_sharpest_frame_is_taken(tmp_path: Path):
    path = film(tmp_path / "film.mp4", greys(50))
    assert take_frames(path, tmp_path / "images", 10) == 10
    taken = read(tmp_path / "images")
    for number, frame in enumerate(taken):
        # Flat pixels tell which frame it was: the striped one of its five.
        assert abs(float(np.median(frame)) - (20 + 4 * (5 * number + 3))) < 2.5
        assert sharpness(frame) > 20


def test_a_short_film_gives_all_its_frames(tmp_path: Path):
    path = film(tmp_path / "film.mp4", greys(7))
    assert take_frames(path, tmp_path / "images", 30) == 7


def test_blur_is_less_sharp():
    frame = photographs(1)[0]
    assert sharpness(frame) > 4 * sharpness(blurred(frame))


def test_a_film_on_its_side_is_set_upright(tmp_path: Path):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32] = 255
    path = film(tmp_path / "film.mp4", [frame] * 4)
    turned = tmp_path / "turned.mp4"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90"]
    subprocess.run([*ffmpeg, "-i", path, "-c", "copy", turned], check=True)
    take_frames(turned, tmp_path / "images", 3)
    upright = read(tmp_path / "images")[0]
    assert upright.shape == (64, 48, 3)
    assert upright[48:].mean() > 200 > 50 > upright[:16].mean()  # a quarter against the clock


def test_frames_are_taken_once(tmp_path: Path):
    path = film(tmp_path / "film.mp4", greys(10))
    folder = tmp_path / "images"
    assert not is_taken(path, folder, 3)
    take_frames(path, folder, 3)
    assert is_taken(path, folder, 3)
    for source, count in ((path, 4), (film(tmp_path / "other.mp4", greys(10)), 3)):
        with pytest.raises(UserError, match=r"is there already.*--out"):
            is_taken(source, folder, count)
    (folder / ".video.json").unlink()
    with pytest.raises(UserError, match="is there already"):
        is_taken(path, folder, 3)


@pytest.mark.usefixtures("pycolmap")
def test_what_is_no_film_is_one_line_and_leaves_nothing(tmp_path: Path, capsys):
    (tmp_path / "film.mov").write_bytes(b"no film")
    assert main(["data", "pose", str(tmp_path / "film.mov")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "film.mov is no film that ffmpeg can read (Error opening input" in line
    assert [path.name for path in tmp_path.iterdir()] == ["film.mov"]


def test_without_ffmpeg_the_remedy_is_its_pip_command(tmp_path: Path, monkeypatch):
    path = film(tmp_path / "film.mp4", greys(4))
    monkeypatch.setattr(frames_of_video, "why_no_ffmpeg", lambda: "there is no ffmpeg")
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        take_frames(path, tmp_path / "images", 3)
    assert video.why_no_ffmpeg() == ""


def test_an_interruption_leaves_no_half_of_the_frames(tmp_path: Path, monkeypatch):
    path = film(tmp_path / "scene.mp4", greys(30))
    real, calls = frames_of_video.sharpness, []

    def stop(frame: np.ndarray) -> float:
        calls.append(frame)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(frame)

    monkeypatch.setattr(frames_of_video, "sharpness", stop)
    with pytest.raises(KeyboardInterrupt):
        take_frames(path, tmp_path / "scene" / "images", 5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene.mp4"]


@pytest.mark.usefixtures("pycolmap")
def test_a_film_is_posed_beside_it(tmp_path: Path, capfd):
    sharp = photographs(16)
    frames = [frame for picture in sharp for frame in (blurred(picture), picture)]
    path = film(tmp_path / "Room.MP4", frames)
    assert main(["data", "pose", str(path), "--frames", "8", "--camera", "pinhole"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "8 of 8 photographs" in printed.out
    assert f"scene.root={tmp_path / 'Room'}\n" in printed.out
    views = read_model(tmp_path / "Room" / "sparse" / "0")
    assert [view.name for view in views] == [f"frame_{index:05d}.jpg" for index in range(1, 9)]
    places = np.stack([view.pose[:, 3].numpy() for view in views])
    true = true_poses(16)[:, :, 3]
    # The bow is walked in one direction, from one end to near the other.
    length = (
        np.linalg.norm(places[-1] - places[0])
        / np.linalg.norm(np.diff(places, axis=0), axis=1).sum()
    )
    true_length = (
        np.linalg.norm(true[-1] - true[0]) / np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
    )
    assert length == pytest.approx(true_length, rel=0.1)
