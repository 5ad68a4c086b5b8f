"""Where a task's progress goes: its log, the page of the flow run, whoever called the flow in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from logging import Logger, LoggerAdapter
from threading import Event, Lock, Thread
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from pti_core.shard.shard_progress import PICTURES, PREPARING, OnShardProgress, ShardProgress
from pti_core.words import PERCENT, counted, duration, how_far, rate_of

LOG_EVERY = 15.0  # seconds between lines in the log, which the server keeps
UPDATE_EVERY = 10.0  # seconds between requests to the server, however many images are done meanwhile
AT_LEAST_EVERY = 300.0  # seconds; see `_pause`

_listener: ContextVar[OnShardProgress | None] = ContextVar("pti_progress_listener", default=None)
_run: ContextVar[RunProgress | None] = ContextVar("pti_run_progress", default=None)


@contextmanager
def listen(listener: OnShardProgress) -> Iterator[None]:
    """Send the progress of all shards that are done in this context (its threads included) to `listener`.

    One that fails, as where it prints to a full disk, is told nothing more; the work goes on.
    """
    token = _listener.set(_until_it_fails(listener))
    try:
        yield
    finally:
        _listener.reset(token)


def _until_it_fails(listener: OnShardProgress) -> OnShardProgress:
    failed = Lock()  # taken for good: jobs call this at the same time, and one warning is enough

    def tell(progress: ShardProgress) -> None:
        if failed.locked():
            return
        try:
            listener(progress)
        except (Exception, SystemExit) as error:  # rich exits where nobody reads its pipe any more
            if failed.acquire(blocking=False):
                why = f"{type(error).__name__}: {error}"
                logging.getLogger(__name__).warning("progress is shown no more (%s); the work goes on", why)

    return tell


def reporter() -> OnShardProgress:
    """Tells the run's progress artifact and the listener of this context; without a listener, the task's log."""
    run, other = _run.get(), _listener.get() or log_reporter(get_run_logger())
    if run is None:  # also in the process of a cluster's worker: there the flow counts finished shards
        return other

    def report(progress: ShardProgress) -> None:
        run.in_work(progress.shard, progress.done, begins=progress.doing == PREPARING)
        other(progress)

    return report


class RunProgress:
    """Images done of all of a run, as one artifact on the flow run's page.

    The work only counts; a thread of its own talks to the server, so that a slow or lost server costs no work.
    """

    def __init__(self, total: int, done: int, warn: Callable[[str], None], unit: str = "image") -> None:
        """Of `total` images, `done` were done before; `warn` gets a sentence where the server cannot be told.

        `unit`: `PERCENT`, with a total of 100, for other work.
        """
        self._total, self._before, self._done, self._unit = total, done, float(done), unit
        self._in_work: dict[int, float] = {}  # by shard, images with the share of those in work
        self._begun: dict[int, float] = {}  # by shard, images of it that were done before
        self._lock, self._closed, self._start = Lock(), Event(), time.monotonic()
        self._artifact: UUID | None = None
        self._failed = False
        self._warn = warn

    def in_work(self, shard: int, images: float, begins: bool = False) -> None:
        """So much of a shard that is not finished is done; told again, it replaces what was told before.

        Where it `begins` now, that was done before, and says nothing of the speed.
        """
        with self._lock:
            if begins:
                self._begun.setdefault(shard, images)
            self._in_work[shard] = images

    def finished(self, shard: int, images: int) -> None:
        """A shard is done, with so many images, rejects included."""
        with self._lock:
            self._in_work.pop(shard, None)
            self._done += images
        if (listener := _listener.get()) is not None:  # which tasks in the processes of a cluster cannot reach
            doing = "done" if self._unit == PERCENT else f"shard {shard} is done"
            listener(ShardProgress(shard, images, images, None, doing, self._unit))

    def dropped(self, shard: int) -> None:
        """A shard has failed: it does not count."""
        with self._lock:
            self._in_work.pop(shard, None)
            self._begun.pop(shard, None)

    def percent(self) -> float:
        """Of all images, 0 to 100."""
        with self._lock:
            done = self._done + sum(self._in_work.values())
        return 100.0 * min(1.0, done / self._total) if self._total else 100.0

    def describe(self) -> str:
        """One line for a person: images, speed, time left."""
        done = self.percent() / 100.0 * self._total
        seconds = time.monotonic() - self._start
        percent = self._unit == PERCENT
        words = f"{int(done + 1e-6):,} {f'of {counted(self._total, self._unit)}' if not percent else PERCENT}"
        with self._lock:
            new = done - self._before - sum(self._begun.values())
        if new >= 1:
            rate = new / max(seconds, 1e-9)
            speed = f", {rate:.2f} images a second" if rate >= 1 else f", {1 / rate:.1f} s per image"
            left = f", about {duration((self._total - done) / rate)} left" if done < self._total else ""
            words += f"{speed if not percent else ''}{left}"
        return words

    def send(self) -> None:
        """Create the artifact, or update it. A server's failure is logged once, and the work goes on."""
        percent, description = round(self.percent(), 1), self.describe()
        try:
            if self._artifact is None:
                key = f"{flow_run.flow_name or 'pti'}-progress"
                self._artifact = create_progress_artifact(percent, key, description)  # type: ignore[assignment]
            else:
                update_progress_artifact(self._artifact, percent, description)
        except Exception as error:
            if not self._failed:
                self._warn(f"the progress on the run's page could not be updated: {error}")
            self._failed = True

    def _send_until_closed(self) -> None:
        while not self._closed.wait(_pause(UPDATE_EVERY, self._start)):
            self.send()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the artifact up to date; tasks in threads of this context add what they have in work."""
        self.send()
        token = _run.set(self)
        # The thread needs this context: it says which run the artifact belongs to, and which server to ask.
        sender = Thread(target=copy_context().run, args=(self._send_until_closed,), name="pti-progress", daemon=True)
        sender.start()
        try:
            yield
        finally:
            _run.reset(token)
            self._closed.set()
            sender.join(UPDATE_EVERY)
            self.send()


@contextmanager
def run_progress(total: int, done: int = 0, unit: str = "image") -> Iterator[RunProgress]:
    """The progress of a run of `total` images, `done` of them done before, on the flow run's page while this lasts."""
    progress = RunProgress(total, done, get_run_logger().warning, unit)
    with progress.shown():
        yield progress


def _pause(least: float, start: float) -> float:
    """Seconds between two reports of what began at `start`: a hundredth of its time so far, so that days cost few."""
    return min(AT_LEAST_EVERY, max(least, (time.monotonic() - start) / 100))


def log_reporter(logger: Logger | LoggerAdapter[Any]) -> OnShardProgress:
    """Tells the log of a task how far a shard is, every `LOG_EVERY` seconds, later more rarely, and at its end."""
    begin, last, turn = time.monotonic(), 0.0, Lock()  # jobs tell at the same time
    begun: dict[int, tuple[float, float]] = {}  # by shard: when its work began, and the images done before
    ended: set[int] = set()  # whose last line is said

    def report(progress: ShardProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if progress.shard == PICTURES:
            with turn:
                if now - last >= _pause(LOG_EVERY, begin):
                    last = now
                    logger.info("%s", progress.words)
            return
        if progress.doing != PREPARING:
            begun.setdefault(progress.shard, (now, progress.done))
        with turn:
            if progress.shard in ended:
                return
            if now - last < _pause(LOG_EVERY, begin) and progress.done < progress.total:
                return
            last = now
            if progress.done >= progress.total:
                ended.add(progress.shard)
        start, before = begun.get(progress.shard, (now, progress.done))
        rate = rate_of(progress.done - before, now - start)
        doing = f", {progress.words}" if progress.words else ""
        what = "" if progress.unit == PERCENT else f"shard {progress.shard}: "
        logger.info("%s%s%s", what, how_far(progress.done, progress.total, rate, progress.unit), doing)

    return report
