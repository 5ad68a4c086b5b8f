"""Which images of a listing are which of a run: by whole columns, since Python would take a kilobyte an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pti_core.addresses import lasting

_AT_ONCE = 1 << 16  # rows that are Python's strings at a time
_WITH_PLACE: Final = (  # addresses whose place is found without looking closer, and what is left of them
    (r"^(parquet://[^!:]*![0-9A-Za-z_]+=[^!:]*)![0-9]+::", r"\1::"),
    (r"^((?:tar|zip)://[^!:%]*)!(?:(?:gz|bz2|xz):)?[0-9]+\+[0-9]+::", r"\1::"),
)


def texts(column: pa.ChunkedArray | pa.Array) -> Iterator[str]:
    """The strings of a column, a piece of it at a time."""
    for start in range(0, len(column), _AT_ONCE):
        yield from column.slice(start, _AT_ONCE).to_pylist()


def lasting_column(uri: pa.ChunkedArray) -> pa.Array:
    """`addresses.lasting` of each address."""
    pieces = []
    for start in range(0, len(uri), _AT_ONCE):
        piece = uri.slice(start, _AT_ONCE)
        plain = pc.invert(pc.match_substring(piece, "::"))
        for pattern, _ in _WITH_PLACE:
            plain = pc.or_(plain, pc.match_substring_regex(piece, pattern))
        if pc.all(plain).as_py():
            for pattern, lasts in _WITH_PLACE:
                piece = pc.replace_substring_regex(piece, pattern, lasts)
        else:
            piece = pa.chunked_array([pa.array(map(lasting, piece.to_pylist()), pa.large_string())])
        pieces += piece.cast(pa.large_string()).chunks
    return pa.chunked_array(pieces, pa.large_string()).combine_chunks()


def last_places(values: pa.Array, among: pa.Array) -> NDArray[np.int64]:
    """`[len(values)]`: where each value stands last among others; -1 for one that does not."""
    backwards = pc.index_in(values, among[::-1]).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.where(backwards < 0, -1, len(among) - 1 - backwards)


def are_in(values: pa.Array | pa.ChunkedArray, among: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """`[len(values)]`: whether each value is among others."""
    return np.asarray(pc.is_in(whole(values), whole(among)))


def whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of strings in one piece, which may be of more than 2 GB."""
    large = column.cast(pa.large_string())
    return large.combine_chunks() if isinstance(large, pa.ChunkedArray) else large


def differ(one: pa.ChunkedArray, other: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether two columns differ, row by row; what is null in both does not."""
    same = pc.fill_null(pc.equal(one, other), False)
    return ~(same.to_numpy() | (pc.is_null(one).to_numpy() & pc.is_null(other).to_numpy()))
