"""What edits were made of: of a part's files as a whole, and of each image, which may stay when its part changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pti_core import tables
from pti_core.runs import Run
from pti_core.storage.files import StoreError
from pti_core.storage.store import Store
from pti_core.tables import Row


def finished(store: Store, run: str, shard: int) -> dict[str, Any]:
    """The marker of a shard that is done. StoreError where it is not, or is being done again."""
    marker = store.marker(run, shard)
    if marker is None or marker.get("damaged"):
        raise StoreError(f"run {run}: shard {shard} is unfinished; `pti run` again finishes it")
    return marker


def results_sha256(files: Sequence[Mapping[str, Any]]) -> str:
    """Of pivots and deltas as files; where it is the same, all edits hold."""
    sums = sorted((f["path"], f["sha256"]) for f in files if f["path"].startswith(("pivots/", "deltas/")))
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def image_sums(run: Run, shard: int, number: int) -> dict[str, str]:
    """Checksums of pivot and delta by image_id: an image that is added to a part leaves the others as they are."""
    pivots = run.store.read_part(run.store.part_path("pivots", run.name, shard, number))
    deltas = run.store.read_part(run.store.part_path("deltas", run.name, shard, number))
    owned = {str(owner): _sum_of(tables.records(rows)) for owner, rows in deltas.groupby("owner", sort=False)}
    sums = {}
    for row in tables.records(pivots):
        owner = run.config.owner(row["image_id"], row["group"])
        content = hashlib.sha256(np.asarray(row["w"], np.float32).tobytes() + (row["noise"] or b""))
        content.update(owned.get(owner, "").encode())
        sums[row["image_id"]] = content.hexdigest()[:16]
    return sums


def _sum_of(rows: Sequence[Row]) -> str:
    """Of one owner's delta."""
    content = hashlib.sha256()
    for row in sorted(rows, key=lambda row: str(row["tensor"])):
        content.update(f"{row['tensor']} {row['codec']} {row['scale']!r} {len(row['payload'])} ".encode())
        content.update(row["payload"])
    return content.hexdigest()
