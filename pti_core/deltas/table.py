"""Weight deltas as rows of the deltas table: a codec a name, each with its inverse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pti_core.deltas.flat import moved_together
from pti_core.deltas.layered import MAX_RANK, Decomposed, pack, unpack
from pti_core.deltas.payloads import MAX_VALUES, Decoder, DeltaError, Encoder, NotFiniteError
from pti_core.deltas.plain import fp16_decode, fp16_encode, integer_codec
from pti_core.generators.base import Generator
from pti_core.machine.parallel import on_own_cores

ENERGY: Final = 0.95
"""The share of a kernel's squared values that the components of codec `svd` hold."""

COARSENESS: Final = 0.5
"""Step of `sparse`, and of `adaptive` where no picture decides it, by a tensor's root mean square."""


LARGE: Final = 1 << 19
"""Values of a tensor that takes long enough to be decoded by a thread of its own."""


@dataclass(frozen=True)
class EncodedTensor:
    """One row of the deltas table, without its owner."""

    tensor: str
    shape: tuple[int, ...]
    codec: str
    scale: float
    payload: bytes


def svd_encode(values: NDArray[np.float32], energy: float = ENERGY) -> tuple[float, bytes]:
    """Truncated SVD of a kernel as a matrix; what has no components (vectors, depthwise kernels) is rounded finely."""
    return truncated(Decomposed(torch.from_numpy(values), max_rank=MAX_VALUES), energy)


def truncated(whole: Decomposed, energy: float) -> tuple[float, bytes]:
    """Step and payload of as many components as hold a share of the squared values."""
    total = float(whole.x.square().sum())
    if total == 0:
        return 0.0, b""
    shares = whole.s.double().square().cumsum(0) / total
    rank = min(int((shares < energy).sum()) + 1, len(whole.s))
    # Rounding may add a tenth to the error of truncation: a factor's step costs step^2 / 12 a row and column.
    places = rank * sum(whole.x.shape) if rank else whole.x.numel()
    step = math.sqrt(1.2 * (1 - energy) * total / places)
    return step, pack(whole.quantise(step, rank, rest=not rank)[0])


def sparse_encode(values: NDArray[np.float32], coarseness: float = COARSENESS) -> tuple[float, bytes]:
    """Integers of one step; values below `DEAD_ZONE` of it are left out."""
    return _one_step(values, coarseness, 0)


def adaptive_encode(values: NDArray[np.float32], coarseness: float = COARSENESS) -> tuple[float, bytes]:
    """Low rank plus sparse with one step; `fitting` chooses step and weights by the picture instead."""
    return _one_step(values, coarseness, MAX_RANK)


def _one_step(values: NDArray[np.float32], coarseness: float, max_rank: int) -> tuple[float, bytes]:
    step = coarseness * float(np.sqrt(np.square(values, dtype=np.float64).mean())) if values.size else 0.0
    if step == 0:
        return 0.0, b""
    whole = Decomposed(torch.from_numpy(values), max_rank=max_rank)
    return step, pack(whole.quantise(step, whole.rank(step))[0])


CODECS: Final[dict[str, tuple[Encoder, Decoder]]] = {
    "fp16": (fp16_encode, fp16_decode),
    "int8": integer_codec(8),
    "int4": integer_codec(4),
    "svd": (svd_encode, unpack),
    "sparse": (sparse_encode, unpack),
    "adaptive": (adaptive_encode, unpack),
}


def encode(delta: Mapping[str, Tensor], codec: str = "fp16") -> list[EncodedTensor]:
    """Encode a delta (finite tensors by parameter name) with a codec of `CODECS`, each tensor by itself.

    `fitting.fit` does it by what the picture needs. Raises DeltaError for an unknown codec, and NotFiniteError where a
    value is not finite.
    """
    if codec not in CODECS:
        raise DeltaError(f"codec {codec!r}: one of {sorted(CODECS)} expected")
    rows = []
    on_cpu = moved_together([value.detach() for value in delta.values()], torch.device("cpu"))
    for name, value in zip(delta, on_cpu, strict=True):
        check_finite(name, value)
        scale, payload = CODECS[codec][0](value.numpy().astype(np.float32))
        rows.append(EncodedTensor(name, tuple(value.shape), codec, scale, payload))
    return rows


def check_finite(name: str, value: Tensor) -> None:
    """NotFiniteError where a tensor has NaN or infinity."""
    if not bool(torch.isfinite(value).all()):
        raise NotFiniteError(f"tensor {name!r}: a value of the delta is not finite; the tuning diverged")


def decode(rows: Sequence[EncodedTensor], shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """The delta that `encode` was given, float32 on the CPU, to the codec's precision.

    With the `shapes` of the generator's tensors (by name) a row of another name or shape is refused before anything
    of its size is made. Raises DeltaError where a row is damaged or a tensor comes twice. Large tensors are decoded on
    all cores that the caller's arithmetic may take, the small ones together by one of them.
    """
    for name, times in Counter(row.tensor for row in rows).items():
        if times > 1:
            raise DeltaError(f"tensor {name!r}: {times} rows; take those of one owner in one run")
    for row in rows:
        if row.codec not in CODECS:
            raise DeltaError(f"tensor {row.tensor!r}: codec {row.codec!r}, one of {sorted(CODECS)} expected")
        if not (math.isfinite(row.scale) and row.scale >= 0):
            raise DeltaError(f"tensor {row.tensor!r}: scale {row.scale}, a number from 0 expected; the row is damaged")
        if shapes is not None:
            check_fits(row.tensor, tuple(row.shape), shapes)
    large = [row for row in rows if math.prod(row.shape) >= LARGE]
    small = [row for row in rows if math.prod(row.shape) < LARGE]
    jobs = [*([row] for row in sorted(large, key=lambda row: -len(row.payload))), small]  # the longest first
    decoded = {name: value for found in on_own_cores(_decode_rows, jobs) for name, value in found.items()}
    return {row.tensor: decoded[row.tensor] for row in rows}


def _decode_rows(rows: Sequence[EncodedTensor]) -> dict[str, Tensor]:
    found = {}
    for row in rows:
        decoder = CODECS[row.codec][1]
        found[row.tensor] = torch.from_numpy(
            decoder(row.scale, row.payload, tuple(row.shape), f"tensor {row.tensor!r}")
        )
    return found


def check_fits(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """DeltaError where a generator with these shapes has no such tensor."""
    if name not in shapes:
        raise DeltaError(f"tensor {name!r} is not in this generator; was the delta made for another one?")
    if shapes[name] != shape:
        raise DeltaError(f"tensor {name!r}: shape {list(shape)} in the delta, {list(shapes[name])} in the generator")


def shapes_of(generator: Generator) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that a delta may have."""
    return {name: tuple(p.shape) for name, p in generator.tunable().items()}


@torch.no_grad()
def apply(generator: Generator, delta: Mapping[str, Tensor]) -> None:
    """Add a delta to a generator's parameters, in place; a tensor that is not in the delta stays.

    Raises DeltaError, changing nothing, where a name or shape does not fit the generator.
    """
    parameters, shapes = generator.tunable(), shapes_of(generator)
    for name, value in delta.items():
        check_fits(name, tuple(value.shape), shapes)
    if changed := [parameters[name].detach() for name in delta]:
        torch._foreach_add_(changed, moved_together(list(delta.values()), changed[0].device))
