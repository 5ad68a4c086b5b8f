"""What of a study is in the store: an image's part of both tables, with the pivot and the settings that it is of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pti_core import tables
from pti_core.alpha.study import OFF, Alpha
from pti_core.runs import Run
from pti_core.sampling import seed_for
from pti_core.shard.parts import part_table

TABLES: Final = ("alpha_nearness", "alpha_drift")
VERSION: Final = 1  # of the measures; a change makes what is there be done again
_SETTINGS: Final = b"pti_alpha_study"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """What is asked of each image, as tasks get it."""

    alphas: list[Alpha]  # as of `check_alphas`
    z_samples: int

    @property
    def numbers(self) -> list[float]:
        """The alphas that are distances."""
        return [float(alpha) for alpha in self.alphas if alpha != OFF]


@dataclass(frozen=True)
class Place:
    """An image with a pivot: where its study lies, and of what."""

    image_id: str
    shard: int
    number: int  # of its part of both tables: its place in the shard
    pivot: Mapping[str, Any]  # its row of the table `pivots`

    @property
    def sha256(self) -> str:
        """Of what a study depends on: the input, w and noise. A pivot that was found again is the same or another."""
        w = np.asarray(self.pivot["w"], np.float32).tobytes()
        parts = (self.pivot["sha256"].encode(), w, self.pivot["noise"] or b"")
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def places(run: Run, chosen: Mapping[int, Sequence[str]]) -> dict[str, Place]:
    """The images by shard that have a pivot, in order."""
    found: dict[str, Place] = {}
    for shard, ids in chosen.items():
        where = [("shard", "==", shard), ("image_id", "in", list(ids))]
        pivots = {row["image_id"]: row for row in tables.records(run.store.read("pivots", run=run.name, filters=where))}
        numbers = {row["image_id"]: number for number, row in enumerate(run.manifest.shard(shard))}
        found |= {i: Place(i, shard, numbers[i], pivots[i]) for i in ids if i in pivots}
    return found


def studied(run: Run, wanted: Collection[Place], request: Request) -> dict[str, list[pa.Table]]:
    """Both tables of each image that has been studied at its present pivot, with all that is asked for or more.

    StoreError where a part may not be read: it is not one that is missing.
    """
    paths = {place.image_id: [_path(run, table, place) for table in TABLES] for place in wanted}
    data = run.store.files.get_all([path for two in paths.values() for path in two])
    found = {}
    for place in wanted:
        parts = [_parsed(data[path]) for path in paths[place.image_id]]
        whole = [part for part in parts if part is not None and _covers(part, place, request)]
        if len(whole) == len(TABLES):
            found[place.image_id] = whole
    return found


def write_study(run: Run, place: Place, request: Request, contents: Sequence[Rows]) -> None:
    """Write an image's part of both tables, over any older one."""
    settings = {"version": VERSION, "pivot": place.sha256, "alphas": request.alphas, "z_samples": request.z_samples}
    for table, rows in zip(TABLES, contents, strict=True):
        made = part_table(run, table, rows)
        made = made.replace_schema_metadata({**made.schema.metadata, _SETTINGS: json.dumps(settings).encode()})
        run.store.write_part(table, run.name, place.shard, place.number, made)


def requested(run: Run, found: Mapping[str, Sequence[pa.Table]], request: Request) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of `alpha_nearness` and `alpha_drift` that were asked for; an image may have been studied with more."""
    seeds = {seed_for(i, f"locality/{n}", run.config.seed) for i in found for n in range(request.z_samples)}
    near, drift = (pa.concat_tables([two[i] for two in found.values()]).to_pandas() for i in range(len(TABLES)))
    near = near[near["alpha"].isin(request.numbers) & near["seed"].isin(seeds)]
    tuned = drift["tuned_alpha"].isin(request.numbers) | (drift["tuned_alpha"].isna() & (OFF in request.alphas))
    there = drift["alpha"].isin(request.numbers) | (drift["where"] != "interpolated")
    drift = drift[tuned & there & (drift["seed"].isin(seeds) | (drift["where"] == "target"))]
    return near.reset_index(drop=True), drift.reset_index(drop=True)


def note_left_out(run: Run, shard: int, reasons: Mapping[str, str]) -> None:
    """Why images of a shard could not be studied, by image_id, for the page."""
    run.store.files.put(_left_out(run, shard), json.dumps(reasons, ensure_ascii=False, indent=1).encode())


def reasons_left_out(run: Run, shards: Iterable[int]) -> dict[str, str]:
    """What the last study noted. True only of images that have no study. StoreError where it may not be read."""
    data = run.store.files.get_all([_left_out(run, shard) for shard in shards])
    return {i: str(why) for content in data.values() if content for i, why in json.loads(content).items()}


def _left_out(run: Run, shard: int) -> str:
    return f"runs/{run.name}/alpha/left_out/{shard:05d}.json"


def _path(run: Run, table: str, place: Place) -> str:
    return run.store.part_path(table, run.name, place.shard, place.number)


def _parsed(data: bytes | None) -> pa.Table | None:
    """A part; None for one that is not there or damaged."""
    if data is None:
        return None
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        return None


def _covers(part: pa.Table, place: Place, request: Request) -> bool:
    settings = json.loads((part.schema.metadata or {}).get(_SETTINGS, b"{}"))
    return (
        (settings.get("version"), settings.get("pivot")) == (VERSION, place.sha256)
        and set(request.alphas) <= set(settings["alphas"])
        and request.z_samples <= settings["z_samples"]
    )
