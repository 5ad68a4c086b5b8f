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
from typing import Any, Final, Literal

from pti_core.files import Files, StoreError

EVERY: Final = 15.0
"""Seconds between notes of one shard; a shard that takes less leaves none."""

FRESH: Final = 180.0
"""Seconds after which a shard without a new note no longer counts as in work: its worker has ended, or hangs."""


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
    """The notes that one task writes of its shard. What goes wrong with them does not matter."""

    def __init__(self, files: Files, run: str, shard: int) -> None:
        self._files, self._path, self._shard = files, _path(run, shard), shard
        self._last = time.monotonic()

    def running(self, images: float) -> None:
        """Still at work; `images` of the shard are done."""
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._write("running", images, "")

    def failed(self, error: str) -> None:
        """The shard is left for the next run."""
        self._write("failed", 0.0, error)

    def _write(self, state: Literal["running", "failed"], images: float, error: str) -> None:
        where = f"{socket.gethostname()}:{os.getpid()}"
        note = Note(self._shard, state, time.time(), images, where, error)
        with suppress(StoreError):
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
