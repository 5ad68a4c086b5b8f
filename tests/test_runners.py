"""Runners that cannot be used say why in one sentence, within seconds."""

import signal
import socket
import sys
import threading
import uuid
from concurrent.futures import Future

import pytest
from prefect import task
from prefect._internal.concurrency.cancellation import CancelledError, WatcherThreadCancelScope
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectConcurrentFuture
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import runners
from flows.runners import Runner, RunnerError, in_window, started


@pytest.fixture
def server():
    """An address is enough: nothing is sent to it."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


@pytest.fixture
def nobody():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def refused(*arguments) -> str:
    with pytest.raises(RunnerError) as refusal, started(*arguments):
        pass
    text = str(refusal.value)
    assert "\n" not in text
    return text


def test_threads_have_a_window_of_their_number_and_half_as_many():
    for workers, window in ((None, 2), (1, 2), (2, 3), (8, 12)):
        with started("threads", workers) as runner:
            assert runner.window() == window
    add = "is for a cluster: add --runner dask or --runner ray (runner=dask, ray)"
    assert refused("threads", None, "tcp://127.0.0.1:1") == f"--address tcp://127.0.0.1:1 {add}"
    assert refused("threads", None, None, {"GPU": 1}) == f"--resource GPU=1 {add}"


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_cluster_needs_a_server_and_resources_need_a_cluster(name, server):
    with temporary_settings({PREFECT_API_URL: None}):
        assert f"runner '{name}': its workers need a Prefect server" in refused(name)
    assert "--resource slot: what workers of a cluster have" in refused(name, None, None, {"slot": 1})


@pytest.mark.parametrize(("name", "package"), [("dask", "prefect_dask.task_runners"), ("ray", "prefect_ray")])
def test_an_extra_that_is_not_installed_is_named(name, package, server, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails, as if it were not there
    assert refused(name) == f"runner '{name}': install it with `pip install '.[{name}]'` in the project's folder"


@pytest.mark.parametrize(
    ("name", "address"), [("dask", "tcp://127.0.0.1:{}"), ("ray", "127.0.0.1:{}"), ("ray", "ray://127.0.0.1:{}")]
)
def test_a_cluster_that_does_not_answer_is_told_within_seconds(name, address, server, nobody, monkeypatch):
    monkeypatch.setattr(runners, "CONNECT", 1.0)
    address = address.format(nobody)
    assert f"answers at {address} (" in refused(name, None, address)


class Waiting:
    """Prefect's side of a cluster whose tasks all wait for their turn."""

    def __init__(self):
        self.futures = []

    def submit(self, task, parameters):
        self.futures.append(Future())
        return PrefectConcurrentFuture(uuid.uuid4(), self.futures[-1])


@pytest.fixture
def waiting():
    return Waiting()


@task
def step():
    pass


def outcomes(tasks):
    return in_window(Runner(tasks, "a cluster", lambda: 2), [step], range(9), lambda number, content: {})


def test_a_run_that_loses_its_place_ends_though_no_task_does(waiting):
    def loses_its_place():
        with WatcherThreadCancelScope() as scope:
            threading.Timer(0.2, scope._send_cancelled_error).start()  # as where the lease of a place is gone
            list(outcomes(waiting))

    with pytest.raises(CancelledError):
        loses_its_place()
    assert [future.cancelled() for future in waiting.futures] == [True] * 3


@pytest.mark.parametrize("error", [TerminationSignal, KeyboardInterrupt])
def test_a_run_that_is_told_to_end_takes_back_what_waits_on_a_cluster(waiting, error):
    def tell(number, frame):
        raise error(signal=number) if error is TerminationSignal else error

    before = signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(error):
            list(outcomes(waiting))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [future.cancelled() for future in waiting.futures] == [True] * 3


def test_closing_takes_back_what_waits(waiting):
    ends = outcomes(waiting)
    threading.Timer(0.2, lambda: waiting.futures[0].set_result(1)).start()
    next(ends)
    ends.close()
    assert [future.cancelled() for future in waiting.futures] == [False, True, True]
