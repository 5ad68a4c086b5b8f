"""What a shard's marker says: how many rows, how long it took, and every file with its size and checksum."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from pti_core import tables
from pti_core.storage.files import FileInfo, StoreError
from pti_core.storage.shard_files import ShardFiles

_KEYS: Final = {"counts", "seconds", "digest", "files"}
_FILE_KEYS: Final = {"path", "bytes", "sha256"}
_PART: Final = re.compile(r"(?P<table>\w+)/run=[^/]+/shard=(?P<shard>\d+)/part-(?P<part>\d+)\.parquet")


def make_marker(
    counts: Mapping[str, Any], seconds: float, digest: str, files: Sequence[FileInfo], created: str | None = None
) -> dict[str, Any]:
    """What `Store.mark_done` takes. `counts` has at least `manifest`, `pivots` and `rejects`, and may have the
    causes of rejects (`causes`).

    `created` is when the run was frozen that the shard was done for: after `--overwrite` it is another one.
    """
    made = {"counts": dict(counts), "seconds": seconds, "digest": digest, "files": [asdict(f) for f in files]}
    return made | ({"created": created} if created else {})


def parse_marker(data: bytes | None) -> dict[str, Any] | None:
    """A marker with all its keys; None for anything else."""
    try:
        marker = json.loads(data or b"")
        whole = {"run", "shard", *_KEYS} <= marker.keys() and all(f.keys() >= _FILE_KEYS for f in marker["files"])
    except (ValueError, AttributeError, TypeError):
        return None
    return dict(marker) if whole else None


def lean(marker: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    """What a run's markers are looked at for, in a quarter of the memory: `files` are `ShardFiles`, without checksums.

    `sha256` is that of the marker itself, whose content is `data`.
    """
    kept = {key: value for key, value in marker.items() if key not in ("files", ORIGINALS)}
    return {**kept, "files": files_of(marker), "sha256": hashlib.sha256(data).hexdigest()}


def files_of(marker: Mapping[str, Any]) -> ShardFiles:
    """The names and sizes of a marker's files, be it whole or not."""
    files = marker["files"]
    return files if isinstance(files, ShardFiles) else ShardFiles(marker["run"], marker["shard"], files)


ORIGINALS: Final = "originals"
"""In a marker: checksums of pivots whose parts are being made again, by path (see `originals`)."""


def without(marker: Mapping[str, Any], parts: Collection[int]) -> dict[str, Any]:
    """A marker without the files of these parts; it remembers the checksums of their pivots."""
    gone = [file for file in marker["files"] if part_number(file["path"]) in parts]
    pivots = {file["path"]: file["sha256"] for file in gone if file["path"].startswith("pivots/")}
    kept = [file for file in marker["files"] if file not in gone]
    return {**marker, "files": kept, ORIGINALS: {**marker.get(ORIGINALS, {}), **pivots}}


def part_number(path: str) -> int | None:
    """Which part of its shard a file belongs to."""
    match = _PART.fullmatch(path)
    return int(match["part"]) if match else None


def part_shard(path: str) -> int | None:
    """Which shard a file belongs to."""
    match = _PART.fullmatch(path)
    return int(match["shard"]) if match else None


def temporary_rejects(marker: Mapping[str, Any]) -> int:
    """Images of a shard that failed for a passing reason."""
    return int(marker["counts"].get("temporary", 0))


GONE: Final = "gone"
"""In a marker's counts: rejects that are not tried again and whose files were not there."""


def gone_rejects(marker: Mapping[str, Any]) -> int:
    """Images of a shard that were not there when they were to be read, and are not looked for any more."""
    return int(marker["counts"].get(GONE, 0))


def check_marker(shard: int, marker: Mapping[str, Any]) -> None:
    """StoreError where rows do not add up to the manifest's, or a table lacks a part that another one has."""
    if missing := _KEYS - marker.keys():
        raise StoreError(f"shard {shard}: the marker lacks {', '.join(sorted(missing))}; use make_marker")
    counts = marker["counts"]
    if counts["pivots"] + counts["rejects"] != counts["manifest"]:
        raise StoreError(f"shard {shard}: {sum_text(counts)}; it is not marked as done")
    found: dict[str, set[int]] = {table: set() for table in tables.PARTS}
    for file in marker["files"]:
        match = _PART.fullmatch(file["path"])
        if match is None or match["table"] not in found or int(match["shard"]) != shard:
            raise StoreError(f"shard {shard}: {file['path']!r} is no part of it; it is not marked as done")
        found[match["table"]].add(int(match["part"]))
    expected = set(range(1 + max(set().union(*found.values()), default=0)))
    for table, parts in found.items():
        if not parts:
            raise StoreError(f"shard {shard} has no part of table {table!r}; write one, with no rows if need be")
        if absent := sorted(expected - parts):
            raise StoreError(f"shard {shard} lacks part {absent[0]} of table {table!r}; it is not marked as done")


def sum_text(counts: Mapping[str, Any]) -> str:
    """How the rows of a run or shard add up, in words."""
    return f"{counts['pivots']} pivots and {counts['rejects']} rejects for {counts['manifest']} images in the manifest"
