"""Rows of Parquet files, read again by their addresses.

An address is `parquet://COLUMN!FIELD=ID!ROW::URL`, or `parquet://COLUMN!ROW::URL` where no column tells rows apart. The
id is the truth and the row a hint: where another one is there now, the column of ids is searched. A row is read with
its neighbours: its row group, or about 32 MB of one that is larger; the last two such pieces of the last two files stay
in memory, so that rows in their order are read once.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pti_core.addresses import ParquetRow, local_path, row_in, secret_in_name
from pti_core.sources.base import Kept, opened, plain_names

_WHOLE = 128 << 20  # bytes; a row group of at most this is read in one piece
_PIECE = 32 << 20  # bytes, of a larger one
_CHANGED: Final = "the file has changed since it was listed"


def read(inside: str, url: str, options: Mapping[str, Any] | None) -> bytes:
    """The image of a row, empty where it is null; `inside` is the first part of its address.

    Raises FileNotFoundError where no row has its id any more, and OSError.
    """
    place = row_in(inside)
    if place is None:
        raise OSError(f"'parquet://{inside}': COLUMN!FIELD=ID!ROW or COLUMN!ROW expected")
    try:
        return _reader(url, options).value(place)
    except FileNotFoundError:
        raise
    except Exception:
        _reader.forget()
        raise


def source(url: str, options: Mapping[str, Any]) -> Any:
    """What pyarrow opens: a local path, or a file on a network."""
    path = local_path(url)
    return opened(url, options, 0) if path is None else path


def id_place(image: str, field: str) -> str:
    """Where the ids of a field stand: a column, or the image's own path."""
    return f"{image}.path" if field == "path" else field


def leaf(schema: pa.Schema, column: str) -> str:
    """The part of a column that is read: a path in a struct is left out."""
    if column not in schema.names:
        raise OSError(f"no column {column!r}; {_CHANGED}")
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def sizes(metadata: pq.FileMetaData, leaf: str) -> list[int]:
    """Bytes of a column in each row group, before compression."""
    if not metadata.num_row_groups:
        return []
    first = metadata.row_group(0)
    index = next(i for i in range(first.num_columns) if first.column(i).path_in_schema == leaf)
    return [metadata.row_group(g).column(index).total_uncompressed_size for g in range(metadata.num_row_groups)]


def row_counts(metadata: pq.FileMetaData) -> list[int]:
    """Rows of each row group."""
    return [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]


def small_column(content: pq.ParquetFile, place: str) -> pa.ChunkedArray | None:
    """A column, or a field `a.b` of a struct, without dictionaries and views; None where there is none."""
    names = content.schema_arrow.names
    top, _, inner = (place, "", "") if place in names else place.partition(".")
    if top not in names:
        return None
    kind = content.schema_arrow.field(top).type
    if not inner:
        return _plain(content.read(columns=[top])[top])
    if not pa.types.is_struct(kind) or kind.get_field_index(inner) < 0:
        return None
    return _plain(pc.struct_field(content.read(columns=[place])[top], inner))


def _plain(values: Any) -> Any:
    """A column, such as a categorical one of pandas, as its values."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        kind, values = kind.value_type, pa.chunked_array([c.dictionary_decode() for c in chunks], kind.value_type)
    return values.cast(pa.large_string()) if pa.types.is_string_view(kind) else values


def ids_in(content: pq.ParquetFile, place: str) -> pa.ChunkedArray | None:
    """A column as names; None where it is not there, has nulls or empty names, or is neither text nor whole numbers.

    None also where one of them is an address with a password or a signature: an image_id is stored and shown.
    """
    found = small_column(content, place)
    if found is None or found.null_count:
        return None
    if not (pa.types.is_integer(found.type) or pa.types.is_string(found.type) or pa.types.is_large_string(found.type)):
        return None
    found = found.cast(pa.large_string())
    suspects = found.filter(pc.match_substring_regex(found, "[@?&;#~]"))
    if pc.any(pc.equal(found, "")).as_py() or any(map(secret_in_name, suspects.to_pylist())):
        return None
    return plain_names(found)  # an address is none any more afterwards


class _Piece(NamedTuple):
    """Rows that were read together."""

    column: str
    field: str | None
    start: int  # the first row
    images: Any
    ids: Any  # None without a field

    def has(self, place: ParquetRow) -> bool:
        """Whether a row is among them."""
        own = (self.column, self.field) == (place.column, place.field)
        return own and self.start <= place.row < self.start + len(self.images)

    def fits(self, place: ParquetRow) -> bool:
        """Whether that row has the id of its address."""
        return place.field is None or self.ids[place.row - self.start].as_py() == place.id


class _Reader:
    """One open file. Any thread may ask; one reads, the others wait for what they will probably need as well."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        file = source(url, options)
        self._url = url
        self._whole = pq.ParquetFile(file)
        metadata = self._whole.metadata
        # without a buffer a piece of a row group would be cut from all of it
        self._in_pieces = pq.ParquetFile(file, metadata=metadata, buffer_size=_PIECE // 4, pre_buffer=False)
        self._rows = row_counts(metadata)
        self._starts = [0, *accumulate(self._rows)]
        self._sizes: dict[str, list[int]] = {}  # of the row groups, bytes, by column
        self._held: list[_Piece] = []
        self._stream: tuple[str, str | None, int, int, Iterator[pa.RecordBatch]] | None = None  # group, next row, rest
        self._ids: dict[str, pa.ChunkedArray | None] = {}  # of all rows, by where they stand
        self._lock = threading.Lock()

    def value(self, place: ParquetRow) -> bytes:
        """An image; b"" for null."""
        known = place.field is None or place.row < self._starts[-1]
        piece = self._piece(place) if known else None
        if piece is None or not piece.fits(place):  # its rows are others than when it was listed
            place = place._replace(row=self._row_of(place))
            piece = self._piece(place)
        value = piece.images[place.row - piece.start].as_py()
        return (value.get("bytes") if isinstance(value, dict) else value) or b""

    def _row_of(self, place: ParquetRow) -> int:
        """The row that has an id now, by the ids of all rows."""
        assert place.field is not None
        where = id_place(place.column, place.field)
        with self._lock:
            if where not in self._ids:
                found = ids_in(self._whole, where)
                self._ids[where] = found if found is None or pc.count_distinct(found).as_py() == len(found) else None
        if (ids := self._ids[where]) is None:
            raise OSError(f"column {where!r} does not tell all rows apart any more; {_CHANGED}")
        row = pc.index(ids, pa.scalar(place.id, pa.large_string())).as_py()
        if row < 0:
            raise FileNotFoundError(f"{self._url!r} has no row with {place.field} {place.id!r}; {_CHANGED}")
        return int(row)

    def _piece(self, place: ParquetRow) -> _Piece:
        if (held := self._there(place)) is not None:
            return held
        with self._lock:
            return self._there(place) or self._load(place)

    def _there(self, place: ParquetRow) -> _Piece | None:
        return next((piece for piece in self._held if piece.has(place)), None)

    def _load(self, place: ParquetRow) -> _Piece:
        column, row, field, _ = place
        if row >= self._starts[-1]:
            raise OSError(f"no row {row} of {self._starts[-1]}; {_CHANGED}")
        group = bisect_right(self._starts, row) - 1
        wanted = leaf(self._whole.schema_arrow, column)
        columns = [wanted] if field is None else [wanted, id_place(column, field)]
        if wanted not in self._sizes:
            self._sizes[wanted] = sizes(self._whole.metadata, wanted)
        size = self._sizes[wanted][group]
        if size <= _WHOLE:
            start, found = self._starts[group], self._whole.read_row_group(group, columns=columns)
        else:
            start, found = self._next_piece(place, columns, group, size)
        ids = None if field is None else _named_by(found, column, field)
        piece = _Piece(column, field, start, found[column], ids)
        self._held = [*self._held[-1:], piece]
        return piece

    def _next_piece(self, place: ParquetRow, columns: list[str], group: int, size: int) -> tuple[int, Any]:
        """Read on in a large row group up to a row; from its first row where the row lies behind."""
        column, row, field, _ = place
        if self._stream is None or self._stream[:3] != (column, field, group) or self._stream[3] > row:
            batch = max(1, self._rows[group] * _PIECE // size)
            batches = self._in_pieces.iter_batches(batch, [group], columns, use_threads=False)
            self._stream = (column, field, group, self._starts[group], batches)
        *_, start, batches = self._stream
        for batch in batches:
            self._stream = (column, field, group, start + len(batch), batches)
            if row < start + len(batch):
                return start, batch
            start += len(batch)
        raise OSError(f"row group {group} ends before row {row}; the file is damaged")


def _named_by(found: Any, column: str, field: str) -> Any:
    """The ids of the rows of a piece."""
    place = id_place(column, field)
    kind = found.schema.field(column).type
    own = field == "path" and pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    if not own and place not in found.schema.names:
        raise OSError(f"no column {place!r}; {_CHANGED}")
    ids = pc.struct_field(found[column], "path") if own else found[place]
    return plain_names(_plain(ids).cast(pa.large_string()))


_reader = Kept(_Reader)
