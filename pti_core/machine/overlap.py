"""Reading ahead and writing behind: the engine works while the next images are decoded and the last tables written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from threading import Condition
from typing import Final, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def read_ahead(jobs: Iterable[Job], read: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
    """Each job with `read(job)`, in order; the next one is read in a thread while the caller works on this."""
    pool, rest = ThreadPoolExecutor(1, "pti-read"), iter(jobs)
    try:
        ahead = [(job, pool.submit(read, job)) for job in islice(rest, 1)]
        while ahead:
            job, reading = ahead.pop()
            result = reading.result()
            ahead = [(job, pool.submit(read, job)) for job in islice(rest, 1)]
            yield job, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a stalled read must not hold up what goes wrong


class WriteBehind:
    """Writes one after the other in a thread, at most one ahead of the caller. The first error ends the caller too."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "pti-write")
        self._last: Future[None] | None = None

    def __call__(self, write: Callable[[], None]) -> None:
        """Begin to write, once the last write has ended. Raises what that one raised."""
        _writing.begin()  # counts from now on: what is computed is worth waiting for
        try:
            self.wait()
            self._last = self._pool.submit(write)
        except BaseException:
            _writing.end()
            raise
        self._last.add_done_callback(_writing.end)

    def wait(self) -> None:
        """Until all is written. Raises what the last write raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Let the last write end, whatever comes of it."""
        self._pool.shutdown(wait=True)


class _Writing:
    """How many writes are under way in this process, or wait for their turn."""

    def __init__(self) -> None:
        self.condition, self.count = Condition(), 0

    def begin(self) -> None:
        with self.condition:
            self.count += 1

    def end(self, *_: object) -> None:
        with self.condition:
            self.count -= 1
            self.condition.notify_all()


_writing: Final = _Writing()


def finish_writes(seconds: float) -> bool:
    """Wait until nothing is to be written in this process; False where that takes longer than `seconds`."""
    with _writing.condition:
        return _writing.condition.wait_for(lambda: _writing.count == 0, timeout=seconds)


@contextmanager
def write_behind() -> Iterator[WriteBehind]:
    """A `WriteBehind` that has written all at the end, or as much as it could where the caller fails."""
    writer = WriteBehind()
    try:
        yield writer
        writer.wait()
    finally:
        writer.close()
