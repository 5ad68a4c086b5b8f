"""What flows over the shards of a run have in common: a window of tasks, progress, and what failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from prefect import Task

from flows.rejects import Rejects
from flows.runners import Runner, in_window
from flows.stopping import end_when_told, give_up
from pti_core.machine.device import UnfitMachine
from pti_core.storage.files import OutputRefused
from pti_core.words import counted
from tasks.progress import run_progress
from tasks.tries import ShardsLeft

AWAY: Final = 3
"""Tasks in a row whose inputs cannot be read, each after its own retries, or whose machine can do nothing (one of many
may be enough: what fails at once gets one task after another): then the data set is away, or a machine fit for none.
Before it is taken for away the newest shard is tried, since old files may be out of reach alone."""


class ShardsFailed(RuntimeError):
    """Some shards could not be done; the others are in the store."""


def do_shards(
    steps: Sequence[Task[..., Any]],
    plan: Mapping[str, Any],
    shards_per_task: int,
    parameters: Callable[[int, Any], dict[str, Any]],
    runner: AbstractContextManager[Runner],
    max_rejects: float | None = None,
) -> None:
    """Take all pending shards through the steps, `shards_per_task` at a time; `parameters` as in `in_window`.

    `plan` has `pending` (numbers of shards), `images` (of all), `done` (of these, before) and maybe `fresh` (shards
    that were not done before). The last step returns
    `shard` and `images` of each shard. Raises ShardsFailed once all others are done; at once where the output takes
    nothing more or the data set is away (see `AWAY`), since all others would only be computed for nothing; and where
    more than the share `max_rejects` of the images is rejected, with which the last step returns the counts of rejects
    as well.
    """
    pending = plan["pending"]
    chunks = [pending[i : i + shards_per_task] for i in range(0, len(pending), shards_per_task)]
    failed: dict[int, str] = {}  # no exceptions, which would hold their shards' images
    waiting, newest = deque(chunks), None  # the chunk that is tried before the data set is taken for away
    finished, away, hopeless = 0, 0, ""
    rejects = Rejects(max_rejects, plan.get("fresh", pending))
    with (
        runner as pool,
        run_progress(plan["images"], plan["done"]) as progress,
        end_when_told(),  # innermost: what is around it waits for its tasks
    ):
        outcomes = in_window(pool, steps, _taken(waiting), parameters)
        for chunk, result, error in outcomes:
            for counts in result or ():
                finished += 1
                progress.finished(counts["shard"], counts["images"])
                hopeless = hopeless or rejects.too_many(counts) or ""
            if hopeless:
                break
            if error is None:
                away, newest = 0, None
                continue
            left = _left(chunk, error)
            for shard, why in left.items():
                failed.setdefault(shard, why)  # one that failed at a step before is still in the chunk
                progress.dropped(shard)
            unread = isinstance(error, ShardsLeft) and error.away
            away = away + 1 if unread or isinstance(error, UnfitMachine) else 0
            if not away:
                newest = None
            elif away >= AWAY and unread and newest is None:
                newest = _newest_next(waiting, chunks)
            if isinstance(error, OutputRefused) or (away >= AWAY and (chunk is newest or not unread)):
                first = min(left)
                hopeless = f"shard {first}: {left[first]}"
                break
        if hopeless:
            outcomes.close()
            give_up()
    if hopeless:
        raise ShardsFailed(f"ended with {len(pending) - finished} of {counted(len(pending), 'shard')} left; {hopeless}")
    if failed:
        first = min(failed)
        raise ShardsFailed(
            f"{len(failed)} of {counted(len(pending), 'shard')} failed and are left, "
            f"first shard {first}: {failed[first]}"
        )


def _taken(waiting: deque[list[int]]) -> Iterator[list[int]]:
    """What is first then, one after another: the order of those that wait may change meanwhile."""
    while waiting:
        yield waiting.popleft()


def _newest_next(waiting: deque[list[int]], chunks: Sequence[list[int]]) -> list[int]:
    """The last of those that wait, which is the next from now on; where none waits, the last of all."""
    waiting.rotate(1)
    return waiting[0] if waiting else chunks[-1]


def _left(chunk: Sequence[int], error: Exception) -> dict[int, str]:
    """Why shards are left, by shard: those that a task names, or all of its chunk."""
    return error.failed if isinstance(error, ShardsLeft) else dict.fromkeys(chunk, str(error) or type(error).__name__)
