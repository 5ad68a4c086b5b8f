"""Whether each input of a run has exactly one row, whatever the number of images: a window of shards at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.files import StoreError
from pti_core.manifests import Manifest
from pti_core.markers import part_shard, sum_text

STRAY: Final = "is no part of this run (a worker of before `--overwrite` has left it, or it is a copy); remove it"
_WINDOW: Final = 250_000  # rows that are compared at once

ReadRows = Callable[[str, Mapping[str, int], list[str]], pa.Table]
"""Columns of some parts of a table; the parts as paths and sizes."""


def check_complete(
    run: str,
    manifest: Manifest,
    files: Mapping[str, Mapping[str, int]],
    read: ReadRows,
    find_strays: Callable[[], list[str]],
) -> dict[str, int]:
    """The counts of rows of the manifest and of the tables `files` (pivots and rejects), by table their parts.

    StoreError where they do not add up, or an image is twice, missing or unknown; only then are strays looked for,
    since that reads all markers.
    """
    counts, wrong, same = {"manifest": 0, **dict.fromkeys(files, 0)}, set[str](), True
    by_shard = {table: _by_shard(parts) for table, parts in files.items()}
    for shards, inputs in manifest.windows(_WINDOW, ["image_id"]):
        expected, found = inputs["image_id"], []
        for table, of in by_shard.items():
            # What lies in shards that the manifest does not have is unknown, and seen with the last window.
            own = [n for n in of if n in shards or (n >= manifest.shards and shards.stop == manifest.shards)]
            parts = {path: size for n in own for path, size in of[n].items()}
            found.append(read(table, parts, ["image_id"])["image_id"] if parts else expected.slice(0, 0))
            counts[table] += len(found[-1])
        counts["manifest"] += len(expected)
        there = pa.chunked_array([chunk for ids in found for chunk in ids.chunks], pa.string())
        if not _sorted(there).equals(_sorted(expected)):
            same = False
            wrong |= set(expected.to_pylist()) ^ set(there.to_pylist())
    if not same:
        which = f"missing or unknown: {sorted(wrong)[:3]}" if wrong else "an image has two rows"
        way_out = "run it again to finish it"
        if found_strays := find_strays():
            # Without these, no other try would help.
            more = f", and {len(found_strays) - 1} more that `pti check` names" if len(found_strays) > 1 else ""
            way_out = f"file {found_strays[0]!r} {STRAY}{more}, and run it again"
        raise StoreError(f"run {run!r} is not complete: {sum_text(counts)}; {which}; {way_out}")
    return counts


def strays(listed: Iterable[str], markers: Mapping[int, Mapping[str, Any]], shards: int) -> list[str]:
    """Of the files listed in a run's tables, those that are no parts of it; sorted.

    They have the name of no part, or are in a shard that the run does not have, or in a finished one whose marker does
    not name them. No work ever writes over them, and whoever reads the tables takes their rows for more of the run's,
    or fails by them: pandas reads files of any name, but those that it takes for hidden, of which `pti` reads Parquet.
    """
    named = {file["path"] for marker in markers.values() for file in marker["files"]}

    def is_stray(path: str) -> bool:
        shard = part_shard(path)
        return shard is None or shard >= shards or shard in markers

    def is_read(path: str) -> bool:
        hidden = any(name.startswith((".", "_")) for name in path.split("/"))
        return path.endswith(".parquet") or not (hidden or path.endswith("/"))  # S3 may have empty files for folders

    return sorted(path for path in listed if path not in named and is_read(path) and is_stray(path))


def _sorted(ids: pa.ChunkedArray) -> pa.Array:
    whole = ids.combine_chunks()
    return whole.take(pc.sort_indices(whole))


def _by_shard(files: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """Paths and sizes of parts, by shard."""
    found: dict[int, dict[str, int]] = {}
    for path, size in files.items():
        if match := re.search(r"/shard=(\d+)/[^/]*\.parquet$", path):
            found.setdefault(int(match[1]), {})[path] = size
    return found
