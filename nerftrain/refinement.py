"""What photographs need besides a field: where each was really taken from, and how it was exposed.

Structure from motion leaves errors of a pixel or so; telephones choose exposure and white balance
anew for each picture. Both are learnt with the field from the same error of colours, as Instant-NGP
and nerfstudio do: of a camera a small turn and shift (BARF, arXiv:2104.06405, from farther away),
of an image a gain of each channel. Where values are a power of the light, a gain of the light is a
gain of the values.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nerftrain.bounds import check_at_most
from nerftrain.errors import UserError
from nerftrain.types import Batch, Cameras, Rays

MOST_RATE = 0.5  # half a radian or half a scene in a step, or a gain of 1.6: nothing would be found


class Refinement(nn.Module):
    """Corrections of the C training cameras and images, which start at none."""

    def __init__(
        self,
        poses: bool,
        exposure: bool,
        pose_lr: float,
        exposure_lr: float,
        *,
        cameras: Cameras,
        aabb: Tensor,
        has_alpha: bool = False,
    ) -> None:
        """Choose what is learnt.

        Args:
            poses: whether where cameras stand and look is learnt.
            exposure: whether a gain of each channel of each image is.
            pose_lr: learning rate, in radians and in halves of the scene's size.
            exposure_lr: learning rate of the logarithms of gains.
            cameras: C of them, the training images'.
            aabb: [6], the scene's box.
            has_alpha: whether images are cut out, so that no camera has exposed what is put behind.

        Raises:
            UserError: for a rate that makes no sense, and the exposure of images that are cut out.
        """
        super().__init__()
        if pose_lr <= 0 or exposure_lr <= 0:
            raise UserError(f"pose_lr={pose_lr}, exposure_lr={exposure_lr}: must be more than 0")
        check_at_most(MOST_RATE, pose_lr=pose_lr, exposure_lr=exposure_lr)
        if exposure and has_alpha:
            raise UserError(
                "exposure=true needs photographs without alpha: no camera has exposed what is put "
                "behind these images; leave it out (refine=none, or refine=poses)"
            )
        self.pose_lr, self.exposure_lr = pose_lr, exposure_lr
        self.unit = float((aabb[3:] - aabb[:3]).max()) / 2 if poses else 1.0
        self.moves = nn.Parameter(torch.zeros(len(cameras), 6)) if poses else None
        self.gains = nn.Parameter(torch.zeros(len(cameras), 3)) if exposure else None
        common = _common_moves(cameras.poses[:, :, 3] / self.unit) if poses else None
        self.register_buffer("common", common, persistent=False)
        self.common: Tensor

    @property
    def poses_are_true(self) -> bool:
        """Tell whether cameras stand where they are given."""
        return self.moves is None

    def groups(self) -> list[dict[str, Any]]:
        """Name what is learnt to an optimizer: groups of parameters with their rates, or none."""
        learnt = ((self.moves, self.pose_lr), (self.gains, self.exposure_lr))
        return [{"params": [what], "lr": lr} for what, lr in learnt if what is not None]

    def corrected(self, batch: Batch) -> Batch:
        """Move the rays of a batch with their cameras; gradients lead to where these are."""
        moves = self._own_moves()
        if moves is None or batch.rays.cameras is None:
            return batch
        turns, shifts = moves.index_select(0, batch.rays.cameras).split(3, 1)
        rays = replace(
            batch.rays,
            origins=batch.rays.origins + self.unit * shifts,
            directions=rotated(batch.rays.directions, turns),
        )
        return replace(batch, rays=rays)

    def exposure(self, rays: Rays) -> Tensor | None:
        """Find the gains [R, 3] of the images that rays belong to; None: all are one.

        They are so on average, or the field would be free to be darker. Views that are not of a
        training image have a gain of one.
        """
        gains = self.image_gains()
        if gains is None or rays.cameras is None:
            return None
        return gains.index_select(0, rays.cameras)

    @torch.no_grad()
    def exposed(self, rgb: Tensor, rays: Rays) -> Tensor:
        """Expose colours [R, 3] as the images that rays belong to have."""
        gains = self.exposure(rays)
        return rgb if gains is None else rgb * gains

    def image_gains(self) -> Tensor | None:
        """Find the gains [C, 3] of all training images, of which the product is one."""
        return None if self.gains is None else (self.gains - self.gains.mean(0)).exp()

    @torch.no_grad()
    def cameras(self, cameras: Cameras) -> Cameras:
        """Return the C training cameras where they have been found to be."""
        moves = self._own_moves()
        if moves is None:
            return cameras
        turns, shifts = moves.to(cameras.poses).split(3, 1)
        axes, positions = cameras.poses.split([3, 1], 2)
        turned = rotated(axes.transpose(1, 2).reshape(-1, 3), turns.repeat_interleave(3, 0))
        shifted = positions + self.unit * shifts[:, :, None]
        return replace(
            cameras, poses=torch.cat([turned.view(-1, 3, 3).transpose(1, 2), shifted], 2)
        )

    @torch.no_grad()
    def describe(self) -> dict[str, float]:
        """Sum up what has been found: root mean squares, in degrees, world units and powers of 2.

        A power of two of the values of an image is more of the light, whose power they are.
        """
        figures = {}
        moves = self._own_moves()
        if moves is not None:
            turns, shifts = moves.split(3, 1)
            figures["turn_degrees"] = math.degrees(float(turns.square().sum(1).mean().sqrt()))
            figures["shift"] = self.unit * float(shifts.square().sum(1).mean().sqrt())
        gains = self.image_gains()
        if gains is not None:
            figures["gain"] = float(gains.log2().square().mean().sqrt())
        return figures

    def _own_moves(self) -> Tensor | None:
        """Find each camera's turn and shift [C, 6] without what all of them have in common.

        The field would turn, shift and grow with them, away from the cameras of other splits.
        """
        if self.moves is None:
            return None
        flat = self.moves.flatten()
        return (flat - self.common @ (flat @ self.common)).view_as(self.moves)


def _common_moves(positions: Tensor) -> Tensor:
    """Span the small moves of cameras at positions [C, 3] that a scene can make with all of them.

    They are its three turns, three shifts and growth: orthonormal columns [6 C, 7], fewer where
    cameras stand in one line or place.
    """
    num = len(positions)
    centred = (positions - positions.mean(0)).double().cpu()
    axes = torch.eye(3, dtype=torch.float64)
    moves = centred.new_zeros(7, num, 6)
    for axis in range(3):
        moves[axis, :, :3] = axes[axis]
        moves[axis, :, 3:] = torch.linalg.cross(axes[axis].expand(num, 3), centred)
        moves[3 + axis, :, 3 + axis] = 1
    moves[6, :, 3:] = centred
    basis, sizes, _ = torch.linalg.svd(moves.flatten(1).T, full_matrices=False)
    return basis[:, sizes > 1e-6 * sizes[0]].float()


def rotated(vectors: Tensor, turns: Tensor) -> Tensor:
    """Turn vectors [N, 3] around axes that are as long as their angles, [N, 3], radians.

    Rodrigues' formula; differentiable, where nothing turns too.
    """
    angles = (turns.square().sum(1, keepdim=True) + 1e-12).sqrt()
    across = torch.linalg.cross(turns, vectors)
    # (1 - cos a) / a^2 of a small angle would be 0 / 0 in single precision.
    half = (angles / 2).sin() / (angles / 2)
    twice = torch.linalg.cross(turns, across)
    return vectors + angles.sin() / angles * across + 0.5 * half.square() * twice
