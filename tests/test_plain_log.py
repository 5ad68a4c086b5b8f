"""What a run's log says of an error: its sentence, once; of an error that nobody foresaw, all there is."""

import logging

import pytest

import tasks.tries  # noqa: F401 (has Prefect log so)
from pti_core.storage.known_runs import RunError


@pytest.fixture
def said():
    """What gets through to the handlers of Prefect's log of flow runs."""
    records, logger = [], logging.getLogger("prefect.flow_runs")

    class Handler(logging.Handler):
        def emit(self, record):
            records.append((self.format(record), record.exc_info))

    handler, level = Handler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def log(message, error, level=logging.ERROR):
    try:
        raise error
    except Exception:
        logging.getLogger("prefect.flow_runs").log(level, message, error, exc_info=True)


def test_an_own_error_is_its_sentence_once_whatever_layers_it_passes(said):
    error = RunError("no run 'x'; runs there: y")
    for layer in (
        "Task run failed with exception: %r - Retries are exhausted",
        "Encountered exception during execution: %r",
    ):
        log(layer, error)
    assert said == [("no run 'x'; runs there: y", None)]


def test_what_a_call_itself_says_stays(said):
    error = RunError("no run 'x'")
    log("a hook failed (%s)", error)
    log("shard 3 failed%.0s", error, logging.WARNING)
    assert said == [("a hook failed (no run 'x')", None), ("shard 3 failed: no run 'x'", None)]


def test_any_other_error_is_shown_with_its_traceback(said):
    log("Encountered exception during execution: %r", KeyError("x"))
    ((message, trace),) = said
    assert trace is not None
    assert "Traceback (most recent call last)" in message
