"""Whether each input of a run has exactly one row, whatever the number of images: a window of shards at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.files import StoreError
from pti_core.manifests import Manifest
from pti_core.markers import sum_text

_WINDOW: Final = 250_000  # rows that are compared at once

ReadRows = Callable[[str, Mapping[str, int], list[str]], pa.Table]
"""Columns of some parts of a table; the parts as paths and sizes."""


def check_complete(
    run: str, manifest: Manifest, files: Mapping[str, Mapping[str, int]], read: ReadRows
) -> dict[str, int]:
    """The counts of rows of the manifest and of the tables `files` (pivots and rejects), by table their parts.

    StoreError where they do not add up, or an image is twice, missing or unknown.
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
        raise StoreError(f"run {run!r} is not complete: {sum_text(counts)}; {which}; run it again to finish it")
    return counts


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
