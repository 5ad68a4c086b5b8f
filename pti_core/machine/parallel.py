"""Independent jobs on a CPU: one thread of arithmetic each, as many at once as there are cores.

For images of a few hundred pixels this is faster than one image after the other on all cores, and about as fast as a
batch (`benchmarks/steps.py`). And each image's numbers are the same whatever the batch, the number of cores, and what
else the machine does: pivot searches are chaotic, the last bit of a sum in another order ends in another pivot.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event, Lock, Semaphore
from typing import TypeVar

import torch

from pti_core.once import once

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(RuntimeError):
    """A job found that nobody wants its result any more."""


CORES = "PTI_CORES"
"""Environment variable: how many cores a process uses at most, where several share a machine."""

_stopping = Event()  # all jobs of the process
_most: int | None = None


def stop_all() -> None:
    """Every job of this process raises Stopped at its next `check()`, until `allow_all`."""
    _stopping.set()


def allow_all() -> None:
    """Jobs may run again; for a process that goes on after `stop_all`."""
    _stopping.clear()


def use_cores(most: int | None) -> None:
    """Use at most so many cores, from before the first job on; for a process that is told which share is its own."""
    global _most
    _most = most


def available_cores() -> int:
    """Cores that this process may use: those of its affinity, at most `use_cores` or else `PTI_CORES`, at least one.

    ValueError where that is no number, or 0.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most, named = _most, os.environ.get(CORES)
    if most is None and named:
        if not named.isdecimal() or int(named) < 1:
            raise ValueError(f"{CORES} {named!r}: a number of cores expected, 1 or more")
        most = int(named)
    return found if most is None else max(1, min(found, most))


def _begin_worker() -> None:
    torch.get_num_threads()  # or the first use of the thread would set the process' number again
    torch.set_num_threads(1)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One thread of arithmetic for the caller's own work on a CPU too; not for GPUs, where it changes nothing."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(threads)


@once()
def _pool() -> ThreadPoolExecutor:
    # One pool for the process, so that shards that are done at the same time share the cores.
    return ThreadPoolExecutor(available_cores(), "pti-cpu", initializer=_begin_worker)


def tasks_for_all_cores(images: int, device: str) -> int:
    """How many shards a process should have in work at once where each has so many images in work, one a core.

    One where the device is not the CPU: there shards take turns.
    """
    return 1 if torch.device(device).type != "cpu" else math.ceil(available_cores() / images)


_turn = Lock()


def one_at_a_time(device: torch.device) -> AbstractContextManager[object]:
    """Shards of one process take turns on a GPU, while others read and write; on a CPU they share the pool of cores."""
    return nullcontext() if device.type == "cpu" else _turn


def on_idle_cores(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """Results of `function(item)` in order, by all cores where the device is not the CPU, which is idle then.

    On a CPU by the caller's own core alone: the others have images of theirs.
    """
    if device.type == "cpu":
        yield from map(function, items)
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(available_cores(), "pti-idle", initializer=_begin_worker) as pool:
            yield from pool.map(function, items)
    finally:
        torch.set_num_threads(threads)  # as in `on_own_cores`


def on_own_cores(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Results of `function(item)` in order, by as many threads as the caller's arithmetic may take, one for each item.

    For items of several milliseconds: threads that hand over shorter ones wait for each other. One item alone is done
    by the caller, with all threads of its arithmetic.
    """
    threads = torch.get_num_threads()
    jobs = min(threads, available_cores(), len(items))
    if jobs <= 1:
        return list(map(function, items))
    try:
        with ThreadPoolExecutor(jobs, "pti-own", initializer=_begin_worker) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # the workers' one thread is otherwise that of every thread from now on


def in_parallel(
    function: Callable[[Item, Callable[[], None]], Result],
    items: Iterable[Item],
    device: torch.device,
    cost: Callable[[Item], float] | None = None,
    room: Semaphore | None = None,
) -> Iterator[Result]:
    """Results of `function(item, check)` in order: on a CPU several at once, elsewhere one after the other.

    With `cost`, those that are expected to take long begin first on a CPU, so that no long one is left for one core at
    the end (Graham 1969, longest processing time first); results come in the items' order all the same. `room` is
    what memory has room for, of all calls that share it (see `room`).

    Jobs call `check()` now and then: it raises Stopped once the caller takes no more results (Ctrl-C, an error).
    """
    stop = Event()

    def check() -> None:
        if stop.is_set() or _stopping.is_set():
            raise Stopped("stopped")

    if device.type != "cpu":
        for item in items:
            yield function(item, check)
        return

    def in_room(item: Item) -> Result:
        if room is None:
            return function(item, check)
        while not room.acquire(timeout=1.0):
            check()
        try:
            return function(item, check)
        finally:
            room.release()

    waiting = list(enumerate(items))
    if cost is not None:
        waiting.sort(key=lambda numbered: -cost(numbered[1]))
    jobs: dict[int, Future[Result]] = {i: _pool().submit(in_room, item) for i, item in waiting}
    try:
        for i in range(len(jobs)):
            yield jobs[i].result()
    finally:
        stop.set()
        for job in jobs.values():
            job.cancel()
