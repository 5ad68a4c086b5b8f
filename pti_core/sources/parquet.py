"""Parquet files with an image in each row, such as those of Hugging Face: `image: struct{bytes, path}`, or plain bytes.

Here they are listed; `parquet_rows` reads a row by its address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pti_core.sources.base import LISTED, Container, DatasetError, Listed, joined, quoted, table, text
from pti_core.sources.groups import label
from pti_core.sources.parquet_rows import id_place, ids_in, leaf, row_counts, sizes, small_column, source

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


@dataclass
class Rows:
    """What the footer and the small columns of one file say."""

    file: Container
    image: str  # the column that holds the images; empty where only other files may tell
    listed: pa.Table  # as `LISTED`, with numbers for names and addresses
    ids: dict[str, pa.ChunkedArray]  # what may be the image_id, by where it stands; each without nulls
    columns: list[str]  # all there are
    there: list[str]  # those of bytes
    nulls: list[str]  # those without any value, and so without a type


def listing(file: Container, column: str | None = None) -> Rows:
    """The rows of a file. `column`: what `label` holds. No image is read.

    `bytes` is a row's share of its row group, since a file does not tell the sizes of its rows. DatasetError for a
    damaged file, and where it is not clear which column holds the images. A file without rows may have any columns, and
    what a column without values would hold is settled by `named`.
    """
    try:
        content = pq.ParquetFile(source(file.url, file.options))
        with content:
            schema = content.schema_arrow
            number = _numbers(content.metadata.num_rows)
            if not len(number):
                return Rows(file, "", LISTED.empty_table(), {}, [], [], [])
            there = [f.name for f in schema if _is_bytes(f.type)]
            nulls = [f.name for f in schema if pa.types.is_null(f.type)]
            image = _image_column(file, schema.names, there, unsure=bool(nulls))
            shares = _shares(content, image) if image else pa.repeat(0, len(number))
            columns = {"name": number, "uri": number, "bytes": shares}
            columns["etag"] = pa.repeat(pa.scalar(file.etag, pa.large_string()), len(number))
            if column:
                columns["label"] = _labels(file, content, column)
            places = {name: id_place(image, name) for name in ("path", *IDS)}
            ids = {name: found for name, place in places.items() if (found := ids_in(content, place)) is not None}
            return Rows(file, image, table(columns), ids, schema.names, there, nulls)
    except (pa.ArrowException, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{file.url!r} is no whole Parquet file ({reason}); fetch or make it again") from error


def named(files: Sequence[Rows]) -> Listed:
    """All rows with names, in the order of the files.

    A name is the first of the image's own path and the columns `IDS` that is in every file, as names that may be shown,
    and differs in all rows, or in the rows of each file: then the file's name goes before. Else it is the file's name
    and the number of the row. DatasetError where even all files together do not tell which column holds the images.
    """
    files = _settled([rows for rows in files if len(rows.listed)])
    names = [joined(f"{rows.file.stem}/", pc.utf8_lpad(rows.listed["name"], 6, "0")) for rows in files]
    field = None
    for place in ("path", *IDS):
        ids = [rows.ids[place] for rows in files if place in rows.ids]
        if len(ids) < len(files) or any(pc.count_distinct(i).as_py() < len(i) for i in ids):
            continue
        field = place
        unique = pc.count_distinct(pa.chunked_array([chunk for i in ids for chunk in i.chunks], pa.large_string()))
        if unique.as_py() == sum(map(len, ids)):
            names = ids
        else:
            names = [joined(f"{rows.file.stem}/", i) for rows, i in zip(files, ids, strict=True)]
        break
    parts = []
    for rows, name in zip(files, names, strict=True):
        listed = rows.listed.set_column(0, "name", name).set_column(1, "uri", _addresses(rows, field))
        parts.append(Listed(listed, fields={*rows.columns} - {rows.image}))
    return Listed.of(parts)


def _settled(files: Sequence[Rows]) -> list[Rows]:
    """A column without any value in one file is one of images if it is in another: pandas writes it without a type."""
    known = {name for rows in files for name in rows.there}
    settled = []
    for rows in files:
        if rows.nulls:
            there = [name for name in rows.columns if name in rows.there or (name in rows.nulls and name in known)]
            image = _image_column(rows.file, rows.columns, there)
            if image != rows.image:  # it has no values, and so no paths
                sizes = rows.listed.schema.get_field_index("bytes"), "bytes", pa.repeat(0, len(rows.listed))
                ids = {name: ids for name, ids in rows.ids.items() if name != "path"}
                rows = replace(rows, image=image, listed=rows.listed.set_column(*sizes), ids=ids)
        settled.append(rows)
    return settled


def _addresses(rows: Rows, field: str | None) -> Any:
    """`field`: the column whose ids they hold."""
    head, row = f"parquet://{rows.image}!", rows.listed["name"]
    if field is None:
        return joined(head, row, f"::{rows.file.url}")
    ids = pc.replace_substring(quoted(rows.ids[field]), "!", "%21")
    return joined(head, f"{field}=", ids, "!", row, f"::{rows.file.url}")


def _image_column(file: Container, columns: Sequence[str], there: list[str], unsure: bool = False) -> str:
    """The column that holds the images, of `there`; where other files may tell better (`unsure`) perhaps none."""
    if unsure:
        try:
            return _image_column(file, columns, there)
        except DatasetError:
            return ""
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
        way_out = "name the files that have one by a pattern such as 'train-*.parquet'"
        expected = f"(bytes or struct{{bytes, path}} expected); {way_out}"
        raise DatasetError(f"{file.url!r}: no column with images among {_words(columns)} {expected}")
    way_out = f"choose one by parquet://{there[0]}::{file.url}"
    raise DatasetError(f"{file.url!r}: columns {_words(there)} may all hold the images; {way_out}")


def _words(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "") if names else "none"


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type) and not pa.types.is_struct(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _numbers(count: int) -> pa.Array:
    return pa.array(np.arange(count)).cast(pa.large_string())


def _shares(content: pq.ParquetFile, image: str) -> pa.Array:
    rows = np.array(row_counts(content.metadata), np.int64)
    size = np.array(sizes(content.metadata, leaf(content.schema_arrow, image)), np.int64)
    return pa.array(np.repeat(size // np.maximum(rows, 1), rows))


def _labels(file: Container, content: pq.ParquetFile, column: str) -> Any:
    found = small_column(content, column)
    if found is None:
        return pa.nulls(content.metadata.num_rows, pa.large_string())
    if pa.types.is_nested(found.type):
        return text([label(value) for value in found.to_pylist()])
    nan = pc.is_nan(found) if pa.types.is_floating(found.type) else pa.scalar(False)  # no number: so pandas writes it
    try:
        found = found.cast(pa.large_string())
    except pa.ArrowException as error:
        found_there = f"column {column!r} holds {found.type} that is no text"
        raise DatasetError(f"{file.url!r}: {found_there}; group by another column") from error
    empty = pc.or_(pc.equal(pc.utf8_trim_whitespace(found), ""), nan)
    return pc.if_else(empty, pa.scalar(None, pa.large_string()), found)  # an empty one is none
