"""The work on shards: invert, then measure. Only a root, a run's name and numbers go in, a few counts come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import task

from pti_core.machine.parallel import Stopped
from pti_core.runs import Run, load_run
from pti_core.shard import shards
from pti_core.shard.meanwhile import WrittenByAnother
from pti_core.storage.notes import NoteBook
from tasks.credentials import use_credentials
from tasks.placement import use_own_share
from tasks.progress import reporter
from tasks.tries import RETRY, Item, each


@task(name="invert-shards", task_run_name="invert-{numbers[0]}", **RETRY)
def invert_shards(
    root: str,
    run: str,
    numbers: list[int],
    retry_rejects: bool = False,
    version: str | None = None,
    credentials: str | None = None,
) -> list[dict[str, Any]]:
    """Find the pivots of the images and tune a generator for each; write pivots, deltas, metrics, rejects."""
    use_credentials(credentials)
    use_own_share()
    opened, report = load_run(root, run, version), reporter()

    def invert(number: int) -> dict[str, Any]:
        return _noted(opened, number, lambda: shards.invert_shard(opened, number, report, retry_rejects))

    return each(numbers, invert)


@task(name="measure-shards", task_run_name="measure-{inverted[0][shard]}", **RETRY)
def measure_shards(
    root: str,
    run: str,
    inverted: list[dict[str, Any]],
    version: str | None = None,
    credentials: str | None = None,
) -> list[dict[str, Any]]:
    """Compare old and new generator around the pivots, write the locality table, mark the shards done."""
    use_credentials(credentials)
    use_own_share()
    opened = load_run(root, run, version)
    of = {one["shard"]: one for one in inverted}

    def measured(one: dict[str, Any]) -> dict[str, Any]:
        return shards.measure_shard(opened, one["shard"], one["files"], one["seconds"], one["counts"])

    def measure_whole(number: int) -> dict[str, Any]:
        try:
            return measured(of[number])
        except WrittenByAnother:  # the parts as they are now: whoever wrote them, most are whole
            return measured(shards.invert_shard(opened, number))

    def measure(number: int) -> dict[str, Any]:
        return _noted(opened, number, lambda: measure_whole(number))

    return each(list(of), measure)


def _noted(run: Run, number: int, work: Callable[[], Item]) -> Item:
    """Do the work on a shard; leave a note where it fails, for `pti status`."""
    try:
        return work()
    except Stopped:  # it has not failed
        raise
    except Exception as error:
        NoteBook(run.store.files, run.name, number).failed(str(error) or type(error).__name__)
        raise
