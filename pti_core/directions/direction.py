"""A direction in W, its natural step, and the layers that it moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from pti_core.generators.base import Generator
from pti_core.sampling import WStatistics

RANGES: Final = {"coarse": (0, 8), "middle": (16, 32), "fine": (64, math.inf)}
"""Resolutions of the features, pixels, as in style mixing (Karras et al. 2019, section 3.1)."""


class DirectionError(ValueError):
    """A direction that does not exist or does not fit; the message says why and what to do."""


@dataclass(frozen=True)
class Direction:
    """A direction in W and its natural step.

    The unit of strength is the same for all: standard deviations of W along the direction. So 2 is an edit that the
    generator's own samples make too, whatever the direction and wherever it comes from.
    """

    name: str
    vector: Tensor  # [w_dim], unit length; or [num_ws, w_dim], rows of layers that are left alone are zero
    sigma: float  # standard deviation of W along it: an edit of strength s moves w by s * sigma
    layers: str = "all"

    def edit(self, ws: Tensor, strength: float) -> Tensor:
        """Move ws `[N, num_ws, w_dim]` by `strength` standard deviations."""
        return ws + strength * self.sigma * self.vector.to(ws.device)


def slots_of(generator: Generator, layers: str) -> list[int]:
    """The slots of ws that `layers` names: `all`, `coarse`, `middle`, `fine`, `4`, `4-7`, or several joined by `+`.

    Raises DirectionError for another word and for a range that this generator does not have.
    """
    resolutions = [style.resolution for style in generator.styles()]
    found: set[int] = set()
    for part in layers.split("+"):
        first, dash, last = part.partition("-")
        if part == "all":
            found |= set(range(generator.num_ws))
        elif part in RANGES:
            low, high = RANGES[part]
            found |= {slot for slot, resolution in enumerate(resolutions) if low <= resolution <= high}
        elif first.isdecimal() and (last.isdecimal() or not dash):
            low, high = (min(int(slot), generator.num_ws) for slot in (first, last or first))  # however large it is
            found |= set(range(low, high + 1))
        else:
            raise DirectionError(
                f"layers {layers!r}: all, coarse, middle, fine, 4, 4-7, or several joined by + expected"
            )
    if not found or max(found) >= generator.num_ws:
        size = f"{generator.num_ws} layers, of {resolutions[0]} to {resolutions[-1]} pixels"
        raise DirectionError(f"layers {layers!r}: this generator has {size}; 0-{generator.num_ws - 1} are there")
    return sorted(found)


def make_direction(
    name: str, vector: Tensor, generator: Generator, statistics: WStatistics, layers: str = "all"
) -> Direction:
    """A direction of any length as a `Direction`: unit length, and its standard deviation measured on samples of W.

    vector: `[w_dim]`, `[1, w_dim]`, or `[num_ws, w_dim]` with a row a layer. Rows keep their proportions: unit length
    means a root mean square of one over the rows that move something, and sigma is the root mean square of theirs.
    Raises DirectionError for another shape, for NaN, and where nothing is moved.
    """
    num_ws, w_dim = generator.num_ws, generator.w_dim
    rows = vector.detach().cpu().double()
    rows = rows.view(1, -1) if rows.ndim == 1 else rows
    if rows.ndim == 3 and len(rows) == 1:
        rows = rows[0]
    if rows.ndim != 2 or rows.shape[1] != w_dim or rows.shape[0] not in (1, num_ws):
        expected = f"[{w_dim}], [1, {w_dim}] or [{num_ws}, {w_dim}]"
        raise DirectionError(f"direction {name!r} has the shape {list(vector.shape)}; this generator takes {expected}")
    if not bool(torch.isfinite(rows).all()):
        raise DirectionError(f"direction {name!r} holds NaN or infinite values; finite ones expected")
    if layers != "all":
        chosen = slots_of(generator, layers)
        kept = torch.zeros(num_ws, w_dim, dtype=rows.dtype)
        kept[chosen] = rows.expand(num_ws, -1)[chosen]
        rows = kept
    moved = rows[rows.norm(dim=1) > 0]
    if not len(moved):
        raise DirectionError(f"direction {name!r} is zero in the layers {layers!r}: it moves nothing")
    length = moved.square().sum(dim=1).mean().sqrt()
    samples = (statistics.samples - statistics.w_avg).cpu().double()
    sigma = float((samples @ (moved / length).T).square().mean().sqrt())
    rows = (rows / length).float()
    return Direction(name, rows[0] if len(rows) == 1 else rows, sigma, layers)
