"""A run in the browser: what its field looks like from wherever a visitor goes.

viser serves the page and tells where each visitor stands. While one moves, drafts are rendered as
large as time allows; where one stays they are followed by sharper images. A checkpoint that
training writes meanwhile is taken as soon as it is there.

viser's cameras look along +z with y down, as OpenCV's; ours along -z with y up, as OpenGL's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from nerftrain import cameras as camera_paths
from nerftrain import checkpoint, report, video
from nerftrain.errors import UserError
from nerftrain.evaluation import Run, as_found, background_color, depth_image, load_into, spaced
from nerftrain.eyes import Eye, vertical_fov, write_path
from nerftrain.lens import as_pinholes
from nerftrain.rendering import see_surface
from nerftrain.scenes import Scene, Split, composite_over
from nerftrain.types import Cameras

_log = logging.getLogger(__name__)

Shown = Literal["colour", "depth", "opacity"]

DRAFT_SECONDS = 0.08  # that a draft may take: 12 of them a second follow the hand
BAND_SECONDS = 0.2  # of rendering, after which an image that nobody wants any more is given up
LEAST_SIDE = 48  # pixels, of a draft
LOOP_SECONDS = 4.0  # in which a scene that moves goes through its time once
PAUSE_SECONDS = 1.0  # after a failure, which while time plays would be followed by the same at once
POLL_SECONDS = 1.0  # between two looks for a newer checkpoint
AXES = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)  # of viser's camera in ours
PORTS = 100  # that are tried
FRUSTA, THUMBNAIL = 150, 64  # training cameras that are drawn, and the pixels of their images


def eye_of(camera: Any, moment: float | None) -> Eye:
    """Read a camera of viser's."""
    turn = camera_paths.to_rotations(torch.from_numpy(np.array([camera.wxyz], np.float64)))[0]
    position = torch.from_numpy(np.array(camera.position, np.float64))
    pose = torch.cat([turn * AXES, position[:, None]], 1)
    return Eye(pose.float(), float(camera.fov), float(camera.aspect), moment)


def quaternion(pose: Tensor) -> np.ndarray:
    """Turn our pose [3, 4] into the unit quaternion w x y z of viser's."""
    return camera_paths.to_quaternions((pose[:, :3].double().cpu() * AXES)[None])[0].numpy()


class Painter:
    """Renders what eyes see, one after the other, from a checkpoint that may be replaced."""

    def __init__(self, run: Run, checkpoint_name: str) -> None:
        """Load a checkpoint of a run.

        Raises:
            UserError: it does not exist or does not fit.
        """
        self._run, self._name = run, checkpoint_name
        self._path = checkpoint.find(run.run_dir, checkpoint_name)
        self._background = background_color(run.background.evaluation)
        self._alone = threading.Lock()  # visitors take turns with the model
        self._pixels_per_second = 1e4  # a slow field's: with a fast one it grows at once
        self.label = ""
        self.reload()

    def reload(self) -> None:
        """Read the checkpoint anew.

        Raises:
            UserError: it is gone or damaged.
        """
        try:
            self._changed = self._path.stat().st_mtime_ns
        except OSError as error:
            raise UserError(f"{self._path} is gone ({error.strerror})") from error
        with self._alone:
            state, name = load_into(self._run, self._name)
        seconds = state.get("seconds")
        after = "" if seconds is None else f", {seconds:.0f} s of training"
        self.label = f"{name}: step {state['step']:,}{after}"

    def outdated(self) -> bool:
        """Tell whether training has written another checkpoint."""
        try:
            return self._path.stat().st_mtime_ns != self._changed
        except OSError:  # in the moment in which it is replaced, or for good
            return False

    def sides(self, longest: int) -> list[int]:
        """List the longer sides of a draft and of the images that follow it, each twice as long."""
        affordable = int(math.sqrt(self._pixels_per_second * DRAFT_SECONDS))
        sides = [min(max(affordable, LEAST_SIDE), longest)]
        while sides[-1] < longest:
            sides.append(min(2 * sides[-1], longest))
        return sides

    def paint(
        self, eye: Eye, longest: int, shown: Shown, unwanted: Callable[[], bool]
    ) -> np.ndarray | None:
        """Render what an eye sees, [H, W, 3] uint8; None where it is unwanted before it is done."""
        camera = eye.camera(longest)
        width, height = int(camera.widths[0]), int(camera.heights[0])
        rows = max(1, int(self._pixels_per_second * BAND_SECONDS / width))
        bands = []
        for top in range(0, height, rows):
            with self._alone:
                if unwanted():
                    return None
                bands.append(self._timed(_band(camera, top, min(rows, height - top)), shown))
        image = np.concatenate(bands)
        return image if shown == "colour" else _painted(image, shown)

    def _timed(self, camera: Cameras, shown: Shown) -> np.ndarray:
        start = time.perf_counter()
        image = self._rendered(camera, shown)
        rate = image.shape[0] * image.shape[1] / max(time.perf_counter() - start, 1e-6)
        # Small images cost more for each pixel, so it grows step by step; never too much is asked.
        self._pixels_per_second = min(rate, math.sqrt(rate * self._pixels_per_second))
        return image

    def _rendered(self, camera: Cameras, shown: Shown) -> np.ndarray:
        """Render colours [H, W, 3] uint8, or distances or opacities [H, W]."""
        run, scene = self._run, self._run.scene
        if scene.contraction == "none":  # the box ends rays: go as near, and as far, as you like
            scene = _unbounded(scene, camera.poses[0, :, 3])
        shape = int(camera.heights[0]), int(camera.widths[0])
        if shown == "depth":
            device = video.device_of(run.model)
            what = (run.model, run.sampler, self._background.to(device))
            with video.evaluation_mode(run.model, run.sampler):
                return see_surface(scene, camera.to(device), 0, *what)[1].view(shape).cpu().numpy()
        view = video.render_view(scene, camera, 0, run.model, run.sampler, self._background)
        if shown == "opacity":
            return view.opacity.view(shape).float().cpu().numpy()
        return video.to_uint8(view.rgb.view(*shape, 3))


def _unbounded(scene: Scene, eye: Tensor) -> Scene:
    """Let rays of a scene in a box begin right before an eye [3], and end behind the box."""
    low, high = scene.aabb.to(eye).view(2, 3)
    diagonal = float((high - low).norm())
    # Not at 0, whose inverse spaces samples in disparity: most would be right before the eye.
    near = min(scene.near, 1e-2 * diagonal)
    return replace(scene, near=near, far=float((eye - low).norm()) + diagonal)


def _band(camera: Cameras, top: int, rows: int) -> Cameras:
    """Cut rows out of a camera's image."""
    down = torch.tensor([0.0, 0.0, 0.0, top])
    heights = torch.tensor([rows])
    return replace(camera, intrinsics=camera.intrinsics - down, heights=heights)


def _painted(values: np.ndarray, shown: Shown) -> np.ndarray:
    """Turn distances or opacities [H, W] into an image [H, W, 3] uint8."""
    if shown == "depth":
        seen = np.isfinite(values)
        return depth_image(np.where(seen, values, 0), seen.astype(np.float32))
    return (values.clip(0, 1) * 255).round().astype(np.uint8)[..., None].repeat(3, -1)


@dataclass
class Wishes:
    """What the panel says, for all visitors."""

    shown: Shown = "colour"
    longest: int = 800  # pixels of the longer side of an image that is not a draft
    time: float | None = None  # None: nothing moves
    playing: bool = False

    def moment(self) -> float | None:
        """Tell the time 0..1 that is shown now."""
        if self.time is None or not self.playing:
            return self.time
        return time.monotonic() / LOOP_SECONDS % 1.0


class Visitor:
    """Somebody's browser, to which images go as fast as they can be rendered."""

    def __init__(self, client: Any, painter: Painter, wishes: Wishes) -> None:
        """Begin to send images to a client of viser's."""
        self._client, self._painter, self._wishes = client, painter, wishes
        self._call = threading.Event()
        self._gone = False
        client.camera.on_update(lambda _: self.look())
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self.look()

    def look(self) -> None:
        """Send new images: the visitor has moved, or what is shown has changed."""
        self._call.set()

    def leave(self) -> None:
        """Send no more; returns when nothing is rendered any more."""
        self._gone = True
        self._call.set()
        # A thread that is in the midst of an op when the program ends takes it down.
        self._thread.join()

    def _work(self) -> None:
        while not self._gone:
            if not self._wishes.playing:
                self._call.wait()
            self._call.clear()
            if self._gone:
                return
            try:
                self._send()
            except Exception:  # another visitor must not be left alone, nor this one for good
                _log.exception("a view could not be rendered")
                self._call.wait(PAUSE_SECONDS)

    def _send(self) -> None:
        wishes = self._wishes
        try:
            eye = eye_of(self._client.camera, wishes.moment())
        except ZeroDivisionError:  # a window without height has no aspect
            return
        for number, longest in enumerate(self._painter.sides(wishes.longest)):
            # A draft is finished even if its eye has moved on: or one that moves would see nothing.
            unwanted = self._call.is_set if number else lambda: self._gone
            image = self._painter.paint(eye, longest, wishes.shown, unwanted)
            if image is None or self._gone:
                return
            self._client.scene.set_background_image(image, format="jpeg", jpeg_quality=90)
            if self._call.is_set() or wishes.playing:
                return


class Page:
    """The page that viser serves: the panel, the training cameras, and who is there."""

    def __init__(self, run: Run, painter: Painter, host: str, port: int, longest: int) -> None:
        """Serve at a port, or the next that is free.

        Raises:
            UserError: viser is missing, or nothing can be served there.
        """
        viser = _library()
        self._painter, self._visitors = painter, {}
        moves = run.scene.is_dynamic
        self._wishes = Wishes(longest=longest, time=0.0 if moves else None)
        self._keyframes: list[Eye] = []
        self._folder = run.run_dir / "paths"
        port = _free_port(host, port)
        with contextlib.redirect_stdout(io.StringIO()):  # viser would say where, in a box
            self._server = viser.ViserServer(host, port, label="nerftrain", verbose=False)
        self._show_cameras(run)
        self._make_panel(moves)
        self._make_path_panel()
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(self._farewell)

    @property
    def port(self) -> int:
        """Where it is served."""
        return self._server.get_port()

    def refresh(self) -> None:
        """Show everybody what the painter sees now."""
        self._label.content = self._painter.label
        for visitor in list(self._visitors.values()):
            visitor.look()

    def close(self) -> None:
        """Send everybody away."""
        for visitor in list(self._visitors.values()):
            visitor.leave()
        with contextlib.redirect_stdout(io.StringIO()):  # and that it stops
            self._server.stop()

    def _welcome(self, client: Any) -> None:
        self._visitors[client.client_id] = Visitor(client, self._painter, self._wishes)

    def _farewell(self, client: Any) -> None:
        visitor = self._visitors.pop(client.client_id, None)
        if visitor is not None:
            visitor.leave()

    def _make_panel(self, moves: bool) -> None:
        gui, longest = self._server.gui, self._wishes.longest
        gui.configure_theme(show_logo=False, show_share_button=False)
        self._label = gui.add_markdown(self._painter.label)
        shown = gui.add_dropdown("shows", get_args(Shown), initial_value=self._wishes.shown)
        pixels = gui.add_slider(
            "pixels", min(64, longest), max(2048, longest), 1, initial_value=longest
        )
        cameras = gui.add_checkbox("training cameras", False)
        controls = {"shown": shown, "longest": pixels}
        if moves:
            controls["time"] = gui.add_slider("time", 0.0, 1.0, 0.01, 0.0)
            controls["playing"] = gui.add_checkbox("play", False)
        for name, control in controls.items():
            control.on_update(self._setter(name))

        @cameras.on_update
        def _(event: Any) -> None:
            for frustum in self._frusta:
                frustum.visible = event.target.value

    def _make_path_panel(self) -> None:
        gui = self._server.gui
        with gui.add_folder("camera path"):
            buttons = {"add this view": self._add, "drop the last": self._drop, "save": self._save}
            for words, do in buttons.items():
                gui.add_button(words).on_click(do)
            self._path_label = gui.add_markdown("no views yet")

    def _add(self, event: Any) -> None:
        self._keyframes.append(eye_of(event.client.camera, self._wishes.moment()))
        self._path_label.content = f"{len(self._keyframes)} views"

    def _drop(self, _: Any) -> None:
        self._keyframes = self._keyframes[:-1]
        self._path_label.content = f"{len(self._keyframes)} views"

    def _save(self, _: Any) -> None:
        if len(self._keyframes) < 2:
            self._path_label.content = "a path needs two or more views: add some"
            return
        file = self._folder / time.strftime("%Y-%m-%d_%H-%M-%S.json")
        try:
            write_path(file, self._keyframes)
        except UserError as error:
            self._path_label.content = str(error)
            return
        command = [report.program("nerftrain"), "render", str(self._folder.parent)]
        command += ["--path", str(file)]
        self._path_label.content = f"saved; render it:\n\n`{shlex.join(command)}`"

    def _setter(self, name: str) -> Callable[[Any], None]:
        def take(event: Any) -> None:
            setattr(self._wishes, name, event.target.value)
            self.refresh()

        return take

    def _show_cameras(self, run: Run) -> None:
        split = as_found(run).splits["train"]
        cameras = as_pinholes(split.cameras.to("cpu"))
        start = camera_paths.orbit(cameras, 1).poses[0]
        first = self._server.initial_camera
        first.position = start[:, 3].numpy()
        first.look_at = camera_paths.focus_point(cameras.poses.double()).numpy()
        up = camera_paths.up_vector(cameras.poses.double())
        first.up, first.fov = up.numpy(), vertical_fov(cameras, 0)
        self._server.scene.set_up_direction(tuple(up.tolist()))
        self._frusta = [self._add_frustum(split, cameras, i) for i in spaced(len(cameras), FRUSTA)]

    def _add_frustum(self, split: Split, cameras: Cameras, index: int) -> Any:
        width, height = int(cameras.widths[index]), int(cameras.heights[index])
        step = max(1, max(width, height) // THUMBNAIL)
        image = split.image(index)[::step, ::step].cpu()
        fov = vertical_fov(cameras, index)
        reach = float(cameras.poses[:, :, 3].norm(dim=1).median())
        frustum = self._server.scene.add_camera_frustum(
            f"/cameras/{index}",
            fov=fov,
            aspect=width / height,
            scale=0.03 * reach,
            thickness=0.001 * reach,
            wxyz=quaternion(cameras.poses[index]),
            position=cameras.poses[index, :, 3].numpy(),
            image=video.to_uint8(composite_over(image, torch.ones(3))),
            format="jpeg",
            visible=False,
        )

        @frustum.on_click
        def _(event: Any) -> None:
            with event.client.atomic():
                event.client.camera.wxyz = frustum.wxyz
                event.client.camera.position = frustum.position
                event.client.camera.fov = fov

        return frustum


def _library() -> Any:
    try:
        import viser
    except ImportError as error:
        raise UserError(f"viewing needs viser ({error}): pip install 'nerftrain[view]'") from error
    return viser


def _free_port(host: str, port: int) -> int:
    """Find the first port from this one on that is free: viser would try some for ever.

    Raises:
        UserError: there is none, or nothing can be served at the host.
    """
    import socket

    if not 0 < port < 65536:
        raise UserError(f"--port {port}: give 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError as error:
        raise UserError(
            f"--host {host}: nothing can be served there ({error.strerror or error}); leave it out "
            "for this machine alone, or give 0.0.0.0 for the whole network"
        ) from error
    for candidate in range(port, min(port + PORTS, 65536)):
        with contextlib.suppress(OSError):
            socket.create_server((host, candidate), family=family).close()
            return candidate
    raise UserError(f"--port {port}: it and those after it are taken, or not yours: give another")


def view_run(run: Run, checkpoint_name: str, host: str, port: int, longest: int) -> None:
    """Serve a run until the user interrupts, following what training writes.

    Raises:
        UserError: there is no such checkpoint, viser is missing, or the address cannot be used.
    """
    with _served(run, checkpoint_name, host, port, longest) as (painter, page):
        here = host in ("127.0.0.1", "0.0.0.0", "::1", "::")
        place = "localhost" if here else f"[{host}]" if ":" in host else host
        report.say(f"{painter.label}; open http://{place}:{page.port} (Ctrl-C ends)")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(POLL_SECONDS)
                follow(painter, page)


@contextlib.contextmanager
def _served(
    run: Run, checkpoint_name: str, host: str, port: int, longest: int
) -> Iterator[tuple[Painter, Page]]:
    painter = Painter(run, checkpoint_name)
    page = Page(run, painter, host, port, longest)
    try:
        yield painter, page
    finally:
        page.close()


def follow(painter: Painter, page: Page) -> None:
    """Take a newer checkpoint, where training has written one."""
    if not painter.outdated():
        return
    try:
        painter.reload()
    except UserError as error:
        _log.warning("the newer checkpoint cannot be shown: %s", error)
        return
    page.refresh()
