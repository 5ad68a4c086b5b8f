"""What is done, running, failed and left, by markers and notes alone: no generator is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.addresses import redact
from pti_core.causes import causes_of
from pti_core.storage.layout import marker_path
from pti_core.storage.lookup import rows_of
from pti_core.storage.markers import parse_marker, temporary_rejects
from pti_core.storage.notes import Note, here, read_notes
from pti_core.storage.store import Store, StoreError
from pti_core.words import counted, duration

if TYPE_CHECKING:
    from pti_core.runs import Run  # it loads torch, which a status does without

State = Literal["done", "running", "unfinished"]

NAMED: Final = 3  # image ids in a message
COMPARED: Final = 50_000  # fewer image ids are compared with an unknown one; of a million that takes minutes


@dataclass(frozen=True)
class RunStatus:
    """The state of one run."""

    run: str
    preset: str
    dataset: str
    images: int
    shards: int
    shards_done: int
    images_done: int  # of shards that are done, rejects included; and of those in work, as far as is known
    rejected: int  # likewise
    temporary: int  # of these, what another try may help
    running: list[Note]  # shards that somebody works on now
    failed: list[Note]  # shards whose last try failed
    seconds_left: float | None  # at the speed so far, with the workers of now; None where nothing is known
    causes: dict[str, int] = field(default_factory=dict)  # of rejects of shards that are done, the most frequent first

    @property
    def state(self) -> State:
        """`done`; `running`; or `unfinished`: the same command finishes it."""
        if self.shards_done == self.shards:
            return "done"
        return "running" if self.running else "unfinished"


def run_status(store: Store, run: str) -> RunStatus:
    """Count a run's markers against its manifest. Raises StoreError where there is no such run."""
    config, manifest, markers = store.read_config(run), store.manifest(run), store.markers(run)
    left = [shard for shard in range(manifest.shards) if shard not in markers]
    notes = notes_of(store, run, left)
    running = [note for note in notes if note.running]
    counts = [marker["counts"] for marker in markers.values()]
    finished = sum(count["manifest"] for count in counts)
    done = finished + sum(note.images for note in running)
    seconds = sum(marker["seconds"] for marker in markers.values())
    each = seconds / finished if finished else None
    missing = manifest.rows - done
    return RunStatus(
        run=run,
        preset=config["config"]["preset"],
        dataset=redact(config["dataset"]),  # runs of older versions hold it as it was given
        images=manifest.rows,
        shards=manifest.shards,
        shards_done=len(markers),
        images_done=int(done),
        rejected=sum(count["rejects"] for count in counts) + sum(note.rejects for note in running),
        temporary=sum(map(temporary_rejects, markers.values())),
        running=running,
        failed=[note for note in notes if note.state == "failed"],
        seconds_left=0.0 if not left else each * missing / max(1, len(running)) if each and missing > 0 else None,
        causes=causes_of(counts),
    )


def notes_of(store: Store, run: str, left: Sequence[int]) -> list[Note]:
    """The notes of these shards, as far as they are not done."""
    return _of_undone(store, run, read_notes(store.files, run, left) if left else [])


def _of_undone(store: Store, run: str, notes: Sequence[Note]) -> list[Note]:
    markers = store.files.get_all([marker_path(run, note.shard) for note in notes])
    before = {path: parse_marker(data) for path, data in markers.items()}

    def counts(note: Note) -> bool:
        marker = before[marker_path(run, note.shard)]
        if marker is None:
            return True
        # One of before a shard was done, and then found damaged, says nothing of its next try.
        return bool(marker.get("damaged")) and note.time > marker.get("noted", 0.0)

    return [note for note in notes if counts(note)]


def others_at_work(store: Store, run: str, left: Sequence[int]) -> str | None:
    """A sentence where other processes seem to work on shards that are to be done; None where none does, or none knows.

    A note decides nothing, so neither does one that cannot be read.
    """
    try:
        theirs = [note for note in read_notes(store.files, run, left) if note.running and note.where != here()]
        theirs = _of_undone(store, run, theirs)
    except StoreError:
        return None
    if not theirs:
        return None
    newest = min(theirs, key=lambda note: note.age)
    places = len({note.where for note in theirs})
    where = newest.where + (f" and {counted(places - 1, 'other place')}" if places > 1 else "")
    shards = f"shard {newest.shard} is" if len(theirs) == 1 else f"{len(theirs)} shards are"
    return (
        f"run {run}: {shards} at work on {where}, last heard of {duration(newest.age)} ago; where that goes on, two do "
        "the same work, so end one of them"
    )


def nothing_done(run: Run) -> str:
    """Why a run has no finished shard, and what to do: a file of its tables is missing, or it was never finished."""
    for marker in run.store.markers(run.name).values():
        for path in marker["files"].paths():
            if not run.store.exists(path):
                table = path.partition("/")[0]
                return (
                    f"run {run.name} has no {table}: {path!r} is missing, without which there is no tuned "
                    "generator; bring it back, or `pti run` again makes it once more"
                )
    return f"run {run.name} has no finished shard yet; `pti run` again finishes it{or_another(run.store, run.name)}"


def or_another(store: Store, run: str) -> str:
    """The end of a sentence about a run that has nothing: another one that has, for who meant that."""
    there = next((name for name in store.runs() if name != run and store.markers(name)), None)
    return f", or choose another run with --run {there}" if there else ""


def no_pivot(store: Store, runs: Sequence[str], image_id: str) -> str:
    """Why an image has no pivot in these runs, in words. Raises StoreError where they cannot be read."""
    where = f"run {runs[0]}" if len(runs) == 1 else f"the runs {', '.join(runs)}"
    for run in runs:
        rejects = rows_of(store, "rejects", run, [image_id])
        if len(rejects):
            return f"image {image_id!r} was rejected by run {run} ({rejects['message'].iloc[0]})"
        if store.manifest(run).shards_of([image_id]):
            return f"image {image_id!r} is not done yet; `pti run` again finishes run {run}"
    listed = pc.unique(pa.chunked_array([c for run in runs for c in _names(store, run).chunks], pa.string()))
    like = difflib.get_close_matches(image_id, sorted(listed.to_pylist()), NAMED) if len(listed) < COMPARED else []
    like = like or listed.take(pc.bottom_k_unstable(listed, NAMED)).to_pylist()
    return f"{where} has no image {image_id!r}; it has {len(listed)}, for example {', '.join(map(repr, like))}"


def _names(store: Store, run: str) -> pa.ChunkedArray:
    """The images of a run that have a pivot, or all of its inputs where none has one."""
    names = store.manifest(run).table(["image_id", "shard"])
    counts = {shard: marker["counts"] for shard, marker in store.markers(run).items() if marker["counts"]["pivots"]}
    done = names.filter(pc.is_in(names["shard"], pa.array(counts, names["shard"].type)))
    if with_rejects := [shard for shard, count in counts.items() if count["rejects"]]:
        rejects = store.read_arrow("rejects", run, ["image_id"], [("shard", "in", with_rejects)])
        done = done.filter(pc.invert(pc.is_in(done["image_id"], rejects["image_id"].combine_chunks())))
    return (done if len(done) else names)["image_id"]
