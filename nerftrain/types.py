"""The nouns of the project and the legend of shape letters.

Letters, in every shape comment in Python and C++: ``R`` rays, ``N`` packed samples, ``C`` cameras,
``H W`` pixels, ``P`` pixels of a whole split, ``D`` features, ``K`` channels, ``L`` levels.
Per-ray scalars are ``[R]``, never ``[R, 1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from nerftrain.checks import check_shape

# Densities at packed samples, and colours (with any extra channels) and densities: nerfacc's names
# and arguments, which are (t_starts [N], t_ends [N], ray_indices [N]).
SigmaFn = Callable[[Tensor, Tensor, Tensor], Tensor]  # -> [N]
RgbSigmaFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # -> ([N, K], [N])
# (positions [N, 3], times [N] in 0..1 or None for a static scene) -> densities [N]
DensityFn = Callable[[Tensor, Tensor | None], Tensor]
# How all of space is folded into a bounded one; none: what lies outside the box does not exist.
Contraction = Literal["none", "l2", "linf"]
# What a lens makes of where a point lies (ops/lenses.py).
Projection = Literal["perspective", "fisheye", "equirectangular"]

T = TypeVar("T", bound="_Tensors")
R = TypeVar("R", bound="_Rows")

NUMBERS = ("origins", "directions", "near", "far", "times")  # of rays, in floating point
ROW = "all fields have as many rows"


@dataclass(frozen=True)
class _Tensors:
    """A dataclass whose tensor fields move and index together."""

    def to(self: T, device: torch.device | str) -> T:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})

    def detach(self: T) -> T:
        """Return the same numbers, through which no gradient flows."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.detach() for k, v in values.items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class _Rows(_Tensors):
    """A dataclass whose tensor fields have a row for each of what it holds."""

    def __getitem__(self: R, rows: slice | Tensor) -> R:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[rows] for k, v in values.items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Cameras(_Rows):
    """Cameras with OpenGL axes: x right, y up, looking along -z.

    Pixel centres lie at +0.5. All have lenses of one kind.
    """

    poses: Tensor  # [C, 3, 4] camera to world
    intrinsics: Tensor  # [C, 4] fx fy cx cy, pixels; per radian where the lens is no pinhole
    widths: Tensor  # [C] int64, pixels
    heights: Tensor  # [C] int64, pixels
    times: Tensor | None = None  # [C] in 0..1
    # [C, 4 or 6] k1 k2 p1 p2 k3 k4 of OpenCV's models (ops/lenses.py); None: no lens bends.
    distortion: Tensor | None = None
    projection: Projection = "perspective"

    def __len__(self) -> int:
        return self.poses.shape[0]


@dataclass(frozen=True)
class Rays(_Rows):
    """What rendering needs to know of each ray."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3] unit length
    near: Tensor  # [R] distance along the ray
    far: Tensor  # [R]
    times: Tensor | None = None  # [R] in 0..1
    cameras: Tensor | None = None  # [R] int64

    def __post_init__(self) -> None:
        """Refuse, with a UserError, fields of different numbers of rays."""
        check_shape("rays.origins", self.origins, ("R", 3))
        rows = self.origins.shape[0]
        check_shape("rays.directions", self.directions, (rows, 3), ROW)
        for name in ("near", "far", "times", "cameras"):
            column = getattr(self, name)
            if column is not None:
                check_shape(f"rays.{name}", column, (rows,), ROW)

    def __len__(self) -> int:
        return self.origins.shape[0]

    def float(self) -> Rays:
        """Return the same rays in float32, as marches and the project's own fields take them."""
        values = {name: getattr(self, name) for name in NUMBERS}
        if all(v is None or v.dtype == torch.float32 for v in values.values()):
            return self
        return replace(self, **{k: v.float() for k, v in values.items() if v is not None})

    def split(self, size: int) -> Iterator[Rays]:
        """Cut into parts of at most so many rays."""
        return (self[first : first + size] for first in range(0, len(self), size))

    def at(self, distances: Tensor, ray_indices: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Find positions and directions [N, 3], and times [N] or None.

        They are those at distances [N] along the rays ray_indices [N].
        """
        directions = self.directions.index_select(0, ray_indices)
        origins = self.origins.index_select(0, ray_indices)
        positions = torch.addcmul(origins, directions, distances[:, None])
        return positions, directions, None if self.times is None else self.times[ray_indices]


class Picked(NamedTuple):
    """Which of other samples these are."""

    rows: Tensor  # [N] int64, where they were
    among: tuple[Tensor, ...]  # t_starts of those others, one after the other; known by them


@dataclass(frozen=True)
class Samples(_Tensors):
    """Intervals along rays, all rays' samples back to back, front to back within a ray.

    In buffers of a fixed size, `room`, rows from offsets[R] on are nobody's: intervals of no length
    at the origin of ray 0. Rays that have not found room are left out whole.
    """

    t_starts: Tensor  # [N]
    t_ends: Tensor  # [N]
    ray_indices: Tensor  # [N] int64, non-decreasing
    offsets: Tensor  # [R + 1] int64; ray r owns offsets[r] : offsets[r + 1]
    whole: Tensor | None = None  # [R] bool, the rays that have found room; None: all
    picked: Picked | None = field(default=None, compare=False)  # None: nobody knows

    def __post_init__(self) -> None:
        """Refuse, with a UserError, fields of different numbers of samples."""
        check_shape("samples.t_starts", self.t_starts, ("N",))
        rows = self.t_starts.shape[0]
        check_shape("samples.t_ends", self.t_ends, (rows,), ROW)
        check_shape("samples.ray_indices", self.ray_indices, (rows,), ROW)

    def __len__(self) -> int:
        return self.t_starts.shape[0]


class Thresholds(NamedTuple):
    """Which samples are seen at all."""

    early_stop_eps: float  # a ray ends where its transmittance falls below it
    alpha_thre: float  # samples of less opacity are skipped
    min_weight: float  # and those of less weight


@dataclass(frozen=True)
class Batch(_Tensors):
    """Rays and what only the loss needs: the colour each should have over its background."""

    rays: Rays
    target: Tensor  # [R, 3] composited over background
    background: Tensor  # [R, 3]
    depths: Tensor | None = None  # [R] distance to what each shows, 0: unknown; None: all are so


@dataclass(frozen=True)
class Rendering(_Tensors):
    """What compositing makes of the samples of each ray."""

    rgb: Tensor  # [R, 3] over the background
    opacity: Tensor  # [R]
    depth: Tensor  # [R] sum of weight times distance, not divided by the opacity
    distortion: Tensor  # [R] mip-NeRF 360 eq. 15, in units of distance
    extras: dict[str, Tensor]  # name -> [R, k]
    weights: Tensor  # [N]; of an image none
