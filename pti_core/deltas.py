"""Weight deltas and noise maps as bytes: a codec a name, each with its inverse.

A codec turns a float32 array into (scale, payload). `fp16` divides by the largest magnitude, rounds to half
precision, puts the high bytes of all values before the low ones (they compress far better apart), and zstd follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pti_core.generators.base import Generator

ZSTD_LEVEL = 3


class DeltaError(ValueError):
    """A stored delta that does not fit its generator, or is damaged."""


@dataclass(frozen=True)
class EncodedTensor:
    """One row of the deltas table, without its owner."""

    tensor: str
    shape: tuple[int, ...]
    codec: str
    scale: float
    payload: bytes


def _compress(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(data))


def _decompress(data: bytes, size: int, what: str) -> bytes:
    try:
        return bytes(pa.Codec("zstd").decompress(data, decompressed_size=size))
    except (pa.ArrowException, OSError) as error:
        raise DeltaError(f"{what}: the payload is damaged ({error}); do its shard again") from error


def _fp16_encode(values: np.ndarray) -> tuple[float, bytes]:
    scale = float(np.abs(values).max(initial=0.0))
    halves = (values / (scale or 1.0)).astype("<f2").ravel()
    planes = halves.view(np.uint8).reshape(-1, 2).T
    return scale, _compress(planes.tobytes())


def _fp16_decode(scale: float, payload: bytes, shape: tuple[int, ...], what: str) -> np.ndarray:
    count = math.prod(shape)
    planes = np.frombuffer(_decompress(payload, 2 * count, what), np.uint8)
    if planes.size != 2 * count:
        raise DeltaError(f"{what}: {planes.size} bytes for shape {list(shape)}, {2 * count} expected")
    halves = np.ascontiguousarray(planes.reshape(2, -1).T).view("<f2")
    values = halves.astype(np.float32).reshape(shape)
    return np.multiply(values, np.float32(scale), out=values)


Encoder = Callable[[np.ndarray], tuple[float, bytes]]
Decoder = Callable[[float, bytes, tuple[int, ...], str], np.ndarray]
CODECS: dict[str, tuple[Encoder, Decoder]] = {"fp16": (_fp16_encode, _fp16_decode)}


def encode(delta: dict[str, Tensor], codec: str = "fp16") -> list[EncodedTensor]:
    """Encode a delta (tensors by parameter name) with a codec of `CODECS`; DeltaError where it is unknown."""
    if codec not in CODECS:
        raise DeltaError(f"codec {codec!r}: one of {sorted(CODECS)} expected")
    rows = []
    for name, value in delta.items():
        scale, payload = CODECS[codec][0](value.detach().cpu().numpy().astype(np.float32))
        rows.append(EncodedTensor(name, tuple(value.shape), codec, scale, payload))
    return rows


def decode(rows: Sequence[EncodedTensor]) -> dict[str, Tensor]:
    """The delta that `encode` was given, to the codec's precision. Raises DeltaError where a row is damaged."""
    delta = {}
    for row in rows:
        if row.codec not in CODECS:
            raise DeltaError(f"tensor {row.tensor!r}: codec {row.codec!r}, one of {sorted(CODECS)} expected")
        value = CODECS[row.codec][1](row.scale, row.payload, tuple(row.shape), f"tensor {row.tensor!r}")
        delta[row.tensor] = torch.from_numpy(value)
    return delta


@torch.no_grad()
def apply(generator: Generator, delta: dict[str, Tensor]) -> None:
    """Add a delta to a generator's parameters, in place; a tensor that is not in the delta stays.

    Raises DeltaError, changing nothing, where a name or shape does not fit the generator.
    """
    parameters = generator.tunable()
    for name, value in delta.items():
        if name not in parameters:
            raise DeltaError(f"tensor {name!r} is not in this generator; was the delta made for another one?")
        if parameters[name].shape != value.shape:
            found, expected = list(value.shape), list(parameters[name].shape)
            raise DeltaError(f"tensor {name!r}: shape {found} in the delta, {expected} in the generator")
    for name, value in delta.items():
        parameters[name].add_(value.to(parameters[name].device))


def encode_noise(noise: Sequence[Tensor]) -> bytes:
    """One image's noise maps (`[1, H, W]` or `[H, W]` each) as one fp16 + zstd payload; they have unit variance."""
    values = np.concatenate([n.detach().cpu().numpy().ravel() for n in noise]).astype("<f2")
    return _compress(values.view(np.uint8).reshape(-1, 2).T.tobytes())


def decode_noise(payload: bytes, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The maps as `[1, 1, H, W]`, ready for `synthesis(noise=...)`. Raises DeltaError where they do not fit."""
    sizes = [h * w for h, w in shapes]
    flat = torch.from_numpy(_fp16_decode(1.0, payload, (sum(sizes),), "noise maps"))
    return [part.view(1, 1, *shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
