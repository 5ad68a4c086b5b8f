"""Noise maps as bytes: what a search has moved the generator's own maps by, in coarse steps.

Few values of a noise map move far, and the picture shows less of it than of anything else. So a map takes one to two
bits a value in place of six for the map as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pti_core.deltas.payloads import DeltaError, Reader, check_shape
from pti_core.deltas.plain import fp16_decode
from pti_core.deltas.symbols import decode_symbols, encode_symbols
from pti_core.generators.base import Generator

_FROM_OWN, _FROM_ZERO = b"n+", b"n0"  # what is stored is to be added to
_SIXTEENTHS: Final = b"n8"  # of an earlier version; an fp16 payload, of a still earlier one, begins as a zstd frame
STEPS: Final = 4
"""Steps of a standard deviation: an error of 1/8 of it at most, with which the generator is then tuned."""

_MOST: Final = 2**24  # steps, as float32 counts them


def encode_noise(noise: Sequence[Tensor], generator: Generator) -> bytes:
    """One image's noise maps (`[1, H, W]` or `[H, W]` each, about unit variance) as one payload.

    Values are rounded to a quarter, counted from the generator's own maps where that is nearer, as after a search that
    began there, else from zero. DeltaError where a value is not finite.
    """
    values = _flat(noise)
    if not np.isfinite(values).all():
        raise DeltaError("noise maps: a value is not finite")
    moved = values - _flat(generator.noise_const())
    near = bool(moved @ moved < values @ values)
    steps = moved if near else values
    steps *= STEPS
    np.rint(steps, out=steps).clip(-_MOST, _MOST, out=steps)  # which no maps of about unit variance come near
    return (_FROM_OWN if near else _FROM_ZERO) + encode_symbols(steps.astype(np.int32))


def decode_noise(payload: bytes, generator: Generator) -> list[Tensor]:
    """The maps as `[1, 1, H, W]` on the CPU, ready for `synthesis(noise=...)`, for the generator of `encode_noise`.

    A tuned copy is as good. Raises DeltaError where they do not fit it.
    """
    shapes = generator.noise_shapes
    sizes = [h * w for h, w in shapes]
    count, kind = check_shape((sum(sizes),), "noise maps"), payload[:2]
    if kind in (_FROM_OWN, _FROM_ZERO, _SIXTEENTHS):
        reader = Reader(payload[2:], "noise maps")
        if kind == _SIXTEENTHS:
            values = reader.array("i1", count) * np.float32(1 / 16)
        else:
            values = decode_symbols(reader, count).astype(np.float32) / np.float32(STEPS)
        reader.end()
        if kind == _FROM_OWN:
            values += _flat(generator.noise_const())
    else:
        values = fp16_decode(1.0, payload, (count,), "noise maps")
    return [part.view(1, 1, *shape) for part, shape in zip(torch.from_numpy(values).split(sizes), shapes, strict=True)]


def _flat(maps: Sequence[Tensor]) -> NDArray[np.float32]:
    parts = [m.detach().cpu().float().numpy().ravel() for m in maps]
    return np.concatenate(parts or [np.zeros(0, np.float32)])
