"""One shard: invert its images part by part, measure locality, and mark it done.

A part is as many images as the engine takes at once. Every file name is a function of run, shard and part; a part that
is there and whole (see `parts`) is not done again, apart from its images that another try may help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pti_core import tables
from pti_core.engine import Delta, Failure, Inversion, Progress, Stage
from pti_core.inputs import Inputs, check_not_all_unreadable, read_inputs, reject
from pti_core.measure import measure_locality
from pti_core.parallel import in_parallel
from pti_core.parts import INVERTED, Part, Row, part_table, whole_locality, whole_parts, write_locality, write_part
from pti_core.runs import Run, engine_for, stored_from_rows
from pti_core.sampling import seed_for
from pti_core.store import FileInfo, make_marker

STAGE_ORDER: tuple[Stage, ...] = ("pivot", "tuned", "stored")


@dataclass(frozen=True)
class ShardProgress:
    """How far a shard is; `now` is what the engine is doing, None between parts."""

    shard: int
    done: float  # images, with the share of those in work
    total: int
    now: Progress | None


OnShardProgress = Callable[[ShardProgress], None]


def plan_parts(rows: Sequence[Row], batch: int, multi: bool) -> list[list[Row]]:
    """Split a shard's manifest rows into parts: `batch` rows each, or whole groups in mode "multi"."""
    if not multi:
        return [list(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return list(groups.values())


def shard_rows(run: Run, shard: int) -> Sequence[Row]:
    """The manifest's rows of a shard, in its order."""
    manifest = run.manifest
    return tables.records(manifest[manifest["shard"] == shard])


def invert_shard(run: Run, shard: int, on_progress: OnShardProgress | None = None) -> dict[str, Any]:
    """Invert a shard's images; write pivots, deltas, rejects and metrics.

    Returns the shard, its images, the seconds that its parts took (in this call or an earlier one) and all their files.
    Raises InputsUnreadable where no input can be read.
    """
    rows = shard_rows(run, shard)
    parts = plan_parts(rows, run.config.batch, run.config.mode == "multi")
    whole = whole_parts(run, shard, [[row["image_id"] for row in part] for part in parts])
    if any(number not in whole or whole[number].temporary for number in range(len(parts))):
        run.store.unmark(run.name, shard)
    done, seconds = 0, 0.0
    files: list[FileInfo] = []
    for number, part in enumerate(parts):
        before = whole.get(number)
        if before is None or before.temporary:
            finished = done

            def report(now: Progress, finished: int = finished, size: int = len(part)) -> None:
                if on_progress is not None:
                    on_progress(ShardProgress(shard, finished + now.share * size, len(rows), now))

            before = _invert_part(run, shard, number, part, before, report)
        files += before.info()
        seconds += before.seconds
        done += len(part)
        if on_progress is not None:
            on_progress(ShardProgress(shard, done, len(rows), None))
    return {"shard": shard, "images": len(rows), "seconds": seconds, "files": [asdict(file) for file in files]}


def _invert_part(
    run: Run, shard: int, number: int, rows: Sequence[Row], before: Part | None, report: Callable[[Progress], None]
) -> Part:
    """Do one part; of one that was done `before`, only its images that another try may help."""
    start, resolution = time.perf_counter(), engine_for(run).generator.img_resolution
    tries, seconds = ({}, 0.0) if before is None else (before.temporary, before.seconds)
    found = read_inputs(run, [r for r in rows if before is None or r["image_id"] in tries], resolution, tries)
    if before is None:
        check_not_all_unreadable(run, rows, found)
    elif found.targets and run.config.mode == "multi":  # a group shares its generator: it is done again as a whole
        rejected, found = _rejected(run, before), read_inputs(run, rows, resolution, tries)
        if {r["image_id"] for r in found.rejects} - rejected:  # now another one cannot be read
            return before
        before = None
    contents = {table: part_table(run, table, new) for table, new in _invert(run, rows, found, tries, report).items()}
    if before is not None:
        contents = _added(run, before, contents)
    return write_part(run, shard, number, contents, seconds + time.perf_counter() - start, before)


def _rejected(run: Run, part: Part) -> set[str]:
    return set(run.store.read_part(part.files["rejects"].path)["image_id"])


def _added(run: Run, before: Part, contents: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables of a part with rows of a new try; without those that stay as they are."""
    old = {table: run.store.read_table(file.path)[1] for table, file in before.files.items()}
    kept = [row["image_id"] not in before.temporary for row in old["rejects"].to_pylist()]
    old["rejects"] = old["rejects"].filter(pa.array(kept, pa.bool_()))
    same = () if len(contents["pivots"]) else ("deltas", "pivots")
    return {table: pa.concat_tables([old[table], contents[table]]) for table in contents if table not in same}


def _invert(
    run: Run, rows: Sequence[Row], found: Inputs, tries: Mapping[str, int], report: Callable[[Progress], None]
) -> dict[str, list[dict[str, Any]]]:
    """Invert what was read; new rows of the tables `INVERTED`."""
    by_id = {row["image_id"]: row for row in rows}
    rejects, expected = list(found.rejects), len(found.targets) + len(found.rejects)
    pivots: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    tensors: list[dict[str, Any]] = []
    for result in engine_for(run).invert(found.targets, report) if found.targets else ():
        if isinstance(result, Failure):
            row, before = by_id[result.image_id], tries.get(result.image_id, 0)
            rejects.append(reject(row, result.stage, result.error, result.message, result.permanent, before))
        elif isinstance(result, Delta):
            tensors += [
                asdict(tensor) | {"owner": result.owner, "base_sha256": run.generator_sha256}
                for tensor in result.tensors
            ]
        else:
            pivots.append(_pivot_row(run, by_id[result.image_id], found.sha256[result.image_id], result))
            metrics += _metrics_rows(by_id[result.image_id], result)
    if len(pivots) + len(rejects) != expected:
        raise AssertionError(f"{len(pivots)} pivots + {len(rejects)} rejects of {expected} images")
    return {"deltas": tensors, "pivots": pivots, "rejects": rejects, "metrics": metrics}


def _pivot_row(run: Run, row: Row, sha256: str, result: Inversion) -> dict[str, Any]:
    return {
        "image_id": result.image_id,
        "uri": row["uri"],
        "sha256": sha256,
        "group": row["group"],
        "space": run.config.pivot.space,
        "w": result.w.flatten().tolist(),
        "noise": result.noise,
        "lpips": result.measures["pivot"]["lpips"],
        "mse": result.measures["pivot"]["mse"],
        "steps": result.pivot_steps,
        "seconds": result.pivot_seconds,
        "seed": seed_for(result.image_id, "pivot", result.seed),
    }


def _metrics_rows(row: Row, result: Inversion) -> list[dict[str, Any]]:
    steps = {"pivot": result.pivot_steps, "tuned": result.tuning_steps, "stored": None}
    seconds = {"pivot": result.pivot_seconds, "tuned": result.tuning_seconds, "stored": None}
    return [
        {"image_id": result.image_id, "group": row["group"], "stage": stage, "identity": None}
        | result.measures[stage]
        | {"steps": steps[stage], "seconds": seconds[stage]}
        for stage in STAGE_ORDER
    ]


def measure_shard(
    run: Run, shard: int, files: Sequence[Mapping[str, Any]] = (), seconds: float = 0.0
) -> dict[str, Any]:
    """Compare old and new generator around every pivot of a shard, as read back from the store; then mark it done.

    `files` and `seconds`: as `invert_shard` returned them, so that files need not be read again for the marker's
    checksums, and the marker tells the time of all the work. Raises StoreError where a table lacks a part.
    """
    rows, infos = shard_rows(run, shard), []
    known = {file["path"]: FileInfo(**file) for file in files}
    of: dict[int, dict[str, FileInfo]] = {}
    for number in range(len(plan_parts(rows, run.config.batch, run.config.mode == "multi"))):
        paths = {table: run.store.part_path(table, run.name, shard, number) for table in INVERTED}
        of[number] = {table: known.get(path) or run.store.file_info(path) for table, path in paths.items()}
    whole = whole_locality(run, shard, of)
    counts = {"manifest": len(rows), "pivots": 0, "rejects": 0, "temporary": 0}
    for number, part in of.items():
        if number not in whole:
            start = time.perf_counter()
            points, took = _locality_rows(run, part), time.perf_counter() - start
            whole[number] = (write_locality(run, shard, number, points, took, part), took)
        info, took = whole[number]
        infos += [*part.values(), info]
        seconds += took
        counts["pivots"] += len(run.store.read_part(part["pivots"].path))
        rejects = run.store.read_part(part["rejects"].path)
        counts["rejects"] += len(rejects)
        counts["temporary"] += int((~rejects["permanent"].astype(bool)).sum())
    run.store.mark_done(run.name, shard, make_marker(counts, seconds, run.digest, infos))
    return {"shard": shard, **counts}


def _locality_rows(run: Run, part: Mapping[str, FileInfo]) -> list[dict[str, Any]]:
    engine = engine_for(run)
    pivots = run.store.read_part(part["pivots"].path)
    deltas = dict(list(run.store.read_part(part["deltas"].path).groupby("owner", sort=False)))

    def measured(pivot: Row, check: Callable[[], None]) -> list[dict[str, Any]]:
        check()
        owner = pivot["group"] if run.config.mode == "multi" else pivot["image_id"]
        stored = stored_from_rows(run, engine, pivot, tables.records(deltas[owner]))
        points = measure_locality(
            engine.generator,
            stored.generator,
            stored.ws,
            pivot["image_id"],
            run.config.measure,
            engine.lpips,
            run.config.seed,
            engine.at_once,
        )
        return [asdict(point) for point in points]

    parts = in_parallel(measured, tables.records(pivots), engine.device)
    return [row for rows in parts for row in rows]
