"""Runners that cannot be used say why in one sentence, within seconds."""

import socket
import sys

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import runners
from flows.runners import RunnerError, started


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
