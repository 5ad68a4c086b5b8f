"""Training an encoder on a generator's own samples: features once, a head on them, then the drawing's LPIPS.

1. Draw samples (`samples`), keep the principal components of their views' features.
2. Fit the head to w by mean squared error; it shrinks towards w_avg by itself where features say little.
3. Fit on through the generator: LPIPS of what it draws for the head's w, beside the error in W.
4. Measure on samples that were never trained on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pti_core.encoder.network import Encoder, EncoderShape, grid_features
from pti_core.encoder.samples import draw, sampled_features, views
from pti_core.generators.base import Generator
from pti_core.machine.malloc import keep_freed_memory
from pti_core.machine.parallel import in_parallel
from pti_core.perceptual import LPIPS, area_downsample
from pti_core.sampling import WStatistics, w_statistics

PROJECTION_SAMPLES = 512  # give the principal components of features
HELD_OUT = 64
NOISE = 0.2  # of components in training, which have unit variance

Stage = Literal["samples", "w", "drawing", "held out"]


@dataclass(frozen=True)
class TrainingConfig:
    """How an encoder is trained."""

    samples: int = 6000
    views: int = 3  # of each sample: the image itself, and others (`augment`)
    epochs: int = 15
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    drawing_steps: int = 400  # through the generator
    drawing_batch: int = 4
    drawing_lr: float = 2e-4
    w_weight: float = 0.5  # of the error in W (in units of w_std squared) beside LPIPS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 16:
            raise ValueError(f"samples {self.samples}: at least 16 expected")


@dataclass(frozen=True)
class Figures:
    """Means over held-out samples."""

    samples: int
    w_error: float  # squared distance to the true w, as a share of w_avg's
    lpips_w_avg: float  # of what w_avg draws
    lpips_encoder: float
    seconds: float  # of the whole training


OnTraining = Callable[[Stage, float], None]
"""Called with what is being done and the share of the whole work that is done, in [0, 1]."""


@dataclass(frozen=True)
class Trained:
    """An encoder and how good it is."""

    encoder: Encoder  # on the CPU, eval mode, no gradients
    figures: Figures

    def notes(self, config: TrainingConfig) -> dict[str, Any]:
        """For the file's metadata, JSON types only."""
        return {"training": asdict(config), "held_out": asdict(self.figures)}


def train_encoder(
    generator: Generator,
    lpips: LPIPS,
    config: TrainingConfig,
    device: str = "cpu",
    on_training: OnTraining | None = None,
) -> Trained:
    """Train an encoder for a generator, which is not changed. The same seed gives the same weights on a machine's CPU.

    Raises Stopped where the process is told to end.
    """
    keep_freed_memory()
    start, say = time.perf_counter(), _shares(generator, config, on_training)
    place = torch.device(device)
    generator = generator.to(place).eval().requires_grad_(False)  # type: ignore[attr-defined]
    lpips = lpips.to(place)
    statistics = w_statistics(generator)
    # Weights and dropout come from the seed, and nobody else's numbers change.
    with torch.random.fork_rng([place.index or 0] if place.type == "cuda" else []):
        torch.manual_seed(config.seed)
        shape = EncoderShape(generator.img_resolution, generator.img_channels, generator.w_dim)
        encoder = Encoder(shape).to(place)
        encoder.w_avg.copy_(statistics.w_avg)
        encoder.w_std.fill_(statistics.w_std)
        w, components = _collect(generator, statistics, encoder, lpips, config, say)

        def fit(_: int, check: Callable[[], None]) -> Figures:
            _fit_w(encoder, w, components, config, check, say)
            _fit_drawing(encoder, generator, statistics, lpips, config, check, say)
            encoder.eval().requires_grad_(False)
            return _measure(encoder, generator, statistics, lpips, config, start, check, say)

        (figures,) = in_parallel(fit, [0], place)
    return Trained(encoder.cpu(), figures)


def _collect(
    generator: Generator,
    statistics: WStatistics,
    encoder: Encoder,
    lpips: LPIPS,
    config: TrainingConfig,
    say: Callable[[Stage, float], None],
) -> tuple[Tensor, Tensor]:
    """W `[N, w_dim]` and components `[N, views, components, grid, grid]` (float16) of all samples.

    Sets the encoder's projection first, from the features of the first samples.
    """
    grid, n = encoder.shape.grid, config.samples
    numbers = range(min(n, PROJECTION_SAMPLES))

    def features(images: Tensor) -> Tensor:
        return grid_features(lpips, images, grid)

    found = sampled_features(generator, statistics, features, numbers, 2, "encoder", config.seed)
    whole: list[Tensor] = []
    for _, some in found:
        whole.append(some)
        say("samples", sum(map(len, whole)) / (n + len(numbers)))
    _set_projection(encoder, torch.cat(whole).flatten(0, 1))
    w = torch.empty(n, encoder.shape.w_dim)
    components = torch.empty(n, config.views, encoder.shape.components, grid, grid, dtype=torch.float16)
    at = 0
    found = sampled_features(
        generator, statistics, lambda x: encoder.project(features(x)), range(n), config.views, "encoder", config.seed
    )
    for some_w, some in found:
        w[at : at + len(some)], components[at : at + len(some)] = some_w, some
        at += len(some)
        say("samples", (len(numbers) + at) / (n + len(numbers)))
    return w, components


def _set_projection(encoder: Encoder, features: Tensor) -> None:
    """Principal components of features `[N, channels, grid, grid]`, whitened (the last ones only in part)."""
    cells = features.movedim(1, 3).flatten(0, 2).double()
    mean = cells.mean(dim=0)
    cells -= mean
    values, vectors = torch.linalg.eigh(cells.T @ cells / len(cells))
    k = encoder.shape.components
    values, vectors = values[-k:], vectors[:, -k:]
    scale = (values.clamp(min=0) + 0.05 * values.mean().clamp(min=1e-12)).rsqrt()
    encoder.feature_mean.copy_(mean)
    encoder.projection.copy_((vectors * scale).T)


def _fit_w(
    encoder: Encoder,
    w: Tensor,
    components: Tensor,
    config: TrainingConfig,
    check: Callable[[], None],
    say: Callable[[Stage, float], None],
) -> None:
    """Mean squared error in W, one view of each sample an epoch; AdamW, the rate falls to zero as a cosine."""
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    n, device = len(w), encoder.w_avg.device
    steps = config.epochs * math.ceil(n / config.batch)
    step = 0
    for _ in range(config.epochs):
        order, view = torch.randperm(n), torch.randint(config.views, (n,))
        for i in range(0, n, config.batch):
            check()
            chosen = order[i : i + config.batch]
            x = components[chosen, view[chosen]].to(device).float()
            x = x + NOISE * torch.randn(x.shape).to(device)
            loss = ((encoder(x) - w[chosen].to(device)) / encoder.w_std).square().sum(dim=1).mean()
            _step(optimizer, loss, config.lr * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
            step += 1
        say("w", step / steps)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _fit_drawing(
    encoder: Encoder,
    generator: Generator,
    statistics: WStatistics,
    lpips: LPIPS,
    config: TrainingConfig,
    check: Callable[[], None],
    say: Callable[[Stage, float], None],
) -> None:
    """LPIPS between a fresh sample and what the generator draws for the w of its augmented view, and the error in W."""
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.drawing_lr, weight_decay=config.weight_decay)
    grid = encoder.shape.grid
    for step in range(config.drawing_steps):
        check()
        numbers = range(step * config.drawing_batch, (step + 1) * config.drawing_batch)
        w, images = draw(generator, statistics, numbers, "encoder drawing", config.seed)
        with torch.no_grad():
            seen = views(images, numbers, step % config.views, "encoder drawing", config.seed)
            components = encoder.project(grid_features(lpips, seen, grid))
            wanted = lpips.features(area_downsample(images, 256))
        found = encoder(components)
        drawn = generator.synthesis(found[:, None].expand(-1, generator.num_ws, -1))
        distance = lpips.distance(lpips.features(area_downsample(drawn, 256)), wanted)
        error = ((found - w) / encoder.w_std).square().sum(dim=1)
        fall = 0.5 + 0.5 * math.cos(math.pi * step / config.drawing_steps)
        _step(optimizer, (distance + config.w_weight * error).mean(), config.drawing_lr * fall)
        say("drawing", (step + 1) / config.drawing_steps)


@torch.no_grad()
def _measure(
    encoder: Encoder,
    generator: Generator,
    statistics: WStatistics,
    lpips: LPIPS,
    config: TrainingConfig,
    start: float,
    check: Callable[[], None],
    say: Callable[[Stage, float], None],
) -> Figures:
    """On samples of another stream, as they are."""
    errors, before, after = [], [], []
    average = statistics.w_avg[None, None].expand(1, generator.num_ws, -1)
    wanted_of_average = lpips.features(area_downsample(generator.synthesis(average), 256))
    for i in range(0, HELD_OUT, 8):
        check()
        w, images = draw(generator, statistics, range(i, i + 8), "encoder held out", config.seed)
        found = encoder.w_of(images, lpips)
        drawn = generator.synthesis(found[:, None].expand(-1, generator.num_ws, -1))
        wanted = lpips.features(area_downsample(images, 256))
        errors.append((found - w).square().sum(dim=1) / (statistics.w_avg - w).square().sum(dim=1))
        before.append(lpips.distance(wanted_of_average, wanted))
        after.append(lpips.distance(lpips.features(area_downsample(drawn, 256)), wanted))
        say("held out", (i + 8) / HELD_OUT)
    w_error, lpips_w_avg, lpips_encoder = (torch.cat(part).mean().item() for part in (errors, before, after))
    return Figures(HELD_OUT, w_error, lpips_w_avg, lpips_encoder, time.perf_counter() - start)


def _shares(
    generator: Generator, config: TrainingConfig, on_training: OnTraining | None
) -> Callable[[Stage, float], None]:
    """Turns the share of a stage into that of the whole, by what a drawing costs; only the display depends on it."""
    cost: dict[Stage, float] = {
        "samples": config.samples * (1 + 0.1 * config.views),
        "w": config.samples * config.epochs * 0.01,
        "drawing": config.drawing_steps * config.drawing_batch * 4.0,
        "held out": HELD_OUT * 2.0,
    }
    total, order = sum(cost.values()), list(cost)

    def say(stage: Stage, share: float) -> None:
        if on_training is not None:
            before = sum(cost[s] for s in order[: order.index(stage)])
            on_training(stage, min(1.0, (before + cost[stage] * share) / total))

    return say
