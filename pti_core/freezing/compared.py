"""What files held when a data set was last compared with a run, so that one of another date is read once.

    runs/<run>/compared.parquet        the files that `--extend` has read; without it they are read again

A run keeps size and etag of its inputs as they were when it was frozen. A file that was only touched, whose etag is of
its metadata too (Google Cloud Storage, Azure), that is in a Parquet file to which rows were added, or that has moved,
differs from then on. Here is what its content was found to be, by its address, size and etag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pti_core.reading import read_bytes
from pti_core.storage.files import MissingFile
from pti_core.storage.store import Store

Seen = tuple[str, int | None, str]
"""A lasting address, the size and the etag that it had."""

_SCHEMA: Final = pa.schema(
    [(name, pa.string()) for name in ("uri", "etag", "sha256")] + [pa.field("bytes", pa.int64())]
)


class Compared:
    """SHA-256 of files by what they were listed as: those of before, and of those that are read now."""

    def __init__(self, store: Store, run: str) -> None:
        """Reads what is known. A file that is not there or damaged is as good as an empty one: all is read again."""
        self._store, self._path = store, f"runs/{run}/compared.parquet"
        self._known: dict[Seen, str] = {}
        with suppress(MissingFile, pa.ArrowException, KeyError):
            data = store.files.get(self._path, "nothing was compared")
            rows = pq.read_table(pa.BufferReader(data), columns=_SCHEMA.names)
            keys = zip(*(rows[name].to_pylist() for name in ("uri", "bytes", "etag")), strict=True)
            self._known = dict(zip(keys, rows["sha256"].to_pylist(), strict=True))
        self._written = set(self._known)

    def __contains__(self, file: Seen) -> bool:
        return file in self._known

    def sha256(self, file: Seen, address: str) -> str:
        """Of a file's content (hex), which is read at `address` unless it is known. OSError where it cannot be read."""
        found = self._known.get(file) or hashlib.sha256(read_bytes(address)).hexdigest()
        if file[2]:  # by its size alone it would be taken for what it was
            self._known[file] = found
        return found

    def keep(self, files: Iterable[Seen]) -> None:
        """Write what is known of these files and forget the others, where that is another list than before."""
        kept = {file: self._known[file] for file in files if file in self._known}
        if kept.keys() == self._written:
            return
        uri, size, etag = zip(*kept, strict=True) if kept else ((), (), ())
        columns = {"uri": uri, "etag": etag, "sha256": list(kept.values()), "bytes": size}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, _SCHEMA), sink, compression="zstd")
        self._store.files.put(self._path, sink.getvalue().to_pybytes())
