"""The files of a finished shard with their sizes, kept small, since all markers of a run are held in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any


class ShardFiles:
    """Paths and bytes of a shard's files. Their names, which differ from shard to shard by its number, are shared."""

    __slots__ = ("_bytes", "_folder", "_names")

    def __init__(self, run: str, shard: int, files: Iterable[Mapping[str, Any]]) -> None:
        """`files`: of a marker. One whose size is no number has none that a file can have."""
        files = list(files)
        self._folder = f"/run={run}/shard={shard:05d}/"
        self._names = _shared(tuple(str(file["path"]).replace(self._folder, "\0", 1) for file in files))
        self._bytes = array("q", (file["bytes"] if type(file["bytes"]) is int else -1 for file in files))

    def sizes(self, table: str = "") -> Iterator[tuple[str, int]]:
        """Path and bytes of each file, of one table or all."""
        for name, size in zip(self._names, self._bytes, strict=True):
            if name.startswith(table):
                path = name.replace("\0", self._folder)
                if not table or path.startswith(f"{table}/"):
                    yield path, size

    def paths(self) -> Iterator[str]:
        """Of all files."""
        return (path for path, _ in self.sizes())

    def bytes_of(self, table: str) -> int:
        """Of all files of a table."""
        return sum(size for _, size in self.sizes(table))


@lru_cache(maxsize=256)
def _shared(names: tuple[str, ...]) -> tuple[str, ...]:
    """One tuple for all shards of the same files."""
    return names
