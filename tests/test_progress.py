"""Images done of all: what is counted, how it is told, and that a lost server costs no work."""

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from pti_core.shards import ShardProgress
from tasks.progress import RunProgress, listen, reporter


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def progress(warnings):
    """Of 100 images 20 were done before."""
    return RunProgress(100, 20, warnings.append)


def test_shards_in_work_count_until_they_are_finished_and_are_told_again_without_counting_twice(progress):
    assert progress.percent() == 20
    progress.in_work(3, 5.0)
    progress.in_work(3, 7.5)
    progress.in_work(4, 2.5)
    assert progress.percent() == 30
    progress.finished(3, 10)
    assert progress.percent() == 32.5
    progress.dropped(4)
    assert progress.percent() == 30


def test_the_line_for_a_person_tells_speed_and_time_left_once_there_is_any(progress):
    assert progress.describe() == "20 of 100 images"
    progress.finished(0, 10)
    line = progress.describe()
    assert line.startswith("30 of 100 images, ")
    assert line.endswith(" left")
    progress.finished(1, 70)
    assert progress.percent() == 100
    assert "left" not in progress.describe()


def test_nothing_to_do_is_done():
    assert RunProgress(0, 0, print).percent() == 100


def test_a_lost_server_is_told_of_once_and_costs_no_work(progress, warnings):
    heard = []
    nowhere = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(nowhere), listen(heard.append), progress.shown():
        reporter()(ShardProgress(shard=0, done=10.0, total=80, now=None))
    assert progress.percent() == 30
    assert [told.done for told in heard] == [10.0]
    assert len(warnings) == 1
    assert "run's page could not be updated" in warnings[0]
