"""Image metrics on single images ``[H, W, 3]``, their colours clamped to 0..1 first.

PSNR = -10 log10(mean squared error). SSIM is Wang et al. 2004 with its 11x11 Gaussian window
(sigma 1.5). LPIPS is arXiv:1801.03924 with the VGG backbone, as the NeRF papers report it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

SSIM_WINDOW = 11  # pixels
PSNR_CEILING = 100.0  # dB; two equal images would have an infinite PSNR, which no mean survives

ImageMetric = Callable[[Tensor, Tensor], float]


def psnr(prediction: Tensor, target: Tensor) -> float:
    """Return the PSNR in dB of one image, both clamped to 0..1, at most 100 dB."""
    difference = prediction.detach().double().clamp(0, 1) - target.double().clamp(0, 1)
    floor = 10 ** (-PSNR_CEILING / 10)
    return float(-10 * difference.square().mean().clamp_min(floor).log10())


def ssim(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> float | None:
    """Return the SSIM of one image, or None where it is smaller than the 11x11 window.

    It is the mean over windows whose middle counts, valid [H, W] bool; None: all.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(prediction.shape[:2]) < SSIM_WINDOW:
        return None
    # cuDNN may multiply in 10 bits, which would show in the third decimal.
    with torch.backends.cudnn.flags(enabled=False):
        score = structural_similarity_index_measure(
            _channels_first(prediction),
            _channels_first(target),
            sigma=1.5,
            kernel_size=SSIM_WINDOW,
            data_range=1.0,
            return_full_image=valid is not None,
        )
    if valid is None:
        assert isinstance(score, Tensor)  # a tuple only where the full image is asked for
        return float(score)
    return float(score[1][0, :, valid].mean()) if bool(valid.any()) else None


def load_lpips() -> tuple[ImageMetric | None, str]:
    """Return LPIPS and an empty text, or None and the reason why it cannot be had; never raises."""
    try:
        package = importlib.import_module("lpips")
    except ImportError:
        return None, "the package lpips is not installed (pip install 'nerftrain[lpips]')"
    _announce_download()
    try:
        network = package.LPIPS(net="vgg", verbose=False).eval()
    except Exception as error:  # whatever a download or a foreign package raises
        cause = " ".join(str(error).split()) or type(error).__name__
        return None, f"its weights could not be loaded ({cause[:120]})"

    @torch.no_grad()
    def measure(prediction: Tensor, target: Tensor) -> float:
        first, second = (_channels_first(image).cpu() * 2 - 1 for image in (prediction, target))
        return float(network(first, second))

    return measure, ""


def _announce_download() -> None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob("vgg16-*.pth")):
        _log.warning("LPIPS downloads the VGG weights (about 530 MB, once) to %s", folder)


def _channels_first(image: Tensor) -> Tensor:
    """Turn [H, W, 3] into [1, 3, H, W] in 0..1."""
    return image.detach().float().clamp(0, 1).permute(2, 0, 1)[None]
