"""Reading image files: headers first, then pixels in threads, shrunk as they come."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.memory import check_images_fit

# What PIL raises for files that are damaged or no images; RuntimeErrors are of AVIF and DDS.
_IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    Image.DecompressionBombError,
)

HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # what telephones take unless told otherwise

_ORIENTATION = 0x0112  # EXIF 2.32, table 4
TURNED_BY_PILLOW = "TIFF"  # as its EXIF says, and its size with it; others are left as stored
_TURNS = {3: 2, 6: 1, 8: 3}  # by orientation; those that mirror come from no camera


@dataclass(frozen=True)
class Picture:
    """An image file's header."""

    path: Path
    width: int  # as stored
    height: int
    mode: str  # RGB or RGBA: what it is decoded to
    turns: int = 0  # quarter turns clockwise that decoding makes

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height of what it is decoded to."""
        on_its_side = self.turns % 2 == 1
        return (self.height, self.width) if on_its_side else (self.width, self.height)


def open_image(path: Path) -> Image.Image:
    """Open an image file by Pillow, HEIF too: its pixels come upright, whatever its EXIF said.

    Raises:
        UserError: it is HEIF, which needs a package that is not installed.
        OSError, and what else Pillow raises: it is damaged or no image.
    """
    if path.suffix.lower() in HEIF_SUFFIXES and (missing := _missing_heif()):
        raise UserError(
            f"{path} is HEIF, which needs pillow-heif ({missing}): pip install 'nerftrain[heif]', "
            "or make JPEGs of such photographs"
        )
    return Image.open(path)


@cache
def _missing_heif() -> str | None:
    """Let Pillow read HEIF; why it cannot, otherwise."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        return str(error)
    register_heif_opener(thumbnails=False)
    return None


def read_header(path: Path, heed_exif: bool = False) -> Picture:
    """Read the size and the kind of an image.

    Args:
        path: of the image.
        heed_exif: let decoding turn it upright, as its EXIF says: telephones store what they took
            upright on its side.

    Raises:
        UserError: the file is no image, or HEIF and nothing reads it.
    """
    try:
        with open_image(path) as image:
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            mode = "RGBA" if has_alpha else "RGB"
            turns = _turns(image) if heed_exif else 0
            width, height = image.size
            if turns % 2 and image.format == TURNED_BY_PILLOW:
                width, height = height, width
            return Picture(path, width, height, mode, turns)
    except _IMAGE_ERRORS as error:
        raise _broken(path, error) from error


def _turns(image: Image.Image) -> int:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1), 0)
    except Exception:  # damaged EXIF raises whatever it hits; the image itself has been read
        return 0


def _broken(path: Path, error: BaseException) -> UserError:
    if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the image
        return UserError(f"{path} cannot be read ({error.strerror}): check its name and its rights")
    reason = " ".join(str(error).split()).replace(f" '{path}'", "")
    return UserError(f"{path} is truncated or no image ({reason}): restore the file")


def check_alike(path: Path, pictures: list[Picture]) -> None:
    """Check that the images that path names share their size and all have alpha or none.

    Raises:
        UserError: they do not.
    """
    first = pictures[0]
    for other in pictures[1:]:
        if (other.width, other.height) != (first.width, first.height):
            raise UserError(
                f"{path} names images of different sizes: {first.path.name} is "
                f"{first.width}x{first.height}, {other.path.name} is {other.width}x{other.height}; "
                "bring them to one size"
            )
        if other.mode != first.mode:
            with_alpha, without = (first, other) if first.mode == "RGBA" else (other, first)
            raise UserError(
                f"{path} names images with alpha ({with_alpha.path.name}) and without "
                f"({without.path.name}); give all of them an alpha channel, or none"
            )


def shrunk_size(picture: Picture, downscale: float) -> tuple[int, int]:
    """Return width and height after downscaling, rounded to whole pixels.

    Raises:
        UserError: nothing remains.
    """
    size = round(picture.width / downscale), round(picture.height / downscale)
    if min(size) < 1:
        raise UserError(
            f"scene.downscale={downscale} leaves nothing of {picture.width}x{picture.height} "
            f"images: give at most {min(picture.width, picture.height)}"
        )
    return size


def read_pixels(pictures: list[Picture], size: tuple[int, int], pool: ThreadPoolExecutor) -> Tensor:
    """Decode images that are alike into pixels [P, 3 or 4] uint8, shrunk to size (width, height).

    Raises:
        UserError: a file is truncated, or there is no room for all.
    """
    width, height = size
    num_pixels = width * height
    channels = len(pictures[0].mode)
    pixels = make_room(len(pictures) * num_pixels, channels)

    def read(index: int) -> None:
        image = shrink(decode(pictures[index]), width, height)
        pixels[index * num_pixels : (index + 1) * num_pixels] = image.view(num_pixels, channels)

    for _ in pool.map(read, range(len(pictures))):
        pass
    return pixels


def make_room(num_pixels: int, channels: int) -> Tensor:
    """Make room for the pixels of all images, [P, channels] uint8.

    One block from the start: a list of images and their concatenation would need it twice.

    Raises:
        UserError: there is not so much memory.
    """
    check_images_fit(num_pixels * channels)
    return torch.empty(num_pixels, channels, dtype=torch.uint8)


def decode(picture: Picture) -> Tensor:
    """Read an image as [H, W, 3 or 4] uint8.

    Raises:
        UserError: the file is truncated, or its numbers have no range that is known.
    """
    try:
        with open_image(picture.path) as image:
            turns = 0 if image.format == TURNED_BY_PILLOW else picture.turns
            pixels = np.array(_of_bytes(image, picture.path).convert(picture.mode))
            return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, -turns)))
    except _IMAGE_ERRORS as error:
        raise _broken(picture.path, error) from error


def read_gray(path: Path) -> np.ndarray:
    """Read an image as [H, W] uint8, its luma.

    Raises:
        UserError: as `decode`.
    """
    try:
        with open_image(path) as image:
            return np.array(_of_bytes(image, path).convert("L"))
    except _IMAGE_ERRORS as error:
        raise _broken(path, error) from error


def read_values(path: Path) -> np.ndarray:
    """Read an image as the numbers that it holds, [H, W] or [H, W, K].

    Raises:
        UserError: the file is truncated or no image.
    """
    try:
        with open_image(path) as image:
            return np.array(image)
    except _IMAGE_ERRORS as error:
        raise _broken(path, error) from error


def _of_bytes(image: Image.Image, path: Path) -> Image.Image:
    """Bring grey levels of 16 bits to 8, which Pillow would cut off.

    Raises:
        UserError: they are numbers of another kind.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.array(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise UserError(
            f"{path} holds {'floating point' if image.mode == 'F' else '32 bit'} numbers, whose "
            "range nobody knows: save it with 8 or 16 bits"
        )
    return Image.fromarray((values / 257).round().astype(np.uint8))


def shrink(image: Tensor, width: int, height: int) -> Tensor:
    """Average an image [H, W, 3 or 4] uint8 of straight colour over the areas of larger pixels.

    Colour is weighted by alpha: what stands in transparent pixels must not bleed into edges.
    """
    if image.shape[:2] == (height, width):
        return image
    # numpy: in a pool's threads torch's own threads would only wait for each other.
    values = image.numpy()
    if image.shape[2] == 3:
        return _to_bytes(_area_mean(values, width, height))
    alpha = values[:, :, 3:].astype(np.float32) / 255
    mean = _area_mean(np.concatenate([values[:, :, :3] * alpha, alpha], 2), width, height)
    # Where nothing is opaque the colour is 0 / tiny = 0.
    color = mean[:, :, :3] / np.maximum(mean[:, :, 3:], 1e-6)
    return _to_bytes(np.concatenate([color, mean[:, :, 3:] * 255], 2))


def _area_mean(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Average [H, W, K] over the areas of larger pixels; pixels on an edge count by their share.

    torch's "area" counts them whole: at 533 -> 266 rows that blurs, and moves what is seen by up to
    a quarter of a new pixel.
    """
    return _mean_along(1, _mean_along(0, values, height), width)


def _mean_along(axis: int, values: np.ndarray, size: int) -> np.ndarray:
    old = values.shape[axis]
    edges = np.arange(size + 1) * old / size
    start, end = edges[:-1], edges[1:]
    first = np.floor(start).astype(np.int64)
    mean = np.float32(0)
    for tap in range(math.ceil(old / size) + 1):  # the most pixels that an area can touch
        pixel = first + tap
        share = np.minimum(end, pixel + 1) - np.maximum(start, pixel)
        if (share > 0).any():
            weight = (share.clip(0) * size / old).astype(np.float32)
            taken = values.take(pixel.clip(max=old - 1), axis).astype(np.float32)
            taken *= weight[:, None, None] if axis == 0 else weight[None, :, None]
            mean = mean + taken
    return np.asarray(mean)


def _to_bytes(values: np.ndarray) -> Tensor:
    """Round [H, W, 3 or 4] in 0..255 to uint8."""
    return torch.from_numpy(values.round().clip(0, 255).astype(np.uint8))
