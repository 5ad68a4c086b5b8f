"""Before a part of a finished shard is made again: are its inputs still what was inverted?

A run keeps what was found for an image though its file changes or goes (`extension`). Where one table of a part is
damaged and its pivots are whole, inverting what lies there now would put another picture in their place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from pti_core.connections import OutOfResources
from pti_core.reading import read_bytes
from pti_core.runs import Run
from pti_core.shard.inputs import InputsUnreadable
from pti_core.storage.files import DamagedFile, MissingFile
from pti_core.storage.markers import ORIGINALS


class OriginalGone(ValueError):
    """An input is not what a whole pivot was found for; no other try helps."""


def check_originals(run: Run, shard: int, parts: Collection[int]) -> None:
    """Raise OriginalGone where an input of these parts is another by now, or is gone, and its pivot is whole.

    Whole is what has the checksum that the shard's marker says; of a shard that this run has not done nothing is asked.
    Raises InputsUnreadable where no input of a part can be read, since the data set may be away, and where this machine
    cannot read now.
    """
    known = _known(run.store.marker(run.name, shard) or {}, run)
    for number in parts:
        path = run.store.part_path("pivots", run.name, shard, number)
        if path not in known:
            continue
        try:
            file, pivots = run.store.read_table(path)
        except (DamagedFile, MissingFile):
            continue
        if file.sha256 != known[path]:
            continue
        gone, changed = [], []
        for row in (rows := pivots.select(["image_id", "uri", "sha256"]).to_pylist()):
            try:
                if hashlib.sha256(read_bytes(row["uri"])).hexdigest() != row["sha256"]:
                    changed.append(row["image_id"])
            except OutOfResources as error:
                raise InputsUnreadable(f"data set {run.dataset!r}: {error}; then run the same command again") from error
            except OSError as error:
                gone.append(f"{row['image_id']!r} cannot be read any more ({error})")
        way_out = f"remove {path!r} to have the part inverted as its files are now"
        if rows and len(gone) == len(rows):
            raise InputsUnreadable(
                f"data set {run.dataset!r}: image {gone[0]}, nor any other of a part that is damaged; check that it is "
                f"there, then run the same command again; or, if they are gone for good, {way_out}"
            )
        if changed or gone:
            why = f"{changed[0]!r} is another file than was inverted" if changed else gone[0]
            raise OriginalGone(
                f"image {why}, and another table of its part is damaged; bring the file back and run it again, or "
                f"{way_out}"
            )


def _known(marker: Mapping[str, Any], run: Run) -> dict[str, str]:
    """Checksums by path; none of another run of this name, which was overwritten."""
    if marker.get("created") not in (None, run.created) or marker.get("digest") not in (None, run.digest):
        return {}
    return {file["path"]: file["sha256"] for file in marker.get("files", [])} | marker.get(ORIGINALS, {})
