"""What is made once a process, however many threads ask for it while it is being made."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pti_core.once import once


def test_threads_that_ask_at_the_same_time_get_one_thing():
    made, begin = [], threading.Barrier(4)

    @once()
    def engine(name: str) -> object:
        """An engine."""
        made.append(name)
        time.sleep(0.05)
        return object()

    def ask(_: int) -> object:
        begin.wait(10)
        return engine("a")

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
    assert made == ["a"]
    assert (engine.__name__, engine.__doc__) == ("engine", "An engine.")


def test_the_last_results_are_kept_until_they_are_forgotten_and_an_error_is_not():
    made = []

    @once(keep=2)
    def twice(number: int) -> int:
        made.append(number)
        if number < 0:
            raise ValueError(number)
        return 2 * number

    assert [twice(1), twice(2), twice(1), twice(3), twice(1), twice(2)] == [2, 4, 2, 6, 2, 4]
    assert made == [1, 2, 3, 2]
    twice.cache_clear()
    assert twice(2) == 4
    assert made == [1, 2, 3, 2, 2]
    for _ in range(2):
        try:
            twice(-1)
        except ValueError:
            continue
        raise AssertionError("no error")
    assert made[-2:] == [-1, -1]
