"""A radiance field of your own, sampled by an occupancy grid: the demo scene in half a minute.

python docs/library/train_occgrid.py [STEPS]
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nerftrain.cameras import image_rays
from nerftrain.metrics import psnr
from nerftrain.models.encodings import HashEncoding, truncated_exp
from nerftrain.nerfacc import OccGridEstimator, rendering
from nerftrain.scenes import Scene, composite_over
from nerftrain.scenes.demo import load_scene

STEP_SIZE = 0.04  # of the march, world units
WHITE = torch.ones(3)


class Field(nn.Module):
    """Yours: any module will do that gives densities, and colours with densities."""

    def __init__(self, aabb: Tensor, width: int = 32) -> None:
        super().__init__()
        self.register_buffer("low", aabb[:3])
        self.register_buffer("size", aabb[3:] - aabb[:3])
        self.encoding = HashEncoding(6, 4, 14, 16, 128)
        self.trunk = nn.Sequential(nn.Linear(24, width), nn.ReLU(), nn.Linear(width, 16))
        self.color_head = nn.Sequential(nn.Linear(18, width), nn.ReLU(), nn.Linear(width, 3))

    def features(self, points: Tensor) -> Tensor:
        return self.trunk(self.encoding((points - self.low) / self.size))

    def density(self, points: Tensor) -> Tensor:
        return truncated_exp(self.features(points)[:, 0] - 1)

    def forward(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(points)
        colors = self.color_head(torch.cat([features[:, 1:], directions], -1)).sigmoid()
        return colors, truncated_exp(features[:, 0] - 1)


def render(
    field: Field, grid: OccGridEstimator, origins: Tensor, directions: Tensor, background: Tensor
) -> Tensor:
    """Render rays [R, 3]: colours [R, 3]."""

    def points(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        middle = (t_starts + t_ends)[:, None] / 2
        return origins[ray_indices] + middle * directions[ray_indices]

    def sigma_fn(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        return field.density(points(t_starts, t_ends, ray_indices))

    def rgb_sigma_fn(
        t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        return field(points(t_starts, t_ends, ray_indices), directions[ray_indices])

    ray_indices, t_starts, t_ends = grid.sampling(
        origins,
        directions,
        sigma_fn=sigma_fn,
        near_plane=2.0,
        far_plane=6.0,
        render_step_size=STEP_SIZE,
        stratified=field.training,
    )
    colors, _, _, _ = rendering(
        t_starts,
        t_ends,
        ray_indices,
        n_rays=len(origins),
        rgb_sigma_fn=rgb_sigma_fn,
        render_bkgd=background,
    )
    return colors


def train(steps: int) -> tuple[Scene, Field, OccGridEstimator]:
    """Train a field and its grid on the demo scene."""
    torch.manual_seed(0)
    scene = load_scene("demo", resolution=100, num_train=40, num_test=4)
    field, grid = Field(scene.aabb), OccGridEstimator(scene.aabb, resolution=32)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2, eps=1e-15)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        grid.update_every_n_steps(step, lambda points: field.density(points)[:, None] * STEP_SIZE)
        background = torch.rand(512, 3, generator=generator)
        batch = scene.batch(generator, 512, background)
        colors = render(field, grid, batch.rays.origins, batch.rays.directions, background)
        loss = nn.functional.smooth_l1_loss(colors, batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scene, field.eval(), grid.eval()


@torch.no_grad()
def mean_psnr(scene: Scene, render: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Compare the test views with what is rendered over white."""
    test, values = scene.splits["test"], []
    for view in range(len(test.cameras)):
        rays = image_rays(test.cameras, view, scene.near, scene.far)
        truth = composite_over(test.image(view), WHITE)
        values.append(psnr(render(rays.origins, rays.directions).view(truth.shape), truth))
    return sum(values) / len(values)


def main(steps: int) -> None:
    scene, field, grid = train(steps)
    score = mean_psnr(scene, lambda o, d: render(field, grid, o, d, WHITE))
    print(f"PSNR {score:.2f} dB on the test views after {steps} steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
