"""Proposal sampling: small density fields, coarse to fine, learn where the large one has its mass.

mip-NeRF 360, arXiv:2111.12077, sections 3 and 4. Each level draws its intervals where the level
before it has found weight; the last level's intervals are for the radiance field. The proposal
fields learn from the interlevel loss (eq. 13) alone: they have to bound the weights that the
radiance field finds, and no gradient flows from one level to another.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nerftrain.bounds import MOST_SAMPLES, MOST_WIDTH, check_shares
from nerftrain.errors import UserError
from nerftrain.losses import ColorLoss
from nerftrain.models.encodings import HashEncoding, SmallMLP, truncated_exp
from nerftrain.ops.composite import composite
from nerftrain.ops.contract import unit_positions
from nerftrain.ops.histogram import interlevel_loss, invert_cdf
from nerftrain.ops.march import visible_samples
from nerftrain.ops.ngp_half import can_do_density, density_half
from nerftrain.ops.visit import select
from nerftrain.samplers import Sampler, Ways, at_middles, check_counts, find_ways, jitter, pack
from nerftrain.spacing import Kind as Spacing
from nerftrain.types import Batch, Contraction, DensityFn, Rays, Rendering, Samples, SigmaFn

STRAY = 1 / 16  # the share of training rays that are followed although no proposal asks for them

Histogram = tuple[Tensor, Tensor]  # edges [H, S + 1] as shares of the rays' way, weights [H, S]


@dataclass(frozen=True)
class Level:
    """One proposal level; what each value means is said in conf/sampler/proposal.yaml."""

    num_samples: int
    encoding: HashEncoding
    width: int

    def __post_init__(self) -> None:
        """Refuse, with a UserError, what cannot be built."""
        check_counts(MOST_SAMPLES, num_samples=self.num_samples)
        check_counts(MOST_WIDTH, width=self.width)


@dataclass(frozen=True)
class Teaching:
    """How proposal fields are taught; what each value means: conf/sampler/proposal.yaml."""

    anneal_steps: int
    anneal_slope: float
    update_every: int
    update_warmup: int
    share: float
    weight: float
    fog_weight: float

    def __post_init__(self) -> None:
        """Refuse, with a UserError, what makes no sense."""
        check_counts(update_every=self.update_every)
        for name in ("anneal_steps", "anneal_slope", "update_warmup", "weight", "fog_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must not be negative")
        if not 0 < self.share <= 1:
            raise UserError(f"share={self.share}: must be more than 0 and at most 1")

    def anneal(self, step: int) -> float:
        """Give the power to which weights are raised (section 4): small at first, in the end 1."""
        if step >= self.anneal_steps:
            return 1.0
        done = step / self.anneal_steps
        return self.anneal_slope * done / ((self.anneal_slope - 1) * done + 1)

    def period(self, step: int) -> int:
        """Give the number of steps from one update to the next: ever more of them."""
        share = min(1.0, step / self.update_warmup) if self.update_warmup else 1.0
        return max(1, round(share * self.update_every))


class ProposalField(nn.Module):
    """A density from a small hash grid and one hidden layer; it knows no colours and no time."""

    def __init__(self, level: Level, aabb: Tensor, contraction: Contraction) -> None:
        super().__init__()
        self.encoding = level.encoding
        self.mlp = SmallMLP(level.encoding.num_features, level.width, 1, 1)
        self.contraction: Contraction = contraction
        self.register_buffer("aabb", aabb.float().clone(), persistent=False)
        self.aabb: Tensor

    def forward(self, positions: Tensor) -> Tensor:
        """Evaluate the density at positions [N, 3] in world units: [N]."""
        unit = unit_positions(positions, self.aabb, self.contraction)
        weights = list(self.mlp.weights)
        if can_do_density([self.encoding.table], weights):
            return density_half([self.encoding.at(unit)], weights)
        return truncated_exp(self.mlp(self.encoding(unit))[:, 0] - 1)


class Proposal(Sampler):
    """Any number of proposal levels in front of the radiance field."""

    def __init__(
        self,
        levels: list[Level],
        num_samples: int,
        spacing: Spacing,
        padding: float,
        early_stop_eps: float,
        min_opacity: float,
        min_weight: float,
        teaching: Teaching,
        *,
        aabb: Tensor,
        contraction: Contraction = "none",
        near: float = 1.0,
    ) -> None:
        """Build the proposal fields over the box aabb [6] or, with contraction, all of space.

        Raises UserError for impossible numbers.
        """
        super().__init__()
        check_counts(MOST_SAMPLES, levels=len(levels), num_samples=num_samples)
        check_shares(early_stop_eps=early_stop_eps, min_opacity=min_opacity, min_weight=min_weight)
        if padding < 0:
            raise UserError(f"padding={padding}: must not be negative")
        if spacing == "disparity" and near <= 0:
            raise UserError(f"spacing={spacing}: needs scene.near above 0")
        self.counts = [level.num_samples for level in levels]
        self.num_samples, self.padding, self.teaching = num_samples, padding, teaching
        self.early_stop_eps, self.min_opacity = early_stop_eps, min_opacity
        self.min_weight = min_weight
        self.spacing: Spacing = spacing
        self.contraction: Contraction = contraction
        self.fields = nn.ModuleList(ProposalField(level, aabb, contraction) for level in levels)
        self.register_buffer("aabb", aabb.float().clone(), persistent=False)
        self.aabb: Tensor
        # How often the fields have learnt decides when they do again: a resumed run must know.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_learnt", torch.full((), -1, dtype=torch.int64))
        self.step: Tensor
        self.last_learnt: Tensor
        self._step, self._last_learnt = 0, -1  # the same, where no device need be asked
        self._levels: list[Histogram] = []  # of the last call in training, where it taught
        self._fog: list[Tensor] = []  # the sum of each level's weights then
        self._final: Histogram | None = None
        self._num_taught = 0  # rays

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load fields and buffers, and count on from there."""
        result = super().load_state_dict(*args, **kwargs)
        self._step, self._last_learnt = int(self.step), int(self.last_learnt)
        return result

    def phase(self) -> Hashable:
        """Tell whether proposal fields learn and how their weights are annealed."""
        return self._is_due(self._step), self.teaching.anneal(self._step)

    def sample(
        self,
        rays: Rays,
        sigma_fn: SigmaFn,
        generator: torch.Generator | None = None,
        room: int | None = None,
    ) -> Samples:
        """Place samples level by level; rays and samples that nobody sees are left out.

        With a room all rays are followed to the end: which ones are worth it is not asked.
        """
        ways = find_ways(rays, self.aabb, self.contraction, everyone=room is not None)
        step = self._step
        teach = generator is not None and self._is_due(step)
        power = self.teaching.anneal(step) if generator is not None else 1.0
        self._levels, self._fog, self._final = [], [], None
        self.num_evaluated = 0
        # Rays come in no order, so that the first of them are as good as any others to learn from.
        taught = math.ceil(self.teaching.share * len(ways)) if teach else 0
        self._num_taught = taught
        edges = torch.arange(2.0, device=ways.enter.device).expand(len(ways), 2)
        weights = ways.enter.new_ones(len(ways), 1)
        for field, count in zip(self.fields, self.counts, strict=True):
            edges = self._draw(edges, weights, power, ways.rays, generator, count)
            weights = self._weights(field, ways[:taught], edges[:taught])
            if teach:
                self._levels.append((edges[:taught], weights))
                self._fog.append(weights.sum())
            if taught < len(ways):
                with torch.no_grad():
                    rest = self._weights(field, ways[taught:], edges[taught:])
                weights = torch.cat([weights, rest])
            # Their fields are small: an eighth of the radiance field's cost.
            self.num_evaluated += weights.numel() // 8
            if power == 1 and self.min_opacity and room is None:
                kept = self._worth_following(weights, generator)
                ways, edges, weights = ways[kept], edges[kept], weights[kept]
                if teach:
                    of_taught = kept[kept < taught]  # on CUDA a synchronisation, as above
                    taught = len(of_taught)
                    self._levels = [(e[of_taught], w[of_taught]) for e, w in self._levels]
        edges = self._draw(edges, weights, power, ways.rays, generator, self.num_samples)
        samples = pack(ways.distances(self.spacing, edges), ways.hit, len(rays))
        if not self.min_weight:
            self._final = (edges, torch.empty(0))
            return samples
        return self._visible(samples, edges, sigma_fn, room)

    def _is_due(self, step: int) -> bool:
        return step - self._last_learnt >= self.teaching.period(step)

    def _draw(
        self,
        edges: Tensor,
        weights: Tensor,
        power: float,
        rays: Rays,
        generator: torch.Generator | None,
        count: int,
    ) -> Tensor:
        masses = weights.detach() ** power if power < 1 else weights.detach()
        return invert_cdf(edges, masses, jitter(rays, generator), count, self.padding)

    def _weights(self, field: nn.Module, ways: Ways, edges: Tensor) -> Tensor:
        """Weigh the intervals edges [H, S + 1] by a proposal field's density: [H, S]."""
        everyone = torch.arange(len(ways), device=edges.device)
        samples = pack(ways.distances(self.spacing, edges), everyone, len(ways))
        density = field(at_middles(ways.rays, samples)[0])
        out = composite(density, density.new_empty(len(samples), 0), samples)
        return out.weights.view(len(ways), edges.shape[1] - 1)

    def _worth_following(self, weights: Tensor, generator: torch.Generator | None) -> Tensor:
        """Find the rays [H'] of which proposals say that they meet anything.

        In training a few of the others are followed all the same: what a proposal field has missed
        is found only where the radiance field is asked.
        """
        worth = weights.detach().sum(1) >= self.min_opacity
        if generator is not None:
            lot = torch.rand(worth.shape, generator=generator, device=worth.device)
            worth |= lot < STRAY
        return worth.nonzero().squeeze(1)  # a synchronisation on CUDA: how many there are

    @torch.no_grad()
    def _visible(
        self, samples: Samples, edges: Tensor, sigma_fn: SigmaFn, room: int | None
    ) -> Samples:
        density = sigma_fn(samples.t_starts, samples.t_ends, samples.ray_indices)
        self.num_evaluated += len(samples)
        out = composite(density, density.new_empty(len(samples), 0), samples)
        self._final = (edges, out.weights.view(-1, self.num_samples))
        # Before the field has learnt anything every weight is small: not all may be cut off.
        mean = out.weights.mean() if len(samples) else out.weights.sum()
        thresholds = torch.zeros_like(mean), mean.clamp(max=self.min_weight)
        keep = visible_samples(samples, density, self.early_stop_eps, *thresholds)
        return select(samples, keep, room)

    def loss_terms(self, loss: ColorLoss, batch: Batch, rendering: Rendering) -> dict[str, Tensor]:
        """Hold the proposal fields, where it is their turn, to what the radiance field found."""
        if not self._levels or self._final is None:
            return {}
        edges, weights = self._final
        if not self.min_weight:
            weights = rendering.weights.detach().view(-1, self.num_samples)
        taught = len(self._levels[0][0])
        final = edges[:taught], weights[:taught]
        losses = [interlevel_loss(*final, *level).sum() for level in self._levels]
        per_ray = 1 / max(self._num_taught, 1)
        terms = {"interlevel": torch.stack(losses).sum() * (self.teaching.weight * per_ray)}
        if self.teaching.fog_weight:
            fog = torch.stack(self._fog).sum()
            terms["fog"] = fog * (self.teaching.fog_weight * per_ray)
        return terms

    def update(self, step: int, density_fn: DensityFn, generator: torch.Generator) -> None:
        """Count the step; proposal fields learn by the loss."""
        if self._is_due(step):
            self.last_learnt.fill_(step)
            self._last_learnt = step
        self.step.fill_(step + 1)
        self._step = step + 1
        self._levels, self._fog, self._final = [], [], None  # the graph goes with them

    def describe(self) -> dict[str, float]:
        """Report how many densities the last call asked for, in units of the radiance field's."""
        return {"evaluated": float(self.num_evaluated)}
