"""One file, written entirely or not at all: over an older one, or only where there is none."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pti_core.connections import read_whole


def write(path: Path, data: bytes) -> None:
    """All of the file or nothing, also after a power cut: temporary file beside it, fsync, rename, fsync of the folder.

    The name is hidden and does not end in .parquet, so that no reader takes it for a part.
    """
    _through_temporary(path, data, lambda temporary: temporary.replace(path))


def create(path: Path, data: bytes) -> bool:
    """The same where there is no such file yet, by a hard link; whether the file has this content now."""

    def name(temporary: Path) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links, or one that takes nothing: then this fails as well
            if not path.exists():
                temporary.replace(path)

    _through_temporary(path, data, name)
    with suppress(FileNotFoundError):  # removed meanwhile
        return path.read_bytes() == data  # not what `link` says: where an answer of NFS was lost, that it exists
    return False


def create_object(fs: Any, path: str, data: bytes) -> bool:
    """The same on another file system of fsspec, as far as that can: S3 by `If-None-Match: *`.

    What is there is looked for first, since some services do not know that header and write over it.
    """
    try:
        return read_whole(fs, path) == data
    except FileNotFoundError:
        pass
    try:
        fs.pipe_file(path, data, mode="create")
    except Exception as error:
        with suppress(FileNotFoundError):
            return read_whole(fs, path) == data  # another one was first, or the answer to an earlier try was lost
        if not _unknown(error):
            raise
        fs.pipe_file(path, data)
    return True


def _unknown(error: Exception) -> bool:
    """Whether it says that a file system cannot write so."""
    return isinstance(error, TypeError | NotImplementedError) or getattr(error, "errno", None) == errno.ENOSYS


def _through_temporary(path: Path, data: bytes, name: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp")  # without its name, which may have no room for more
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        name(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some network file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
