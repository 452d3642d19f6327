"""Equal steps through the scene: the baseline that skips nothing."""

from __future__ import annotations

import torch

from nerftrain.bounds import MOST_SAMPLES
from nerftrain.samplers import Sampler, check_counts, find_ways, jitter, pack
from nerftrain.spacing import Kind as Spacing
from nerftrain.types import Contraction, Rays, Samples, SigmaFn


class Uniform(Sampler):
    """The same number of intervals on every ray, equal in a share of its way.

    The way leads from where the ray enters the scene's box to where it leaves it, or from near to
    far where the scene has no bounds.
    """

    def __init__(
        self,
        num_samples: int,
        spacing: Spacing,
        *,
        aabb: torch.Tensor,
        contraction: Contraction = "none",
    ) -> None:
        """Take `num_samples` intervals per ray in the box aabb [6].

        Raises UserError for fewer than one, and for far too many.
        """
        super().__init__()
        check_counts(MOST_SAMPLES, num_samples=num_samples)
        self.num_samples = num_samples
        self.spacing: Spacing = spacing
        self.contraction: Contraction = contraction
        self.register_buffer("aabb", aabb.float().clone(), persistent=False)
        self.aabb: torch.Tensor

    @torch.no_grad()
    def sample(
        self,
        rays: Rays,
        sigma_fn: SigmaFn,
        generator: torch.Generator | None = None,
        room: int | None = None,
    ) -> Samples:
        """Place num_samples intervals on each of R rays.

        Rays that miss the box have none or, with a room, intervals of no length.
        """
        ways = find_ways(rays, self.aabb, self.contraction, everyone=room is not None)
        # The jitter shifts all boundaries by less than half a step; the first and last interval
        # shrink to the way's ends.
        k = torch.arange(self.num_samples + 1, device=ways.hit.device) + (
            jitter(rays, generator)[ways.hit, None] - 0.5
        )
        shares = k.clamp(0, self.num_samples) / self.num_samples
        return pack(ways.distances(self.spacing, shares), ways.hit, len(rays))
