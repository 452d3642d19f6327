"""An occupancy grid that learns from a field, under nerfacc's names, over `nerftrain.ops.march`.

NerfAcc, arXiv:2305.04966; Instant-NGP, arXiv:2201.05989, section 5.2 and appendix E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nerftrain.checks import check_shape
from nerftrain.errors import UserError
from nerftrain.nerfacc.estimators.base import AbstractEstimator
from nerftrain.nerfacc.grid import check_rays, march_grids, packed_info_of
from nerftrain.nerfacc.volrend import render_visibility_from_alpha
from nerftrain.ops.march import nested_boxes, visible_samples
from nerftrain.ops.visit import select
from nerftrain.types import Samples

HIDDEN = -1.0  # the occupancy of cells that no camera sees


class OccGridEstimator(AbstractEstimator):
    """Nested grids of cells, of which rays visit the occupied ones.

    `binaries` [levels, *resolution] (bool) says which cells are occupied and `occs`
    [levels * cells] how much they have lately held; both are in the state dict, under nerfacc's
    names. Set `max_samples_per_ray` to hold every ray to so many samples.
    """

    DIM: int = 3
    max_samples_per_ray: int | None = None

    resolution: Tensor
    aabbs: Tensor
    occs: Tensor
    binaries: Tensor
    grid_coords: Tensor
    grid_indices: Tensor

    def __init__(
        self,
        roi_aabb: list[int] | Tensor,
        resolution: int | list[int] | Tensor = 128,
        levels: int = 1,
        **kwargs: Any,
    ) -> None:
        """Lay the finest level over a box; each further level is twice as large about its centre.

        Args:
            roi_aabb: [6] xmin ymin zmin xmax ymax zmax, world units.
            resolution: cells per side, one number or one per axis.
            levels: how many; 16 at most.
            kwargs: none; `contraction_type` of nerfacc before 0.4 is refused by its name.

        Raises:
            UserError: a box or a resolution of another shape, or an unknown argument.
        """
        super().__init__()
        if kwargs:
            raise UserError(
                f"OccGridEstimator: {', '.join(kwargs)} is not supported; contract positions in "
                "your field, or use more levels"
            )
        sides = torch.as_tensor([resolution] * 3 if isinstance(resolution, int) else resolution)
        box = torch.as_tensor(roi_aabb, dtype=torch.float32)
        if sides.shape != (3,) or int(sides.min()) < 1:
            raise UserError(f"resolution={resolution}: must be a number above 0, or three")
        if box.shape != (6,) or not bool((box[:3] < box[3:]).all()):
            raise UserError(f"roi_aabb={roi_aabb}: must be xmin ymin zmin xmax ymax zmax")
        self.cells_per_lvl = int(sides.prod())
        self.levels = levels
        boxes = torch.tensor(nested_boxes(box.tolist(), levels)).view(levels, 6)
        self.register_buffer("resolution", sides.to(box.device, torch.int32))
        self.register_buffer("aabbs", boxes.to(box.device))
        self.register_buffer("occs", torch.zeros(levels * self.cells_per_lvl, device=box.device))
        shape = (levels, *sides.tolist())
        empty = torch.zeros(shape, dtype=torch.bool, device=box.device)
        self.register_buffer("binaries", empty)
        indices = torch.arange(self.cells_per_lvl, device=box.device)
        places = torch.stack(torch.unravel_index(indices, shape[1:]), -1)
        self.register_buffer("grid_coords", places, persistent=False)
        self.register_buffer("grid_indices", indices, persistent=False)

    @torch.no_grad()
    def sampling(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        sigma_fn: Callable | None = None,
        alpha_fn: Callable | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        t_min: Tensor | None = None,
        t_max: Tensor | None = None,
        render_step_size: float = 1e-3,
        early_stop_eps: float = 1e-4,
        alpha_thre: float = 0.0,
        stratified: bool = False,
        cone_angle: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Place samples in occupied cells; with a field, those alone that can be seen.

        No gradients.

        Args:
            rays_o: [n_rays, 3] origins.
            rays_d: [n_rays, 3] directions of unit length.
            sigma_fn: (t_starts [N], t_ends [N], ray_indices [N]) to densities [N]. It is not
                called where there are no samples.
            alpha_fn: the same to opacities [N]; give one of the two or none.
            near_plane: distance, world units.
            far_plane: distance.
            t_min: [n_rays], where later than near_plane.
            t_max: [n_rays], where sooner than far_plane.
            render_step_size: world units.
            early_stop_eps: samples behind less transmittance are left out.
            alpha_thre: samples of less opacity are left out, or of less than the mean of `occs`.
            stratified: shifts every ray's samples by a random share of a step.
            cone_angle: steps grow to it times the distance.

        Returns:
            ray_indices [N] int64, ascending, t_starts [N] and t_ends [N].

        Raises:
            UserError: tensors of other shapes or on different devices; a field that gives another
                number of values than there are samples.
        """
        check_rays(rays_o, rays_d, t_min=t_min, t_max=t_max)
        near = torch.full_like(rays_o[:, 0], near_plane)
        far = torch.full_like(near, far_plane)
        near = near if t_min is None else torch.maximum(near, t_min)
        far = far if t_max is None else torch.minimum(far, t_max)
        if stratified:
            near = near + torch.rand_like(near) * render_step_size
        samples, _ = march_grids(
            rays_o,
            rays_d,
            self.binaries,
            self.aabbs,
            near,
            far,
            render_step_size,
            cone_angle,
            self.max_samples_per_ray,
        )
        field = sigma_fn or alpha_fn
        if field is not None and len(samples) and (alpha_thre > 0 or early_stop_eps > 0):
            values = field(samples.t_starts, samples.t_ends, samples.ray_indices)
            name = "sigma_fn" if sigma_fn is not None else "alpha_fn"
            if values.shape != samples.t_starts.shape:
                raise UserError(
                    f"{name} gave shape {list(values.shape)}: must be [{len(samples)}], a value "
                    "per sample (squeeze(-1)?)"
                )
            # A field that has learnt nothing yet is faint everywhere: not all may be left out.
            thresholds = early_stop_eps, min(alpha_thre, float(self.occs.mean()))
            see = _seen_by_density if sigma_fn is not None else _seen_by_opacity
            samples = select(samples, see(samples, values, *thresholds))
        return samples.ray_indices, samples.t_starts, samples.t_ends

    @torch.no_grad()
    def update_every_n_steps(
        self,
        step: int,
        occ_eval_fn: Callable,
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
    ) -> None:
        """Learn from a field every n steps of training.

        A cell is occupied where it has lately held more than occ_thre, or more than the mean of
        all cells that cameras see.

        Args:
            step: of training.
            occ_eval_fn: positions [N, 3] to what they hold, [N, 1] or [N]: density times step.
            occ_thre: the threshold, at most.
            ema_decay: of what a cell has held, from update to update.
            warmup_steps: until then all cells are looked at, afterwards a quarter as many at
                random and as many occupied ones.
            n: steps.

        Raises:
            RuntimeError: the estimator is not in training mode.
        """
        if not self.training:
            raise RuntimeError(
                "update_every_n_steps is for training: call train() first, or _update()"
            )
        if step % n == 0:
            self._update(step, occ_eval_fn, occ_thre, ema_decay, warmup_steps)

    @torch.no_grad()
    def _update(
        self,
        step: int,
        occ_eval_fn: Callable,
        occ_thre: float = 0.01,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
    ) -> None:
        for level in range(self.levels):
            first = level * self.cells_per_lvl
            held = self.occs[first : first + self.cells_per_lvl]
            cells = self.grid_indices if step < warmup_steps else self._drawn(level)
            cells = cells[held[cells] != HIDDEN]
            place = torch.rand(len(cells), 3, device=held.device)
            points = self._world(level, (self.grid_coords[cells] + place) / self.resolution)
            found = occ_eval_fn(points).reshape(-1).to(held)
            remedy = "occ_eval_fn gives a value per position"
            check_shape("what occ_eval_fn gave", found, (len(cells),), remedy)
            # Twice the same cell: it decays once, and the most that was found counts.
            held[cells] = held[cells] * ema_decay
            held.scatter_reduce_(0, cells, found, "amax")
        seen = self.occs[self.occs >= 0]
        threshold = seen.mean().clamp(max=occ_thre) if len(seen) else occ_thre
        self.binaries = (self.occs > threshold).view(self.binaries.shape)

    def _drawn(self, level: int) -> Tensor:
        """Draw cells of a level: a quarter of its number at random, and as many occupied ones."""
        count, device = self.cells_per_lvl // 4, self.occs.device
        anywhere = torch.randint(self.cells_per_lvl, (count,), device=device)
        occupied = self.binaries[level].flatten().nonzero().squeeze(1)
        if count < len(occupied):
            occupied = occupied[torch.randint(len(occupied), (count,), device=device)]
        return torch.cat([anywhere, occupied])

    def _world(self, level: int, unit: Tensor) -> Tensor:
        low, high = self.aabbs[level].split(3)
        return low + unit * (high - low)

    @torch.no_grad()
    def mark_invisible_cells(
        self,
        K: Tensor,  # noqa: N803
        c2w: Tensor,
        width: int,
        height: int,
        near_plane: float = 0.0,
        chunk: int = 32**3,
    ) -> None:
        """Rule out, once before training, cells that no camera sees or that are too near to one.

        A cell counts by its centre. Its occupancy becomes -1, and no update looks at it again.

        Args:
            K: [n, 3, 3] or [1, 3, 3] intrinsics, pixels.
            c2w: [n, 3, 4] or [n, 4, 4] camera to world, OpenCV axes (x right, y down, z ahead).
            width: pixels.
            height: pixels.
            near_plane: what a camera sees nearer than this is too near.
            chunk: how many cells are projected at once.

        Raises:
            UserError: tensors of other shapes.
        """
        if K.shape[1:] != (3, 3) or c2w.shape[1:] not in ((3, 4), (4, 4)):
            raise UserError(
                f"K is {list(K.shape)} and c2w {list(c2w.shape)}: must be [n, 3, 3] and [n, 3, 4]"
            )
        if len(K) not in (1, len(c2w)):
            raise UserError(f"{len(K)} intrinsics for {len(c2w)} cameras: must be as many, or one")
        centers = (self.grid_coords + 0.5) / self.resolution
        valid = []
        for level in range(self.levels):
            for unit in centers.split(chunk):
                valid.append(_covered(self._world(level, unit), K, c2w, width, height, near_plane))
        self.occs = torch.where(torch.cat(valid), 0.0, HIDDEN)


def _covered(
    points: Tensor, intrinsics: Tensor, poses: Tensor, width: int, height: int, near: float
) -> Tensor:
    """Tell which points [N, 3] some camera sees and none sees nearer than near."""
    offsets = points[None] - poses[:, None, :3, 3]  # [C, N, 3]
    u, v, depth = (offsets @ poses[:, :3, :3] @ intrinsics.mT).unbind(-1)
    x, y = u / depth, v / depth
    seen = (depth >= 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return seen.any(0) & ~(seen & (depth < near)).any(0)


def _seen_by_density(samples: Samples, sigmas: Tensor, eps: float, alpha_thre: float) -> Tensor:
    return visible_samples(samples, sigmas, eps, alpha_thre, 0.0)


def _seen_by_opacity(samples: Samples, alphas: Tensor, eps: float, alpha_thre: float) -> Tensor:
    return render_visibility_from_alpha(
        alphas, packed_info_of(samples), early_stop_eps=eps, alpha_thre=alpha_thre
    )
