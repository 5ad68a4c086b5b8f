"""Measures of a reconstruction, on images rounded to 8 bits, as a person gets them."""

from __future__ import annotations

import torch
from pytorch_msssim import ms_ssim, ssim
from torch import Tensor

from pti_core.perceptual import LPIPS

MS_SSIM_MIN = 161  # five scales of an 11-pixel window need more than 160 pixels
DATA_RANGE = 2.0  # of [-1, 1]


def round_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as they look after 8-bit storage, still in [-1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def measure(targets: Tensor, images: Tensor, lpips: LPIPS) -> list[dict[str, float | None]]:
    """LPIPS, MSE, PSNR (dB), SSIM and MS-SSIM for each pair of `[N, C, H, W]` in [-1, 1].

    MSE is on that range, hence PSNR = 10 log10(4 / MSE). LPIPS is at full resolution. MS-SSIM is None where the image
    is smaller than 161 pixels, PSNR inf where both are the same.
    """
    with torch.no_grad():
        a, b = round_uint8(targets), round_uint8(images)
        mse = (a - b).square().mean(dim=(1, 2, 3))
        found = {
            "lpips": lpips(a, b),
            "mse": mse,
            "psnr": 10 * (DATA_RANGE**2 / mse).log10(),
            "ssim": ssim(a + 1, b + 1, data_range=DATA_RANGE, size_average=False),
        }
        if min(a.shape[2:]) >= MS_SSIM_MIN:
            found["ms_ssim"] = ms_ssim(a + 1, b + 1, data_range=DATA_RANGE, size_average=False)
        rows = torch.stack(list(found.values()), dim=1).tolist()  # read once
    measured: list[dict[str, float | None]] = [dict(zip(found, row, strict=True)) for row in rows]
    return [row | {"ms_ssim": row.get("ms_ssim")} for row in measured]
