"""Noise maps as bytes: eight bits a value, or (in older tables) half precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pti_core.deltas.payloads import FAST, DeltaError, Reader, check_shape, section
from pti_core.deltas.plain import fp16_decode

_MAGIC: Final = b"n8"  # an fp16 payload begins with the bytes of a zstd frame instead
STEPS: Final = 16
"""Steps of a standard deviation: an error of 1/32 of it at most, well below what the picture shows."""


def encode_noise(noise: Sequence[Tensor]) -> bytes:
    """One image's noise maps (`[1, H, W]` or `[H, W]` each, unit variance) as one payload.

    Values are rounded to 1/16, which keeps about 6 bits of each; beyond +-7.9 they are clipped. DeltaError where a
    value is not finite.
    """
    values = np.concatenate([n.detach().cpu().float().numpy().ravel() for n in noise] or [np.zeros(0, np.float32)])
    if not np.isfinite(values).all():
        raise DeltaError("noise maps: a value is not finite")
    # Noise repeats nothing: a thorough search for repetitions finds none, in forty times the time.
    return _MAGIC + section(np.rint(values * STEPS).clip(-127, 127).astype(np.int8).tobytes(), FAST)


def decode_noise(payload: bytes, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The maps as `[1, 1, H, W]`, ready for `synthesis(noise=...)`. Raises DeltaError where they do not fit."""
    sizes = [h * w for h, w in shapes]
    count = check_shape((sum(sizes),), "noise maps")
    if payload.startswith(_MAGIC):
        reader = Reader(payload[len(_MAGIC) :], "noise maps")
        values = reader.array("i1", count) * np.float32(1 / STEPS)
        reader.end()
    else:  # of a table written before
        values = fp16_decode(1.0, payload, (count,), "noise maps")
    return [part.view(1, 1, *shape) for part, shape in zip(torch.from_numpy(values).split(sizes), shapes, strict=True)]
