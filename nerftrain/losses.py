"""What training minimises, term by term."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from nerftrain.ops.distortion import distortion
from nerftrain.spacing import Kind as Spacing
from nerftrain.spacing import to_share
from nerftrain.types import Rays, Rendering, Samples

Kind = Literal["huber", "l2"]


def color_loss(kind: Kind, prediction: Tensor, target: Tensor) -> Tensor:
    """Average the error of colours [R, 3].

    It is smooth L1 (Huber with delta 1) or half the squared error. The two differ beyond an error
    of one only, so one learning rate serves both.
    """
    if kind == "huber":
        return functional.smooth_l1_loss(prediction, target)
    return 0.5 * functional.mse_loss(prediction, target)


def distortion_loss(rendering: Rendering, samples: Samples, rays: Rays, kind: Spacing) -> Tensor:
    """Average how spread out the weights along rays are (mip-NeRF 360, eq. 15).

    Distances are shares of the way from near to far, spread as `kind` says: in a scene without
    bounds a spread far away must not count for more than all that is near.
    """
    near, far = (bound.index_select(0, samples.ray_indices) for bound in (rays.near, rays.far))
    starts, ends = (to_share(kind, t, near, far) for t in (samples.t_starts, samples.t_ends))
    return distortion(rendering.weights, starts, ends, samples.offsets).mean()
