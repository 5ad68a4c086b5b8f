"""The end of a run as it is told: pictures one by one, and what is left where all images are done."""

import io
from pathlib import Path

import pytest
from conftest import QUICK_SETTINGS, finish
from rich.console import Console

from flows.console import ProgressView
from flows.run_cli import _published
from pti_core import report
from pti_core.freezing.freeze import freeze
from pti_core.html_report import PAGE
from pti_core.presets import configure


@pytest.fixture
def run(dataset, tiny_checkpoint, tmp_path):
    """All of its images are done."""
    return finish(freeze(str(dataset(2)), str(tmp_path / "out"), tiny_checkpoint, configure("demo", QUICK_SETTINGS)))


def said(run):
    """The lines of a command that finds all images done."""
    screen = io.StringIO()
    view = ProgressView(Console(file=screen, width=200))
    _published(run, view)
    return [line.partition("] ")[2] for line in screen.getvalue().splitlines()]


def test_pictures_are_told_one_by_one_and_nothing_where_none_is_lacking(run):
    told = []
    first = report.publish(run, lambda *what: told.append(what))
    sheet, page = ([(what, done, 2) for done in range(3)] for what in ("contact sheet", "report"))
    assert told == sheet + page
    assert report.publish(run, lambda *what: told.append(what)) == first
    assert len(told) == 6


def test_all_is_done_only_where_the_report_is_there_too(run):
    left = "all images are done; the report is left"
    lines = said(run)  # on a slow machine more than two
    assert lines[:2] == [left, "drawing the contact sheet, image 1 of 2"]
    assert "everything is done already" not in lines
    assert said(run) == ["everything is done already"]
    Path(run.store.files.at(f"runs/{run.name}/report/{PAGE}")).unlink()
    lines = said(run)
    assert lines[:2] == [left, "drawing the report, image 1 of 2"]
    assert "everything is done already" not in lines
