"""A radiance field of your own behind a proposal network, coarse to fine, on the demo scene.

python docs/library/train_proposals.py [STEPS]
"""

import sys

import torch
from torch import Tensor, nn
from train_occgrid import WHITE, Field, mean_psnr

from nerftrain.models.encodings import HashEncoding, truncated_exp
from nerftrain.nerfacc import PropNetEstimator, rendering
from nerftrain.nerfacc.estimators.prop_net import get_proposal_requires_grad_fn
from nerftrain.scenes.demo import load_scene

NEAR, FAR = 2.0, 6.0
COARSE, FINE = 32, 16  # samples per ray


class Proposal(nn.Module):
    """A density that is quick to ask: it only has to know where something is."""

    def __init__(self, aabb: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", aabb[:3])
        self.register_buffer("size", aabb[3:] - aabb[:3])
        self.encoding = HashEncoding(3, 2, 14, 16, 64)
        self.head = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, points: Tensor) -> Tensor:
        unit = (points - self.low) / self.size
        inside = ((unit > 0) & (unit < 1)).all(-1)
        density = truncated_exp(self.head(self.encoding(unit.reshape(-1, 3)))[:, 0] - 1)
        return density.view(inside.shape) * inside


class Renderer:
    """Both fields, and what places samples for them."""

    def __init__(self, aabb: Tensor) -> None:
        self.field, self.proposal = Field(aabb), Proposal(aabb)
        self.aabb = aabb
        optimizer = torch.optim.Adam(self.proposal.parameters(), lr=1e-2, eps=1e-15)
        self.estimator = PropNetEstimator(optimizer)

    def __call__(
        self, origins: Tensor, directions: Tensor, background: Tensor, teach: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Render rays [R, 3]: colours [R, 3] and the samples' transmittance [R, FINE]."""

        def points(t_starts: Tensor, t_ends: Tensor) -> Tensor:
            middle = (t_starts + t_ends)[..., None] / 2
            return origins[:, None] + middle * directions[:, None]

        def prop_sigma_fn(t_starts: Tensor, t_ends: Tensor) -> Tensor:
            return self.proposal(points(t_starts, t_ends))

        def rgb_sigma_fn(t_starts: Tensor, t_ends: Tensor, _: None) -> tuple[Tensor, Tensor]:
            at = points(t_starts, t_ends)
            seen = directions[:, None].expand_as(at)
            colors, density = self.field(at.reshape(-1, 3), seen.reshape(-1, 3))
            inside = ((at > self.aabb[:3]) & (at < self.aabb[3:])).all(-1)
            return colors.view(at.shape), density.view(inside.shape) * inside

        t_starts, t_ends = self.estimator.sampling(
            prop_sigma_fns=[prop_sigma_fn],
            prop_samples=[COARSE],
            num_samples=FINE,
            n_rays=len(origins),
            near_plane=NEAR,
            far_plane=FAR,
            sampling_type="uniform",
            stratified=self.field.training,
            requires_grad=teach,
        )
        colors, _, _, extras = rendering(
            t_starts, t_ends, rgb_sigma_fn=rgb_sigma_fn, render_bkgd=background
        )
        return colors, extras["trans"]


def main(steps: int) -> None:
    torch.manual_seed(0)
    scene = load_scene("demo", resolution=100, num_train=40, num_test=4)
    renderer = Renderer(scene.aabb)
    optimizer = torch.optim.Adam(renderer.field.parameters(), lr=1e-2, eps=1e-15)
    is_due = get_proposal_requires_grad_fn()
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        background = torch.rand(512, 3, generator=generator)
        batch, teach = scene.batch(generator, 512, background), is_due(step)
        colors, trans = renderer(batch.rays.origins, batch.rays.directions, background, teach)
        renderer.estimator.update_every_n_steps(trans, teach)
        loss = nn.functional.smooth_l1_loss(colors, batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    renderer.field.eval()
    psnr = mean_psnr(scene, lambda origins, directions: renderer(origins, directions, WHITE)[0])
    print(f"PSNR {psnr:.2f} dB on the test views after {steps} steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
