"""Where the search for a pivot starts: the encoder's w, corrected by what it says of its own drawing."""

from __future__ import annotations

import torch
from torch import Tensor

from pti_core.encoder.network import MAX_RESOLUTION, Encoder
from pti_core.generators.base import Generator
from pti_core.perceptual import LPIPS, area_downsample

PASSES = 2
"""Corrections. Each costs one drawing, about a third of a step of the search."""


@torch.no_grad()
def encoded_start(encoder: Encoder, generator: Generator, images: Tensor, lpips: LPIPS) -> Tensor:
    """Starts `[N, 1, w_dim]` for images `[N, C, H, W]` in [-1, 1].

    The encoder E falls short of what it cannot tell apart, and does so alike for an image and for its own drawing of
    it. So w is corrected by the difference, w + E(x) - E(G(w)), as ReStyle's encoder is by its updates, with nothing
    more to train. Of w_avg, E(x) and the corrected ones each image takes the w whose drawing has the least LPIPS:
    where the encoder knows nothing, w_avg.
    """
    wanted = lpips.features(area_downsample(images, MAX_RESOLUTION))
    goal = encoder.w_of(images, lpips)

    def drawn(w: Tensor) -> Tensor:
        return generator.synthesis(w[:, None].expand(-1, generator.num_ws, -1)).clamp(-1, 1)

    w = encoder.w_avg.expand(len(images), -1)
    best, least = w, torch.full([len(images)], torch.inf, device=images.device)
    for step in range(PASSES + 2):
        image = drawn(w)
        distance = lpips.distance(lpips.features(area_downsample(image, MAX_RESOLUTION)), wanted)
        better = distance < least
        best, least = torch.where(better[:, None], w, best), torch.where(better, distance, least)
        if step == 0:
            w = goal
        elif step <= PASSES:
            w = w + goal - encoder.w_of(image, lpips)
    return best[:, None]
