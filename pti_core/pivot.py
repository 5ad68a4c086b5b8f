"""The pivot: w and noise maps that draw the image best with an untouched generator (PTI equation 1).

The optimiser is the projector of StyleGAN2 (Karras et al. 2020, appendix D): w from w_avg with Gaussian exploration,
noise maps kept free of structure, a learning rate that rises, stays and falls. Images are independent of each other:
losses are summed over the batch and every image draws from its own random stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pti_core.config import PivotConfig
from pti_core.generators.base import Generator
from pti_core.perceptual import LPIPS, area_downsample
from pti_core.sampling import ImageRandom, WStatistics

OnStep = Callable[[int, Tensor], None]
"""Called with each step's number (from 1) and the LPIPS of every image `[N]`, on the CPU; NaN of a finished one."""

SMALLEST_NOISE = 8  # the pyramid of the noise regularisation ends here


@dataclass(frozen=True)
class Pivots:
    """Pivots of a batch of images."""

    w: Tensor  # [N, 1, w_dim] in W, [N, num_ws, w_dim] in W+
    noise: list[Tensor]  # one [N, 1, H, W] a layer, zero mean and unit variance
    num_ws: int

    @property
    def ws(self) -> Tensor:
        """`[N, num_ws, w_dim]`, what the synthesis takes."""
        return self.w.expand(-1, self.num_ws, -1)

    def __getitem__(self, index: slice | list[int]) -> Pivots:
        """The pivots of some of the images."""
        return Pivots(self.w[index], [n[index] for n in self.noise], self.num_ws)


def learning_rate(step: int, steps: int, rampup: float, rampdown: float) -> float:
    """Factor in [0, 1] for step (from 0): linear rise, plateau, cosine fall; shares of `steps`."""
    t = step / steps
    fall = min(1.0, (1 - t) / rampdown) if rampdown > 0 else 1.0
    rise = min(1.0, (step + 1) / (rampup * steps)) if rampup > 0 else 1.0
    return (0.5 - 0.5 * math.cos(math.pi * fall)) * rise


def noise_autocorrelation(noise: Sequence[Tensor]) -> Tensor:
    """L_n `[N]` of maps `[N, 1, H, W]`: squared autocorrelation at a shift of one pixel, over a pyramid of 2x2 means.

    (StyleGAN2, appendix D; the pyramid ends at 8 x 8.) Maps of one size, and what larger ones are reduced to, go on as
    channels of one tensor: a few steps in place of one for every level of every map.
    """
    levels: dict[torch.Size, list[Tensor]] = {}
    for n in noise:
        levels.setdefault(n.shape[2:], []).append(n)
    total = torch.zeros(len(noise[0]), device=noise[0].device)
    while levels:
        shape = max(levels)
        level = torch.cat(levels.pop(shape), dim=1)
        for dim in (2, 3):
            total = total + (level * level.roll(1, dims=dim)).mean(dim=(2, 3)).square().sum(dim=1)
        if min(shape) > SMALLEST_NOISE:
            level = F.avg_pool2d(level, 2)
            levels.setdefault(level.shape[2:], []).append(level)
    return total


@torch.no_grad()
def normalize_noise(noise: Sequence[Tensor]) -> None:
    """Set every map `[N, 1, H, W]` to zero mean and unit variance, in place."""
    for n in noise:
        n -= n.mean(dim=(1, 2, 3), keepdim=True)
    if noise:  # what is one number an image comes of all maps at once
        powers = torch.stack([n.square().mean(dim=(1, 2, 3), keepdim=True) for n in noise])
        for n, scale in zip(noise, (powers + 1e-12).rsqrt(), strict=True):
            n *= scale


def initial_noise(generator: Generator, random: ImageRandom, config: PivotConfig) -> list[Tensor]:
    """Normalised start maps, `[N, 1, H, W]` each, for every stream of `random`."""
    n = len(random.generators)
    if config.noise_init == "random":
        noise = [random.randn(1, *shape) for shape in generator.noise_shapes]
    else:
        noise = [m.detach().to(torch.float32)[None, None].repeat(n, 1, 1, 1) for m in generator.noise_const()]
    normalize_noise(noise)
    return noise


def find_pivots(
    generator: Generator,
    targets: Tensor,
    seeds: Sequence[int],
    config: PivotConfig,
    statistics: WStatistics,
    lpips: LPIPS,
    on_step: OnStep | None = None,
    start: Tensor | None = None,
) -> Pivots:
    """Search the pivots of targets `[N, C, H, W]` in [-1, 1], the generator's resolution; one seed an image.

    The search starts at `start` (`[N, 1 or num_ws, w_dim]`), or at w_avg. The generator's parameters are not changed
    and get no gradient. Raises ValueError where targets or starts do not fit it, or seeds and images are not as many.
    """
    resolution, channels = generator.img_resolution, generator.img_channels
    if targets.shape[1:] != (channels, resolution, resolution):
        raise ValueError(
            f"targets of shape {list(targets.shape)}: [N, {channels}, {resolution}, {resolution}] expected"
        )
    if len(seeds) != len(targets):
        raise ValueError(f"{len(seeds)} seeds for {len(targets)} images")
    random = ImageRandom(seeds, targets.device)
    slots = generator.num_ws if config.space == "w+" else 1
    w_avg = statistics.w_avg.to(targets.device)
    if start is None:
        start = w_avg.expand(len(targets), slots, -1)
    elif (
        start.ndim != 3
        or len(start) != len(targets)
        or start.shape[1] not in (1, slots)
        or start.shape[2] != len(w_avg)
    ):
        sizes = f"[{len(targets)}, {slots}, {len(w_avg)}]"
        raise ValueError(f"starts of shape {list(start.shape)}: {sizes} expected")
    w = start.detach().to(w_avg).expand(-1, slots, -1).clone().requires_grad_(True)
    noise = initial_noise(generator, random, config)
    optimise_noise = config.optimise_noise and bool(noise)  # a generator may have no maps
    groups: list[dict[str, object]] = [{"params": [w], "peak": config.lr}]
    if optimise_noise:
        for n in noise:
            n.requires_grad_(True)
        groups.append({"params": noise, "peak": config.noise_lr})
    optimizer = torch.optim.Adam(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)

    small = area_downsample(targets, config.max_resolution)
    with torch.no_grad():
        target_features = lpips.features(small)

    def explored(step: int) -> Tensor | None:
        strength = statistics.w_std * config.w_noise * max(0.0, 1 - step / config.steps / config.w_noise_ramp) ** 2
        return random.randn(slots, w.shape[2]) * strength if strength > 0 else None

    away = explored(0)
    for step in range(config.steps):
        factor = learning_rate(step, config.steps, config.lr_rampup, config.lr_rampdown)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        ws = w if away is None else w + away
        images = generator.synthesis(ws.expand(-1, generator.num_ws, -1), noise=noise)
        images = area_downsample(images, config.max_resolution)
        distance = lpips.distance(lpips.features(images), target_features)
        loss = distance
        if config.mse_weight > 0:
            loss = loss + config.mse_weight * (images - small).square().mean(dim=(1, 2, 3))
        if optimise_noise and config.noise_weight > 0:
            loss = loss + config.noise_weight * noise_autocorrelation(noise)
        # A GPU is waited for here and not after the step: it still has the backward pass to do while the first layers
        # of the next drawing, which are small, are sent to it.
        value, away = distance.detach().cpu(), explored(step + 1)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()
        if optimise_noise:
            normalize_noise(noise)
        if on_step is not None:
            on_step(step + 1, value)
    return Pivots(w.detach(), [n.detach() for n in noise], generator.num_ws)
