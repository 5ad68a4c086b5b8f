"""What `pti status` tells of a run at work."""

import json
import subprocess
import sys
import threading
import time

import pytest

from pti_core.storage import notes
from pti_core.storage.notes import NoteBook, last_noted, read_notes, stop_all_notes
from pti_core.storage.store import Store


@pytest.fixture
def files(tmp_path):
    return Store(str(tmp_path / "out")).files


def test_a_short_shard_leaves_no_note(files):
    with NoteBook(files, "r", 3) as note:
        note.running(1.0)
    assert read_notes(files, "r", [3]) == []


def test_notes_tell_who_works_and_what_failed(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    with NoteBook(files, "r", 3) as note:
        note.running(1.5)
    NoteBook(files, "r", 4).failed("no space is left")
    NoteBook(files, "r", 5).failed("is done by now")
    running, failed = read_notes(files, "r", [3, 4])
    assert (running.running, running.images, failed.running, failed.error) == (True, 1.5, False, "no space is left")


def test_a_worker_that_is_silent_no_longer_counts(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    with NoteBook(files, "r", 3) as note:
        note.running(1.5)
    path = "runs/r/notes/00003.json"
    content = json.loads(files.get(path, ""))
    files.put(path, json.dumps(content | {"time": time.time() - 2 * notes.FRESH}).encode())
    (note,) = read_notes(files, "r", [3])
    assert not note.running


def test_a_process_that_was_killed_is_at_work_no_more_as_far_as_that_can_be_seen(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    with NoteBook(files, "r", 3) as note:
        note.running(1.5)
    path = "runs/r/notes/00003.json"
    content = json.loads(files.get(path, ""))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    there = {"where": f"host:{gone.pid}"}
    for change, running in (({}, True), (there, False), (there | {"pids": "of another machine"}, True)):
        files.put(path, json.dumps(content | change).encode())
        (note,) = read_notes(files, "r", [3])
        assert note.running == running, change


FIELDS = {"shard": 3, "state": "failed", "time": 1.0, "images": 0.0, "where": "a:1", "error": ""}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"shard": 3}',
        *(json.dumps(FIELDS | {n: None}).encode() for n in ("shard", "time", "images", "rejects")),
    ],
)
def test_a_note_that_cannot_be_read_is_none(files, content):
    files.put("runs/r/notes/00003.json", content)
    assert read_notes(files, "r", [3]) == []
    assert last_noted(files, "r", 3) == 0.0


@pytest.mark.parametrize("fields", [{"where": None}, {"where": 5}, {"where": ["a"]}, {"of a later version": 1}])
def test_odd_fields_of_a_note_harm_nothing(files, fields):
    content = FIELDS | {"state": "running", "time": time.time(), "pids": notes._pids()} | fields
    files.put("runs/r/notes/00003.json", json.dumps(content).encode())
    (note,) = read_notes(files, "r", [3])
    assert note.running


def test_a_clock_that_is_hours_ahead_says_nothing(files):
    files.put("runs/r/notes/00003.json", json.dumps(FIELDS | {"state": "running", "time": time.time() + 9999}).encode())
    (note,) = read_notes(files, "r", [3])
    assert not note.running


def test_a_copy_of_another_shard_s_note_is_none(files):
    for shard in (3, 4):
        files.put(f"runs/r/notes/0000{shard}.json", json.dumps(FIELDS).encode())
    assert [note.shard for note in read_notes(files, "r", [3, 4])] == [3]


class Slow:
    """An output that does not answer until it is told to."""

    def __init__(self, files):
        self.files, self.asked, self.answer = files, 0, threading.Event()

    def put(self, path, data):
        self.asked += 1
        assert self.answer.wait(30)
        self.files.put(path, data)


def test_an_output_that_is_slow_holds_up_nobody_and_is_asked_once_at_a_time(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    slow = Slow(files)
    with NoteBook(slow, "r", 3) as note:
        note.running(1.0)  # would hang here
        note.running(2.0)
        slow.answer.set()
    (found,) = read_notes(files, "r", [3])
    assert (slow.asked, found.images) == (1, 1.0)


def test_a_shard_that_tells_nothing_at_first_is_noted(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    monkeypatch.setattr(notes, "QUIET", 0.05)
    with NoteBook(files, "r", 3) as note:
        for _ in range(600):
            if found := read_notes(files, "r", [3]):
                break
            time.sleep(0.05)
        note.running(0.0)
    assert [note.running for note in found] == [True]


def test_a_shard_that_tells_nothing_for_long_is_noted_no_more(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    monkeypatch.setattr(notes, "QUIET", 0.01)
    monkeypatch.setattr(notes, "HANGS", 0.0)
    with NoteBook(files, "r", 3) as note:
        time.sleep(0.2)
        assert read_notes(files, "r", [3]) == []
        note.running(1.0)
    assert [note.images for note in read_notes(files, "r", [3])] == [1.0]


def test_a_process_that_is_told_to_stop_is_at_work_no_more(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    with NoteBook(files, "r", 3) as first, NoteBook(files, "r", 4) as second:
        first.running(1.5)
        second.running(2.5)
        stop_all_notes()(30)
        first.running(1.7)  # a step that it was at
        found = read_notes(files, "r", [3, 4])
    assert [(note.state, note.images, note.running) for note in found] == [
        ("stopped", 1.5, False),
        ("stopped", 2.5, False),
    ]
    assert read_notes(files, "r", [3, 4]) == found


def test_nothing_is_noted_of_a_shard_that_has_ended_but_how(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    with NoteBook(files, "r", 5) as note:
        note.running(1.0)
    stop_all_notes()(30)
    note.running(2.0)  # what was about to be told
    note.stop()
    note.wait(30)
    assert [(note.state, note.images) for note in read_notes(files, "r", [5])] == [("running", 1.0)]
    note.failed("no space is left")
    assert [note.state for note in read_notes(files, "r", [5])] == ["failed"]


def test_a_machine_without_threads_loses_notes_and_nothing_else(files, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(notes, "EVERY", 0.0)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with NoteBook(files, "r", 3) as note:
        note.running(1.0)
        stop_all_notes()(30)
    assert read_notes(files, "r", [3]) == []


def test_stopping_waits_for_a_slow_output_no_longer_than_it_may(files, monkeypatch):
    monkeypatch.setattr(notes, "EVERY", 0.0)
    slow = Slow(files)
    with NoteBook(slow, "r", 3) as note:
        note.running(1.0)
        stop_all_notes()(0.01)  # would hang here
        slow.answer.set()
    (found,) = read_notes(files, "r", [3])
    assert (slow.asked, found.state) == (2, "stopped")
