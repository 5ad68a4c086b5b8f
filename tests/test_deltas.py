"""Codecs: what is decoded is what was encoded, to each codec's stated precision."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from pti_core import deltas
from pti_core.deltas import layered, table
from pti_core.deltas.flat import Flat
from pti_core.deltas.payloads import Reader, compress, section
from pti_core.deltas.symbols import _dense, _sparse, decode_symbols, encode_symbols
from pti_core.deltas.together import Together
from pti_core.generators.mobilestylegan import MobileStyleGAN
from pti_core.runs import encoded_tensors
from pti_core.tables import records, to_parquet
from pti_core.tables import table as make_table


def low_rank_kernel(seed: int, o: int = 40, i: int = 24, k: int = 3, rank: int = 3) -> torch.Tensor:
    """A kernel as tuning makes it: a few strong directions, and a floor of noise."""
    torch.manual_seed(seed)
    strong = torch.randn(o, rank) @ torch.randn(rank, i * k * k)
    return (strong + 0.3 * torch.randn(o, i * k * k)).reshape(o, i, k, k) * 1e-3


def some_delta() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "kernel": low_rank_kernel(1),
        "matrix": torch.randn(30, 17) * torch.logspace(-6, 0, 30)[:, None],
        "depthwise": torch.randn(33, 1, 3, 3) * 1e-3,
        "one_row": torch.randn(1, 13),
        "bias": torch.randn(9) * 1e-6,
        "strength": torch.tensor(0.25),
        "negative": torch.tensor(-3e-9),
        "zero": torch.zeros(5, 7),
        "zero_row": torch.cat([torch.zeros(1, 8), torch.randn(15, 8)]),
        "outlier": torch.cat([torch.full((1,), 1e4), torch.randn(300) * 1e-3]).reshape(7, 43),
        "empty": torch.zeros(0, 3),
    }


def worst_by_row(value: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each output channel, as what it is broadcast against."""
    if value.ndim < 2:
        return value.abs().max()
    rows = value.abs().reshape(len(value), -1).max(dim=1).values if value.numel() else torch.zeros(len(value))
    return rows.reshape(-1, *[1] * (value.ndim - 1))


def bound(codec: str, value: torch.Tensor) -> torch.Tensor:
    """How far a decoded value may be off, by the codec's own words."""
    if codec == "fp16":
        return value.abs() * 2**-11 + (value.abs().max() if value.numel() else 0) * 2**-24
    if codec in ("int8", "int4"):
        return worst_by_row(value) / {"int8": 127, "int4": 7}[codec] * 0.5001 + 1e-30
    rms = value.square().mean().sqrt() if value.numel() else torch.tensor(0.0)
    return rms * table.COARSENESS * layered.DEAD_ZONE * 1.001 + value.abs() * 1e-6


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "sparse", "adaptive"])
def test_every_value_is_as_near_as_the_codec_says(codec):
    delta = some_delta()
    decoded = deltas.decode(deltas.encode(delta, codec))
    assert list(decoded) == list(delta)
    for name, value in delta.items():
        assert decoded[name].shape == value.shape
        assert decoded[name].dtype == torch.float32
        excess = (decoded[name].double() - value.double()).abs() - bound(codec, value.double())
        assert bool((excess <= 0).all()), (name, excess.max())


def test_svd_keeps_the_energy_it_names_and_no_more_rank_than_that():
    """Against the whole SVD in float64."""
    delta = {"kernel": low_rank_kernel(3, o=64, i=48)}
    (row,) = deltas.encode(delta, "svd")
    matrix, decoded = (d["kernel"].double().reshape(64, -1) for d in (delta, deltas.decode([row])))
    singular = torch.linalg.svdvals(matrix).square()
    shares = singular.cumsum(0) / singular.sum()
    rank = int((shares < table.ENERGY).sum()) + 1
    assert layered._HEAD.unpack_from(row.payload) == (rank, matrix.numel())
    lost = float((matrix - decoded).square().sum() / matrix.square().sum())
    assert 1 - float(shares[rank - 1]) <= lost <= (1 - table.ENERGY) * 1.2


def test_large_tensors_are_decoded_by_several_threads_to_the_same_values():
    delta = {
        "first": torch.randn(8, 4),
        "large": torch.randn(800, 700),
        "last": torch.randn(6),
        "other": torch.randn(750, 700),
    }
    rows = deltas.encode(delta, "adaptive")
    assert sum(value.numel() >= table.LARGE for value in delta.values()) == 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = deltas.decode(rows)
        torch.set_num_threads(2)
        together = deltas.decode(rows)
        with ThreadPoolExecutor(1) as pool:  # nobody else is left with one thread
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 2
        with pytest.raises(deltas.DeltaError, match=r"'large'.*damaged"):
            deltas.decode([replace(row, payload=row.payload[:-9]) if row.tensor == "large" else row for row in rows])
    finally:
        torch.set_num_threads(threads)
    assert list(together) == list(alone) == list(delta)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("codec", sorted(deltas.CODECS))
def test_zeros_stay_zeros_and_cost_next_to_nothing(codec):
    delta = {"kernel": torch.zeros(64, 32, 3, 3), "scalar": torch.tensor(0.0)}
    rows = deltas.encode(delta, codec)
    assert all(row.scale == 0 and len(row.payload) < 40 for row in rows)
    assert all(not bool(value.any()) for value in deltas.decode(rows).values())


@pytest.mark.parametrize("codec", sorted(deltas.CODECS))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(codec, bad):
    delta = some_delta()
    delta["matrix"][3, 4] = bad
    with pytest.raises(deltas.DeltaError, match=r"'matrix'.*not finite"):
        deltas.encode(delta, codec)


@pytest.mark.parametrize(("codec", "bits"), [("fp16", 16), ("int8", 8), ("int4", 4), ("svd", 4), ("sparse", 3)])
def test_payloads_take_few_bits_a_value(codec, bits):
    """`fp16` to `int4` must beat what they would take unpacked, by the entropy of a bell curve."""
    delta = {"w": low_rank_kernel(4, o=256, i=64)}
    (row,) = deltas.encode(delta, codec)
    assert 8 * len(row.payload) < bits * delta["w"].numel()


def test_the_weights_of_channels_decide_where_errors_go():
    """An error of a row with twice the weight is half as large; the layers decode to what `quantise` said."""
    kernel = low_rank_kernel(6, o=32, i=16)
    weights = layered.Weights(np.repeat([0, 6], 16).astype(np.int8), np.repeat([-2, 2], 8).astype(np.int8))
    whole = layered.Decomposed(kernel, weights)
    step = float(whole.x.square().mean().sqrt())
    rank = whole.rank(step)
    assert rank >= 1
    parts, promised = whole.quantise(step, rank)
    decoded = torch.from_numpy(layered.unpack(step, layered.pack(parts), whole.shape, "kernel"))
    torch.testing.assert_close(decoded, promised, rtol=1e-4, atol=1e-9)
    weight = torch.tensor([1.0] * 16 + [8.0] * 16)[:, None] * torch.tensor([0.5] * 8 + [2.0] * 8)
    assert bool(((decoded - kernel).abs() * weight[:, :, None, None] <= step * layered.DEAD_ZONE * 1.001).all())


@pytest.mark.parametrize("share", [0.2, 1.0, 50.0])  # of a root mean square: all components, some, nothing at all
def test_tensors_together_are_quantised_to_the_bit_as_each_alone(share):
    delta = some_delta() | {"another": low_rank_kernel(9, 130, 20)}
    rng = np.random.default_rng(0)
    sides = [layered.matrix_shape(tuple(value.shape)) for value in delta.values()]
    weights = [layered.Weights(*(rng.integers(-9, 9, n).astype(np.int8) for n in (o, i))) for o, i, _ in sides]
    flat, decoded = (Flat([tuple(value.shape) for value in delta.values()], torch.device("cpu")) for _ in range(2))
    torch._foreach_copy_(flat.views, list(delta.values()))
    together, step = Together(flat, weights), share * float(delta["kernel"].square().mean().sqrt())
    for layers, *one in zip(together.layers(step, decoded), decoded.views, delta.values(), weights, strict=True):
        found, value, by_channel = one
        whole = layered.Decomposed(value, by_channel)
        alone, expected = whole.quantise(step, whole.rank(step))
        assert torch.equal(found, expected)
        assert layered.pack(layers) == layered.pack(alone)
    before = decoded.values.clone()
    together.quantise(step, decoded)
    assert torch.equal(decoded.values.nan_to_num(), before.nan_to_num())


def slow_low_rank_plus_sparse(step, layers, shape):
    """The formula of `layered`, in plain loops and float64."""
    o, i, k = layered.matrix_shape(shape)
    x = np.zeros((o, i * k))
    for a in range(o):
        for b in range(i * k):
            x[a, b] = layers.rest[a, b] * step
            for c, size in enumerate(layers.sizes.tolist()):
                x[a, b] += layers.u[a, c] * step * layers.v[b, c] * step / size
            x[a, b] /= 2 ** (layers.weights.rows[a] / 2) * 2 ** (layers.weights.columns[b // k] / 2)
    return x.reshape(shape)


@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.25, 1.0])  # of values in the last layer: none, few, many, all
def test_layers_decode_as_the_formula_says(rank, share):
    kernel = low_rank_kernel(7, o=14, i=7, k=2)
    rng = np.random.default_rng(0)
    weights = layered.Weights(rng.integers(-9, 9, 14).astype(np.int8), rng.integers(-9, 9, 7).astype(np.int8))
    whole = layered.Decomposed(kernel, weights)
    step = float(whole.x.square().mean().sqrt()) / 3
    layers, _ = whole.quantise(step, rank)
    there = torch.from_numpy(rng.permutation(layers.rest.numel()) < share * layers.rest.numel())
    layers = replace(layers, rest=torch.where(there.reshape(layers.rest.shape), layers.rest.sign() * 300 + 200, 0.0))
    decoded = layered.unpack(step, layered.pack(layers), whole.shape, "kernel")
    expected = slow_low_rank_plus_sparse(step, layers, whole.shape)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_leading_components_are_those_of_the_whole_svd():
    x = low_rank_kernel(8, o=60, i=30).reshape(60, -1)
    u, s, v = layered.leading_components(x, 20)
    whole = torch.linalg.svd(x.double(), full_matrices=False)
    torch.testing.assert_close(s[:3].double(), whole.S[:3], rtol=1e-4, atol=0)
    best = float((x - (whole.U[:, :20] * whole.S[:20]) @ whole.Vh[:20]).square().sum())
    assert float((x - (u * s) @ v.T).square().sum()) <= 1.15 * best  # a flat tail, whose components are all alike
    torch.testing.assert_close(u.T @ u, torch.eye(20), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "symbols",
    [
        [],
        [0] * 1000,
        [0] * 999 + [1],
        [0] * 254 + [1],  # the gaps around the byte that jumps
        [0] * 255 + [-1],
        [0] * 256 + [7] + [0] * 765 + [-7],
        [3],
        [2**31 - 1 - 2**30, -(2**30), 0, 1],
        [127, -128, 0, 5],  # all that a byte holds
        [127, -128, 128, 300, -40000],
        [0] * 9 + [129] + [0] * 9 + [-129],
    ],
)
def test_symbols_come_back(symbols):
    given = np.array(symbols, np.int32)
    reader = Reader(encode_symbols(given), "x")
    assert decode_symbols(reader, len(given)).tolist() == symbols
    reader.end()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.45, 0.9])
def test_symbols_take_little_more_than_their_entropy(share):
    rng = np.random.default_rng(1)
    symbols = (rng.random(100_000) < share) * rng.choice([-2, -1, 1, 2], 100_000, p=[0.1, 0.4, 0.4, 0.1])
    data = encode_symbols(symbols.astype(np.int32))
    assert decode_symbols(Reader(data, "x"), len(symbols)).tolist() == symbols.tolist()
    p = np.unique(symbols, return_counts=True)[1] / len(symbols)
    assert 8 * len(data) < 1.13 * len(symbols) * -(p * np.log2(p)).sum()


@pytest.mark.parametrize("share", [0.01, 0.04, 0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("scattered", [True, False])  # not: as in the first of many components, where each is stored
def test_the_shorter_way_is_taken(share, scattered):
    rng, count = np.random.default_rng(2), 50_000
    there = rng.random(count) < share if scattered else np.arange(count) < share * count
    symbols = (there * np.rint(5 * rng.standard_normal(count))).astype(np.int32)
    dense, sparse = _dense(symbols), _sparse(symbols, np.flatnonzero(symbols), 0)
    assert (len(dense) < len(sparse)) != scattered
    assert encode_symbols(symbols) == min(dense, sparse, key=len)


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0])
def test_rounded_numbers_are_left_to_huffman_codes(scale):
    """Repetitions that chance made cost more than they save: at zstd's usual level 10 to 25 %."""
    numbers = np.rint(scale * np.random.default_rng(3).standard_normal(200_000)).astype(np.int8)
    p = np.unique(numbers, return_counts=True)[1] / len(numbers)
    data = compress(numbers.tobytes())
    assert 8 * len(data) < 1.1 * len(numbers) * -(p * np.log2(p)).sum()
    assert len(data) < 0.95 * len(pa.Codec("zstd").compress(numbers.tobytes()))


def test_runs_take_next_to_nothing():
    assert len(compress(bytes(2**20))) < 200


def test_tables_of_before_are_read():
    """The fp16 payload as it has always been: halves by the largest, planes of bytes, one zstd frame."""
    value = low_rank_kernel(9)
    scale = float(value.abs().max())
    halves = (value.numpy() / scale).astype("<f2").ravel()
    payload = pa.Codec("zstd").compress(halves.view(np.uint8).reshape(-1, 2).T.tobytes()).to_pybytes()
    row = deltas.EncodedTensor("w", tuple(value.shape), "fp16", scale, payload)
    torch.testing.assert_close(deltas.decode([row])["w"], value, rtol=2**-11, atol=scale * 2**-24)


@pytest.mark.parametrize("codec", sorted(deltas.CODECS))
def test_rows_survive_parquet(codec):
    rows = deltas.encode(some_delta(), codec)
    data = [asdict(row) | {"owner": "a", "base_sha256": "f" * 64} for row in rows]
    frame = pd.read_parquet(io.BytesIO(to_parquet("deltas", make_table("deltas", data))))
    assert encoded_tensors(records(frame), "f" * 64) == rows


def test_unknown_codec_is_refused():
    with pytest.raises(deltas.DeltaError, match="int99"):
        deltas.encode(some_delta(), "int99")


def test_the_same_tensor_of_two_runs_is_refused():
    one, other = (deltas.encode({"a": torch.full((4, 4), value)}, "int8") for value in (1.0, 2.0))
    with pytest.raises(deltas.DeltaError, match="tensor 'a': 2 rows; take those of one owner in one run"):
        deltas.decode([*one, *other])


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


def own_noise(generator):
    return [n[None, None] for n in generator.noise_const()]


@pytest.mark.parametrize("moved", [0.0, 0.2, 1.0, 3.0])
def test_noise_round_trip(tiny_generator, moved):
    torch.manual_seed(0)
    noise = [n + moved * torch.randn_like(n) for n in own_noise(tiny_generator)]
    payload = deltas.encode_noise(noise, tiny_generator)
    decoded = deltas.decode_noise(payload, tiny_generator)
    for a, b in zip(noise, decoded, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1 / 8 + 1e-6)
    bits = 8 * len(payload) / sum(n.numel() for n in noise)
    assert bits < {0.0: 0.1, 0.2: 3.5, 1.0: 5, 3.0: 6.5}[moved]
    again = deltas.encode_noise(decoded, tiny_generator)
    assert all(map(torch.equal, decoded, deltas.decode_noise(again, tiny_generator)))
    if payload[2:] != b"\0":  # not all zeros
        with pytest.raises(deltas.DeltaError, match="noise"):
            deltas.decode_noise(payload[:-5], tiny_generator)
    with pytest.raises(deltas.DeltaError, match="noise"):
        deltas.decode_noise(payload + b"\0", tiny_generator)
    noise[0][0, 0, 0, 0] = torch.nan
    with pytest.raises(deltas.DeltaError, match="not finite"):
        deltas.encode_noise(noise, tiny_generator)


def test_noise_that_began_elsewhere_is_counted_from_zero(tiny_generator):
    noise = [torch.randn(1, 1, *shape) for shape in tiny_generator.noise_shapes]
    payload = deltas.encode_noise(noise, tiny_generator)
    assert payload[:2] == b"n0"
    for a, b in zip(noise, deltas.decode_noise(payload, tiny_generator), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1 / 8 + 1e-6)


def test_noise_is_near_also_where_a_small_map_of_the_generator_is_of_another_scale():
    generator = MobileStyleGAN([8] * 6, z_dim=8, w_dim=8, num_layers=2)
    noise = [n.clone() for n in own_noise(generator)]
    generator.noise_const()[0].mul_(30)
    payload = deltas.encode_noise(noise, generator)
    assert payload[:2] == b"n+"
    for a, b in zip(noise, deltas.decode_noise(payload, generator), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1 / 8 + 1e-5)


def test_noise_of_another_generator_is_refused(tiny_generator):
    payload = deltas.encode_noise([2 * n for n in own_noise(tiny_generator)], tiny_generator)
    larger = MobileStyleGAN([32, 32, 16, 16], z_dim=16, w_dim=24, num_layers=4)
    with pytest.raises(deltas.DeltaError, match="noise maps"):
        deltas.decode_noise(payload, larger)


def test_noise_of_before_is_read(tiny_generator):
    noise = [torch.randn(1, 1, *shape) for shape in tiny_generator.noise_shapes]
    values = np.concatenate([n.numpy().ravel() for n in noise])
    halves = pa.Codec("zstd").compress(values.astype("<f2").view(np.uint8).reshape(-1, 2).T.tobytes()).to_pybytes()
    for a, b in zip(noise, deltas.decode_noise(halves, tiny_generator), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-10, atol=1e-6)
    sixteenths = b"n8" + section(np.rint(values * 16).astype(np.int8).tobytes())
    for a, b in zip(noise, deltas.decode_noise(sixteenths, tiny_generator), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1 / 32 + 1e-6)
