"""Reading everything again: is each file of a run still as it was written?

`Store.done` compares sizes, at every start of a run. This finds what keeps its size (a flipped bit, a file of another
run) and has it done again. Edits are checked by `editing.checking`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pti_core import tables
from pti_core.editing.checking import check_edits
from pti_core.storage.files import DamagedFile, MissingFile
from pti_core.storage.layout import checked
from pti_core.storage.markers import parse_marker, part_shard
from pti_core.storage.store import Store

RUN: Final = "pti run"
_WINDOW: Final = 100_000  # rows of the manifest that are read at once
_STUDIES: Final = ("alpha_nearness", "alpha_drift")


@dataclass(frozen=True)
class Checked:
    """What was found in one shard; no problem if all is well."""

    shard: int
    problems: list[str]
    again: str = RUN  # the command that makes once more what is damaged


Markers = Mapping[int, Mapping[str, Any]]
"""Of a run, by shard, as `Store.markers` reads them: once, since there may be many."""


def check_all(store: Store, run: str, markers: Markers) -> Iterator[Checked]:
    """The shards of a run, then its edits, then its alpha studies. Raises StoreError where they cannot be read."""
    yield from check_run(store, run, markers)
    for shard, problems in check_edits(store, run):
        yield Checked(shard, problems, "pti edit")
    yield from _check_studies(store, run)


def check_run(store: Store, run: str, markers: Markers) -> Iterator[Checked]:
    """Compare every file of every finished shard with its checksum; a shard that does not hold counts as not done.

    The next run does again what is damaged or gone, and only that. Raises StoreError where the store cannot be read.
    """
    for shard, path in _unreadable_markers(store, run, markers):
        yield Checked(shard, [f"marker {path!r} cannot be read, so this shard counts as not done"])
    for shard in sorted(markers):
        marker = _finished(store, run, shard)
        problems = store.verify(marker) if marker else []  # somebody does it again where there is none
        if problems and (now := _finished(store, run, shard)) != marker:
            # Or has: what was read may be of both.
            marker, problems = now, store.verify(now) if now else []
        if marker and problems:
            store.mark_damaged(run, shard, marker)
        yield Checked(shard, problems)


def _finished(store: Store, run: str, shard: int) -> dict[str, Any] | None:
    """A shard's marker with checksums, as it is now; None where it counts as not done."""
    marker = store.marker(run, shard)
    return None if marker is None or marker.get("damaged") else marker


def check_manifest(store: Store, run: str, markers: Markers) -> tuple[int | None, str | None]:
    """How many shards a run has; or, in one sentence, why its manifest does not tell. Reads all of it.

    Raises StoreError where it cannot be read, for another reason than that it is damaged or gone.
    """
    path = f"runs/{checked(run)}/manifest.parquet"
    way_out = "without it the run cannot go on; bring it back, or `pti run ... --overwrite` does all again"
    if not store.exists(path):
        return None, f"manifest {path!r} is missing: {way_out}"
    try:
        manifest = store.manifest(run)
        for _ in manifest.windows(_WINDOW, [name for name in tables.schema("manifest").names if name != "shard"]):
            pass
    except DamagedFile as error:
        # What it was, maybe one of several files, is in the error; its way out is that of a part.
        return None, f"the manifest cannot be read ({str(error).partition('; ')[0]}): {way_out}"
    if (last := max(markers, default=0)) >= manifest.shards:
        after = f"shard {last} is done, and what is there of the manifest ends with shard {manifest.shards - 1}"
        return None, f"a file of the manifest, 'manifest-*.parquet', is missing ({after}): {way_out}"
    return manifest.shards, None


def _unreadable_markers(store: Store, run: str, known: Collection[int]) -> list[tuple[int, str]]:
    """Markers that are none, or those of another shard. (`{}` is one that is being made once more.)"""
    paths = {}
    for path in store.files.find(f"runs/{checked(run)}/done"):
        match = re.fullmatch(r".*/(\d{5,})\.json", path)
        if match and int(match[1]) not in known:
            paths[path] = int(match[1])
    found = []
    for path, data in store.files.get_all(list(paths)).items():
        marker = parse_marker(data)
        readable = marker is not None and (marker["run"], marker["shard"]) == (run, paths[path])
        if data is not None and data.strip() != b"{}" and not readable:
            found.append((paths[path], path))
    return found


def _check_studies(store: Store, run: str) -> Iterator[Checked]:
    """Parts of alpha studies have no checksums; one that is no whole Parquet file is found."""
    for table in _STUDIES:
        for path in store.files.find(f"{table}/run={checked(run)}"):
            problems: list[str] = []
            try:
                store.read_table(path)
            except MissingFile:
                continue
            except DamagedFile as error:
                problems.append(str(error))
            yield Checked(part_shard(path) or 0, problems, "pti alpha-study")
