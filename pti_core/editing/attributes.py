"""How far along a direction an image looks: what an edit is asked for, seen in the image.

A linear regression from features of an image (those of LPIPS, pooled to 4 x 4) to its w's coordinate along each
direction, learned from the generator's own samples. So no labels and no other network are needed, for any generator
and any direction; how well it sees a direction is told by samples that it was not learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from pti_core.directions import Direction
from pti_core.generators.base import Generator
from pti_core.machine.parallel import in_parallel
from pti_core.metrics import round_uint8
from pti_core.perceptual import LPIPS
from pti_core.sampling import WStatistics

POOLED: Final = 4
PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # times the mean eigenvalue of the Gram matrix
HELD: Final = 5  # every fifth sample is held out
BATCH: Final = 8


@dataclass(frozen=True)
class Attributes:
    """The regression of K directions."""

    lpips: LPIPS
    mean: Tensor  # [D], of features
    weights: Tensor  # [D, K]
    level: Tensor  # [K]
    r2: Tensor  # [K], on held-out samples: 1 sees the direction perfectly, 0 not at all

    def __call__(self, images: Tensor) -> Tensor:
        """Coordinates `[N, K]` of images in [-1, 1], in standard deviations of W along each direction."""
        return (features(self.lpips, images) - self.mean) @ self.weights + self.level


def features(lpips: LPIPS, images: Tensor) -> Tensor:
    """What the regression sees, `[N, D]`, of images `[N, C, H, W]` in [-1, 1], at 8 bits."""
    maps = lpips.features(round_uint8(images))
    # LPIPS divides by the number of positions; here each layer counts alike.
    pooled = [F.adaptive_avg_pool2d(x * (x.shape[2] * x.shape[3]) ** 0.5, POOLED).flatten(1) for x in maps]
    return torch.cat(pooled, dim=1)


@torch.no_grad()
def fit_attributes(
    generator: Generator, statistics: WStatistics, lpips: LPIPS, directions: Sequence[Direction], samples: int = 1500
) -> Attributes:
    """Learn from `samples` of the generator (with its own noise), a fifth of which only choose the penalty.

    Raises ValueError for a direction that does not move all layers alike: a sample has no coordinate along it.
    """
    for direction in directions:
        if direction.vector.ndim != 1:
            raise ValueError(
                f"direction {direction.name!r} moves layers {direction.layers}; one that moves all expected"
            )
    w = statistics.samples[:samples]

    def drawn(part: Tensor, check: Callable[[], None]) -> Tensor:
        check()
        with torch.no_grad():
            return features(lpips, generator.synthesis(part[:, None].expand(-1, generator.num_ws, -1)))

    x = torch.cat(list(in_parallel(drawn, w.split(BATCH), w.device)))
    axes = torch.stack([d.vector.to(w.device) / d.sigma for d in directions], dim=1)
    y = (w - statistics.w_avg) @ axes  # [N, K]
    held = torch.arange(len(x), device=x.device) % HELD == 0
    mean, level = x[~held].mean(dim=0), y[~held].mean(dim=0)
    seen, rest = x[~held] - mean, y[~held] - level
    gram = seen @ seen.T  # among images: there are fewer of them than features
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in PENALTIES:
        ridge = penalty * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
        weights = seen.T @ torch.linalg.solve(gram + ridge, rest)
        error = (x[held] - mean) @ weights + level - y[held]
        r2 = 1 - error.square().mean(dim=0) / y[held].var(dim=0)
        if best is None or float(r2.mean()) > best[0]:
            best = float(r2.mean()), weights, r2
    assert best is not None
    return Attributes(lpips, mean, best[1], level, best[2])


@torch.no_grad()
def usual_change(
    attributes: Attributes,
    generator: Generator,
    statistics: WStatistics,
    direction: Direction,
    number: int,
    count: int,
    strength: float,
) -> float:
    """What an edit changes the attribute `number` by, on average over samples that were held out.

    A regression from noisy features says less than the truth, and less the further an edit goes; divided by this, 1 is
    what the generator usually does. Raises ValueError where the regression does not see the edit at all.
    """
    w = statistics.samples[: count * HELD : HELD]
    changes = []
    for one in w:
        ws = one[None, None].expand(1, generator.num_ws, -1)
        ends = attributes(torch.cat([generator.synthesis(direction.edit(ws, s)) for s in (0.0, strength)]))[:, number]
        changes.append(ends[1] - ends[0])
    mean = float(torch.stack(changes).mean())
    if mean * strength <= 0:
        raise ValueError(
            f"direction {direction.name!r} at strength {strength:g} is not seen in the generator's samples"
        )
    return mean
