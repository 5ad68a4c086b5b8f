"""Jobs on the cores of a CPU: in order, one thread of arithmetic each, stopped when nobody wants their results."""

import os
import threading
import time

import pytest
import torch

from pti_core.machine import parallel
from pti_core.machine.parallel import (
    Stopped,
    available_cores,
    in_parallel,
    on_idle_cores,
    one_thread,
    tasks_for_all_cores,
    use_cores,
)

CPU = torch.device("cpu")


@pytest.fixture
def workers(monkeypatch):
    """A function that gives the process so many workers, whatever cores the machine has."""

    def give(count):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)), raising=False)
        monkeypatch.delenv(parallel.CORES, raising=False)
        parallel._pool.cache_clear()

    yield give
    parallel._pool.cache_clear()  # the next one has the machine's own number


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order_and_as_many_jobs_run_at_once_as_there_are_workers(workers, count):
    workers(count)
    together, last, threads = threading.Barrier(count, timeout=20), threading.Event(), set()

    def job(item, check):
        threads.add(threading.current_thread().name)
        together.wait()  # an error where fewer are at work
        if item == count - 1:
            last.set()
        if item == 0:
            assert last.wait(20)  # so that the first one ends after another
        return item * 10

    assert list(in_parallel(job, range(3 * count), CPU)) == [10 * i for i in range(3 * count)]
    assert len(threads) == count


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # only named: what is done is not the device's
def test_idle_cores_all_help_where_the_cpu_is_not_the_device(workers, device):
    workers(3)
    together, threads = threading.Barrier(1 if device == "cpu" else 3, timeout=20), set()

    def job(item):
        threads.add(threading.current_thread())
        together.wait()
        return item * 10

    assert list(on_idle_cores(job, iter(range(6)), torch.device(device))) == [0, 10, 20, 30, 40, 50]
    assert threads == {threading.current_thread()} if device == "cpu" else len(threads) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_what_costs_most_begins_first_and_results_keep_their_order(workers, count):
    workers(count)
    begun, together = [], threading.Barrier(count, timeout=20)

    def job(item, check):
        begun.append(item)
        together.wait()
        return item

    items = list(range(4 * count))
    assert list(in_parallel(job, items, CPU, cost=float)) == items
    assert set(begun[:count]) == set(items[-count:])


def test_a_process_can_be_told_how_many_cores_are_its_own(monkeypatch):
    all_of_them = available_cores()
    monkeypatch.setenv("PTI_CORES", "1")
    assert available_cores() == 1
    monkeypatch.setenv("PTI_CORES", "9999")
    assert available_cores() == all_of_them
    use_cores(1)
    assert available_cores() == 1
    use_cores(None)
    for wrong in ("half", "0"):
        monkeypatch.setenv("PTI_CORES", wrong)
        with pytest.raises(ValueError, match=f"PTI_CORES '{wrong}': a number of cores expected, 1 or more"):
            available_cores()


@pytest.mark.parametrize(("cores", "images", "tasks"), [(2, 8, 1), (8, 8, 1), (9, 8, 2), (64, 8, 8), (4, 1, 4)])
def test_as_many_shards_are_in_work_as_all_cores_need(cores, images, tasks, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores))
    assert tasks_for_all_cores(images, "cpu") == tasks
    assert tasks_for_all_cores(images, "cuda:1") == 1


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


def test_an_error_reaches_the_caller_and_stops_the_others(workers):
    workers(2)
    stopped, together = threading.Event(), threading.Barrier(2, timeout=20)

    def job(item, check):
        together.wait()
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
        list(in_parallel(job, range(2), CPU))
    assert stopped.wait(20)


def test_a_caller_that_goes_away_stops_the_jobs(workers):
    workers(2)
    ended, begun, stopped = [], threading.Event(), threading.Event()

    def job(item, check):
        if item == 0:
            assert begun.wait(20)
            return 0
        begun.set()
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            ended.append(item)
            stopped.set()

    results = in_parallel(job, range(4), CPU)
    assert next(results) == 0
    results.close()
    assert stopped.wait(20)
    assert list(in_parallel(lambda item, check: item, range(8), CPU)) == list(range(8))  # the pool is free again
    assert len(ended) <= 2  # those that nobody had begun never do


def test_elsewhere_one_after_the_other_in_the_callers_thread():
    names = set(in_parallel(lambda item, check: threading.current_thread().name, range(3), torch.device("meta")))
    assert names == {threading.current_thread().name}
