"""One shard: invert its images part by part, measure locality, and mark it done.

A part is as many images as the engine takes at once. Every file name is a function of run, shard and part, and the
metrics of a part are written last: a part with metrics is complete and is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pti_core import images, tables
from pti_core.engine import Delta, Failure, Inversion, Progress, Stage, Target
from pti_core.measure import measure_locality
from pti_core.parallel import in_parallel
from pti_core.runs import Run, engine_for, stored_from_rows
from pti_core.store import FileInfo, make_marker

Row = Mapping[str, Any]
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
    """Invert a shard's images; write pivots, deltas, rejects and metrics. Returns counts, seconds and files."""
    rows, start = shard_rows(run, shard), time.perf_counter()
    parts = plan_parts(rows, run.config.batch, run.config.mode == "multi")
    complete = run.store.parts("metrics", run.name, shard)
    done = 0
    files: list[FileInfo] = []
    for number, part in enumerate(parts):
        if number not in complete:
            finished = done

            def report(now: Progress, finished: int = finished, size: int = len(part)) -> None:
                if on_progress is not None:
                    on_progress(ShardProgress(shard, finished + now.share * size, len(rows), now))

            files += _invert_part(run, shard, number, part, report)
        done += len(part)
        if on_progress is not None:
            on_progress(ShardProgress(shard, done, len(rows), None))
    seconds = time.perf_counter() - start
    return {"shard": shard, "images": len(rows), "seconds": seconds, "files": [asdict(file) for file in files]}


def _invert_part(
    run: Run, shard: int, part: int, rows: Sequence[Row], report: Callable[[Progress], None]
) -> list[FileInfo]:
    """Do one part; returns the files that it wrote."""
    engine = engine_for(run)
    targets, rejects, sha256 = [], [], {}
    for row in rows:
        try:
            found = run.read_input(row["uri"], row["image_id"], engine.generator.img_resolution)
        except images.ImageError as error:
            rejects.append(_reject(row, "decode", type(error).__name__, str(error), permanent=True))
        except OSError as error:
            rejects.append(_reject(row, "read", type(error).__name__, str(error), permanent=False))
        else:
            sha256[row["image_id"]] = found.sha256
            image = torch.from_numpy(images.to_float(found.pixels[None]))[0]
            targets.append(Target(row["image_id"], row["group"], image))
    by_id = {row["image_id"]: row for row in rows}
    pivots: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    tensors: list[dict[str, Any]] = []
    for result in engine.invert(targets, report):
        if isinstance(result, Failure):
            row = by_id[result.image_id]
            rejects.append(_reject(row, result.stage, result.error, result.message, result.permanent))
        elif isinstance(result, Delta):
            tensors += [
                asdict(tensor) | {"owner": result.owner, "base_sha256": run.generator_sha256}
                for tensor in result.tensors
            ]
        else:
            pivots.append(_pivot_row(run, by_id[result.image_id], sha256[result.image_id], result))
            metrics += _metrics_rows(by_id[result.image_id], result)
    if len(pivots) + len(rejects) != len(rows):
        raise AssertionError(f"shard {shard} part {part}: {len(pivots)} pivots + {len(rejects)} rejects of {len(rows)}")
    # Metrics last: their presence says that the part is complete.
    contents = {"deltas": tensors, "pivots": pivots, "rejects": rejects, "metrics": metrics}
    return [_write(run, table, shard, part, content) for table, content in contents.items()]


def _write(run: Run, table: str, shard: int, part: int, rows: Sequence[Row]) -> FileInfo:
    metadata = {"lpips_net": run.config.net} if "lpips" in tables.COLUMNS[table] else None
    return run.store.write_part(table, run.name, shard, part, tables.table(table, rows, metadata))


def _reject(row: Row, stage: str, error: str, message: str, permanent: bool) -> dict[str, Any]:
    return {
        "image_id": row["image_id"],
        "uri": row["uri"],
        "stage": stage,
        "error": error,
        "message": message,
        "permanent": permanent,
        "attempts": 1,
    }


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
        "seed": result.seed,
    }


def _metrics_rows(row: Row, result: Inversion) -> list[dict[str, Any]]:
    steps = {"pivot": result.pivot_steps, "tuned": result.tuning_steps, "stored": result.tuning_steps}
    seconds = {"pivot": result.pivot_seconds, "tuned": result.tuning_seconds, "stored": result.tuning_seconds}
    return [
        {"image_id": result.image_id, "group": row["group"], "stage": stage, "identity": None}
        | result.measures[stage]
        | {"steps": steps[stage], "seconds": seconds[stage]}
        for stage in STAGE_ORDER
    ]


def measure_shard(
    run: Run, shard: int, files: Sequence[Mapping[str, Any]] = (), on_progress: OnShardProgress | None = None
) -> dict[str, Any]:
    """Compare old and new generator around every pivot of a shard, as read back from the store; then mark it done.

    `files`: what `invert_shard` wrote, so that it need not be read again for the marker's checksums.
    """
    rows, start = shard_rows(run, shard), time.perf_counter()
    known = {file["path"]: FileInfo(**file) for file in files}
    complete = run.store.parts("locality", run.name, shard)
    for number in range(len(plan_parts(rows, run.config.batch, run.config.mode == "multi"))):
        if number not in complete:
            written = _write(run, "locality", shard, number, _locality_rows(run, shard, number))
            known[written.path] = written
    found = [run.store.parts(table, run.name, shard) for table in tables.PARTS]
    infos = [known.get(path) or run.store.file_info(path) for parts in found for path in parts.values()]
    counts = {"manifest": len(rows)}
    for table, parts in zip(tables.PARTS, found, strict=True):
        if table in ("pivots", "rejects"):
            counts[table] = sum(len(run.store.read_part(path)) for path in parts.values())
    marker = make_marker(counts, time.perf_counter() - start, run.digest, infos)
    run.store.mark_done(run.name, shard, marker)
    return {"shard": shard, **counts}


def _locality_rows(run: Run, shard: int, part: int) -> list[dict[str, Any]]:
    engine = engine_for(run)
    pivots = run.store.read_part(run.store.parts("pivots", run.name, shard)[part])
    deltas = dict(
        list(run.store.read_part(run.store.parts("deltas", run.name, shard)[part]).groupby("owner", sort=False))
    )

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
