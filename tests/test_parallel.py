"""Jobs on the cores of a CPU: in order, one thread of arithmetic each, stopped when nobody wants their results."""

import threading
import time

import pytest
import torch

from pti_core.parallel import Stopped, available_cores, in_parallel, one_thread, use_cores

CPU = torch.device("cpu")


def test_results_come_in_order_and_several_jobs_run_at_once():
    seen, lock, active = [], threading.Lock(), set()

    def job(item, check):
        with lock:
            active.add(item)
            seen.append(len(active))
        time.sleep(0.02 * (3 - item % 3))
        with lock:
            active.discard(item)
        return item * 10

    assert list(in_parallel(job, range(9), CPU)) == [10 * i for i in range(9)]
    assert max(seen) == min(available_cores(), 9)


def test_what_costs_most_begins_first_and_results_keep_their_order():
    begun, lock, gate = [], threading.Lock(), threading.Event()

    def job(item, check):
        with lock:
            begun.append(item)
            if len(begun) == available_cores():
                gate.set()
        assert gate.wait(10)
        return item

    items = list(range(4 * available_cores()))
    assert list(in_parallel(job, items, CPU, cost=float)) == items
    assert set(begun[: available_cores()]) == set(items[-available_cores() :])


def test_a_process_can_be_told_how_many_cores_are_its_own(monkeypatch):
    all_of_them = available_cores()
    monkeypatch.setenv("PTI_CORES", "1")
    assert available_cores() == 1
    monkeypatch.setenv("PTI_CORES", "9999")
    assert available_cores() == all_of_them
    use_cores(1)
    assert available_cores() == 1
    use_cores(None)
    monkeypatch.setenv("PTI_CORES", "half")
    with pytest.raises(ValueError, match="PTI_CORES 'half': a number of cores expected"):
        available_cores()


def test_each_job_has_one_thread_of_arithmetic():
    threads = set(in_parallel(lambda item, check: torch.get_num_threads(), range(8), CPU))
    assert threads == {1}


def test_the_caller_has_one_thread_of_arithmetic_for_as_long_as_it_asks():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_thread(CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with one_thread(torch.device("meta")):
        assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def test_an_error_reaches_the_caller_and_stops_the_others():
    stopped = threading.Event()

    def job(item, check):
        if item == 0:
            raise ValueError("the first one")
        try:
            while True:
                check()
                time.sleep(0.001)
        except Stopped:
            stopped.set()
            raise

    with pytest.raises(ValueError, match="the first one"):
        list(in_parallel(job, [0, *range(1, available_cores())], CPU))
    if available_cores() > 1:
        assert stopped.wait(10)


def test_a_caller_that_goes_away_stops_the_jobs():
    ended = []

    def job(item, check):
        if item == 0:
            return 0
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            ended.append(item)

    results = in_parallel(job, range(4), CPU)
    assert next(results) == 0
    results.close()
    assert list(in_parallel(lambda item, check: item, range(8), CPU)) == list(range(8))  # the pool is free again
    assert len(ended) <= available_cores()


def test_elsewhere_one_after_the_other_in_the_callers_thread():
    names = set(in_parallel(lambda item, check: threading.current_thread().name, range(3), torch.device("meta")))
    assert names == {threading.current_thread().name}
