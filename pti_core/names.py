"""Image ids: as people and tables write them, and as names of files."""

from __future__ import annotations

import errno
import hashlib
import re
import unicodedata
from pathlib import Path
from typing import Final


def as_listed(image_id: str) -> str:
    """An image_id as listings have it, which is NFC: a Mac writes accents as letters of their own (NFD)."""
    return unicodedata.normalize("NFC", image_id)


def plain_path(image_id: str) -> str:
    """A path that stays below the folder it is joined to, whatever an image is called in an archive or table."""
    parts = [re.sub(r"[\\\x00]", "_", part) for part in image_id.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "image"


_KEPT: Final = 200  # bytes of a name before its checksum; most file systems take 255 in all


def shortened(name: str, of: str, longest: int) -> str:
    """A file's name; if it has more than `longest` bytes, its beginning and a checksum of `of`, which is unique."""
    if len(name.encode()) <= longest:
        return name
    checksum = hashlib.sha256(of.encode()).hexdigest()[:16]  # fewer would not tell millions of names apart
    return f"{name.encode()[:_KEPT].decode(errors='ignore')}-{checksum}"


def folds_case(file: Path) -> bool:
    """Whether the disk of a file takes its name in other letters for the same, as those of a Mac and Windows do."""
    return there(file.with_name(file.name.swapcase()))


_REFUSED: Final = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL)


def refused(image_id: str, error: OSError) -> str | None:
    """A sentence on an image whose file cannot have its name here, which costs no other; None for other errors."""
    if error.errno not in _REFUSED:
        return None
    return f"image {image_id!r}: no file of this name can be written here ({error.strerror}); rename the image"


def file_in_the_way(folder: Path, way_out: str) -> str | None:
    """A sentence that ends with a way out, where there can be no such folder: it, or one above it, is a file."""
    first = next((path for path in (folder, *folder.parents) if there(path)), None)
    if first is None or first.is_dir():
        return None
    return f"{str(first)!r} is a file where a folder is needed; {way_out}"


def there(path: Path) -> bool:
    """Whether there is such a file; there is none of a name that is too long, say."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
