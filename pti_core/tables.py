"""The tables: their columns (one dict, which is also their documentation), schemas, and Parquet bytes.

Columns `run` and `shard` of a table on disk come from its folders, `run=.../shard=...`, and are in no file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


class TableError(ValueError):
    """Rows that do not fit their table; the message names the table and the column."""


@dataclass(frozen=True)
class Column:
    """One column of a table. `doc` gives meaning, unit and range."""

    type: pa.DataType
    doc: str
    nullable: bool = False


_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.binary()
_LPIPS = "LPIPS at full resolution, >= 0, 0 for equal images; its net is `lpips_net` in the table's metadata"
_MSE = "mean squared error of values in [-1, 1]: 0 to 4"
_ID = "path of the image below its dataset's root, unique in a run"
_GROUP = "images of one group share a tuned generator; the image_id where each has its own"

COLUMNS: Final[dict[str, dict[str, Column]]] = {
    "manifest": {
        "image_id": Column(_S, _ID),
        "uri": Column(_S, "where the image is read from"),
        "shard": Column(_I, "number of the shard that does it, from 0"),
        "group": Column(_S, _GROUP),
        "bytes": Column(
            _I, "bytes of the file or an archive's member; of a row of Parquet, its share of the row group"
        ),
        "etag": Column(_S, "checksum by the file system, or size-mtime: changes when the file does"),
    },
    "pivots": {
        "image_id": Column(_S, _ID),
        "uri": Column(_S, "where the image was read from"),
        "sha256": Column(_S, "of the file's bytes, hex"),
        "group": Column(_S, _GROUP),
        "space": Column(_S, "`w` (one w for all layers) or `w+` (one a layer)"),
        "w": Column(
            pa.list_(pa.float32()), "the pivot: `[w_dim]` for w, `[num_ws * w_dim]`, layer after layer, for w+"
        ),
        "noise": Column(_B, "the pivot's noise maps, for `deltas.decode_noise`; null in runs of `noop`", True),
        "lpips": Column(_F, f"at the pivot, untuned: {_LPIPS}"),
        "mse": Column(_F, f"at the pivot, untuned: {_MSE}"),
        "steps": Column(_I, "optimisation steps"),
        "seconds": Column(_F, "wall time of the image's share of its batch, s"),
        "seed": Column(_I, "of the image's random stream, 0 to 2^63 - 1"),
    },
    "deltas": {
        "owner": Column(_S, "image_id, or group in mode `multi`"),
        "tensor": Column(_S, "name of the generator's parameter"),
        "shape": Column(pa.list_(pa.int32()), "its shape"),
        "codec": Column(_S, "how the payload is coded, a key of `deltas.CODECS`"),
        "scale": Column(_F, "the decoded values are multiplied by this, >= 0"),
        "payload": Column(_B, "the coded difference theta* - theta"),
        "base_sha256": Column(_S, "of the base generator's file, hex; the delta fits no other"),
    },
    "metrics": {
        "image_id": Column(_S, _ID),
        "group": Column(_S, _GROUP),
        "stage": Column(_S, "`pivot` (untuned), `tuned` (in memory) or `stored` (decoded from the deltas table)"),
        "lpips": Column(_F, _LPIPS),
        "mse": Column(_F, _MSE),
        "psnr": Column(_F, "peak signal-to-noise ratio, 10 log10(4 / mse), dB; inf for equal images"),
        "ssim": Column(_F, "structural similarity, -1 to 1"),
        "ms_ssim": Column(_F, "multi-scale SSIM, 0 to 1; null below 161 pixels", True),
        "identity": Column(
            _F, "always null: cosines of face embeddings are measured of edits alone, see `edits`", True
        ),
        "steps": Column(_I, "optimisation steps of the stage; null for `stored`, which has none", True),
        "seconds": Column(_F, "wall time of the image's share of its batch, s; null where not measured", True),
    },
    "locality": {
        "image_id": Column(_S, _ID),
        "seed": Column(_I, "of z, 0 to 2^63 - 1"),
        "where": Column(_S, "`interpolated` (w_r, on the line from the pivot through w_z) or `wz` (w_z itself)"),
        "alpha": Column(_F, "distance from the pivot in the paper's unit, radius * sqrt(18); null for `wz`", True),
        "radius": Column(_F, "distance from the pivot in W, >= 0"),
        "t": Column(_F, "radius / ||w_z - w_p||: 0 at the pivot, 1 at w_z, more beyond it"),
        "lpips": Column(_F, f"of base and tuned generator there: {_LPIPS}"),
        "mse": Column(_F, f"of base and tuned generator there: {_MSE}"),
    },
    "rejects": {
        "image_id": Column(_S, _ID),
        "uri": Column(_S, "where the image was read from"),
        "stage": Column(_S, "what it failed in, such as `read`, `decode`, `pivot`, `tuning`"),
        "error": Column(_S, "class of the error"),
        "message": Column(_S, "what was found and the way out"),
        "permanent": Column(
            pa.bool_(),
            "true where trying again cannot help, or was in vain 3 times where the file is gone, 10 times otherwise; "
            "`--retry-rejects` tries the others",
        ),
        "attempts": Column(_I, "tries, >= 1; a run may make several"),
    },
    "edits": {
        "image_id": Column(_S, _ID),
        "direction": Column(_S, "name of the direction, and of its folder below `runs/<run>/edits/`"),
        "layers": Column(
            _S, "what it moves: `all`, `coarse`, `middle`, `fine`, `4`, `4-7`, or several such as `coarse+middle`"
        ),
        "strength": Column(_F, "standard deviations of W along the direction"),
        "distance": Column(_F, "how far w moved in the layers that it moves, in W, >= 0"),
        "lpips": Column(_F, f"of edited and unedited image, tuned generator: {_LPIPS}"),
        "lpips_base": Column(_F, f"the same of the base generator, at the same pivot: {_LPIPS}"),
        "correlation": Column(
            _F, "of the edit's pixel changes, tuned against base generator, -1 to 1; null where one has none", True
        ),
        "gain": Column(_F, "size of the tuned generator's change by the base's (RMS); null where that has none", True),
        "identity": Column(
            _F, "cosine of face embeddings of edited and unedited, tuned, -1 to 1; null without an embedding", True
        ),
        "picture": Column(
            _S, "the edited image below the root, a PNG; null where not asked for, or found gone by `pti check`", True
        ),
    },
    "alpha_nearness": {
        "image_id": Column(_S, _ID),
        "seed": Column(_I, "of z, 0 to 2^63 - 1"),
        "alpha": Column(_F, "distance of w_r from the pivot in the paper's unit, >= 0"),
        "radius": Column(_F, "the same in W"),
        "t": Column(_F, "radius / ||w_z - w_p||: 0 at the pivot, 1 at w_z, more beyond it"),
        "lpips": Column(_F, f"of G(w_r) and G(w_z), base generator: {_LPIPS}"),
        "mse": Column(_F, f"of G(w_r) and G(w_z), base generator: {_MSE}"),
    },
    "alpha_drift": {
        "image_id": Column(_S, _ID),
        "tuned_alpha": Column(_F, "alpha of the regulariser in tuning, paper's unit; null: tuned without it", True),
        "where": Column(_S, "`target` (tuned image against the target), `interpolated` (w_r) or `wz`"),
        "seed": Column(_I, "of z, 0 to 2^63 - 1; 0 for `target`"),
        "alpha": Column(_F, "where it was measured, in the paper's unit; null for `target` and `wz`", True),
        "radius": Column(_F, "distance from the pivot in W, >= 0"),
        "t": Column(_F, "radius / ||w_z - w_p||"),
        "lpips": Column(_F, f"of base and tuned generator there (`target`: of target and tuned image): {_LPIPS}"),
        "mse": Column(_F, f"the same: {_MSE}"),
    },
}
"""Every table's columns, in order. `docs` writes them as Markdown."""

TABLES: Final = tuple(name for name in COLUMNS if name != "manifest")
"""The tables that lie in parts, `<table>/run=.../shard=.../part-*.parquet`."""

ROW_GROUP: Final = 16_384
"""Rows of a row group (of the manifest about a megabyte: what a task reads to know its shard)."""

_SHOWN: Final = ("lpips_net",)

PARTS: Final = ("pivots", "deltas", "metrics", "locality", "rejects")
"""The tables that every shard writes, with no rows if need be (so that each can always be read)."""


def schema(name: str, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The schema of a table with metadata, of which pandas shows what is the same in all files of a table.

    TableError for an unknown name.
    """
    if name not in COLUMNS:
        raise TableError(f"table {name!r}: one of {', '.join(COLUMNS)} expected")
    fields = [pa.field(key, c.type, c.nullable) for key, c in COLUMNS[name].items()]
    if metadata:  # pandas reads its own key back as DataFrame.attrs, from one of the files
        metadata = {**metadata, "PANDAS_ATTRS": json.dumps({k: v for k, v in metadata.items() if k in _SHOWN})}
    return pa.schema(fields, metadata=metadata)


def table(name: str, rows: Iterable[Mapping[str, Any]], metadata: Mapping[str, str] | None = None) -> pa.Table:
    """Rows (dicts with exactly the table's columns; numpy values and arrays are fine) as a pyarrow table.

    `metadata` goes into the schema, e.g. `{"lpips_net": "alex"}` for tables with a column `lpips`. Raises TableError
    for missing, unknown and wrongly typed columns, and for None where a value is needed.
    """
    wanted, rows = schema(name, metadata), list(rows)
    for row in rows:
        if row.keys() != COLUMNS[name].keys():
            missing, unknown = sorted(COLUMNS[name].keys() - row.keys()), sorted(row.keys() - COLUMNS[name].keys())
            raise TableError(f"table {name!r}: columns {missing} missing, {unknown} unknown")
    arrays = []
    for field in wanted:
        try:
            array = pa.array([_plain(row[field.name], field.type) for row in rows], type=field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError) as error:
            raise TableError(f"table {name!r}, column {field.name!r}: {field.type} expected; {error}") from error
        if array.null_count and not field.nullable:
            raise TableError(f"table {name!r}, column {field.name!r}: a row has None; a value is needed")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=wanted)


def assign_shards(listing: pa.Table, shard_size: int, first_shard: int = 0) -> pa.Table:
    """The manifest table of a listing (`datasets.scan`): rows in their order, `shard_size` to a shard.

    A group (more than one image) stays in one shard, at the place of its first image, so that one worker can tune its
    shared generator; such shards may be larger. Shards count from `first_shard`, without gaps. Raises TableError for a
    shard size below 1 and for a listing without one of the columns.
    """
    if shard_size < 1:
        raise TableError(f"shard_size {shard_size}: at least 1 expected")
    wanted = schema("manifest")
    if missing := sorted(set(wanted.names) - {"shard"} - set(listing.column_names)):
        raise TableError(f"listing: columns {missing} missing")
    group = listing["group"].combine_chunks().dictionary_encode()
    if isinstance(group, pa.ChunkedArray):  # of no rows
        group = pa.array([], pa.string()).dictionary_encode()
    sizes = np.bincount(group.indices.to_numpy(), minlength=len(group.dictionary))
    if len(sizes) < len(listing):  # a group's rows become neighbours; dictionaries are in the order of appearance
        listing = listing.take(pa.array(np.argsort(group.indices.to_numpy(), kind="stable")))
    of_group, shard, held = [], first_shard, 0
    for size in sizes.tolist():
        if held and held + size > shard_size:
            shard, held = shard + 1, 0
        held += size
        of_group.append(shard)
    listing = listing.append_column("shard", pa.array(np.repeat(np.array(of_group, np.int64), sizes)))
    return listing.select(wanted.names).cast(wanted)


def to_parquet(name: str, content: pa.Table) -> bytes:
    """A table as a Parquet file. Raises TableError where its columns are not those of the table `name`.

    Deltas get a row group an owner (rows of one owner must be neighbours) with statistics, so that a reader with a
    filter on `owner` fetches that image's rows alone. Payloads are compressed already and are not again.
    """
    if not content.schema.equals(schema(name)):
        raise TableError(f"table {name!r}: columns {content.schema.names} do not fit; make it with tables.table")
    binary = [f.name for f in content.schema if f.type == _B]
    lists = {f.name: f"{f.name}.list.element" for f in content.schema if pa.types.is_list(f.type)}
    leaves = [lists.get(n, n) for n in content.column_names]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        content.schema,
        compression={leaf: "none" if leaf in binary else "zstd" for leaf in leaves},
        use_dictionary=[f.name for f in content.schema if f.type == _S],
        write_statistics=[n for n in content.column_names if n not in binary and n not in lists],
    ) as writer:
        if name == "deltas" and len(content):
            owners = content["owner"].to_numpy()
            starts = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), len(content)]
            for start, stop in pairwise(starts):
                writer.write_table(content.slice(start, stop - start))
        else:
            writer.write_table(content, row_group_size=ROW_GROUP)
    return bytes(sink.getvalue())


Row = Mapping[str, Any]
"""A row of a table, by column."""


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table that was read, as dictionaries."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))


def docs() -> str:
    """All tables and their columns as Markdown, for the documentation."""
    return "\n".join(line for name in COLUMNS for line in (f"### `{name}`", "", *markdown(COLUMNS[name]), ""))


def markdown(columns: Mapping[str, Column]) -> list[str]:
    """Columns as the lines of a Markdown table."""
    lines = ["| column | type | meaning |", "| --- | --- | --- |"]
    for name, column in columns.items():
        kind = f"list of {column.type.value_type}" if pa.types.is_list(column.type) else str(column.type)
        doc = column.doc.replace("|", "\\|")  # it would end the cell
        lines.append(f"| `{name}` | {kind}{', null' if column.nullable else ''} | {doc} |")
    return lines


def _plain(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, np.generic):
        value = value.tolist()
    if pa.types.is_integer(kind) and isinstance(value, float):
        raise TypeError(f"got {value}")  # pyarrow would cut off the fraction
    return value
