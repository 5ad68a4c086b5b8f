"""A disk that fills up or turns read-only in mid-run: one clear sentence, no half file, and the next run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import QUICK_SETTINGS, finish
from disks import LARGE, PAGE, Disk
from PIL import Image

from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.files import Files, StoreError

IMAGES = 6


@pytest.fixture(scope="module")
def begin(pictures: Any, tiny_checkpoint: str, tmp_path_factory: Any) -> Callable[[Path], Run]:
    data = tmp_path_factory.mktemp("data")
    for i, picture in enumerate(pictures[:IMAGES]):
        Image.fromarray(picture).save(data / f"{i}.png")
    config = configure("demo", QUICK_SETTINGS | {"batch": 2})
    return lambda out: freeze(str(data), str(out), tiny_checkpoint, config)


@pytest.fixture(scope="module")
def undisturbed(begin: Any, tmp_path_factory: Any) -> Run:
    return finish(begin(tmp_path_factory.mktemp("undisturbed")))


def check_no_half_file(folder: Path) -> None:
    """Every file is whole and has a name of its own."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(".") or path.suffix == ".tmp"]
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        if path.suffix == ".parquet":
            pq.read_table(path, partitioning=None)


def check_resumed(run: Run, reference: Run, before: dict[Path, int]) -> None:
    """Complete, equal to a run that was never disturbed, and what was there has not been written again."""
    assert run.to_do().shards == []
    assert run.store.check_complete(run.name) == {"manifest": IMAGES, "pivots": IMAGES, "rejects": 0}
    assert all(run.store.verify(marker) == [] for marker in run.store.done(run.name).values())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for table in ("pivots", "deltas", "metrics", "locality"):
        frames = [r.store.read(table, run=r.name).drop(columns="seconds", errors="ignore") for r in (run, reference)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)


def whole_parts(run: Run) -> dict[Path, int]:
    """Files of the parts that have all their tables, with their times."""
    folder = Path(run.store.root)
    metrics = [path.name.removesuffix(".parquet").rpartition("-")[2] for path in folder.glob("metrics/*/*/*.parquet")]
    numbers = {int(number) for number in metrics}
    parts = [p for t in ("pivots", "deltas", "metrics") for p in folder.glob(f"{t}/*/*/*.parquet")]
    own = [p for p in parts if int(p.name.removesuffix(".parquet").rpartition("-")[2]) in numbers]
    return {path: path.stat().st_mtime_ns for path in own}


@contextmanager
def after(run: Run, images: float, act: Callable[[], None]) -> Iterator[Callable[[Any], None]]:
    """A progress callback that acts once, when so many images are done."""
    acted = []

    def watch(progress: Any) -> None:
        if progress.done >= images and not acted:
            acted.append(progress.done)
            act()

    yield watch
    assert acted


def test_a_disk_that_fills_up(disk: Disk, begin: Any, undisturbed: Run) -> None:
    pages = sum(-(-p.stat().st_size // PAGE) for p in Path(undisturbed.store.root).rglob("*") if p.is_file())
    disk.remount(f"size={pages * PAGE // 2}")
    run = begin(disk.folder / "out")
    with pytest.raises(StoreError, match=rf"output '{run.store.root}' cannot be written: no space is left; ") as caught:
        finish(run)
    assert "\n" not in str(caught.value)
    check_no_half_file(disk.folder)
    assert run.to_do().shards == [0]
    with pytest.raises(StoreError, match="no space is left"):  # the same again: no progress, no harm
        finish(begin(disk.folder / "out"))
    check_no_half_file(disk.folder)
    kept = whole_parts(run)
    assert kept
    disk.remount(LARGE)
    check_resumed(finish(begin(disk.folder / "out")), undisturbed, kept)


def test_a_disk_without_space_for_the_marker_or_the_first_file(disk: Disk, begin: Any, undisturbed: Run) -> None:
    run = begin(disk.folder / "out")
    inverted = invert_shard(run, 0)
    filler = disk.fill(0)
    with pytest.raises(StoreError, match="no space is left; free some or choose another output"):
        measure_shard(run, 0, inverted["files"], inverted["seconds"])
    with pytest.raises(StoreError, match="no space is left; free some or choose another output"):
        begin(disk.folder / "out")
    check_no_half_file(disk.folder / "out")
    kept = whole_parts(run)
    filler.unlink()
    check_resumed(finish(begin(disk.folder / "out")), undisturbed, kept)


def test_a_disk_that_turns_read_only(disk: Disk, begin: Any, undisturbed: Run) -> None:
    run = begin(disk.folder / "out")

    def turn() -> None:
        for _ in range(1000):
            try:
                return disk.remount("ro")
            except OSError:  # busy, as long as a file is being written
                time.sleep(0.01)

    with after(run, 4.1, turn) as watch, pytest.raises(StoreError, match=r"cannot be written: this place is read-only"):
        invert_shard(run, 0, watch)
    check_no_half_file(disk.folder)
    assert run.to_do().shards == [0]
    with pytest.raises(StoreError, match="this place is read-only"):
        begin(disk.folder / "out")
    kept = whole_parts(run)
    assert kept
    disk.remount("rw")
    check_resumed(finish(begin(disk.folder / "out")), undisturbed, kept)


def test_a_file_over_an_older_one_stays_the_older_one(disk: Disk) -> None:
    disk.remount(f"size={20 * PAGE}")
    files = Files(str(disk.folder))
    files.put("runs/a/config.json", b"old")
    with pytest.raises(StoreError, match="no space is left"):
        files.put("runs/a/config.json", bytes(30 * PAGE))
    assert files.find("") == {"runs/a/config.json": 3}
    assert files.get("runs/a/config.json", "") == b"old"
