"""A run's tables in a few large files, for pandas, DuckDB and polars; `images.parquet` has a row an image (`wide`).

The run is read a window of whole shards at a time, so what is in memory does not grow with it. It loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core import tables
from pti_core.addresses import redact, secret_in
from pti_core.config import RunConfig
from pti_core.large_tables import wide
from pti_core.large_tables.delta_sizes import delta_bytes
from pti_core.large_tables.joined import Joined, read_joined
from pti_core.large_tables.large_files import FILE_BYTES, MARK, LargeFiles, LargeTable, Written, large_files
from pti_core.sources.folders import listed_with
from pti_core.status import or_another
from pti_core.storage.files import Files
from pti_core.storage.known_runs import newest_run
from pti_core.storage.manifests import Manifest
from pti_core.storage.markers import part_number
from pti_core.storage.store import Store
from pti_core.storage.table_files import read_files

IMAGES: Final = "images"
COPIED: Final = ("pivots", "metrics", "locality", "rejects")
"""The tables that are copied as they are, with `run` and `shard`; deltas are too large for that."""

WINDOW: Final = 50_000
"""Images that are read together."""

READ_BYTES: Final = 64 << 20
"""Bytes of a table's files that are read together; of pivots a file may have megabytes an image."""

_MAY_BE_SIGNED: Final = r"(?s)://.*[@?&;#~]"  # few addresses of a disk or bucket are, and looking closer takes time


class GatherError(ValueError):
    """Tables that cannot be written; the message says why and what to do."""


@dataclass(frozen=True)
class Gathered:
    """What was written."""

    run: str
    inverted: int
    rejected: int
    shards: int
    left_out: int  # shards that are not done
    files: Mapping[str, tuple[int, list[Written]]]  # by table its rows, and its files in order
    joined: Joined | None


def gather(
    root: str,
    output: str,
    run: str | None = None,
    join: str | None = None,
    partial: bool = False,
    noise: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    window: int = WINDOW,
    file_bytes: int = FILE_BYTES,
) -> Gathered:
    """Write `images`, metrics, locality, pivots and rejects of a run (the newest if left out) into a folder.

    `join`: a CSV or Parquet with image_id, whose columns `images` gets too. `partial`: only the shards that are done,
    where others are not. `noise`: pivots with their noise maps. `on_progress(done, total)` counts images; `window`:
    images that are read together, whole shards.

    Raises GatherError for an unfinished run and an output within the tables, RunError for no such run, JoinError, and
    StoreError for what cannot be read or written. Then files that were there stay; but see `large_files`.
    """
    store, to = Store(root), Files(output)
    _check_apart(store, to)
    name = newest_run(store, run)
    content = store.read_config(name)
    _check_outside(content["dataset"], to, root)
    config = RunConfig.model_validate(content["config"])
    manifest = store.manifest(name)
    _check_done(store, manifest, partial)
    alphas = config.measure.alphas
    joined = None if join is None else read_joined(join, wide.columns(alphas))
    source = _Source(store, manifest, config, partial, window)
    with large_files(to, (IMAGES, *COPIED), file_bytes) as files:
        images = files.table(IMAGES, _images_schema(name, config, joined))
        copies = {table: files.table(table, _copied_schema(table, name, config, noise)) for table in COPIED}
        seen, shards, rejected = 0, 0, 0
        for done, inputs, all_inputs in source.windows():
            rows = source.rows(done, inputs, copies)
            rejected += pc.sum(pc.equal(rows["status"], "rejected")).as_py() or 0
            for column in joined.columns(rows["image_id"]).itercolumns() if joined else ():
                rows = rows.append_column(images.schema.field(rows.num_columns), column)
            images.add(rows)
            seen, shards = seen + all_inputs, shards + len(done)
            on_progress(seen, manifest.rows)
    return Gathered(
        run=name,
        inverted=images.rows - rejected,
        rejected=rejected,
        shards=shards,
        left_out=manifest.shards - shards,
        files=_told(files),
        joined=joined,
    )


def _told(files: LargeFiles) -> dict[str, tuple[int, list[Written]]]:
    return {table.name: (table.rows, table.files) for table in files.tables.values()}


@dataclass(frozen=True)
class _Source:
    """A run's tables, read by windows."""

    store: Store
    manifest: Manifest
    config: RunConfig
    partial: bool
    window: int

    def windows(self) -> Iterator[tuple[dict[int, dict[str, Any]], pa.Table, int]]:
        """Markers of the shards that are done, their inputs, and how many inputs all shards of the window have."""
        run = self.manifest.run
        for shards, inputs in self.manifest.windows(self.window, ["image_id", "uri", "group", "shard"]):
            done = self.store.markers(run, shards=shards)
            if not self.partial and (left := [shard for shard in shards if shard not in done]):
                raise GatherError(_unfinished(self.store, run, f"shard {left[0]} is not done"))
            own = inputs.filter(pc.is_in(inputs["shard"], pa.array(sorted(done), pa.int64())))
            yield done, _harmless(own), len(inputs)

    def rows(
        self, markers: Mapping[int, Mapping[str, Any]], inputs: pa.Table, copies: Mapping[str, LargeTable]
    ) -> pa.Table:
        """The rows of `images` of these shards; those of the other tables are added to `copies` on the way."""
        files = _parts(markers)

        def read(table: str, keep: Callable[[pa.Table], pa.Table]) -> pa.Table:
            wanted, kept = copies[table].schema, [keep(tables.schema(table).empty_table())]
            for some in _together(files[table]):
                found = _harmless(read_files(self.store.files, table, some, wanted.names))
                copies[table].add(found)
                kept.append(keep(found))
            return pa.concat_tables(kept)

        measured = ["image_id", "stage", *dict.fromkeys(name for taken in wide.MEASURED.values() for name in taken)]
        found = wide.Window(
            inputs=inputs,
            pivots=read("pivots", lambda rows: rows.select(["image_id"])),
            metrics=read("metrics", lambda rows: rows.select(measured)),
            drift=read("locality", wide.mean_drift),
            rejects=read("rejects", lambda rows: rows.select(["image_id", *wide.REJECTED])),
            delta_bytes=delta_bytes(self.store.files, [*files["deltas"]]),
        )
        return wide.rows(found, self.manifest.run, self.config.mode == "multi", self.config.measure.alphas)


def _parts(markers: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Paths and sizes of the files that markers name, by table, in the order of shards and parts.

    Without those of shards that have no such rows: few shards have rejects, and opening a file takes a millisecond.
    """
    found: dict[str, dict[str, int]] = {table: {} for table in tables.PARTS}
    for _, marker in sorted(markers.items()):
        empty = "" if marker["counts"]["rejects"] else "rejects"
        for path, size in sorted(marker["files"].sizes(), key=lambda file: part_number(file[0]) or 0):
            if (table := path.partition("/")[0]) != empty:
                found[table][path] = size
    return found


def _together(files: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Files that are read together, `READ_BYTES` or one."""
    some: dict[str, int] = {}
    together = 0
    for path, size in files.items():
        if some and together + size > READ_BYTES:
            yield some
            some, together = {}, 0
        some[path] = size
        together += size
    if some:
        yield some


def _harmless(rows: pa.Table) -> pa.Table:
    """Rows without secrets in their `uri`, which those of earlier versions may have."""
    if "uri" not in rows.column_names:
        return rows
    uris = rows["uri"]
    if pc.any(pc.match_substring_regex(uris, _MAY_BE_SIGNED)).as_py():
        clean = [redact(uri) if secret_in(uri) else uri for uri in uris.to_pylist()]
        rows = rows.set_column(rows.column_names.index("uri"), rows.schema.field("uri"), pa.array(clean, pa.string()))
    return rows


def _metadata(run: str, config: RunConfig) -> dict[str, str]:
    return {"lpips_net": config.net, MARK: run}


def _copied_schema(table: str, run: str, config: RunConfig, noise: bool) -> pa.Schema:
    own = tables.schema(table, _metadata(run, config))
    fields = [field for field in own if noise or field.name != "noise"]
    places = [pa.field("run", pa.string(), False), pa.field("shard", pa.int32(), False)]
    return pa.schema([*fields, *places], metadata=own.metadata)


def _images_schema(run: str, config: RunConfig, joined: Joined | None) -> pa.Schema:
    metadata = tables.schema("metrics", _metadata(run, config)).metadata
    own = wide.schema(config.measure.alphas)
    return pa.schema([*own, *(field.with_nullable(True) for field in joined.schema)] if joined else own, metadata)


def _check_apart(store: Store, to: Files) -> None:
    """Raise GatherError for a folder that the run's own readers and writers take for theirs."""
    if type(store.files.fs) is not type(to.fs):
        return
    root, folder = (files.at("").rstrip("/") for files in (store.files, to))
    if to.local:
        root, folder = str(Path(root or "/").resolve()), str(Path(folder or "/").resolve())
    if folder.startswith(f"{root.rstrip('/')}/"):
        first = folder.removeprefix(root).strip("/").partition("/")[0]
        if first in (*tables.TABLES, "runs", "encoders"):
            raise GatherError(
                f"--output {to.name!r} lies in {first!r} of {store.files.name!r}, where all files are a run's own; "
                "choose a folder outside"
            )


def _check_outside(dataset: str, to: Files, root: str) -> None:
    """Raise GatherError for a folder that the next listing of a data set would take Parquet files from."""
    names = [f"{table}{number}.parquet" for table in (IMAGES, *COPIED) for number in ("", "-00000")]
    if listed_with(dataset, to.root, root, names):
        raise GatherError(
            f"--output {to.name!r} lies in the data set of the run, whose next listing would take these tables for "
            "inputs; choose a folder outside of it"
        )


def _check_done(store: Store, manifest: Manifest, partial: bool) -> None:
    """Raise GatherError for a run that is seen to be unfinished by the names of its markers, before any work."""
    run = manifest.run
    markers = [path for path in store.files.find(f"runs/{run}/done") if re.search(r"/\d{5,}\.json$", path)]
    if len(markers) < manifest.shards and not (partial and markers):
        raise GatherError(_unfinished(store, run, f"{len(markers)} of {manifest.shards} shards are done", len(markers)))


def _unfinished(store: Store, run: str, how: str, done: int = 1) -> str:
    some = ", and --partial takes what is done" if done else ""
    return f"run {run} is unfinished ({how}); the same `pti run` again finishes it{some}{or_another(store, run)}"
