"""Measures of a tuned generator: how it draws its images, and, old against new, the rest of W (at w_r and w_z)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pti_core.config import MeasureConfig
from pti_core.generators.base import Generator
from pti_core.images import shot, to_uint8
from pti_core.inversions import Measures
from pti_core.locality import distance_in_w, interpolate
from pti_core.machine.device import exact_float32
from pti_core.metrics import measure, round_uint8
from pti_core.perceptual import LPIPS
from pti_core.pivot import Pivots
from pti_core.sampling import ImageRandom, sample_w, seed_for


@dataclass(frozen=True)
class LocalityRow:
    """One point at which both generators were compared."""

    image_id: str
    seed: int  # of z
    where: Literal["interpolated", "wz"]
    alpha: float | None  # in the paper's unit; None at w_z
    radius: float  # distance from the pivot in W
    t: float  # radius / ||w_z - w_p||
    lpips: float
    mse: float


@torch.no_grad()
def measure_locality(
    old: Generator,
    new: Generator,
    ws_pivot: Tensor,
    image_id: str,
    config: MeasureConfig,
    lpips: LPIPS,
    seed: int = 0,
    batch: int = 8,
) -> list[LocalityRow]:
    """Compare `old` and `new` around one pivot ws `[1, num_ws, w_dim]`, with the generator's own noise.

    For each of `config.z_samples` samples: at w_r for every alpha, and at w_z. Images are rounded to 8 bits.
    """
    points: list[tuple[int, Literal["interpolated", "wz"], float | None, float, float]] = []
    ws: list[Tensor] = []
    for i in range(config.z_samples):
        z_seed = seed_for(image_id, f"locality/{i}", seed)
        with exact_float32(ws_pivot.device):
            w_z = sample_w(old, ImageRandom([z_seed], ws_pivot.device))
        for alpha in config.alphas:
            point = interpolate(ws_pivot, w_z, alpha)
            points.append((z_seed, "interpolated", alpha, point.radius.item(), point.t.item()))
            ws.append(point.ws)
        ws_z = w_z[:, None].expand_as(ws_pivot)
        points.append((z_seed, "wz", None, distance_in_w(ws_z, ws_pivot).item(), 1.0))
        ws.append(ws_z)
    rows = []
    for start in range(0, len(points), batch):
        part = torch.cat(ws[start : start + batch])
        with exact_float32(part.device):
            before, after = round_uint8(old.synthesis(part)), round_uint8(new.synthesis(part))
            distances = lpips(before, after).tolist()
        errors = (before - after).square().mean(dim=(1, 2, 3)).tolist()
        for measured, distance, mse in zip(points[start : start + batch], distances, errors, strict=True):
            rows.append(LocalityRow(image_id, *measured, distance, mse))
    return rows


@torch.no_grad()
def measure_fit(
    images: Tensor,
    pivots: Pivots,
    lpips: LPIPS,
    at_once: int,
    generator: Generator,
    shots: list[bytes] | None = None,
) -> list[Measures]:
    """How well the generator draws images `[N, C, H, W]` at their pivots; appends a picture of each to `shots`."""
    rows: list[Measures] = []
    with exact_float32(images.device):
        for i in range(0, len(images), at_once):
            part = pivots[i : i + at_once]
            drawn = generator.synthesis(part.ws, noise=part.noise)
            rows += measure(images[i : i + at_once], drawn, lpips)
            if shots is not None:
                shots += map(shot, to_uint8(drawn.nan_to_num().cpu().numpy()))
    return rows
