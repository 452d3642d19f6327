"""Equal steps through the scene's box: the baseline that skips nothing."""

from __future__ import annotations

import torch

from nerftrain.errors import UserError
from nerftrain.samplers import Sampler, jitter
from nerftrain.types import Rays, Samples, SigmaFn


class Uniform(Sampler):
    """The same number of equal intervals on every ray.

    They lie between where it enters and leaves the scene's box.
    """

    def __init__(self, num_samples: int, *, aabb: torch.Tensor) -> None:
        """Take `num_samples` intervals per ray in the box aabb [6].

        Raises UserError for fewer than one.
        """
        super().__init__()
        if num_samples < 1:
            raise UserError(f"num_samples={num_samples}: must be at least 1")
        self.num_samples = num_samples
        self.register_buffer("aabb", aabb.float().clone(), persistent=False)
        self.aabb: torch.Tensor

    @torch.no_grad()
    def sample(
        self, rays: Rays, sigma_fn: SigmaFn, generator: torch.Generator | None = None
    ) -> Samples:
        """Place num_samples intervals on each of R rays; rays that miss the box have none."""
        inverse = 1 / torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
        walls = (self.aabb.view(2, 1, 3) - rays.origins) * inverse  # [2, R, 3]
        enter = torch.maximum(walls.amin(0).amax(-1), rays.near)
        leave = torch.minimum(walls.amax(0).amin(-1), rays.far)
        hit = (enter < leave).nonzero().squeeze(1)
        step = ((leave - enter) / self.num_samples)[hit, None]
        # The jitter shifts all boundaries by less than half a step; the first and last interval
        # shrink to the box.
        k = torch.arange(self.num_samples + 1, device=hit.device) + (
            jitter(rays, generator)[hit, None] - 0.5
        )
        bounds = enter[hit, None] + k.clamp(0, self.num_samples) * step  # [hit, num_samples + 1]
        counts = torch.zeros(len(rays) + 1, dtype=torch.int64, device=hit.device)
        counts[hit + 1] = self.num_samples
        return Samples(
            t_starts=bounds[:, :-1].reshape(-1),
            t_ends=bounds[:, 1:].reshape(-1),
            ray_indices=hit.repeat_interleave(self.num_samples),
            offsets=counts.cumsum(0),
        )
