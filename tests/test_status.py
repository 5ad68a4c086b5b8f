"""`pti status` of large runs, and of runs that were stopped: what it reads, and what it calls a failure."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from conftest import QUICK_SETTINGS
from fsspec.implementations.memory import MemoryFileSystem

from pti_core import tables
from pti_core.checking import check_run
from pti_core.freezing.freeze import freeze
from pti_core.machine.parallel import Stopped, allow_all, stop_all
from pti_core.presets import configure
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.status import others_at_work, run_status
from pti_core.storage.files import FileInfo
from pti_core.storage.markers import make_marker
from pti_core.storage.notes import NoteBook, here
from pti_core.storage.store import Store
from tasks.progress import listen
from tasks.shards import invert_shards
from tasks.tries import ShardsLeft

DONE, SHARDS = 2000, 2500


class Counted(MemoryFileSystem):
    """Counts what is read and which folders are listed."""

    protocol = "counted"
    reads: ClassVar[Counter[str]] = Counter()
    lists: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("counted://"))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        Counted.reads[path] += 1
        return super().cat_file(path, start, end, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        Counted.lists[path.rstrip("/")] += 1
        return super().ls(path, detail, **kwargs)

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        Counted.lists[path.rstrip("/")] += 1
        return super().find(path, *args, **kwargs)


@pytest.fixture
def store() -> Store:
    """A run of one image a shard, most of them done."""
    fsspec.register_implementation("counted", Counted, clobber=True)
    Counted.store.clear()  # one for the process
    store = Store("counted://status")
    names = [f"{i}.png" for i in range(SHARDS)]
    rows = {"image_id": names, "uri": names, "group": names, "bytes": [1] * SHARDS, "etag": ["e"] * SHARDS}
    store.write_manifest("abc", tables.assign_shards(pa.table(rows), 1))
    config = configure("demo").model_dump(mode="json")
    store.write_config("abc", {"run": "abc", "digest": "d" * 64, "dataset": "data", "config": config})
    for shard in range(DONE):
        files = [FileInfo(store.part_path(table, "abc", shard, 0), 1, "0" * 64) for table in tables.PARTS]
        counts = {"manifest": 1, "pivots": 1, "rejects": 0}
        store.mark_done("abc", shard, make_marker(counts, 2.0, "d" * 64, files))
    Counted.reads.clear()
    Counted.lists.clear()
    return store


def test_each_marker_is_read_once_and_each_folder_listed_once(store: Store) -> None:
    found = run_status(store, "abc")
    assert (found.state, found.shards_done, found.images_done, found.seconds_left) == ("unfinished", DONE, DONE, 1000)
    markers = {path: count for path, count in Counted.reads.items() if "/done/" in path}
    assert (len(markers), set(markers.values())) == (DONE, {1})
    assert Counted.reads.total() - DONE <= 4  # configuration and manifest
    assert Counted.lists == {f"/status/runs/abc{folder}": 1 for folder in ("", "/done", "/notes")}


def test_a_shard_that_was_stopped_has_not_failed(dataset: Any, tmp_path: Any, tiny_checkpoint: str) -> None:
    folder, out = dataset(2), str(tmp_path / "out")
    run = freeze(str(folder), out, tiny_checkpoint, configure("demo", QUICK_SETTINGS))
    with listen(lambda progress: None):
        stop_all()
        try:
            with pytest.raises(Stopped):
                invert_shards.fn(out, run.name, [0])
        finally:
            allow_all()
        assert run_status(run.store, run.name).failed == []
        folder.rename(tmp_path / "away")
        with pytest.raises(ShardsLeft, match="none of 2 images can be read"):
            invert_shards.fn(out, run.name, [0])
    (note,) = run_status(run.store, run.name).failed
    assert "none of 2 images can be read" in note.error
    assert json.loads((tmp_path / "out/runs" / run.name / "notes/00000.json").read_text())["state"] == "failed"


def test_a_note_of_before_a_shard_was_done_and_damaged_says_nothing(
    dataset: Any, tmp_path: Any, tiny_checkpoint: str
) -> None:
    run = freeze(
        str(dataset(2)), str(tmp_path), tiny_checkpoint, configure("demo", QUICK_SETTINGS | {"engine": "noop"})
    )
    NoteBook(run.store.files, run.name, 0).failed("overcome by now")
    inverted = invert_shard(run, 0)
    measure_shard(run, 0, inverted["files"])
    run.store.files.put(inverted["files"][0]["path"], b"damaged")
    (found,) = check_run(run.store, run.name, run.store.markers(run.name))
    assert found.problems
    status = run_status(run.store, run.name)
    assert (status.state, status.shards_done, status.failed) == ("unfinished", 0, [])
    NoteBook(run.store.files, run.name, 0).failed("of the next try")
    run.store.unmark(run.name, 0)  # as one more try does that is then killed
    assert [note.error for note in run_status(run.store, run.name).failed] == ["of the next try"]


def note_of(store: Store, shard: int, **fields: Any) -> None:
    """A note as another process would write it."""
    content = {"shard": shard, "state": "running", "time": time.time(), "images": 1.0, "where": "there:7", "error": ""}
    store.files.put(f"runs/abc/notes/{shard:05d}.json", json.dumps(content | fields).encode())


def test_rejects_of_shards_in_work_count(store: Store) -> None:
    note_of(store, DONE)
    note_of(store, DONE + 1, rejects=1)
    found = run_status(store, "abc")
    assert (found.images_done, found.rejected, found.seconds_left) == (DONE + 2, 1, pytest.approx(2.0 * 498 / 2))


def test_time_is_unknown_while_the_last_images_are_measured(store: Store) -> None:
    for shard in range(DONE, SHARDS):
        note_of(store, shard)
    assert run_status(store, "abc").seconds_left is None


def test_who_else_is_at_work_is_told(store: Store) -> None:
    left = range(DONE, SHARDS)
    note_of(store, DONE, state="failed")
    note_of(store, DONE + 1, time=time.time() - 1000)
    note_of(store, DONE + 2, where=here())
    note_of(store, DONE - 1)  # of a shard that is done by now, and is tried once more for its rejects
    assert others_at_work(store, "abc", [DONE - 1, *left]) is None
    note_of(store, DONE + 3, time=time.time() - 20)
    found = others_at_work(store, "abc", left)
    assert found is not None
    assert found.startswith(f"run abc: shard {DONE + 3} is at work on there:7, last heard of 2")
    note_of(store, DONE + 4, where="elsewhere:8")
    found = others_at_work(store, "abc", left)
    assert found is not None
    assert found.startswith("run abc: 2 shards are at work on elsewhere:8 and 1 other place, last heard of 0 s ago")
