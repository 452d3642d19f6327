"""Boxes and grids under nerfacc's names, against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.nerfacc.grid import ray_aabb_intersect, traverse_grids

BOX = torch.tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]])
coordinate = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-3, 3, width=32), st.just(math.nan)
)
slope = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1, 1, width=32))


@np.errstate(over="ignore")
def slab(origin: list[float], direction: list[float], box: list[float]) -> tuple[float, float]:
    """Clip a line to a box in float32, axis by axis; a miss is (inf, -inf)."""
    enter, leave = -math.inf, math.inf
    sides = np.array([origin, direction, box[:3], box[3:]], np.float32)
    for o, d, low, high in zip(*sides, strict=True):
        if math.isnan(o):
            return math.inf, -math.inf
        if d == 0:
            if not low <= o < high:
                return math.inf, -math.inf
            continue
        first, second = sorted(((low - o) / d, (high - o) / d))
        enter, leave = max(enter, first), min(leave, second)
    return enter, leave


@settings(max_examples=300, deadline=None)
@given(st.tuples(*[coordinate] * 3), st.tuples(*[slope] * 3))
def test_rays_and_boxes_meet_where_each_axis_says(origin, direction):
    box = [-1.0, -0.5, -1.0, 1.0, 0.5, 2.0]
    near, far, hit = ray_aabb_intersect(
        torch.tensor([origin]), torch.tensor([direction]), torch.tensor([box])
    )
    enter, leave = slab(list(origin), list(direction), box)
    assert bool(hit) == (enter < leave and leave > 0)
    expected = (enter, leave) if hit else (math.inf, math.inf)
    assert (near.item(), far.item()) == expected


def test_distances_are_clamped_and_misses_marked():
    origins = torch.tensor([[-3.0, 0, 0], [-3.0, 5, 0], [0.0, 0, 0]])
    directions = torch.tensor([[1.0, 0, 0]] * 3)
    boxes = torch.cat([BOX, BOX + torch.tensor([9.0, 0, 0, 9.0, 0, 0])])
    near, far, hit = ray_aabb_intersect(origins, directions, boxes, 0.0, 11.5, -1.0)
    assert hit.tolist() == [[True, True], [False, False], [True, True]]
    assert near.tolist() == [[2.0, 11.0], [-1.0, -1.0], [0.0, 8.0]]
    assert far.tolist() == [[4.0, 11.5], [-1.0, -1.0], [1.0, 10.0]]


def random_rays(num: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    origins = torch.rand(num, 3, generator=generator) * 6 - 3
    targets = torch.rand(num, 3, generator=generator) * 2 - 1
    return origins, torch.nn.functional.normalize(targets - origins, dim=1)


def walked(
    origin: Tensor,
    direction: Tensor,
    grids: Tensor,
    boxes: Tensor,
    near: float,
    far: float,
    step: float,
    cone: float,
) -> tuple[list[float], bool]:
    """Walk a ray step by step in float64: the starts kept; whether rounding may decide."""
    starts, doubtful = [], False
    leaves = [slab(origin.tolist(), direction.tolist(), box.tolist())[1] for box in boxes]
    t, end = near, min(far, max(leaves))
    while t < end:
        dt = max(step, t * cone)
        middle = t + dt / 2
        point = origin.double() + middle * direction.double()
        for cells, box in zip(grids, boxes.double(), strict=True):
            shape = torch.tensor(cells.shape)
            place = (point - box[:3]) / (box[3:] - box[:3]) * shape
            doubtful |= bool(((place - place.round()).abs() < 2e-3).any())
            if ((place >= 0) & (place < shape)).all():
                x, y, z = place.long().tolist()
                if cells[x, y, z] and middle < far:
                    starts.append(t)
                break
        doubtful |= abs(middle - far) < 1e-4
        t += dt
    return starts, doubtful


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    levels=st.integers(1, 3),
    apart=st.booleans(),
    cone=st.sampled_from([0.0, 0.02]),
)
def test_traversal_keeps_the_steps_whose_middles_are_in_occupied_cells(seed, levels, apart, cone):
    generator = torch.Generator().manual_seed(seed)
    grids = torch.rand(levels, 5, 8, 3, generator=generator) < 0.6
    boxes = torch.cat([BOX * 2**i + (2.5 * i if apart else 0) for i in range(levels)])
    origins, directions = random_rays(6, seed)
    near = torch.rand(6, generator=generator)
    far = near + torch.rand(6, generator=generator) * 8
    intervals, samples, ends = traverse_grids(
        origins, directions, grids, boxes, near, far, step_size=0.1, cone_angle=cone
    )
    starts, stops = intervals.vals[intervals.is_left], intervals.vals[intervals.is_right]
    assert len(starts) == len(stops) == len(samples.vals)
    torch.testing.assert_close((starts + stops) / 2, samples.vals)
    assert (ends >= near).all()
    for ray in range(6):
        bounds = float(near[ray]), float(far[ray])
        expected, doubtful = walked(origins[ray], directions[ray], grids, boxes, *bounds, 0.1, cone)
        first, count = samples.packed_info[ray].tolist()
        assert (samples.ray_indices[first : first + count] == ray).all()
        if not doubtful:
            kept = starts[first : first + count]
            torch.testing.assert_close(kept.tolist(), expected, rtol=1e-4, atol=1e-4)


quarter = st.integers(-12, 12).map(lambda n: n / 4)


@settings(max_examples=100, deadline=None)
@given(
    origin=st.tuples(quarter, quarter, quarter),
    axis=st.integers(0, 2),
    ahead=st.booleans(),
    seed=st.integers(0, 100),
)
def test_rays_along_axes_and_faces_are_walked_to_the_last_bit(origin, axis, ahead, seed):
    """All numbers are sums of powers of two: nothing is rounded, faces included."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.rand(2, 4, 4, 4, generator=generator) < 0.5
    boxes = torch.cat([BOX, 2 * BOX])
    direction = torch.zeros(1, 3)
    direction[0, axis] = 1.0 if ahead else -1.0
    rays_o = torch.tensor([origin])
    intervals, _, _ = traverse_grids(rays_o, direction, grids, boxes, step_size=0.125)
    expected, _ = walked(rays_o[0], direction[0], grids, boxes, 0.0, math.inf, 0.125, 0.0)
    assert intervals.vals[intervals.is_left].tolist() == expected


def test_edges_that_touch_are_one():
    cells = torch.zeros(1, 4, 1, 1, dtype=torch.bool)
    cells[0, 0] = cells[0, 1] = cells[0, 3] = True
    origins, directions = (
        torch.tensor([[-3.0, 0, 0], [-3.0, 5, 0]]),
        torch.tensor([[1.0, 0, 0]] * 2),
    )
    intervals, samples, ends = traverse_grids(origins, directions, cells, BOX, step_size=0.0)
    torch.testing.assert_close(intervals.vals, torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0]))
    assert intervals.is_left.tolist() == [True, True, False, True, False]
    assert intervals.is_right.tolist() == [False, True, True, False, True]
    assert intervals.packed_info.tolist() == [[0, 5], [5, 0]]
    assert samples.packed_info.tolist() == [[0, 3], [3, 0]]
    torch.testing.assert_close(samples.vals, torch.tensor([2.25, 2.75, 3.75]))
    torch.testing.assert_close(ends, torch.tensor([4.0, 0.0]))


def test_masked_rays_have_no_samples_and_limited_ones_go_on_where_they_ended():
    cells = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    origins, directions = torch.tensor([[-3.0, 0.1, 0.1]] * 2), torch.tensor([[1.0, 0, 0]] * 2)
    mask = torch.tensor([True, False])
    seen, near = [], torch.zeros(2)
    for _ in range(12):
        _, samples, near = traverse_grids(
            origins,
            directions,
            cells,
            BOX,
            near,
            step_size=0.1,
            traverse_steps_limit=2,
            over_allocate=True,
            rays_mask=mask,
        )
        assert samples.packed_info[1, 1] == 0
        seen.append(samples.vals)
    _, whole, _ = traverse_grids(origins[:1], directions[:1], cells, BOX, step_size=0.1)
    torch.testing.assert_close(torch.cat(seen), whole.vals, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, 1e30, -1e30])
def test_hostile_rays_end(bad):
    cells = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    origins, directions = torch.full((2, 3), bad), torch.tensor([[1.0, 0, 0], [0.0, 0, 0]])
    _, samples, _ = traverse_grids(origins, directions, cells, BOX, step_size=1e-3)
    assert len(samples.vals) == 0


def test_no_rays_have_no_samples():
    cells = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    intervals, samples, ends = traverse_grids(torch.empty(0, 3), torch.empty(0, 3), cells, BOX)
    assert intervals.packed_info.shape == samples.packed_info.shape == (0, 2)
    assert len(intervals.vals) == len(samples.vals) == len(ends) == 0


def test_changes_in_place_are_seen():
    cells = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    origins, directions = random_rays(50, 0)
    full = len(traverse_grids(origins, directions, cells, BOX, step_size=0.1)[1].vals)
    cells[:, :2] = False
    assert 0 < len(traverse_grids(origins, directions, cells, BOX, step_size=0.1)[1].vals) < full


def test_mistakes_are_told():
    cells, rays = torch.ones(1, 4, 4, 4, dtype=torch.bool), torch.ones(2, 3)
    with pytest.raises(UserError, match="aabbs has shape"):
        traverse_grids(rays, rays, cells, torch.cat([BOX, BOX]))
    with pytest.raises(UserError, match="rays_o has shape"):
        ray_aabb_intersect(rays[0], rays, BOX)
    with pytest.raises(UserError, match="traverse_steps_limit"):
        traverse_grids(rays, rays, cells, BOX, over_allocate=True)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rays_d": torch.ones(0, 3)}, r"rays_d has shape \[0, 3\], must be \[100, 3\]"),
        ({"rays_d": torch.ones(50, 3)}, r"rays_d has shape \[50, 3\], must be \[100, 3\]"),
        ({"rays_d": torch.ones(1, 3)}, "rays_d has shape"),
        ({"near_planes": torch.zeros(10)}, r"near_planes has shape \[10\], must be \[100\]"),
        ({"near_planes": torch.zeros(())}, "near_planes has shape"),
        ({"far_planes": torch.ones(101)}, "far_planes has shape"),
        ({"far_planes": torch.ones(100, 1)}, "far_planes has shape"),
        ({"rays_mask": torch.ones(10, dtype=torch.bool)}, "rays_mask has shape"),
    ],
)
def test_rays_that_do_not_go_together_are_refused(changes, line):
    cells = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    rays = {"rays_o": torch.zeros(100, 3), "rays_d": torch.ones(100, 3)}
    with pytest.raises(UserError, match=line):
        traverse_grids(binaries=cells, aabbs=BOX, **{**rays, **changes})
    if "rays_d" in changes:
        with pytest.raises(UserError, match=line):
            ray_aabb_intersect(aabbs=BOX, **{**rays, **changes})
