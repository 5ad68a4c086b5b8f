"""Reading everything again: is each file of a run still as it was written?

`Store.done` compares sizes, at every start of a run. This finds what keeps its size (a flipped bit, a file of another
run) and has its shard done again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pti_core.store import Store


@dataclass(frozen=True)
class Checked:
    """What was found in one shard; no problem if all is well."""

    shard: int
    problems: list[str]


def check_run(store: Store, run: str) -> Iterator[Checked]:
    """Compare every file of every finished shard with its checksum; a shard that does not hold counts as not done.

    The next run does again what is damaged or gone, and only that. Raises StoreError where the store cannot be read.
    """
    for shard, marker in sorted(store.markers(run).items()):
        problems = store.verify(marker)
        if problems and (now := store.marker(run, shard)) != marker:
            # Somebody does it again, or has: what was read may be of both.
            finished = now is not None and not now.get("damaged")
            marker, problems = now or marker, store.verify(now) if now and finished else []
        if problems:
            store.mark_damaged(run, shard, marker)
        yield Checked(shard, problems)
