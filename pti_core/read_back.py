"""Many images of a shard read back from the tables: each file is opened once, not once for every image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, TypeVar

import pyarrow.parquet as pq

from pti_core import tables
from pti_core.engine import Engine
from pti_core.machine.parallel import available_cores
from pti_core.runs import Run
from pti_core.storage.layout import shard_folder
from pti_core.storage.markers import part_number
from pti_core.storage.table_files import read_files

Result = TypeVar("Result")

_FILE: Final = "__filename"  # pyarrow's name for the file that a row is of


@dataclass(frozen=True)
class StoredRows:
    """What the tables hold of one image, for `stored_from_rows`."""

    pivot: dict[str, Any]
    delta: list[dict[str, Any]]  # none where it is missing


def stored_rows(run: Run, engine: Engine, shard: int, images: Collection[str]) -> Iterator[list[StoredRows]]:
    """The images of a shard that have a pivot, in the order of the table, in pieces to be drawn in parallel.

    In memory are the pivots, and the deltas of one piece: of a part, or of as many as have an image for every core.
    StoreError where a file cannot be read; pieces before it come first.
    """
    files = run.store.files
    listed = {table: files.find(shard_folder(table, run.name, shard)) for table in ("pivots", "deltas")}
    pivots = {path: size for path, size in listed["pivots"].items() if part_number(path) is not None}
    if not pivots:
        return
    where = pq.filters_to_expression([("image_id", "in", sorted(images))])
    columns = [*tables.schema("pivots").names, "run", "shard", _FILE]
    rows = tables.records(read_files(files, "pivots", pivots, columns, where).to_pandas())
    numbers = {files.at(path): part_number(path) for path in pivots}
    least = available_cores() if engine.device.type == "cpu" else 1
    piece: list[dict[str, Any]] = []
    parts: dict[str, int] = {}  # of the deltas of a piece, with their sizes
    for number, of_part in groupby(rows, lambda row: numbers[row.pop(_FILE)]):
        piece += of_part
        path = run.store.part_path("deltas", run.name, shard, number or 0)
        parts |= {path: listed["deltas"][path]} if path in listed["deltas"] else {}
        if len(piece) >= least:
            yield _with_deltas(run, piece, parts)
            piece, parts = [], {}
    if piece:
        yield _with_deltas(run, piece, parts)


def in_turn(
    engine: Engine, draw: Callable[[StoredRows, Callable[[], None]], Result], pieces: Iterator[list[StoredRows]]
) -> Iterator[Result]:
    """What `draw(rows, check)` returns for each image, as `Engine.in_parallel` does a piece."""
    while piece := next(pieces, None):
        yield from engine.in_parallel(draw, piece)
        del piece  # before the next one is read


def _with_deltas(run: Run, pivots: list[dict[str, Any]], parts: dict[str, int]) -> list[StoredRows]:
    owners = [run.config.owner(pivot["image_id"], pivot["group"]) for pivot in pivots]
    deltas: dict[str, list[dict[str, Any]]] = {}
    if parts:
        # One after the other, since not every pyarrow leaves out row groups, each an owner's, by a rule with "in".
        where = pq.filters_to_expression([[("owner", "==", owner)] for owner in dict.fromkeys(owners)])
        frame = read_files(run.store.files, "deltas", parts, None, where).to_pandas()
        deltas = {str(owner): tables.records(rows) for owner, rows in frame.groupby("owner", sort=False)}
    return [StoredRows(pivot, deltas.get(owner, [])) for pivot, owner in zip(pivots, owners, strict=True)]
