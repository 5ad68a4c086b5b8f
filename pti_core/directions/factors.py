"""Directions without labels: principal components of W, and factors of the style affines.

GANSpace (Haerkoenen et al. 2020, arXiv 2004.02546) and SeFa (Shen and Zhou 2021, arXiv 2007.06600).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pti_core.directions.direction import Direction, DirectionError, make_direction, slots_of
from pti_core.generators.base import Generator
from pti_core.perceptual import LPIPS, area_downsample
from pti_core.sampling import WStatistics

LPIPS_RESOLUTION = 256


def principal_components(statistics: WStatistics, count: int) -> list[Direction]:
    """The `count` directions of largest variance in W, largest first (GANSpace), named `pca-0`, `pca-1`, ...

    Their sign is arbitrary; the largest coordinate is made positive, so that it is always the same.
    """
    centred = (statistics.samples - statistics.w_avg).double()
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    directions = []
    for i in range(min(count, len(variances))):
        vector = _signed(vectors[:, -1 - i])
        sigma = float(variances[-1 - i].clamp_min(0).sqrt())
        directions.append(Direction(f"pca-{i}", vector.float(), sigma))
    return directions


def style_factors(generator: Generator, statistics: WStatistics, count: int, layers: str = "all") -> list[Direction]:
    """The `count` directions that change the styles of the chosen layers most (SeFa), most first.

    The eigenvectors of A^T A, where A holds the affines from w to the styles of these layers, each of its rows (one
    style channel) of unit length as in the authors' code. The sign is as in `principal_components`.
    Raises DirectionError for layers that the generator does not have.
    """
    styles = generator.styles()
    affines = torch.cat([styles[slot].affine.detach().cpu().double() for slot in slots_of(generator, layers)])
    affines = affines / affines.norm(dim=1, keepdim=True).clamp_min(1e-12)
    _, vectors = torch.linalg.eigh(affines.T @ affines)
    return [
        make_direction(f"sefa-{i}", _signed(vectors[:, -1 - i]), generator, statistics, layers)
        for i in range(min(count, vectors.shape[1]))
    ]


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


def pick(directions: list[Direction], kind: str, number: int) -> Direction:
    """The direction of a number, from 0. DirectionError where there are fewer."""
    if number >= len(directions):
        raise DirectionError(
            f"direction '{kind}:{number}': this generator has {kind}:0 to {kind}:{len(directions) - 1}"
        )
    return directions[number]


def _signed(vector: Tensor) -> Tensor:
    return vector * vector[vector.abs().argmax()].sign()
