"""What training minimises, term by term."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from nerftrain.types import Batch, Rendering

Kind = Literal["huber", "l2"]


def color_loss(kind: Kind, prediction: Tensor, target: Tensor) -> Tensor:
    """Average the error of colours [R, 3].

    It is smooth L1 (Huber with delta 1) or half the squared error. The two differ beyond an error
    of one only, so one learning rate serves both.
    """
    if kind == "huber":
        return functional.smooth_l1_loss(prediction, target)
    return 0.5 * functional.mse_loss(prediction, target)


def loss_terms(
    kind: Kind, distortion_weight: float, rendering: Rendering, batch: Batch
) -> dict[str, Tensor]:
    """Name every term of the loss, weights included: their sum is what is minimised."""
    terms = {"color": color_loss(kind, rendering.rgb, batch.target)}
    if distortion_weight > 0:
        terms["distortion"] = distortion_weight * rendering.distortion.mean()
    return terms
