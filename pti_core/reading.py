"""Reading inputs: any address of a manifest, tried again where that may help, and one kind of error."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.core import url_to_fs

from pti_core.addresses import local_path, redact, split_chain

DEMO_FOLDER: Final = Path(__file__).parent / "assets" / "demo_faces"
DEMO_URL: Final = "demo://"

READ_WAITS: Final = (0.3, 1.5)
"""Seconds before a failed read is tried again, beyond the retries of the file system itself."""

_FINAL_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


class ReadError(OSError):
    """An input that cannot be read; one sentence with its address, and what its file system or archive found."""


def read_bytes(uri: str, storage_options: dict[str, Any] | None = None) -> bytes:
    """The content of an `Entry.uri`. Raises OSError (FileNotFoundError, ReadError, ...) where it cannot be read.

    A read that fails is tried again with back-off, unless the file is missing or access is denied. Archives stay open
    between calls.
    """
    for wait in READ_WAITS:
        try:
            return _read(uri, storage_options)
        except (MemoryError, *_FINAL_ERRORS):
            raise
        except Exception:  # each file system and archive has errors of its own; the last try below tells
            _archive.cache_clear()  # what is open may be what is broken
            time.sleep(wait)
    try:
        return _read(uri, storage_options)
    except (MemoryError, *_FINAL_ERRORS):
        raise
    except Exception as error:
        text = redact(str(error))
        # a cause would be printed with it, so it is kept only where it gives nothing away
        cause = error if text == str(error) else None
        found = " ".join(f"{type(error).__name__}: {text}".split())
        raise ReadError(f"{redact(uri)!r} cannot be read ({found}); check the file and the connection") from cause


def _read(uri: str, storage_options: dict[str, Any] | None) -> bytes:
    if uri.startswith(DEMO_URL):
        return (DEMO_FOLDER / uri.removeprefix(DEMO_URL)).read_bytes()
    if (local := local_path(uri)) is not None:
        return Path(local).read_bytes()
    if (chain := split_chain(uri)) and not storage_options:
        protocol, path = chain[0].split("://", 1)
        return bytes(_archive(f"{protocol}://::{chain[1]}", os.getpid()).cat_file(path))
    fs, path = url_to_fs(uri, **(storage_options or {}))
    return bytes(fs.cat_file(path))


@functools.lru_cache(maxsize=4)
def _archive(url: str, process: int) -> Any:
    """An open archive; one a process, since a file handle shared over a fork would share its position."""
    return fsspec.core.url_to_fs(url)[0]
