"""COLMAP captures that tests write, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerftrain.cameras import look_at
from nerftrain.errors import UserError
from nerftrain.scenes import Scene
from nerftrain.scenes.colmap import load_scene

pycolmap = pytest.importorskip("pycolmap", reason="COLMAP models: pip install pycolmap")

WIDTH, HEIGHT = 48, 36
PARAMETERS = {
    "SIMPLE_PINHOLE": [40.0, 23.0, 19.0],
    "PINHOLE": [40.0, 41.0, 23.0, 19.0],
    "SIMPLE_RADIAL": [40.0, 23.0, 19.0, -0.1],
    "RADIAL": [40.0, 23.0, 19.0, -0.1, 0.05],
    "OPENCV": [40.0, 41.0, 23.0, 19.0, -0.1, 0.05, 0.004, -0.003],
    "FULL_OPENCV": [40.0, 41.0, 23.0, 19.0, -0.1, 0.05, 0.004, -0.003, 0, 0, 0, 0],
    "SIMPLE_FISHEYE": [30.0, 23.0, 19.0],
    "FISHEYE": [30.0, 31.0, 23.0, 19.0],
    "SIMPLE_RADIAL_FISHEYE": [30.0, 23.0, 19.0, -0.05],
    "RADIAL_FISHEYE": [30.0, 23.0, 19.0, -0.05, 0.02],
    "OPENCV_FISHEYE": [30.0, 31.0, 23.0, 19.0, 0.1, -0.03, 0.02, -0.004],
    "THIN_PRISM_FISHEYE": [40.0, 41.0, 23.0, 19.0, 0.1, 0, 0, 0, 0, 0, 0.01, 0],
}


def capture(
    root: Path,
    model: str = "PINHOLE",
    binary: bool = True,
    num_images: int = 10,
    place: str = "sparse/0",
    portraits: int = 0,
    suffix: str = ".png",
    num_points: int = 3,
) -> pycolmap.Reconstruction:
    """Write a COLMAP folder of cameras on a ring around (1, 2, 3); the last ones are portraits."""
    reconstruction = pycolmap.Reconstruction()
    sizes = [(WIDTH, HEIGHT), (HEIGHT, WIDTH)][: 2 if portraits else 1]
    for number, (width, height) in enumerate(sizes, start=1):
        params = [width, height] if model == "EQUIRECTANGULAR" else PARAMETERS[model]
        camera = pycolmap.Camera(model=model, width=width, height=height, params=params)
        camera.camera_id = number
        reconstruction.add_camera_with_trivial_rig(camera)
    target = torch.tensor([1.0, 2, 3]).double()
    angles = torch.arange(num_images).double() * (2 * np.pi / num_images)
    ring = torch.stack([4 * angles.cos(), torch.full_like(angles, 1.5), 4 * angles.sin()], 1)
    poses = look_at(target + ring, target, torch.tensor([0.0, 1, 0]).double())
    generator = np.random.default_rng(0)
    for i, pose in enumerate(poses):
        rotation = (pose[:, :3] * torch.tensor([1.0, -1, -1])).T  # world to camera, OpenCV's axes
        world_to_camera = torch.cat([rotation, -rotation @ pose[:, 3:]], 1).numpy()
        portrait = i >= num_images - portraits
        name = f"view_{num_images - i:02d}{suffix}"  # not in the order of the ids
        image = pycolmap.Image(name=name, camera_id=2 if portrait else 1, image_id=i + 1)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([3.0, 4.0]))] * num_points)
        reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(world_to_camera))
        width, height = sizes[int(portrait)]
        small = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((width, height)).save(path)
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    (reconstruction.write_binary if binary else reconstruction.write_text)(str(folder))
    return reconstruction


def load(root: Path | None, **changes) -> Scene:
    values = {
        "name": "tiny",
        "root": None if root is None else str(root),
        "data_root": None,
        "images": "images",
        "downscale": 1.0,
        "skip_missing": False,
        "test_every": 8,
        "center": True,
        "up": True,
        "scale": True,
        "near": 0.1,
        "far": 100.0,
        "contraction": "l2",
    }
    return load_scene(**(values | changes))


def refused(root: Path | None, **changes) -> str:
    """The text of the error, which must be one line."""
    with pytest.raises(UserError) as caught:
        load(root, **changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


ROTATIONS = {1: 0, 6: 1, 3: 2, 8: 3}  # quarter turns clockwise by EXIF orientation


def turned_on_its_side(
    root: Path, model: str, turns: int, suffix: str, num_points: int = 3
) -> None:
    """Write the capture of `capture` as by a camera held so that images need turns to be upright.

    The same rays through the same pixels, told by another image plane: by hand, from the lens
    equation, not by what is tested.
    """
    capture(root, model, suffix=suffix, num_points=num_points)
    folder = root / "sparse/0"
    reconstruction = pycolmap.Reconstruction(str(folder))
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # clockwise, x right and y down
    back = np.linalg.matrix_power(quarter.T, turns)
    for camera in reconstruction.cameras.values():
        corner = np.array([camera.width, camera.height])
        fx, fy, cx, cy, *bent = camera.params
        for _ in range(turns):  # counter-clockwise: u' = v, v' = width - u
            fx, fy, cx, cy = fy, fx, cy, corner[0] - cx
            corner = corner[::-1]
            if model == "OPENCV":  # x' = y, y' = -x
                bent = [bent[0], bent[1], -bent[3], bent[2]]
        camera.width, camera.height = map(int, corner)
        camera.params = np.array([fx, fy, cx, cy, *bent])
    for image in reconstruction.images.values():
        pose = image.cam_from_world().matrix()
        image.frame.set_cam_from_world(image.camera_id, pycolmap.Rigid3d(back @ pose))
    reconstruction.write_binary(str(folder))
