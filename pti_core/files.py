"""Whole files on any file system of fsspec: written entirely or not at all, errors in one sentence, no credentials."""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pti_core.addresses import redact, refusal

UPLOAD_WAITS: Final = (0.5, 2.0, 8.0)
"""Seconds before a failed upload is tried again, beyond the retries of the file system itself."""

_FINAL_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


class StoreError(RuntimeError):
    """An output that cannot be used or does not hold together; the message names it, never its credentials."""


@dataclass(frozen=True)
class FileInfo:
    """A written file; `path` is relative to the root."""

    path: str
    bytes: int
    sha256: str


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
        self._secrets = [str(v) for v in (storage_options or {}).values() if isinstance(v, str) and len(v) > 3]
        with self.explained("opened"):
            url = str(Path(root).expanduser()) if root.startswith("~") else root
            self.fs, path = url_to_fs(url, **(storage_options or {}))
        self._base = path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)

    def at(self, relative: str) -> str:
        """The path for `fs`."""
        return f"{self._base}/{relative}"

    def find(self, folder: str, maxdepth: int | None = None) -> dict[str, int]:
        """Sizes of the files below a folder, listed anew, in order of their names; empty if there is no such folder.

        Hidden files (temporary ones of killed writers) are left out.
        """
        self.fs.invalidate_cache()
        with self.explained("listed"):
            try:
                found = self.fs.find(self.at(folder), maxdepth=maxdepth, detail=True)
            except FileNotFoundError:
                found = {}
        sizes = {path[len(self._base) + 1 :]: int(info.get("size") or 0) for path, info in found.items()}
        return {path: sizes[path] for path in sorted(sizes) if not path.rpartition("/")[2].startswith(".")}

    def get(self, relative: str, missing: str) -> bytes:
        """A file's content. StoreError, beginning with the text `missing`, where it is not there."""
        with self.explained("read"):
            try:
                return bytes(self.fs.cat_file(self.at(relative)))
            except (FileNotFoundError, NotADirectoryError):
                raise StoreError(f"{missing} in {self.name!r}") from None

    def get_all(self, relatives: Sequence[str]) -> dict[str, bytes | None]:
        """Many files at once (concurrently, where the file system can); None for one that cannot be read."""
        with self.explained("read"):
            found = self.fs.cat([self.at(r) for r in relatives], on_error="return") if relatives else {}
        contents = {r: found.get(self.at(r)) for r in relatives}
        return {r: bytes(c) if isinstance(c, bytes) else None for r, c in contents.items()}

    def put(self, relative: str, data: bytes) -> FileInfo:
        """Write a file, over any older one. A failed upload is tried again with back-off; StoreError in the end."""
        with self.explained("written"):
            for wait in () if self.local else UPLOAD_WAITS:
                try:
                    return self._put_once(relative, data)
                except _FINAL_ERRORS:
                    raise
                except Exception:  # each file system has errors of its own; the last try below tells
                    time.sleep(wait)
            return self._put_once(relative, data)

    def remove(self, relative: str) -> None:
        """Remove a file, or a folder with all in it; one that is not there is fine."""
        self.fs.invalidate_cache()
        with self.explained("cleared"), suppress(FileNotFoundError):
            self.fs.rm(self.at(relative), recursive=True)

    def check_writable(self, folders: Sequence[str]) -> None:
        """Write, list and remove a small file in the first of `folders`. StoreError with one sentence if that fails."""
        probe = f"{folders[0]}/.write-check-{uuid.uuid4().hex[:8]}"
        with self.explained("written"):
            for folder in folders if self.local else ():
                if (path := Path(self.at(folder))).exists() and not path.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, "a file", str(path))
            self._put_once(probe, b"pti")  # no back-off: a person waits
            self.fs.invalidate_cache()
            self.fs.ls(self.at(folders[0]), detail=False)
            with suppress(PermissionError):  # nothing may be deleted here; no run needs to
                self.fs.rm_file(self.at(probe))

    def _put_once(self, relative: str, data: bytes) -> FileInfo:
        if self.local:
            _write_atomic(Path(self.at(relative)), data)
        else:
            self.fs.pipe_file(self.at(relative), data)
        return FileInfo(relative, len(data), hashlib.sha256(data).hexdigest())

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn whatever a file system raises into a StoreError of one sentence, without credentials."""
        try:
            yield
        except (StoreError, MemoryError):
            raise
        except Exception as error:
            text = redact(str(error))
            for secret in self._secrets:
                text = text.replace(secret, "***")
            # a cause would be printed with it, so it is kept only where it gives nothing away
            cause = error if text == str(error) else None
            raise StoreError(f"output {self.name!r} cannot be {doing}: {self._reason(error, text)}") from cause

    def _reason(self, error: Exception, text: str) -> str:
        kind = type(error).__name__
        if isinstance(error, ImportError):
            return f"a package for this protocol is missing ({text})"
        if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
            file = self._file_in_the_way()
            return f"{file!r} is a file where a folder is needed; choose another output"
        if isinstance(error, FileNotFoundError) and not self.local:
            return "the bucket does not exist; create it or choose another output"
        if isinstance(error, PermissionError):
            return f"access denied ({text}); check the permissions and credentials"
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENOENT):
            return "this place is read-only or takes no new folders; choose another output"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "no space is left; free some or choose another output"
        if "Credentials" in kind:
            return "no credentials are found; set them in the environment"
        if any(word in kind for word in ("Connect", "Timeout", "DNS")):
            return f"no connection ({text}); check the address and the network"
        return f"{kind}: {text}; check the address and credentials"

    def _file_in_the_way(self) -> str:
        path = Path(getattr(self, "_base", self.root))
        return str(next((p for p in (path, *path.parents) if p.is_file()), path))


def _write_atomic(path: Path, data: bytes) -> None:
    """All of the file or nothing, also after a power cut: temporary file beside it, fsync, rename, fsync of the folder.

    The name is hidden and does not end in .parquet, so that no reader takes it for a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some network file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
