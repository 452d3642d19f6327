"""Rays through boxes and through grids of cells, under nerfacc's names, over `nerftrain.ops.march`.

Which samples a ray has depends on its lattice of steps alone, t(k + 1) = t(k) + max(step_size,
t(k) cone_angle) from its near plane on, not on the empty space that was skipped before them
(NerfAcc, arXiv:2305.04966; Instant-NGP, arXiv:2201.05989, appendix E.1).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from nerftrain.checks import check_shape
from nerftrain.errors import UserError
from nerftrain.nerfacc.data_specs import RayIntervals, RaySamples
from nerftrain.nerfacc.pack import pack_info
from nerftrain.ops import march as ops
from nerftrain.types import Rays, Samples

MAX_STEPS = 2**24  # of a ray's lattice: float32 counts no further, and no march is endless


@torch.no_grad()
def ray_aabb_intersect(
    rays_o: Tensor,
    rays_d: Tensor,
    aabbs: Tensor,
    near_plane: float = -float("inf"),
    far_plane: float = float("inf"),
    miss_value: float = float("inf"),
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where rays enter and leave boxes (the slab test).

    A box behind a ray's origin is missed; one around it is entered before it, at a negative
    distance. A ray along a box's face is inside on the lower face. NaN misses. No gradients.

    Args:
        rays_o: [n_rays, 3] origins.
        rays_d: [n_rays, 3] directions; distances are in units of their lengths.
        aabbs: [m, 6] xmin ymin zmin xmax ymax zmax.
        near_plane: distances are clamped to it from below.
        far_plane: distances are clamped to it from above.
        miss_value: both distances of a ray that misses.

    Returns:
        t_mins [n_rays, m], t_maxs [n_rays, m] and hits [n_rays, m], bool.

    Raises:
        UserError: tensors of other shapes.
    """
    check_rays(rays_o, rays_d)
    check_shape("aabbs", aabbs, ("m", 6))
    origins, directions = rays_o[:, None], rays_d[:, None]
    low, high = aabbs[:, :3].to(rays_o), aabbs[:, 3:].to(rays_o)
    first, second = (low - origins) / directions, (high - origins) / directions
    # Along an axis by which a ray never moves it is within the slab everywhere or nowhere.
    still, inside = directions == 0, (origins >= low) & (origins < high)
    lost = torch.inf
    enter = torch.where(still, torch.where(inside, -lost, lost), torch.minimum(first, second))
    leave = torch.where(still, torch.where(inside, lost, -lost), torch.maximum(first, second))
    t_mins, t_maxs = enter.amax(-1), leave.amin(-1)  # they keep a NaN, which then compares false
    hits = (t_mins < t_maxs) & (t_maxs > 0)
    t_mins, t_maxs = (t.clamp(near_plane, far_plane) for t in (t_mins, t_maxs))
    return (
        torch.where(hits, t_mins, miss_value),
        torch.where(hits, t_maxs, miss_value),
        hits,
    )


@torch.no_grad()
def traverse_grids(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near_planes: Tensor | None = None,
    far_planes: Tensor | None = None,
    step_size: float | None = 1e-3,
    cone_angle: float | None = 0.0,
    traverse_steps_limit: int | None = None,
    over_allocate: bool | None = False,
    rays_mask: Tensor | None = None,
    t_sorted: Tensor | None = None,
    t_indices: Tensor | None = None,
    hits: Tensor | None = None,
) -> tuple[RayIntervals, RaySamples, Tensor]:
    """March rays through grids; samples lie where their midpoints are in occupied cells.

    Where boxes overlap the first of them counts. No gradients.

    Args:
        rays_o: [n_rays, 3] origins, float32.
        rays_d: [n_rays, 3] directions of unit length.
        binaries: [m, resx, resy, resz] bool, the occupied cells of m grids; at most 16.
        aabbs: [m, 6] their boxes.
        near_planes: [n_rays], zero by default.
        far_planes: [n_rays], without end by default.
        step_size: world units; at most 0 for one sample per occupied cell on the way.
        cone_angle: steps grow to it times the distance.
        traverse_steps_limit: the most samples of a ray; None or at most 0 for any number.
        over_allocate: accepted, and without effect but for its need of a limit: the samples'
            number is always known before they are written.
        rays_mask: [n_rays] bool; the other rays have no samples.
        t_sorted: accepted and not needed, as are t_indices and hits.
        t_indices: see t_sorted.
        hits: see t_sorted.

    Returns:
        The intervals' edges, where intervals that touch share one; the samples' midpoints, both
        flattened with packed_info and ray_indices; and [n_rays] the distance at which each march
        ended, from which another call can take it up.

    Raises:
        UserError: tensors of other shapes or on different devices, over_allocate without a limit.
    """
    samples, ends = march_grids(
        rays_o,
        rays_d,
        binaries,
        aabbs,
        near_planes,
        far_planes,
        step_size or 0.0,
        cone_angle or 0.0,
        traverse_steps_limit,
        over_allocate or False,
        rays_mask,
    )
    return _edges_of(samples), _samples_of(samples), ends


def march_grids(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near_planes: Tensor | None = None,
    far_planes: Tensor | None = None,
    step_size: float = 1e-3,
    cone_angle: float = 0.0,
    limit: int | None = None,
    over_allocate: bool = False,
    rays_mask: Tensor | None = None,
) -> tuple[Samples, Tensor]:
    """March as `traverse_grids` does, to packed samples and where each march ended."""
    columns = {"near_planes": near_planes, "far_planes": far_planes, "rays_mask": rays_mask}
    check_rays(rays_o, rays_d, **columns)
    check_shape("binaries", binaries, ("m", "resx", "resy", "resz"))
    check_shape("aabbs", aabbs, (binaries.shape[0], 6), "a box for each grid")
    if over_allocate and not (limit and limit > 0):
        raise UserError("over_allocate=True: needs traverse_steps_limit above 0")
    near = torch.zeros_like(rays_o[:, 0]) if near_planes is None else near_planes
    far = torch.full_like(near, torch.inf) if far_planes is None else far_planes
    if rays_mask is not None:
        far = torch.where(rays_mask, far, near)
    rays = Rays(rays_o.float(), rays_d.float(), near.float(), far.float())
    most = limit if limit and limit > 0 else MAX_STEPS
    march = ops.March(max(step_size, 0.0), cone_angle, MAX_STEPS, most)
    still = torch.zeros_like(rays.near)
    return ops.march_to(rays, still, _packed(binaries, aabbs), march)


def check_rays(rays_o: Tensor, rays_d: Tensor, **columns: Tensor | None) -> None:
    """Raise UserError for rays [R, 3] and what there is of each [R], unless they go together."""
    check_shape("rays_o", rays_o, ("n_rays", 3))
    check_shape("rays_d", rays_d, (len(rays_o), 3), "a direction for each of rays_o")
    for name, column in columns.items():
        if column is not None:
            check_shape(name, column, (len(rays_o),), "a value for each of rays_o")


def _packed(binaries: Tensor, aabbs: Tensor) -> ops.Grid:
    if binaries.is_inference() or aabbs.is_inference():  # they do not count their changes
        return _pack(binaries, aabbs)
    # Their counts of changes in place tell whether tensors still hold what was packed.
    return _cached(_Same(binaries), _Same(aabbs))


class _Same:
    """A tensor that equals itself alone, and only until it changes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.key = (id(tensor), tensor._version)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.key == other.key


@lru_cache(maxsize=4)
def _cached(binaries: _Same, aabbs: _Same) -> ops.Grid:
    # The cache holds on to the tensors, so that none of another grid can get the id of one.
    return _pack(binaries.tensor, aabbs.tensor)


def _pack(binaries: Tensor, aabbs: Tensor) -> ops.Grid:
    return ops.pack_grid(binaries.bool(), aabbs.double().flatten().tolist())


def _edges_of(samples: Samples) -> RayIntervals:
    """List the edges of intervals; those that touch share one."""
    starts, ends, rays = samples.t_starts, samples.t_ends, samples.ray_indices
    opens = torch.ones(len(samples), dtype=torch.bool, device=starts.device)
    opens[1:] = (starts[1:] != ends[:-1]) | (rays[1:] != rays[:-1])
    right = torch.arange(len(samples), device=starts.device) + opens.cumsum(0)  # of each sample
    total = len(samples) + int(opens.sum())
    edges = starts.new_empty(total)
    ray_indices = rays.new_empty(total)
    is_left, is_right = (
        torch.zeros(total, dtype=torch.bool, device=starts.device) for _ in range(2)
    )
    for place, values in ((right - 1, starts), (right, ends)):
        edges[place] = values
        ray_indices[place] = rays
    is_left[right - 1] = True
    is_right[right] = True
    packed_info = pack_info(ray_indices, len(samples.offsets) - 1)
    return RayIntervals(edges, packed_info, ray_indices, is_left, is_right)


def packed_info_of(samples: Samples) -> Tensor:
    """Tell where each ray's samples begin and how many there are: [R, 2]."""
    return torch.stack([samples.offsets[:-1], samples.offsets.diff()], -1)


def _samples_of(samples: Samples) -> RaySamples:
    return RaySamples(
        (samples.t_starts + samples.t_ends) * 0.5,
        packed_info_of(samples),
        samples.ray_indices,
        torch.ones_like(samples.ray_indices, dtype=torch.bool),
    )
