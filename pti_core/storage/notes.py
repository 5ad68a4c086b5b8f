"""Notes of shards in work, for `pti status`: who works on it, how far, or why it failed.

They lie in `runs/<run>/notes/00012.json`, are written now and then (not for a shard of seconds) and decide nothing: a
note is true only while its shard has no marker, and no later one. Nothing is deleted, since not every user may.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any, Final, Literal, Self

from pti_core.storage.files import Files

EVERY: Final = 15.0
"""Seconds between notes of one shard; a shard that takes less leaves none."""

QUIET: Final = EVERY
"""Seconds after which a shard is noted again though it tells nothing."""

LATE: Final = 3 * EVERY
"""Seconds after which the next note is overdue."""

HANGS: Final = 3600.0
"""Seconds after which one that has told nothing is noted no more: no preparation takes as long, nor any measure."""

FRESH: Final = 180.0
"""Seconds after which a shard without a new note no longer counts as in work: its worker was killed, or hangs for
long."""

PATIENCE: Final = 5.0
"""Seconds that a shard's end waits for a note on its way to an output that is slow."""

State = Literal["running", "failed", "stopped"]


@dataclass(frozen=True)
class Note:
    """What is known of a shard that is not done."""

    shard: int
    state: State
    time: float  # when it was written, seconds since 1970
    images: float  # done so far, rejects included
    where: str  # host and process
    error: str = ""
    rejects: int = 0  # so far, as far as is known
    pids: str = ""  # where its process has its number (see `_pids`); empty where that is not known

    @property
    def running(self) -> bool:
        """Whether somebody seems to be at work on it."""
        return self.state == "running" and abs(time.time() - self.time) < FRESH and not self._gone()

    @property
    def age(self) -> float:
        """Seconds since it was written, by this machine's clock; 0 where that is behind."""
        return max(0.0, time.time() - self.time)

    def _gone(self) -> bool:
        """Whether its process was killed; only where this process would see it."""
        if not self.pids or self.pids != _pids():
            return False
        try:
            os.kill(int(self.where.rpartition(":")[2]), 0)
        except ProcessLookupError:
            return True
        except (OSError, ValueError, OverflowError):
            pass
        return False


class NoteBook:
    """The notes that one task writes of its shard. What goes wrong with them does not matter.

    As a context: at its end no note of it is on its way any more, but to an output that does not answer. Where the
    process is told to stop meanwhile, the shard is noted as stopped (`stop_all_notes`).
    """

    def __init__(self, files: Files, run: str, shard: int) -> None:
        self._files, self._path, self._shard = files, _path(run, shard), shard
        self._last = self._told = time.monotonic()
        self._images, self._rejects = 0.0, 0
        self._writing: Thread | None = None
        self._lock, self._ended = RLock(), False  # a signal may come while it is held
        self._closed = Event()
        self._still = Thread(target=self._while_open, name="pti-still", daemon=True)

    def running(self, images: float, rejects: int = 0) -> None:
        """Still at work; `images` of the shard are done, of which so many are rejected.

        Written in a thread, so that an output that is slow holds up nobody.
        """
        with self._lock:
            self._told, self._images, self._rejects = time.monotonic(), images, rejects
            self._note()

    def _note(self) -> None:
        with self._lock:
            idle = not (self._writing and self._writing.is_alive())
            if idle and not self._ended and time.monotonic() - self._last >= EVERY:
                self._last = time.monotonic()
                self._writing = self._begin("running")

    def _while_open(self) -> None:
        """A shard is noted though it tells nothing: a generator is prepared for long, or many places are measured."""
        while not self._closed.wait(QUIET):
            if time.monotonic() - self._told < HANGS:
                self._note()

    def stop(self) -> None:
        """Begin to note, after what is on its way, that nobody is at work on it; once."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._writing = self._begin("stopped", self._writing)

    def failed(self, error: str) -> None:
        """The shard is left for the next run."""
        self._write("failed", error=error)

    def __enter__(self) -> Self:
        with _lock:
            _open.append(self)
        with suppress(RuntimeError):  # no thread can be started
            self._still.start()
        return self

    def __exit__(self, *_: object) -> None:
        """A note that is being written comes before what is written of the shard later, but is not waited for long."""
        self._closed.set()
        with _lock:
            _open.remove(self)
        with self._lock:
            self._ended = True
        self.wait(PATIENCE)

    def wait(self, seconds: float) -> None:
        """Until no note is on its way, at most so long."""
        if self._writing is not None:
            self._writing.join(seconds)

    def _begin(self, state: State, after: Thread | None = None) -> Thread | None:
        images, rejects = self._images, self._rejects

        def write() -> None:
            if after is not None:
                after.join()
            self._write(state, images, rejects)

        thread = Thread(target=write, name="pti-note", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be started
            return after
        return thread

    def _write(self, state: State, images: float = 0.0, rejects: int = 0, error: str = "") -> None:
        note = Note(self._shard, state, time.time(), images, here(), error, rejects, _pids())
        with suppress(Exception):
            self._files.put(self._path, json.dumps(asdict(note), sort_keys=True).encode())


def here() -> str:
    """Host and process, as in `Note.where`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _pids() -> str:
    """The machine's start and the namespace in which process numbers mean what they mean here; empty but on Linux."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    return ""


_lock, _open = RLock(), list[NoteBook]()  # of the shards that this process is at work on


def stop_all_notes() -> Callable[[float], None]:
    """Begin to note of all shards in work that they are stopped; a function that waits for it, at most so long."""
    with _lock:
        left = list(_open)
    for note in left:
        note.stop()

    def wait(seconds: float) -> None:
        end = time.monotonic() + seconds
        for note in left:
            note.wait(max(0.0, end - time.monotonic()))

    return wait


def read_notes(files: Files, run: str, shards: Sequence[int]) -> list[Note]:
    """The notes of these shards, as far as there are any."""
    wanted = {_path(run, shard) for shard in shards}
    there = [path for path in files.find(f"runs/{run}/notes") if path in wanted]
    found = {path: _parse(data) for path, data in files.get_all(there).items()}
    return [note for path, note in found.items() if note and _path(run, note.shard) == path]


def last_noted(files: Files, run: str, shard: int) -> float:
    """When the newest note of a shard was written, by its writer's clock; 0 where there is none."""
    (data,) = files.get_all([_path(run, shard)]).values()
    note = _parse(data)
    return note.time if note else 0.0


def undone(marker: Mapping[str, Any], files: Files, run: str, shard: int) -> dict[str, Any]:
    """What takes a marker's place where its shard is done no more.

    It tells which notes are of before, and say nothing of the shard's next try.
    """
    return (
        dict(marker) if marker.get("damaged") else {**marker, "damaged": True, "noted": last_noted(files, run, shard)}
    )


def _parse(data: bytes | None) -> Note | None:
    """None for what is no note: a file of anyone's."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        content: dict[str, Any] = json.loads(data or b"")
        wanted = {field.name: field.type for field in fields(Note)}
        as_type: dict[Any, Callable[[Any], Any]] = {"int": int, "float": float, "str": str, "State": str}
        # Without what a later version may tell as well.
        return Note(**{name: as_type[wanted[name]](value) for name, value in content.items() if name in wanted})
    return None


def _path(run: str, shard: int) -> str:
    return f"runs/{run}/notes/{shard:05d}.json"
