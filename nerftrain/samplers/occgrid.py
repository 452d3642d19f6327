"""Occupancy-grid sampling: skip empty space, stop behind surfaces.

NerfAcc, arXiv:2305.04966; Instant-NGP, arXiv:2201.05989, appendix E. The grid's value in a cell is
the largest optical depth that one step there has had lately, decaying from update to update; a cell
is occupied where it exceeds min(mean, occ_thre).

Where things move a cell is occupied if it ever is, and for each of a number of slices of time cubes
of 2**3 cells tell what holds anything then: a ray looks in its own slice.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nerftrain.bounds import check_at_most, check_shares
from nerftrain.checks import check_field
from nerftrain.errors import UserError
from nerftrain.lens import pinholes_around
from nerftrain.ops import march as ops
from nerftrain.ops.points import sample_points
from nerftrain.ops.rooms import both, used_rows
from nerftrain.ops.visit import UNSEEN, select, select_in_turn, visit
from nerftrain.ops.visit_ngp import Found
from nerftrain.samplers import Sampler, check_counts, jitter
from nerftrain.types import Cameras, DensityFn, Rays, Samples, SigmaFn, Thresholds

# Rays are evaluated front to back in rounds of so many samples: what lies behind a surface is never
# evaluated, and a round is long enough to keep the field's batches large.
ROUND = 16

FIRST_STRIDE = 4.0  # the factor on the steps of training rays at first; it falls to 1 in warm-up
STRIDES = 3  # by so many steps where a GPU records them: what is recorded is of one stride
# With a room, how many samples are marched for each that is trained on: the trainer draws as many
# rays as fit both.
MARCHED = 4

Numbers = tuple[float, float]  # the least opacity and weight of a sample

MOST_LEVELS = 16  # the kernels' kMaxBoxes
MOST_CELLS = 2**30  # of all levels, at 5 bytes and more: a level of 1024, or 16 of 384
MOST_LOOKED_AT = 2**24  # cells in one update, each with its density
MOST_STEPS = 2**16  # along the box's diagonal, and of a march
MOST_FINER = 64  # a view takes so many times as long
WIDEST_CONE = 1  # there a step is as long as the way to it

UNKNOWN = -1.0  # the value of a visible cell that has not been looked at: it counts as occupied


@dataclass(frozen=True)
class GridSettings:
    """The occupancy grid and how it is kept up to date.

    What each means is said in conf/sampler/occgrid.yaml.
    """

    resolution: int
    num_levels: int
    update_every: int
    num_times: int
    warmup_steps: int
    cells_per_update: int
    ema_decay: float
    occ_thre: float
    carve: bool
    time_slices: int = 1  # as in runs from before there were any

    def __post_init__(self) -> None:
        """Refuse, with a UserError, what no grid can be."""
        if self.resolution < 16 or self.resolution % 16:
            raise UserError(f"resolution={self.resolution}: must be a multiple of 16")
        check_counts(update_every=self.update_every)
        check_counts(MOST_LEVELS, num_levels=self.num_levels)
        check_counts(1024, num_times=self.num_times, time_slices=self.time_slices)
        check_counts(MOST_LOOKED_AT, cells_per_update=self.cells_per_update)
        check_at_most(1024, resolution=self.resolution)
        if self.num_levels * self.resolution**3 > MOST_CELLS:
            raise UserError(
                f"resolution={self.resolution}: with num_levels={self.num_levels} these are more "
                "than 2^30 cells; choose fewer"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay={self.ema_decay}: must be in [0, 1)")
        for name in ("warmup_steps", "occ_thre"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must not be negative")


class OccGrid(Sampler):
    """A multi-level occupancy grid that learns from the field where there is anything to see."""

    recorded = (*Sampler.recorded, "num_marched")

    def __init__(
        self,
        grid: GridSettings,
        steps_per_diagonal: int,
        cone_angle: float,
        early_stop_eps: float,
        alpha_thre: float,
        min_weight: float,
        max_steps: int,
        finer_views: float = 1.0,
        *,
        aabb: Tensor,
        cameras: Cameras,
        near: float,
        masks: Tensor | None,
        far: float = math.inf,
    ) -> None:
        """Lay level 0 of the grid over aabb [6].

        Cells that cannot hold anything are off from the start. These are the cells that no camera
        sees beyond `near` and, with grid.carve, those that masks [C, H, W] (true where a pixel is
        not wholly transparent; None: unknown) show to be empty.

        Raises UserError for impossible numbers, and where rays from the cameras would be over
        before `far` and the end of the outermost grid.
        """
        super().__init__()
        check_counts(MOST_STEPS, steps_per_diagonal=steps_per_diagonal, max_steps=max_steps)
        check_shares(early_stop_eps=early_stop_eps, alpha_thre=alpha_thre, min_weight=min_weight)
        if cone_angle < 0:
            raise UserError(f"cone_angle={cone_angle}: must not be negative")
        check_at_most(WIDEST_CONE, cone_angle=cone_angle)
        if finer_views <= 0:
            raise UserError(f"finer_views={finer_views}: must be more than 0")
        check_at_most(MOST_FINER, finer_views=finer_views)
        self.settings = grid
        self.is_dynamic = cameras.times is not None
        self.num_slices = grid.time_slices if self.is_dynamic else 1
        # Samples in occupied cells at the last call; None: rays were marched no further than seen.
        self.num_marched: int | Tensor | None = 0
        # What the last call in training found where, if the grid will ask for it.
        self.last: list[tuple[Rays, Samples, Tensor]] | None = None
        self._steps = 0  # `steps`, where no device need be asked
        self.aabb = tuple(aabb.tolist())
        self.grid = ops.pack_grid(torch.zeros(grid.num_levels, 16, 16, 16).bool(), self.aabb)
        diagonal = float((aabb[3:] - aabb[:3]).norm())
        self.march = ops.March(diagonal / steps_per_diagonal, cone_angle, max_steps)
        _check_reach(self.march, near, min(far, _farthest(cameras, aabb, grid.num_levels)))
        self.finer_views = finer_views
        self.early_stop_eps, self.alpha_thre, self.min_weight = (
            early_stop_eps,
            alpha_thre,
            min_weight,
        )
        seeing = pinholes_around(cameras)
        # Masks are looked up where a pinhole sees a cell, which another lens shows elsewhere.
        masks = masks if grid.carve and seeing is cameras else None
        if seeing is None:  # lenses that see nearly all around
            shape = grid.num_levels, *[grid.resolution] * 3
            visible = torch.ones(shape, dtype=torch.bool, device=cameras.poses.device)
        else:
            visible = ops.visible_cells(
                seeing, masks, self.aabb, grid.num_levels, grid.resolution, near
            )
        self.register_buffer("visible", visible)
        self.register_buffer("occupancy", torch.where(visible, UNKNOWN, 0.0))
        if self.num_slices > 1:
            cubes = [grid.resolution // 2] * 3
            shape = self.num_slices, grid.num_levels, *cubes
            self.register_buffer("slices", torch.full(shape, UNKNOWN))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("corners", aabb.float().clone().view(2, 3), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of training, done
        if masks is not None:
            self.live_pixels = self._live_pixels(cameras)
        self.visible: Tensor
        self.occupancy: Tensor
        self.slices: Tensor
        self.threshold: Tensor
        self.corners: Tensor
        self.steps: Tensor
        self._find_visible()

    def _live_pixels(self, cameras: Cameras) -> Tensor | None:
        """Find the pixels [P] whose rays may meet a visible cell.

        Nested grids have cells all over: there it is None.
        """
        if self.settings.num_levels > 1:
            return None
        live = ops.live_pixels(cameras, self.visible[0], self.aabb)
        return live.flatten().nonzero().squeeze(1).to(torch.int32)

    def _find_visible(self) -> None:
        self.visible_cells = self.visible.flatten().nonzero().squeeze(1)
        self._refresh()

    def _refresh(self) -> None:
        """Bring what follows from the occupancy up to date; most cells are invisible, so empty."""
        values = self.occupancy.view(-1)[self.visible_cells]
        on = self._is_on(values)
        occupied = torch.zeros_like(self.visible)
        occupied.view(-1)[self.visible_cells] = on
        for level in range(1, self.settings.num_levels):
            _cover(occupied[level - 1], occupied[level])
        # Cells that a finer level covers are looked at too, and those beside occupied ones where
        # things move: what is there for a moment is seldom met by chance.
        if self.settings.num_levels > 1 or self.is_dynamic:
            around = _grown(occupied) if self.is_dynamic else occupied
            on = around.view(-1)[self.visible_cells]
        self.num_occupied = occupied.sum()
        self.looked_at_before = on.cumsum(0, dtype=torch.int32)
        grid = ops.pack_grid(occupied, self.aabb)
        if self.num_slices > 1:
            grid = ops.slice_grid(grid, self._is_on(self.slices))
        self._keep_grid(grid)
        # Before the field has learnt anything every weight is small: the thresholds must not cut
        # all of it off (nerfacc does the same with its alpha_thre).
        mean = self._mean(values)
        self._alpha_thre.copy_(mean.clamp(max=self.alpha_thre))
        self._min_weight.copy_(mean.clamp(max=self.min_weight))

    def _is_on(self, values: Tensor) -> Tensor:
        return (values > self.threshold) | (values == UNKNOWN)

    def _keep_grid(self, grid: ops.Grid) -> None:
        """Write a grid over the last one, which a recorded step goes on reading, where it was."""
        last = self.grid
        if last.cells.shape != grid.cells.shape or last.cells.device != grid.cells.device:
            self.grid = grid
            self._alpha_thre, self._min_weight = self.threshold.clone(), self.threshold.clone()
            return
        last.cells.copy_(grid.cells)
        last.blocks.copy_(grid.blocks)
        last.empty.copy_(grid.empty)
        self.grid = replace(grid, cells=last.cells, blocks=last.blocks, empty=last.empty)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the buffers and bring what is derived from them up to date."""
        result = super().load_state_dict(*args, **kwargs)
        self._steps = int(self.steps)
        self._find_visible()
        return result

    def _apply(self, *args: Any, **kwargs: Any) -> OccGrid:
        super()._apply(*args, **kwargs)
        self._find_visible()
        return self

    def phase(self) -> Hashable:
        """Name the stride of the march, which shrinks in warm-up."""
        return self._march_so_far(training=True, recorded=True).step

    @torch.no_grad()
    def sample(
        self,
        rays: Rays,
        sigma_fn: SigmaFn,
        generator: torch.Generator | None = None,
        room: int | None = None,
    ) -> Samples:
        """Place samples in occupied cells, front to back until nothing behind them can be seen.

        Without a room a `sigma_fn` with a method `find(marching, thresholds, everything)` is left
        to find them, unless that gives None; with one, a method `at(samples)` is asked if there is
        any, of which rows behind the last sample are nobody's.
        """
        rays = rays.float()
        training = generator is not None
        march = self._march_so_far(training, recorded=room is not None)
        marching = ops.Marching(jitter(rays, generator), self.grid, march)
        if room is not None:
            return self._in_rooms(rays, sigma_fn, marching, room, training)
        thresholds = self._thresholds(training)
        seen = self._seen(sigma_fn, marching, thresholds, training)
        if seen is not None:
            return seen
        found = self._everything(rays, sigma_fn, marching, thresholds)
        samples, density = found.samples, found.density
        if training:
            self.last = [(rays, samples, density)]
            thresholds = _no_more(thresholds, _mean_opacity(found))
        keep = ops.visible_samples(samples, density, self.early_stop_eps, *thresholds)
        return select(samples, keep)

    def _in_rooms(
        self, rays: Rays, sigma_fn: SigmaFn, marching: ops.Marching, room: int, training: bool
    ) -> Samples:
        """Sample without asking the device for any number.

        Rays go to their first samples, then those that are not opaque go on: most of what rays meet
        lies behind a surface.
        """
        at = getattr(sigma_fn, "at", None)
        eps, thresholds = self.early_stop_eps, (self._alpha_thre, self._min_weight)
        rounds: list[tuple[Samples, Tensor]] = []
        found: list[tuple[Rays, Samples, Tensor]] = []
        light = begin = evaluated = None
        settings = marching.settings
        for most in (ROUND, settings.max_samples - ROUND):
            samples, reached = ops.march_on(rays, marching, MARCHED * room, most, begin)
            where = (samples.t_starts, samples.t_ends, samples.ray_indices)
            density = (sigma_fn(*where) if at is None else at(samples)).float()
            if training and not found:
                thresholds = _no_more(thresholds, self._mean_alpha(samples, density))
            found.append((rays, samples, density))
            keep, light = ops.visible_in_turn(samples, density, eps, *thresholds, light)
            rounds.append((samples, keep))
            now = samples.offsets[-1]
            evaluated = now if evaluated is None else evaluated + now
            if reached is None:
                break
            begin = torch.where(both(samples.whole, light >= eps), reached, settings.max_steps)
        assert evaluated is not None  # there is a round
        self.num_marched, self.num_evaluated = None, evaluated
        self.last = found if training else self.last
        return select_in_turn(rounds, room)

    def _seen(
        self, sigma_fn: SigmaFn, marching: ops.Marching, thresholds: Numbers, training: bool
    ) -> Samples | None:
        """Leave it to the field to find what is seen; None where it cannot or all is of interest.

        All that was visited is: before an update of the grid, and where the field fades.
        """
        find = getattr(sigma_fn, "find", None)
        before_update = (self._steps + 1) % self.settings.update_every == 0
        if find is None or (training and before_update):
            return None
        found: Found | None = find(marching, self._all_thresholds(thresholds))
        if found is None or (training and _mean_opacity(found) < max(thresholds)):
            return None
        self.num_marched, self.num_evaluated = None, found.num_evaluated
        self.last = None if training else self.last
        return found.samples

    def _everything(
        self, rays: Rays, sigma_fn: SigmaFn, marching: ops.Marching, thresholds: Numbers
    ) -> Found:
        """Visit samples; some that were not may be among them, of UNSEEN density."""
        find, least = getattr(sigma_fn, "find", None), self._all_thresholds(thresholds)
        found: Found | None = None if find is None else find(marching, least, everything=True)
        self.num_marched = None
        if found is None:
            samples = ops.march(rays, *marching)
            visited = visit(samples, sigma_fn, least.early_stop_eps, ROUND)
            sum_alpha = float(visited.sum_alpha.sum())
            found = Found(samples, visited.density, None, visited.num_evaluated, sum_alpha)
            self.num_marched = len(samples)
        self.num_evaluated = found.num_evaluated
        return found

    def _mean_alpha(self, samples: Samples, density: Tensor) -> Tensor:
        """Average the opacity of samples in a buffer; of use only where there is a threshold."""
        if self.alpha_thre == self.min_weight == 0:
            return self._alpha_thre
        return ops.mean_alpha(samples, density)

    @torch.no_grad()
    def marching(self, rays: Rays) -> tuple[ops.Marching, Thresholds]:
        """Lead rays through occupied cells; what else would be left out is for the thresholds."""
        jitters = jitter(rays.float(), None)
        marching = ops.Marching(jitters, self.grid, self._march_so_far(training=False))
        return marching, self._all_thresholds(self._thresholds(training=False))

    def _march_so_far(self, training: bool, recorded: bool = False) -> ops.March:
        """Stride through a grid that is full at first: steps shrink to their size by warm-up's end.

        Without it the first seconds go by on a few rays of very many samples. Images are rendered
        at finer steps, in proportion: in training jitter makes up for what long ones miss.
        """
        warm = min(1.0, self._steps / max(self.settings.warmup_steps, 1))
        warm = math.floor(warm * STRIDES) / STRIDES if recorded else warm
        stride = FIRST_STRIDE + (1 - FIRST_STRIDE) * warm
        finer = 1.0 if training else self.finer_views
        steps, angle = self.march.step * stride / finer, self.march.cone_angle * stride / finer
        return ops.March(steps, angle, math.ceil(self.march.max_steps * finer))

    def _thresholds(self, training: bool) -> Numbers:
        """Name the least opacity and weight of a sample, which are less where steps are shorter."""
        finer = 1.0 if training else self.finer_views
        return float(self._alpha_thre) / finer, float(self._min_weight) / finer

    def _all_thresholds(self, thresholds: Numbers) -> Thresholds:
        """Add where rays end: no sample weighs more than the transmittance in front of it."""
        return Thresholds(max(self.early_stop_eps, thresholds[1]), *thresholds)

    @torch.no_grad()
    def update(self, step: int, density_fn: DensityFn, generator: torch.Generator) -> None:
        """Look at some cells again every update_every steps.

        These are random ones, and after warm-up occupied ones too.
        """
        self.steps.fill_(step + 1)
        self._steps = step + 1
        if (step + 1) % self.settings.update_every:
            return
        cells = self._draw_cells(step, generator)
        optical_depth = self._look(density_fn, cells, generator)
        occupancy = self.occupancy.view(-1)
        # Below zero, and so the lesser, where unknown. A cell that was drawn twice fades once.
        occupancy[cells] = occupancy[cells] * self.settings.ema_decay
        occupancy.scatter_reduce_(0, cells, optical_depth, "amax")
        self._keep_what_is_seen(occupancy)
        self.threshold.copy_(
            self._mean(occupancy[self.visible_cells]).clamp(max=self.settings.occ_thre)
        )
        self._refresh()

    def _look(self, density_fn: DensityFn, cells: Tensor, generator: torch.Generator) -> Tensor:
        """Evaluate the optical depth in each cell [M]; where it changes the most of several."""
        if not self.is_dynamic:
            density = density_fn(self._points_in(cells, generator), None)
            check_field(len(cells), density)
            return density * self.march.step
        looks, moments = [], []
        for _ in range(self.settings.num_times):
            times = torch.rand(len(cells), generator=generator, device=cells.device)
            density = density_fn(self._points_in(cells, generator), times)
            check_field(len(cells), density)
            looks.append(density * self.march.step)
            moments.append(times)
        if self.num_slices > 1:
            slices = self.slices.view(-1)
            places = torch.cat([self._cubes_at(cells, times) for times in moments])
            slices[places] = slices[places] * self.settings.ema_decay
            slices.scatter_reduce_(0, places, torch.cat(looks), "amax")
        return torch.stack(looks).amax(0)

    def _keep_what_is_seen(self, occupancy: Tensor) -> None:
        """Raise the cells that the last training rays went through to what these found there.

        A random point seldom meets the matter in a cell that is mostly empty, such as one at the
        rim of a thin surface; rays that see it do. And a cell that they found empty is known.
        """
        for what in self.last or ():
            self._raise_cells(occupancy, *what)

    def _raise_cells(
        self, occupancy: Tensor, rays: Rays, samples: Samples, density: Tensor
    ) -> None:
        looked_at = (samples.t_starts, samples.t_ends, samples.ray_indices)
        used = None if samples.whole is None else used_rows(samples)
        if used is None:
            rows = (density != UNSEEN).nonzero().squeeze(1)
            looked_at = tuple(column[rows] for column in looked_at)
            density = density[rows]
        positions, _, times = sample_points(rays, *looked_at)
        cells, depth = self._cells_at(positions), density * self.march.step
        if used is not None:
            # Rows of nobody raise no cell, being below all that any knows; but each has its own:
            # they lie in one place, and a GPU would go to one cell for half a million of them.
            anywhere = torch.arange(len(cells), device=cells.device) % len(occupancy)
            cells, depth = torch.where(used, cells, anywhere), torch.where(used, depth, UNKNOWN)
        occupancy.scatter_reduce_(0, cells, depth, "amax")
        if self.num_slices > 1 and times is not None:
            self.slices.view(-1).scatter_reduce_(0, self._cubes_at(cells, times), depth, "amax")

    def _cubes_at(self, cells: Tensor, times: Tensor) -> Tensor:
        """Find the cubes [M] of 2**3 cells that hold cells [M], in the slices of times [M]."""
        n, half, levels = self.settings.resolution, self.settings.resolution // 2, len(self.visible)
        level, x, y, z = cells // n**3, cells // n**2 % n, cells // n % n, cells % n
        now = ops.slices_at(times, self.num_slices).long()
        return (((now * levels + level) * half + x // 2) * half + y // 2) * half + z // 2

    def _cells_at(self, points: Tensor) -> Tensor:
        """Find the finest cells [M] that hold points [M, 3] of the outermost box."""
        n, levels = self.settings.resolution, self.settings.num_levels
        low, high = self.corners
        unit = (points - (low + high) / 2) / ((high - low) / 2)
        level = unit.abs().amax(-1).log2().ceil().clamp(0, levels - 1)
        place = ((unit / (2.0**level)[:, None] * 0.5 + 0.5) * n).long().clamp(0, n - 1)
        x, y, z = place.unbind(-1)
        return ((level.long() * n + x) * n + y) * n + z

    def _mean(self, values: Tensor) -> Tensor:
        """Average the optical depth per step over the cells that can hold anything."""
        return values.clamp(min=0).sum() / max(len(values), 1)

    def _draw_cells(self, step: int, generator: torch.Generator) -> Tensor:
        """Pick cells that can hold anything: in warm-up each of them once, then random ones.

        After warm-up they are cells_per_update, half of them occupied ones.
        """
        device, total, settings = self.occupancy.device, len(self.visible_cells), self.settings
        num = min(settings.cells_per_update, total)
        if step < settings.warmup_steps:
            num = min(max(num, -(-total * settings.update_every // settings.warmup_steps)), total)
            return self._spread(step // settings.update_every * num, num)
        start = torch.randint(max(total, 1), (1,), generator=generator, device=device)
        return torch.cat(
            [self._spread(start, num // 2), self._draw_again(num - num // 2, generator)]
        )

    def _draw_again(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw cells to be looked at again, any where there are none, without counting them."""
        before = self.looked_at_before  # [V] how many of the visible cells up to each are such
        if not len(before):
            return self.visible_cells
        each = torch.arange(num, device=before.device)
        lots = torch.rand(num, generator=generator, device=before.device, dtype=torch.float64)
        which = ((each + lots) / num * before[-1]).int() + 1
        places = torch.searchsorted(before, which).clamp(max=len(before) - 1)
        return self.visible_cells[places]

    def _spread(self, first: int | Tensor, num: int) -> Tensor:
        """Pick num visible cells, spread out; ranges one after the other never pick one twice."""
        # The stride is prime: with the number of cells it has no divisor in common.
        places = (first + torch.arange(num, device=self.occupancy.device)) * 2654435761
        return self.visible_cells[places % max(len(self.visible_cells), 1)]

    def _points_in(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a point in each cell [M]: [M, 3]."""
        n = self.settings.resolution
        level, cell = cells // n**3, cells % n**3
        corner = torch.stack([cell // n**2, cell // n % n, cell % n], -1)
        place = torch.rand(corner.shape, generator=generator, device=cells.device)
        low, high = self.corners
        unit = (corner + place) * 2 / n - 1
        return (low + high) / 2 + unit * (2.0**level)[:, None] * (high - low) / 2

    def describe(self) -> dict[str, float]:
        """Report the share of occupied cells and how many samples the last call took.

        `marched` counts those in occupied cells, where all of these were found; `evaluated` those
        whose density was asked for.
        """
        occupied = float(self.num_occupied)
        known = {} if self.num_marched is None else {"marched": float(self.num_marched)}
        shares = {"occupied": occupied / self.occupancy.numel()}
        return shares | known | {"evaluated": float(self.num_evaluated)}


def _farthest(cameras: Cameras, aabb: Tensor, num_levels: int) -> float:
    """Find the largest distance from a camera to a corner of the outermost grid."""
    low, high = aabb.double().cpu().view(2, 3)
    middle, half = (low + high) / 2, (high - low) / 2 * 2 ** (num_levels - 1)
    away = (cameras.poses[:, :, 3].double().cpu() - middle).abs() + half
    return float(away.norm(dim=1).max())


def _check_reach(march: ops.March, near: float, end: float) -> None:
    """Raise UserError where steps are over before a distance: what lies beyond would be empty."""
    knee = march.step / march.cone_angle if march.cone_angle else math.inf  # there steps grow
    needed = max(min(end, knee) - near, 0.0) / march.step
    if end > (start := max(near, knee)):
        needed += math.log(end / start) / math.log1p(march.cone_angle)
    needed = math.ceil(needed)
    if needed > march.max_steps:
        more = f"give at least {needed}, " if needed <= MOST_STEPS else ""
        raise UserError(
            f"max_steps={march.max_steps}: rays would be over before they have crossed the scene, "
            f"which takes {needed} steps from scene.near={near:g} to {end:g}: {more}a larger "
            "scene.near or a smaller sampler.steps_per_diagonal"
        )


def _mean_opacity(found: Found) -> float:
    return found.sum_alpha / max(found.num_evaluated, 1)


def _no_more(thresholds: tuple[Any, Any], mean: Any) -> tuple[Any, Any]:
    """Limit thresholds to the mean opacity.

    A field that fades faster than the grid forgets would lose all samples, and with them every
    gradient that could bring it back.
    """
    lesser = torch.minimum if isinstance(mean, Tensor) else min
    return lesser(thresholds[0], mean), lesser(thresholds[1], mean)


def _grown(flags: Tensor) -> Tensor:
    """Mark the neighbours of cells [L, n, n, n], corner to corner, too."""
    for axis in (1, 2, 3):
        inner = flags.shape[axis] - 1
        grown = flags.clone()
        grown.narrow(axis, 1, inner).logical_or_(flags.narrow(axis, 0, inner))
        grown.narrow(axis, 0, inner).logical_or_(flags.narrow(axis, 1, inner))
        flags = grown
    return flags


def _cover(inner: Tensor, outer: Tensor) -> None:
    """Mark the cells of a level that hold occupied cells of the finer level inside it, in place."""
    n = inner.shape[0]
    pooled = torch.nn.functional.max_pool3d(inner[None, None].float(), 2)[0, 0] > 0
    middle = slice(n // 4, n // 4 + n // 2)
    outer[middle, middle, middle] |= pooled
