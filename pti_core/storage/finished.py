"""Which shards of a run are finished: their markers, and whether the files are there that these name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pti_core import tables
from pti_core.storage.files import Files, MissingFile
from pti_core.storage.layout import checked, marker_path
from pti_core.storage.markers import files_of, lean, parse_marker
from pti_core.storage.shard_files import ShardFiles

Marker = dict[str, Any]


def read_marker(files: Files, run: str, shard: int) -> Marker | None:
    """A shard's marker as it was written; None where there is none that can be read."""
    with suppress(MissingFile):  # one request, where to ask first would take two
        return parse_marker(files.get(marker_path(run, shard), "no marker"))
    return None


def read_markers(
    files: Files,
    run: str,
    read_config: Callable[[str], dict[str, Any]],
    whole: bool = False,
    shards: Iterable[int] | None = None,
) -> dict[int, Marker]:
    """`Store.markers`; the run's config is read where there are any."""
    if shards is None:
        found = files.find(f"runs/{checked(run)}/done")
        listed = [name for name in found if re.fullmatch(r"runs/[^/]+/done/\d{5,}\.json", name)]
    else:
        listed = [marker_path(run, shard) for shard in shards]
    if not listed:
        return {}
    config: dict[str, Any] = {}
    markers = {}
    with suppress(MissingFile):
        config = read_config(run)
    for name, data in files.each(listed):
        shard, marker = int(name.rpartition("/")[2].removesuffix(".json")), parse_marker(data)
        if marker is None or (marker["run"], marker["shard"]) != (run, shard) or marker.get("damaged"):
            continue
        if all(marker.get(key) in (None, config.get(key)) for key in ("digest", "created") if key in config):
            markers[shard] = marker if whole else lean(marker, data or b"")
    return markers


def with_files(files: Files, run: str, markers: Mapping[int, Marker]) -> dict[int, Marker]:
    """Those of a run's markers whose files are there in their sizes. Every folder is listed once."""
    if not markers:
        return {}
    wanted = {shard: files_of(marker) for shard, marker in markers.items()}

    def lost(table: str) -> set[int]:
        there = files.find(f"{table}/run={run}")
        return {s for s, of in wanted.items() if any(there.get(path) != size for path, size in of.sizes(table))}

    with ThreadPoolExecutor(len(tables.PARTS), "pti-list") as pool:  # object stores list a thousand files a request
        undone = set().union(*pool.map(lost, tables.PARTS))
    return {shard: marker for shard, marker in markers.items() if shard not in undone}


def verify(files: Files, marker: Mapping[str, Any]) -> list[str]:
    """`Store.verify`."""
    problems, whole = [], marker
    if isinstance(marker["files"], ShardFiles):  # without checksums
        whole = read_marker(files, marker["run"], marker["shard"]) or {"files": []}
    for file in whole["files"]:
        try:
            data = files.get(file["path"], f"file {file['path']!r} is missing")
        except MissingFile as error:
            problems.append(str(error))
            continue
        if (len(data), hashlib.sha256(data).hexdigest()) != (file["bytes"], file["sha256"]):
            problems.append(f"file {file['path']!r}: {len(data)} bytes, not as written")
    return problems
