"""What is done and what is left, from markers alone: no generator is loaded, so it answers in a moment."""

from __future__ import annotations

from dataclasses import dataclass

from pti_core.addresses import redact
from pti_core.store import Store


@dataclass(frozen=True)
class RunStatus:
    """The state of one run."""

    run: str
    preset: str
    dataset: str
    images: int
    shards: int
    shards_done: int
    images_done: int  # of shards that are done, rejects included
    rejected: int
    seconds_left: float | None  # at the speed so far, with one worker; None where nothing is known

    @property
    def state(self) -> str:
        """`done`, or `unfinished`: the same command finishes it."""
        return "done" if self.shards_done == self.shards else "unfinished"


def run_status(store: Store, run: str) -> RunStatus:
    """Count a run's markers against its manifest. Raises StoreError where there is no such run."""
    config, manifest, markers = store.read_config(run), store.read_manifest(run), store.done(run)
    shards = len(set(manifest["shard"].to_pylist()))
    done = sum(marker["counts"]["manifest"] for marker in markers.values())
    seconds = sum(marker["seconds"] for marker in markers.values())
    left = manifest.num_rows - done
    return RunStatus(
        run=run,
        preset=config["config"]["preset"],
        dataset=redact(config["dataset"]),  # runs of older versions hold it as it was given
        images=manifest.num_rows,
        shards=shards,
        shards_done=len(markers),
        images_done=done,
        rejected=sum(marker["counts"]["rejects"] for marker in markers.values()),
        seconds_left=seconds / done * left if done else (0.0 if not left else None),
    )
