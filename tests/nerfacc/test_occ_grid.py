"""The occupancy-grid estimator: what it samples, learns, rules out and keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.nerfacc.estimators.occ_grid import OccGridEstimator

BOX = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
RADIUS = 0.6


def ball(points: Tensor) -> Tensor:
    return (points.norm(dim=-1, keepdim=True) < RADIUS).float()


def rays(num: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=1) * 3
    targets = torch.rand(num, 3, generator=generator) - 0.5
    return origins, torch.nn.functional.normalize(targets - origins, dim=1)


def learnt(resolution: int | list[int] = 32, levels: int = 1, updates: int = 4) -> OccGridEstimator:
    torch.manual_seed(0)
    estimator = OccGridEstimator(BOX, resolution, levels)
    for step in range(updates):
        estimator.update_every_n_steps(step, ball, n=1)
    return estimator


def points_of(samples: tuple[Tensor, Tensor, Tensor], origins: Tensor, directions: Tensor):
    indices, starts, ends = samples
    return origins[indices] + ((starts + ends) / 2)[:, None] * directions[indices]


@pytest.mark.parametrize("resolution", [32, [20, 33, 16], torch.tensor([16, 16, 48])])
@pytest.mark.parametrize("levels", [1, 3])
def test_it_learns_where_the_field_is(resolution, levels):
    estimator, (origins, directions) = learnt(resolution, levels), rays()
    samples = estimator.sampling(origins, directions, render_step_size=0.02)
    radius = points_of(samples, origins, directions).norm(dim=1)
    assert len(radius) > 1000
    assert (radius < RADIUS + 0.25).all()  # a cell's diagonal further out at most
    assert [name for name, _ in estimator.named_buffers()] == [
        "_dummy",
        "resolution",
        "aabbs",
        "occs",
        "binaries",
        "grid_coords",
        "grid_indices",
    ]
    assert set(estimator.state_dict()) == {"resolution", "aabbs", "occs", "binaries"}


@pytest.mark.parametrize("kind", ["sigma", "alpha"])
def test_what_is_hidden_or_transparent_is_left_out(kind):
    estimator, (origins, directions) = learnt(), rays()

    def sigma_fn(starts: Tensor, ends: Tensor, indices: Tensor) -> Tensor:
        return 100 * ball(points_of((indices, starts, ends), origins, directions))[:, 0]

    def alpha_fn(starts: Tensor, ends: Tensor, indices: Tensor) -> Tensor:
        return 1 - torch.exp(-sigma_fn(starts, ends, indices) * (ends - starts))

    field = {"sigma": {"sigma_fn": sigma_fn}, "alpha": {"alpha_fn": alpha_fn}}[kind]
    every = estimator.sampling(origins, directions, render_step_size=0.02)
    seen = estimator.sampling(
        origins, directions, **field, render_step_size=0.02, early_stop_eps=1e-2, alpha_thre=0.5
    )
    assert 0 < len(seen[0]) < 0.5 * len(every[0])
    alphas = alpha_fn(seen[1], seen[2], seen[0])
    for ray in seen[0].unique():
        here = alphas[seen[0] == ray]
        assert (here >= min(0.5, float(estimator.occs.mean()))).all()
        assert torch.cat([torch.ones(1), (1 - here).cumprod(0)[:-1]]).min() >= 1e-2 * 0.99


def test_rays_begin_and_end_where_they_are_told():
    estimator, (origins, directions) = learnt(), rays()
    t_min, t_max = torch.full((64,), 2.6), torch.full((64,), 2.9)
    _, starts, ends = estimator.sampling(
        origins, directions, t_min=t_min, t_max=t_max, render_step_size=0.02
    )
    assert len(starts)
    assert starts.min() >= 2.6
    assert ((starts + ends) / 2).max() < 2.9
    estimator.max_samples_per_ray = 3
    indices, _, _ = estimator.sampling(origins, directions, render_step_size=0.02)
    assert indices.bincount().max() == 3


def test_stratified_samples_are_shifted_by_less_than_a_step():
    estimator, (origins, directions) = learnt(), rays()
    still = estimator.sampling(origins, directions, render_step_size=0.1)
    moved = estimator.sampling(origins, directions, render_step_size=0.1, stratified=True)
    share = moved[1] / 0.1 % 1
    assert share.std() > 0.1
    assert torch.allclose(still[1] / 0.1, (still[1] / 0.1).round(), atol=1e-3)


def test_cells_that_no_camera_sees_or_that_are_too_near_are_ruled_out():
    estimator = OccGridEstimator(BOX, 16, 2)
    intrinsics = torch.tensor([[[50.0, 0, 50], [0, 50, 50], [0, 0, 1]]])
    pose = torch.eye(4)[None, :3].clone()
    pose[0, 2, 3] = -1.5  # looks along +z from behind the box
    estimator.mark_invisible_cells(intrinsics, pose, 100, 100, near_plane=1.0)
    occs = estimator.occs.view(2, 16, 16, 16)
    centers = estimator._world(0, (estimator.grid_coords + 0.5) / 16).view(16, 16, 16, 3)
    depth = centers[..., 2] + 1.5
    sight = (centers[..., :2].abs().amax(-1) < depth) & (depth >= 1.0)
    near = (centers[..., :2].abs().amax(-1) < depth) & (depth < 1.0)
    assert torch.equal(occs[0] == 0, sight & ~near)
    assert (occs[1][:, :, :3] == -1).all()
    hidden = estimator.occs == -1
    estimator.update_every_n_steps(0, lambda x: torch.ones(len(x), 1))
    assert torch.equal(estimator.occs == -1, hidden)
    assert not estimator.binaries.flatten()[hidden].any()


def test_after_warm_up_empty_cells_are_forgotten():
    estimator = learnt()
    before = int(estimator.binaries.sum())
    for step in range(300, 460):
        estimator.update_every_n_steps(step, lambda x: ball(2 * x), n=1)
    assert before > 1000
    assert (
        0 < int(estimator.binaries.sum()) < before / 4
    )  # half the radius, an eighth of the volume


def test_a_state_dict_restores_it():
    estimator, (origins, directions) = learnt(levels=2), rays()
    other = OccGridEstimator(BOX, 32, 2)
    other.load_state_dict(estimator.state_dict())
    for ours, theirs in zip(
        other.sampling(origins, directions, render_step_size=0.05),
        estimator.sampling(origins, directions, render_step_size=0.05),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_the_field_is_not_asked_about_nothing():
    estimator, (origins, directions) = OccGridEstimator(BOX), rays()

    def never(*_: Tensor) -> Tensor:
        raise AssertionError

    indices, starts, ends = estimator.sampling(origins, directions, sigma_fn=never)
    assert len(indices) == len(starts) == len(ends) == 0
    assert indices.dtype == torch.int64


def test_mistakes_are_told():
    estimator, (origins, directions) = learnt(), rays()
    with pytest.raises(UserError, match=r"sigma_fn gave shape .*squeeze"):
        estimator.sampling(
            origins, directions, sigma_fn=lambda s, e, i: s[:, None], render_step_size=0.1
        )
    with pytest.raises(RuntimeError, match="training"):
        estimator.eval().update_every_n_steps(0, ball)
    with pytest.raises(UserError, match="contraction_type"):
        OccGridEstimator(BOX, contraction_type="x")
    with pytest.raises(UserError, match="roi_aabb"):
        OccGridEstimator(BOX[:4])
    with pytest.raises(UserError, match="resolution"):
        OccGridEstimator(BOX, [4, 4])
    with pytest.raises(UserError, match="2 intrinsics"):
        estimator.mark_invisible_cells(
            torch.eye(3).repeat(2, 1, 1), torch.eye(4).repeat(3, 1, 1), 4, 4
        )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rays_d": torch.ones(0, 3)}, r"rays_d has shape \[0, 3\], must be \[64, 3\]"),
        ({"rays_d": torch.ones(32, 3)}, "rays_d has shape"),
        ({"rays_o": torch.ones(3)}, "rays_o has shape"),
        ({"t_min": torch.zeros(10)}, r"t_min has shape \[10\], must be \[64\]"),
        ({"t_max": torch.ones(1)}, "t_max has shape"),
    ],
)
def test_rays_that_do_not_go_together_are_refused(changes, line):
    arguments = dict(zip(("rays_o", "rays_d"), rays(), strict=True)) | changes
    with pytest.raises(UserError, match=line):
        learnt().sampling(**arguments, render_step_size=0.1)


@pytest.mark.parametrize("wrong", [lambda x: x[:5], lambda x: x.repeat(2, 1)])
def test_nothing_is_learnt_from_another_number_of_values(wrong):
    with pytest.raises(UserError, match="occ_eval_fn gave has shape"):
        OccGridEstimator(BOX, 16).update_every_n_steps(0, lambda x: wrong(ball(x)))
