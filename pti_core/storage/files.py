"""Whole files on any file system of fsspec: written entirely or not at all, errors in one sentence, no credentials."""

from __future__ import annotations

import errno
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow.fs
from fsspec.asyn import AsyncFileSystem
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from pti_core import connections
from pti_core.addresses import redact, refusal
from pti_core.connections import file_system, harmless, read_whole, tried_again, without_secrets
from pti_core.storage import whole_files
from pti_core.storage.file_errors import DamagedFile, MissingFile, OutputRefused, StoreError, explanation

__all__ = ["DamagedFile", "FileInfo", "Files", "MissingFile", "OutputRefused", "StoreError"]

Result = TypeVar("Result")

UPLOAD_WAITS: Final = (0.5, 2.0, 8.0)
"""Seconds before a failed upload is tried again, beyond the retries of the file system itself."""

READ_WAITS: Final = (0.3, 1.5)
"""The same before a file is read or a folder listed again; shorter, since a person may wait."""

_Bytes = bytes  # a field of `FileInfo` has that name
_SMALL: Final = 256 << 10  # bytes of a file that is not worth more than one request
_AT_ONCE: Final = 32  # small files read at the same time
_HELD: Final = 1000  # of many, of which each is needed only once


@dataclass(frozen=True)
class FileInfo:
    """A written file; `path` is relative to the root."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str, data: _Bytes) -> FileInfo:
        """Of a file with this content."""
        return cls(path, len(data), hashlib.sha256(data).hexdigest())


class Files:
    """Files below `root`, any fsspec URL or path, named relative to it. Can be pickled; holds no open file."""

    def __init__(self, root: str, storage_options: Mapping[str, Any] | None = None) -> None:
        """`storage_options` go to the file system. StoreError for an address with a secret, or one unknown here."""
        if not root.strip():
            raise StoreError("output '': a folder or an fsspec URL expected")
        if refused := refusal("output", root):
            raise StoreError(refused)
        self.root = root if root.endswith("://") else root.rstrip("/") or "/"
        self.name = redact(root)  # for messages
        self.local = "://" not in root
        self._options = dict(storage_options or {})
        with self.explained("opened"):
            url = str(Path(root).expanduser()) if root.startswith("~") else root
            self.fs, path = file_system(url, self._options)
        self._base = path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)

    def at(self, relative: str) -> str:
        """The path for `fs`."""
        return f"{self._base}/{relative}"

    def find(self, folder: str, maxdepth: int | None = None, begin: str = "") -> dict[str, int]:
        """Sizes of the files below a folder, listed anew, in order of their names; empty if there is no such folder.

        With `begin` only of files and folders there whose names begin so; the others are not looked into, and object
        stores do not list them. Hidden files (temporary ones of killed writers) are left out.
        """

        def listing() -> dict[str, Any]:
            self.fs.invalidate_cache()
            if maxdepth is None and not self.local:
                # with a prefix, since s3fs would ask twice more for a folder that is not there
                prefix = {"prefix": f"{folder}/{begin}"} if folder and "s3" in self.fs.protocol else {}
                return dict(self.fs.find(self._base if prefix else self.at(folder), detail=True, **prefix))
            return _walked(self.fs, self.at(folder), maxdepth, begin)

        with self.explained("listed"):
            try:
                found = self.again(listing)
            except FileNotFoundError:
                found = {}
        sizes = {path[len(self._base) + 1 :]: int(info.get("size") or 0) for path, info in found.items()}
        wanted = f"{folder}/{begin}" if begin else ""
        names = sorted(path for path in sizes if path.startswith(wanted))
        return {path: sizes[path] for path in names if not path.rpartition("/")[2].startswith(".")}

    def exists(self, relative: str) -> bool:
        """Whether there is such a file, whatever else is in its folder. StoreError where that is not told."""
        self.fs.invalidate_cache()
        with self.explained("read"), suppress(FileNotFoundError, NotADirectoryError):
            # fsspec's `isfile` would take any error for a file that is not there
            return bool(self.again(lambda: self.fs.info(self.at(relative)))["type"] == "file")
        return False

    def get(self, relative: str, missing: str) -> bytes:
        """A file's content. StoreError, beginning with the text `missing`, where it is not there."""
        with self.explained("read"):
            try:
                return self.again(lambda: read_whole(self.fs, self.at(relative)))
            except (FileNotFoundError, NotADirectoryError):
                raise MissingFile(f"{missing} in {self.name!r}") from None

    def get_all(self, relatives: Sequence[str]) -> dict[str, bytes | None]:
        """Many small files at once; None for one that is not there, or is a folder.

        StoreError where one may not be read: taken for one that is not there, what is done would be done again.
        """

        def content(relative: str) -> bytes | None:
            try:
                return self.again(lambda: read_whole(self.fs, self.at(relative)))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

        with self.explained("read"), ThreadPoolExecutor(_AT_ONCE, "pti-files") as pool:
            return dict(zip(relatives, pool.map(content, relatives), strict=True))

    def each(self, relatives: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """The same, one after the other: no more than some hundred of them are held in memory."""
        for i in range(0, len(relatives), _HELD):
            yield from self.get_all(relatives[i : i + _HELD]).items()

    def open(self, relative: str) -> Any:
        """A file for reading here and there: on object stores each read is one request for just these bytes."""
        return _open_exact(self.fs, self.at(relative))

    def arrow(self, sizes: Mapping[str, int]) -> pyarrow.fs.FileSystem:
        """The file system as pyarrow's, which takes the paths of `at` and reads like `open`, without reading ahead.

        `sizes`: what `find` told of the files to be read; small ones are read by one request.
        """
        if self.local:
            return pyarrow.fs.LocalFileSystem()
        small = frozenset(self.at(path) for path, size in sizes.items() if size <= _SMALL)
        return pyarrow.fs.PyFileSystem(_ExactReads(self.fs, small))

    def again(self, read: Callable[[], Result]) -> Result:
        """`read()`, tried again with back-off where it fails for what may pass; on a disk nothing does."""
        return tried_again(read, () if self.local else READ_WAITS)

    def put(self, relative: str, data: bytes) -> FileInfo:
        """Write a file, over any older one. A failed upload is tried again with back-off; StoreError in the end."""
        with self.explained("written"):
            return tried_again(lambda: self._put_once(relative, data), () if self.local else UPLOAD_WAITS)

    def create(self, relative: str, data: bytes) -> bool:
        """Write a file only where there is none yet; whether the file has this content now. StoreError in the end.

        Of several processes that do so at once one has its way, on disks and on S3; on a file system that has no such
        thing the last one may.
        """

        def once() -> bool:
            if self.local:
                return whole_files.create(Path(self.at(relative)), data)
            return whole_files.create_object(self.fs, self.at(relative), data)

        with self.explained("written"):
            return tried_again(once, () if self.local else UPLOAD_WAITS)

    def remove(self, relative: str) -> None:
        """Remove a file, or a folder with all in it; one that is not there is fine."""

        def removed() -> None:
            self.fs.invalidate_cache()
            path = self.at(relative)
            if self.local or not has_magic(path):
                self.fs.rm(path, recursive=True)
            else:  # `rm` would take a `[` for a pattern
                for file in self.fs.find(path):
                    self.fs.rm_file(file)

        with self.explained("cleared"), suppress(FileNotFoundError):
            self.again(removed)

    def check_writable(self, folders: Sequence[str]) -> None:
        """Write, list, read and remove a small file in the first of `folders`. StoreError with one sentence if not."""
        probe = f"{folders[0]}/.write-check-{uuid.uuid4().hex[:8]}"
        with self.explained("written"):
            for folder in folders if self.local else ():
                if (path := Path(self.at(folder))).exists() and not path.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, "a file", str(path))
            # no back-off and a time limit: a person waits
            limit = {"timeout": connections.CHECK_SECONDS} if isinstance(self.fs, AsyncFileSystem) else {}
            self._put_once(probe, b"pti", **limit)
            self.fs.invalidate_cache()
            self.fs.ls(self.at(folders[0]), detail=False)
            read_whole(self.fs, self.at(probe))
            with suppress(PermissionError):  # nothing may be deleted here; no run needs to
                self.fs.rm_file(self.at(probe))

    def _put_once(self, relative: str, data: bytes, **options: Any) -> FileInfo:
        if self.local:
            whole_files.write(Path(self.at(relative)), data)
        else:
            self.fs.pipe_file(self.at(relative), data, **options)
        return FileInfo.of(relative, data)

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn whatever a file system raises into a StoreError of one sentence, without credentials."""
        try:
            yield
        except (StoreError, MemoryError):
            raise
        except Exception as error:
            text = without_secrets(redact(str(error)), self._options)
            base = getattr(self, "_base", self.root)
            raise explanation(error, text, doing, self.name, base, self.local) from harmless(error, self._options)


def _walked(fs: Any, top: str, maxdepth: int | None, begin: str) -> dict[str, Any]:
    """The files of `maxdepth` levels, of what in the first one `begin`s so.

    (`find` and `walk` take a folder that they cannot list for an empty one.)
    """
    files, folders, depth = {}, [top], 0
    while folders and depth != maxdepth:
        below = []
        for folder in folders:
            with suppress(FileNotFoundError):  # removed meanwhile
                for info in fs.ls(folder, detail=True):
                    if not depth and not info["name"].rstrip("/").rpartition("/")[2].startswith(begin):
                        continue
                    if info["type"] != "directory":
                        files[info["name"]] = info
                    elif info["name"].rstrip("/") != folder:
                        below.append(info["name"])
        folders, depth = below, depth + 1
    return files


def _open_exact(fs: Any, path: str) -> Any:
    # s3fs would read ahead up to 50 MB
    return fs.open(path, "rb", **({} if isinstance(fs, LocalFileSystem) else {"cache_type": "none"}))


class _ExactReads(pyarrow.fs.FSSpecHandler):  # type: ignore[misc] # pyarrow has no types
    """pyarrow's way to a file system of fsspec, without reading ahead; `small` files are read whole."""

    def __init__(self, fs: Any, small: frozenset[str]) -> None:
        super().__init__(fs)
        self.small = small

    def open_input_file(self, path: str) -> Any:
        if path in self.small:
            return pyarrow.BufferReader(read_whole(self.fs, path))
        return pyarrow.PythonFile(_open_exact(self.fs, path), mode="r")
