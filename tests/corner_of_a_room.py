"""Photographs of a scene whose cameras are known: three painted walls that meet in a corner."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nerftrain.cameras import look_at

WIDTH, HEIGHT, FOCAL_LENGTH = 400, 300, 420.0
FISHEYE = (150.0, 0.03, -0.01)  # pixels per radian, k1, k2: 91 degrees off the axis in the corners
_SIDE = 3.0  # of the walls, which lie in the planes x = 0, y = 0 and z = 0
_CELLS = 256  # of the paint, along a side


def true_poses(count: int) -> np.ndarray:
    """Give poses [C, 3, 4], camera to world with OpenGL's axes, on a bow before the corner."""
    angles = np.linspace(0.2, 1.3, count)
    height = 1.6 + 0.4 * np.sin(5 * angles)
    eyes = np.stack([2.6 * np.cos(angles), 2.6 * np.sin(angles), height], 1)
    target, up = torch.tensor([0.5, 0.5, 0.6]), torch.tensor([0.0, 0.0, 1.0])
    return look_at(torch.tensor(eyes).float(), target, up).double().numpy()


def photographs(count: int, lens: str = "pinhole") -> list[np.ndarray]:
    """Take a picture [H, W, 3] uint8 by each camera."""
    chance = np.random.default_rng(0)
    paints = [_paint(chance) for _ in range(3)]
    rays = {"pinhole": _pinhole_rays, "fisheye": _fisheye_rays, "panorama": _panorama_rays}[lens]()
    return [_picture(pose, rays, paints) for pose in true_poses(count)]


def write_photographs(
    folder: Path, count: int, suffix: str = ".png", lens: str = "pinhole"
) -> Path:
    """Write the pictures as view_00 and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(photographs(count, lens)):
        Image.fromarray(picture).save(folder / f"view_{index:02d}{suffix}")
    return folder


def _paint(chance: np.random.Generator) -> np.ndarray:
    """Paint blots of all sizes [N, N, 3]: details at every distance."""
    layers = []
    for cells in (16, 64, _CELLS):
        blots = Image.fromarray(chance.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers.append(np.asarray(blots.resize((_CELLS, _CELLS), Image.Resampling.BICUBIC), float))
    return np.mean(layers, 0)


def _pinhole_rays() -> np.ndarray:
    """Give where pixels look, [H, W, 3], OpenGL's axes."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    return np.stack([x - WIDTH / 2, HEIGHT / 2 - y, np.full_like(x, -FOCAL_LENGTH)], -1)


def _fisheye_rays() -> np.ndarray:
    """Give the same of a fisheye, by a table of its angles."""
    focal, k1, k2 = FISHEYE
    angles = np.linspace(0, 2, 20000)
    rays = _pinhole_rays()
    x, y = rays[..., 0] / focal, rays[..., 1] / focal
    r = np.hypot(x, y)
    angle = np.interp(r, angles * (1 + k1 * angles**2 + k2 * angles**4), angles)
    return np.stack([np.sin(angle) * x / r, np.sin(angle) * y / r, -np.cos(angle)], -1)


def _panorama_rays() -> np.ndarray:
    around = ((np.arange(WIDTH) + 0.5) / WIDTH - 0.5) * 2 * np.pi
    up = (0.5 - (np.arange(HEIGHT) + 0.5) / HEIGHT) * np.pi
    around, up = np.meshgrid(around, up)
    return np.stack([np.cos(up) * np.sin(around), np.sin(up), -np.cos(up) * np.cos(around)], -1)


def _picture(pose: np.ndarray, in_camera: np.ndarray, paints: list[np.ndarray]) -> np.ndarray:
    rays = in_camera @ pose[:, :3].T  # [H, W, 3]
    distances = -pose[:, 3] / rays  # to each of the three planes
    distances[distances <= 0] = np.inf
    nearest, distance = distances.argmin(-1), distances.min(-1)
    met = np.isfinite(distance)
    hits = pose[:, 3] + rays * np.where(met, distance, 0.0)[..., None]
    picture = np.full((HEIGHT, WIDTH, 3), 128.0)
    for axis, paint in enumerate(paints):
        place = np.delete(hits, axis, -1) / _SIDE * (_CELLS - 1)
        inside = met & (nearest == axis) & (place >= 0).all(-1) & (place < _CELLS - 1).all(-1)
        picture[inside] = _between(paint, place[inside])
    return picture.round().clip(0, 255).astype(np.uint8)


def _between(paint: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Interpolate the paint linearly at places [P, 2]."""
    low = np.floor(place).astype(int)
    share = (place - low)[:, :, None]
    i, j = low.T
    upper = paint[i, j] * (1 - share[:, 0]) + paint[i + 1, j] * share[:, 0]
    lower = paint[i, j + 1] * (1 - share[:, 0]) + paint[i + 1, j + 1] * share[:, 0]
    return upper * (1 - share[:, 1]) + lower * share[:, 1]
