"""Damaged and hostile rows: refused with one sentence that names the tensor, at no cost."""

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from pti_core import deltas
from pti_core.deltas.payloads import MAX_VALUES, Reader, section
from pti_core.deltas.symbols import decode_symbols

CODECS = sorted(deltas.CODECS)


def row_of(codec: str) -> deltas.EncodedTensor:
    torch.manual_seed(0)
    kernel = torch.randn(24, 2) @ torch.randn(2, 16 * 9) + 0.3 * torch.randn(24, 16 * 9)
    return deltas.encode({"a.weight": kernel.reshape(24, 16, 3, 3) * 1e-3}, codec)[0]


@pytest.mark.parametrize("codec", CODECS)
def test_every_truncation_is_refused(codec):
    row = row_of(codec)
    whole = len(row.payload)
    for size in sorted({*range(1, 40), *range(40, whole, max(1, whole // 60)), whole - 1}):
        with pytest.raises(deltas.DeltaError, match=r"'a\.weight'.*damaged \(.*; `pti check`, then the same `pti run`"):
            deltas.decode([replace(row, payload=row.payload[:size])])


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bits_give_an_error_or_finite_values(codec):
    """A value may change unseen (the store's checksums are for that); a crash, a NaN or another shape may not."""
    row, rng, refused = row_of(codec), np.random.default_rng(0), 0
    for trial in range(300):
        data = bytearray(row.payload)
        at = trial if trial < 60 else int(rng.integers(len(data)))  # the first bytes are the structure
        data[at] ^= 1 << int(rng.integers(8))
        try:
            value = deltas.decode([replace(row, payload=bytes(data))])["a.weight"]
        except deltas.DeltaError:
            refused += 1
        else:
            assert value.shape == (24, 16, 3, 3)
            assert bool(torch.isfinite(value).all())
    assert refused > 0


@pytest.mark.parametrize("codec", CODECS)
def test_garbage_and_another_tensors_payload_are_refused(codec):
    row, rng = row_of(codec), np.random.default_rng(1)
    for payload in (b"not a payload", rng.bytes(500), b"\xff" * 100, row.payload + b"\0"):
        if codec == "fp16" and payload == row.payload + b"\0":
            continue  # zstd itself says what follows a frame
        with pytest.raises(deltas.DeltaError, match=r"'a\.weight'"):
            deltas.decode([replace(row, payload=payload)])
    for shape in ((24, 16, 3, 2), (24, 16, 3, 4), (12, 32, 3, 3), (3456,)):
        if codec == "fp16" and int(np.prod(shape)) == 3456:
            continue  # a plain list of values knows no shape
        with pytest.raises(deltas.DeltaError, match=r"'a\.weight'"):
            deltas.decode([replace(row, shape=shape)])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(2**31 - 1, 2**31 - 1), (MAX_VALUES + 1,), (-4, 16, 3, 3)])
def test_absurd_shapes_are_refused_before_memory_is_taken(codec, shape):
    row = row_of(codec)
    tracemalloc.start()
    try:
        for payload in (row.payload, b""):
            with pytest.raises(deltas.DeltaError, match=r"'a\.weight'.*(shape|damaged)"):
                deltas.decode([replace(row, shape=shape, payload=payload)])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def head(rank: int) -> bytes:
    return struct.pack("<HI", rank, 24 * 16 * 9)


def test_absurd_sizes_inside_a_payload_are_refused_before_memory_is_taken():
    bomb = struct.pack("<II", 2**32 - 1, 20)
    bombs = {
        "int8": [bomb + b"x" * 20],
        "adaptive": [
            head(60_000) + bomb,  # a rank that the matrix cannot have
            head(1) + bomb,
            head(0) + section(b"") + section(b"\0" * 24) + section(b"\0" * 16) + b"\x02" + b"\xff" * 4 + bomb,
            head(0) + section(b"") + section(b"\0" * 24) + section(b"\0" * 16) + b"\x01\x04" + bomb,
        ],
    }
    tracemalloc.start()
    try:
        for codec, payloads in bombs.items():
            for payload in payloads:
                row = deltas.EncodedTensor("a.weight", (24, 16, 3, 3), codec, 1.0, payload)
                with pytest.raises(deltas.DeltaError, match=r"'a\.weight'.*damaged"):
                    deltas.decode([row])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("codec", CODECS)
def test_a_scale_that_is_no_size_is_refused(codec, scale):
    with pytest.raises(deltas.DeltaError, match=r"'a\.weight'.*scale"):
        deltas.decode([replace(row_of(codec), scale=scale)])


@pytest.mark.parametrize("codec", ["svd", "adaptive", "int8"])
def test_numbers_that_are_not_finite_are_refused(codec):
    row = row_of(codec)
    # The first section is the sizes of the components, or the channels' steps.
    at = row.payload.index(section(np.frombuffer(first_numbers(row), "<f4").tobytes()))
    old = section(first_numbers(row))
    bad = bytearray(first_numbers(row))
    bad[:4] = struct.pack("<f", float("nan"))
    payload = row.payload[:at] + section(bytes(bad)) + row.payload[at + len(old) :]
    with pytest.raises(deltas.DeltaError, match=r"'a\.weight'.*(finite|positive)"):
        deltas.decode([replace(row, payload=payload)])


def first_numbers(row: deltas.EncodedTensor) -> bytes:
    reader = Reader(row.payload, "x")
    count = 24 if row.codec == "int8" else struct.unpack("<HI", reader.take(6))[0]
    return reader.array("<f4", count).tobytes()


def test_rows_for_another_generator_are_refused_before_they_are_decoded():
    row = replace(row_of("adaptive"), payload=b"damaged too")
    with pytest.raises(deltas.DeltaError, match="not in this generator"):
        deltas.decode([row], {"b.weight": (24, 16, 3, 3)})
    with pytest.raises(deltas.DeltaError, match=r"shape \[24, 16, 3, 3\] in the delta, \[24, 16, 1, 1\]"):
        deltas.decode([row], {"a.weight": (24, 16, 1, 1)})
    with pytest.raises(deltas.DeltaError, match="codec 'int99'"):
        deltas.decode([replace(row, codec="int99")])


def test_magnitudes_of_magnitudes_do_not_fill_the_memory():
    """A level has at most half the symbols of the last one, or two dozen of them would take as many tensors."""
    count = 1000
    level = bytes([2]) + (count // 2 + 1).to_bytes(4, "little")
    with pytest.raises(deltas.DeltaError, match="501 symbols in a tensor of 1000"):
        decode_symbols(Reader(level, "tensor 'x'"), count)
