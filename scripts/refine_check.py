"""What refine finds of cameras that were moved, and images that were exposed, by known amounts.

python scripts/refine_check.py --degrees 0.3 --shift 0.005 --refine none,poses \
    scene=mip360/bonsai data_root=PATH trainer.max_seconds=100

Each training camera is turned about each axis and shifted along it by normally distributed amounts,
each channel of each training image multiplied by a gain; then the scene is trained with each
choice of refine in turn. Test images and cameras stay as they are.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace

import torch
from torch import Tensor

from nerftrain import assemble, compose, evaluation, trainer
from nerftrain.config import create_run_dir
from nerftrain.refinement import Refinement
from nerftrain.scenes import Scene, Split
from nerftrain.types import Cameras

FIXED = ("trainer.orbit_frames=0", "trainer.intervals.evaluate_seconds=null", "logger=none")
HEADER = "| refine | PSNR | steps | turned, degrees | shifted | exposed, stops |"


def spoilt(scene: Scene, degrees: float, shift: float, stops: float) -> tuple[Scene, Tensor]:
    """Move cameras and expose images of the train split: the scene, and the gains [C, 3]."""
    train = scene.splits["train"]
    random = torch.Generator().manual_seed(7)
    moves = torch.randn(len(train), 6, generator=random)
    noise = Refinement(True, False, 0.1, 0.1, cameras=train.cameras, aabb=scene.aabb)
    assert noise.moves is not None
    noise.moves.data = moves * moves.new_tensor([math.radians(degrees)] * 3 + [shift] * 3)
    gains = (stops * math.log(2) * torch.randn(len(train), 3, generator=random)).exp()
    pixels = exposed(train, gains) if stops else train.pixels
    train = replace(train, cameras=noise.cameras(train.cameras), pixels=pixels)
    return replace(scene, splits={**scene.splits, "train": train}), gains


def exposed(split: Split, gains: Tensor) -> Tensor:
    """Multiply the colours of each image by its gains [C, 3]; what is brighter than white is so."""
    pixels = split.pixels.clone()
    for i, gain in enumerate(gains):
        own = slice(int(split.offsets[i]), int(split.offsets[i + 1]))
        colors = pixels[own, :3].float() * gain
        pixels[own, :3] = colors.round().clamp(max=255).byte()
    return pixels


def apart(cameras: Cameras, true: Cameras) -> tuple[float, float]:
    """Measure root mean squares: degrees between axes, world units between places."""
    turns = cameras.poses[:, :, :3].transpose(1, 2) @ true.poses[:, :, :3]
    cosines = (turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    angles = cosines.clamp(-1, 1).acos()
    shifts = (cameras.poses - true.poses)[:, :, 3].square().sum(1)
    return math.degrees(float(angles.square().mean().sqrt())), float(shifts.mean().sqrt())


def row(refine: str, options: argparse.Namespace) -> str:
    """Train once: a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        choices = [*options.overrides, *FIXED, f"refine={refine}", f"run_dir={folder}/run"]
        run = assemble(compose(choices))
        true = run.scene.splits["train"].cameras
        scene, gains = spoilt(run.scene, options.degrees, options.shift, options.stops)
        run = create_run_dir(replace(run, scene=scene))
        final = trainer.train(run)
    turn, shift = apart(evaluation.as_found(run).splits["train"].cameras, true)
    found = run.refinement.image_gains()
    left = gains if found is None else gains / found.detach().cpu()
    left = left.log2() - left.log2().mean(0)
    stops = float(left.square().mean().sqrt())
    return (
        f"| {refine} | {final['psnr']:.2f} dB | {final['steps']} | {turn:.3f} | {shift:.4f} | "
        f"{stops:.3f} |"
    )


def main() -> None:
    """Print a table of what is left of the errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--degrees", type=float, default=0.0, help="turns about each axis")
    parser.add_argument("--shift", type=float, default=0.0, help="in halves of the scene's size")
    parser.add_argument("--stops", type=float, default=0.0, help="gains, in powers of two")
    parser.add_argument("--refine", default="none,poses", help="choices of refine, by commas")
    parser.add_argument("overrides", nargs="*", help="of the run: scene=... and so on")
    options = parser.parse_intermixed_args()
    rows = [row(refine, options) for refine in options.refine.split(",")]
    print("\n".join([HEADER, "|---" * 6 + "|", *rows]))


if __name__ == "__main__":
    main()
