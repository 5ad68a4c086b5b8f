"""The frozen list of a run's inputs: one Parquet file, and one more for every time that the run was extended.

    runs/<run>/manifest.parquet          shards 0 to n - 1
    runs/<run>/manifest-00120.parquet    appended later: shards 120 and on

Shards are numbered without gaps and rows are in their order, so a task finds its own rows by the statistics of the
row groups and reads one of them (about a megabyte), whatever the number of images.
"""

from __future__ import annotations

import hashlib
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pti_core import tables
from pti_core.storage.files import DamagedFile, FileInfo, Files, StoreError
from pti_core.storage.share import Share

MEANWHILE: Final = "another process has begun or extended this run meanwhile; run it again"
_WAY_OUT: Final = "bring it back, or `pti run` with --overwrite (existing=overwrite) does all of the run again"
_WINDOW: Final = 250_000  # rows that are counted at once
_PIECE: Final = 16 << 20  # bytes that are read at once
_NAME: Final = re.compile(r"manifest(?:-(\d{5,}))?\.parquet")


@dataclass(frozen=True)
class _File:
    """One file of a manifest."""

    path: str  # relative to the root
    metadata: pq.FileMetaData

    @cached_property
    def shards(self) -> NDArray[np.int64]:
        """`[row groups, 2]`: first and last shard of each row group, in order."""
        column = self.metadata.schema.names.index("shard")
        groups = (self.metadata.row_group(i).column(column).statistics for i in range(self.metadata.num_row_groups))
        return np.array([(int(found.min), int(found.max)) for found in groups], np.int64).reshape(-1, 2)

    def groups(self, shard: int) -> range:
        """The row groups that hold rows of a shard."""
        if not len(self.shards):
            return range(0)
        first = int(np.searchsorted(self.shards[:, 1], shard, "left"))
        return range(first, int(np.searchsorted(self.shards[:, 0], shard, "right")))

    def may_hold(self, images: Sequence[str]) -> list[int]:
        """The row groups that can have one of these images (sorted), by the first and last name of each group."""
        column, found = self.metadata.schema.names.index("image_id"), []
        for group in range(self.metadata.num_row_groups):
            names = self.metadata.row_group(group).column(column).statistics
            known = names is not None and names.has_min_max  # not of names of some thousand bytes
            if not known or bisect_left(images, names.min) < bisect_right(images, names.max):
                found.append(group)
        return found


class Manifest:
    """The manifest of one run. Reads what it is asked for; keeps the files' footers and the last row group."""

    def __init__(self, files: Files, run: str) -> None:
        """StoreError where the run has none, DamagedFile where one of its files is gone or cannot be read."""
        self._files, self.run = files, run
        paths = _paths(files, run)
        if not paths:
            raise StoreError(
                f"run {run!r} has no manifest in {files.name!r}: bring 'runs/{run}/manifest.parquet' back; or "
                "`pti run` with --overwrite lists the data set anew, and does all of it again"
            )
        with files.explained("read"):
            self._parts = [_File(path, _footer(files, path)) for path in paths]
        after = -1
        for part in (part for part in self._parts if part.metadata.num_rows):
            first, last = int(part.shards[0, 0]), int(part.shards[-1, 1])
            if first != after + 1:
                wrong = f"shards {after + 1} to {first - 1} are listed nowhere" if first > after else "files overlap"
                raise DamagedFile(f"run {run!r} lacks a file of its manifest ({wrong}); {_WAY_OUT}")
            after = last
        self._last: tuple[tuple[str, int], pa.Table] | None = None

    @cached_property
    def rows(self) -> int:
        """Inputs of the run."""
        return sum(part.metadata.num_rows for part in self._parts)

    def images_of(self, share: Share) -> int:
        """How many of the inputs are in the shards of a share."""
        if share.whole:
            return self.rows
        found = 0
        for _, rows in self.windows(_WINDOW, ["shard"]):
            found += int(np.count_nonzero(rows["shard"].to_numpy() % share.count == share.index))
        return found

    @cached_property
    def shards(self) -> int:
        """Shards of the run; they are numbered from 0."""
        return 1 + int(self._parts[-1].shards[-1, 1])

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """All inputs, in order. Of the files only these columns are read."""
        found = []
        for part in self._parts:
            with self._files.explained("read"), self._files.open(part.path) as file:
                content = pq.ParquetFile(file, metadata=part.metadata, pre_buffer=True)
                found.append(content.read(columns=columns))
        return pa.concat_tables(found) if len(found) > 1 else found[0]

    def sums(self) -> dict[str, str]:
        """SHA-256 of each file by its path. Reads all of them, a piece at a time."""
        found = {}
        for part in self._parts:
            with self._files.explained("read"), self._files.open(part.path) as file:
                content = hashlib.sha256()
                while data := file.read(_PIECE):
                    content.update(data)
                found[part.path] = content.hexdigest()
        return found

    def windows(self, rows: int, columns: list[str], without: Container[int] = ()) -> Iterator[tuple[range, pa.Table]]:
        """All inputs in pieces of about so many rows: whole shards, their numbers and their rows.

        Pieces that have only shards of `without` are left out. DamagedFile where a file between two others is gone.
        """
        each = max(1, rows * self.shards // max(1, self.rows))
        for first in range(0, self.shards, each):
            found, stop = [], min(self.shards, first + each)
            if all(shard in without for shard in range(first, stop)):
                continue
            for part in self._parts:
                groups = range(part.groups(first).start, part.groups(stop - 1).stop)
                if groups:
                    with self._files.explained("read"), self._files.open(part.path) as file:
                        content = pq.ParquetFile(file, metadata=part.metadata, pre_buffer=True)
                        found.append(content.read_row_groups(list(groups), columns=sorted({*columns, "shard"})))
            table = pa.concat_tables(found) if found else tables.schema("manifest").empty_table()
            inside = pc.and_(pc.greater_equal(table["shard"], first), pc.less(table["shard"], stop))
            table = table.filter(inside)
            if pc.count_distinct(table["shard"]).as_py() < stop - first:
                missing = f"not all shards from {first} to {stop - 1} are listed"
                raise DamagedFile(f"run {self.run!r} lacks a file of its manifest ({missing})")
            yield range(first, stop), table.select(columns)

    def shard(self, number: int) -> list[dict[str, Any]]:
        """The inputs of a shard, in order. StoreError where there is no such shard."""
        rows = [
            row
            for part in self._parts
            for group in part.groups(number)
            for row in _of_shard(self._row_group(part, group), number)
        ]
        if not rows:
            raise StoreError(f"run {self.run!r} has no shard {number}; it has {self.shards}")
        return rows

    def shards_of(self, images: Collection[str]) -> dict[str, int]:
        """The shards of these images by name, without those that the run does not have. Keeps no other rows."""
        wanted, found = sorted(set(images)), dict[str, int]()
        names = pa.array(wanted, pa.string())
        for part in self._parts:
            groups = part.may_hold(wanted)
            if groups:
                with self._files.explained("read"), self._files.open(part.path) as file:
                    content = pq.ParquetFile(file, metadata=part.metadata, pre_buffer=True)
                    for rows in content.iter_batches(row_groups=groups, columns=["image_id", "shard"]):
                        rows = rows.filter(pc.is_in(rows["image_id"], names))
                        found |= dict(zip(rows["image_id"].to_pylist(), rows["shard"].to_pylist(), strict=True))
        return found

    def drawn(self, count: int) -> Iterator[str]:
        """Addresses (`uri`) of `count` inputs, others in each call; all where there are fewer."""
        groups = [(part, i) for part in self._parts for i in range(part.metadata.num_row_groups)]
        ends = np.cumsum([part.metadata.row_group(i).num_rows for part, i in groups])
        for row in random.SystemRandom().sample(range(self.rows), min(count, self.rows)):
            which = int(np.searchsorted(ends, row, "right"))
            yield self._row_group(*groups[which])["uri"][row - int(ends[which])].as_py()

    def _row_group(self, part: _File, group: int) -> pa.Table:
        last = self._last  # threads share a manifest: what is returned is what was asked for
        if last is None or last[0] != (part.path, group):
            with self._files.explained("read"), self._files.open(part.path) as file:
                content = pq.ParquetFile(file, metadata=part.metadata, pre_buffer=True)
                self._last = last = (part.path, group), content.read_row_group(group)
        return last[1]


def freeze(files: Files, run: str, manifest: pa.Table) -> FileInfo:
    """`Store.write_manifest`."""
    here = {f"runs/{run}/{name}" for name in ("config.json", "manifest.parquet")}
    if not here <= files.find(f"runs/{run}", maxdepth=1).keys():
        return replace(files, run, manifest)
    old, first = Manifest(files, run), first_shard(manifest)
    if first > old.shards:
        raise StoreError(f"run {run!r} has {old.shards} shards; shard {first} cannot follow")
    if first == old.shards:
        return write(files, run, manifest)
    there = old.table()
    there = there.filter(pc.greater_equal(there["shard"], first))
    if not there.equals(manifest):
        found = f"{there.num_rows} images there, {manifest.num_rows} now, or other files or shards"
        raise StoreError(f"run {run!r} has another manifest ({found}): {MEANWHILE}")
    path = path_of(run, first)
    return FileInfo.of(path, files.get(path, f"file {path!r} is missing"))


def write(files: Files, run: str, manifest: pa.Table) -> FileInfo:
    """Append rows, whose shards go on where the last file ended. StoreError where another process was first."""
    path, data = path_of(run, first_shard(manifest)), tables.to_parquet("manifest", manifest)
    if not files.create(path, data):
        raise StoreError(f"run {run!r} has another manifest: {MEANWHILE}")
    return FileInfo.of(path, data)


def replace(files: Files, run: str, manifest: pa.Table) -> FileInfo:
    """Write the manifest of a run without a configuration, over one that was left there."""
    return files.put(path_of(run, first_shard(manifest)), tables.to_parquet("manifest", manifest))


def first_shard(manifest: pa.Table) -> int:
    """The number of the first shard of rows of a manifest."""
    return int(manifest["shard"][0].as_py()) if len(manifest) else 0


def path_of(run: str, first: int) -> str:
    """The file of the shards `first` and on."""
    return f"runs/{run}/manifest{f'-{first:05d}' if first else ''}.parquet"


def _paths(files: Files, run: str) -> list[str]:
    """The files of a manifest in the order of their shards."""
    found = {}
    for path in files.find(f"runs/{run}", maxdepth=1):
        if match := _NAME.fullmatch(path.rpartition("/")[2]):
            found[int(match[1] or 0)] = path
    return [found[first] for first in sorted(found)]


def _footer(files: Files, path: str) -> pq.FileMetaData:
    with files.open(path) as file:
        try:
            return pq.read_metadata(file)
        except (pa.ArrowException, ValueError) as error:
            raise DamagedFile(f"manifest {path!r} in {files.name!r} is damaged ({error}); {_WAY_OUT}") from error


def _of_shard(group: pa.Table, number: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = group.filter(pc.equal(group["shard"], number)).to_pylist()
    return rows
