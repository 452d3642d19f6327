"""Textures of meshes whose colours are known everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_mesh import BOX, RADIUS, spheres
from tiny_runs import train_tiny

from nerftrain import mesh, texture
from nerftrain.cli import main
from nerftrain.errors import UserError

trimesh = pytest.importorskip("trimesh", reason="exports: pip install 'nerftrain[export]'")
pytest.importorskip("skimage", reason="exports: pip install 'nerftrain[export]'")
for module in ("xatlas", "fast_simplification"):
    pytest.importorskip(module, reason="textures: pip install 'nerftrain[texture]'")

TEXELS = 256


@pytest.fixture(scope="module")
def views() -> mesh.DepthViews:
    """See a ball whose colour is 127 (1 + its position)."""
    return spheres(((0.0, 0.0, 0.0), RADIUS))


@pytest.fixture(scope="module")
def ball(views: mesh.DepthViews) -> tuple[mesh.Mesh, float]:
    grid = mesh.Grid.over(BOX, 48)
    return mesh.extract(views, grid), grid.reach


@pytest.fixture(scope="module")
def painted(views: mesh.DepthViews, ball: tuple[mesh.Mesh, float]) -> texture.Textured:
    found, reach = ball
    return texture.textured(views, mesh.simplified(views, found, 800, reach), reach, TEXELS)


def colors_at(positions: np.ndarray) -> np.ndarray:
    unit = positions / np.linalg.norm(positions, axis=-1, keepdims=True)
    return 127 * (1 + unit * RADIUS)


def looked_up(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    columns, rows = (places * [TEXELS, -TEXELS] + [0, TEXELS]).T
    return image[rows.astype(int).clip(0, TEXELS - 1), columns.astype(int).clip(0, TEXELS - 1)]


def test_few_triangles_keep_the_shape_and_its_colours(views, ball):
    found, reach = ball
    few = mesh.simplified(views, found, 800, reach)
    assert 700 <= len(few.faces) <= 800 < len(found.faces)
    np.testing.assert_allclose(np.linalg.norm(few.vertices, axis=1), RADIUS, atol=0.03)
    assert trimesh.Trimesh(few.vertices, few.faces).is_watertight
    np.testing.assert_allclose(few.colors, colors_at(few.vertices), atol=12)
    assert mesh.simplified(views, found, len(found.faces), reach) is found


@pytest.mark.parametrize("shares", [(1, 1, 1), (4, 1, 1), (1, 8, 1)])
def test_every_triangle_shows_what_is_seen_there(painted: texture.Textured, shares):
    shares = np.array(shares) / sum(shares)
    positions = np.einsum("k,fkd->fd", shares, painted.vertices[painted.faces])
    places = np.einsum("k,fkd->fd", shares, painted.places[painted.faces])
    off = np.abs(looked_up(painted.image, places) - colors_at(positions))
    assert off.mean() < 3
    assert np.quantile(off, 0.999) < 16


def test_triangles_lie_beside_each_other(painted: texture.Textured):
    assert painted.places.min() >= 0
    assert painted.places.max() <= 1
    covered = np.zeros((TEXELS, TEXELS), int)
    for rows, columns, its, _ in texture._covered(painted.faces, painted.places, TEXELS):
        np.add.at(covered, (rows, columns), 1)
        assert set(its) <= set(range(len(painted.faces)))
    assert covered.max() <= 2  # where an edge goes through a texel's middle
    assert (covered > 1).mean() < 0.01
    assert (covered > 0).mean() > 0.3


def test_edges_go_on_around_pieces(painted: texture.Textured):
    assert (painted.image.reshape(-1, 3).max(1) > 0).all()


def test_texels_are_found_in_parts_as_at_once(painted, monkeypatch):
    def gathered() -> set[tuple[int, int, int]]:
        parts = texture._covered(painted.faces, painted.places, TEXELS)
        return {
            texel
            for rows, columns, its, _ in parts
            for texel in zip(rows.tolist(), columns.tolist(), its.tolist(), strict=True)
        }

    at_once = gathered()
    monkeypatch.setattr(texture, "TEXELS_AT_ONCE", 1000)
    assert gathered() == at_once


def test_a_straight_and_near_view_counts_more_than_one_from_aside(views):
    """Blend two views of one point, red from straight above and blue from aside."""
    top = torch.tensor([[0.0, 0.0, RADIUS]])
    heights = views.cameras.poses[:, 2, 3]
    order = heights.argsort(descending=True)
    aside = next(int(i) for i in order if 0.3 < heights[i] / 4 < 0.6)
    chosen = torch.tensor([int(order[0]), aside])
    few = spheres(((0.0, 0.0, 0.0), RADIUS))
    cameras = type(few.cameras)(
        few.cameras.poses[chosen],
        few.cameras.intrinsics[chosen],
        few.cameras.widths[chosen],
        few.cameras.heights[chosen],
    )
    colors = [torch.zeros_like(few.colors[0]) for _ in range(2)]
    colors[0][..., 0], colors[1][..., 2] = 200, 200
    two = mesh.DepthViews(cameras, [few.depths[i] for i in chosen], colors)
    plain = mesh.seen_colors(two, top, 0.5)[0]
    weighted = mesh.seen_colors(two, top, 0.5, torch.tensor([[0.0, 0.0, 1.0]]))[0]
    assert plain[2] > 50
    assert weighted[2] < 20 < 170 < weighted[0]


@pytest.mark.parametrize("texels", [63, 8193])
def test_a_senseless_size_is_refused(texels: int):
    with pytest.raises(UserError, match="64 to 8192"):
        texture.check_size(texels)


# From the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    return train_tiny(tmp_path_factory.mktemp("texture"))


def test_a_mesh_with_a_texture_is_one_file(run, capfd):
    options = ["--resolution", "32", "--faces", "600", "--texture", "128"]
    assert main(["export", str(run), *options]) == 0
    file = run / "exports" / "mesh-last.glb"
    assert str(file) in capfd.readouterr().out
    written = trimesh.load(file, process=False, force="mesh")
    assert 300 < len(written.faces) <= 600
    image = written.visual.material.baseColorTexture
    assert image.size == (128, 128)
    assert np.asarray(image.convert("RGB")).std(axis=(0, 1)).min() > 5
    assert written.visual.uv.shape == (len(written.vertices), 2)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--texture", "128", "--out", "a.ply"], "a mesh with texture file ends in .glb"),
        (["--texture", "10"], "64 to 8192"),
        (["--points", "--texture", "128"], "--texture has no effect on points"),
        (["--points", "--faces", "128"], "--faces has no effect on points"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, capfd, options: list[str], line: str):
    assert main(["export", str(run), *options]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("nerftrain: ")
    assert line in last


@pytest.mark.parametrize("option", ["--texture", "--faces"])
def test_a_missing_library_is_named(run, capfd, monkeypatch, option: str):
    for module in ("xatlas", "fast_simplification"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    assert main(["export", str(run), option, "100"]) == 2
    assert "pip install 'nerftrain[texture]'" in capfd.readouterr().err
