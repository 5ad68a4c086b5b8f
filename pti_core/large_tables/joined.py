"""A person's own columns beside a run's images: captions, labels, splits; from a CSV or Parquet file, by image_id."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pti_core.addresses import redact, refusal
from pti_core.connections import file_system

_INDEX: Final = re.compile(r"(?:__index_level_\d+__)?")  # of pandas, in Parquet and CSV, which nobody asked for
_VERSION: Final = r"@\d+$"  # what `--extend` appends to the name of a file that has changed
_BLOCK: Final = (1 << 31) - 1  # bytes whose values tell the types of a CSV's columns


class JoinError(ValueError):
    """A file that cannot be joined; the message says why and what to do."""


class Joined:
    """The file's rows, in memory. `rows`: how many it has; `matched`: how many of them `columns` has given so far."""

    def __init__(self, name: str, ids: pa.ChunkedArray, columns: pa.Table) -> None:
        self.name, self.rows, self.matched = name, len(ids), 0
        self._ids, self._columns = ids, columns
        self.schema = columns.schema

    def columns(self, ids: pa.ChunkedArray) -> pa.Table:
        """The columns of these images, in their order; nulls where the file has no row.

        A later version of an image, `a.png@2`, that has no row of its own has that of `a.png`.
        """
        ids = ids.cast(pa.large_string())
        places = pc.index_in(ids, value_set=self._ids)
        self.matched += len(places) - places.null_count
        if pc.any(pc.match_substring_regex(ids, _VERSION)).as_py():
            first = pc.replace_substring_regex(ids, _VERSION, "")
            places = pc.coalesce(places, pc.index_in(first, value_set=self._ids))
        return self._columns.take(places)

    def first(self) -> str | None:
        """The first image that the file names."""
        first: str | None = self._ids[0].as_py() if self.rows else None
        return first


def read_joined(address: str, taken: Collection[str]) -> Joined:
    """A `.csv` or `.parquet` with a column `image_id` and others, none of which is `taken`.

    Names are text, 0001 is not 1 and NA is not missing, and become NFC as those of listings are. Raises JoinError for
    another file, one without image_id, images that have two rows, columns that are taken, and an address with a secret.
    """
    if refused := refusal("--join", address):
        raise JoinError(refused)
    name = f"--join {redact(address)!r}"
    table = _read(address, name)
    names = table.column_names
    if "image_id" not in names:
        raise JoinError(f"{name}: column 'image_id' is missing; there are {', '.join(names)}")
    folded = [column.lower() for column in names]
    if twice := sorted({column for column in folded if folded.count(column) > 1}):  # to DuckDB they are the same
        alike = dict.fromkeys(repr(column) for column in names if column.lower() == twice[0])
        raise JoinError(f"{name}: two columns are called {' and '.join(alike)}; rename one")
    columns = table.select([column for column in names if column != "image_id" and not _INDEX.fullmatch(column)])
    if clash := [column for column in columns.column_names if column.lower() in taken]:
        raise JoinError(f"{name}: images.parquet has columns of its own called {', '.join(clash)}; rename them")
    return Joined(name, _ids(table["image_id"], name), _large(columns, name))


def _read(address: str, name: str) -> pa.Table:
    if not address.lower().endswith((".csv", ".parquet")):
        raise JoinError(f"{name}: a .csv or .parquet expected")
    try:
        fs, path = file_system(address)
        with fs.open(path, "rb") as file:
            return _csv(file) if address.lower().endswith(".csv") else pq.read_table(file)
    except FileNotFoundError:
        raise JoinError(f"{name}: no such file; check the path") from None
    except Exception as error:  # of the file system, of the parser
        raise JoinError(f"{name} cannot be read ({type(error).__name__}: {error}); check the file") from error


def _csv(file: Any) -> pa.Table:
    data = file.read()
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        pyarrow.csv.ReadOptions(block_size=max(1, min(len(data) + 1, _BLOCK))),
        pyarrow.csv.ParseOptions(newlines_in_values=True),
        pyarrow.csv.ConvertOptions(column_types={"image_id": pa.string()}),
    )
    names = table.column_names  # an error where they are no UTF-8
    if wrong := [name for name, of in zip(names, table.schema.types, strict=True) if pa.types.is_binary(of)]:
        raise ValueError(f"column {wrong[0]!r} is not UTF-8; save the file as that")
    return table


def _ids(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The names as listings write them. JoinError for one that is there twice, or missing."""
    try:
        ids = pc.utf8_normalize(column.cast(pa.large_string()), "NFC")
    except pa.ArrowException as error:
        raise JoinError(f"{name}: image_id is of type {column.type}; text expected") from error
    if ids.null_count:
        rows, them = ("1 row has", "it") if ids.null_count == 1 else (f"{ids.null_count:,} rows have", "them")
        raise JoinError(f"{name}: {rows} no image_id; remove {them}")
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        images = "1 image has" if len(twice) == 1 else f"{len(twice):,} images have"
        first = twice.field("values")[0].as_py()
        raise JoinError(f"{name}: {images} more than one row, {first!r} first; one row an image expected")
    return ids


def _large(columns: pa.Table, name: str) -> pa.Table:
    """Text as a type that may be longer than 2 GiB in all; a column with no value at all as text.

    JoinError for a type whose rows cannot be taken.
    """
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary(), pa.null(): pa.string()}
    wide |= {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    large = {}
    for field, column in zip(columns.schema, columns.itercolumns(), strict=True):
        try:
            large[field.name] = column.cast(wide.get(field.type, field.type))
            large[field.name].slice(0, 0).take(pa.array([], pa.int64()))
        except pa.ArrowException as error:
            raise JoinError(f"{name}: column {field.name!r} is of type {field.type}; save it as another") from error
    return pa.table(large)
