"""The store: where a run's config, manifest, tables, markers and report lie, on any file system of fsspec.

    runs/<run>/config.json, manifest.parquet, done/00000.json, report/
    <table>/run=<run>/shard=00000/part-0.parquet        (deltas: part-0000.parquet)

Payload first, marker last: a shard counts as done by its marker alone. A file's name is a function of run, shard and
part, so doing a shard again overwrites and never duplicates. Every file appears whole or not at all: on disk through
a hidden temporary file in the same folder, fsync and rename; on object stores through one PUT of the whole object
(a multipart upload above s3fs's 50 MB, which appears only when it is complete).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pti_core import tables
from pti_core.storage import finished, manifests
from pti_core.storage.checked import check_complete
from pti_core.storage.completeness import strays
from pti_core.storage.files import DamagedFile, FileInfo, Files, MissingFile, StoreError
from pti_core.storage.layout import CLEARING, checked, marker_path, shard_folder
from pti_core.storage.manifests import Manifest
from pti_core.storage.markers import check_marker, parse_marker, part_number, without
from pti_core.storage.notes import here, undone
from pti_core.storage.table_files import listed, read_files

__all__ = ["Store", "StoreError"]


class Store:
    """The files of all runs below `root`, any fsspec URL or path. Can be pickled; holds no open file."""

    def __init__(self, root: str, storage_options: Mapping[str, Any] | None = None) -> None:
        """`storage_options` go to the file system. StoreError for an address with a secret, or one unknown here."""
        self.files = Files(root, storage_options)
        self.root = self.files.root  # for f"{root}/metrics"; without a secret, such a root is refused

    def __repr__(self) -> str:
        return f"Store({self.files.name!r})"

    def check_writable(self) -> None:
        """Write, list, read and remove a small file, before any work. StoreError with one sentence where that fails."""
        self.files.check_writable(("runs", *tables.PARTS))

    # --- a run -------------------------------------------------------------------------------------------------

    def runs(self) -> list[str]:
        """Names of all runs that have a config, sorted."""
        files = self.files.find("runs", maxdepth=2)
        return sorted(f.split("/")[1] for f in files if f.endswith("/config.json"))

    def write_config(self, run: str, config: Mapping[str, Any]) -> FileInfo:
        """Write the resolved config; one of the same `digest` that is there already stays, with its `created`.

        So of several processes that freeze a run at once all have the one that was first.

        StoreError where the run has one with another digest.
        """
        path, data = f"runs/{checked(run)}/config.json", _json(config)
        if self.files.create(path, data):
            return FileInfo.of(path, data)
        old = self.read_config(run).get("digest")
        if old == config.get("digest"):
            return self.file_info(path)
        found = f"digest {str(old)[:12]!r} there, {str(config.get('digest'))[:12]!r} now"
        raise StoreError(f"run {run!r} exists with another configuration ({found}); choose another run name")

    def read_config(self, run: str) -> dict[str, Any]:
        """The run's config. StoreError where there is none."""
        data = self.files.get(f"runs/{checked(run)}/config.json", f"run {run!r} has no config")
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"'runs/{run}/config.json' in {self.files.name!r} is damaged ({error}); bring it back, or remove "
                f"'runs/{run}' and all folders 'run={run}', and the run is gone"
            ) from error

    def write_manifest(self, run: str, manifest: pa.Table) -> FileInfo:
        """Freeze the run's inputs, or append to them: shards that follow those that are there.

        The same again is fine; StoreError where a run with a config has other inputs in these shards. A manifest
        without a config was left by a process that ended between the two; it is replaced.
        """
        return manifests.freeze(self.files, checked(run), manifest)

    def manifest(self, run: str) -> Manifest:
        """The run's inputs. StoreError where there are none."""
        return Manifest(self.files, checked(run))

    def exists(self, path: str) -> bool:
        """Whether there is a file of this path, relative to the root."""
        return self.files.exists(path)

    def write_report(self, run: str, name: str, data: bytes) -> FileInfo:
        """Write `report/<name>` of the run."""
        return self.files.put(f"runs/{checked(run)}/report/{name}", data)

    def clear_run(self, run: str) -> None:
        """Remove all that a run has left, its config first: cut off half way, it is one that was never frozen."""
        self.files.remove(f"runs/{checked(run)}/config.json")
        by = {"by": here(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        self.files.put(f"runs/{run}/{CLEARING}", _json(by))  # and has not lost it
        for path in (*(f"{table}/run={run}" for table in tables.TABLES), f"runs/{run}/done", f"runs/{run}"):
            self.files.remove(path)

    # --- a shard -----------------------------------------------------------------------------------------------

    def write_part(self, table: str, run: str, shard: int, part: int, content: pa.Table) -> FileInfo:
        """Write one part of a table of a shard, over any older one. TableError where its columns do not fit."""
        if table not in tables.TABLES:
            raise StoreError(f"table {table!r}: one of {', '.join(tables.TABLES)} expected")
        return self.files.put(self.part_path(table, run, shard, part), tables.to_parquet(table, content))

    def part_path(self, table: str, run: str, shard: int, part: int) -> str:
        """Where a part lies, or would."""
        return f"{shard_folder(table, run, shard)}/part-{f'{part:04d}' if table == 'deltas' else part}.parquet"

    def parts(self, table: str, run: str, shard: int) -> dict[int, str]:
        """Paths of the parts of a shard's table that are there, by number; a file of any other name is no part."""
        numbers = {path: part_number(path) for path in self.files.find(shard_folder(table, run, shard))}
        return {number: path for path, number in numbers.items() if number is not None}

    def read_part(self, path: str) -> pd.DataFrame:
        """One part by its path. StoreError where it is not there."""
        return pq.read_table(pa.BufferReader(self.files.get(path, f"part {path!r} is missing"))).to_pandas()

    def read_table(self, path: str) -> tuple[FileInfo, pa.Table]:
        """One part as it was written, with its size and checksum. DamagedFile where it is no whole Parquet file.

        StoreError where it is not there, or the file system does not answer.
        """
        data = self.files.get(path, f"part {path!r} is missing")
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(f"part {path!r} in {self.files.name!r} is damaged ({error})") from error
        return FileInfo.of(path, data), table

    def file_info(self, path: str) -> FileInfo:
        """Size and checksum of a file that is there already; reads it."""
        data = self.files.get(path, f"file {path!r} is missing")
        return FileInfo.of(path, data)

    def mark_done(self, run: str, shard: int, marker: Mapping[str, Any]) -> FileInfo:
        """Write the shard's marker (`make_marker`), after all its parts.

        StoreError where pivots and rejects do not add up to the manifest's rows, or a table lacks a part (one with no
        rows keeps the table readable).
        """
        check_marker(shard, marker)
        content = {"run": run, "shard": shard, **marker}
        return self.files.put(marker_path(run, shard), _json(content))

    def marker(self, run: str, shard: int) -> dict[str, Any] | None:
        """A shard's marker as it was written, whether or not its files still match; None where there is none."""
        return finished.read_marker(self.files, run, shard)

    def unmark(self, run: str, shard: int, parts: Collection[int] = ()) -> None:
        """Before these parts of a shard change: it counts as not done; its marker still tells how the others are.

        Nothing is deleted, since not every user may.
        """
        with suppress(MissingFile):
            marker = parse_marker(self.files.get(marker_path(run, shard), "no marker"))
            content = undone(without(marker, parts), self.files, run, shard) if marker else {}
            self.files.put(marker_path(run, shard), _json(content))

    def mark_damaged(self, run: str, shard: int, marker: Mapping[str, Any]) -> None:
        """A shard whose files are not as its marker says counts as not done; the marker still tells which they are."""
        self.files.put(marker_path(run, shard), _json(undone(marker, self.files, run, shard)))

    def markers(self, run: str, whole: bool = False, shards: Iterable[int] | None = None) -> dict[int, dict[str, Any]]:
        """The markers of a run's shards that can be read, are theirs and of the run's config as it was last frozen.

        With `shards` those of these alone. One that a worker of a run left which was overwritten meanwhile does not
        count. Whether their files are still there is not looked at: `done` does. Of their files they have names and
        sizes alone (see `markers.lean`); all with `whole`, which takes four times the memory.
        """
        return finished.read_markers(self.files, run, self.read_config, whole, shards)

    def done(self, run: str, whole: bool = False) -> dict[int, dict[str, Any]]:
        """The markers of all shards that are done, as `markers` reads them: their files are there in their sizes.

        Every folder is listed once.
        """
        return finished.with_files(self.files, run, self.markers(run, whole))

    def verify(self, marker: Mapping[str, Any]) -> list[str]:
        """Read a marker's files and compare sizes and checksums. One sentence a problem; empty if all is well.

        A marker that is not `whole` is read again for that; where it is gone, nothing is told.

        StoreError where the file system does not answer: that says nothing about the files.
        """
        return finished.verify(self.files, marker)

    def strays(self, run: str) -> list[str]:
        """Files in a run's tables that are no part of it, though readers take them for one (`completeness.strays`)."""
        # The files first: what is begun, finished or appended meanwhile is then known to be the run's.
        listed = [path for table in tables.PARTS for path in self.files.find(f"{table}/run={checked(run)}")]
        return strays(listed, self.markers(run), self.manifest(run).shards)

    # --- reading -----------------------------------------------------------------------------------------------

    def read(
        self, table: str, run: str | None = None, columns: Sequence[str] | None = None, filters: Any = None
    ) -> pd.DataFrame:
        """A table of one run or of all, with its columns and `run` (str) and `shard` (int32).

        `filters` as in `pandas.read_parquet`. The table's metadata (the net of LPIPS) is in `attrs`. With no part
        there the frame has no rows. Parts of shards that are not done are read too. With `run` and filters on `shard`
        no other shard's file is opened; and on `owner`, one image's delta is read by a few requests for little more
        than its own bytes.
        """
        found = self.read_arrow(table, run, columns, filters)
        frame = found.to_pandas()
        frame.attrs = json.loads((found.schema.metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
        return frame

    def read_arrow(
        self, table: str, run: str | None = None, columns: Sequence[str] | None = None, filters: Any = None
    ) -> pa.Table:
        """The same as a pyarrow table, which takes a fifth of the memory of millions of rows with strings."""
        wanted = tables.schema(table)
        files = listed(self.files, table, run, filters)
        if not files:
            empty = pa.schema([*wanted, pa.field("run", pa.string()), pa.field("shard", pa.int32())]).empty_table()
            return empty if columns is None else empty.select(list(columns))
        where = None if filters is None else pq.filters_to_expression(filters)
        return read_files(self.files, table, files, None if columns is None else list(columns), where)

    def check_complete(self, run: str, markers: Mapping[int, Mapping[str, Any]] | None = None) -> dict[str, int]:
        """Assert that each input has exactly one row, in pivots or in rejects; the counts of rows.

        StoreError where rows(pivots) + rows(rejects) != rows(manifest), or an image is twice, missing or unknown;
        it names the files that are no parts of the run. With the `markers` of `done` only shards are read that have
        changed since they were found complete.
        """
        return check_complete(self.files, self.manifest(run), lambda: self.strays(run), markers)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
