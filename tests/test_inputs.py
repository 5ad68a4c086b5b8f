"""What cannot be read: an image's own fault is its reject, that of the machine or of the data set's place is not."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS, finish
from disks import PAGE, Disk

from pti_core.alignment import COLUMNS, align
from pti_core.connections import OutOfResources
from pti_core.datasets import DatasetError, scan
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.reading import DEMO_FOLDER
from pti_core.runs import Run
from pti_core.shard.inputs import InputsUnreadable, check_not_all_unreadable, read_inputs
from pti_core.shard.shards import plan_parts
from pti_core.sources import parquet_rows, tars, zips

IMAGES = 4


@pytest.fixture
def begin(tmp_path: Path, tiny_checkpoint: str) -> Any:
    config = configure("demo", QUICK_SETTINGS | {"batch": 1, "engine": "noop"})
    return lambda dataset, **options: freeze(str(dataset), str(tmp_path / "out"), tiny_checkpoint, config, **options)


def stored(folder: Path, kind: str) -> Path:
    """The images of a folder as one of the kinds of data sets."""
    paths, path = sorted(folder.iterdir()), folder.with_name(f"set.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for image in paths:
                archive.write(image, image.name)
    elif kind == "parquet":
        pd.DataFrame({"image": [image.read_bytes() for image in paths]}).to_parquet(path)
    elif kind != "folder":
        with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
            for image in paths:
                archive.add(image, image.name)
    return folder if kind == "folder" else path


def forget() -> None:
    """As in the process of a worker, which has nothing open."""
    for kept in (tars._index, tars.unpacked, zips._archive, parquet_rows._reader):
        kept.forget()


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """This process may have no more of it."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def check_all_are_read(run: Run) -> None:
    found = read_inputs(run, run.manifest.shard(0), 32, {})
    assert (len(found.targets), found.rejects) == (IMAGES, [])


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tgz", "parquet"])
def test_too_many_open_files_are_no_fault_of_images(kind: str, dataset: Any, begin: Any) -> None:
    run = begin(stored(dataset(IMAGES), kind))
    rows = run.manifest.shard(0)
    forget()
    says = r"data set '.*' cannot be read: too many files are open .*\(`ulimit -n`\); then run the same command again$"
    with pytest.raises(InputsUnreadable, match=says), limited(resource.RLIMIT_NOFILE, 3):
        read_inputs(run, rows, 32, {})
    check_all_are_read(run)


NO_ROOM = r"temporary files cannot be written \(.*\); free space in /tmp, or set TMPDIR to a folder with more"


def test_an_archive_that_finds_no_room_to_be_unpacked(dataset: Any, begin: Any) -> None:
    path = stored(dataset(IMAGES), "tgz")
    run = begin(path)
    rows = run.manifest.shard(0)
    for call, error in (
        (lambda: read_inputs(run, rows, 32, {}), InputsUnreadable),
        (lambda: scan(str(path)), DatasetError),
    ):
        forget()
        before = open_files()
        with pytest.raises(error, match=NO_ROOM) as caught, limited(resource.RLIMIT_FSIZE, 4096):
            call()
        assert open_files() == before  # its room is free again, though the error is held
        assert os.strerror(errno.EFBIG) in str(caught.value)
    check_all_are_read(run)


def test_a_full_disk_of_temporary_files(dataset: Any, begin: Any, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(stored(dataset(IMAGES), "tgz"))
    rows = run.manifest.shard(0)
    forget()
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    filler = disk.fill(PAGE)
    with pytest.raises(InputsUnreadable, match=NO_ROOM) as caught:
        read_inputs(run, rows, 32, {})
    assert os.strerror(errno.ENOSPC) in str(caught.value)
    filler.unlink()
    check_all_are_read(run)


def test_no_folder_for_temporary_files(dataset: Any, begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(dataset(IMAGES), "tgz")
    run = begin(path)
    rows = run.manifest.shard(0)
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(path.with_name("gone")))
        with pytest.raises(InputsUnreadable, match=NO_ROOM):
            read_inputs(run, rows, 32, {})
    check_all_are_read(run)


def test_photographs_are_not_left_out_for_it(dataset: Any, tmp_path: Path) -> None:
    pd.DataFrame([dict.fromkeys(COLUMNS, 1.0) | {"image_id": "1.png"}]).to_csv(tmp_path / "points.csv")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def run_out(done: int, total: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))

    try:
        with pytest.raises(OutOfResources, match=r"1\.png' cannot be read: too many files are open"):
            align(str(dataset(2)), f"{tmp_path}/points.csv", tmp_path / "faces", 64, on_progress=run_out)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_part_of_dead_links_alone_asks_others_when_it_is_tried_again(dataset: Any, begin: Any) -> None:
    """Whichever images are dead, no part is held up by them for ever."""
    folder = dataset(12)
    for dead in ("0.png", "3.png", "6.png", "9.png"):  # evenly spread
        (folder / dead).unlink()
        (folder / dead).symlink_to(folder / "nothing.png")
    run = begin(folder)
    for part in plan_parts(run.manifest.shard(0), run.config.batch, False):
        for _ in range(20):  # three of three others are dead in one of 165 times
            found = read_inputs(run, part, 32, {})
            try:
                check_not_all_unreadable(run, part, found)
                break
            except InputsUnreadable:
                continue
        else:
            pytest.fail(f"{part[0]['image_id']} is never done")


def test_inputs_are_drawn_from_all_files_of_a_manifest(dataset: Any, begin: Any) -> None:
    folder = dataset(12)
    (folder / "3.png").rename(folder.with_name("new.png"))
    begin(folder)
    folder.with_name("new.png").rename(folder / "new.png")
    run = begin(folder, existing="extend")
    assert run.manifest.shards == 2
    uris = run.manifest.table(["uri"])["uri"].to_pylist()
    assert sorted(run.manifest.drawn(100)) == sorted(uris)
    drawn = [tuple(run.manifest.drawn(3)) for _ in range(50)]
    assert all(len(set(one)) == 3 for one in drawn)
    assert {uri for one in drawn for uri in one} == set(uris)
    assert len(set(drawn)) > 10


def unlink(folder: Path, numbers: range) -> None:
    for i in numbers:
        (folder / f"{i}.png").unlink()


def test_files_that_expired_before_their_shard_ran_are_rejects_where_newer_ones_are_there(
    dataset: Any, begin: Any
) -> None:
    folder = dataset(12)
    begin(folder, shard_size=3)
    unlink(folder, range(12))
    shutil.copy(DEMO_FOLDER / "06-party-hat.png", folder / "new.png")
    run = begin(folder, shard_size=3, existing="extend")
    assert run.manifest.shards == 5
    finish(run)
    assert run.store.check_complete(run.name) == {"manifest": 13, "pivots": 1, "rejects": 12}
    assert not run.store.read("rejects", run.name)["permanent"].any()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_they_are_too_where_the_data_set_lists_others_that_are_no_inputs_of_the_run(
    dataset: Any, begin: Any, kind: str
) -> None:
    folder = dataset(4)
    sets = folder.with_name("sets")
    sets.mkdir()
    stored(folder, kind).rename(sets / f"old.{kind}")
    run = begin(sets)
    forget()
    (sets / f"old.{kind}").rename(folder.with_name("old"))
    with pytest.raises(InputsUnreadable, match=r"none of 4 images can be read"):
        finish(run)
    assert not list(Path(run.store.root).rglob("part-*"))
    if kind == "folder":
        shutil.copytree(DEMO_FOLDER, sets / "new")
    else:
        shutil.copytree(DEMO_FOLDER, folder.with_name("new"))
        stored(folder.with_name("new"), kind).rename(sets / "new.zip")
    finish(run)
    assert run.store.check_complete(run.name) == {"manifest": 4, "pivots": 0, "rejects": 4}


def test_links_into_a_place_that_is_away_are_listed_and_no_rejects(dataset: Any, begin: Any) -> None:
    folder = dataset(4)
    links = folder.with_name("links")
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    run = begin(links)
    folder.rename(folder.with_name("away"))
    for _ in range(3):
        with pytest.raises(InputsUnreadable, match=r"none of 4 images can be read"):
            finish(run)
    assert not list(Path(run.store.root).rglob("part-*"))


def test_what_is_out_of_reach_is_no_reject_though_the_data_set_lists_more(
    dataset: Any, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(4)
    run = begin(folder)
    shutil.copytree(DEMO_FOLDER, folder / "new")

    def denied(uri: str) -> bytes:
        raise PermissionError(13, "denied", uri)

    monkeypatch.setattr("pti_core.runs.read_bytes", denied)
    monkeypatch.setattr("pti_core.shard.inputs.read_bytes", denied)
    with pytest.raises(InputsUnreadable, match="the first with PermissionError"):
        finish(run)
    assert not list(Path(run.store.root).rglob("part-*"))
