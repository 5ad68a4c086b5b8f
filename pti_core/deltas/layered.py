"""Low rank plus sparse: the format of the codecs `svd`, `sparse` and `adaptive`.

A tensor is read as a matrix: output channels by everything else. Its rows and columns are multiplied by powers of
sqrt(2), so that an error of one size costs the same anywhere (see `fitting`); in that domain everything is an integer
times one step, which is the row's `scale`:

    x = sum_k (u_k step) (v_k step)^T / s_k  +  q step,        delta = x / (row weight * column weight)

with integers u_k, v_k, q and a float32 s_k for each component. Near a pivot most of a tuned kernel's change is of low
rank, and what is left of it is mostly below the step, hence zero.

A payload is empty for a tensor of zeros. Else it holds the rank (u16) and the number of values (u32), s (float32
each), the exponents of the weights (int8, halves of octaves; a weight for each output and each input channel), u and
v in groups of components, and q.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pti_core.deltas.payloads import Reader, check_shape, section
from pti_core.deltas.symbols import Decoded, decode_sparse, decode_symbols, encode_symbols

GROUP: Final = 32
"""Components whose integers are coded together: of one size, so that one Huffman table suits them."""

MAX_RANK: Final = 96
_MIN_SIDE: Final = 12  # a matrix with a shorter side has no components worth their factors
_WORTH: Final = 0.1  # a component is kept where s^2 > this * step^2 * (rows + columns): what its rounded factors cost
DEAD_ZONE: Final = 0.7
"""What is left is zero below this share of a step (0.5 would be plain rounding): a rare integer costs a whole byte."""

_MANY: Final = 0.1  # of a matrix' values: so many are weighted sooner as a matrix than one by one
_POWER_STEPS, _RANK_SEED = 2, 0
_HEAD = struct.Struct("<HI")
_LARGEST = 1e37  # of a float32, with room for a sum


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Output channels, input channels and taps `(o, i, k)`; a vector or scalar is one channel of each."""
    if len(shape) < 2:
        return 1, 1, int(np.prod(shape, dtype=np.int64))
    return shape[0], shape[1], int(np.prod(shape[2:], dtype=np.int64))


@dataclass(frozen=True)
class Weights:
    """What an error costs by channel: weight 2^(exponent / 2)."""

    rows: NDArray[np.int8]  # [o]
    columns: NDArray[np.int8]  # [i]

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Weights:
        """All weights are one."""
        o, i, _ = matrix_shape(shape)
        return cls(np.zeros(o, np.int8), np.zeros(i, np.int8))

    def row_weights(self) -> NDArray[np.float32]:
        """`[o]`."""
        return np.exp2(self.rows.astype(np.float32) / 2)

    def column_weights(self, taps: int) -> NDArray[np.float32]:
        """`[i * taps]`."""
        return np.repeat(np.exp2(self.columns.astype(np.float32) / 2), taps)


@dataclass(frozen=True)
class Layers:
    """A quantised tensor: integers, the step they are multiplied by, and the sizes of the components."""

    step: float
    weights: Weights
    sizes: Tensor  # [rank], float32
    u: Tensor  # [o, rank], whole numbers
    v: Tensor  # [i * k, rank]
    rest: Tensor | None  # [o, i * k]


class Decomposed:
    """A tensor in its weighted domain with its leading components: computed once, quantised with many steps."""

    def __init__(self, delta: Tensor, weights: Weights | None = None, max_rank: int = MAX_RANK) -> None:
        self.shape = tuple(delta.shape)
        o, i, k = matrix_shape(self.shape)
        self.weights = weights or Weights.none(self.shape)
        rows = torch.from_numpy(self.weights.row_weights()).to(delta.device)[:, None]
        columns = torch.from_numpy(self.weights.column_weights(k)).to(delta.device)
        self.scaling = rows * columns
        self.x = delta.detach().float().reshape(o, i * k) * self.scaling
        self.u, self.s, self.v = leading_components(self.x, most_components((o, i * k), max_rank))

    def rank(self, step: float) -> int:
        """How many components are worth storing at a step."""
        return worth(self.s.cpu().numpy(), step, (self.x.shape[0], self.x.shape[1]))

    def quantise(self, step: float, rank: int, rest: bool = True) -> tuple[Layers, Tensor]:
        """The layers at a step, and the delta that they decode to."""
        s, u, v, x = self.s[:rank], self.u[:, :rank], self.v[:, :rank], torch.zeros_like(self.x)
        if rank:
            u, v = ((part * s / step).round() for part in (u, v))
            torch.mm(u * (step * step / s), v.T, out=x)
        q = left_over(self.x, x, step) if rest else None
        return Layers(step, self.weights, s, u, v, q), (x / self.scaling).reshape(self.shape)


def most_components(shape: tuple[int, int], max_rank: int = MAX_RANK) -> int:
    """How many components of a matrix are looked for."""
    return min(max_rank, *shape) if min(shape) >= _MIN_SIDE else 0


def worth(sizes: NDArray[np.float32], step: float, shape: tuple[int, int]) -> int:
    """How many components of a matrix, of such sizes `[n]`, are worth storing at a step."""
    return int(np.count_nonzero(np.square(sizes) > _WORTH * step**2 * sum(shape)))


def left_over(x: Tensor, low: Tensor, step: float) -> Tensor:
    """What is left of x beside `low`, in whole steps, which is added to `low`."""
    left = (x - low).div_(step)
    # Half away from zero, as far as the dead zone leaves it: sign times floor(|left| + 1 - DEAD_ZONE).
    left.add_(left.sign(), alpha=1 - DEAD_ZONE).trunc_()
    low.add_(left, alpha=step)
    return left


def leading_components(x: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """u `[m, rank]`, s `[rank]` and v `[n, rank]` of the truncated SVD of x `[m, n]`.

    By random projection with power iterations (Halko et al. 2011, algorithm 4.4). The random start is the same at
    every call, and the same on all devices.
    """
    if not rank or not bool(x.any()):
        return x.new_zeros(x.shape[0], 0), x.new_zeros(0), x.new_zeros(x.shape[1], 0)
    q = x @ _random_start(x.shape[1], rank, str(x.device))
    for _ in range(_POWER_STEPS):
        q = x @ (x.T @ _orthonormal(q))
    q = _orthonormal(q)
    b = q.T @ x  # [rank, n]
    # Ascending. On the CPU, as in `_orthonormal`; nothing more has to be read of a GPU then.
    values, vectors = torch.linalg.eigh((b @ b.T).double().cpu())
    sizes = values.flip(0).clamp_min(0).sqrt().float()
    kept = int((sizes > 1e-5 * sizes[0]).sum())  # below that the squares are noise
    s, vectors = sizes[:kept].to(x.device), vectors.to(x.device).flip(1).float()[:, :kept]
    return q @ vectors, s, b.T @ (vectors / s)


def _orthonormal(q: Tensor) -> Tensor:
    """An orthonormal basis of the columns of q `[m, rank]`, of the same shape.

    On the CPU, also for a GPU: it has at most a few hundred rows, whose columns come one after the other.
    """
    return torch.linalg.qr(q.cpu()).Q.to(q.device)


@lru_cache(64)
def _random_start(n: int, rank: int, device: str) -> Tensor:
    return torch.randn(n, rank, generator=torch.Generator().manual_seed(_RANK_SEED)).to(device)


def pack(layers: Layers) -> bytes:
    """A payload; empty where all integers are zero."""
    rank = len(layers.sizes)
    u, v = _integers(layers.u), _integers(layers.v)
    count = len(u) * len(v)
    rest = np.zeros(count, np.int32) if layers.rest is None else _integers(layers.rest)
    if not rank and not rest.any():
        return b""
    parts = [_HEAD.pack(rank, count), section(layers.sizes.cpu().numpy().astype("<f4").tobytes())]
    parts += [section(part.tobytes()) for part in (layers.weights.rows, layers.weights.columns)]
    for start in range(0, rank, GROUP):
        parts += [encode_symbols(part[:, start : start + GROUP].T.ravel()) for part in (u, v)]
    return b"".join([*parts, encode_symbols(rest.ravel())])


def _integers(values: Tensor) -> NDArray[np.int32]:
    return values.cpu().numpy().astype(np.int32)


def unpack(scale: float, payload: bytes, shape: tuple[int, ...], what: str) -> NDArray[np.float32]:
    """The values of a payload. DeltaError where it is damaged or belongs to another shape."""
    count, reader = check_shape(shape, what), Reader(payload, what)
    if not payload:
        return np.zeros(shape, np.float32)
    o, i, k = matrix_shape(shape)
    rank, expected = _HEAD.unpack(reader.take(_HEAD.size))
    if expected != count or rank > min(o, i * k):
        raise reader.damaged(f"rank {rank} and {expected} values for a matrix of {o} x {i * k}")
    sizes = reader.array("<f4", rank)
    weights = Weights(reader.array("i1", o), reader.array("i1", i))
    by_row, by_column = np.reciprocal(weights.row_weights()), np.reciprocal(weights.column_weights(k))
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise reader.damaged("the size of a component is not a positive number")
    u, v = np.empty((rank, o), np.float32), np.empty((rank, i * k), np.float32)
    for start in range(0, rank, GROUP):
        for part in (u, v):
            group = part[start : start + GROUP]
            group[:] = decode_symbols(reader, group.size).reshape(group.shape)
    places, rest = decode_sparse(reader, count)
    reader.end()
    by_row *= np.float32(scale)
    _check_size(reader, 1, rest, by_row, by_column)
    values = _unweighted(places, rest, by_row, by_column)
    if rank:
        u *= by_row
        v *= by_column
        v *= (scale / sizes)[:, None]
        _check_size(reader, rank, u, v)
        # In place, so that the matrix is written once. torch's product and not numpy's: it keeps to this thread's
        # share of the cores.
        torch.from_numpy(values).addmm_(torch.from_numpy(u).T, torch.from_numpy(v))
    return values.reshape(shape)


def _check_size(reader: Reader, terms: int, *factors: NDArray[Any]) -> None:
    """DeltaError where a sum of so many products of the factors' values could leave float32."""
    most = float(terms)
    for factor in factors:
        most *= max(float(factor.max(initial=0)), -float(factor.min(initial=0)))
    if not most < _LARGEST:
        raise reader.damaged("its values are not finite")


def _unweighted(
    places: NDArray[np.intp] | None, rest: Decoded, by_row: NDArray[np.float32], by_column: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The matrix of the last layer's integers, each times what its row and its column say."""
    values = np.empty((len(by_row), len(by_column)), np.float32)
    values.fill(0)  # sooner than `np.zeros`, whose pages are small ones: they come one by one when they are touched
    if places is None or len(places) > _MANY * values.size:
        if places is None:
            np.copyto(values, rest.reshape(values.shape))
        else:
            values.reshape(-1)[places] = rest.astype(np.float32)
        values *= by_row[:, None]
        values *= by_column
    elif len(places):
        starts = np.arange(len(by_row) + 1) * len(by_column)
        some = np.diff(np.searchsorted(places, starts))  # of each row; places are in order
        weighted = rest.astype(np.float32)
        weighted *= np.repeat(by_row, some)
        weighted *= by_column[places - np.repeat(starts[:-1], some)]
        values.reshape(-1)[places] = weighted
    return values
