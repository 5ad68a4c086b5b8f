"""Where a task's progress goes: to whoever called the flow in this process, or to the task's log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect.logging import get_run_logger

from pti_core.shards import OnShardProgress, ShardProgress

LOG_EVERY = 15.0  # seconds

_listener: ContextVar[OnShardProgress | None] = ContextVar("pti_progress_listener", default=None)


@contextmanager
def listen(listener: OnShardProgress) -> Iterator[None]:
    """Send the progress of all shards that are done in this context (its threads included) to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def reporter() -> OnShardProgress:
    """The listener of this context; without one, a line in the task's log every quarter of a minute."""
    return _listener.get() or _log_reporter()


def _log_reporter() -> Callable[[ShardProgress], None]:
    logger, start, last = get_run_logger(), time.monotonic(), 0.0

    def report(progress: ShardProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LOG_EVERY and progress.done < progress.total:
            return
        last = now
        rate = progress.done / max(now - start, 1e-9)
        left = (progress.total - progress.done) / rate if rate > 0 else float("inf")
        doing = f", {progress.now.stage} LPIPS {progress.now.lpips:.3f}" if progress.now else ""
        logger.info(
            "shard %d: %.1f of %d images, %.3f images/s, %.0f s left%s",
            progress.shard,
            progress.done,
            progress.total,
            rate,
            left,
            doing,
        )

    return report
