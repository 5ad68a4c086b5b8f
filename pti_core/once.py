"""Things that are made once a process, also where several threads ask for one at the same time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, update_wrapper
from threading import Lock
from typing import Generic, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


class Once(Generic[Arguments, Made]):
    """A function that keeps its last results, and is called by one thread at a time.

    `functools.lru_cache` alone lets every thread that comes before the first is ready make its own.
    """

    def __init__(self, make: Callable[Arguments, Made], keep: int) -> None:
        self._made, self._lock = lru_cache(maxsize=keep)(make), Lock()
        update_wrapper(self, make)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        """What was made from these arguments, or is made now."""
        with self._lock:
            return self._made(*args, **kwargs)  # type: ignore[arg-type]

    def cache_clear(self) -> None:
        """Forget what was made."""
        with self._lock:
            self._made.cache_clear()


def once(keep: int = 1) -> Callable[[Callable[Arguments, Made]], Once[Arguments, Made]]:
    """Decorate a function of hashable arguments, of which it keeps the last `keep` results; see `Once`."""
    return lambda make: Once(make, keep)
