"""Noise maps of a synthesis network: its own, fresh ones, none, or given ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pti_core.generators.base import NoiseMode


class NoisyLayer(Protocol):
    """A layer with a fixed noise map `[resolution, resolution]` of its own."""

    resolution: int
    noise_const: Tensor


def noise_maps(
    layers: Sequence[NoisyLayer], n: int, mode: NoiseMode, given: Sequence[Tensor] | None = None
) -> list[Tensor | None]:
    """The map `[n or 1, 1, H, W]` that each layer adds, before its strength; None for no noise.

    Raises ValueError for an unknown mode, and where the number or a shape of `given` maps does not fit.
    """
    if given is not None:
        if len(given) != len(layers):
            raise ValueError(f"{len(given)} noise maps given, the generator takes {len(layers)}")
        for i, (layer, m) in enumerate(zip(layers, given, strict=True)):
            size = layer.resolution
            if m.ndim != 4 or m.shape[0] not in (1, n) or m.shape[1:] != (1, size, size):
                raise ValueError(f"noise map {i} of shape {list(m.shape)}: [{n} or 1, 1, {size}, {size}] expected")
        return list(given)
    if mode == "none":
        return [None] * len(layers)
    if mode == "const":
        return [layer.noise_const[None, None] for layer in layers]
    if mode == "random":
        return [torch.randn_like(layer.noise_const.expand(n, 1, -1, -1)) for layer in layers]
    raise ValueError(f"noise_mode {mode!r}: 'const', 'random' or 'none' expected")
