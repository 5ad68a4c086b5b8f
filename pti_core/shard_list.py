"""How the shards of runs are, a line each, as CSV for other programs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any, Final, TextIO

import pyarrow.compute as pc

from pti_core.status import notes_of
from pti_core.storage.files import OutputRefused
from pti_core.storage.markers import temporary_rejects
from pti_core.storage.store import Store, StoreError

COLUMNS: Final = ("run", "shard", "images", "pivots", "rejects", "temporary", "seconds", "state")


def write_shards(store: Store, runs: Sequence[str], to: TextIO) -> list[str]:
    """One line a shard of these runs, after one with the names of `COLUMNS`; a sentence for each unreadable run.

    `state` is `done`; `running`, `failed` (its last try) or `left`: then what is not known yet is empty.
    """
    writer = csv.writer(to, lineterminator="\n")
    writer.writerow(COLUMNS)
    wrong = []
    for run in runs:
        try:
            writer.writerows(list(_rows(store, run)))
        except OutputRefused:
            raise  # it is so for all runs
        except StoreError as error:
            wrong.append(str(error))
    return wrong


def _rows(store: Store, run: str) -> Iterator[list[Any]]:
    manifest, markers = store.manifest(run), store.markers(run)
    left = [shard for shard in range(manifest.shards) if shard not in markers]
    sizes, states = dict[int, int](), dict[int, str]()
    if left:
        counted = pc.value_counts(manifest.table(["shard"])["shard"])
        sizes = dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
        for note in notes_of(store, run, left):
            states[note.shard] = "running" if note.running else "failed" if note.state == "failed" else "left"
    for shard in range(manifest.shards):
        if shard not in markers:
            yield [run, shard, sizes.get(shard), *[None] * 4, states.get(shard, "left")]
            continue
        counts, seconds = markers[shard]["counts"], markers[shard]["seconds"]
        numbers = [counts["manifest"], counts["pivots"], counts["rejects"], temporary_rejects(markers[shard])]
        yield [run, shard, *numbers, seconds, "done"]
