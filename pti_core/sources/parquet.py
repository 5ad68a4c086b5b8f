"""Parquet files with an image in each row, such as those of Hugging Face: `image: struct{bytes, path}`, or plain bytes.

An address is `parquet://COLUMN!ROW::URL`. A row is read with its neighbours: its row group, or about 32 MB of one that
is larger; the last two such pieces of the last two files stay in memory, so that rows in their order are read once.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pti_core.addresses import local_path
from pti_core.sources.base import Container, DatasetError, Kept, Listed, joined, opened, plain_names, table, text
from pti_core.sources.groups import label

COLUMNS: Final = (
    ("image",),
    ("img", "images"),
    ("bytes", "image_bytes", "img_bytes", "image_data", "data", "content"),
    ("jpg", "jpeg", "png", "webp"),
    ("picture", "photo", "pixel_values"),
)
"""Names of image columns, the likeliest first; equally likely ones together."""

IDS: Final = ("image_id", "id", "key", "file_name")
"""Columns that give the image_id where an image has no path of its own."""

_WHOLE = 128 << 20  # bytes; a row group of at most this is read in one piece
_PIECE = 32 << 20  # bytes, of a larger one
_PLACE = re.compile(r"(.*)!(\d+)", re.DOTALL)


@dataclass
class Rows:
    """What the footer and the small columns of one file say."""

    file: Container
    listed: pa.Table  # as `LISTED`, with addresses for names
    ids: dict[str, pa.ChunkedArray]  # what may be the image_id, by where it stands; each without nulls
    fields: set[str]  # columns that `group_by` may name


def listing(file: Container, column: str | None = None) -> Rows:
    """The rows of a file. `column`: what `label` holds. No image is read.

    `bytes` is a row's share of its row group, since a file does not tell the sizes of its rows. DatasetError for a
    damaged file, and where it is not clear which column holds the images.
    """
    try:
        content = pq.ParquetFile(_source(file.url, file.options))
        with content:
            image = _image_column(file, content.schema_arrow)
            uri = joined(f"parquet://{image}!", _numbers(content.metadata.num_rows), f"::{file.url}")
            columns = {"name": uri, "uri": uri, "bytes": _shares(content, image)}
            columns["etag"] = pa.repeat(pa.scalar(file.etag, pa.large_string()), len(uri))
            if column:
                columns["label"] = _labels(content, column)
            places = {"path": f"{image}.path"} | {name: name for name in IDS}
            ids = {name: found for name, place in places.items() if (found := _ids(content, place)) is not None}
            return Rows(file, table(columns), ids, set(content.schema_arrow.names) - {image})
    except (pa.ArrowException, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{file.url!r} is no whole Parquet file ({reason}); fetch or make it again") from error


def named(files: Sequence[Rows]) -> Listed:
    """All rows with names, in the order of the files.

    A name is the first of the image's own path and the columns `IDS` that is in every file and differs in all rows, or
    in the rows of each file: then the file's name goes before. Else it is the file's name and the number of the row.
    """
    names = [joined(f"{rows.file.stem}/", pc.utf8_lpad(_numbers(len(rows.listed)), 6, "0")) for rows in files]
    for place in ("path", *IDS):
        ids = [rows.ids[place] for rows in files if place in rows.ids]
        if len(ids) < len(files) or any(pc.count_distinct(i).as_py() < len(i) for i in ids):
            continue
        unique = pc.count_distinct(pa.chunked_array([chunk for i in ids for chunk in i.chunks], pa.large_string()))
        if unique.as_py() == sum(map(len, ids)):
            names = ids
        else:
            names = [joined(f"{rows.file.stem}/", i) for rows, i in zip(files, ids, strict=True)]
        break
    parts = [Listed(r.listed.set_column(0, "name", n), fields=r.fields) for r, n in zip(files, names, strict=True)]
    return Listed.of(parts)


def read(inside: str, url: str, options: Mapping[str, Any] | None) -> bytes:
    """The image of a row, empty where it is null; `inside` is the first part of its address. Raises OSError."""
    match = _PLACE.fullmatch(inside)
    if match is None:
        raise OSError(f"'parquet://{inside}': COLUMN!ROW expected")
    try:
        return _reader(url, options).value(match[1], int(match[2]))
    except Exception:
        _reader.forget()
        raise


def _source(url: str, options: Mapping[str, Any]) -> Any:
    path = local_path(url)
    return opened(url, options, 0) if path is None else path


def _image_column(file: Container, schema: pa.Schema) -> str:
    """The column that holds the images."""
    there = [f.name for f in schema if _is_bytes(f.type)]
    if file.inside:
        if file.inside not in there:
            raise DatasetError(f"{file.url!r}: no column {file.inside!r} with images; there are {_words(there)}")
        return file.inside
    if len(there) == 1:
        return there[0]
    for likely in COLUMNS:
        found = [name for name in there if name.lower() in likely]
        if len(found) == 1:
            return found[0]
        if found:
            there = found
            break
    if not there:
        expected = "a column of bytes or struct{bytes, path} expected"
        raise DatasetError(f"{file.url!r}: no column with images among {_words(schema.names)}; {expected}")
    way_out = f"choose one by parquet://{there[0]}::{file.url}"
    raise DatasetError(f"{file.url!r}: columns {_words(there)} may all hold the images; {way_out}")


def _words(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "") if names else "none"


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type) and not pa.types.is_struct(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _leaf(schema: pa.Schema, column: str) -> str:
    """The part of a column that is read: a path in a struct is left out."""
    if column not in schema.names:
        raise OSError(f"no column {column!r}; the file has changed since it was listed")
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def _numbers(count: int) -> pa.Array:
    return pa.array(np.arange(count)).cast(pa.large_string())


def _sizes(metadata: pq.FileMetaData, leaf: str) -> list[int]:
    """Bytes of a column in each row group, before compression."""
    if not metadata.num_row_groups:
        return []
    first = metadata.row_group(0)
    index = next(i for i in range(first.num_columns) if first.column(i).path_in_schema == leaf)
    return [metadata.row_group(g).column(index).total_uncompressed_size for g in range(metadata.num_row_groups)]


def _rows(metadata: pq.FileMetaData) -> list[int]:
    return [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]


def _shares(content: pq.ParquetFile, image: str) -> pa.Array:
    rows = np.array(_rows(content.metadata), np.int64)
    sizes = np.array(_sizes(content.metadata, _leaf(content.schema_arrow, image)), np.int64)
    return pa.array(np.repeat(sizes // np.maximum(rows, 1), rows))


def _small_column(content: pq.ParquetFile, place: str) -> pa.ChunkedArray | None:
    """A column, or a field `a.b` of a struct; None where there is none."""
    names = content.schema_arrow.names
    top, _, inner = (place, "", "") if place in names else place.partition(".")
    if top not in names:
        return None
    kind = content.schema_arrow.field(top).type
    if not inner:
        return content.read(columns=[top])[top]
    if not pa.types.is_struct(kind) or kind.get_field_index(inner) < 0:
        return None
    return pc.struct_field(content.read(columns=[place])[top], inner)


def _ids(content: pq.ParquetFile, place: str) -> pa.ChunkedArray | None:
    """A column as names; None where it is not there, has nulls or empty names, or is neither text nor whole numbers."""
    found = _small_column(content, place)
    if found is None or found.null_count:
        return None
    if not (pa.types.is_integer(found.type) or pa.types.is_string(found.type) or pa.types.is_large_string(found.type)):
        return None
    found = found.cast(pa.large_string())
    return None if pc.any(pc.equal(found, "")).as_py() else plain_names(found)


def _labels(content: pq.ParquetFile, column: str) -> Any:
    found = _small_column(content, column)
    if found is None:
        return pa.nulls(content.metadata.num_rows, pa.large_string())
    if pa.types.is_nested(found.type):
        return text([label(value) for value in found.to_pylist()])
    found = found.cast(pa.large_string())
    empty = pc.equal(pc.utf8_trim_whitespace(found), "")
    return pc.if_else(empty, pa.scalar(None, pa.large_string()), found)  # an empty one is none


class _Reader:
    """One open file. Any thread may ask; one reads, the others wait for what they will probably need as well."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        source = _source(url, options)
        self._whole = pq.ParquetFile(source)
        metadata = self._whole.metadata
        # without a buffer a piece of a row group would be cut from all of it
        self._in_pieces = pq.ParquetFile(source, metadata=metadata, buffer_size=_PIECE // 4, pre_buffer=False)
        self._rows = _rows(metadata)
        self._starts = [0, *accumulate(self._rows)]
        self._sizes: dict[str, list[int]] = {}  # of the row groups, bytes, by column
        self._held: list[tuple[str, int, Any]] = []  # column, first row, values
        self._stream: tuple[str, int, int, Iterator[pa.RecordBatch]] | None = None  # column, group, next row, rest
        self._lock = threading.Lock()

    def value(self, column: str, row: int) -> bytes:
        """An image; b"" for null."""
        start, values = self._there(column, row) or self._loaded(column, row)
        value = values[row - start].as_py()
        return (value.get("bytes") if isinstance(value, dict) else value) or b""

    def _there(self, column: str, row: int) -> tuple[int, Any] | None:
        for name, start, values in self._held:
            if name == column and start <= row < start + len(values):
                return start, values
        return None

    def _loaded(self, column: str, row: int) -> tuple[int, Any]:
        with self._lock:
            return self._there(column, row) or self._load(column, row)

    def _load(self, column: str, row: int) -> tuple[int, Any]:
        if row >= self._starts[-1]:
            raise OSError(f"no row {row} of {self._starts[-1]}; the file has changed since it was listed")
        group = bisect_right(self._starts, row) - 1
        leaf = _leaf(self._whole.schema_arrow, column)
        if leaf not in self._sizes:
            self._sizes[leaf] = _sizes(self._whole.metadata, leaf)
        size = self._sizes[leaf][group]
        if size <= _WHOLE:
            start, values = self._starts[group], self._whole.read_row_group(group, columns=[leaf])[column]
        else:
            start, values = self._next_piece(column, leaf, group, row, size)
        self._held = [*self._held[-1:], (column, start, values)]
        return start, values

    def _next_piece(self, column: str, leaf: str, group: int, row: int, size: int) -> tuple[int, Any]:
        """Read on in a large row group up to a row; from its first row where the row lies behind."""
        if self._stream is None or self._stream[:2] != (column, group) or self._stream[2] > row:
            batch = max(1, self._rows[group] * _PIECE // size)
            batches = self._in_pieces.iter_batches(batch, [group], [leaf], use_threads=False)
            self._stream = (column, group, self._starts[group], batches)
        _, _, start, batches = self._stream
        for batch in batches:
            self._stream = (column, group, start + len(batch), batches)
            if row < start + len(batch):
                return start, batch.column(0)
            start += len(batch)
        raise OSError(f"row group {group} ends before row {row}; the file is damaged")


# Not renewed: an image is known by the number of its row, which in another file may be another image.
_reader = Kept(_Reader, renewed=False)
