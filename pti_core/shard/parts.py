"""The files of one part of a shard, and which parts are there and whole.

The metrics of a part are written last and are its seal: their metadata hold the checksums of the part's other tables,
when the run was frozen that it belongs to, and on which device, in which precision and by which versions it was made.
A part counts only if every table is there and as sealed, and as an older marker of the shard says; anything else (a
worker was killed or is of before `--overwrite`, a file was lost or damaged) is done again. The locality table is sealed
to the deltas and pivots that it was measured from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core import tables
from pti_core.causes import causes_of_rows
from pti_core.runs import Run, any_engine_for
from pti_core.shard.inputs import MISSING
from pti_core.shard.staged import end_changes, forget_aside, put_aside
from pti_core.storage.files import DamagedFile, FileInfo
from pti_core.tables import Row
from pti_core.versions import made_with

INVERTED: Final = ("deltas", "pivots", "rejects", "metrics")
"""The tables of an inverted part, in the order in which they are written."""

_COUNTED: Final = ("pivots", "rejects")
_MEASURED: Final = ("deltas", "pivots")  # what the locality of a part is measured from
_KEPT: Final = ("image_id", "stage", "error", "permanent", "attempts")  # of what is read to see whether a part is whole
_SEAL: Final = b"pti_part"
_OF_FILES: Final = ("created", "seconds", "sha256")  # of a seal; the rest is what the part was made with


@dataclass(frozen=True)
class Part:
    """A part that is there and whole."""

    files: dict[str, FileInfo]  # by table, those of `INVERTED`
    seconds: float  # wall time, of all tries
    rows: dict[str, int]  # of `pivots` and `rejects`
    temporary: dict[str, int]  # rejects that another try may help: image_id, times tried
    gone: int  # rejects that are not tried again and were not there to be read
    made: Mapping[str, str]  # on what, and with which versions
    causes: Counter[str]  # of rejects

    def info(self) -> list[FileInfo]:
        """Its files in the order in which they were written."""
        return list(self.files.values())


def part_table(run: Run, table: str, rows: Sequence[Row]) -> pa.Table:
    """Rows of one part as a table, which names the net of its LPIPS."""
    metadata = {"lpips_net": run.config.net} if "lpips" in tables.COLUMNS[table] else None
    return tables.table(table, rows, metadata)


def write_part(
    run: Run,
    shard: int,
    number: int,
    contents: Mapping[str, pa.Table],
    seconds: float,
    before: Part | None = None,
) -> Part:
    """Write the tables of an inverted part, the metrics last; those without new contents stay as they were `before`.

    Where there is a whole part, all are written aside first (see `staged`).
    """
    new = {table: tables.to_parquet(table, contents[table]) for table in INVERTED[:-1] if table in contents}
    files = {} if before is None else dict(before.files)
    for table, data in new.items():
        files[table] = FileInfo.of(run.store.part_path(table, run.name, shard, number), data)
    made = _made(run) if before is None or "pivots" in contents else before.made
    sealed = _sealed(run, contents["metrics"], seconds, {table: files[table] for table in INVERTED[:-1]}, made)
    new["metrics"] = tables.to_parquet("metrics", sealed)
    sums = {table: file.sha256 for table, file in before.files.items()} if before else {}
    aside = put_aside(run, shard, number, sums, new) if before else None
    for table, data in new.items():
        files[table] = run.store.files.put(run.store.part_path(table, run.name, shard, number), data)
    if aside is not None:
        forget_aside(run, aside)
    rows = {} if before is None else before.rows
    rows = rows | {table: len(contents[table]) for table in _COUNTED if table in contents}
    return _part(files, seconds, rows, contents["rejects"], made)


def _made(run: Run) -> dict[str, str]:
    engine = any_engine_for(run)
    return {**made_with(engine.device), "precision": engine.config.precision}


def whole_parts(run: Run, shard: int, ids: Sequence[Sequence[str]]) -> dict[int, Part]:
    """The parts of a shard that are there and whole, by number; `ids` are the images of every part.

    Reads all files that are there: only asked for shards that are not done.
    """
    there = {"metrics": run.store.parts("metrics", run.name, shard)}
    if not there["metrics"]:  # written last: without them no part is whole
        return {}
    end_changes(run, shard)
    there |= {table: run.store.parts(table, run.name, shard) for table in INVERTED[:-1]}
    marked = _marked(run, shard)
    found = {}
    for number, expected in enumerate(ids):
        if all(number in numbered for numbered in there.values()):
            paths = {table: numbered[number] for table, numbered in there.items()}
            part = _whole(paths, run, marked, expected)
            if part is not None:
                found[number] = part
    return found


def _whole(paths: Mapping[str, str], run: Run, marked: Mapping[str, str], expected: Sequence[str]) -> Part | None:
    files, contents = {}, {}
    for table in ("metrics", "deltas", "pivots", "rejects"):
        try:
            files[table], content = run.store.read_table(paths[table])
        except DamagedFile:
            return None
        if marked.get(paths[table], files[table].sha256) != files[table].sha256:
            return None
        contents[table] = content.select([c for c in content.column_names if c in _KEPT])
    seal = _seal(run, contents["metrics"])
    if seal is None or seal["sha256"] != {table: files[table].sha256 for table in INVERTED[:-1]}:
        return None
    ids = [image_id for table in ("pivots", "rejects") for image_id in contents[table]["image_id"].to_pylist()]
    if sorted(ids) != sorted(expected):
        return None
    rows = {table: len(contents[table]) for table in _COUNTED}
    made = {key: value for key, value in seal.items() if key not in _OF_FILES}
    return _part(files, seal["seconds"], rows, contents["rejects"], made)


def _part(
    files: Mapping[str, FileInfo], seconds: float, rows: dict[str, int], rejects: pa.Table, made: Mapping[str, str]
) -> Part:
    found = rejects.to_pylist()
    temporary = {row["image_id"]: int(row["attempts"]) for row in found if not row["permanent"]}
    inverted = {table: files[table] for table in INVERTED}
    return Part(inverted, seconds, rows, temporary, gone(rejects), made, causes_of_rows(found))


def gone(rejects: pa.Table) -> int:
    """How many rejects of a part are of files that were not there in any try, and are not tried again."""
    return int(pc.sum(pc.and_(rejects["permanent"], pc.equal(rejects["error"], MISSING))).as_py() or 0)


def write_locality(
    run: Run, shard: int, number: int, rows: Sequence[Row], seconds: float, of: Mapping[str, FileInfo]
) -> FileInfo:
    """Write the locality table of a part, sealed to the files that it was measured from."""
    sealed = _sealed(run, part_table(run, "locality", rows), seconds, {table: of[table] for table in _MEASURED})
    return run.store.write_part("locality", run.name, shard, number, sealed)


def whole_locality(run: Run, shard: int, of: Mapping[int, Mapping[str, FileInfo]]) -> dict[int, tuple[FileInfo, float]]:
    """The locality parts that are whole and belong to the parts `of`, by number, with their seconds."""
    paths = run.store.parts("locality", run.name, shard)
    marked = _marked(run, shard) if paths else {}
    found = {}
    for number, path in paths.items():
        try:
            info, content = run.store.read_table(path)
        except DamagedFile:
            continue
        if number not in of or marked.get(path, info.sha256) != info.sha256:
            continue
        seal = _seal(run, content)
        if seal is None:
            continue
        if seal["sha256"] == {table: of[number][table].sha256 for table in _MEASURED}:
            found[number] = (info, seal["seconds"])
    return found


def _marked(run: Run, shard: int) -> dict[str, str]:
    """Checksums by the shard's marker, if there is one."""
    marker = run.store.marker(run.name, shard)
    return {file["path"]: file["sha256"] for file in marker["files"]} if marker else {}


def _sealed(
    run: Run, content: pa.Table, seconds: float, of: Mapping[str, FileInfo], made: Mapping[str, str] | None = None
) -> pa.Table:
    seal = {"created": run.created, "seconds": seconds, "sha256": {table: file.sha256 for table, file in of.items()}}
    seal |= made or {}
    return content.replace_schema_metadata({**(content.schema.metadata or {}), _SEAL: json.dumps(seal).encode()})


def _seal(run: Run, content: pa.Table) -> dict[str, Any] | None:
    """What a seal says; None where there is none that can be read, or the run was overwritten since its part was begun.

    (A worker that has outlived its run writes such parts; seals of earlier versions do not say what they are of.)
    """
    try:
        seal = json.loads((content.schema.metadata or {})[_SEAL])
        found = {**seal, "seconds": float(seal["seconds"]), "sha256": dict(seal["sha256"])}
    except (KeyError, TypeError, ValueError):
        return None
    return found if found.get("created", run.created) == run.created else None
