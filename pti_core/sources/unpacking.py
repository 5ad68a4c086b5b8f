"""Compressed tars as plain temporary files: nothing can be read here and there in what is compressed as a whole."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any, Final

from pti_core.connections import no_temporary_file, out_of_resources
from pti_core.sources.base import Kept, opened

_MAGIC: Final = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
_OPEN: Final[dict[str, Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


def compression(file: IO[bytes]) -> str | None:
    """`gz`, `bz2` or `xz` by a file's first bytes, before which it then stands; None for others."""
    start = file.read(6)
    file.seek(0)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)


@Kept
def unpacked(url: str, options: Mapping[str, Any]) -> IO[bytes]:
    """A compressed tar as a plain temporary file, which is gone with the process.

    Raises OutOfResources where there can be no such file, and what the archive raises.
    """
    with opened(url, options) as file, _OPEN[str(compression(file))](file) as content:
        try:
            plain = tempfile.TemporaryFile(prefix="pti-")  # noqa: SIM115 (it is kept)
        except OSError as error:
            raise out_of_resources(error) or no_temporary_file(error) from error
        try:
            shutil.copyfileobj(content, plain, 1 << 20)
            plain.flush()
        except BaseException:
            with suppress(OSError):
                plain.close()  # who holds the error would hold its room too
            raise
    return plain
