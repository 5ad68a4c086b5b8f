"""One shard: invert its images part by part, measure locality, and mark it done.

A part is `config.batch` images, or a whole group in mode "multi"; the engine may take fewer at once. Every file name is
a function of run, shard and part; a part that is there and whole (see `parts`) is not done again, apart from its images
that another try may help. Nor is a shard that another process has finished meanwhile (see `meanwhile`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import pyarrow.compute as pc

from pti_core import tables
from pti_core.causes import BY_CAUSE, causes_of_rows
from pti_core.machine.overlap import read_ahead, write_behind
from pti_core.machine.parallel import one_at_a_time
from pti_core.measure import measure_locality
from pti_core.progress import Progress
from pti_core.runs import Run, engine_for, stored_from_rows
from pti_core.shard.meanwhile import (
    Marker,
    WrittenByAnother,
    check_unchanged,
    finished_by_another,
    is_finished,
    read_known,
)
from pti_core.shard.originals import check_originals
from pti_core.shard.part_jobs import Job, plan_parts, read_job, write_job
from pti_core.shard.parts import INVERTED, Part, gone, whole_locality, whole_parts, write_locality
from pti_core.shard.rows import inverted_rows
from pti_core.shard.shard_progress import PREPARING, OnShardProgress, ShardProgress
from pti_core.storage.files import FileInfo
from pti_core.storage.markers import GONE, make_marker
from pti_core.storage.notes import NoteBook
from pti_core.storage.store import StoreError
from pti_core.tables import Row

LAST_WRITTEN: Final = ("metrics/", "locality/")
"""What tells whether another process has written a part meanwhile: they come last, and hold the others' checksums."""


def invert_shard(
    run: Run, shard: int, on_progress: OnShardProgress | None = None, retry_rejects: bool = False
) -> dict[str, Any]:
    """Invert a shard's images; write pivots, deltas, rejects and metrics.

    Parts that are there and whole stay as they are, but with `retry_rejects` their images that failed for a passing
    reason are tried again. While one part is inverted the next is read and the last is written. A shard that another
    process has finished is left as it is, also where that happens while this one is at work on it.

    Returns the shard, its images, the counts of its rows, the seconds that its parts took (in this call or an earlier
    one) and all their files; of one that was finished those of its locality too, so that it is not measured again.
    Raises InputsUnreadable where no input can be read, and where this machine cannot open or unpack one.
    """
    rows, marker = run.manifest.shard(shard), run.store.marker(run.name, shard)
    if marker is not None and is_finished(run, shard, marker, retry_rejects):
        return _as_finished(shard, len(rows), marker, on_progress)
    parts = plan_parts(rows, run.config.batch, run.config.mode == "multi")
    whole = whole_parts(run, shard, [[row["image_id"] for row in part] for part in parts])
    jobs = [
        Job(number, part, whole.get(number))
        for number, part in enumerate(parts)
        if number not in whole or (retry_rejects and whole[number].temporary)
    ]
    if jobs:
        check_originals(run, shard, [job.number for job in jobs if job.before is None])
        if marker is not None:
            run.store.unmark(run.name, shard, {job.number for job in jobs})
    try:
        _invert(run, shard, rows, jobs, whole, on_progress, retry_rejects)
    except _FinishedMeanwhile as found:
        return _as_finished(shard, len(rows), found.marker, on_progress)
    return {
        "shard": shard,
        "images": len(rows),
        "counts": _counts(whole.values()),
        "seconds": sum(part.seconds for part in whole.values()),
        "files": [asdict(file) for number in range(len(parts)) for file in whole[number].info()],
    }


class _FinishedMeanwhile(Exception):
    """Another process has finished the shard: nothing of it is written any more."""

    def __init__(self, marker: Marker) -> None:
        self.marker = marker


def _as_finished(shard: int, images: int, marker: Marker, on_progress: OnShardProgress | None) -> dict[str, Any]:
    if on_progress is not None:
        on_progress(ShardProgress(shard, images, images, None))
    counts = {"pivots": 0, "rejects": 0, "temporary": 0} | marker["counts"]
    del counts["manifest"]
    files = list(marker["files"])
    return {"shard": shard, "images": images, "counts": counts, "seconds": marker["seconds"], "files": files}


def _invert(
    run: Run,
    shard: int,
    rows: Sequence[Row],
    jobs: Sequence[Job],
    whole: dict[int, Part],
    on_progress: OnShardProgress | None,
    retry_rejects: bool,
) -> None:
    """Do the jobs of a shard, whose parts are then `whole`. Raises _FinishedMeanwhile."""
    note, waiting = NoteBook(run.store.files, run.name, shard), sum(len(job.rows) for job in jobs)

    rejected = sum(part.rows["rejects"] for part in whole.values())

    def say(done: float, now: Progress | None = None, doing: str | None = None) -> None:
        note.running(done, rejected)
        if on_progress is not None:
            on_progress(ShardProgress(shard, done, len(rows), now, doing))

    done = len(rows) - waiting
    say(done, doing=PREPARING if jobs else None)
    with note, write_behind() as write:
        for job, found in read_ahead(jobs, lambda job: read_job(run, job)):
            start, finished, size = time.perf_counter(), done, len(job.rows)
            done += size
            if found is None:
                continue

            def report(now: Progress, finished: int = finished, size: int = size) -> None:
                say(finished + now.share * size, now)

            new, shots = inverted_rows(run, job.rows, found, job.tries, report)
            seconds = time.perf_counter() - start
            rejected += len(new["rejects"]) - job.rejects_before(len(found.targets) + len(found.rejects))

            def store(job: Job = job, new: Any = new, shots: Any = shots, seconds: float = seconds) -> None:
                if theirs := finished_by_another(run, shard, retry_rejects):
                    raise _FinishedMeanwhile(theirs)
                whole[job.number] = write_job(run, shard, job, new, shots, seconds)

            write(store)
            say(done)


def _counts(parts: Iterable[Part]) -> dict[str, Any]:
    counts, causes = {"pivots": 0, "rejects": 0, "temporary": 0, GONE: 0}, Counter[str]()
    for part in parts:
        counts["pivots"] += part.rows["pivots"]
        counts["rejects"] += part.rows["rejects"]
        counts["temporary"] += len(part.temporary)
        counts[GONE] += part.gone
        causes += part.causes
    return _with_causes(counts, causes)


def _with_causes(counts: Mapping[str, int], causes: Counter[str]) -> dict[str, Any]:
    """Without rejects there are no causes, and the marker is as ever."""
    return {**counts, BY_CAUSE: dict(causes)} if causes else dict(counts)


def measure_shard(
    run: Run,
    shard: int,
    files: Sequence[Mapping[str, Any]] = (),
    seconds: float = 0.0,
    counts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare old and new generator around every pivot of a shard, as read back from the store; then mark it done.

    `files`, `seconds` and `counts`: as `invert_shard` returned them, so that files need not be read again for what the
    marker says of them, and it tells the time of all the work. Raises StoreError where a table lacks a part, or what
    is there of one is not what `files` says: the next run does that part again, or takes it as it is now if it is
    whole. Where another process has finished the shard, it is left as it is.
    """
    rows = run.manifest.shard(shard)
    known = {file["path"]: FileInfo(**file) for file in files}
    of: dict[int, dict[str, FileInfo]] = {}
    for number in range(len(plan_parts(rows, run.config.batch, run.config.mode == "multi"))):
        paths = {table: run.store.part_path(table, run.name, shard, number) for table in INVERTED}
        of[number] = {table: known.get(path) or run.store.file_info(path) for table, path in paths.items()}
    images = {"shard": shard, "images": len(rows), "manifest": len(rows)}
    if all(run.store.part_path("locality", run.name, shard, number) in known for number in of):
        return {**images, **(counts or _counted(run, of.values()))}  # it was finished before it was inverted
    try:
        infos, took = _measure(run, shard, of, len(rows), (counts or {}).get("rejects", 0))
        found = {"manifest": len(rows), **(counts or _counted(run, of.values()))}
        check_unchanged(run, (file for file in infos if file.path.startswith(LAST_WRITTEN)))
    except WrittenByAnother:
        theirs = finished_by_another(run, shard)
        if theirs is None:
            raise
        return {**images, **theirs["counts"]}
    run.store.mark_done(run.name, shard, make_marker(found, seconds + took, run.digest, infos, run.created))
    return {**images, **found}


def _measure(
    run: Run, shard: int, of: Mapping[int, Mapping[str, FileInfo]], images: int, rejects: int
) -> tuple[list[FileInfo], float]:
    """The files of a shard's parts, with those of its locality, and the seconds that these took."""
    whole, infos, seconds = whole_locality(run, shard, of), list[FileInfo](), 0.0
    with NoteBook(run.store.files, run.name, shard) as note:
        for number, part in of.items():
            note.running(images, rejects)
            if number not in whole:
                start = time.perf_counter()
                points, took = _locality_rows(run, part), time.perf_counter() - start
                whole[number] = (write_locality(run, shard, number, points, took, part), took)
            info, took = whole[number]
            infos += [*part.values(), info]
            seconds += took
    return infos, seconds


def _counted(run: Run, parts: Iterable[Mapping[str, FileInfo]]) -> dict[str, Any]:
    counts, causes = {"pivots": 0, "rejects": 0, "temporary": 0, GONE: 0}, Counter[str]()
    for part in parts:
        rejects = read_known(run, part["rejects"])
        counts["pivots"] += len(read_known(run, part["pivots"]))
        counts["rejects"] += len(rejects)
        counts["temporary"] += pc.sum(pc.invert(rejects["permanent"])).as_py() or 0
        counts[GONE] += gone(rejects)
        causes += causes_of_rows(rejects.to_pylist())
    return _with_causes(counts, causes)


def _locality_rows(run: Run, part: Mapping[str, FileInfo]) -> list[dict[str, Any]]:
    if run.config.engine == "noop":
        return []
    engine = engine_for(run)
    pivots = read_known(run, part["pivots"]).to_pandas()
    deltas = dict(list(read_known(run, part["deltas"]).to_pandas().groupby("owner", sort=False)))

    def measured(pivot: Row, check: Callable[[], None]) -> list[dict[str, Any]]:
        check()
        owner = run.config.owner(pivot["image_id"], pivot["group"])
        if owner not in deltas:
            path = part["deltas"].path
            raise StoreError(
                f"part {path!r} has no delta of {owner!r}; remove it, and run it again to have it made anew"
            )
        stored = stored_from_rows(run, engine, pivot, tables.records(deltas[owner]))
        compared = partial(
            measure_locality,
            engine.generator,
            stored.generator,
            stored.ws,
            pivot["image_id"],
            run.config.measure,
            engine.lpips,
            run.config.seed,
        )
        return [asdict(point) for point in engine.drawn_at_once(compared)]

    with one_at_a_time(engine.device):
        return [row for rows in engine.in_parallel(measured, tables.records(pivots)) for row in rows]
