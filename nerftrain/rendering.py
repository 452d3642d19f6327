"""Sample, query, composite: the only place where samplers and radiance fields meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nerftrain.cameras import image_rays
from nerftrain.checks import check_background, check_made, check_pair
from nerftrain.errors import UserError
from nerftrain.models import NUM_COLORS, RadianceField
from nerftrain.ops.colors import over_background
from nerftrain.ops.composite import Composited, composite
from nerftrain.ops.march import Marching
from nerftrain.ops.points import sample_points
from nerftrain.ops.scan import scan_sum
from nerftrain.ops.visit import LookedUp
from nerftrain.ops.visit_ngp import Drawn, Found
from nerftrain.samplers import Sampler
from nerftrain.scenes import Scene
from nerftrain.types import (
    Cameras,
    Rays,
    Rendering,
    RgbSigmaFn,
    Samples,
    SigmaFn,
    Thresholds,
)

# Rays of an image that are rendered at once. A GPU's host launches many as fast as few, so there
# they are more where so much memory is free.
CHUNK, LARGE_CHUNK, LARGE_MEMORY = 1 << 14, 1 << 16, 16 << 30
# Where rays are marched they ask for few samples at a time: as many as this at most, if so many
# bytes are free for each, which is what 16 samples in the NeRF MLP are reckoned to take.
MARCHED_CHUNK, MARCHED_MEMORY = 1 << 20, 1 << 16
DRAWN_CHUNK = 1 << 18  # the same where a field draws them, which keeps no samples in memory


class Background:
    """What lies behind the scene: a colour per training ray, and one colour in evaluation."""

    def __init__(
        self,
        train: Literal["auto", "random", "white", "black"],
        evaluation: Literal["auto", "white", "black"],
        *,
        has_alpha: bool = True,
    ) -> None:
        """Name the colours in training and evaluation.

        `auto` is random in training and white in evaluation where images have alpha; photographs
        show what is behind everything, so there it is black in both.
        """
        named = ("random", "white") if has_alpha else ("black", "black")
        self.train = named[0] if train == "auto" else train
        self.evaluation = named[1] if evaluation == "auto" else evaluation

    def sample(self, num_rays: int, generator: torch.Generator) -> Tensor:
        """Draw the colours behind R training rays: [R, 3]."""
        if self.train == "random":
            return torch.rand(num_rays, 3, generator=generator, device=generator.device)
        return torch.full((num_rays, 3), float(self.train == "white"), device=generator.device)


class _DensityAlong:
    """A field's `sigma_fn` along R rays, with the field's own way of finding samples."""

    def __init__(self, model: RadianceField, rays: Rays, remember: bool) -> None:
        self._model, self._rays, self._remember = model, rays, remember
        # What was looked up last, and in rounds before, by the t_starts of its samples.
        self._looks: list[tuple[Tensor, LookedUp]] = []

    def __call__(
        self, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, used: Tensor | None = None
    ) -> Tensor:
        where = (t_starts.float(), t_ends.float(), ray_indices)
        forgetful = torch.is_grad_enabled() and not self._remember
        looked_at = None if forgetful else self._model.look_along(self._rays, *where, used)
        if looked_at is None:
            points, _, times = sample_points(self._rays, *where)
            density = self._model.density(points, times)
            check_made(density, Tensor, self._model, "density")
            return density
        density, looked_up = looked_at
        self._looks = [(t_starts, looked_up)] if self._remember else []
        return density

    def at(self, samples: Samples) -> Tensor:
        """Evaluate the density at samples of a round; those of earlier ones stay known."""
        _check_same_rays(self._rays, len(samples.offsets) - 1)
        before = self._looks
        used = None if samples.whole is None else samples.offsets
        density = self(samples.t_starts, samples.t_ends, samples.ray_indices, used)
        self._looks = before + self._looks
        return density

    def find(
        self, marching: Marching, thresholds: Thresholds, everything: bool = False
    ) -> Found | None:
        _check_same_rays(self._rays, len(marching.jitter))
        how = marching, thresholds, everything
        found = self._model.find(self._rays, *how, remember=self._remember)
        if found is not None:
            known = found.looked_up
            self._looks = [] if known is None else [(found.samples.t_starts, known)]
        return found

    def recall(self, samples: Samples) -> LookedUp | None:
        """Tell what was looked up last at samples, if they are those or some of them."""
        for among, known in self._looks:
            if among is samples.t_starts:
                return known
        picked, looks = samples.picked, self._looks
        if not looks or picked is None or len(looks) != len(picked.among):
            return None
        if any(a is not b for a, (b, _) in zip(picked.among, looks, strict=True)):
            return None
        first, *others = (known for _, known in looks)
        return first.at(picked.rows, *others)


class _ChannelsAlong:
    """A field's `rgb_sigma_fn` along R rays, which knows what a visit has looked up."""

    def __init__(self, model: RadianceField, rays: Rays, density: _DensityAlong) -> None:
        self._model, self._rays, self._density = model, rays, density

    def __call__(
        self, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        where = (t_starts.float(), t_ends.float(), ray_indices)
        positions, directions, times = sample_points(self._rays, *where)
        found = self._model(positions, directions.detach(), times)
        check_pair(found, self._model)
        return found

    def at(self, samples: Samples) -> tuple[Tensor, Tensor]:
        _check_same_rays(self._rays, len(samples.offsets) - 1)
        known = self._density.recall(samples)
        if known is None:
            return self(samples.t_starts, samples.t_ends, samples.ray_indices)
        return self._model.revisit(self._rays, samples, *known)


def _check_same_rays(rays: Rays, num_rays: int) -> None:
    if len(rays) != num_rays:
        raise UserError(
            f"samples of {num_rays} rays, but field_functions of {len(rays)}: make both of the same"
        )


def field_functions(
    model: RadianceField, rays: Rays, remember: bool = False
) -> tuple[SigmaFn, RgbSigmaFn]:
    """Make a field's `sigma_fn` and `rgb_sigma_fn` along R rays.

    Samplers and `render` take them. With `remember` what is looked up where samples are visited is
    kept for those of them that are rendered. Where rays ask for gradients these lead to them by
    where samples lie, not by the directions that colours are seen from. Fields are asked in
    float32.
    """
    rays = rays.float()
    density = _DensityAlong(model, rays, remember)
    return density, _ChannelsAlong(model, rays, density)


def render(
    samples: Samples,
    rgb_sigma_fn: RgbSigmaFn,
    background: Tensor,
    extra_channels: dict[str, int] | None = None,
) -> Rendering:
    """Query a field at packed samples and composite what it says.

    Args:
        samples: of R rays.
        rgb_sigma_fn: gives channels [N, K], of which the first three are the colour, and density
            [N]. One with a method `at(samples)` is asked by it.
        background: [R, 3] or [3], what shows where rays are not opaque.
        extra_channels: names and widths of the channels after the colour.

    Raises:
        UserError: a field that gives other shapes, a background of another number of rays.
    """
    at = getattr(rgb_sigma_fn, "at", None)
    where = (samples.t_starts, samples.t_ends, samples.ray_indices)
    channels, density = at(samples) if at is not None else rgb_sigma_fn(*where)
    out = composite(density, channels, samples)
    return _over(out, background, extra_channels, out.weights)


def _over(
    out: Composited | Drawn,
    background: Tensor,
    extra_channels: dict[str, int] | None,
    weights: Tensor,
) -> Rendering:
    """Lay what rays see over a background."""
    colors, widths = out.channels[:, :NUM_COLORS], list((extra_channels or {}).values())
    given, needed = out.channels.shape[1], NUM_COLORS + sum(widths)
    if given < needed or (widths and given != needed):
        raise UserError(
            f"a field gives {given} channels: must be {needed}, three colours and what "
            "extra_channels names"
        )
    check_background(background, len(colors))
    extras = out.channels[:, NUM_COLORS:].split(widths, -1) if widths else ()
    return Rendering(
        rgb=over_background(colors, out.opacity, background),
        opacity=out.opacity,
        depth=out.depth,
        distortion=out.distortion,
        extras=dict(zip(extra_channels or {}, extras, strict=True)),
        weights=weights,
    )


@torch.no_grad()
def render_image(
    scene: Scene,
    cameras: Cameras,
    index: int,
    model: RadianceField,
    sampler: Sampler,
    background: Tensor,
) -> Rendering:
    """Render one camera over a background [3]: H * W rays, row by row.

    All is on the model's device.
    """
    rays = image_rays(cameras, index, scene.near, scene.far)
    return _joined(list(_render_chunks(rays, model, sampler, background)))


@torch.no_grad()
def see_surface(
    scene: Scene,
    cameras: Cameras,
    index: int,
    model: RadianceField,
    sampler: Sampler,
    background: Tensor,
) -> tuple[Tensor, Tensor]:
    """Render one camera's colours [H * W, 3] and the distances [H * W] of what it sees.

    That is where half of a ray's light has gone, infinite where it never has. A mean distance would
    be far behind a surface through which one part in a hundred reaches a wall far away.
    """
    colors, distances = [], []
    for part in image_rays(cameras, index, scene.near, scene.far).split(CHUNK):
        sigma_fn, rgb_sigma_fn = field_functions(model, part)
        samples = sampler.sample(part, sigma_fn)
        rendered = render(samples, rgb_sigma_fn, background, model.extra_channels)
        colors.append(rendered.rgb)
        distances.append(half_way(samples, rendered.weights))
    return torch.cat(colors), torch.cat(distances)


def half_way(samples: Samples, weights: Tensor) -> Tensor:
    """Find where the weights [N] of each ray's samples sum to one half, [R]; infinite: nowhere."""
    offsets, counts = samples.offsets[:-1], samples.offsets.diff()
    after = scan_sum(weights, offsets, counts)
    before = functional.pad(after, (1, 0))[:-1]
    before[offsets[counts > 0]] = 0  # a ray's first sample has none before it
    here = (before < 0.5) & (after >= 0.5)
    share = (0.5 - before[here]) / (after - before)[here]
    distances = samples.t_starts.new_full(counts.shape, torch.inf)
    middle = torch.lerp(samples.t_starts[here], samples.t_ends[here], share)
    distances[samples.ray_indices[here]] = middle
    return distances


def _chunk_size(device: torch.device, marched: bool) -> int:
    if device.type != "cuda":
        return CHUNK
    free = torch.cuda.mem_get_info(device)[0]
    if marched:
        fitting = 1 << (free // MARCHED_MEMORY).bit_length() >> 1
        return min(max(fitting, CHUNK), MARCHED_CHUNK)
    return LARGE_CHUNK if free >= LARGE_MEMORY else CHUNK


def _render_chunks(
    rays: Rays, model: RadianceField, sampler: Sampler, background: Tensor
) -> Iterator[Rendering]:
    size = _chunk_size(rays.origins.device, sampler.marching(rays[:1]) is not None)
    for chunk in rays.split(max(size, DRAWN_CHUNK)):
        draw = model.drawing(chunk)
        marching = None if draw is None else sampler.marching(chunk)
        if draw is not None and marching is not None:
            drawn = draw(*marching)
            none = drawn.opacity.new_empty(0)
            yield _over(drawn, background, model.extra_channels, none)
            continue
        done = 0
        while done < len(chunk):
            part = chunk[done : done + size]
            try:
                sigma_fn, rgb_sigma_fn = field_functions(model, part)
                samples = sampler.sample(part, sigma_fn)
                rendered = render(samples, rgb_sigma_fn, background, model.extra_channels)
            except RuntimeError:  # out of memory, by whichever name an op calls it
                if size <= CHUNK:
                    raise
                size //= 2
                continue
            yield rendered
            done += len(part)


def _joined(parts: list[Rendering]) -> Rendering:
    joined = {
        key: torch.cat([getattr(p, key) for p in parts])
        for key in ("rgb", "opacity", "depth", "distortion", "weights")
    }
    extras = {name: torch.cat([p.extras[name] for p in parts]) for name in parts[0].extras}
    return Rendering(**joined, extras=extras)
