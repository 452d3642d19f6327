"""Pictures of a dataset: a contact sheet of its images, and its cameras from above and the side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SPLIT_COLORS = {"train": (38, 99, 191), "test": (214, 96, 20), "val": (44, 140, 70)}
_INK, _PALE, _PAPER = (40, 40, 40), (205, 205, 205), (255, 255, 255)
_COLUMNS, _ROWS = 8, 6
_CELL = 176  # pixels across
_PANEL = 720  # pixels per side of a view of the cameras
_SMOOTH = 2  # lines are drawn this much larger and shrunk: PIL does not smooth them


@dataclass(frozen=True)
class Print:
    """One image on a contact sheet."""

    split: str
    caption: str
    image: Image.Image | None  # None where the file cannot be read


@dataclass(frozen=True)
class Frustum:
    """A camera and how far it sees to each side at distance 1."""

    split: str
    pose: Tensor  # [3, 4] camera to world, OpenGL axes
    corners: tuple[float, float, float, float]  # left, right, top, bottom, tangents


def choose(counts: dict[str, int]) -> dict[str, list[int]]:
    """Choose which images of each split a sheet shows: evenly spaced, by the splits' shares."""
    total, room = sum(counts.values()), _COLUMNS * _ROWS
    chosen = {}
    for split, count in counts.items():
        shown = count if total <= room else max(1, min(count, round(room * count / total)))
        chosen[split] = [int((i + 0.5) * count / shown) for i in range(shown)]
    return chosen


def thumbnail(pixels: Tensor) -> Image.Image:
    """Shrink an image [H, W, 3 or 4] uint8 to the size of a sheet's cell, transparency shown."""
    image = Image.fromarray(pixels.numpy())
    image.thumbnail((_CELL, 2 * _CELL), Image.Resampling.BOX, reducing_gap=None)
    if image.mode != "RGBA":
        return image
    board = Image.new("RGBA", image.size, (255, 255, 255, 255))
    draw = ImageDraw.Draw(board)
    for y in range(0, image.height, 8):
        for x in range(y // 8 % 2 * 8, image.width, 16):
            draw.rectangle((x, y, x + 7, y + 7), fill=(226, 226, 226, 255))
    return Image.alpha_composite(board, image).convert("RGB")


def contact_sheet(title: str, prints: Sequence[Print]) -> Image.Image:
    """Lay images out in rows under a title, each with its caption in the colour of its split."""
    title_font, font = ImageFont.load_default(20), ImageFont.load_default(12)
    heights = [p.image.height for p in prints if p.image is not None]
    tall = max(heights, default=_CELL)
    columns = min(_COLUMNS, max(len(prints), 4))
    rows = -(-len(prints) // columns)
    gap, caption, top = 8, 20, 44
    size = (columns * (_CELL + gap) + gap, top + rows * (tall + caption + gap) + gap)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 10), title, fill=_INK, font=title_font)
    for index, printed in enumerate(prints):
        left = gap + index % columns * (_CELL + gap)
        upper = top + index // columns * (tall + caption + gap)
        if printed.image is not None:
            offset = (_CELL - printed.image.width) // 2
            sheet.paste(printed.image, (left + offset, upper))
        else:
            draw.rectangle((left, upper, left + _CELL, upper + tall), fill=(250, 224, 224))
            draw.text((left + 8, upper + 8), "no image", fill=(176, 0, 0), font=font)
        color = SPLIT_COLORS.get(printed.split, _INK)
        draw.rectangle((left, upper + tall + 2, left + 4, upper + tall + caption), fill=color)
        text = _fitted(printed.caption, font, _CELL - 10)
        draw.text((left + 9, upper + tall + 3), text, fill=_INK, font=font)
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut a text's beginning off until it fits: names differ in their ends."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


# Cameras


def camera_plot(title: str, frusta: Sequence[Frustum], box: float) -> Image.Image:
    """Draw cameras as pyramids over what they see, from above and from the side.

    Args:
        title: above both.
        frusta: the cameras, z up.
        box: half the side of the scene's box, drawn around the origin.
    """
    positions = torch.stack([frustum.pose[:, 3] for frustum in frusta])
    # The middle of all that is drawn, and half of its extent with a margin for the pyramids.
    low = torch.minimum(positions.amin(0), torch.full((3,), -box, dtype=positions.dtype))
    high = torch.maximum(positions.amax(0), torch.full((3,), box, dtype=positions.dtype))
    middle, half = (low + high) / 2, float((high - low).max()) / 2 * 1.12
    length = 0.08 * half
    gap, top = 16, 76
    plot = Image.new("RGB", (2 * _PANEL + 3 * gap, _PANEL + top + gap), _PAPER)
    for number, (name, axes) in enumerate((("from above", (0, 1)), ("from the side", (0, 2)))):
        panel = _Panel(middle, half, axes)
        panel.draw_grid(box)
        for split in (*SPLIT_COLORS, ""):
            for frustum in (f for f in frusta if f.split == split):
                panel.draw_frustum(frustum, length)
        plot.paste(panel.finished(name), (gap + number * (_PANEL + gap), top))
    _write_legend(plot, title, frusta, gap)
    return plot


def _write_legend(plot: Image.Image, title: str, frusta: Sequence[Frustum], left: int) -> None:
    draw, font = ImageDraw.Draw(plot), ImageFont.load_default(15)
    draw.text((left, 10), title, fill=_INK, font=ImageFont.load_default(20))
    for split, color in SPLIT_COLORS.items():
        count = sum(frustum.split == split for frustum in frusta)
        if count:
            draw.rectangle((left, 48, left + 14, 62), fill=color)
            text = f"{split}: {count}"
            draw.text((left + 20, 45), text, fill=_INK, font=font)
            left += 44 + round(font.getlength(text))


class _Panel:
    """One view of the cameras, along a coordinate axis."""

    def __init__(self, middle: Tensor, half: float, axes: tuple[int, int]) -> None:
        side = _SMOOTH * _PANEL
        self._image = Image.new("RGB", (side, side), _PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._middle, self._half, self._axes = middle, half, axes
        self._labels: list[tuple[tuple[float, float], str]] = []

    def _point(self, position: Tensor | Sequence[float]) -> tuple[float, float]:
        """Project a position [3] to pixels of the enlarged image."""
        scale = 0.5 * _SMOOTH * _PANEL / self._half
        right, up = (float(position[a]) - float(self._middle[a]) for a in self._axes)
        return _SMOOTH * _PANEL / 2 + right * scale, _SMOOTH * _PANEL / 2 - up * scale

    def draw_grid(self, box: float) -> None:
        """Draw lines at round coordinates, the box, and the axes from the origin."""
        step = _round_step(2 * self._half / 6)
        for number, axis in enumerate(self._axes):
            low = float(self._middle[axis]) - self._half
            first = int(low // step) + 1
            for index in range(first, first + int(2 * self._half / step) + 1):
                ends = [[0.0] * 3, [0.0] * 3]
                other = self._axes[1 - number]
                for end, sign in zip(ends, (-1, 1), strict=True):
                    end[axis] = index * step
                    end[other] = float(self._middle[other]) + sign * self._half
                self._line([self._point(end) for end in ends], (238, 238, 238), 1)
                self._labels.append((self._point(ends[0]), f"{index * step:g}"))
        corners = []
        for right, up in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)):
            corner = [0.0] * 3
            corner[self._axes[0]], corner[self._axes[1]] = right * box, up * box
            corners.append(self._point(corner))
        self._line(corners, (150, 150, 150), 2)
        for axis, color in zip(self._axes, ((200, 60, 60), (60, 150, 60)), strict=True):
            tip = [0.0] * 3
            tip[axis] = 0.15 * self._half
            self._line([self._point([0.0] * 3), self._point(tip)], color, 3)
            self._labels.append((self._point(tip), "xyz"[axis]))

    def draw_frustum(self, frustum: Frustum, length: float) -> None:
        """Draw the pyramid of what a camera sees up to a distance."""
        color = SPLIT_COLORS.get(frustum.split, _INK)
        left, right, top, bottom = frustum.corners
        center = frustum.pose[:, 3]
        rim = []
        for x, y in ((left, top), (right, top), (right, bottom), (left, bottom)):
            direction = torch.tensor([x, y, -1.0], dtype=frustum.pose.dtype)
            rim.append(self._point(center + length * (frustum.pose[:, :3] @ direction)))
        apex = self._point(center)
        for corner in rim:
            self._line([apex, corner], color, 1)
        self._line([*rim, rim[0]], color, 2)
        radius = 2 * _SMOOTH
        x, y = apex
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def _line(self, points: Sequence[tuple[float, float]], color: tuple, width: int) -> None:
        self._draw.line(list(points), fill=color, width=width * _SMOOTH // 2 or 1, joint="curve")

    def finished(self, name: str) -> Image.Image:
        """Return the view in its true size, with its words."""
        image = self._image.resize((_PANEL, _PANEL), Image.Resampling.BOX)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
        for (x, y), text in self._labels:
            at = min(x / _SMOOTH + 3, _PANEL - 30), min(y / _SMOOTH, _PANEL) - 16
            draw.text(at, text, fill=(90, 90, 90), font=font, stroke_width=2, stroke_fill=_PAPER)
        draw.rectangle((0, 0, _PANEL - 1, _PANEL - 1), outline=_PALE)
        draw.text((_PANEL - 8, 6), name, fill=_INK, font=ImageFont.load_default(15), anchor="ra")
        return image


def _round_step(least: float) -> float:
    """Find the smallest of 1, 2, 5, 10, ... times a power of ten that is not below least."""
    power = 10.0 ** torch.tensor(max(least, 1e-12)).log10().floor().item()
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-6))
