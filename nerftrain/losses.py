"""What training minimises, term by term."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nerftrain.ops import library
from nerftrain.ops.colors import color_error
from nerftrain.ops.distortion import distortion
from nerftrain.spacing import Kind as Spacing
from nerftrain.spacing import to_share
from nerftrain.types import Rays, Rendering, Samples

Kind = Literal["huber", "l2"]

LEAST_WEIGHT = 1e-6  # below which a sample's share of the light is not told from none


@dataclass(frozen=True)
class ColorLoss:
    """How far rendered colours are from an image's: Huber's loss, or half the squared error.

    The two differ beyond an error of delta only, where Huber's grows in proportion, so one learning
    rate serves both.
    """

    kind: Kind
    delta: float = 1.0
    exposure: Tensor | None = None  # [R, 3], what rays' images make of colours; None: nothing

    def exposed(self, exposure: Tensor | None) -> ColorLoss:
        """Return the same, of colours that each ray's image has exposed by gains [R, 3]."""
        return self if exposure is None else replace(self, exposure=exposure)

    def __call__(self, prediction: Tensor, target: Tensor, whole: Tensor | None = None) -> Tensor:
        """Average the error of colours [R, 3], of those rays alone that are `whole` [R]."""
        if self.exposure is not None:
            prediction = prediction * self.exposure
        # No error is beyond infinity, so every one is squared.
        delta = self.delta if self.kind == "huber" else math.inf
        return color_error(prediction, target, whole, delta)


def mean_of_whole(values: Tensor, whole: Tensor | None) -> Tensor:
    """Average values [R] over the rays that are whole [R]; None: over all."""
    if whole is None:
        return values.mean()
    return torch.where(whole, values, 0.0).sum() / whole.sum().clamp(min=1)


def distortion_loss(rendering: Rendering, samples: Samples, rays: Rays, kind: Spacing) -> Tensor:
    """Average how spread out the weights along rays are (mip-NeRF 360, eq. 15).

    Distances are shares of the way from near to far, spread as `kind` says: in a scene without
    bounds a spread far away must not count for more than all that is near.
    """
    near, far = (bound.index_select(0, samples.ray_indices) for bound in (rays.near, rays.far))
    starts, ends = (to_share(kind, t, near, far) for t in (samples.t_starts, samples.t_ends))
    spread = distortion(rendering.weights, starts, ends, samples.offsets)
    return mean_of_whole(spread, samples.whole)


def depth_loss(weights: Tensor, samples: Samples, depths: Tensor, spread: float) -> Tensor:
    """Average how little light is from where rays are known to end (DS-NeRF, arXiv:2107.02791).

    Their section 3.2: the logarithms of weights, each counting as a normal distribution around the
    known distance says; here as much of it as lies in the sample's interval, however long that is.

    Args:
        weights: [N] of samples.
        samples: of R rays.
        depths: [R] known distances, 0 where none is.
        spread: the standard deviation of these, as a share of them.
    """
    known = depths > 0
    if samples.whole is not None:
        known = known & samples.whole
    rays, starts, ends = samples.ray_indices, samples.t_starts, samples.t_ends
    if library.on_cpu(weights):  # a GPU is not asked how many samples count
        chosen = known.index_select(0, rays).nonzero()[:, 0]
        rays, starts, ends, weights = (x[chosen] for x in (rays, starts, ends, weights))
    # Of rays without a distance any will do, for it is multiplied by nothing.
    middle = torch.where(known, depths, 1.0)
    unit = (math.sqrt(2) * spread * middle).index_select(0, rays)
    middle = middle.index_select(0, rays)
    share = ((ends - middle) / unit).erf() - ((starts - middle) / unit).erf()
    share = 0.5 * share * known.index_select(0, rays)
    return -(share * (weights + LEAST_WEIGHT).log()).sum() / known.sum().clamp(min=1)
