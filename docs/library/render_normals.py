"""Another channel beside the colour: normals, composited like it, written as an image.

python docs/library/render_normals.py [STEPS [FILE.png]]
"""

import sys

import imageio.v3 as imageio
import torch
from torch import Tensor
from train_occgrid import STEP_SIZE, Field, train

from nerftrain.cameras import image_rays
from nerftrain.nerfacc import OccGridEstimator, accumulate_along_rays, render_weight_from_density


def normals_at(field: Field, points: Tensor) -> Tensor:
    """Find the directions [N, 3] in which the density falls fastest."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        density = field.density(points)
        (slope,) = torch.autograd.grad(density.sum(), points)
    return -torch.nn.functional.normalize(slope, dim=-1)


@torch.no_grad()
def render_normals(
    field: Field, grid: OccGridEstimator, origins: Tensor, directions: Tensor
) -> Tensor:
    """Render the normals that rays [R, 3] see: [R, 3], shorter where rays pass."""
    ray_indices, t_starts, t_ends = grid.sampling(
        origins, directions, near_plane=2.0, far_plane=6.0, render_step_size=STEP_SIZE
    )
    middle = (t_starts + t_ends)[:, None] / 2
    points = origins[ray_indices] + middle * directions[ray_indices]
    weights, _, _ = render_weight_from_density(
        t_starts, t_ends, field.density(points), ray_indices=ray_indices, n_rays=len(origins)
    )
    return accumulate_along_rays(weights, normals_at(field, points), ray_indices, len(origins))


def main(steps: int, path: str) -> None:
    scene, field, grid = train(steps)
    test = scene.splits["test"]
    rays = image_rays(test.cameras, 0, scene.near, scene.far)
    normals = render_normals(field, grid, rays.origins, rays.directions)
    height, width = test.image(0).shape[:2]
    image = ((normals * 0.5 + 0.5) * 255).byte().view(height, width, 3)
    imageio.imwrite(path, image.numpy())
    facing = -(normals * rays.directions).sum(-1)[normals.norm(dim=-1) > 0.8]
    share = float((facing > 0).float().mean())
    print(f"{share:.0%} of the normals seen face the camera; written: {path}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500, *(sys.argv[2:] or ["normals.png"]))
