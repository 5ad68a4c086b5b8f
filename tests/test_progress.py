"""Images done of all: what is counted, how it is told, and that a lost server costs no work."""

import io
import logging
import re
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.actions import ArtifactCreate
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from rich.console import Console

from flows import console
from flows.console import PLAIN_EVERY, ProgressView
from pti_core.progress import Progress
from pti_core.shard.shard_progress import PREPARING, ShardProgress, drawing
from pti_core.words import counted, how_far, rate_of
from tasks import page
from tasks import progress as progress_module
from tasks.progress import RunProgress, listen, log_reporter, reporter


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


def test_what_of_a_shard_was_done_before_is_no_speed(progress):
    for shard in (3, 4):
        progress.in_work(shard, 30.0, begins=True)
    assert progress.describe() == "80 of 100 images"
    progress.in_work(3, 30.9)
    assert progress.describe() == "80 of 100 images"
    progress.in_work(4, 31.0)
    assert progress.describe().startswith("81 of 100 images, ")
    progress.dropped(4)
    assert progress.describe() == "50 of 100 images"


def test_a_terminal_shows_the_speed_of_this_command_alone(capsys, monkeypatch):
    monkeypatch.setattr("flows.console.PLAIN_EVERY", 0.0)
    now = [100.0]
    monkeypatch.setattr("flows.console.time.monotonic", lambda: now[0])
    with ProgressView(Console(width=200)) as view:
        view.expect(256, 0)
        for shard in range(4):
            view(ShardProgress(shard, 32.0, 64, None, PREPARING))
        now[0] += 5
        view(ShardProgress(0, 32.0, 64, Progress("tuning", 1, 2, 0.5, 8, 0.0)))
        now[0] += 10
        view(ShardProgress(0, 34.0, 64, None))
    assert "130.0 of 256 images, 0.200 images/s" in capsys.readouterr().out


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


def test_what_a_page_lacks_by_a_lost_server_is_told_and_no_error(monkeypatch, caplog):
    monkeypatch.setattr(page, "get_run_logger", lambda: logging.getLogger("of the run"))
    asked, nowhere = [], {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}

    def create():
        asked.append(len(asked))
        create_markdown_artifact(key="lost", markdown="-")

    with temporary_settings(nowhere), caplog.at_level(logging.WARNING):
        page.show([create, create], "the tables are complete")
    assert asked == [0]  # and no second artifact, which would be lost too
    (record,) = caplog.records
    assert record.getMessage().startswith("the run's page does not show all of its results (ConnectError: ")
    assert record.getMessage().endswith("; the tables are complete")


def test_the_key_of_an_artifact_tells_data_sets_apart_in_characters_that_prefect_takes():
    keys = [page.key_of("pti-medians", address) for address in ("s3://Faces/train.zip", "out/demo", "é")]
    assert keys == ["pti-medians-s3-faces-train-zip", "pti-medians-out-demo", "pti-medians"]
    assert [ArtifactCreate(key=key).key for key in keys] == keys


@pytest.fixture
def full_disk():
    """A file on a disk without space."""
    with suppress(OSError), open("/dev/full", "w") as file:  # its end tries once more to write what is left
        yield file


def test_a_terminal_that_takes_nothing_is_told_of_once_and_costs_no_work(progress, full_disk, caplog):
    view = ProgressView(Console(file=io.StringIO()))
    with view:
        view.console.file = full_disk
        view.last_line = -PLAIN_EVERY  # the next is printed
        check_work_goes_on(progress, view, caplog, "OSError: [Errno 28] No space left on device")
        view.say_last("stopped")


def test_a_pipe_that_nobody_reads_ends_no_job(progress, caplog):
    def gone(told):
        """As rich does."""
        raise SystemExit(1)

    check_work_goes_on(progress, gone, caplog, "SystemExit: 1")


def check_work_goes_on(progress, listener, caplog, why):
    with listen(listener):
        report = reporter()
        for done in (5.0, 10.0):
            report(ShardProgress(shard=0, done=done, total=80, now=None))
        progress.finished(0, 80)
    assert progress.percent() == 100
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "tasks.progress"]
    assert warning.startswith(f"progress is shown no more ({why})")


def test_before_anything_is_known_the_speed_is_being_measured():
    assert rate_of(3, 0.5) == rate_of(0, 60) == rate_of(-1, 60) == 0
    assert rate_of(3, 60) == 0.05
    assert how_far(0, 4, 0.0) == "0.0 of 4 images, measuring speed"
    assert how_far(1.5, 4, 0.1) == "1.5 of 4 images, 0.100 images/s, 25 s left"
    assert how_far(0.5, 1000, 0.01) == "0.5 of 1,000 images, 0.010 images/s, 27 h 46 min left"
    assert how_far(1, 1, 0.0) == "1.0 of 1 image"
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


def test_the_log_of_a_task_and_the_terminal_say_the_same_of_a_shard_that_was_half_done(caplog, monkeypatch):
    """What was done before is no speed: 32 images in no time were hundreds of thousands a second."""
    monkeypatch.setattr(progress_module, "AT_LEAST_EVERY", 0)
    screen = io.StringIO()
    view, report = ProgressView(Console(file=screen, width=200)), log_reporter(logging.getLogger("a.task"))
    view.expect(64, 0)
    with caplog.at_level(logging.INFO):
        for doing in (PREPARING, "looking"):
            for tell in (report, view):
                tell(ShardProgress(7, 32.0, 64, None, doing))
    said = "32.0 of 64 images, measuring speed"
    assert [record.getMessage() for record in caplog.records] == [
        f"shard 7: {said}, {PREPARING}",
        f"shard 7: {said}, looking",
    ]
    assert f"{said}, {PREPARING}" in screen.getvalue()


def test_the_log_of_a_task_that_takes_days_is_told_more_and_more_rarely(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tasks.progress.time.monotonic", lambda: now[0])
    report = log_reporter(logging.getLogger("a.task"))

    def lines(seconds):
        caplog.clear()
        for _ in range(0, seconds, 5):
            now[0] += 5
            report(ShardProgress(7, 1.0, 64, None, "tuning"))
        return len(caplog.records)

    with caplog.at_level(logging.INFO):
        assert lines(600) == 40
        now[0] = 86400.0
        assert lines(600) == 2
        report(ShardProgress(7, 64.0, 64, None))
        assert len(caplog.records) == 3  # the end is told at once


def test_pictures_of_a_run_are_told_now_and_then_and_count_as_no_images(caplog, monkeypatch):
    monkeypatch.setattr(progress_module, "AT_LEAST_EVERY", 0)
    screen, terminal = io.StringIO(), io.StringIO()
    views = [ProgressView(Console(file=screen, width=200)), ProgressView(Console(file=terminal, force_terminal=True))]
    log = log_reporter(logging.getLogger("a.task"))
    for view in views:
        view.expect(1000, 0)
        view(ShardProgress(0, 1000.0, 1000, None))
        view.last_line = -PLAIN_EVERY
    with caplog.at_level(logging.INFO):
        for tell in (*views, log):
            tell(drawing("report", 4, 48))
            tell(drawing("report", 48, 48))  # a moment later
    assert [record.getMessage() for record in caplog.records] == [
        "drawing the report, image 5 of 48",
        "writing the report",
    ]
    lines = screen.getvalue().splitlines()
    assert lines[-1].endswith("] drawing the report, image 5 of 48")
    (bar,) = views[1].bar.tasks
    assert (bar.completed, bar.total, bar.description) == (48, 48, "pictures")
    assert bar.fields["doing"] == "writing the report"
    assert views[0].finished == 1000


def test_a_command_shows_its_clock_before_torch_is_imported():
    code = "import sys; from flows import cli, console, status_cli; print('torch' in sys.modules); "
    code += "console.ProgressView(status_cli.console).__enter__(); "
    code += "print(sys.modules.keys() & {'torch', 'prefect', 'pandas'})"
    command = [sys.executable, "-c", code]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    assert (lines[0], lines[2]) == ("False", "set()")
    assert re.fullmatch(r"\[ *\d+\.\d s\] reading generator and data set", lines[1])


def test_the_clock_counts_from_the_command_s_beginning(monkeypatch):
    monkeypatch.setattr(console, "BEGUN", time.monotonic() - 3600)
    screen = io.StringIO()
    ProgressView(Console(file=screen)).say("reading")
    assert re.fullmatch(r"\[36\d\d\.\d s\] reading\n", screen.getvalue())
