"""One shard: invert its images part by part, measure locality, and mark it done.

A part is `config.batch` images, or a whole group in mode "multi"; the engine may take fewer at once. Every file name is
a function of run, shard and part; a part that is there and whole (see `parts`) is not done again, apart from its images
that another try may help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import pandas as pd

from pti_core import tables
from pti_core.files import DamagedFile
from pti_core.inputs import Inputs, check_not_all_unreadable, read_inputs
from pti_core.measure import measure_locality
from pti_core.memory import halved
from pti_core.notes import NoteBook
from pti_core.originals import check_originals
from pti_core.overlap import read_ahead, write_behind
from pti_core.parallel import one_at_a_time
from pti_core.parts import INVERTED, Part, part_table, whole_locality, whole_parts, write_locality, write_part
from pti_core.progress import Progress
from pti_core.rows import added, inverted_rows, rejected_ids
from pti_core.runs import Run, any_engine_for, engine_for, stored_from_rows
from pti_core.shots import write_shots
from pti_core.store import FileInfo, StoreError, make_marker
from pti_core.tables import Row

PREPARING: Final = "preparing the generator"
"""What is done before the first step of the first image: at 1024 pixels it takes a minute or two on a CPU."""


@dataclass(frozen=True)
class ShardProgress:
    """How far a shard is; `now` is what the engine is doing, None between parts; `doing` is any other work in words."""

    shard: int
    done: float  # images, with the share of those in work
    total: int
    now: Progress | None
    doing: str | None = None
    unit: str = "image"  # or `PERCENT`, of work on no shard

    @property
    def words(self) -> str:
        """What is being done, for a person; empty where it is not known."""
        return self.doing or (f"{self.now.stage} LPIPS {self.now.lpips:.3f}" if self.now else "")


OnShardProgress = Callable[[ShardProgress], None]


def plan_parts(rows: Sequence[Row], batch: int, multi: bool) -> list[list[Row]]:
    """Split a shard's manifest rows into parts: `batch` rows each, or whole groups in mode "multi"."""
    if not multi:
        return [list(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return list(groups.values())


@dataclass(frozen=True)
class _Job:
    """One part to do: all of its images, or of a part that was done `before` only those that another try may help."""

    number: int
    rows: Sequence[Row]
    before: Part | None

    @property
    def tries(self) -> Mapping[str, int]:
        """How often an image was tried before, by image_id."""
        return self.before.temporary if self.before else {}

    def rejects_before(self, tried: int) -> int:
        """How many rejects of before are replaced where so many of its images are tried."""
        if self.before is None:
            return 0
        return len(self.before.temporary) if tried < len(self.rows) else self.before.rows["rejects"]


def invert_shard(
    run: Run, shard: int, on_progress: OnShardProgress | None = None, retry_rejects: bool = False
) -> dict[str, Any]:
    """Invert a shard's images; write pivots, deltas, rejects and metrics.

    Parts that are there and whole stay as they are, but with `retry_rejects` their images that failed for a passing
    reason are tried again. While one part is inverted the next is read and the last is written.

    Returns the shard, its images, the counts of its rows, the seconds that its parts took (in this call or an earlier
    one) and all their files.
    Raises InputsUnreadable where no input can be read, and where this machine cannot open or unpack one.
    """
    rows = run.manifest.shard(shard)
    parts = plan_parts(rows, run.config.batch, run.config.mode == "multi")
    whole = whole_parts(run, shard, [[row["image_id"] for row in part] for part in parts])
    jobs = [
        _Job(number, part, whole.get(number))
        for number, part in enumerate(parts)
        if number not in whole or (retry_rejects and whole[number].temporary)
    ]
    if jobs:
        check_originals(run, shard, [job.number for job in jobs if job.before is None])
        run.store.unmark(run.name, shard, {job.number for job in jobs})
    note, waiting = NoteBook(run.store.files, run.name, shard), sum(len(job.rows) for job in jobs)

    rejected = sum(part.rows["rejects"] for part in whole.values())

    def say(done: float, now: Progress | None = None, doing: str | None = None) -> None:
        note.running(done, rejected)
        if on_progress is not None:
            on_progress(ShardProgress(shard, done, len(rows), now, doing))

    done = len(rows) - waiting
    say(done, doing=PREPARING if jobs else None)
    with note, write_behind() as write:
        for job, found in read_ahead(jobs, lambda job: _read(run, job)):
            start, finished, size = time.perf_counter(), done, len(job.rows)
            done += size
            if found is None:
                continue

            def report(now: Progress, finished: int = finished, size: int = size) -> None:
                say(finished + now.share * size, now)

            new, shots = inverted_rows(run, job.rows, found, job.tries, report)
            seconds = time.perf_counter() - start
            rejected += len(new["rejects"]) - job.rejects_before(len(found.targets) + len(found.rejects))

            def store(job: _Job = job, new: Any = new, shots: Any = shots, seconds: float = seconds) -> None:
                whole[job.number] = _write(run, shard, job, new, shots, seconds)

            write(store)
            say(done)
    return {
        "shard": shard,
        "images": len(rows),
        "counts": _counts(whole.values()),
        "seconds": sum(part.seconds for part in whole.values()),
        "files": [asdict(file) for number in range(len(parts)) for file in whole[number].info()],
    }


def _counts(parts: Iterable[Part]) -> dict[str, int]:
    counts = {"pivots": 0, "rejects": 0, "temporary": 0}
    for part in parts:
        counts["pivots"] += part.rows["pivots"]
        counts["rejects"] += part.rows["rejects"]
        counts["temporary"] += len(part.temporary)
    return counts


def _read(run: Run, job: _Job) -> Inputs | None:
    """The inputs of a part; None where another try would lose what is there."""
    resolution = any_engine_for(run).generator.img_resolution
    found = read_inputs(
        run, [r for r in job.rows if not job.tries or r["image_id"] in job.tries], resolution, job.tries
    )
    if job.before is None:
        check_not_all_unreadable(run, job.rows, found)
    elif found.targets and run.config.mode == "multi":  # a group shares its generator: it is done again as a whole
        found = read_inputs(run, job.rows, resolution, job.tries)
        if {row["image_id"] for row in found.rejects} - rejected_ids(run, job.before):
            return None  # now another one cannot be read
        before = run.store.read_table(job.before.files["pivots"].path)[1].select(["image_id", "sha256"]).to_pylist()
        if any(found.sha256.get(row["image_id"]) not in (None, row["sha256"]) for row in before):
            return None  # or has changed since: what was found for it stays
    return found


def _write(
    run: Run,
    shard: int,
    job: _Job,
    new: Mapping[str, list[dict[str, Any]]],
    shots: Mapping[str, bytes],
    seconds: float,
) -> Part:
    contents = {table: part_table(run, table, rows) for table, rows in new.items()}
    some = len(new["pivots"]) + len(new["rejects"]) < len(job.rows)  # else all of it was done again
    if job.before is not None:
        seconds += job.before.seconds
        if some:
            contents = added(run, job.before, contents)
    if shots:
        write_shots(run, shard, job.number, shots, more=some)
    return write_part(run, shard, job.number, contents, seconds, job.before)


def measure_shard(
    run: Run,
    shard: int,
    files: Sequence[Mapping[str, Any]] = (),
    seconds: float = 0.0,
    counts: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Compare old and new generator around every pivot of a shard, as read back from the store; then mark it done.

    `files`, `seconds` and `counts`: as `invert_shard` returned them, so that files need not be read again for what the
    marker says of them, and it tells the time of all the work. Raises StoreError where a table lacks a part, or what
    is read of one is not what `files` says: the next run does that part again, or takes it as it is now if it is whole.
    """
    rows, infos = run.manifest.shard(shard), []
    known = {file["path"]: FileInfo(**file) for file in files}
    of: dict[int, dict[str, FileInfo]] = {}
    for number in range(len(plan_parts(rows, run.config.batch, run.config.mode == "multi"))):
        paths = {table: run.store.part_path(table, run.name, shard, number) for table in INVERTED}
        of[number] = {table: known.get(path) or run.store.file_info(path) for table, path in paths.items()}
    whole = whole_locality(run, shard, of)
    with NoteBook(run.store.files, run.name, shard) as note:
        for number, part in of.items():
            note.running(len(rows), (counts or {}).get("rejects", 0))
            if number not in whole:
                start = time.perf_counter()
                points, took = _locality_rows(run, part), time.perf_counter() - start
                whole[number] = (write_locality(run, shard, number, points, took, part), took)
            info, took = whole[number]
            infos += [*part.values(), info]
            seconds += took
    found = {"manifest": len(rows), **(counts or _counted(run, of.values()))}
    run.store.mark_done(run.name, shard, make_marker(found, seconds, run.digest, infos, run.created))
    return {"shard": shard, "images": len(rows), **found}


def _counted(run: Run, parts: Iterable[Mapping[str, FileInfo]]) -> dict[str, int]:
    counts = {"pivots": 0, "rejects": 0, "temporary": 0}
    for part in parts:
        rejects = _read_known(run, part["rejects"])
        counts["pivots"] += len(_read_known(run, part["pivots"]))
        counts["rejects"] += len(rejects)
        counts["temporary"] += int((~rejects["permanent"].astype(bool)).sum())
    return counts


def _read_known(run: Run, file: FileInfo) -> pd.DataFrame:
    """A file of a part. StoreError where it is another by now, which the marker would vouch for unseen."""
    with suppress(DamagedFile):
        found, content = run.store.read_table(file.path)
        if found == file:
            return content.to_pandas()
    raise StoreError(
        f"part {file.path!r} is not the one that was inverted: it was damaged, or another process does the same shard "
        "and has written it; end that one, or wait for its end, and run it again"
    )


def _locality_rows(run: Run, part: Mapping[str, FileInfo]) -> list[dict[str, Any]]:
    if run.config.engine == "noop":
        return []
    engine = engine_for(run)
    pivots = _read_known(run, part["pivots"])
    deltas = dict(list(_read_known(run, part["deltas"]).groupby("owner", sort=False)))

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
        return [asdict(point) for point in halved(compared, engine.at_once, engine.device)]

    with one_at_a_time(engine.device):
        return [row for rows in engine.in_parallel(measured, tables.records(pivots)) for row in rows]
