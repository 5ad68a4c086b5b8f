"""Image ids: as people and tables write them, and as names of files."""

from __future__ import annotations

import errno
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final


def as_listed(image_id: str) -> str:
    """An image_id as listings have it, which is NFC: a Mac writes accents as letters of their own (NFD)."""
    return unicodedata.normalize("NFC", image_id)


def plain_path(image_id: str) -> str:
    """A path that stays below the folder it is joined to, whatever an image is called in an archive or table."""
    parts = [re.sub(r"[\\\x00]", "_", part) for part in image_id.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "image"


def own_path(image_id: str, times: int = 1) -> str:
    """A path of this kind that no other image has: with some digits of its name's checksum, or so many times more."""
    return f"{plain_path(image_id)}-{hashlib.sha256(image_id.encode()).hexdigest()[: 12 * times]}"


def apart(files: Callable[[str, int], Sequence[str]], first: Mapping[str, int]) -> dict[str, int]:
    """How much of its own name each image needs, so that no two have one file.

    `files(image_id, n)`: its files, the more surely its own the greater `n`; `first`: the `n` that each image_id begins
    with. All that would share a file get the next one, so that nothing depends on their order.
    """
    chosen = dict(first)
    while True:
        times = Counter(path for image_id, n in chosen.items() for path in files(image_id, n))
        shared: dict[str, set[str]] = {path: set() for path, count in times.items() if count > 1}
        if not shared:
            return chosen
        for image_id, n in chosen.items():
            for path in files(image_id, n):
                if path in shared:
                    shared[path].add(image_id)
        least = {
            name for names in shared.values() for name in names if chosen[name] == min(chosen[other] for other in names)
        }
        chosen |= {name: chosen[name] + 1 for name in least}


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
