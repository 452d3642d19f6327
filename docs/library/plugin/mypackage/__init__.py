"""A model, a sampler and a kind of scene that the command line takes beside its own."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nerftrain.errors import UserError
from nerftrain.models import RadianceField
from nerftrain.samplers import Sampler, Ways, check_counts, jitter, pack
from nerftrain.scenes import Scene, Split
from nerftrain.types import Cameras, Contraction, Rays, Samples, SigmaFn


class VoxelField(RadianceField):
    """A dense grid of density and features, and a small MLP for the colour."""

    def __init__(
        self,
        resolution: int,
        features: int,
        width: int,
        *,
        aabb: Tensor,
        contraction: Contraction = "none",
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(None, aabb, contraction, is_dynamic)
        if is_dynamic:
            raise UserError("model=voxels knows no time: take model=ngp for a scene that moves")
        check_counts(resolution=resolution, features=features, width=width)
        self.grid = nn.Parameter(torch.zeros(1, 1 + features, *[resolution] * 3))
        self.color = nn.Sequential(
            nn.Linear(features + 3, width), nn.ReLU(), nn.Linear(width, self.num_channels)
        )

    def _look_up(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        unit = self.unit_positions(positions) * 2 - 1
        found = nn.functional.grid_sample(
            self.grid, unit.view(1, -1, 1, 1, 3), align_corners=True
        ).flatten(2)[0]  # [1 + features, N]
        # Ten times: a grid learns each of its numbers from the few rays that come by.
        return nn.functional.softplus(10 * found[0] - 2), 10 * found[1:].T

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        return self._look_up(positions)[0]

    def forward(
        self, positions: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        density, features = self._look_up(positions)
        return self.activate(self.color(torch.cat([features, directions], -1))), density


class InBall(Sampler):
    """Equal steps through the ball that fits into the scene's box, and nowhere else."""

    def __init__(self, num_samples: int, *, aabb: Tensor) -> None:
        super().__init__()
        check_counts(num_samples=num_samples)
        self.num_samples = num_samples
        self.register_buffer("center", (aabb[:3] + aabb[3:]) / 2, persistent=False)
        self.radius = float((aabb[3:] - aabb[:3]).min() / 2)

    @torch.no_grad()
    def sample(
        self, rays: Rays, sigma_fn: SigmaFn, generator: torch.Generator | None = None
    ) -> Samples:
        offset = self.center - rays.origins
        middle = (offset * rays.directions).sum(-1)
        half = (self.radius**2 - offset.square().sum(-1) + middle.square()).clamp(min=0).sqrt()
        enter = torch.maximum(middle - half, rays.near)
        leave = torch.minimum(middle + half, rays.far)
        hit = (enter < leave).nonzero().squeeze(1)
        ways = Ways(hit, rays[hit], enter[hit], leave[hit])
        k = torch.arange(self.num_samples + 1, device=hit.device)
        shares = (k + jitter(rays, generator)[hit, None] - 0.5) / self.num_samples
        return pack(ways.distances("uniform", shares.clamp(0, 1)), hit, len(rays))


def load_npz(
    name: str, root: str | None, num_test: int, near: float, far: float, extent: float
) -> Scene:
    """Read a .npz of images [C, H, W, 3] in 0..1, poses [C, 4, 4] (OpenGL axes) and focal."""
    if root is None or not Path(root).is_file():
        raise UserError(f"scene.root={root}: give the path of a .npz with images, poses, focal")
    with np.load(root) as file:
        images = torch.from_numpy((file["images"] * 255).round().astype(np.uint8))
        poses = torch.from_numpy(file["poses"][:, :3].astype(np.float32))
        focal = float(file["focal"])
    count, height, width, channels = images.shape

    def split(split_name: str, rows: range) -> Split:
        at = list(rows)
        cameras = Cameras(
            poses=poses[at],
            intrinsics=torch.tensor([[focal, focal, width / 2, height / 2]] * len(at)),
            widths=torch.full((len(at),), width),
            heights=torch.full((len(at),), height),
        )
        pixels = images[at].reshape(-1, channels)
        return Split(split_name, cameras, pixels, tuple(f"view {i}" for i in at))

    splits = {
        "train": split("train", range(count - num_test)),
        "test": split("test", range(count - num_test, count)),
    }
    box = torch.tensor([-extent] * 3 + [extent] * 3)
    return Scene(name, splits, box, near, far, Path(root).parent)
