"""Proposal networks: small density fields that learn where a large one has its mass.

mip-NeRF 360, arXiv:2111.12077, sections 3 and 4. Positions on rays are shares of the way from the
near to the far plane, spread evenly over distance or over disparity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from nerftrain.checks import check_shape
from nerftrain.errors import UserError
from nerftrain.nerfacc.data_specs import RayIntervals
from nerftrain.nerfacc.estimators.base import AbstractEstimator
from nerftrain.nerfacc.pdf import importance_sampling, ray_chunks, searchsorted
from nerftrain.spacing import Kind, to_distance

SigmaFn = Callable[[Tensor, Tensor], Tensor]  # starts, ends [n_rays, n_samples] -> densities
SAMPLING_TYPES: dict[str, Kind] = {"uniform": "uniform", "lindisp": "disparity"}


class PropNetEstimator(AbstractEstimator):
    """Sample where proposal networks see mass, and teach them to bound what the field finds.

    The networks themselves are the caller's, as functions of samples and in the optimizer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        """Keep what `update_every_n_steps` steps: the proposal networks' own."""
        super().__init__()
        self.optimizer = optimizer
        self.scheduler = scheduler
        # Of the last sampling with gradients, level by level: edges as shares, and the cumulated
        # weights at them; None for the level that the large field renders.
        self.prop_cache: list[tuple[RayIntervals, Tensor | None]] = []

    @torch.no_grad()
    def sampling(
        self,
        prop_sigma_fns: Sequence[SigmaFn],
        prop_samples: Sequence[int],
        num_samples: int,
        n_rays: int,
        near_plane: float | Tensor,
        far_plane: float | Tensor,
        sampling_type: Literal["uniform", "lindisp"] = "lindisp",
        stratified: bool = False,
        requires_grad: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draw intervals level by level: t_starts and t_ends [n_rays, num_samples], no gradient.

        Raises UserError where functions and sample counts do not match, for densities of another
        shape than the samples, for an unknown sampling type and for lindisp from distance 0.

        Args:
            prop_sigma_fns: one per level, densities [n_rays, n] of intervals [n_rays, n].
            prop_samples: how many intervals each of them is asked about.
            num_samples: how many intervals are returned for each ray.
            n_rays: may be 0.
            near_plane: where rays begin, for all of them or of shape [n_rays] or [n_rays, 1].
            far_plane: where rays end; lindisp allows infinity.
            sampling_type: what is spread evenly before anything is known, distance or disparity.
            stratified: move the samples of each level and ray by a random share of a quantile.
            requires_grad: keep the levels and their gradients for the loss. What a former call has
                kept is forgotten.
        """
        if len(prop_sigma_fns) != len(prop_samples):
            raise UserError(
                f"{len(prop_sigma_fns)} prop_sigma_fns and {len(prop_samples)} prop_samples: "
                "give one number for each function"
            )
        if requires_grad:
            self.prop_cache = []
        planes = self._planes(near_plane, far_plane, n_rays, sampling_type)
        spacing = SAMPLING_TYPES[sampling_type]
        cdfs = torch.tensor([0.0, 1.0], device=self.device).repeat(n_rays, 1)
        intervals = RayIntervals(cdfs)
        for sigma_fn, count in zip(prop_sigma_fns, prop_samples, strict=True):
            intervals, _ = importance_sampling(intervals, cdfs, count, stratified)
            edges = to_distance(spacing, intervals.vals, *planes)
            with torch.set_grad_enabled(requires_grad):
                cdfs = _cdfs_at_edges(_transmittance(sigma_fn, edges))
            if requires_grad:
                self.prop_cache.append((intervals, cdfs))
        intervals, _ = importance_sampling(intervals, cdfs, num_samples, stratified)
        if requires_grad:
            self.prop_cache.append((intervals, None))
        edges = to_distance(spacing, intervals.vals, *planes)
        return edges[:, :-1], edges[:, 1:]

    def _planes(
        self, near: float | Tensor, far: float | Tensor, n_rays: int, sampling_type: str
    ) -> list[Tensor]:
        if sampling_type not in SAMPLING_TYPES:
            choices = ", ".join(SAMPLING_TYPES)
            raise UserError(f"sampling_type={sampling_type}: choose from {choices}")
        # A tensor is not looked at: that would be a synchronisation on CUDA.
        if sampling_type == "lindisp" and not isinstance(near, Tensor) and near <= 0:
            raise UserError(f"lindisp needs near_plane above 0, not {near}: or take uniform")
        planes = [torch.as_tensor(p, dtype=torch.float32, device=self.device) for p in (near, far)]
        planes = [p.squeeze(-1) if p.dim() else p for p in planes]
        for name, plane in zip(("near_plane", "far_plane"), planes, strict=True):
            if plane.numel() != 1:
                check_shape(name, plane, (n_rays,), "or give one distance for all rays")
        return [plane.expand(n_rays) for plane in planes]

    @torch.enable_grad()
    def compute_loss(self, trans: Tensor, loss_scaler: float = 1.0) -> Tensor:
        """Measure how far proposals fail to bound what the field found: [], summed over levels.

        Of each level the mean over intervals (mip-NeRF 360, eq. 13). Gradients flow to the proposal
        networks alone. The kept levels are used up; where there are none the loss is zero.

        Args:
            trans: [n_rays, num_samples], the field's transmittance where its intervals start.
            loss_scaler: what the loss is multiplied by.
        """
        loss = torch.zeros((), device=self.device)
        if not self.prop_cache:
            return loss
        rays, num_edges = self.prop_cache[-1][0].vals.shape
        check_shape("trans", trans, (rays, num_edges - 1), "a value for each interval of sampling")
        (*levels, (intervals, _)), self.prop_cache = self.prop_cache, []
        cdfs = _cdfs_at_edges(trans.detach())
        for prop_intervals, prop_cdfs in levels:
            assert prop_cdfs is not None
            excess = pdf_loss(intervals, cdfs, prop_intervals, prop_cdfs)
            loss = loss + excess.sum() / max(excess.numel(), 1)  # a mean, and 0 without any rays
        return loss * loss_scaler

    @torch.enable_grad()
    def update_every_n_steps(
        self, trans: Tensor, requires_grad: bool = False, loss_scaler: float = 1.0
    ) -> float:
        """Take a step with the proposal networks, and return their loss.

        Without gradients only the scheduler takes its step and the loss is 0. A synchronisation on
        CUDA. Raises UserError without an optimizer, or if sampling has kept nothing.

        Args:
            trans: [n_rays, num_samples], the field's transmittance where its intervals start.
            requires_grad: whether the sampling of this step was told so.
            loss_scaler: what the loss is multiplied by before its gradients are taken.
        """
        loss = self._learn(trans, loss_scaler) if requires_grad else 0.0
        if self.scheduler is not None:
            self.scheduler.step()
        return loss

    def _learn(self, trans: Tensor, loss_scaler: float) -> float:
        if self.optimizer is None:
            raise UserError("proposal networks cannot learn: give PropNetEstimator an optimizer")
        if not self.prop_cache:
            raise UserError("no levels were kept: call sampling with requires_grad=True before")
        loss = self.compute_loss(trans, loss_scaler)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def get_proposal_requires_grad_fn(
    target: float = 5.0, num_steps: int = 1000
) -> Callable[[int], bool]:
    """Make a function that says of each step whether proposal networks learn in it.

    At first they do in every step but the very first, then ever more rarely, until after num_steps
    more than `target` steps lie between. The function counts its calls: one call per step.
    """
    waited = 0

    def requires_grad(step: int) -> bool:
        nonlocal waited
        share = min(step / num_steps, 1.0) if num_steps else 1.0
        due = waited > share * target
        waited = 1 if due else waited + 1
        return due

    return requires_grad


def pdf_loss(
    segments_query: RayIntervals,
    cdfs_query: Tensor,
    segments_key: RayIntervals,
    cdfs_key: Tensor,
    eps: float = 1e-7,
) -> Tensor:
    """Measure by how much key histograms fail to bound query ones, interval by interval.

    max(0, w - bound)^2 / (w + eps), where the bound is the key's weight between the outermost edges
    of the bins that a query interval touches (mip-NeRF 360, eq. 13). Of the shape [n_rays, n] for
    batched queries, and [all_intervals] for flattened ones. Gradients flow to both cdfs.

    A query interval that ends at a key's edge touches the bin behind it too, and one that ends
    before the first edge has no bound: the project's own `ops.histogram.interlevel_loss` counts
    neither so, and would not give what nerfacc gives.

    Args:
        segments_query: batched, or flattened with is_left and is_right.
        cdfs_query: cumulated weights at its edges.
        segments_key: of the same rays, batched or flattened.
        cdfs_key: cumulated weights at its edges.
        eps: keeps the division finite where a query interval is empty.
    """
    for name, segments, cdfs in (
        ("cdfs_query", segments_query, cdfs_query),
        ("cdfs_key", segments_key, cdfs_key),
    ):
        check_shape(name, cdfs, tuple(segments.vals.shape), "give a value for each edge")
    ids_left, ids_right = searchsorted(segments_key, segments_query)
    if segments_query.vals.dim() > 1:
        first = ray_chunks(segments_key)[:, 0].view(*segments_query.vals.shape[:-1], 1)
        starts, ends = ids_left[..., :-1] + first, ids_right[..., 1:] + first
        weights = cdfs_query.diff(dim=-1)
    else:
        is_left, is_right = segments_query.is_left, segments_query.is_right
        if is_left is None or is_right is None:
            raise UserError("flattened intervals need is_left and is_right: which edges make one")
        starts, ends = ids_left[is_left], ids_right[is_right]
        weights = cdfs_query[is_right] - cdfs_query[is_left]
    flat = cdfs_key.flatten()
    outer = [flat.gather(0, ids.flatten()).view_as(ids) for ids in (ends, starts)]
    return (weights - (outer[0] - outer[1])).clamp(min=0).square() / (weights + eps)


def _transmittance(sigma_fn: SigmaFn, edges: Tensor) -> Tensor:
    """Find what share of light reaches each interval's start: [n_rays, n]."""
    starts, ends = edges[:, :-1], edges[:, 1:]
    sigmas = sigma_fn(starts, ends)
    if sigmas.shape != starts.shape:
        raise UserError(
            f"prop_sigma_fns must return densities {tuple(starts.shape)}, not {tuple(sigmas.shape)}"
        )
    depths = (sigmas * (ends - starts))[:, :-1].cumsum(1)
    return torch.cat([torch.ones_like(starts[:, :1]), (-depths).exp()], 1)


def _cdfs_at_edges(trans: Tensor) -> Tensor:
    """Cumulate weights at all edges [n_rays, n + 1]: beyond the last interval no light goes."""
    return 1 - torch.cat([trans, torch.zeros_like(trans[:, :1])], 1)
