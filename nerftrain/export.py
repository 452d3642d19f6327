"""What a run has learnt as files for other programs: a coloured mesh, or a cloud of points."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nerftrain import mesh, report, texture, video
from nerftrain.errors import UserError
from nerftrain.evaluation import (
    Run,
    background_color,
    load_into,
    make_folder,
    spaced,
    stop_time,
)
from nerftrain.lens import as_pinholes
from nerftrain.memory import has_run_out
from nerftrain.mesh import DepthViews
from nerftrain.rendering import see_surface
from nerftrain.scenes import Scene
from nerftrain.types import Cameras

SUFFIXES = {
    "mesh": (".ply", ".obj", ".glb", ".stl", ".off"),
    "mesh with texture": (".glb",),  # one file, image and all
    "points": (".ply", ".glb", ".xyz"),
}


FACES_WITH_TEXTURE = 50_000  # to lay out four times as many takes nine times as long


@dataclass(frozen=True)
class Wishes:
    """What is to be written and how."""

    kind: Literal["mesh", "points"]
    resolution: int  # voxels on the longest side of what is seen; of a mesh
    faces: int | None  # triangles of a mesh, at most; None: as many as there are
    texture: int | None  # texels on a side; None: a mesh has colours at its vertices
    count: int  # points at most; of a cloud
    box: float  # times the scene's box
    views: int  # training views that are rendered, at most
    time: float | None  # 0..1; of a scene that moves
    coordinates: Literal["dataset", "scene"]
    out: Path | None  # None: run_dir/exports


def export_run(run: Run, wishes: Wishes, checkpoint_name: str) -> Path:
    """Render the depth of training views and write what surface they see.

    Returns:
        The file: by default ``run_dir/exports/<kind>-<checkpoint>.ply``, or .glb with a texture.

    Raises:
        UserError: a wish that cannot be fulfilled, a missing library, an unwritable file.
    """
    _check(run, wishes)
    _, label = load_into(run, checkpoint_name)
    time = "" if wishes.time is None else f"-time{wishes.time:g}"
    suffix = "ply" if wishes.texture is None else "glb"
    path = wishes.out or run.run_dir / "exports" / f"{wishes.kind}{time}-{label}.{suffix}"
    make_folder(path.parent)
    views = depth_views(run, wishes)
    box = _scaled(run.scene.aabb, wishes.box).to(views.cameras.poses.device)
    world = run.scene.world if wishes.coordinates == "dataset" else None
    if wishes.kind == "mesh":
        found = _extract(views, box, wishes)
        found = replace(found, vertices=from_scene(found.vertices, world))
        write_mesh(path, found)
        what = f"{len(found.vertices):,} vertices, {len(found.faces):,} triangles"
    else:
        generator = torch.Generator().manual_seed(run.seed)
        positions, colors = mesh.sample_points(views, box, wishes.count, generator)
        write_points(path, from_scene(positions, world), colors)
        what = f"{len(positions):,} points"
    place = "scene" if world is None and run.scene.world is not None else "dataset"
    report.say(f"{what} in the {place}'s coordinates: {path}")
    return path


def _check(run: Run, wishes: Wishes) -> None:
    """Refuse at once what cannot end well."""
    mesh.library("trimesh", "trimesh")
    if wishes.kind == "mesh":
        mesh.library("skimage.measure", "scikit-image")
        mesh.check_resolution(wishes.resolution)
    if wishes.faces is not None:
        mesh.library("fast_simplification", "fast-simplification", texture.EXTRA)
    if wishes.texture is not None:
        mesh.library("xatlas", "xatlas", texture.EXTRA)
        texture.check_size(wishes.texture)
    if not 0 < wishes.box < float("inf"):
        raise UserError(f"--box {wishes.box:g}: give a number above 0, times the scene's own box")
    if run.scene.is_dynamic and wishes.time is None:
        raise UserError(
            f"scene {run.scene.name} moves: say of which moment, --time 0 (first) to 1 (last)"
        )
    what = wishes.kind if wishes.texture is None else "mesh with texture"
    known = SUFFIXES[what]
    if wishes.out is not None and wishes.out.suffix.lower() not in known:
        raise UserError(f"--out {wishes.out}: a {what} file ends in {' '.join(known)}")


def _extract(views: DepthViews, box: Tensor, wishes: Wishes) -> mesh.Mesh | texture.Textured:
    grid = mesh.Grid.over(mesh.tight_box(views, box), wishes.resolution)
    try:
        found = mesh.extract(views, grid)
    except (MemoryError, RuntimeError) as error:
        if not has_run_out(error):
            raise
        raise UserError(
            f"memory does not hold --resolution {wishes.resolution}: give less, an eighth of it is "
            "needed for half as much"
        ) from error
    if wishes.faces is not None:
        found = mesh.simplified(views, found, wishes.faces, grid.reach)
    if wishes.texture is None:
        return found
    report.say(f"laying out {len(found.faces):,} triangles")
    return texture.textured(views, found, grid.reach, wishes.texture)


def _scaled(box: Tensor, factor: float) -> Tensor:
    """Scale a box [6] about its middle."""
    middle, half = (box[3:] + box[:3]) / 2, (box[3:] - box[:3]) / 2
    return torch.cat([middle - factor * half, middle + factor * half])


def depth_views(run: Run, wishes: Wishes) -> DepthViews:
    """Render training views, as pinhole cameras, no larger than the result can show."""
    scene, model, sampler = run.scene, run.model, run.sampler
    device = video.device_of(model)
    cameras = _chosen(scene, wishes).to(device)
    background = background_color(run.background.evaluation).to(device)
    depths, colors = [], []
    with video.evaluation_mode(model, sampler):
        for index in tqdm(
            range(len(cameras)), desc="rendering depth", unit="view", leave=False, disable=None
        ):
            shape = int(cameras.heights[index]), int(cameras.widths[index])
            rgb, depth = see_surface(scene, cameras, index, model, sampler, background)
            depths.append(depth.view(shape))
            colors.append((rgb.clamp(0, 1) * 255).round().byte().view(*shape, 3))
    return DepthViews(cameras, depths, colors)


def _pixels_wanted(wishes: Wishes, views: int) -> int:
    """Choose the longer side of images that are rendered."""
    if wishes.kind == "mesh":
        return round(max(1.5 * wishes.resolution, (wishes.texture or 0) / 2))
    return max(64, round((4 * wishes.count / views) ** 0.5))  # four pixels for each point


def _chosen(scene: Scene, wishes: Wishes) -> Cameras:
    cameras = scene.splits["train"].cameras.to("cpu")
    cameras = stop_time(cameras, wishes.time, scene.name)
    chosen = as_pinholes(cameras[torch.tensor(spaced(len(cameras), wishes.views))])
    return video.shrink(chosen, _pixels_wanted(wishes, len(chosen)))


def from_scene(positions: np.ndarray, world: Tensor | None) -> np.ndarray:
    """Bring positions [N, 3] from the scene's coordinates back to the dataset's."""
    if world is None:
        return positions
    back = torch.linalg.inv(world.double().cpu()).numpy()
    return positions @ back[:3, :3].T + back[:3, 3]


def write_mesh(path: Path, found: mesh.Mesh | texture.Textured) -> None:
    """Write a mesh in the format that the suffix names.

    Raises:
        UserError: it cannot be written.
    """
    trimesh = mesh.library("trimesh", "trimesh")
    whole = trimesh.Trimesh(found.vertices, found.faces, process=False)
    if isinstance(found, texture.Textured):
        # What is seen has been lit already, and shines nowhere.
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(found.image), metallicFactor=0.0, roughnessFactor=1.0
        )
        whole.visual = trimesh.visual.TextureVisuals(uv=found.places, material=material)
    else:
        whole.visual.vertex_colors = found.colors
    _write(path, whole)


def write_points(path: Path, positions: np.ndarray, colors: np.ndarray) -> None:
    """Write points [P, 3] and colours [P, 3] uint8 in the format that the suffix names.

    Raises:
        UserError: they cannot be written.
    """
    _write(path, mesh.library("trimesh", "trimesh").PointCloud(positions, colors))


def _write(path: Path, shape: Any) -> None:
    partial = path.with_name(f".part-{path.name}")
    try:
        shape.export(partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): give another file by --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
