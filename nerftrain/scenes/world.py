"""Where a capture's own coordinates, free in place, tilt and size, come to lie in the scene.

A world is a similarity [4, 4], float64, from the dataset's coordinates to the scene's; it acts on
columns, so that x' = world[:3, :3] @ x + world[:3, 3]. Poses are camera to world, OpenGL axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from nerftrain.cameras import focus_point, up_vector
from nerftrain.errors import UserError

T = TypeVar("T")

# A camera this many times farther from the centre than the median one was registered wrongly, or is
# a lone view from afar: the others must not shrink to a point because of it.
OUTLIER = 5.0
# The share of the cameras' extent below which an optical axis counts as meeting the focus exactly.
MEETS = 1e-3
ROUNDS = 20  # of reweighting; 15 settle the third digit on real captures


def normalization(poses: Tensor, center: bool, up: bool, scale: bool) -> Tensor:
    """Find the similarity [4, 4] that brings cameras into the box +-1, float64.

    Args:
        poses: [C, 3, 4] of all cameras of the dataset.
        center: move the point that the cameras look at to the origin.
        up: turn the cameras' up to +z.
        scale: bring the farthest camera to distance 1 from the origin; those more than OUTLIER
            times farther from it than the median camera are left out of account.

    Raises:
        UserError: all cameras are in one point, so that no depth can be seen.
    """
    poses = poses.double().cpu()
    check_apart(poses)
    world = torch.eye(4, dtype=torch.float64)
    if up:
        world[:3, :3] = _to_z(up_vector(poses))
    if center:
        world[:3, 3] = -world[:3, :3] @ robust_focus(poses)
    if scale:
        distances = move(poses, world)[:, :, 3].norm(dim=1)
        # More than half of the cameras may sit at the origin: then the median tells nothing.
        trusted = distances[distances <= OUTLIER * distances.median()]
        extent = trusted.max() if trusted.max() > 0 else distances.max()
        world[:3] /= extent
    return world


def check_apart(poses: Tensor) -> None:
    """Check that the cameras [C, 3, 4] are not all in one point.

    Raises:
        UserError: they are, within rounding.
    """
    positions = poses[:, :, 3].double()
    middle = positions.mean(0)
    if (positions - middle).norm(dim=1).max() <= 1e-9 * (1 + middle.norm()):
        raise UserError(
            f"all {len(poses)} cameras are in one point: depth shows only in views from several "
            "places, so use a capture whose camera moves"
        )


def robust_focus(poses: Tensor) -> Tensor:
    """Find the point [3] that most optical axes pass close to; a few that do not hardly count.

    It minimises the sum of the distances to the axes by reweighted least squares; along directions
    that the axes leave open (parallel cameras) it lies amid the cameras.
    """
    middle = poses[:, :, 3].mean(0)
    poses = torch.cat([poses[:, :, :3], (poses[:, :, 3] - middle)[:, :, None]], dim=2)
    axes, positions = poses[:, :, 2], poses[:, :, 3]
    least = MEETS * positions.norm(dim=1).max()
    weights = torch.ones(len(poses), dtype=poses.dtype)
    focus = focus_point(poses, weights)
    for _ in range(ROUNDS):
        distances = torch.linalg.cross(focus - positions, axes).norm(dim=1)
        weights = least / torch.maximum(distances, least)
        focus = focus_point(poses, weights)
    return middle + focus


def move(poses: Tensor, world: Tensor) -> Tensor:
    """Apply a world [4, 4] to poses [C, 3, 4]; their rotations stay rotations."""
    world = world.to(poses)
    turned = world[:3, :3] @ poses[:, :, :3] / scale_of(world)
    positions = poses[:, :, 3] @ world[:3, :3].T + world[:3, 3]
    return torch.cat([turned, positions[:, :, None]], dim=2)


def scale_of(world: Tensor) -> float:
    """Return how much a world [4, 4] enlarges lengths."""
    return float(torch.linalg.det(world[:3, :3])) ** (1 / 3)


def holdout(names: Sequence[str], every: int) -> tuple[list[int], list[int]]:
    """Split images, sorted by name, into train and test; the first is test, and every n-th after.

    Returns:
        The indices into names of the train and of the test images, each in the names' order.

    Raises:
        UserError: every is below 2, or there are fewer than 2 images.
    """
    if every < 2:
        raise UserError(f"scene.test_every={every}: give 2 or more; each so many is a test view")
    if len(names) < 2:
        raise UserError(
            f"a scene of {len(names)} images: at least 2 are needed, one to train on and one to "
            "judge by"
        )
    order = sorted(range(len(names)), key=lambda index: names[index])
    train = [image for place, image in enumerate(order) if place % every]
    return train, order[::every]


def thinned(train: Sequence[T], views: int | None) -> list[T]:
    """Take so many of the training views, evenly spaced; None: all.

    Raises:
        UserError: views is below 1.
    """
    if views is not None and views < 1:
        raise UserError(f"scene.train_views={views}: give 1 or more, or null for all")
    count = len(train) if views is None else min(views, len(train))
    return [train[i * len(train) // count] for i in range(count)]


def _to_z(up: Tensor) -> Tensor:
    """Make the shortest rotation [3, 3] that turns the unit vector up [3] to +z."""
    x, y, z = up.tolist()
    if z < -1 + 1e-12:  # half a turn, about any level axis
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=up.dtype))
    # Rodrigues' formula for the axis up x z.
    cross = torch.tensor([[0.0, 0.0, -x], [0.0, 0.0, -y], [x, y, 0.0]], dtype=up.dtype)
    return torch.eye(3, dtype=up.dtype) + cross + cross @ cross / (1 + z)
