"""Codecs that round each value by itself: half precision, and integers with a scale for each output channel."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pti_core.deltas.payloads import Decoder, Encoder, Reader, check_shape, compress, damaged, decompress, section

Values = NDArray[np.float32]


def fp16_encode(values: Values) -> tuple[float, bytes]:
    """Half precision of the values by the largest; all low bytes, then all high ones, which zstd packs far better."""
    scale = float(np.abs(values).max(initial=0.0))
    halves = (values / (scale or 1.0)).astype("<f2").ravel()
    return scale, compress(halves.view(np.uint8).reshape(-1, 2).T.tobytes())


def fp16_decode(scale: float, payload: bytes, shape: tuple[int, ...], what: str) -> Values:
    """To 2^-11 of each value and 2^-25 of the largest."""
    count = check_shape(shape, what)
    planes = np.frombuffer(decompress(payload, 2 * count, what), np.uint8)
    planes = planes.reshape(2, -1)
    if count and (planes[1] & 0x7F).max() >= 0x7C:
        raise damaged(what, "a value is not finite")
    halves = planes[1].astype(np.uint16)
    halves <<= 8
    halves |= planes[0]
    values = torch.from_numpy(halves.view(np.float16)).float()  # several times as fast as numpy's
    return values.mul_(scale).numpy().reshape(shape)


def rows_of(shape: tuple[int, ...]) -> int:
    """Output channels: the first dimension of a kernel or matrix; a vector or scalar is one channel."""
    return shape[0] if len(shape) > 1 else 1


def integer_codec(bits: int) -> tuple[Encoder, Decoder]:
    """Integers of 8 or 4 bits, by channel: each value to half a 127th (a 7th) of its channel's largest.

    The payload is the channels' steps (float32, in units of `scale`) and the integers from 0, two in a byte for 4 bits.
    """
    top = 2 ** (bits - 1) - 1

    def encode(values: Values) -> tuple[float, bytes]:
        if not values.any():
            return 0.0, b""
        rows = values.reshape(rows_of(values.shape), -1)
        steps = (np.abs(rows).max(axis=1) / top).astype("<f4")
        scale = float(steps.max())
        levels = (np.rint(rows / np.where(steps > 0, steps, 1)[:, None]).clip(-top, top) + top).astype(np.uint8).ravel()
        if bits == 4:
            even = np.append(levels, np.uint8(0)) if len(levels) % 2 else levels
            levels = even[::2] | even[1::2] << 4
        return scale, section((steps / np.float32(scale)).astype("<f4").tobytes()) + section(levels.tobytes())

    def decode(scale: float, payload: bytes, shape: tuple[int, ...], what: str) -> Values:
        count, channels, reader = check_shape(shape, what), rows_of(shape), Reader(payload, what)
        if not payload:
            return np.zeros(shape, np.float32)
        steps = reader.array("<f4", channels) * np.float32(scale)
        if not np.isfinite(steps * np.float32(256)).all():  # times any level
            raise reader.damaged("a channel's step is not finite")
        levels = reader.array("u1", count if bits == 8 else (count + 1) // 2)
        reader.end()
        if bits == 4:
            levels = np.stack([levels & 15, levels >> 4], axis=1).ravel()[:count]
        values = levels.reshape(channels, -1).astype(np.float32)
        values -= top
        values *= steps[:, None]
        return values.reshape(shape)

    return encode, decode
