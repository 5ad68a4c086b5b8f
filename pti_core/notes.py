"""Notes of shards in work, for `pti status`: who works on it, how far, or why it failed.

They lie in `runs/<run>/notes/00012.json`, are written now and then (not for a shard of seconds) and decide nothing: a
note is true only while its shard has no marker. Nothing is deleted, since not every user may.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from threading import Thread
from typing import Any, Final, Literal, Self

from pti_core.files import Files

EVERY: Final = 15.0
"""Seconds between notes of one shard; a shard that takes less leaves none."""

FRESH: Final = 180.0
"""Seconds after which a shard without a new note no longer counts as in work: its worker has ended, or hangs."""

PATIENCE: Final = 5.0
"""Seconds that a shard's end waits for a note on its way to an output that is slow."""


@dataclass(frozen=True)
class Note:
    """What is known of a shard that is not done."""

    shard: int
    state: Literal["running", "failed"]
    time: float  # when it was written, seconds since 1970
    images: float  # done so far
    where: str  # host and process
    error: str = ""

    @property
    def running(self) -> bool:
        """Whether somebody seems to be at work on it."""
        return self.state == "running" and time.time() - self.time < FRESH


class NoteBook:
    """The notes that one task writes of its shard. What goes wrong with them does not matter.

    As a context: at its end no note of it is on its way any more, but to an output that does not answer.
    """

    def __init__(self, files: Files, run: str, shard: int) -> None:
        self._files, self._path, self._shard = files, _path(run, shard), shard
        self._last = time.monotonic()
        self._writing: Thread | None = None

    def running(self, images: float) -> None:
        """Still at work; `images` of the shard are done.

        Written in a thread, so that an output that is slow holds up nobody.
        """
        if time.monotonic() - self._last >= EVERY and not (self._writing and self._writing.is_alive()):
            self._last = time.monotonic()
            self._writing = Thread(target=self._write, args=("running", images, ""), name="pti-note", daemon=True)
            self._writing.start()

    def failed(self, error: str) -> None:
        """The shard is left for the next run."""
        self._write("failed", 0.0, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A note that is being written comes before what is written of the shard later, but is not waited for long."""
        if self._writing is not None:
            self._writing.join(PATIENCE)

    def _write(self, state: Literal["running", "failed"], images: float, error: str) -> None:
        where = f"{socket.gethostname()}:{os.getpid()}"
        note = Note(self._shard, state, time.time(), images, where, error)
        with suppress(Exception):
            self._files.put(self._path, json.dumps(asdict(note), sort_keys=True).encode())


def read_notes(files: Files, run: str, shards: Sequence[int]) -> list[Note]:
    """The notes of these shards, as far as there are any."""
    wanted = {_path(run, shard) for shard in shards}
    there = [path for path in files.find(f"runs/{run}/notes") if path in wanted]
    notes = []
    for data in files.get_all(there).values():
        with suppress(ValueError, TypeError):
            content: dict[str, Any] = json.loads(data or b"")
            notes.append(Note(**content))
    return notes


def _path(run: str, shard: int) -> str:
    return f"runs/{run}/notes/{shard:05d}.json"
