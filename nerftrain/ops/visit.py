"""Visiting packed samples front to back, until nothing behind them can be seen.

    T_i = prod_{j<i} exp(-sigma_j dt_j)
(NeRF, arXiv:2003.08934, eq. 3) falls along a ray; once it is below `early_stop_eps` the ray is
done, and no field need be asked for what lies behind (NerfAcc, arXiv:2305.04966). Rays are visited
in rounds of a few samples each, so that the field sees many of them at once; few rays are left
after two rounds, and rounds grow lest the rest take many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nerftrain.checks import check_field
from nerftrain.ops import library
from nerftrain.ops.rooms import both, fit, padded
from nerftrain.types import Picked, Samples, SigmaFn


class LookedUp(NamedTuple):
    """What a field has looked up at samples, to be used again where gradients are asked for."""

    places: Tensor  # [N, 3] unit positions or, where a field has both, [N, 4] with times
    features: Tensor  # [N, D]

    def at(self, samples: Tensor, more: LookedUp | None = None) -> LookedUp:
        """Find those of some of the samples by their indices [K].

        Indices go on into what was looked up at more of them.
        """
        two = more or (None, None)
        return LookedUp(*(gather_rows(a, samples, b) for a, b in zip(self, two, strict=True)))


@dataclass
class Visited:
    """What is known of the samples of R rays so far."""

    density: Tensor  # [N], UNSEEN where nothing has been asked for
    num: Tensor  # [R] int64, samples visited
    transmittance: Tensor  # [R], behind these
    sum_alpha: Tensor  # [R], of their opacities
    num_evaluated: int = 0

    @classmethod
    def nothing(cls, samples: Samples) -> Visited:
        """Begin with no sample visited."""
        num_rays, make = len(samples.offsets) - 1, samples.t_starts.new_full
        return cls(
            density=make((len(samples),), UNSEEN),
            num=samples.offsets.new_zeros(num_rays),
            transmittance=make((num_rays,), 1.0),
            sum_alpha=make((num_rays,), 0.0),
        )


UNSEEN = -1.0  # the density of a sample that has not been visited


# --------------------------------------------------------------------------------------- references


def next_round_reference(
    samples: Samples, visited: Visited, early_stop_eps: float, most: int
) -> Samples:
    """Find the samples that are next by torch (see `next_round`)."""
    counts = samples.offsets.diff() - visited.num
    counts = counts.clamp(max=most) * (visited.transmittance >= early_stop_eps)
    rays = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    offsets = _offsets(counts)
    place = torch.arange(len(rays), device=counts.device) - offsets[rays]
    rows = samples.offsets[rays] + visited.num[rays] + place
    return Samples(samples.t_starts[rows], samples.t_ends[rows], rays, offsets)


def take_reference(samples: Samples, visited: Visited, now: Samples, density: Tensor) -> None:
    """Take densities in by torch (see `take`)."""
    rays = now.ray_indices
    place = torch.arange(len(rays), device=rays.device) - now.offsets[rays]
    density = torch.where(density < 0, 0.0, density)
    optical = density * (now.t_ends - now.t_starts)
    visited.density[samples.offsets[rays] + visited.num[rays] + place] = density
    sums = torch.zeros_like(visited.transmittance).index_add_(0, rays, optical)
    visited.transmittance *= torch.exp(-sums)
    visited.sum_alpha.index_add_(0, rays, 1 - torch.exp(-optical))
    visited.num += now.offsets.diff()


def select_reference(samples: Samples, keep: Tensor) -> Samples:
    """Keep samples by torch (see `select`)."""
    rows = keep.nonzero().squeeze(1)
    before = torch.zeros(len(samples) + 1, dtype=torch.int64, device=keep.device)
    torch.cumsum(keep, 0, out=before[1:])
    kept = (samples.t_starts[rows], samples.t_ends[rows], samples.ray_indices[rows])
    picked = Picked(rows, (samples.t_starts,))
    return Samples(*kept, before[samples.offsets], samples.whole, picked)


def _offsets(counts: Tensor) -> Tensor:
    offsets = torch.zeros(counts.shape[0] + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


# ------------------------------------------------------------------------------------- registration


@library.fake("visit_count")
def _visit_count_fake(_offsets: Tensor, num: Tensor, *_: object) -> Tensor:
    return torch.empty_like(num)


def _picked_fake(t_starts: Tensor, offsets: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    return t_starts.new_empty(num), t_starts.new_empty(num), offsets.new_empty(num)


@library.fake("visit_pick")
def _visit_pick_fake(
    t_starts: Tensor, _e: Tensor, offsets: Tensor, _n: Tensor, _r: Tensor, num_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _picked_fake(t_starts, offsets, num_samples)


@library.fake("visit_take_")
def _visit_take_fake(*_: object) -> None:
    return None


@library.fake("select")
def _select_fake(_k: Tensor, t_starts: Tensor, _e: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    num = torch.library.get_ctx().new_dynamic_size()
    starts, ends, rays = _picked_fake(t_starts, offsets, num)
    return starts, ends, rays, torch.empty_like(offsets), torch.empty_like(rays)


@library.fake("gather_rows")
def _gather_rows_fake(numbers: Tensor, rows: Tensor, _more: Tensor) -> Tensor:
    return numbers.new_empty(rows.shape[0], numbers.shape[1])


@library.fake("select_count")
def _select_count_fake(_keep: Tensor, offsets: Tensor) -> Tensor:
    return offsets.new_empty(offsets.shape[0] - 1)


@library.fake("select_pick")
def _select_pick_fake(
    _k: Tensor, t_starts: Tensor, _e: Tensor, offsets: Tensor, _o: Tensor, num_samples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_picked_fake(t_starts, offsets, num_samples), offsets.new_empty(num_samples)


@library.fake("select_more_")
def _select_more_fake(*_: object) -> None:
    return None


# --------------------------------------------------------------------------------- public functions


@torch.no_grad()
def visit(samples: Samples, sigma_fn: SigmaFn, early_stop_eps: float, most: int) -> Visited:
    """Ask a field for the densities of samples, front to back until rays are opaque.

    Args:
        samples: of R rays.
        sigma_fn: gives densities [M] at M samples, each ray's in their order.
        early_stop_eps: rays whose transmittance falls below it are done.
        most: samples of a ray in the first round; in each later one they are twice as many.

    Raises:
        UserError: a sigma_fn that gives another number of densities.
    """
    visited = Visited.nothing(samples)
    while len(now := next_round(samples, visited, early_stop_eps, most)):
        density = sigma_fn(now.t_starts, now.t_ends, now.ray_indices)
        take(samples, visited, now, density.to(visited.density.dtype))
        visited.num_evaluated += len(now)
        most *= 2
    return visited


def gather_rows(numbers: Tensor, rows: Tensor, more: Tensor | None = None) -> Tensor:
    """Take rows [N] of numbers [M, K], and of more behind those, without gradients: [N, K].

    On a GPU torch's index_select lays a block of threads out for a row, however short it is.
    """
    if library.on_cpu(numbers) or not library.native(numbers, rows):
        return (numbers if more is None else torch.cat([numbers, more])).index_select(0, rows)
    behind = numbers[:0] if more is None else more.contiguous()
    return torch.ops.nerftrain.gather_rows(numbers.contiguous(), rows, behind)


def next_round(samples: Samples, visited: Visited, early_stop_eps: float, most: int) -> Samples:
    """Find the samples that are next: at most so many of each ray that is not opaque yet."""
    if not library.native(samples.t_starts, visited.num):
        return next_round_reference(samples, visited, early_stop_eps, most)
    ops = torch.ops.nerftrain
    arguments = (samples.offsets, visited.num)
    counts = ops.visit_count(*arguments, visited.transmittance, early_stop_eps, most)
    offsets = _offsets(counts)
    num_samples = int(offsets[-1])  # a synchronisation on CUDA: the size of what follows
    picked = ops.visit_pick(samples.t_starts, samples.t_ends, *arguments, offsets, num_samples)
    return Samples(picked[0], picked[1], picked[2], offsets)


def take(samples: Samples, visited: Visited, now: Samples, density: Tensor) -> None:
    """Take in the densities [M] of the samples that `next_round` gave; below zero is zero."""
    check_field(len(now), density)
    if not library.native(density, visited.num):
        take_reference(samples, visited, now, density)
        return
    known = (visited.num, visited.transmittance, visited.sum_alpha, visited.density)
    torch.ops.nerftrain.visit_take_(
        density.contiguous(), now.t_starts, now.t_ends, now.offsets, samples.offsets, *known
    )


def select(samples: Samples, keep: Tensor, room: int | None = None) -> Samples:
    """Keep the samples where `keep` [N] is true, packed again.

    With a room they are as `march` gives them with one.
    """
    if not library.native(samples.t_starts, keep):
        kept = select_reference(samples, keep)
        return kept if room is None else padded(kept, room)
    times = samples.t_starts.contiguous(), samples.t_ends.contiguous()
    if room is None and library.on_cpu(samples.t_starts):
        t_starts, t_ends, rays, offsets, rows = torch.ops.nerftrain.select(
            keep, *times, samples.offsets
        )
        picked = Picked(rows, (samples.t_starts,))
        return Samples(t_starts, t_ends, rays, offsets, samples.whole, picked)
    return _select([(samples, keep)], room)


def select_in_turn(rounds: Sequence[tuple[Samples, Tensor]], room: int) -> Samples:
    """Keep samples of several rounds, each ray's one round after the other (see `select`)."""
    if len(rounds) == 1:
        return select(*rounds[0], room)
    return _select(rounds, room)


def _select(rounds: Sequence[tuple[Samples, Tensor]], room: int | None) -> Samples:
    ops = torch.ops.nerftrain
    whole: Tensor | None = None
    befores: list[Tensor | None] = []  # [R], how many of each ray were kept in earlier rounds
    count: Tensor | None = None
    for samples, keep in rounds:
        befores.append(count)
        now = ops.select_count(keep, samples.offsets)
        count = now if count is None else count + now
        whole = whole if samples.whole is None else both(whole, samples.whole)
    assert count is not None  # there is a round
    offsets, fits = (_offsets(count), None) if room is None else fit(count, room)
    # Without a room a synchronisation on CUDA: the size of what follows.
    num_samples = int(offsets[-1]) if room is None else room
    kept: Any = ()
    first_row = 0
    for (samples, keep), before in zip(rounds, befores, strict=True):
        times = samples.t_starts.contiguous(), samples.t_ends.contiguous()
        what = (keep, *times, samples.offsets, offsets)
        if before is None:
            kept = ops.select_pick(*what, num_samples)
        else:
            ops.select_more_(*what, before, first_row, *kept)
        first_row += len(samples)
    t_starts, t_ends, rays, rows = kept
    whole = whole if fits is None else both(whole, fits)
    picked = Picked(rows, tuple(samples.t_starts for samples, _ in rounds))
    return Samples(t_starts, t_ends, rays, offsets, whole, picked)
