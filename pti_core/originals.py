"""Before a part of a finished shard is made again: are its inputs still what was inverted?

A run keeps what was found for an image though its file changes or goes (`extension`). Where one table of a part is
damaged and its pivots are whole, inverting what lies there now would put another picture in their place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from pti_core.files import StoreError
from pti_core.reading import read_bytes
from pti_core.runs import Run


class OriginalGone(StoreError):
    """An input is not what a whole pivot was found for."""


def check_originals(run: Run, shard: int, parts: Collection[int]) -> None:
    """Raise OriginalGone where an input of these parts is another by now, or cannot be read, and its pivot is whole.

    Whole is what has the checksum that the shard's marker says; of a shard that was never done nothing is asked.
    """
    marker = run.store.marker(run.name, shard) or {"files": []}
    known = {file["path"]: file["sha256"] for file in marker["files"]}
    for number in parts:
        path = run.store.part_path("pivots", run.name, shard, number)
        if path not in known:
            continue
        try:
            file, pivots = run.store.read_table(path)
        except StoreError:
            continue
        if file.sha256 != known[path]:
            continue
        for row in pivots.select(["image_id", "uri", "sha256"]).to_pylist():
            if why := _differs(row["uri"], row["sha256"]):
                raise OriginalGone(
                    f"image {row['image_id']!r} {why}, and a part with its pivot is damaged elsewhere; bring the file "
                    f"back and run it again, or remove {path!r} to have the part inverted as its files are now"
                )


def _differs(uri: str, sha256: str) -> str | None:
    try:
        same = hashlib.sha256(read_bytes(uri)).hexdigest() == sha256
    except OSError as error:
        return f"cannot be read any more ({error})"
    return None if same else "is another file than was inverted"
