"""Whether each input of a run has exactly one row, whatever the number of images: a window of shards at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.storage.files import StoreError
from pti_core.storage.manifests import Manifest
from pti_core.storage.markers import files_of, part_shard, sum_text

STRAY: Final = "is no part of this run (a worker of before `--overwrite` has left it, or it is a copy); remove it"
_WINDOW: Final = 250_000  # rows that are compared at once

COUNTED: Final = ("pivots", "rejects")
"""The tables in one of which each input has its row."""

ReadRows = Callable[[str, Mapping[str, int], list[str]], pa.Table]
"""Columns of some parts of a table; the parts as paths and sizes."""

Rows = dict[int, tuple[int, ...]]
"""How many rows shards have, one number for each table of `COUNTED`."""


def check_rows(
    manifest: Manifest,
    files: Mapping[str, Mapping[int, Mapping[str, int]]],
    read: ReadRows,
    find_strays: Callable[[], list[str]],
    known: Rows,
) -> Rows:
    """The numbers of rows of all shards, by their parts in the tables `files`; `known` shards are not read.

    StoreError where an image is twice, missing, unknown or in another shard than its own; only then are strays looked
    for, since that reads all markers.
    """
    if any(shard >= manifest.shards for of in files.values() for shard in of):
        known = {}  # what lies in shards that the manifest does not have is unknown, and seen with the last window
    rows, wrong, same = dict(known), set[str](), True
    for shards, inputs in manifest.windows(_WINDOW, ["image_id", "shard"], known):
        read_now = [shard for shard in shards if shard not in known]
        expected, found = _of(inputs, read_now), []
        for table, of in files.items():
            outside = [n for n in of if n >= manifest.shards and shards.stop == manifest.shards]
            parts = {path: size for n in [*read_now, *outside] for path, size in of.get(n, {}).items()}
            found.append(read(table, parts, ["image_id", "shard"]) if parts else expected.slice(0, 0))
        counted = [_counted(table) for table in found]
        rows |= {shard: tuple(counts.get(shard, 0) for counts in counted) for shard in {*read_now, *chain(*counted)}}
        there, wanted = pa.chunked_array([c for t in found for c in _keys(t).chunks], pa.string()), _keys(expected)
        if not _sorted(there).equals(_sorted(wanted)):
            same = False
            names = {name for table in found for name in table["image_id"].to_pylist()}
            wrong |= names ^ set(expected["image_id"].to_pylist())
    if not same:
        counts = {"manifest": manifest.rows} | {
            table: sum(n[i] for n in rows.values()) for i, table in enumerate(files)
        }
        which = f"missing or unknown: {sorted(wrong)[:3]}" if wrong else "images are in other shards than their own"
        if not wrong and sum(counts[table] for table in files) > manifest.rows:
            which = "an image has two rows"
        way_out = "run it again to finish it"
        if found_strays := find_strays():
            # Without these, no other try would help.
            more = f", and {len(found_strays) - 1} more that `pti check` names" if len(found_strays) > 1 else ""
            way_out = f"file {found_strays[0]!r} {STRAY}{more}, and run it again"
        raise StoreError(f"run {manifest.run!r} is not complete: {sum_text(counts)}; {which}; {way_out}")
    return rows


def _of(inputs: pa.Table, shards: list[int]) -> pa.Table:
    return inputs.filter(pc.is_in(inputs["shard"], pa.array(shards, inputs["shard"].type)))


def _counted(table: pa.Table) -> dict[int, int]:
    """Rows by shard."""
    found = pc.value_counts(table["shard"])
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """Shard and image in one: an image in another shard than its own is not where it is looked for."""
    return pc.binary_join_element_wise(table["shard"].cast(pa.string()), table["image_id"], "/")


def strays(listed: Iterable[str], markers: Mapping[int, Mapping[str, Any]], shards: int) -> list[str]:
    """Of the files listed in a run's tables, those that are no parts of it; sorted.

    They have the name of no part, or are in a shard that the run does not have, or in a finished one whose marker does
    not name them. No work ever writes over them, and whoever reads the tables takes their rows for more of the run's,
    or fails by them: pandas reads files of any name, but those that it takes for hidden, of which `pti` reads Parquet.
    """
    named = {path for marker in markers.values() for path in files_of(marker).paths()}

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


def by_shard(files: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """Paths and sizes of parts, by shard."""
    found: dict[int, dict[str, int]] = {}
    for path, size in files.items():
        if match := re.search(r"/shard=(\d+)/[^/]*\.parquet$", path):
            found.setdefault(int(match[1]), {})[path] = size
    return found
