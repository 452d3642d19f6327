from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import train_tiny

from nerftrain import config, video, viewer
from nerftrain.cameras import look_at
from nerftrain.cli import main
from nerftrain.errors import UserError
from nerftrain.eyes import Eye
from nerftrain.trainer import Run
from nerftrain.viewer import Page, Painter, Visitor, Wishes

viser = pytest.importorskip("viser", reason="the viewer: pip install 'nerftrain[view]'")
import msgspec  # noqa: E402  what viser stands on
import zstandard  # noqa: E402
from websockets.asyncio.client import connect  # noqa: E402

SQUARE = 32  # pixels of the tiny scene's images


def never() -> bool:
    return False


def assembled(folder: Path) -> Run:
    return config.assemble(config.load_run(folder, []), folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("view"))


@pytest.fixture
def run(folder: Path) -> Run:
    return assembled(folder)


def from_in_front() -> SimpleNamespace:
    """Stand where viser's own conventions need no turn: looking along +z, y down."""
    return SimpleNamespace(
        wxyz=np.array([1.0, 0, 0, 0]), position=np.array([0, 0, -4.0]), fov=0.7, aspect=1.5
    )


def test_an_eye_has_openGL_axes_and_the_fov_of_visers_camera():  # noqa: N802
    eye = viewer.eye_of(from_in_front(), None)
    assert eye.pose.tolist() == [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, -4]]
    camera = eye.camera(300)
    assert (int(camera.widths[0]), int(camera.heights[0])) == (300, 200)
    assert camera.intrinsics[0, 1] == pytest.approx(100 / math.tan(0.35))
    tall = replace(eye, aspect=0.5).camera(300)
    assert (int(tall.widths[0]), int(tall.heights[0])) == (150, 300)


def test_visers_quaternion_leads_back_to_the_pose():
    places = torch.randn(7, 3, generator=torch.Generator().manual_seed(2)) * 3
    for pose in look_at(places, torch.zeros(3), torch.tensor([0.1, 0.2, 1.0])):
        theirs = from_in_front()
        theirs.wxyz, theirs.position = viewer.quaternion(pose), pose[:, 3].numpy()
        torch.testing.assert_close(viewer.eye_of(theirs, None).pose, pose, atol=1e-6, rtol=0)


def test_a_training_camera_sees_what_evaluation_renders(run: Run):
    painter = Painter(run, "last")
    cameras = run.scene.splits["train"].cameras
    fov = viewer.vertical_fov(cameras, 3)
    painted = painter.paint(Eye(cameras.poses[3], fov, 1.0, None), SQUARE, "colour", never)
    view = video.render_view(run.scene, cameras, 3, run.model, run.sampler, torch.ones(3))
    expected = video.to_uint8(view.rgb.view(SQUARE, SQUARE, 3)).astype(int)
    # Rays begin elsewhere, so their samples lie elsewhere within a step.
    assert abs(painted - expected).max() <= 8
    assert abs(painted - expected).mean() < 0.5
    assert expected.std() > 10


def test_depth_and_opacity_are_shown(run: Run):
    painter = Painter(run, "last")
    cameras = run.scene.splits["train"].cameras
    eye = Eye(cameras.poses[0], viewer.vertical_fov(cameras, 0), 1.0, None)
    opacity = painter.paint(eye, SQUARE, "opacity", never)
    assert (opacity[..., 0] == opacity[..., 1]).all()
    assert opacity.min() < 50
    assert opacity.max() > 200
    depth = painter.paint(eye, SQUARE, "depth", never)
    assert (depth[opacity[..., 0] < 50] == 255).all()  # white where nothing is
    assert depth[opacity[..., 0] > 200].std() > 10


def test_one_can_go_nearer_than_the_training_cameras_were(run: Run):
    cameras = run.scene.splits["train"].cameras
    near = cameras.poses[0].clone()
    near[:, 3] *= 0.4  # nearer to what is seen than the scene's `near`
    eye = Eye(near, viewer.vertical_fov(cameras, 0), 1.0, None)
    opacity = Painter(run, "last").paint(eye, SQUARE, "opacity", never)
    assert (opacity > 200).mean() > 0.3


def test_bands_of_a_slow_field_make_the_same_image(run: Run, monkeypatch: pytest.MonkeyPatch):
    painter = Painter(run, "last")
    cameras = run.scene.splits["train"].cameras
    eye = Eye(cameras.poses[0], viewer.vertical_fov(cameras, 0), 1.5, None)
    whole = painter.paint(eye, 48, "colour", never)
    monkeypatch.setattr(viewer, "BAND_SECONDS", 0.0)  # a row each
    calls = []
    banded = painter.paint(eye, 48, "colour", lambda: bool(calls.append(0)))
    assert len(calls) == 32
    assert whole is not None
    assert banded is not None
    assert abs(whole.astype(int) - banded).max() <= 1


def test_an_image_that_nobody_wants_any_more_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch):
    painter = Painter(run, "last")
    cameras = run.scene.splits["train"].cameras
    eye = Eye(cameras.poses[0], 0.7, 1.0, None)
    monkeypatch.setattr(viewer, "BAND_SECONDS", 0.0)
    calls = []
    assert painter.paint(eye, 32, "colour", lambda: len(calls) > 4 or calls.append(0)) is None
    assert len(calls) == 5


def test_drafts_double_up_to_the_longest_side(run: Run):
    painter = Painter(run, "last")
    painter._pixels_per_second = 100 * 100 / viewer.DRAFT_SECONDS
    assert painter.sides(700) == [100, 200, 400, 700]
    assert painter.sides(64) == [64]
    painter._pixels_per_second = 1
    assert painter.sides(100) == [viewer.LEAST_SIDE, 2 * viewer.LEAST_SIDE, 100]


class Client:
    """A visitor's browser, as far as a visitor needs one."""

    def __init__(self) -> None:
        self.camera = from_in_front()
        self.camera.on_update = self.moves = []
        self.camera.on_update = self.moves.append
        self.images: list[tuple[int, int]] = []
        self.scene = SimpleNamespace(set_background_image=self.receive)

    def receive(self, image: np.ndarray, **_: Any) -> None:
        self.images.append(image.shape[:2])

    def wait_for(self, count: int) -> None:
        end = time.monotonic() + 20
        while len(self.images) < count:
            assert time.monotonic() < end, f"only {self.images}"
            time.sleep(0.01)


class SlowPainter:
    """Paints by permission, one image each."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)

    def sides(self, longest: int) -> list[int]:
        return [10, 20, longest]

    def paint(self, eye: Eye, longest: int, shown: str, unwanted: Any) -> np.ndarray:
        assert self.allowed.acquire(timeout=20)
        return np.zeros((longest, longest, 3), np.uint8)


def test_images_get_sharper_until_the_visitor_moves():
    client, painter = Client(), SlowPainter()
    visitor = Visitor(client, painter, Wishes(longest=40))  # pyright: ignore[reportArgumentType]
    painter.allowed.release(3)
    client.wait_for(3)
    assert client.images == [(10, 10), (20, 20), (40, 40)]
    visitor.look()
    painter.allowed.release()
    client.wait_for(4)
    client.moves[0](None)  # a move while the second is painted
    painter.allowed.release(5)
    client.wait_for(8)
    visitor.leave()
    assert client.images[3:5] == [(10, 10), (20, 20)]
    assert client.images[5:8] == [(10, 10), (20, 20), (40, 40)]


def test_a_failure_to_paint_is_logged_and_the_next_move_is_answered(
    caplog: pytest.LogCaptureFixture,
):
    client, painter = Client(), SlowPainter()
    paint, failures = painter.paint, [RuntimeError("no memory")]
    painter.paint = lambda *what: (
        (_ for _ in ()).throw(failures.pop()) if failures else paint(*what)
    )
    visitor = Visitor(client, painter, Wishes(longest=40))  # pyright: ignore[reportArgumentType]
    while failures:
        time.sleep(0.01)
    painter.allowed.release(3)
    visitor.look()
    client.wait_for(3)
    visitor.leave()
    assert "no memory" in caplog.text


def test_time_runs_while_it_is_played(monkeypatch: pytest.MonkeyPatch):
    wishes = Wishes(time=0.25)
    assert wishes.moment() == 0.25
    wishes.playing = True
    monkeypatch.setattr(viewer.time, "monotonic", lambda: 2.5 * viewer.LOOP_SECONDS)
    assert wishes.moment() == pytest.approx(0.5)
    assert Wishes(playing=True).moment() is None


def test_a_newer_checkpoint_is_taken_and_a_damaged_one_is_not(
    run: Run, caplog: pytest.LogCaptureFixture
):
    painter = Painter(run, "last")
    shown: list[str] = []
    page: Any = SimpleNamespace(refresh=lambda: shown.append(painter.label))
    viewer.follow(painter, page)
    assert not shown
    file = run.run_dir / "checkpoints" / "last.pt"
    whole = file.read_bytes()
    os.utime(file, ns=(1, 1))
    viewer.follow(painter, page)
    assert shown == [painter.label]
    assert "step 150" in shown[0]
    try:
        file.write_bytes(whole[:1000])
        viewer.follow(painter, page)
    finally:
        file.write_bytes(whole)
    assert len(shown) == 1
    assert "cannot be shown" in caplog.text


def messages(raw: bytes) -> list[dict[str, Any]]:
    length = int.from_bytes(raw[8:16], "little")
    packed = zstandard.ZstdDecompressor().decompress(raw[16 : 16 + length])
    return msgspec.msgpack.decode(packed)["messages"]


async def visit(port: int) -> tuple[set[str], list[Image.Image]]:
    """Stand before the scene with a browser's own protocol; give what comes."""
    camera = {
        "type": "ViewerCameraMessage",
        "wxyz": [1.0, 0.0, 0.0, 0.0],
        "position": [0.0, 0.0, -4.0],
        "fov": 0.7,
        "near": 0.01,
        "far": 100.0,
        "image_height": 60,
        "image_width": 90,
        "look_at": [0.0, 0.0, 0.0],
        "up_direction": [0.0, 0.0, 1.0],
    }
    kinds, images = set(), []
    protocol: Any = f"viser-v{viser.__version__}"
    address = f"ws://127.0.0.1:{port}"
    async with connect(address, subprotocols=[protocol], max_size=None) as server:
        await server.send(msgspec.msgpack.encode(camera))
        while not images or max(images[-1].size) < 96:
            for message in messages(await server.recv()):  # pyright: ignore[reportArgumentType]
                kinds.add(message["type"])
                if message["type"] == "BackgroundImageMessage" and message["rgb_data"]:
                    images.append(Image.open(io.BytesIO(message["rgb_data"])))
    return kinds, images


async def visit_for(seconds: float, page: Page) -> tuple[set[str], list[Image.Image]]:
    return await asyncio.wait_for(visit(page.port), seconds)


def test_a_browser_gets_the_page_the_panel_the_cameras_and_images(run: Run):
    page = Page(run, Painter(run, "last"), "127.0.0.1", 18080, 96)
    try:
        kinds, images = asyncio.run(visit_for(30, page))
    finally:
        page.close()
    assert images[-1].size == (96, 64)
    assert np.asarray(images[-1]).std() > 5
    assert {"CameraFrustumMessage", "GuiDropdownMessage", "GuiMarkdownMessage"} <= kinds


def test_a_scene_that_moves_has_a_time(tmp_path: Path):
    run = assembled(train_tiny(tmp_path, moves=True))
    page = Page(run, Painter(run, "last"), "127.0.0.1", 18180, 96)
    try:
        assert page._wishes.moment() == 0.0
        _, images = asyncio.run(visit_for(30, page))
    finally:
        page.close()
    assert images[-1].size == (96, 64)


def click(page: Page, words: str, camera: Any) -> None:
    """Press a button of the panel."""
    handles = page._server.gui._gui_input_handle_from_uuid.values()
    (button,) = [handle for handle in handles if getattr(handle, "label", "") == words]
    event = SimpleNamespace(client=SimpleNamespace(camera=camera), target=button)
    for callback in button._impl.update_cb:
        callback(event)


def test_views_are_gathered_into_a_path_that_can_be_rendered(run: Run):
    page = Page(run, Painter(run, "last"), "127.0.0.1", 18380, 96)
    try:
        camera = from_in_front()
        click(page, "save", camera)
        assert "two or more" in page._path_label.content
        for x in (-1.0, 9.0, 1.0):
            camera.position = np.array([x, 0, -4.0])
            click(page, "add this view", camera)
            if x == 9.0:
                click(page, "drop the last", camera)
        click(page, "save", camera)
        assert "render it" in page._path_label.content
    finally:
        page.close()
    (file,) = (run.run_dir / "paths").iterdir()
    command = ["render", str(run.run_dir), "--path", str(file), "--frames", "3"]
    assert main(command) == 0
    frames = sorted((run.run_dir / "renders" / f"path-{file.stem}-test-last").iterdir())
    assert len(frames) == 3
    assert Image.open(frames[0]).size == (SQUARE, round(SQUARE / 1.5))


@pytest.mark.parametrize("longest", [32, 4096])
def test_any_number_of_pixels_can_be_asked_for(run: Run, longest: int):
    page = Page(run, Painter(run, "last"), "127.0.0.1", 18480, longest)
    page.close()
    assert page._wishes.longest == longest


def test_a_port_that_is_taken_is_passed_and_the_last_one_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert viewer._free_port("127.0.0.1", port) > port
    with (
        contextlib.suppress(OSError),  # whoever has it: it is taken
        socket.create_server(("127.0.0.1", 65535)),
        pytest.raises(UserError, match="--port 65535: it and those after it are taken"),
    ):
        viewer._free_port("127.0.0.1", 65535)


def test_a_window_without_height_is_waited_for(caplog: pytest.LogCaptureFixture):
    class Flat(SimpleNamespace):
        @property
        def aspect(self) -> float:
            return 90 / self.height

    client, painter = Client(), SlowPainter()
    upright = vars(client.camera)
    client.camera = Flat(**{key: upright[key] for key in upright if key != "aspect"}, height=0)
    visitor = Visitor(client, painter, Wishes(longest=40))  # pyright: ignore[reportArgumentType]
    painter.allowed.release(3)
    time.sleep(0.2)
    assert not client.images
    client.camera.height = 60
    visitor.look()
    client.wait_for(3)
    visitor.leave()
    assert not caplog.text


def test_failures_while_time_plays_do_not_spin(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(viewer, "PAUSE_SECONDS", 0.2)
    client, painter = Client(), SlowPainter()
    painter.paint = lambda *what: (_ for _ in ()).throw(RuntimeError("no memory"))
    wishes = Wishes(time=0.0, playing=True)
    visitor = Visitor(client, painter, wishes)  # pyright: ignore[reportArgumentType]
    time.sleep(1.0)
    visitor.leave()
    assert 2 <= caplog.text.count("could not be rendered") <= 8


def test_samples_in_disparity_are_seen_from_within_the_box(tmp_path: Path):
    run = assembled(train_tiny(tmp_path, False, "sampler=proposal", "sampler.spacing=disparity"))
    pose = run.scene.splits["train"].cameras.poses[0].clone()
    pose[:, 3] *= 0.35  # in the box, before what it holds
    opacity = Painter(run, "last").paint(Eye(pose, 0.7, 1.0, None), SQUARE, "opacity", never)
    assert opacity is not None
    assert opacity.mean() > 50


def test_the_command_serves_until_it_is_interrupted(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(viewer.time, "sleep", interrupt)
    assert main(["view", str(folder), "--port", "18280"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("last: step 150")
    assert "open http://localhost:182" in out
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--port", "0"], "--port 0: give 1 to 65535"),
        (["--host", "203.0.113.1"], "--host 203.0.113.1: nothing can be served there"),
        (["--checkpoint", "none"], "no checkpoint 'none'"),
        (["--pixels", "0"], "0: must be at least 1"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], options: list[str], line: str
):
    assert main(["view", str(folder), *options]) == 2
    assert line in capfd.readouterr().err


def test_a_missing_library_is_named(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    assert main(["view", str(folder)]) == 2
    assert "pip install 'nerftrain[view]'" in capfd.readouterr().err
