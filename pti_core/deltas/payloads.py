"""Bytes of a payload: zstd, sections with their sizes, and the limits that a damaged or hostile payload cannot pass.

Every size is checked against what the tensor's shape allows before anything of that size is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

MAX_VALUES: Final = 2**26
"""Values of one tensor, or noise values of one image, that are read: seven times the largest kernel of any StyleGAN."""

_PARAMETERS: Final = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, window_log=20, hash_log=6, chain_log=6, search_log=1, target_length=0
)
"""zstd that hardly looks for repetitions: long runs are found, and all else is left to its Huffman codes.

Rounded numbers repeat nothing but what chance made repeat, and to say where that was costs more than it saves. Of the
levels those below 10 take 5 to 18 % more bytes, and 15, which takes about as many, 40 to 190 times as long.
"""

_SIZES = struct.Struct("<II")  # raw and stored size of a section


class DeltaError(ValueError):
    """A delta that cannot be stored, does not fit its generator, or is damaged."""


class NotFiniteError(DeltaError):
    """A delta that has NaN or infinity: the tuning diverged."""


def check_shape(shape: tuple[int, ...], what: str) -> int:
    """The number of values of a shape. DeltaError where no generator has such a tensor."""
    if any(n < 0 for n in shape) or math.prod(shape) > MAX_VALUES:
        raise DeltaError(f"{what}: shape {list(shape)}, at most {MAX_VALUES} values expected; the row is damaged")
    return math.prod(shape)


def compress(data: bytes) -> bytes:
    """One zstd frame."""
    # A compressor of its own, since threads may not share one; it is made in 25 microseconds.
    return zstandard.ZstdCompressor(compression_params=_PARAMETERS).compress(data)


def decompress(data: bytes, size: int, what: str) -> bytes:
    """The `size` bytes of a zstd frame; DeltaError where it holds fewer or more, or is damaged."""
    try:
        return bytes(pa.Codec("zstd").decompress(data, decompressed_size=size))
    except (pa.ArrowException, OSError) as error:
        raise damaged(what, str(error)) from error


def damaged(what: str, why: str) -> DeltaError:
    """The error for a payload that cannot be decoded."""
    return DeltaError(f"{what}: the payload is damaged ({why}); `pti check`, then the same `pti run` make it again")


def section(data: bytes) -> bytes:
    """Bytes with their sizes before them, compressed where that is shorter."""
    stored = min(data, compress(data), key=len)  # as it is where both are as long: `Reader` tells them by that
    return _SIZES.pack(len(data), len(stored)) + stored


class Reader:
    """Reads a payload's sections one after the other; every error is a DeltaError that begins with `what`."""

    def __init__(self, payload: bytes, what: str) -> None:
        self._data, self._at, self.what = memoryview(payload), 0, what

    def take(self, size: int) -> bytes:
        """The next `size` bytes, as they are."""
        if not 0 <= size <= len(self._data) - self._at:
            raise self.damaged(f"it ends after {len(self._data)} bytes, {size} more expected at {self._at}")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def section(self, most: int) -> bytes:
        """A section's bytes, at most `most`."""
        raw, stored = _SIZES.unpack(self.take(_SIZES.size))
        if raw > most or stored > raw:
            raise self.damaged(f"a section of {raw} bytes stored as {stored}, at most {most} expected")
        data = self.take(stored)
        return data if stored == raw else decompress(data, raw, self.what)

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        """A section of exactly `count` numbers."""
        size = count * np.dtype(dtype).itemsize
        data = self.section(size)
        if len(data) != size:
            raise self.damaged(f"a section of {len(data)} bytes, {size} expected")
        return np.frombuffer(data, dtype)

    def end(self) -> None:
        """DeltaError where bytes are left."""
        if self._at != len(self._data):
            raise self.damaged(f"{len(self._data) - self._at} bytes left over")

    def damaged(self, why: str) -> DeltaError:
        """The error to raise where the payload makes no sense."""
        return damaged(self.what, why)


Encoder = Callable[[NDArray[np.float32]], tuple[float, bytes]]
"""Values of any shape, finite, to scale and payload."""

Decoder = Callable[[float, bytes, tuple[int, ...], str], NDArray[np.float32]]
"""Scale, payload, shape and a name for errors to values. DeltaError where they do not belong together."""
