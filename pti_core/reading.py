"""Reading inputs: any address of a manifest, tried again where that may help, and one kind of error."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec

from pti_core.addresses import local_path, redact, split_chain
from pti_core.connections import (
    FINAL_ERRORS,
    file_system,
    harmless,
    out_of_resources,
    read_whole,
    tried_again,
    without_secrets,
)
from pti_core.sources import parquet_rows, tars, zips

Result = TypeVar("Result")

_MEMBERS: Final = {"tar": tars.read, "zip": zips.read, "parquet": parquet_rows.read}

DEMO_FOLDER: Final = Path(__file__).parent / "assets" / "demo_faces"
DEMO_URL: Final = "demo://"

READ_WAITS: Final = (0.3, 1.5)
"""Seconds before a failed read is tried again, beyond the retries of the file system itself."""


class ReadError(OSError):
    """An input that cannot be read; one sentence with its address, and what its file system or archive found."""


def read_bytes(uri: str, storage_options: dict[str, Any] | None = None) -> bytes:
    """The content of a `uri` of a listing. Raises OSError (FileNotFoundError, ReadError, ...) where it cannot be read.

    A read that fails is tried again with back-off, unless the file is missing or access is denied; or the machine is at
    fault, which has too many files open, say: then OutOfResources is raised. Archives stay open between calls.
    """

    def read() -> bytes:
        try:
            return _read(uri, storage_options)
        except (MemoryError, *FINAL_ERRORS):
            raise
        except Exception as error:  # each file system and archive has errors of its own; the last try tells
            _archive.cache_clear()  # what is open may be what is broken
            if short := out_of_resources(error):
                raise short from error
            raise

    try:
        return tried_again(read, READ_WAITS)
    except MemoryError:
        raise
    except FINAL_ERRORS as error:
        if error.filename is not None:
            raise
        text = without_secrets(redact(str(error)), storage_options)  # of a file system that names no file
        raise type(error)(f"{redact(uri)!r} cannot be read: {text}") from None
    except Exception as error:
        text = without_secrets(redact(str(error)), storage_options)
        found = " ".join(f"{type(error).__name__}: {text}".split())
        raise ReadError(f"{redact(uri)!r} cannot be read ({found}); check the file and the connection") from harmless(
            error, storage_options
        )


def persistent(address: str, call: Callable[[], Result]) -> Result:
    """`call()`, tried again where a network may have failed; what the inputs themselves are wrong in stays wrong."""

    def outcome() -> Result | ValueError:
        try:
            return call()
        except ValueError as error:
            return error

    found = tried_again(outcome, () if local_path(address) is not None else READ_WAITS)
    if isinstance(found, ValueError):
        raise found
    return found


def _read(uri: str, storage_options: dict[str, Any] | None) -> bytes:
    if uri.startswith(DEMO_URL):
        return (DEMO_FOLDER / uri.removeprefix(DEMO_URL)).read_bytes()
    if (local := local_path(uri)) is not None:
        return Path(local).read_bytes()
    if chain := split_chain(uri):
        protocol, _, inside = chain[0].partition("://")
        if protocol in _MEMBERS:
            return _MEMBERS[protocol](inside, chain[1], storage_options)
        if not storage_options:
            return bytes(_archive(f"{protocol}://::{chain[1]}", os.getpid()).cat_file(inside))
    fs, path = file_system(uri, storage_options)
    return read_whole(fs, path)


@functools.lru_cache(maxsize=4)
def _archive(url: str, process: int) -> Any:
    """An open archive; one a process, since a file handle shared over a fork would share its position."""
    return fsspec.core.url_to_fs(url)[0]
