"""Edit directions in W. GANSpace (Haerkoenen et al. 2020): principal components of mapped samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pti_core.generators.base import Generator
from pti_core.perceptual import LPIPS, area_downsample
from pti_core.sampling import WStatistics

LPIPS_RESOLUTION = 256


@dataclass(frozen=True)
class Direction:
    """A direction in W and its natural step."""

    name: str
    vector: Tensor  # [w_dim], unit length
    sigma: float  # standard deviation of W along it: an edit of strength s moves w by s * sigma

    def edit(self, ws: Tensor, strength: float) -> Tensor:
        """Move ws `[N, num_ws, w_dim]` by `strength` standard deviations, all layers alike."""
        return ws + strength * self.sigma * self.vector.to(ws.device)


def principal_components(statistics: WStatistics, count: int) -> list[Direction]:
    """The `count` directions of largest variance, largest first.

    Their sign is arbitrary; the largest coordinate is made positive, so that it is always the same.
    """
    centred = (statistics.samples - statistics.w_avg).double()
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    directions = []
    for i in range(1, min(count, len(variances)) + 1):
        vector = vectors[:, -i]
        vector = vector * vector[vector.abs().argmax()].sign()
        directions.append(Direction(f"PC{i}", vector.float(), float(variances[-i].clamp_min(0).sqrt())))
    return directions


@torch.no_grad()
def visible_directions(
    generator: Generator,
    statistics: WStatistics,
    lpips: LPIPS,
    count: int = 2,
    candidates: int = 8,
    strength: float = 2.0,
) -> list[Direction]:
    """The `count` principal components that change the mean image most (LPIPS between both ends), in that order."""
    directions = principal_components(statistics, candidates)
    ws = statistics.w_avg[None, None].expand(1, generator.num_ws, -1)
    change = {}
    for direction in directions:
        ends = torch.cat([direction.edit(ws, -strength), direction.edit(ws, strength)])
        features = lpips.features(area_downsample(generator.synthesis(ends), LPIPS_RESOLUTION))
        change[direction.name] = lpips.distance([f[:1] for f in features], [f[1:] for f in features]).item()
    return sorted(directions, key=lambda d: -change[d.name])[:count]
