"""What flows over the shards of a run have in common: a window of tasks, progress, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from prefect import Task

from flows.runners import Runner, in_window
from flows.stopping import end_when_told
from tasks.progress import run_progress


class ShardsFailed(RuntimeError):
    """Some shards could not be done; the others are in the store."""


def do_shards(
    steps: Sequence[Task[..., Any]],
    plan: Mapping[str, Any],
    shards_per_task: int,
    parameters: Callable[[int, Any], dict[str, Any]],
    runner: AbstractContextManager[Runner],
) -> None:
    """Take all pending shards through the steps, `shards_per_task` at a time; `parameters` as in `in_window`.

    `plan` has `pending` (numbers of shards), `images` (of all) and `done` (of these, before). The last step returns
    `shard` and `images` of each shard. Raises ShardsFailed once all others are done.
    """
    pending = plan["pending"]
    chunks = [pending[i : i + shards_per_task] for i in range(0, len(pending), shards_per_task)]
    failed: dict[int, str] = {}  # no exceptions, which would hold their shards' images
    with (
        runner as pool,
        run_progress(plan["images"], plan["done"]) as progress,
        end_when_told(),  # innermost: what is around it waits for its tasks
    ):
        for chunk, result, error in in_window(pool, steps, chunks, parameters):
            if error is not None:
                failed |= dict.fromkeys(chunk, str(error) or type(error).__name__)
                for shard in chunk:
                    progress.dropped(shard)
            else:
                for counts in result:
                    progress.finished(counts["shard"], counts["images"])
    if failed:
        first = min(failed)
        raise ShardsFailed(
            f"{len(failed)} of {len(pending)} shards failed and are left for the next run, "
            f"first shard {first}: {failed[first]}"
        )
