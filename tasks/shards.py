"""The work on one shard: invert, then measure. Only a root, a run's name and a number go in, a few counts come out."""

from __future__ import annotations

from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun

from pti_core import shards
from pti_core.parallel import Stopped
from pti_core.runs import load_run
from tasks.progress import reporter

RETRY: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [5.0, 30.0]}
"""A shard that is tried again continues with its first missing part."""


def worth_another_try(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a task that failed may succeed next time: not where it was stopped, nor for a ValueError."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, Stopped | ValueError)


@task(name="invert-shard", task_run_name="invert-{shard}", retry_condition_fn=worth_another_try, **RETRY)
def invert_shard(root: str, run: str, shard: int) -> dict[str, Any]:
    """Find the pivots of a shard's images and tune a generator for each; write pivots, deltas, metrics, rejects."""
    return shards.invert_shard(load_run(root, run), shard, reporter())


@task(name="measure-shard", task_run_name="measure-{inverted[shard]}", retry_condition_fn=worth_another_try, **RETRY)
def measure_shard(root: str, run: str, inverted: dict[str, Any]) -> dict[str, Any]:
    """Compare old and new generator around a shard's pivots, write the locality table, mark the shard done."""
    return shards.measure_shard(load_run(root, run), inverted["shard"], inverted["files"], inverted["seconds"])
