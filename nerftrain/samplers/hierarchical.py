"""Hierarchical sampling, coarse to fine (NeRF, arXiv:2003.08934, section 5.2).

A coarse network is rendered at stratified samples; a fine one at those and at more of them, drawn
by inverting the cumulated weights of the first. Both networks learn from the colours (eq. 6).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nerftrain.bounds import MOST_SAMPLES
from nerftrain.checks import check_field, check_pair
from nerftrain.losses import ColorLoss
from nerftrain.models import NUM_COLORS, RadianceField
from nerftrain.ops.colors import over_background
from nerftrain.ops.composite import Composited, composite
from nerftrain.ops.histogram import invert_cdf
from nerftrain.samplers import Sampler, at_middles, check_counts, find_ways, jitter, pack
from nerftrain.spacing import Kind as Spacing
from nerftrain.types import Batch, Contraction, Rays, Rendering, Samples, SigmaFn

PADDING = 1e-5  # of the coarse weights (the paper's code): no bin is never looked at


class Hierarchical(Sampler):
    """A coarse copy of the model, and the samples that it asks the model for."""

    def __init__(
        self,
        num_coarse: int,
        num_fine: int,
        spacing: Spacing,
        *,
        make_field: Callable[[], RadianceField],
        aabb: Tensor,
        contraction: Contraction = "none",
    ) -> None:
        """Make the coarse network by make_field; aabb [6] is the scene's box.

        Raises UserError for fewer than one sample, and for far too many.
        """
        super().__init__()
        check_counts(MOST_SAMPLES, num_coarse=num_coarse, num_fine=num_fine)
        self.num_coarse, self.num_fine = num_coarse, num_fine
        self.spacing: Spacing = spacing
        self.contraction: Contraction = contraction
        self.coarse = make_field()
        self.register_buffer("aabb", aabb.float().clone(), persistent=False)
        self.aabb: Tensor
        self._rendered: Composited | None = None  # by the coarse network, at the last training call

    def sample(
        self,
        rays: Rays,
        sigma_fn: SigmaFn,
        generator: torch.Generator | None = None,
        room: int | None = None,
    ) -> Samples:
        """Place num_coarse + num_fine + 1 intervals on each ray that meets the scene.

        With a room the other rays have as many, of no length.
        """
        rays = rays.float()
        ways = find_ways(rays, self.aabb, self.contraction, everyone=room is not None)
        edges = self._stratified(ways.rays, generator)
        coarse = pack(ways.distances(self.spacing, edges), ways.hit, len(rays))
        weights = self._coarse_weights(rays, coarse, generator is not None).view(
            -1, self.num_coarse
        )
        fine = invert_cdf(edges, weights, jitter(ways.rays, generator), self.num_fine, PADDING)
        both = torch.cat([edges, fine], 1).sort(1).values
        return pack(ways.distances(self.spacing, both), ways.hit, len(rays))

    def _stratified(self, rays: Rays, generator: torch.Generator | None) -> Tensor:
        """Draw the ends of the coarse intervals [H, num_coarse + 1], one in each equal share."""
        shape, device = (len(rays), self.num_coarse + 1), rays.near.device
        place = torch.full(shape, 0.5, device=device)
        if generator is not None:
            place = torch.rand(shape, generator=generator, device=device)
        return (torch.arange(self.num_coarse + 1, device=device) + place) / (self.num_coarse + 1)

    def _coarse_weights(self, rays: Rays, samples: Samples, learn: bool) -> Tensor:
        """Render the coarse network at its samples [N]: their weights [N]."""
        positions, directions, times = at_middles(rays, samples)
        self.num_evaluated = len(positions)
        if learn:
            found = self.coarse(positions, directions, times)
            check_pair(found, self.coarse)
            channels, density = found
            check_field(len(samples), density, channels)
            self._rendered = composite(density, channels[:, :NUM_COLORS], samples)
            return self._rendered.weights.detach()
        with torch.no_grad():
            density = self.coarse.density(positions, times)
            return composite(density, density.new_empty(len(samples), 0), samples).weights

    def loss_terms(self, loss: ColorLoss, batch: Batch, rendering: Rendering) -> dict[str, Tensor]:
        """Compare the coarse network's colours with the images, as the fine one's are."""
        if self._rendered is None:
            return {}
        out, self._rendered = self._rendered, None
        rgb = over_background(out.channels, out.opacity, batch.background)
        return {"coarse": loss(rgb, batch.target)}
