"""Reading ahead and writing behind: in order, one job ahead at most, errors to the caller, nothing lost."""

import threading

import pytest

from pti_core.machine.overlap import finish_writes, read_ahead, write_behind

WAIT = 20  # seconds until a test that hangs fails


def test_jobs_come_in_order_and_the_next_is_read_while_the_caller_works():
    read = [threading.Event() for _ in range(4)]

    def reading(job):
        read[job].set()
        return job * 10

    for job, result in read_ahead(range(4), reading):
        assert result == job * 10
        if job + 1 < len(read):
            assert read[job + 1].wait(WAIT)
        assert not any(event.is_set() for event in read[job + 2 :])  # memory for two parts, not for all
    assert list(read_ahead([], reading)) == []


def test_an_error_of_reading_comes_with_its_own_job_after_those_before():
    def reading(job):
        if job == 1:
            raise OSError("away")
        return job

    jobs = read_ahead(range(3), reading)
    assert next(jobs) == (0, 0)
    with pytest.raises(OSError, match="away"):
        next(jobs)


def test_a_caller_that_goes_away_does_not_wait_for_a_read():
    stalled, released = threading.Event(), threading.Event()

    def reading(job):
        if job:
            stalled.set()
            released.wait(WAIT)

    jobs = read_ahead(range(3), reading)
    next(jobs)
    assert stalled.wait(WAIT)
    jobs.close()  # would hang
    released.set()


def test_writes_are_in_order_and_at_most_one_is_behind():
    written, gates = [], [threading.Event() for _ in range(3)]
    begun = [threading.Event() for _ in range(3)]

    def writing(i):
        def write():
            begun[i].set()
            assert gates[i].wait(WAIT)
            written.append(i)

        return write

    with write_behind() as write:
        write(writing(0))
        assert begun[0].wait(WAIT)
        second = threading.Thread(target=write, args=(writing(1),))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # waits for the first one
        assert not finish_writes(0.0)
        gates[0].set()
        second.join(WAIT)
        assert begun[1].wait(WAIT)
        assert written == [0]
        gates[1].set()
        gates[2].set()
        write(writing(2))
    assert written == [0, 1, 2]
    assert finish_writes(0.0)


def test_an_error_of_writing_ends_the_caller_at_its_next_write_or_at_the_end():
    def fail():
        raise OSError("full")

    written = []

    def caller(writes):
        with write_behind() as write:
            for one in writes:
                write(one)

    with pytest.raises(OSError, match="full"):
        caller([fail, lambda: written.append(1)])
    with pytest.raises(OSError, match="full"):
        caller([fail])
    assert written == []
    assert finish_writes(0.0)  # what failed is not waited for


def test_a_caller_that_fails_leaves_what_it_has_computed_written():
    written, gate = [], threading.Event()

    def slow():
        gate.wait(WAIT)
        written.append(1)

    def caller():
        with write_behind() as write:
            write(slow)
            threading.Timer(0.1, gate.set).start()
            raise ValueError("next part")

    with pytest.raises(ValueError, match="next part"):
        caller()
    assert written == [1]


def test_a_part_whose_turn_has_not_come_counts_as_being_written():
    gate, written = threading.Event(), []

    def slow():
        gate.wait(WAIT)
        written.append(0)

    with write_behind() as write:
        write(slow)
        caller = threading.Thread(target=write, args=(lambda: written.append(1),))
        caller.start()
        waiting = threading.Timer(0.2, gate.set)
        waiting.start()
        assert finish_writes(WAIT)
        assert written == [0, 1]
        caller.join(WAIT)
