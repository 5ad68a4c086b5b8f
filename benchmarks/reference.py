"""The plain method, as a slow truth: one image at a time, every step spelled out, nothing shared and nothing saved.

This is the loop that the official code of the paper (Roich et al. 2021) runs, with the numbers of the preset `paper`
but for the end of tuning at an LPIPS of 0.06: a fixed number of steps, one image at a time, LPIPS by the `lpips`
package computing both sides at every step, the old generator drawn anew at every step. The engine is measured against
it (`benchmarks/bench.py`), and tests hold the engine to it: with the same configuration and seeds both give the same
pivots and weights.

It uses a generator and the random streams of this project, and none of its optimised code.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pti_core.config import RunConfig
from pti_core.generators.base import Generator
from pti_core.machine.device import seconds_since
from pti_core.sampling import seed_for

OnStep = Callable[[str, int, float], None]
"""Called after each step with the stage, the step's number (from 1) and the LPIPS before its update."""


@dataclass(frozen=True)
class Inverted:
    """What the method found for one image."""

    w: Tensor  # [1, 1, w_dim], the pivot
    noise: list[Tensor]  # one [1, 1, H, W] a layer
    generator: Generator  # theta*
    pivot_seconds: float
    tuning_seconds: float


def invert(
    generator: Generator,
    target: Tensor,
    image_id: str,
    config: RunConfig,
    w_avg: Tensor,
    w_std: float,
    lpips: Any,
    on_step: OnStep | None = None,
) -> Inverted:
    """Invert one image `[C, H, W]` in [-1, 1]; `lpips` is the package's own module (`perceptual.reference_lpips`)."""
    start = time.perf_counter()
    w, noise = find_pivot(generator, target, image_id, config, w_avg, w_std, lpips, on_step)
    searched, found = seconds_since(start, target.device), time.perf_counter()
    tuned = tune(generator, target, w, noise, image_id, config, lpips, on_step)
    return Inverted(w, noise, tuned, searched, seconds_since(found, target.device))


def find_pivot(
    generator: Generator,
    target: Tensor,
    image_id: str,
    config: RunConfig,
    w_avg: Tensor,
    w_std: float,
    lpips: Any,
    on_step: OnStep | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Equation 1: w and noise maps that draw the image best, the generator as it is."""
    c, device = config.pivot, target.device
    random = torch.Generator().manual_seed(seed_for(image_id, "pivot", config.seed))
    w = w_avg.detach().clone().view(1, 1, -1).requires_grad_(True)
    if c.noise_init == "random":
        noise = [torch.randn((1, *shape), generator=random)[None].to(device) for shape in generator.noise_shapes]
    else:
        noise = [n.detach().clone()[None, None] for n in generator.noise_const()]
    for n in noise:
        _normalize(n)
        n.requires_grad_(True)
    adam = torch.optim.Adam([{"params": [w], "peak": c.lr}, {"params": noise, "peak": c.noise_lr}])

    for step in range(c.steps):
        t = step / c.steps
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / c.lr_rampdown))
        rise = min(1.0, (step + 1) / (c.lr_rampup * c.steps))
        for group in adam.param_groups:
            group["lr"] = group["peak"] * fall * rise
        exploration = w_std * c.w_noise * max(0.0, 1 - t / c.w_noise_ramp) ** 2
        w_now = w
        if exploration > 0:
            w_now = w + torch.randn((1, w.shape[2]), generator=random)[None].to(device) * exploration
        image = generator.synthesis(w_now.expand(1, generator.num_ws, -1), noise=noise)
        distance = lpips(_small(target[None], c.max_resolution), _small(image, c.max_resolution)).sum()
        loss = distance + c.noise_weight * sum(_autocorrelation(n) for n in noise)
        if c.mse_weight > 0:
            small = _small(image, c.max_resolution) - _small(target[None], c.max_resolution)
            loss = loss + c.mse_weight * small.square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        for n in noise:
            _normalize(n.data)
        if on_step is not None:
            on_step("pivot", step + 1, float(distance.detach()))
    return w.detach(), [n.detach() for n in noise]


def tune(
    generator: Generator,
    target: Tensor,
    w: Tensor,
    noise: list[Tensor],
    image_id: str,
    config: RunConfig,
    lpips: Any,
    on_step: OnStep | None = None,
) -> Generator:
    """Equations 2 to 5: change the generator so that it draws the image at its pivot, and little else changes."""
    c, local = config.tuning, config.locality
    random = torch.Generator().manual_seed(seed_for(image_id, "tuning", config.seed))
    tuned = copy.deepcopy(generator)
    parameters = list(tuned.tunable().values())
    for p in parameters:
        p.requires_grad_(True)
    adam = torch.optim.Adam(parameters, lr=c.lr)
    ws = w.expand(1, generator.num_ws, -1)

    for step in range(c.steps):
        image = tuned.synthesis(ws, noise=noise)
        distance = lpips(_small(target[None], c.max_resolution), _small(image, c.max_resolution)).sum()
        loss = c.lpips_weight * distance + c.mse_weight * (image - target[None]).square().mean()
        if on_step is not None:
            on_step("tuning", step + 1, float(distance.detach()))
        if local.enabled:
            z = torch.randn((generator.z_dim,), generator=random)[None].to(target.device)
            with torch.no_grad():
                w_z = generator.mapping(z)[:, :1]
            radius = local.alpha / math.sqrt(18)  # the published alpha is a norm over 18 layers that share one w
            w_r = w + radius * (w_z - w) / (w_z - w).norm()
            ws_r = w_r.expand(1, generator.num_ws, -1)
            with torch.no_grad():
                before = generator.synthesis(ws_r)
            after = tuned.synthesis(ws_r)
            away = lpips(_small(before, c.max_resolution), _small(after, c.max_resolution)).sum()
            away = local.lpips_weight * away + local.mse_weight * (after - before).square().mean()
            loss = loss + local.weight * away
        adam.zero_grad()
        loss.backward()
        adam.step()
    for p in parameters:
        p.requires_grad_(False)
    return tuned


def _small(images: Tensor, resolution: int) -> Tensor:
    if images.shape[2] <= resolution:
        return images
    return F.interpolate(images, size=(resolution, resolution), mode="area")


def _normalize(noise: Tensor) -> None:
    noise -= noise.mean()
    noise *= (noise.square().mean() + 1e-12).rsqrt()


def _autocorrelation(noise: Tensor) -> Tensor:
    """Squared correlation of a map with itself one pixel away, over a pyramid of 2 x 2 means down to 8 x 8."""
    total = torch.zeros([], device=noise.device)
    while True:
        total = total + (noise * noise.roll(1, dims=2)).mean().square()
        total = total + (noise * noise.roll(1, dims=3)).mean().square()
        if noise.shape[2] <= 8:
            return total
        noise = F.avg_pool2d(noise, 2)
