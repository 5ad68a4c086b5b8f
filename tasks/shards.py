"""The work on shards: invert, then measure. Only a root, a run's name and numbers go in, a few counts come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun

from pti_core import shards
from pti_core.device import UnfitMachine, best_device, check_alive
from pti_core.files import OutputRefused
from pti_core.notes import NoteBook
from pti_core.parallel import Stopped
from pti_core.runs import Run, load_run
from tasks.credentials import use_credentials
from tasks.placement import use_own_share
from tasks.progress import reporter

RETRY: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [5.0, 30.0]}
"""A shard that is tried again continues with its first missing part."""

Item = TypeVar("Item")


def worth_another_try(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a task that failed may succeed next time: not where it was stopped or its output is full, say."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, Stopped | OutputRefused | UnfitMachine | ValueError)


@task(name="invert-shards", task_run_name="invert-{numbers[0]}", retry_condition_fn=worth_another_try, **RETRY)
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
    return [
        _noted(opened, number, lambda number: shards.invert_shard(opened, number, report, retry_rejects))
        for number in numbers
    ]


@task(
    name="measure-shards", task_run_name="measure-{inverted[0][shard]}", retry_condition_fn=worth_another_try, **RETRY
)
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

    def measure(number: int) -> dict[str, Any]:
        one = of[number]
        return shards.measure_shard(opened, number, one["files"], one["seconds"], one["counts"])

    return [_noted(opened, number, measure) for number in of]


def _noted(run: Run, number: int, work: Callable[[int], Item]) -> Item:
    """Do the work on a shard; leave a note where it fails, for `pti status`."""
    try:
        return work(number)
    except Stopped:  # it has not failed
        raise
    except Exception as error:
        NoteBook(run.store.files, run.name, number).failed(str(error) or type(error).__name__)
        if isinstance(error, RuntimeError) and not isinstance(error, UnfitMachine):
            check_alive(best_device())
        raise
