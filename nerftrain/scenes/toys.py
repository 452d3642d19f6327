"""The toys of the demo scene, and what renders a view of them.

Solids are signed distance functions, found by sphere tracing (Hart, 1996) inside bounding spheres,
and lit by one key light with soft shadows (https://iquilezles.org/articles/rmshadows), a fill light
and the sky. Nothing stands behind them, so that the images have alpha. Vectors are [3, N],
coordinate first: every operation then streams through memory. Units are the world's; z is up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerftrain.cameras import image_rays
from nerftrain.scenes.images import shrink
from nerftrain.types import Cameras

CAMERA_ANGLE = 0.69  # horizontal field of view, radians
SUPERSAMPLING = 3  # rays per pixel and axis

# A ray that grazes a table comes nearer by a few per cent a step; few rays take so many.
_MARCH_STEPS = 300
_MARCH_EPSILON = 2e-3  # well below a pixel
_SHADOW_STEPS = 10
_KEY_LIGHT = (0.48, -0.36, 0.8)  # unit vector towards the light
_FILL_LIGHT = (-0.6, 0.64, 0.48)


def render_view(pose: Tensor, resolution: int) -> Tensor:
    """Render what a camera with pose [3, 4] sees: [resolution, resolution, 4] uint8, straight."""
    size = resolution * SUPERSAMPLING
    focal = 0.5 * size / math.tan(0.5 * CAMERA_ANGLE)
    camera = Cameras(
        poses=pose[None].float(),
        intrinsics=torch.tensor([[focal, focal, 0.5 * size, 0.5 * size]]),
        widths=torch.tensor([size]),
        heights=torch.tensor([size]),
    )
    directions = image_rays(camera, 0, 0.0, math.inf).directions.T.contiguous()
    origin = camera.poses[0, :, 3:]  # [3, 1]
    chunks = [_trace(origin, part) for part in directions.split(2**19, dim=1)]
    image = torch.cat(chunks, dim=1).T.reshape(size, size, 4)
    return shrink((image * 255).round().byte(), resolution, resolution)


def _trace(origin: Tensor, directions: Tensor) -> Tensor:
    """Return colour and alpha [4, N] of rays from origin [3, 1] along directions [3, N]."""
    nearest = torch.full_like(directions[0], math.inf)
    owner = torch.full_like(nearest, -1, dtype=torch.int64)
    for index, solid in enumerate(_SOLIDS):
        rays, distances = _march(solid, origin, directions)
        closer = distances < nearest[rays]
        nearest[rays[closer]] = distances[closer]
        owner[rays[closer]] = index
    image = torch.zeros(4, directions.shape[1])
    hits = (owner >= 0).nonzero()[:, 0]
    towards = directions[:, hits]
    points = origin + towards * nearest[hits]
    image[:3, hits] = _shade(points, -towards, owner[hits]) ** (1 / 2.2)
    image[3, hits] = 1.0
    return image


def _march(solid: _Solid, origin: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Find the rays from origin [3, 1] along directions [3, N] that meet a solid, and how far."""
    start = solid.to_local(origin)
    # Most rays pass the bounding sphere: only those that do not are turned to local coordinates.
    entry, leave = _sphere_span(origin - _column(solid.center), directions, solid.radius)
    rays = (leave > entry).nonzero()[:, 0]
    t, leave, towards = entry[rays], leave[rays], solid.rotation @ directions[:, rays]
    found = [(rays[:0], t[:0])]
    for step in range(_MARCH_STEPS):
        free = solid.distance(start + towards * t)
        t = t + free
        if step % 3 == 2:  # every step would be best for the counts and worst for the copies
            arrived = free < _MARCH_EPSILON
            found.append((rays[arrived], t[arrived]))
            going = (~arrived & (t < leave)).nonzero()[:, 0]
            if not len(going):
                break
            rays, t, leave, towards = rays[going], t[going], leave[going], towards[:, going]
    indices, distances = zip(*found, strict=True)
    return torch.cat(indices), torch.cat(distances)


def _sphere_span(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Find where rays enter, at least 0, and leave a sphere around 0; not later if they miss."""
    middle = -_dot(origins, directions)
    half = (middle * middle + (radius * radius - _dot(origins, origins))).clamp(min=0).sqrt()
    return (middle - half).clamp(min=0), middle + half


def _shade(points: Tensor, views: Tensor, owner: Tensor) -> Tensor:
    """Return the linear colour [3, N] of points [3, N] on the solids owner [N].

    Args:
        points: [3, N] in the world.
        views: [3, N] directions from the points to the camera.
        owner: [N] index into the solids.
    """
    normals, albedo = torch.empty_like(points), torch.empty_like(points)
    gloss = torch.empty_like(points[0])
    for index, solid in enumerate(_SOLIDS):
        mine = (owner == index).nonzero()[:, 0]
        local = solid.to_local(points[:, mine])
        normals[:, mine] = solid.rotation.T @ _normals(solid, local)
        albedo[:, mine] = solid.color(local)
        gloss[mine] = solid.gloss
    key, fill = _column(_KEY_LIGHT), _column(_FILL_LIGHT)
    lit = _dot(normals, key).clamp(min=0)
    facing = lit.nonzero()[:, 0]
    lit[facing] *= _unshadowed(points[:, facing] + 0.01 * normals[:, facing], key)
    sky = (0.6 + 0.4 * normals[2]) * _openness(points, normals)
    light = (
        _column((1.45, 1.36, 1.2)) * lit
        + _column((0.16, 0.2, 0.26)) * _dot(normals, fill).clamp(min=0)
        + _column((0.42, 0.46, 0.54)) * sky
    )
    halfway = _unit(key + views)
    highlight = gloss * _dot(normals, halfway).clamp(min=0) ** 40 * (lit > 0) * lit.sqrt()
    return (albedo * light + highlight).clamp(0, 1)


def _normals(solid: _Solid, points: Tensor) -> Tensor:
    """Estimate the distance's gradient [3, N] at local points [3, N] from a cube's four corners."""
    corners = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    slopes = [
        corner[:, None] * solid.distance(points + 1e-3 * corner[:, None]) for corner in corners
    ]
    return _unit(torch.stack(slopes).sum(0))


def _unshadowed(points: Tensor, light: Tensor) -> Tensor:
    """Return the share [N] of the light, a direction [3, 1], that reaches points [3, N]."""
    share = torch.ones_like(points[0])
    for solid in _SOLIDS:
        start, towards = solid.to_local(points), solid.rotation @ light
        # Penumbras are seen from outside the solid: widen its bounding sphere.
        entry, leave = _sphere_span(start, towards, solid.radius + 0.08)
        active = (leave > entry).nonzero()[:, 0]
        start, t, leave = start[:, active], entry[active].clamp(min=0.01), leave[active]
        lowest = torch.ones_like(t)
        for _ in range(_SHADOW_STEPS):
            free = solid.distance(start + towards * t)
            # A free ball of this size, this far away, covers the light of this angular size.
            lowest = torch.where(t < leave, torch.minimum(lowest, 12 * free / t), lowest)
            t = t + free.clamp(0.02, 0.2)
        share[active] = torch.minimum(share[active], lowest.clamp(min=0))
    return share * share * (3 - 2 * share)


def _openness(points: Tensor, normals: Tensor) -> Tensor:
    """Return the share [N] of the sky that neighbouring solids leave free above points [3, N]."""
    reach = 0.14
    above = points + reach * normals
    free = torch.full_like(above[0], reach)
    for solid in _SOLIDS:
        free = torch.minimum(free, solid.distance(solid.to_local(above)))
    return 0.35 + 0.65 * (free / reach).clamp(0, 1)


def _column(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values)[:, None]


# Distances, of local points [3, N] to a solid around 0: [N]


def _length(*parts: Tensor) -> Tensor:
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = total + part * part
    return total.sqrt()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(p: Tensor) -> Tensor:
    return p / _length(*p).clamp(min=1e-9)


def _ball(p: Tensor, radius: float) -> Tensor:
    return _length(*p) - radius


def _torus(p: Tensor, major: float, minor: float) -> Tensor:
    return _length(_length(p[0], p[1]) - major, p[2]) - minor


def _pole(p: Tensor, radius: float, low: float, high: float) -> Tensor:
    """Measure the distance to a vertical capsule between two heights."""
    return _length(p[0], p[1], p[2] - p[2].clamp(low, high)) - radius


def _rounded(*excess: Tensor, rounding: float) -> Tensor:
    """Measure the distance to a convex solid: how far points stand out along each of its axes."""
    outside = _length(*(part.clamp(min=0) for part in excess))
    inside = excess[0]
    for part in excess[1:]:
        inside = torch.maximum(inside, part)
    return outside + inside.clamp(max=0) - rounding


def _box(p: Tensor, half: float, rounding: float) -> Tensor:
    return _rounded(*(p.abs() - (half - rounding)), rounding=rounding)


def _disc(p: Tensor, radius: float, half: float, rounding: float) -> Tensor:
    inner, outer = half - rounding, radius - rounding
    return _rounded(_length(p[0], p[1]) - outer, p[2].abs() - inner, rounding=rounding)


def _cage(p: Tensor, half: float, thickness: float) -> Tensor:
    """Measure the distance to the twelve beams of a cube (Quilez, box frame)."""
    x, y, z = p.abs() - half
    u, v, w = ((part + thickness).abs() - thickness for part in (x, y, z))
    beams = [(x, v, w), (u, y, w), (u, v, z)]
    distances = [_rounded(*beam, rounding=0.0) for beam in beams]
    return torch.minimum(torch.minimum(distances[0], distances[1]), distances[2])


def _arch(p: Tensor) -> Tensor:
    """Measure the distance to two legs and the half circle on them, in the plane y = 0."""
    tube = _length(_length(p[0], p[2].clamp(min=0)) - 0.27, p[1]) - 0.07
    return torch.maximum(tube, -0.35 - p[2])


def _stand(p: Tensor) -> Tensor:
    foot = _disc(p + _column((0.0, 0.0, 0.28)), 0.2, 0.04, 0.03)
    return torch.minimum(_pole(p, 0.05, -0.28, 0.3), foot)


def _mushroom_cap(p: Tensor) -> Tensor:
    return torch.maximum(_length(p[0], p[1], 1.15 * p[2]) - 0.3, 0.02 - p[2]) * 0.85


def _mushroom(p: Tensor) -> Tensor:
    return torch.minimum(_mushroom_cap(p), _pole(p, 0.1, -0.3, 0.1))


# Colours, linear RGB [3, N] of local points [3, N] on a surface


def _mix(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    return low + (high - low) * share


def _edge(value: Tensor, width: float) -> Tensor:
    """Step from 0 to 1 at value 0, width wide: no texture is finer than a pixel."""
    return (value / width + 0.5).clamp(0, 1)


def _wood(p: Tensor) -> Tensor:
    rings = torch.sin(30 * _length(p[0] - 0.3, p[1] + 0.2) + 3 * torch.sin(5 * p[0] + 2 * p[1]))
    return _mix(_column((0.30, 0.13, 0.05)), _column((0.50, 0.25, 0.10)), 0.5 + 0.5 * rings)


def _table_color(p: Tensor) -> Tensor:
    squares = torch.sin(p[0] * (math.pi / 0.25)) * torch.sin(p[1] * (math.pi / 0.25))
    board = _mix(_column((0.80, 0.74, 0.60)), _column((0.07, 0.20, 0.28)), _edge(squares, 0.12))
    inside = _edge(1.0 - _length(p[0], p[1]), 0.02) * (p[2] > 0.03)
    return _mix(_wood(p), board, inside)


def _globe_color(p: Tensor) -> Tensor:
    x, y, z = p * 5
    swirl = torch.sin(1.2 * x + 1.6 * torch.sin(1.1 * y + 0.7 * z) + 1.2 * torch.sin(1.7 * z - x))
    veins = torch.sin(2 * z + 2 * swirl + torch.sin(2 * y))
    sea = _mix(_column((0.01, 0.07, 0.22)), _column((0.02, 0.34, 0.42)), 0.5 + 0.5 * swirl)
    return _mix(sea, _column((0.85, 0.87, 0.82)), _edge(veins - 0.55, 0.5))


def _brass_color(p: Tensor) -> Tensor:
    return _column((0.72, 0.43, 0.10)).expand_as(p)


def _ring_color(p: Tensor) -> Tensor:
    marks = torch.sin(18 * torch.atan2(p[1], p[0]))
    return _mix(_column((0.75, 0.46, 0.11)), _column((0.25, 0.10, 0.03)), _edge(marks - 0.6, 0.3))


_STICKERS = torch.tensor(
    [
        [0.70, 0.03, 0.03],
        [0.02, 0.30, 0.08],
        [0.02, 0.10, 0.50],
        [0.85, 0.60, 0.02],
        [0.85, 0.22, 0.02],
        [0.80, 0.80, 0.80],
    ]
).T


def _cube_color(p: Tensor) -> Tensor:
    cell = (p / 0.16 + 1.5).floor().clamp(0, 2)  # of three along each axis
    face = p.abs().argmax(0)
    side = p.gather(0, face[None])[0] > 0
    i = cell.gather(0, ((face + 1) % 3)[None])[0].long()
    j = cell.gather(0, ((face + 2) % 3)[None])[0].long()
    # Any mixing that looks scrambled.
    sticker = (5 * i + 3 * j + i * j + 2 * face + 4 * side) % 6
    off_centre = (p / 0.16 - (cell - 1)).abs().scatter(0, face[None], 0.0).amax(0)
    return _mix(_column((0.02, 0.02, 0.02)), _STICKERS[:, sticker], _edge(0.42 - off_centre, 0.08))


def _donut_color(p: Tensor) -> Tensor:
    around = torch.atan2(p[1], p[0])
    across = torch.atan2(p[2], _length(p[0], p[1]) - 0.25)
    drip = p[2] - 0.02 - 0.03 * torch.sin(5 * around) - 0.015 * torch.sin(11 * around + 1)
    u, v = around * (20 / (2 * math.pi)), across * 2.4
    row = v.floor()
    u = u + 0.5 * row
    seed = u.floor() % 20 * 7 + row * 3
    du, dv, turn = u - u.floor() - 0.5, v - row - 0.5, seed * 2.4
    along = du * turn.cos() + dv * turn.sin()
    beside = dv * turn.cos() - du * turn.sin()
    sprinkle = _edge(0.12 - _length((along.abs() - 0.2).clamp(min=0), beside), 0.1)
    icing = _mix(_column((0.85, 0.20, 0.36)), _STICKERS[:, (seed % 6).long()], sprinkle)
    return _mix(_column((0.62, 0.32, 0.10)), icing, _edge(drip, 0.03))


def _cage_color(p: Tensor) -> Tensor:
    bands = torch.sin((p[0] + p[1] + p[2]) * 28)
    return _mix(_column((0.02, 0.36, 0.32)), _column((0.75, 0.85, 0.75)), _edge(bands - 0.5, 0.4))


def _beach_ball_color(p: Tensor) -> Tensor:
    wedges = torch.sin(3 * torch.atan2(p[1], p[0]))
    return _mix(_column((0.90, 0.34, 0.02)), _column((0.85, 0.82, 0.70)), _edge(wedges, 0.25))


def _candy_color(p: Tensor) -> Tensor:
    x, y, z = p
    rise = z.clamp(min=0)
    along = torch.where(z > 0, 0.27 * torch.atan2(x.abs(), z), 0.42 - z)
    twist = torch.atan2(y, _length(x, rise) - 0.27)
    stripes = torch.sin(along * 34 + twist)
    return _mix(_column((0.85, 0.83, 0.80)), _column((0.70, 0.02, 0.04)), _edge(stripes, 0.4))


_DOTS = normalize(
    torch.tensor(
        [
            [0.1, 0.05, 1.0],
            [0.9, 0.2, 0.6],
            [-0.1, 0.9, 0.6],
            [-0.9, 0.3, 0.7],
            [-0.4, -0.8, 0.6],
            [0.5, -0.7, 0.7],
            [0.7, 0.8, 0.25],
            [-0.8, 0.8, 0.25],
            [-0.95, -0.45, 0.25],
            [0.1, -1.0, 0.2],
            [0.95, -0.4, 0.2],
        ]
    ),
    dim=1,
)


def _mushroom_color(p: Tensor) -> Tensor:
    nearest = (_DOTS @ _unit(p)).amax(0)
    cap = _mix(
        _column((0.70, 0.03, 0.02)), _column((0.88, 0.85, 0.78)), _edge(nearest - 0.965, 0.015)
    )
    gills = 0.7 + 0.3 * torch.sin(28 * torch.atan2(p[1], p[0]))
    under = _column((0.80, 0.66, 0.45)) * _mix(torch.ones(1), gills, _edge(p[2], 0.02))
    is_cap = (_mushroom_cap(p) < 0.01) & (p[2] > 0.03)
    return torch.where(is_cap, cap, under)


@dataclass(frozen=True, eq=False)
class _Solid:
    """A distance and a colour in coordinates of their own, and where these lie in the world."""

    center: tuple[float, float, float]
    angles: tuple[float, float]  # turned about its x axis, then about z, radians
    radius: float  # of a sphere around center that holds all of it
    distance: Callable[[Tensor], Tensor]
    color: Callable[[Tensor], Tensor]
    gloss: float  # of the highlight: 0 is matt

    @cached_property
    def rotation(self) -> Tensor:
        """Return the rotation from world to local axes, [3, 3]."""
        (sx, sz), (cx, cz) = map(math.sin, self.angles), map(math.cos, self.angles)
        tilt = torch.tensor([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
        return tilt @ torch.tensor([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])

    def to_local(self, points: Tensor) -> Tensor:
        return self.rotation @ (points - _column(self.center))


_SOLIDS = (
    _Solid((0, 0, -0.60), (0, 0), 1.17, lambda p: _disc(p, 1.13, 0.08, 0.03), _table_color, 0.1),
    _Solid((0, 0, 0.44), (0, 0.5), 0.41, lambda p: _ball(p, 0.4), _globe_color, 0.5),
    _Solid((0, 0, 0.44), (1.2, 0.6), 0.6, lambda p: _torus(p, 0.56, 0.03), _ring_color, 0.6),
    _Solid((0, 0, 0.44), (0.35, -0.9), 0.69, lambda p: _torus(p, 0.65, 0.03), _ring_color, 0.6),
    _Solid((0, 0, -0.23), (0, 0), 0.38, _stand, _brass_color, 0.6),
    _Solid((0.69, -0.29, -0.28), (0, 0.45), 0.42, lambda p: _box(p, 0.24, 0.03), _cube_color, 0.35),
    _Solid(
        (-0.02, -0.70, -0.40), (0, 0.3), 0.38, lambda p: _torus(p, 0.25, 0.12), _donut_color, 0.25
    ),
    _Solid((-0.68, -0.28, -0.22), (0, 0), 0.42, _mushroom, _mushroom_color, 0.3),
    _Solid((0.47, 0.60, -0.25), (0, 0.9), 0.48, lambda p: _cage(p, 0.27, 0.026), _cage_color, 0.2),
    _Solid((0.47, 0.60, -0.35), (0.5, 0), 0.171, lambda p: _ball(p, 0.17), _beach_ball_color, 0.4),
    _Solid((-0.50, 0.58, -0.19), (0, 0.7), 0.5, _arch, _candy_color, 0.4),
)
