"""What a run's log says of an error: its sentence, once; of an error that nobody foresaw, all there is."""

import logging
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.context import FlowRunContext
from prefect.logging import handlers

import tasks.tries
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


def test_what_the_core_warns_of_in_a_run_gets_into_its_log_once_and_to_the_terminal(monkeypatch, caplog):
    sent, run = [], SimpleNamespace(id=uuid4())
    monkeypatch.setattr(handlers, "emit_api_log", sent.append)
    tasks.plain_log.warnings_to_the_run()  # once more
    with FlowRunContext.model_construct(flow_run=run):
        logging.getLogger("pti_core.machine.device").warning("this machine has a GPU that torch does not see")
    logging.getLogger("pti_core.machine.device").warning("of no run")  # no server is to be told, nor is that an error
    assert [(log["flow_run_id"], log["message"]) for log in sent] == [
        (str(run.id), "this machine has a GPU that torch does not see")
    ]
    assert [record.getMessage() for record in caplog.records] == [sent[0]["message"], "of no run"]
