"""Edits of one inverted image: what a direction does to its tuned generator, beside what it does to the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pti_core.directions import Direction
from pti_core.editing.identity import Embedding, identity
from pti_core.generators.base import Generator
from pti_core.metrics import round_uint8
from pti_core.perceptual import LPIPS


@dataclass(frozen=True)
class Edit:
    """One direction at one strength; the measures of the table `edits`."""

    direction: str
    layers: str
    strength: float
    distance: float
    lpips: float
    lpips_base: float
    correlation: float | None
    gain: float | None
    identity: float | None


@torch.no_grad()
def edits(
    base: Generator,
    tuned: Generator,
    ws: Tensor,
    noise: Sequence[Tensor] | None,
    wanted: Sequence[tuple[Direction, float]],
    lpips: LPIPS,
    embedding: Embedding | None = None,
) -> Iterator[tuple[Edit, Tensor]]:
    """Apply directions at their strengths to one pivot ws `[1, num_ws, w_dim]`, in both generators, with its noise.

    Yields the measures, on images rounded to 8 bits, and the tuned generator's edited image `[1, C, H, W]` in [-1, 1].
    """
    unedited = round_uint8(tuned.synthesis(ws, noise=noise))
    unedited_base = round_uint8(base.synthesis(ws, noise=noise))
    features, features_base = lpips.features(unedited), lpips.features(unedited_base)
    for direction, strength in wanted:
        moved = direction.edit(ws, strength)
        image = round_uint8(tuned.synthesis(moved, noise=noise))
        image_base = round_uint8(base.synthesis(moved, noise=noise))
        change, change_base = image - unedited, image_base - unedited_base
        yield (
            Edit(
                direction=direction.name,
                layers=direction.layers,
                strength=strength,
                distance=abs(strength) * direction.sigma,
                lpips=lpips.distance(lpips.features(image), features).item(),
                lpips_base=lpips.distance(lpips.features(image_base), features_base).item(),
                correlation=correlation(change, change_base),
                gain=size_ratio(change, change_base),
                identity=None if embedding is None else identity(embedding, image, unedited).item(),
            ),
            image,
        )


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's, over all pixels and channels of two images of changes; None where one of them is constant."""
    a, b = (x.double().flatten() - x.double().mean() for x in (a, b))
    norms = a.norm() * b.norm()
    return float((a @ b) / norms) if norms > 1e-9 else None


def size_ratio(a: Tensor, b: Tensor) -> float | None:
    """The root mean square of one image of changes by the other's; None where that is zero."""
    size = b.double().square().mean().sqrt()
    return float(a.double().square().mean().sqrt() / size) if size > 0 else None
