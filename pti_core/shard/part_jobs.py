"""One part of a shard to do: which images, what is read of them, what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pti_core.runs import Run, any_engine_for
from pti_core.shard.inputs import Inputs, check_not_all_unreadable, read_inputs, seems_away
from pti_core.shard.meanwhile import check_unchanged
from pti_core.shard.parts import Part, part_table, write_part
from pti_core.shard.rows import added, rejected_ids
from pti_core.shard.shots import write_shots
from pti_core.tables import Row


def plan_parts(rows: Sequence[Row], batch: int, multi: bool) -> list[list[Row]]:
    """Split a shard's manifest rows into parts: `batch` rows each, or whole groups in mode "multi"."""
    if not multi:
        return [list(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return list(groups.values())


@dataclass(frozen=True)
class Job:
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


def read_job(run: Run, job: Job) -> Inputs | None:
    """The inputs of a part; None where another try would lose what is there, or the data set seems to be away."""
    resolution = any_engine_for(run).generator.img_resolution
    tried = [row for row in job.rows if not job.tries or row["image_id"] in job.tries]
    found = read_inputs(run, tried, resolution, job.tries)
    if job.before is None:
        check_not_all_unreadable(run, job.rows, found)
    elif seems_away(run, tried, found):  # no try of these images then
        return None
    elif found.targets and run.config.mode == "multi":  # a group shares its generator: it is done again as a whole
        rejects = run.store.read_table(job.before.files["rejects"].path)[1].select(["image_id", "attempts"]).to_pylist()
        found = read_inputs(run, job.rows, resolution, {row["image_id"]: row["attempts"] for row in rejects})
        if {row["image_id"] for row in found.rejects} - rejected_ids(run, job.before):
            return None  # now another one cannot be read
        before = run.store.read_table(job.before.files["pivots"].path)[1].select(["image_id", "sha256"]).to_pylist()
        if any(found.sha256.get(row["image_id"]) not in (None, row["sha256"]) for row in before):
            return None  # or has changed since: what was found for it stays
    return found


def write_job(
    run: Run,
    shard: int,
    job: Job,
    new: Mapping[str, list[dict[str, Any]]],
    shots: Mapping[str, bytes],
    seconds: float,
) -> Part:
    """Write what was found for a part, or for some of its images (`new` rows by table), and its pictures (`shots`).

    WrittenByAnother where another process has written the part meanwhile: its rows would be added to, or sealed unseen.
    """
    if job.before is not None:
        check_unchanged(run, job.before.info())
    contents = {table: part_table(run, table, rows) for table, rows in new.items()}
    some = len(new["pivots"]) + len(new["rejects"]) < len(job.rows)  # else all of it was done again
    if job.before is not None:
        seconds += job.before.seconds
        if some:
            contents = added(run, job.before, contents)
        elif not (new["pivots"] or job.before.rows["pivots"]):  # then these two are as empty as before
            contents = {table: rows for table, rows in contents.items() if table not in ("deltas", "pivots")}
    if shots:
        write_shots(run, shard, job.number, shots, more=some)
    return write_part(run, shard, job.number, contents, seconds, job.before)
