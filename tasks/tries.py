"""What tasks have in common: nothing is kept of them, each shard fails alone, and what may pass is tried again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from uuid import UUID

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from pti_core.machine.device import UnfitMachine, best_device, check_alive
from pti_core.machine.parallel import Stopped
from pti_core.shard.inputs import InputsUnreadable
from pti_core.storage.files import OutputRefused
from tasks.plain_log import in_sentences, warnings_to_the_run

in_sentences()  # every process that runs tasks imports this module
warnings_to_the_run()

Item = TypeVar("Item")

UNKEPT: Final[dict[str, Any]] = {"persist_result": False, "cache_policy": NO_CACHE}
"""Of every task, however Prefect is set: what is done only the store knows. A result that Prefect kept would be taken
when the flow run is tried again, though files may be lost or the data set another by then."""

ENDING: Final = (Stopped, OutputRefused, UnfitMachine)
"""After these no other shard can be done in this process, and no other try helps."""


class ShardsLeft(RuntimeError):
    """Some shards of a task could not be done. It can be pickled, and holds no exceptions: their frames hold images."""

    def __init__(self, done: Sequence[Any], failed: dict[int, str], passing: bool, away: bool) -> None:
        """`done`: what came of the others; `failed`: why, by shard.

        `passing`: another try may help some of them; `away`: the data set cannot be read, and none is done.
        """
        self.done, self.failed, self.passing, self.away = done, failed, passing, away
        first, total = min(failed), len(done) + len(failed)
        which = f"{len(failed)} of {total} shards failed, first " if total > 1 else ""
        super().__init__(f"{which}shard {first}: {failed[first]}")

    def __reduce__(self) -> tuple[Any, ...]:
        """It comes from the processes of a cluster."""
        return type(self), (self.done, self.failed, self.passing, self.away)


def worth_another_try(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a task that failed may succeed next time: not where it was stopped or its output is full, say."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, ShardsLeft):
        return error.passing
    return not isinstance(error, (*ENDING, ValueError))


RETRY: Final[dict[str, Any]] = {
    **UNKEPT,
    "retries": 2,
    "retry_delay_seconds": [5.0, 30.0],
    "retry_condition_fn": worth_another_try,
}
"""Of tasks that do shards. A shard that is tried again continues with its first missing part."""


@dataclass
class _Tried:
    """What the tries of a task so far came to, by shard."""

    task_run: UUID | None = None
    done: dict[int, Any] = field(default_factory=dict)
    hopeless: dict[int, str] = field(default_factory=dict)  # why no other try helps


_thread = threading.local()  # Prefect's tries of a task follow each other in one thread, which does nothing else


def each(numbers: Sequence[int], work: Callable[[int], Item]) -> list[Item]:
    """`work(number)` of each shard, in order; one that fails does not keep the others from being done.

    In another try of the same task only those are done again that it may help. Raises ShardsLeft once all others are
    done; any of `ENDING` at once.
    """
    tried = _tried_before()
    left = [number for number in numbers if number not in tried.done and number not in tried.hopeless]
    failed: dict[int, str] = {}
    away = False
    for i, number in enumerate(left):
        try:
            tried.done[number] = work(number)
        except ENDING:
            raise
        except InputsUnreadable as error:  # nor can those of any other shard, or not here
            failed |= dict.fromkeys(left[i:], str(error))
            away = not tried.done
            break
        except Exception as error:
            if isinstance(error, RuntimeError):
                check_alive(best_device())
            _logger().warning("shard %d failed", number, exc_info=True)
            (tried.hopeless if isinstance(error, ValueError) else failed)[number] = str(error) or type(error).__name__
    done = [tried.done[number] for number in numbers if number in tried.done]
    if failed or tried.hopeless:
        raise ShardsLeft(done, tried.hopeless | failed, passing=bool(failed), away=away)
    return done


def _tried_before() -> _Tried:
    context = TaskRunContext.get()
    if context is None:  # called as a plain function
        return _Tried()
    tried: _Tried | None = getattr(_thread, "tried", None)
    if tried is None or tried.task_run != context.task_run.id:
        tried = _thread.tried = _Tried(context.task_run.id)
    return tried


def _logger() -> Any:
    return get_run_logger() if TaskRunContext.get() else logging.getLogger(__name__)
