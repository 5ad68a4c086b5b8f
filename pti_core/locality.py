"""Locality: points around a pivot at which the old and the new generator must agree (PTI equations 4 and 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pti_core.config import PAPER_NUM_WS


def radius_of_alpha(alpha: float) -> float:
    """The distance in W that an alpha of the paper means: alpha / sqrt(18).

    The published values (30, 60) are norms over the whole broadcast tensor [num_ws, w_dim] of a generator with 18
    layers, each of which holds the same w; as a distance between two w they are sqrt(18) times less: 30 is 7.07,
    half of the mean distance between two samples of FFHQ's W (14.0), and 60 is nearly w_z. The factor is the
    published one whatever the generator's own number of layers, so that one alpha is one distance in W.
    """
    return alpha / math.sqrt(PAPER_NUM_WS)


@dataclass(frozen=True)
class Interpolated:
    """Points w_r and where they lie."""

    ws: Tensor  # [N, num_ws, w_dim]
    radius: Tensor  # [N], distance from the pivot in W
    t: Tensor  # [N], radius / ||w_z - w_p||: 0 is the pivot, 1 is w_z, above 1 lies beyond it


def distance_in_w(a: Tensor, b: Tensor) -> Tensor:
    """Distance `[N]` of ws `[N, num_ws, w_dim]`, in units of W: of broadcast w it is ||w_a - w_b||.

    (The norm over all slots divided by sqrt(num_ws); W+ pivots are measured the same way.)
    """
    difference = a - b
    return difference.square().sum(dim=(1, 2)).sqrt() / math.sqrt(difference.shape[1])


def interpolate(ws_pivot: Tensor, w_z: Tensor, alpha: float) -> Interpolated:
    """w_r = w_p + radius * (w_z - w_p) / ||w_z - w_p|| (equation 4), the norm for each sample on its own.

    ws_pivot: `[N, num_ws, w_dim]`; w_z: `[N, w_dim]`, mapped samples; alpha: above 0, in the paper's unit. Raises
    ValueError for another alpha.
    """
    if alpha <= 0:
        raise ValueError(
            f"alpha {alpha}: above 0 expected (in the paper's unit; 30 is half way to a sample, 60 nearly)"
        )
    ws_z = w_z[:, None].expand_as(ws_pivot)
    distance = distance_in_w(ws_z, ws_pivot).clamp_min(1e-12)
    radius = torch.full_like(distance, radius_of_alpha(alpha))
    t = radius / distance
    return Interpolated(ws_pivot + t[:, None, None] * (ws_z - ws_pivot), radius, t)
