"""Integers, most of them small or zero, as few bytes: what quantised layers are stored as.

zstd codes a byte in no less than one bit, so rare integers are stored as the gaps between them, which fill a byte well,
their signs as bits, and their magnitudes in the same way again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pti_core.deltas.payloads import Reader, section

_ZERO, _DENSE, _GAPS = 0, 1, 2  # the first byte; a dense one is followed by the width, 1, 2 or 4 bytes
_JUMP = 255  # a gap byte that moves on by 255 without a symbol
_DEPTH = 24  # magnitudes of magnitudes: ends long before this, since each time one is taken off

Integers = NDArray[np.int32]
Decoded = NDArray[np.signedinteger[Any]]  # int8 where a byte holds each, else int32


def encode_symbols(symbols: Integers, depth: int = 0) -> bytes:
    """Integers `[n]` as bytes, by the shorter way: each of them, or places and values of those that are not zero."""
    places = np.flatnonzero(symbols != 0)  # several times as fast as of integers
    if not len(places):
        return bytes([_ZERO])
    if depth == _DEPTH or 2 * len(places) > len(symbols):
        return _dense(symbols)
    return min(_sparse(symbols, places, depth), _dense(symbols), key=len)


def _sparse(symbols: Integers, places: NDArray[Any], depth: int) -> bytes:
    values = symbols[places]
    gaps = np.diff(places, prepend=-1) - 1
    jumps = gaps // _JUMP
    stream = np.full(len(gaps) + int(jumps.sum()), _JUMP, np.uint8)
    stream[np.cumsum(jumps + 1) - 1] = gaps % _JUMP
    return (
        bytes([_GAPS])
        + len(places).to_bytes(4, "little")
        + section(stream.tobytes())
        + np.packbits(values < 0).tobytes()
        + encode_symbols(np.abs(values) - 1, depth + 1)
    )


def _dense(symbols: Integers) -> bytes:
    zigzag = ((symbols << 1) ^ (symbols >> 31)).view(np.uint32)
    largest = int(zigzag.max())
    width = next(w for w in (1, 2, 4) if largest < 256**w)
    planes = [(zigzag >> np.uint32(8 * i)).astype(np.uint8).tobytes() for i in range(width)]
    return bytes([_DENSE, width]) + section(b"".join(planes))


def decode_symbols(reader: Reader, count: int) -> Decoded:
    """The `count` integers that `encode_symbols` was given. DeltaError where there are others."""
    places, values = decode_sparse(reader, count)
    if places is None:
        return values
    symbols = np.zeros(count, values.dtype)
    symbols[places] = values
    return symbols


def decode_sparse(reader: Reader, count: int, depth: int = 0) -> tuple[NDArray[np.intp] | None, Decoded]:
    """The same as places of the non-zero integers and their values; None and all values where they lie densely."""
    kind = reader.take(1)[0]
    if kind == _ZERO:
        return np.zeros(0, np.intp), np.zeros(0, np.int8)
    if kind == _DENSE:
        return None, _read_dense(reader, count)
    if kind != _GAPS or depth > _DEPTH:
        raise reader.damaged(f"symbols of kind {kind}")
    some = int.from_bytes(reader.take(4), "little")
    if 2 * some > count:  # or levels of magnitudes, each as long as the last, would fill the memory
        raise reader.damaged(f"{some} symbols in a tensor of {count}")
    stream = np.frombuffer(reader.section(some + count // _JUMP + 1), np.uint8)
    places = _places(stream)
    if len(places) != some or (some and places[-1] >= count):
        raise reader.damaged(f"places of {len(places)} symbols, {some} below {count} expected")
    negative = np.unpackbits(np.frombuffer(reader.take((some + 7) // 8), np.uint8), count=some)
    values = np.ones(some, np.int32)
    more_places, more = decode_sparse(reader, some, depth + 1)
    if more_places is None:
        values += more
    else:
        values[more_places] += more
    values *= 1 - 2 * negative.view(np.int8)
    return places, values


def _places(stream: NDArray[np.uint8]) -> NDArray[np.intp]:
    # What numpy takes as indices as they are: with narrower ones every use would convert them.
    places = (np.minimum(stream, _JUMP - 1) + np.uint8(1)).cumsum(dtype=np.intp)
    if len(stream) and stream.max() == _JUMP:
        places = places[stream != _JUMP]
    places -= 1
    return places


def _read_dense(reader: Reader, count: int) -> Decoded:
    width = reader.take(1)[0]
    if width not in (1, 2, 4):
        raise reader.damaged(f"symbols of {width} bytes")
    planes = reader.array("u1", width * count).reshape(width, count)
    if width == 1:
        return ((planes[0] >> 1) ^ -(planes[0] & 1)).view(np.int8)
    zigzag = planes[0].astype(np.uint32)
    for i in range(1, width):
        zigzag |= planes[i].astype(np.uint32) << np.uint32(8 * i)
    return (zigzag >> 1).astype(np.int32) ^ -(zigzag & 1).astype(np.int32)
