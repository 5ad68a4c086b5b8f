"""The store: where a run's config, manifest, tables, markers and report lie, on any file system of fsspec.

    runs/<run>/config.json, manifest.parquet, done/00000.json, report/
    <table>/run=<run>/shard=00000/part-0.parquet        (deltas: part-0000.parquet)

Payload first, marker last: a shard counts as done by its marker alone. A file's name is a function of run, shard and
part, so doing a shard again overwrites and never duplicates. Every file appears whole or not at all: on disk through
a hidden temporary file in the same folder, fsync and rename; on object stores through one PUT of the whole object
(a multipart upload above s3fs's 50 MB, which appears only when it is complete).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pti_core import tables
from pti_core.files import FileInfo, Files, StoreError
from pti_core.markers import check_marker, make_marker, parse_marker, sum_text

__all__ = ["DamagedPart", "FileInfo", "Store", "StoreError", "make_marker", "run_id"]

RUN_ID_DIGITS: Final = 12

_PARTITIONS = pads.partitioning(pa.schema([("run", pa.string()), ("shard", pa.int32())]), flavor="hive")


def run_id(digest: str) -> str:
    """The default name of a run: the first 12 hex digits of its config digest that do not read as a number.

    pandas and others guess the type of a partition column from its values: `run=000000000012` becomes 12 in pandas,
    `123456789012` and `1e5000000000` are numbers to other readers. For those, fewer than one digest in a hundred, the
    window moves on to the first 12 neighbouring digits that read as text. (pandas shows `run` as a categorical of
    str, `Store.read` as str.)
    """
    for start in range(len(digest) - RUN_ID_DIGITS + 1):
        candidate = digest[start : start + RUN_ID_DIGITS]
        if not _is_number(candidate):
            return candidate
    raise StoreError(f"digest {digest!r}: at least {RUN_ID_DIGITS} hex digits expected, not all of them decimal")


class DamagedPart(StoreError):
    """A part that is there, but not as it was written."""


class Store:
    """The files of all runs below `root`, any fsspec URL or path. Can be pickled; holds no open file."""

    def __init__(self, root: str, storage_options: Mapping[str, Any] | None = None) -> None:
        """`storage_options` go to the file system. StoreError for an unknown protocol or a missing package."""
        self.files = Files(root, storage_options)
        self.root = self.files.root  # for f"{root}/metrics"; may hold a password, `repr` does not

    def __repr__(self) -> str:
        return f"Store({self.files.name!r})"

    def check_writable(self) -> None:
        """Write, list and remove a small file, before any work. StoreError with one sentence where that fails."""
        self.files.check_writable(("runs", *tables.PARTS))

    # --- a run -------------------------------------------------------------------------------------------------

    def runs(self) -> list[str]:
        """Names of all runs that have a config, sorted."""
        files = self.files.find("runs", maxdepth=2)
        return sorted(f.split("/")[1] for f in files if f.endswith("/config.json"))

    def write_config(self, run: str, config: Mapping[str, Any]) -> FileInfo:
        """Write the resolved config. StoreError where the run already has one with another `digest`."""
        path = f"runs/{_checked(run)}/config.json"
        old = self.read_config(run).get("digest") if path in self.files.find(f"runs/{run}", maxdepth=1) else None
        if old is not None and old != config.get("digest"):
            found = f"digest {str(old)[:12]!r} there, {str(config.get('digest'))[:12]!r} now"
            raise StoreError(f"run {run!r} exists with another configuration ({found}); choose another run name")
        return self.files.put(path, _json(config))

    def read_config(self, run: str) -> dict[str, Any]:
        """The run's config. StoreError where there is none."""
        data = self.files.get(f"runs/{_checked(run)}/config.json", f"run {run!r} has no config")
        with self.files.explained("read"):
            return dict(json.loads(data))

    def write_manifest(self, run: str, manifest: pa.Table) -> FileInfo:
        """Freeze the run's inputs. The same again is fine; StoreError where a run with a config has another one.

        A manifest without a config was left by a process that ended between the two; it is replaced.
        """
        path, data = f"runs/{_checked(run)}/manifest.parquet", tables.to_parquet("manifest", manifest)
        if {path, f"runs/{run}/config.json"} <= self.files.find(f"runs/{run}", maxdepth=1).keys():
            old = self.read_manifest(run)
            if old.equals(manifest):
                return FileInfo(path, len(data), hashlib.sha256(data).hexdigest())
            found = f"{old.num_rows} images there, {manifest.num_rows} now, or other files or shards"
            raise StoreError(f"run {run!r} has another manifest ({found}); go on with that one or choose another run")
        return self.files.put(path, data)

    def read_manifest(self, run: str) -> pa.Table:
        """The run's inputs, as written. StoreError where there is none."""
        data = self.files.get(f"runs/{_checked(run)}/manifest.parquet", f"run {run!r} has no manifest")
        with self.files.explained("read"):
            return pq.read_table(pa.BufferReader(data))

    def exists(self, path: str) -> bool:
        """Whether there is a file of this path, relative to the root."""
        folder, _, _ = path.rpartition("/")
        return path in self.files.find(folder, maxdepth=1)

    def write_report(self, run: str, name: str, data: bytes) -> FileInfo:
        """Write `report/<name>` of the run."""
        return self.files.put(f"runs/{_checked(run)}/report/{name}", data)

    def clear_run(self, run: str) -> None:
        """Remove all that a run has left, its config first: cut off half way, it is a run that was never frozen."""
        self.files.remove(f"runs/{_checked(run)}/config.json")
        for folder in (f"runs/{run}", *(f"{table}/run={run}" for table in tables.PARTS)):
            self.files.remove(folder)

    # --- a shard -----------------------------------------------------------------------------------------------

    def write_part(self, table: str, run: str, shard: int, part: int, content: pa.Table) -> FileInfo:
        """Write one part of a table of a shard, over any older one. TableError where its columns do not fit."""
        if table not in tables.PARTS:
            raise StoreError(f"table {table!r}: one of {', '.join(tables.PARTS)} expected")
        return self.files.put(self.part_path(table, run, shard, part), tables.to_parquet(table, content))

    def part_path(self, table: str, run: str, shard: int, part: int) -> str:
        """Where a part lies, or would."""
        return f"{_folder(table, run, shard)}/part-{f'{part:04d}' if table == 'deltas' else part}.parquet"

    def parts(self, table: str, run: str, shard: int) -> dict[int, str]:
        """Paths of the parts of a shard's table that are there, by number."""
        files = self.files.find(_folder(table, run, shard))
        return {
            int(path.rpartition("-")[2].removesuffix(".parquet")): path for path in files if path.endswith(".parquet")
        }

    def read_part(self, path: str) -> pd.DataFrame:
        """One part by its path. StoreError where it is not there."""
        return pq.read_table(pa.BufferReader(self.files.get(path, f"part {path!r} is missing"))).to_pandas()

    def read_table(self, path: str) -> tuple[FileInfo, pa.Table]:
        """One part as it was written, with its size and checksum. DamagedPart where it is no whole Parquet file.

        StoreError where it is not there, or the file system does not answer.
        """
        data = self.files.get(path, f"part {path!r} is missing")
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise DamagedPart(f"part {path!r} in {self.files.name!r} is damaged ({error})") from error
        return FileInfo(path, len(data), hashlib.sha256(data).hexdigest()), table

    def file_info(self, path: str) -> FileInfo:
        """Size and checksum of a file that is there already; reads it."""
        data = self.files.get(path, f"file {path!r} is missing")
        return FileInfo(path, len(data), hashlib.sha256(data).hexdigest())

    def mark_done(self, run: str, shard: int, marker: Mapping[str, Any]) -> FileInfo:
        """Write the shard's marker (`make_marker`), after all its parts.

        StoreError where pivots and rejects do not add up to the manifest's rows, or a table lacks a part (one with no
        rows keeps the table readable).
        """
        check_marker(shard, marker)
        content = {"run": run, "shard": shard, **marker}
        return self.files.put(_marker_path(run, shard), _json(content))

    def marker(self, run: str, shard: int) -> dict[str, Any] | None:
        """A shard's marker as it was written, whether or not its files still match; None where there is none."""
        path = _marker_path(run, shard)
        return parse_marker(self.files.get(path, "no marker")) if self.exists(path) else None

    def unmark(self, run: str, shard: int) -> None:
        """Before a shard's files change: it counts as not done. Nothing is deleted, since not every user may."""
        if self.exists(path := _marker_path(run, shard)):
            self.files.put(path, b"{}\n")

    def done(self, run: str) -> dict[int, dict[str, Any]]:
        """The markers of all shards that are done. Every folder is listed once.

        A marker counts if it can be read, is this shard's, has the digest of the run's config (where there is one),
        and its files are there in the sizes it names.
        """
        here = self.files.find(f"runs/{_checked(run)}")
        listed = [name for name in here if re.fullmatch(r"runs/[^/]+/done/\d{5,}\.json", name)]
        if not listed:
            return {}
        digest = self.read_config(run).get("digest") if f"runs/{run}/config.json" in here else None
        sizes = {f: size for table in tables.PARTS for f, size in self.files.find(f"{table}/run={run}").items()}
        markers = {}
        for name, data in self.files.get_all(listed).items():
            shard, marker = int(name.rpartition("/")[2].removesuffix(".json")), parse_marker(data)
            if marker is None or (marker["run"], marker["shard"]) != (run, shard):
                continue
            if digest is not None and marker["digest"] != digest:
                continue
            if all(sizes.get(file["path"]) == file["bytes"] for file in marker["files"]):
                markers[shard] = marker
        return markers

    def verify(self, marker: Mapping[str, Any]) -> list[str]:
        """Read a marker's files and compare sizes and checksums. One sentence a problem; empty if all is well."""
        problems = []
        for file in marker["files"]:
            try:
                data = self.files.get(file["path"], f"file {file['path']!r} is missing")
            except StoreError as error:
                problems.append(str(error))
                continue
            if (len(data), hashlib.sha256(data).hexdigest()) != (file["bytes"], file["sha256"]):
                problems.append(f"file {file['path']!r}: {len(data)} bytes, not as written; do its shard again")
        return problems

    # --- reading -----------------------------------------------------------------------------------------------

    def read(
        self, table: str, run: str | None = None, columns: Sequence[str] | None = None, filters: Any = None
    ) -> pd.DataFrame:
        """A table of one run or of all, with its columns and `run` (str) and `shard` (int32).

        `filters` as in `pandas.read_parquet`. The table's metadata (the net of LPIPS) is in `attrs`. With no part
        there the frame has no rows. Parts of shards that are not done are read too.
        """
        wanted = tables.schema(table)
        folder = table if run is None else f"{table}/run={_checked(run)}"
        files = [self.files.at(f) for f in self.files.find(folder) if f.endswith(".parquet")]
        with self.files.explained("read"):
            if not files:
                fields = [*wanted, pa.field("run", pa.string()), pa.field("shard", pa.int32())]
                frame = pa.schema(fields).empty_table().to_pandas()
                return frame if columns is None else frame[list(columns)]
            options = {"format": "parquet", "partitioning": _PARTITIONS, "partition_base_dir": self.files.at(table)}
            dataset = pads.dataset(files, filesystem=self.files.fs, **options)
            where = None if filters is None else pq.filters_to_expression(filters)
            found = dataset.to_table(columns=None if columns is None else list(columns), filter=where)
        frame = found.to_pandas()
        frame.attrs = json.loads((found.schema.metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
        return frame

    def check_complete(self, run: str) -> dict[str, int]:
        """Assert that each input has exactly one row, in pivots or in rejects; the counts of rows.

        StoreError where rows(pivots) + rows(rejects) != rows(manifest), or an image is twice, missing or unknown.
        """
        found = {t: self.read(t, run, columns=["image_id"])["image_id"].tolist() for t in ("pivots", "rejects")}
        expected = self.read_manifest(run)["image_id"].to_pylist()
        counts = {"manifest": len(expected), **{t: len(ids) for t, ids in found.items()}}
        if sorted(found["pivots"] + found["rejects"]) != sorted(expected):
            wrong = sorted(set(expected) ^ {*found["pivots"], *found["rejects"]})[:3]
            which = f"missing or unknown: {wrong}" if wrong else "an image has two rows"
            raise StoreError(f"run {run!r} is not complete: {sum_text(counts)}; {which}; run it again to finish it")
        return counts


def _checked(run: str) -> str:
    """A run's name, if it can be a folder on every file system and is no number to any reader."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run) or _is_number(run):
        rule = "letters, digits, '.', '_' and '-' expected, beginning with a letter or digit, and not a number"
        raise StoreError(f"run {run!r}: {rule}; choose another name")
    return run


def _is_number(text: str) -> bool:
    try:
        float(text)  # also "1e5", "nan" and "inf"
    except ValueError:
        return False
    return True


def _folder(table: str, run: str, shard: int) -> str:
    return f"{table}/run={_checked(run)}/shard={shard:05d}"


def _marker_path(run: str, shard: int) -> str:
    return f"runs/{_checked(run)}/done/{shard:05d}.json"


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
