"""A few large Parquet files out of many pieces, for any file system: of each table a row group is held in memory.

`<table>.parquet`, or where that would be too large `<table>-00000.parquet`, `<table>-00001.parquet`, ... Each appears
whole or not at all. On a disk all of them are renamed once all are written, so what is there stays until then. On an
object store a file is uploaded when it is full; those of before are removed before the first.
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import IO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pti_core.connections import out_of_resources
from pti_core.storage.files import DamagedFile, Files, StoreError

GROUP_ROWS: Final = 122_880
"""Rows of a row group at most; what DuckDB gives a thread."""

GROUP_BYTES: Final = 64 << 20
"""Bytes of a row group in memory, about."""

FILE_BYTES: Final = 128 << 20
"""Bytes after which a file is full."""

MARK: Final = "pti_tables"
"""The key of the files' metadata that tells their run, and whose they are."""

_LOCK: Final = "lock"
_UNIQUE: Final = ("image_id", "uri", "sha256")  # a dictionary of them would only take room


@dataclass(frozen=True)
class Written:
    """A file that was written."""

    name: str
    bytes: int


class LargeTable:
    """One table on its way into files. `rows`, and after the end `files`, tell what came of it."""

    def __init__(self, name: str, schema: pa.Schema, to: LargeFiles) -> None:
        self.name, self.schema, self.rows = name, schema, 0
        self.files: list[Written] = []
        self._to = to
        self._waiting = schema.empty_table()
        self._open: tuple[Path, IO[bytes], pq.ParquetWriter] | None = None

    def add(self, rows: pa.Table) -> None:
        """Append rows, which have the table's columns."""
        rows = rows.select(self.schema.names).cast(self.schema)
        self.rows += len(rows)
        waiting = pa.concat_tables([self._waiting, rows])
        size = min(GROUP_ROWS, max(1, GROUP_BYTES * len(waiting) // max(1, waiting.nbytes)))
        whole = len(waiting) // size * size
        with self._to.explained():
            for start in range(0, whole, size):
                self._write(waiting.slice(start, size))
        self._waiting = waiting.slice(whole).combine_chunks() if whole else waiting

    def end(self) -> None:
        """Write what is waiting, and end the last file; a table without rows has one with none."""
        with self._to.explained():
            if len(self._waiting) or not self.files:
                self._write(self._waiting)
            self._close(more=False)

    def drop(self) -> None:
        """Close what is open, after an error."""
        if self._open is not None:
            with suppress(Exception):  # or it would try so itself later
                self._open[2].close()
            self._open[1].close()

    def _write(self, group: pa.Table) -> None:
        if self._open is not None and self._open[1].tell() >= self._to.file_bytes:
            self._close(more=True)
        if self._open is None:
            path = self._to.new_file()
            file = path.open("xb")
            alike = [f.name for f in self.schema if f.type == pa.string() and f.name not in _UNIQUE]
            self._open = path, file, pq.ParquetWriter(file, self.schema, compression="zstd", use_dictionary=alike)
        self._open[2].write_table(group, row_group_size=max(1, len(group)))

    def _close(self, more: bool) -> None:
        """End the file that is open; its name has no number where it is the only one."""
        if self._open is None:
            return
        path, file, writer = self._open
        writer.close()
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self._open = None
        number = f"-{len(self.files):05d}" if more or self.files else ""
        self.files.append(Written(f"{self.name}{number}.parquet", path.stat().st_size))
        self._to.keep(path, self.files[-1].name)


class LargeFiles:
    """The files of some tables in one folder; see `large_files`."""

    def __init__(self, output: Files, before: Set[str], spool: Path, file_bytes: int) -> None:
        self.tables: dict[str, LargeTable] = {}
        self.file_bytes = file_bytes
        self._output, self._before, self._spool = output, before, spool
        self._kept: dict[str, Path] = {}

    def table(self, name: str, schema: pa.Schema) -> LargeTable:
        """A new table."""
        self.tables[name] = LargeTable(name, schema, self)
        return self.tables[name]

    def publish(self) -> None:
        """End all tables; their files get their names, and what was there before goes."""
        for table in self.tables.values():
            table.end()
        with self._output.explained("written"):
            for name, path in self._kept.items():
                path.replace(self._output.at(name))
        for name in self._before - self._kept.keys():
            self._output.remove(name)
        self._before = frozenset()

    def new_file(self) -> Path:
        """Where a table writes its next file."""
        return self._spool / f"{uuid.uuid4().hex[:12]}.part"

    def keep(self, path: Path, name: str) -> None:
        """Take a file that is complete, and is to have this name."""
        if self._output.local:
            self._kept[name] = path
            return
        for old in self._before:
            self._output.remove(old)
        self._before = frozenset()
        self._output.put(name, path.read_bytes())
        path.unlink()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Around what writes: the sentence of an error of the folder, or of this machine's temporary files."""
        if self._output.local:
            with self._output.explained("written"):
                yield
            return
        try:
            yield
        except OSError as error:
            raise out_of_resources(error) or error from error


@contextmanager
def large_files(output: Files, names: Sequence[str], file_bytes: int = FILE_BYTES) -> Iterator[LargeFiles]:
    """Within it tables of these names are made; at its end they are published, after an error nothing is.

    StoreError where the folder takes no files, or has some of their names that are not of this kind.
    """
    before = _there(output, names)
    with ExitStack() as stack:
        with output.explained("written"):
            if output.local:
                folder = Path(output.at(""))
                folder.mkdir(parents=True, exist_ok=True)
                _remove_left(folder)
                spool = stack.enter_context(TemporaryDirectory(prefix=".pti-", dir=folder))
                stack.enter_context(_held(Path(spool)))
            else:
                spool = stack.enter_context(TemporaryDirectory(prefix="pti-"))
        files = LargeFiles(output, before, Path(spool), file_bytes)
        try:
            yield files
            files.publish()
        finally:
            for table in files.tables.values():
                table.drop()


@contextmanager
def _held(spool: Path) -> Iterator[None]:
    """Hold the lock of a folder of files on their way, which ends with this process. What is in it is written last."""
    with (spool / _LOCK).open("wb", buffering=0) as lock:
        with suppress(OSError):  # a disk without locks: then nobody takes it for left
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(b"held")
        yield


def _remove_left(folder: Path) -> None:
    """Remove what processes have left that were killed: folders with a lock that nobody holds any more."""
    for path in folder.glob(f".pti-*/{_LOCK}"):
        with suppress(OSError), path.open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.read():  # empty: its process is about to lock it
                rmtree(path.parent)


def _there(output: Files, names: Sequence[str]) -> frozenset[str]:
    """The files of these tables that an earlier call has left. StoreError for one that it has not."""
    ours = re.compile(rf"(?:{'|'.join(map(re.escape, names))})(?:-\d{{5,}})?\.parquet")
    found = frozenset(name for name in output.find("", maxdepth=1) if ours.fullmatch(name))
    for name in sorted(found):
        if not _marked(output, name):
            raise StoreError(
                f"output {output.name!r}: {name!r} there was not written by `pti tables`, which would replace it; "
                "move it, or choose another folder"
            )
    return found


def _marked(output: Files, name: str) -> bool:
    try:
        with output.explained("read"), output.open(name) as file:
            return MARK.encode() in (pq.read_schema(file).metadata or {})
    except DamagedFile:
        return False
