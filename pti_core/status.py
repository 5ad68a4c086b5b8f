"""What is done, running, failed and left, by markers and notes alone: no generator is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pti_core.addresses import redact
from pti_core.markers import temporary_rejects
from pti_core.notes import Note, read_notes
from pti_core.store import Store

if TYPE_CHECKING:
    from pti_core.runs import Run  # it loads torch, which a status does without

State = Literal["done", "running", "unfinished"]


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
    rejected: int
    temporary: int  # of these, what another try may help
    running: list[Note]  # shards that somebody works on now
    failed: list[Note]  # shards whose last try failed
    seconds_left: float | None  # at the speed so far, with the workers of now; None where nothing is known

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
    notes = read_notes(store.files, run, left) if left else []
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
        rejected=sum(count["rejects"] for count in counts),
        temporary=sum(map(temporary_rejects, markers.values())),
        running=running,
        failed=[note for note in notes if note.state == "failed"],
        seconds_left=0.0 if not left else each * missing / max(1, len(running)) if each is not None else None,
    )


def nothing_done(run: Run) -> str:
    """Why a run has no finished shard, and what to do: a file of its tables is missing, or it was never finished."""
    for marker in run.store.markers(run.name).values():
        for file in marker["files"]:
            if not run.store.exists(file["path"]):
                table = file["path"].partition("/")[0]
                return (
                    f"run {run.name} has no {table}: {file['path']!r} is missing, without which there is no tuned "
                    "generator; bring it back, or `pti run` again makes it once more"
                )
    return f"run {run.name} has no finished shard yet; `pti run` again finishes it"
