"""Measures against scikit-image and against their definitions."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pti_core.metrics import measure, round_uint8
from pti_core.perceptual import load_lpips, reference_lpips


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    from skimage.data import astronaut

    crop = torch.from_numpy(astronaut()[:192, 128:320].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    noisy = (crop + 0.1 * torch.randn(crop.shape, generator=torch.Generator().manual_seed(0))).clamp(-1.2, 1.2)
    return crop.repeat(2, 1, 1, 1), torch.cat([noisy, crop * 0.8])


def test_against_scikit_image(images):
    targets, drawn = images
    rows = measure(targets, drawn, load_lpips())
    rounded = round_uint8(drawn)
    for i, row in enumerate(rows):
        a, b = targets[i].numpy().transpose(1, 2, 0), rounded[i].numpy().transpose(1, 2, 0)
        assert row["mse"] == pytest.approx(np.mean((a - b) ** 2), rel=1e-4)
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2), abs=1e-3)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        # SSIM depends on the mean: as everywhere, black is 0.
        ssim_map = structural_similarity(a + 1, b + 1, data_range=2, channel_axis=2, **options)[1]
        assert row["ssim"] == pytest.approx(ssim_map[5:-5, 5:-5].mean(), abs=1e-3)  # the border depends on padding
        assert row["lpips"] == pytest.approx(reference_lpips()(targets[i : i + 1], rounded[i : i + 1]).item(), abs=1e-5)
        assert 0 < row["ms_ssim"] < 1


def test_identical_images():
    image = torch.zeros(1, 3, 176, 176)
    (row,) = measure(image, image, load_lpips())
    assert (row["lpips"], row["mse"], row["psnr"]) == (0, 0, math.inf)
    assert row["ssim"] == pytest.approx(1)
    assert row["ms_ssim"] == pytest.approx(1)


def test_ms_ssim_only_where_the_image_is_large_enough(images):
    targets, drawn = (x[:, :, :160, :160] for x in images)
    assert [row["ms_ssim"] for row in measure(targets, drawn, load_lpips())] == [None, None]


def test_images_are_rounded_to_8_bits_first():
    target = torch.zeros(1, 3, 64, 64)
    nearly = target + 0.4 / 255  # the same byte as the rounded target
    (row,) = measure(target, nearly, load_lpips())
    assert row["mse"] == 0
    torch.testing.assert_close(round_uint8(torch.tensor([-3.0, 3.0])), torch.tensor([-1.0, 1.0]))
