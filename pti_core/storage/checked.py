"""Which shards of a run were found complete, so that only what has changed since is read again.

Beside a shard's rows stands the checksum of its marker as it was then. A shard need not be read again while its marker
is the same, the files of its pivots and rejects are those that the marker names, in their sizes, and the manifest's
files are those of then: its rows are still what they were, each of its inputs once. No input is in two shards.

runs/<run>/report/checked.parquet     shard, marker, pivots, rejects; checksums of the manifest's files as metadata
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pti_core.storage.completeness import COUNTED, Rows, by_shard, check_rows
from pti_core.storage.files import Files, StoreError
from pti_core.storage.manifests import Manifest
from pti_core.storage.table_files import read_files

CHECKED: Final = "checked.parquet"

_SCHEMA: Final = pa.schema(
    [("shard", pa.int32()), ("marker", pa.string()), *((table, pa.int64()) for table in COUNTED)]
)
_MANIFEST: Final = b"manifest"

Markers = Mapping[int, Mapping[str, Any]]
"""Of finished shards, as `Store.done` reads them."""


def check_complete(
    files: Files, manifest: Manifest, find_strays: Callable[[], list[str]], markers: Markers | None = None
) -> dict[str, int]:
    """The counts of rows of manifest, pivots and rejects. StoreError where not each input has exactly one row.

    With `markers` only shards are read that have changed since they were found complete, and it is kept which are.
    """
    run = manifest.run
    there = {table: by_shard(files.find(f"{table}/run={run}")) for table in COUNTED}
    whole = {} if markers is None else _as_marked(markers, there)
    sums = manifest.sums() if markers is not None else {}
    known = _known(files, run, sums, whole) if whole else {}
    rows = check_rows(manifest, there, partial(read_files, files), find_strays, known)
    if len(whole) > len(known):
        _keep(files, run, sums, {shard: (marker, rows[shard]) for shard, marker in whole.items()})
    return {"manifest": manifest.rows} | {
        table: sum(row[i] for row in rows.values()) for i, table in enumerate(COUNTED)
    }


def _as_marked(markers: Markers, there: Mapping[str, Mapping[int, Mapping[str, int]]]) -> dict[int, str]:
    """Checksums of the markers of shards that have the files which their marker names, and no other."""
    return {
        shard: marker["sha256"]
        for shard, marker in markers.items()
        if all(there[table].get(shard) == dict(marker["files"].sizes(table)) for table in COUNTED)
    }


def _known(files: Files, run: str, sums: Mapping[str, str], whole: Mapping[int, str]) -> Rows:
    """The rows of shards that were found complete and have not changed; none where that cannot be told."""
    try:
        table = pq.read_table(pa.BufferReader(files.get(_path(run), "nothing checked")), schema=_SCHEMA)
        then = json.loads((pq.read_schema(pa.BufferReader(files.get(_path(run), "")))).metadata[_MANIFEST])
        if any(sums.get(path) != told for path, told in then.items()):
            return {}
        columns = (table[name].to_pylist() for name in _SCHEMA.names)
        return {shard: tuple(rows) for shard, marker, *rows in zip(*columns, strict=True) if whole.get(shard) == marker}
    except (StoreError, pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _keep(files: Files, run: str, sums: Mapping[str, str], found: Mapping[int, tuple[str, tuple[int, ...]]]) -> None:
    rows = [(shard, marker, *counts) for shard, (marker, counts) in sorted(found.items())]
    table = pa.table(dict(zip(_SCHEMA.names, zip(*rows, strict=True), strict=True)), schema=_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_MANIFEST: json.dumps(sums)}), sink, compression="zstd")
    with suppress(StoreError):  # it saves time, no more
        files.put(_path(run), bytes(sink.getvalue()))


def _path(run: str) -> str:
    return f"runs/{run}/report/{CHECKED}"
