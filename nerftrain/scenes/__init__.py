"""Scenes: images with their cameras, and the box and the distances that hold what they show.

Each kind of scene has a file beside this one with a ``load_scene`` that returns a ``Scene``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from nerftrain.cameras import pixel_rays
from nerftrain.errors import UserError
from nerftrain.ops.rays import composite_over as composite_over
from nerftrain.ops.rays import draw_pixels, in_turn, locate, pixel_colors
from nerftrain.types import Batch, Cameras, Contraction


@dataclass(frozen=True, eq=False)
class Depths:
    """How far away what pixels of a split show is known to lie, along their rays, scene units."""

    values: Tensor  # [K] floats, 0 where unknown
    pixels: Tensor | None = (
        None  # [K] int64, whose they are, increasing; None: all pixels', in order
    )

    def at(self, these: Tensor) -> Tensor:
        """Look up the depths [R] of pixels [R] int64; 0: unknown."""
        if self.pixels is None:
            return self.values.index_select(0, these).float()
        place = torch.searchsorted(self.pixels, these).clamp(max=len(self.pixels) - 1)
        found = self.values.index_select(0, place).float()
        return torch.where(self.pixels.index_select(0, place) == these, found, 0.0)

    def to(self, device: torch.device | str) -> Depths:
        """Copy them to a device."""
        pixels = None if self.pixels is None else self.pixels.to(device)
        return Depths(self.values.to(device), pixels)


@dataclass(frozen=True, eq=False)
class Split:
    """Cameras and their images, back to back, each row by row from its top left pixel."""

    name: str
    cameras: Cameras
    pixels: Tensor  # [P, 3 or 4] uint8, straight colour and, of 4, alpha
    names: tuple[str, ...]  # file names, for reports
    valid: Tensor | None = None  # [P] bool, the pixels that count; None: all of them
    depths: Depths | None = None  # None: nothing is known of any

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def has_alpha(self) -> bool:
        """Tell whether the images are transparent somewhere, or could be."""
        return self.pixels.shape[1] == 4

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Call images by their names without suffix, with folders where others are called alike."""
        paths = [Path(name) for name in self.names]
        num_alike = Counter(path.stem for path in paths)
        return tuple(
            path.stem if num_alike[path.stem] == 1 else path.with_suffix("").as_posix()
            for path in paths
        )

    @cached_property
    def offsets(self) -> Tensor:
        """Find where each image's pixels begin, [C + 1] int64.

        Image i owns the pixels offsets[i] : offsets[i + 1].
        """
        sizes = self.cameras.widths * self.cameras.heights
        return torch.cat([torch.zeros_like(sizes[:1]), sizes.cumsum(0)])

    @cached_property
    def _common_size(self) -> tuple[int, int] | None:
        """Return width and height where all images share them.

        They are known to the host, so found only once.
        """
        sizes = set(zip(self.cameras.widths.tolist(), self.cameras.heights.tolist(), strict=True))
        return sizes.pop() if len(sizes) == 1 else None

    def masks(self) -> Tensor | None:
        """Tell where images are not wholly transparent, [C, H, W] bool.

        Returns None for images without alpha or of mixed sizes.
        """
        if not self.has_alpha or self._common_size is None:
            return None
        width, height = self._common_size
        return (self.pixels[:, 3] > 0).view(len(self), height, width)

    def image(self, index: int) -> Tensor:
        """Return image index as [H, W, 3 or 4] in 0..1, straight colour."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        width = int(self.cameras.widths[index])
        return self.pixels[start:end].view(-1, width, self.pixels.shape[1]).float() / 255

    def valid_of(self, index: int) -> Tensor | None:
        """Tell which pixels of image index count, [H, W] bool; None: all of them."""
        if self.valid is None:
            return None
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.valid[start:end].view(-1, int(self.cameras.widths[index]))

    def drawable(self, pixels: Tensor | None) -> Tensor | None:
        """Leave out of pixels to draw from [P] integers, None: all, those that do not count.

        Raises:
            UserError: none is left, or there are more than can be numbered.
        """
        if self.valid is None:
            return pixels
        if pixels is not None:
            left = pixels[self.valid[pixels.long()]]
        elif len(self.valid) <= torch.iinfo(torch.int32).max:
            left = self.valid.nonzero().squeeze(1).to(torch.int32)
        else:
            raise UserError(f"masks of {len(self.valid):,} pixels: give a larger scene.downscale")
        if not len(left):
            raise UserError(f"masks leave nothing to train on of the {self.name} images")
        return left

    def locate(self, pixel_indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find camera, column and row, [R] int64 each, of pixel_indices [R] into ``pixels``."""
        if self._common_size is not None:
            return locate(pixel_indices, *self._common_size)
        cameras = torch.searchsorted(self.offsets, pixel_indices, right=True) - 1
        within = pixel_indices - self.offsets[cameras]
        widths = self.cameras.widths[cameras]
        y = within // widths
        return cameras, within - y * widths, y

    def draw(
        self,
        generator: torch.Generator,
        num_rays: int,
        pixels: Tensor | None,
        drawn: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw pixels as `Scene.batch` says: [R] int64 into ``pixels``, and where they are."""
        total = max(len(self.pixels if pixels is None else pixels), 1)
        if drawn is not None and self._common_size is not None:
            order = drawn, num_rays, total, _stride(total)
            return draw_pixels(*order, pixels, *self._common_size)
        if drawn is not None:
            these = in_turn(drawn, num_rays, total, _stride(total))
        else:
            device = self.pixels.device
            these = torch.randint(total, (num_rays,), generator=generator, device=device)
        if pixels is not None and len(pixels):
            these = pixels.index_select(0, these).long()
        return these, *self.locate(these)

    def to(self, device: torch.device | str) -> Split:
        """Copy cameras and images to a device."""
        cameras, pixels = self.cameras.to(device), self.pixels.to(device)
        valid = None if self.valid is None else self.valid.to(device)
        depths = None if self.depths is None else self.depths.to(device)
        return replace(self, cameras=cameras, pixels=pixels, valid=valid, depths=depths)


@cache
def _stride(total: int) -> int:
    """Step through numbers below total so that any that follow each other are spread evenly.

    Multiples of the golden ratio are, modulo one (Knuth, The Art of Computer Programming, vol. 3,
    section 6.4). Where the two have no divisor in common all numbers come before any comes again.
    """
    stride = max(round(total * (math.sqrt(5) - 1) / 2), 1)
    while math.gcd(stride, total) > 1:
        stride += 1
    return stride


@dataclass(frozen=True, eq=False)
class Scene:
    """What is trained on and judged by."""

    name: str
    splits: dict[str, Split]  # "train", "test" and, where there is one, "val"
    aabb: Tensor  # [6] lowest x y z, highest x y z, world units
    near: float  # distance along every ray, world units
    far: float
    root: Path
    # none: all there is lies in the box. Else the box holds what the cameras look at, and what lies
    # around it is folded towards it (mip-NeRF 360, arXiv:2111.12077, eq. 10).
    contraction: Contraction = "none"
    # [4, 4] float64, the similarity from the dataset's own coordinates to the scene's; None where
    # they are the same.
    world: Tensor | None = None

    @property
    def is_dynamic(self) -> bool:
        """Tell whether what is seen changes with time."""
        return self.splits["train"].cameras.times is not None

    @property
    def has_alpha(self) -> bool:
        """Tell whether the images that are trained on have alpha."""
        return self.splits["train"].has_alpha

    def to(self, device: torch.device | str) -> Scene:
        """Copy all splits and the box to a device."""
        splits = {key: split.to(device) for key, split in self.splits.items()}
        return replace(self, splits=splits, aabb=self.aabb.to(device))

    def batch(
        self,
        generator: torch.Generator,
        num_rays: int,
        background_colors: Tensor,
        pixels: Tensor | None = None,
        drawn: Tensor | None = None,
    ) -> Batch:
        """Draw pixels of the train split, every one equally likely.

        Args:
            generator: of the device that holds the scene.
            num_rays: R.
            background_colors: [R, 3] in 0..1; shows through where alpha is below 1.
            pixels: [P] integers, the pixels that are drawn from; None: all.
            drawn: [] int64, how many have been drawn before: then these are the next of an order in
                which neighbours are spread evenly over all images and none comes again before all
                others have come. None: each is drawn regardless of others.
        """
        train = self.splits["train"]
        these, cameras, x, y = train.draw(generator, num_rays, pixels, drawn)
        return Batch(
            rays=pixel_rays(train.cameras, cameras, x, y, self.near, self.far),
            target=pixel_colors(train.pixels, these, background_colors),
            background=background_colors,
            depths=None if train.depths is None else train.depths.at(these),
        )
