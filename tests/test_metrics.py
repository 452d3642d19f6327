from __future__ import annotations

import logging
import sys
import types

import pytest
import torch

from nerftrain import metrics


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(24, 20, 3, generator=torch.Generator().manual_seed(0))


def test_psnr_of_a_known_error_is_its_decibels(image):
    target = torch.full_like(image, 0.5)
    assert metrics.psnr(target + 0.1, target) == pytest.approx(20.0, abs=1e-4)
    assert metrics.psnr(target - 0.01, target) == pytest.approx(40.0, abs=1e-3)


def test_psnr_clamps_what_no_screen_can_show(image):
    white = torch.ones_like(image)
    assert metrics.psnr(white + 3.0, white - 0.1) == pytest.approx(20.0, abs=1e-4)


def test_psnr_of_equal_images_is_finite(image):
    assert metrics.psnr(image, image) == pytest.approx(metrics.PSNR_CEILING)


def test_ssim_is_one_for_equal_images_and_falls_with_noise(image):
    noisy = image + 0.3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    assert metrics.ssim(image, image) == pytest.approx(1.0, abs=1e-5)
    assert metrics.ssim(noisy, image) < 0.9


def test_ssim_of_flat_images_follows_its_equation():
    first, second = torch.full((16, 16, 3), 0.2), torch.full((16, 16, 3), 0.6)
    luminance = (2 * 0.2 * 0.6 + 1e-4) / (
        0.2**2 + 0.6**2 + 1e-4
    )  # variances vanish: that term is 1
    assert metrics.ssim(first, second) == pytest.approx(luminance, abs=1e-4)


def test_ssim_of_what_counts_is_the_mean_over_windows_around_it(image):
    noisy = image.clone()
    noisy[:, 10:] += 0.3 * torch.randn(24, 10, 3, generator=torch.Generator().manual_seed(1))
    whole = torch.ones(24, 20, dtype=torch.bool)
    assert metrics.ssim(noisy, image, whole) == pytest.approx(metrics.ssim(noisy, image))
    left = torch.arange(20).expand(24, 20) < 10 - metrics.SSIM_WINDOW // 2
    assert metrics.ssim(noisy, image, left) == pytest.approx(1.0)  # no window reaches column 10
    assert metrics.ssim(noisy, image, ~left) < metrics.ssim(noisy, image)
    assert metrics.ssim(noisy, image, ~whole) is None


def test_ssim_of_less_than_a_window_is_none(image):
    assert metrics.ssim(image[:10], image[:10]) is None


def test_lpips_without_its_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    metric, reason = metrics.load_lpips()
    assert metric is None
    assert "nerftrain[lpips]" in reason


def test_lpips_says_that_it_downloads_and_survives_being_offline(monkeypatch, caplog, tmp_path):
    def offline(**_: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=offline))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with caplog.at_level(logging.WARNING):
        metric, reason = metrics.load_lpips()
    assert metric is None
    assert "no route to host" in reason
    assert str(tmp_path) in caplog.text


def test_lpips_gets_images_channels_first_between_minus_one_and_one(monkeypatch, tmp_path, image):
    seen = []

    class Network(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            seen.extend([first, second])
            return (first - second).abs().mean()

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Network))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metric, reason = metrics.load_lpips()
    assert reason == ""
    assert metric(torch.zeros_like(image), torch.ones_like(image)) == pytest.approx(2.0)
    assert [tuple(x.shape) for x in seen] == [(1, 3, 24, 20)] * 2
