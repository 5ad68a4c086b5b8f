"""Codecs: what is decoded is what was encoded, to their precision."""

import copy

import pytest
import torch

from pti_core import deltas


def small_delta() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(8, 4, 3, 3) * 1e-3,
        "a.bias": torch.randn(8) * 1e-6,
        "strength": torch.tensor(0.25),
        "zero": torch.zeros(5),
    }


@pytest.mark.parametrize("codec", sorted(deltas.CODECS))
def test_round_trip(codec):
    delta = small_delta()
    rows = deltas.encode(delta, codec)
    decoded = deltas.decode(rows)
    assert decoded.keys() == delta.keys()
    for name, value in delta.items():
        assert decoded[name].shape == value.shape
        # Half precision relative to the tensor's largest value: 2^-11 of each value, 2^-25 of the largest.
        tolerance = {"rtol": 2**-11, "atol": value.abs().max().item() * 2**-24}
        torch.testing.assert_close(decoded[name], value, **tolerance)


def test_payloads_are_smaller_than_half_precision():
    delta = {"w": torch.randn(256, 256) * 1e-3}
    (row,) = deltas.encode(delta)
    assert len(row.payload) < 2 * delta["w"].numel()


def test_unknown_codec_and_damaged_payloads_are_refused_by_name():
    with pytest.raises(deltas.DeltaError, match="int99"):
        deltas.encode(small_delta(), "int99")
    row = deltas.encode(small_delta())[0]
    for payload in (b"", b"not zstd", row.payload[: len(row.payload) // 2]):
        broken = deltas.EncodedTensor(row.tensor, row.shape, row.codec, row.scale, payload)
        with pytest.raises(deltas.DeltaError, match=r"a\.weight"):
            deltas.decode([broken])


def test_wrong_shape_in_a_row_is_refused():
    row = deltas.encode(small_delta())[0]
    with pytest.raises(deltas.DeltaError, match=r"a\.weight"):
        deltas.decode([deltas.EncodedTensor(row.tensor, (8, 4, 3, 2), row.codec, row.scale, row.payload)])


def test_apply_adds_the_delta_and_refuses_another_generators(tiny_generator):
    generator = copy.deepcopy(tiny_generator)
    names = list(generator.tunable())
    delta = {names[0]: torch.ones_like(generator.tunable()[names[0]])}
    before = {name: p.clone() for name, p in generator.tunable().items()}
    deltas.apply(generator, delta)
    after = generator.tunable()
    torch.testing.assert_close(after[names[0]], before[names[0]] + 1)
    assert all(torch.equal(after[n], before[n]) for n in names[1:])
    with pytest.raises(deltas.DeltaError, match="not in this generator"):
        deltas.apply(generator, {"synthesis.b4096.conv1.weight": torch.ones(1)})
    with pytest.raises(deltas.DeltaError, match="shape"):
        deltas.apply(generator, {names[0]: torch.ones(1, 2, 3)})


def test_noise_round_trip(tiny_generator):
    shapes = tiny_generator.noise_shapes
    noise = [torch.randn(1, 1, *shape) for shape in shapes]
    decoded = deltas.decode_noise(deltas.encode_noise(noise), shapes)
    for a, b in zip(noise, decoded, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-10, atol=1e-6)
    with pytest.raises(deltas.DeltaError, match="noise"):
        deltas.decode_noise(deltas.encode_noise(noise), shapes[:-1])
