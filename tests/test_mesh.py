from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nerftrain import mesh
from nerftrain.cameras import image_rays, look_at
from nerftrain.errors import UserError
from nerftrain.types import Cameras

trimesh = pytest.importorskip("trimesh", reason="exports: pip install 'nerftrain[export]'")
pytest.importorskip("skimage", reason="exports: pip install 'nerftrain[export]'")

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
RADIUS, SIZE = 1.0, 96


def around(count: int) -> Cameras:
    """Place cameras evenly on a sphere of radius 4 (a golden spiral), looking at its middle."""
    place = torch.arange(count) + 0.5
    height, turn = 1 - 2 * place / count, place * math.pi * (1 + math.sqrt(5))
    flat = (1 - height.square()).sqrt()
    positions = 4 * torch.stack([flat * turn.cos(), flat * turn.sin(), height], 1)
    poses = look_at(positions, torch.zeros(3), torch.tensor([0.3, 0.1, 1.0]))
    return Cameras(
        poses=poses,
        intrinsics=torch.tensor([150.0, 150.0, SIZE / 2, SIZE / 2]).repeat(count, 1),
        widths=torch.full((count,), SIZE),
        heights=torch.full((count,), SIZE),
    )


def to_sphere(origins: Tensor, directions: Tensor, center: Tensor, radius: float) -> Tensor:
    offset = origins - center
    middle = -(offset * directions).sum(1)
    rest = radius**2 - offset.square().sum(1) + middle.square()
    return torch.where(rest > 0, middle - rest.clamp_min(0).sqrt(), torch.inf)


def spheres(*balls: tuple[tuple[float, float, float], float], count: int = 24) -> mesh.DepthViews:
    """See balls, coloured by where on them one looks."""
    cameras = around(count)
    depths, colors = [], []
    for index in range(count):
        rays = image_rays(cameras, index, 0.0, 10.0)
        hits = [to_sphere(rays.origins, rays.directions, torch.tensor(c), r) for c, r in balls]
        depth = torch.stack(hits).amin(0)
        points = rays.origins + rays.directions * depth.nan_to_num(posinf=0)[:, None]
        depths.append(depth.view(SIZE, SIZE))
        colors.append((127 * (1 + points.clamp(-1, 1))).byte().view(SIZE, SIZE, 3))
    return mesh.DepthViews(cameras, depths, colors)


@pytest.fixture(scope="module")
def ball() -> tuple[mesh.Mesh, mesh.Grid]:
    views = spheres(((0.0, 0.0, 0.0), RADIUS))
    grid = mesh.Grid.over(mesh.tight_box(views, BOX), 48)
    return mesh.extract(views, grid), grid


def test_points_of_a_view_lie_on_what_it_sees_and_project_back_to_their_pixels():
    views = spheres(((0.2, -0.1, 0.3), 0.8))
    points, colors = views.points(5)
    distance = (points - torch.tensor([0.2, -0.1, 0.3])).norm(dim=1)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.8), atol=1e-5, rtol=0)
    torch.testing.assert_close(colors.float(), 127 * (1 + points.clamp(-1, 1)), atol=1.01, rtol=0)
    inside, pixels, distances = views.behind(5, points)
    assert inside.all()
    assert torch.equal(pixels, views.depths[5].flatten().isfinite().nonzero().squeeze(1))
    torch.testing.assert_close(distances, views.depths[5].flatten()[pixels])


def test_what_is_behind_a_camera_or_beside_its_image_is_not_in_it():
    views = spheres(((0.0, 0.0, 0.0), RADIUS), count=1)
    pose = views.cameras.poses[0]
    behind, beside = pose[:, 3] + pose[:, 2], pose[:, 3] - pose[:, 2] + 2 * pose[:, 0]
    inside, pixels, distances = views.behind(0, torch.stack([behind, beside]))
    assert not inside.any()
    assert len(pixels) == len(distances) == 0


def test_the_surface_of_a_sphere_is_found_to_a_fraction_of_a_voxel(ball):
    found, grid = ball
    radii = np.linalg.norm(found.vertices, axis=1)
    assert abs(radii - RADIUS).max() < 0.5 * grid.voxel
    assert abs(radii - RADIUS).mean() < 0.15 * grid.voxel


def test_a_mesh_is_closed_and_faces_outwards(ball):
    whole = trimesh.Trimesh(ball[0].vertices, ball[0].faces, process=False)
    assert whole.is_watertight
    assert whole.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.02)


def test_vertices_have_the_colours_that_views_see_there(ball):
    truth = 127 * (1 + ball[0].vertices.clip(-1, 1))
    assert abs(ball[0].colors - truth).max() < 8


def test_specks_in_the_air_are_left_out(monkeypatch):
    center = np.array([1.1, 1.1, 1.1])
    views = spheres(((0.0, 0.0, 0.0), RADIUS), ((1.1, 1.1, 1.1), 0.028))
    grid = mesh.Grid.over(BOX, 128)

    def near_the_speck() -> np.ndarray:
        return np.linalg.norm(mesh.extract(views, grid).vertices - center, axis=1) < 0.1

    assert not near_the_speck().any()
    monkeypatch.setattr(mesh, "LEAST_SHARE", 0)
    assert near_the_speck().any()


def test_rays_through_empty_space_carve_what_single_views_mistake():
    views = spheres(((0.0, 0.0, 0.0), RADIUS))
    views.depths[3].view(-1)[SIZE * 2 : SIZE * 2 + SIZE] = 3.9  # a bar in the air in one view
    found = mesh.extract(views, mesh.Grid.over(BOX, 48))
    assert abs(np.linalg.norm(found.vertices, axis=1) - RADIUS).max() < 0.1


def test_blocks_and_voxels_agree_on_where_they_are():
    grid = mesh.Grid.over(BOX, 40)
    blocks = torch.tensor([[0, 1, 2], [3, 0, 1]])
    middles = grid.middles(blocks)
    for block, points in zip(blocks, middles, strict=True):
        assert torch.equal(grid.blocks_at(points).unique(dim=0), block[None])
    target = np.zeros([mesh.BLOCK * count for count in grid.blocks], np.float32)
    mesh._write_blocks(target, blocks.numpy(), middles[..., 1].numpy())
    voxel = ((middles - grid.low) / grid.voxel).floor().long().flatten(0, 1)
    written = target[tuple(voxel.numpy().T)]
    np.testing.assert_array_equal(written, middles[..., 1].flatten().numpy())


def test_the_tight_box_holds_what_is_seen_and_little_else():
    views = spheres(((0.3, 0.0, -0.2), 0.5))
    low, high = mesh.tight_box(views, BOX).view(2, 3)
    torch.testing.assert_close(low, torch.tensor([-0.2, -0.5, -0.7]), atol=0.02, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.8, 0.5, 0.3]), atol=0.02, rtol=0)


def test_points_are_drawn_from_what_is_seen_in_the_box():
    views = spheres(((0.0, 0.0, 0.0), RADIUS))
    half = torch.tensor([0.0, -1.5, -1.5, 1.5, 1.5, 1.5])
    draw = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, again, other = (mesh.sample_points(views, half, 500, g)[0] for g in draw)
    assert first.shape == (500, 3)
    assert (first[:, 0] >= 0).all()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_box_without_extent_holds_nothing():
    with pytest.raises(UserError, match="nothing solid"):
        mesh.Grid.over(torch.tensor([0.1, 0.2, 0.3] * 2), 64)


@pytest.mark.parametrize("resolution", [7, 1025])
def test_a_senseless_resolution_is_refused(resolution):
    with pytest.raises(UserError, match="8 to 1024"):
        mesh.Grid.over(BOX, resolution)


def test_nothing_seen_in_the_box_is_said():
    views = spheres(((0.0, 0.0, 0.0), RADIUS))
    corner = torch.tensor([1.3, 1.3, 1.3, 1.5, 1.5, 1.5])
    for attempt in (
        lambda: mesh.tight_box(views, corner),
        lambda: mesh.sample_points(views, corner, 10, torch.Generator()),
    ):
        with pytest.raises(UserError, match="nothing"):
            attempt()
    with pytest.raises(UserError, match="no surface"):
        mesh.extract(views, mesh.Grid.over(corner, 16))
