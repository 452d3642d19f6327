"""Sheets show every split, and cameras are drawn where they are and look where they look."""

import numpy as np
import pytest
import torch
from PIL import Image

from nerftrain.data.drawing import (
    SPLIT_COLORS,
    Frustum,
    Print,
    camera_plot,
    choose,
    contact_sheet,
    thumbnail,
)


@pytest.mark.parametrize("counts", [{"train": 3, "test": 2}, {"train": 100, "test": 200, "val": 1}])
def test_a_sheet_shows_all_or_an_even_choice_of_every_split(counts):
    chosen = choose(counts)
    assert sum(map(len, chosen.values())) <= 50
    for split, count in counts.items():
        indices = chosen[split]
        assert indices == sorted(set(indices))
        assert indices
        assert 0 <= indices[0] <= indices[-1] < count
        if sum(counts.values()) <= 48:
            assert len(indices) == count


def test_transparency_is_shown_and_shape_is_kept():
    pixels = torch.zeros(400, 800, 4, dtype=torch.uint8)
    pixels[:, :400] = torch.tensor([255, 0, 0, 255])
    small = thumbnail(pixels)
    assert small.width == 2 * small.height
    assert small.getpixel((small.width // 4, 20)) == (255, 0, 0)
    right = small.crop((small.width // 2 + 2, 0, small.width, small.height))
    assert {color for _, color in right.getcolors()} == {(255, 255, 255), (226, 226, 226)}


@pytest.mark.parametrize("count", [1, 4, 48])
def test_a_sheet_holds_all_prints_and_those_that_cannot_be_read(count):
    image = Image.new("RGB", (100, 60), (1, 2, 3))
    prints = [Print("train", f"a/very/long/path/of/an/image/{i}.png", image) for i in range(count)]
    sheet = contact_sheet("title", [*prints, Print("test", "b", None)])
    colors = {color: number for number, color in sheet.getcolors(1 << 20)}
    assert colors[(1, 2, 3)] == count * 100 * 60
    assert colors[SPLIT_COLORS["test"]] > 0


def frustum(position: list[float], split: str) -> Frustum:
    """A camera at a position that looks down."""
    pose = torch.cat([torch.eye(3), torch.tensor(position)[:, None]], dim=1).double()
    return Frustum(split, pose, (-0.3, 0.3, 0.3, -0.3))


def center_of(plot: Image.Image, color: tuple[int, int, int], panel: int) -> tuple[float, float]:
    """The middle of all that has a colour in the left (0) or right (1) panel, below the legend."""
    pixels = torch.from_numpy(np.array(plot)).long()
    half = plot.width // 2
    part = pixels[76:, panel * half : (panel + 1) * half]
    y, x = (part - torch.tensor(color)).abs().amax(-1).lt(30).nonzero().double().mean(0).tolist()
    return x, y


def test_cameras_are_drawn_where_they_are():
    frusta = [frustum([2.0, 1.0, 2.0], "train"), frustum([-2.0, -1.0, 2.0], "test")]
    plot = camera_plot("title", frusta, 1.0)
    for panel in (0, 1):
        train = center_of(plot, SPLIT_COLORS["train"], panel)
        test = center_of(plot, SPLIT_COLORS["test"], panel)
        assert train[0] > test[0] + 200  # x to the right
    above = [center_of(plot, SPLIT_COLORS[split], 0)[1] for split in ("train", "test")]
    assert above[0] < above[1] - 100  # y up
    side = [center_of(plot, SPLIT_COLORS[split], 1)[1] for split in ("train", "test")]
    assert side[0] == pytest.approx(side[1], abs=3)


def test_one_camera_in_the_origin_is_drawn():
    assert camera_plot("title", [frustum([0.0, 0.0, 0.0], "")], 1.0).width > 1000
