"""Images at other addresses than those a run knows: what `extend` takes for the same image, and what it refuses."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import finish
from PIL import Image

from pti_core.freezing.freeze import freeze
from pti_core.freezing.readdressed import check_addresses
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.known_runs import RunError


@pytest.fixture
def begin(tmp_path: Path, tiny_checkpoint: str) -> Callable[..., Run]:
    config = configure("noop", {"batch": 1})
    return lambda dataset, **options: freeze(
        str(dataset), str(tmp_path / "out"), tiny_checkpoint, config, shard_size=2, **options
    )


def encoded(picture: Any) -> bytes:
    Image.fromarray(picture).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(pictures: list[Any]) -> Callable[..., None]:
    """Writes a Parquet file with rows of a name and the number of a picture; `ids` is where the names stand."""

    def rows_into(path: Path, rows: list[tuple[str | None, int]], ids: str = "path") -> None:
        data, names = [encoded(pictures[number]) for _, number in rows], [name for name, _ in rows]
        if ids == "path":
            images = [{"bytes": one, "path": name} for one, name in zip(data, names, strict=True)]
            pq.write_table(pa.table({"image": images, "key": [f"k{number}" for _, number in rows]}), path)
        else:
            pq.write_table(pa.table({"image": data, ids: names}), path)

    return rows_into


@pytest.fixture
def push(write: Any, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of such files anew, as they are named on a hub."""

    def files_of(*files: list[tuple[str | None, int]], ids: str = "path") -> Path:
        folder = tmp_path / "hub"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for i, rows in enumerate(files):
            write(folder / f"train-{i:05d}-of-{len(files):05d}.parquet", rows, ids)
        return folder

    return files_of


def ids(run: Run) -> list[str]:
    return run.manifest.table()["image_id"].to_pylist()


def test_a_data_set_that_was_cut_into_other_files_is_not_inverted_again(begin: Any, push: Any) -> None:
    finish(begin(push([("a", 0), ("b", 1)], [("c", 2), ("d", 3)])))
    moved = "{} images are at other addresses now, with the same content, and not appended again"
    hub = push([("a", 0)], [("b", 5), ("c", 2)], [("new", 4)])
    told = begin(hub).remarks
    assert told[0] == "1 new and 1 changed files are not in this run; `--extend` (existing=extend) adds them"
    assert told[1:] == ("1 of this run's 4 files is gone from the data set",)
    extended = begin(hub, existing="extend")
    gone = "1 of this run's 4 files is gone from the data set, 'd'; it stays in the run"
    assert extended.remarks == ("1 new and 1 changed files are appended as shard 2", moved.format(2), gone)
    assert ids(finish(extended)) == ["a", "b", "c", "d", "new", "b@2"]
    known = extended.store.root + f"/runs/{extended.name}/compared.parquet"
    assert len(pq.read_table(known)) == 2  # which are not read again
    assert begin(hub, existing="extend").remarks[:1] == (moved.format(2),)
    hub = push([("a", 0)], [("b", 5)], [("c", 2)], [("d", 3), ("new", 4)])  # all of both times
    assert begin(hub).remarks == ()
    extended = begin(hub, existing="extend")
    assert (extended.remarks, extended.manifest.rows) == ((moved.format(5),), 6)


def test_what_moved_before_its_shard_read_it_is_appended(begin: Any, push: Any) -> None:
    run = begin(push([("a", 0), ("b", 1)], [("c", 2)]))
    inverted = invert_shard(run, 0)
    measure_shard(run, 0, inverted["files"], inverted["seconds"])
    extended = begin(push([("a", 0), ("b", 1), ("c", 2)]), existing="extend")
    assert extended.remarks[0] == "1 changed file is appended as shard 2"
    assert ids(extended) == ["a", "b", "c", "c@2"]


def test_what_moved_after_its_part_was_inverted_is_not_appended_though_its_shard_is_not_done(
    begin: Any, push: Any, tmp_path: Path
) -> None:
    run = finish(begin(push([("a", 0), ("b", 1)], [("c", 2), ("d", 3)], [("e", 4)])))
    for marker in (tmp_path / "out/runs" / run.name).glob("done/*.json"):
        marker.unlink()
    assert run.to_do().shards == [0, 1, 2]
    parts = tmp_path / "out" / "{}" / f"run={run.name}"
    (last,) = Path(str(parts).format("metrics")).glob("shard=*1/part-*1.parquet")
    last.unlink()  # killed before the part of `d` was whole
    (damaged,) = Path(str(parts).format("pivots")).glob("shard=*2/part-*0.parquet")
    damaged.write_bytes(b"PAR1")
    moved = push([("a", 0), ("b", 5), ("c", 2)], [("d", 3), ("e", 4)])
    extended = begin(moved, existing="extend")
    assert ids(extended)[5:] == ["b@2", "d@2", "e@2"]
    assert extended.remarks[1].startswith("2 images are at other addresses now, with the same content")


def test_a_data_set_that_is_cut_back_into_files_of_before_has_nothing_new(begin: Any, push: Any) -> None:
    finish(begin(push([("a", 0), ("b", 1)], [("c", 2)])))
    finish(begin(push([("a", 0)], [("b", 5)], [("c", 2)]), existing="extend"))
    back = push([("a", 0), ("b", 5)], [("c", 2)])
    assert begin(back).remarks == ()
    extended = begin(back, existing="extend")
    assert (extended.remarks, ids(extended)) == ((), ["a", "b", "c", "b@2"])
    assert ids(begin(push([("a", 0), ("b", 4)], [("c", 2)]), existing="extend"))[4:] == ["b@3"]


def test_moved_images_are_too_many_to_be_read_for_a_remark(
    begin: Any, push: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(begin(push([("a", 0), ("b", 1)])))
    monkeypatch.setattr("pti_core.freezing.freeze.LOOKED_AT", 1)
    (remark,) = begin(push([("a", 0)], [("b", 1)])).remarks
    assert remark.startswith("2 touched files are not in this run; `--extend` (existing=extend) adds them, but for ")


@pytest.mark.parametrize(
    ("column", "added", "old", "new"),
    [
        ("key", [("c", 2), (None, 3)], "column 'key'", "the numbers of rows"),
        ("key", [("c", 2), ("c", 3)], "column 'key'", "the numbers of rows"),
        ("path", [("c", 2), ("c", 3)], "their own paths", "column 'key'"),
    ],
)
def test_a_file_that_takes_the_ids_of_all_is_refused(
    begin: Any, push: Any, write: Any, column: str, added: Any, old: str, new: str
) -> None:
    hub = push([("a", 0), ("b", 1)], ids=column)
    first = finish(begin(hub))
    write(hub / "train-00001.parquet", added, column)
    says = (
        f"^run {first.name}: it knows the images in '{hub}/train-00000-of-00001.parquet' by {old} .*, and the data set "
        rf"lists them by {new} .* now \('{hub}/train-00001.parquet' is new beside it\), .* with another --output$"
    )
    with pytest.raises(RunError, match=says):
        begin(hub, existing="extend")
    (remark,) = begin(hub).remarks  # what is frozen can be finished
    assert remark.startswith(f"run {first.name}: it knows the images in")
    write(hub / "train-00001.parquet", [("c", 2), ("d", 3)], column)
    assert ids(begin(hub, existing="extend")) == ["a", "b", "c", "d"]


def test_a_run_that_was_extended_so_by_an_earlier_version_goes_on() -> None:
    before, now = [f"parquet://image!key={name}::x.parquet" for name in "ab"], ["parquet://image!0::x.parquet"]
    with pytest.raises(RunError, match="by column 'key' "):
        check_addresses("r", before, now)
    check_addresses("r", before + now, now)
    check_addresses("r", before + now, before)


def test_files_that_were_renamed_and_lost_their_ids_at_once_are_refused(begin: Any, push: Any) -> None:
    run = finish(begin(push([("a", 0), ("b", 1)], [("c", 2)])))
    hub = push([("a", 0)], [("b", 1)], [("c", 2), ("c", 3)], ids="key")
    says = (
        f"^run {run.name}: it knows images in Parquet files by their own paths .*, and the data set has none of these "
        rf"files and lists others \('{hub}/train-00000-of-00003.parquet', say\) by the numbers of rows .* now, so that"
    )
    with pytest.raises(RunError, match=says):
        begin(hub, existing="extend")
    assert begin(hub).remarks[0].startswith(f"run {run.name}: it knows images in Parquet files by their own paths")


@pytest.mark.parametrize("first", ["a", None])
def test_a_folder_with_other_files_every_week_goes_on(begin: Any, push: Any, first: str | None) -> None:
    finish(begin(push([(first, 0), ("b", 1)], ids="key")))
    extended = begin(push([(first and "c", 2)], [("d", 3)], ids="key"), existing="extend")
    assert extended.remarks[0] == "2 new files are appended as shard 1"
    assert extended.remarks[1].startswith("2 of this run's 2 files are gone from the data set, ")


def test_rows_that_a_run_of_before_knows_by_numbers_in_files_of_other_names_are_found_by_their_names() -> None:
    before, now = ["parquet://image!0::old.parquet"], ["parquet://image!key=a::new.parquet"]
    check_addresses("r", before, now, names_shared=True)
    with pytest.raises(RunError, match=r"by the numbers of rows .* by column 'key' "):
        check_addresses("r", before, now)


def test_pictures_beside_the_archives_of_a_run_are_refused(
    begin: Any, pictures: list[Any], dataset: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(dataset(3), ".")
    run = finish(begin(folder))
    assert ids(run) == ["a/0.png", "a/1.png", "a/2.png"]
    stray = folder / "stray.png"
    stray.write_bytes(encoded(pictures[4]))
    says = rf"^run {run.name}: its images are in archives .*\('file://{stray}', say\), .* move these pictures elsewhere"
    with pytest.raises(RunError, match=says):
        begin(folder, existing="extend")
    (remark,) = begin(folder).remarks
    assert remark.startswith(f"run {run.name}: its images are in archives")
    stray.unlink()
    assert begin(folder, existing="extend").remarks == ()


def test_archives_that_were_unpacked_later_are_no_pictures_beside_archives(
    begin: Any, pictures: list[Any], dataset: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    (folder / "a").mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(dataset(3), ".")
    finish(begin(folder))
    (folder / "a.tar").rename(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(folder / "a", filter="data")
    (folder / "new.png").write_bytes(encoded(pictures[4]))
    extended = begin(folder, existing="extend")
    assert ids(extended) == ["a/0.png", "a/1.png", "a/2.png", "new.png"]
    assert extended.remarks[1] == "3 images are at other addresses now, with the same content, and not appended again"


def test_archives_beside_pictures_are_told(begin: Any, pictures: list[Any], dataset: Any, tmp_path: Path) -> None:
    folder = dataset(2)
    (folder / "more").mkdir()
    with tarfile.open(folder / "more/b.tar.gz", "w:gz") as tar:
        tar.add(dataset(1, "packed"), ".")
    run = begin(folder)
    assert run.remarks == (
        f"1 archive or Parquet file of dataset '{folder}' is left out, since there are pictures beside it (the first "
        "is 'more/b.tar.gz'); name them by a pattern such as '**/*.tar.gz' to read them instead",
    )
    assert ids(run) == ["0.png", "1.png"]
    assert begin(folder).remarks == ()  # once is enough
    pq.write_table(pa.table({"image": [b""]}), folder / "a.parquet")
    (folder / "new.png").write_bytes(encoded(pictures[3]))
    (appended, remark) = begin(folder, existing="extend").remarks
    assert appended == "1 new file is appended as shard 1"
    assert remark.startswith("2 archive or Parquet files of dataset ")
    assert remark.endswith("first is 'a.parquet'); name them by a pattern such as '*.parquet' to read them instead")
    assert ids(begin(f"{folder}/**/*.tar.gz")) == ["more/b/0.png"]
    assert begin(f"{folder}/*/*.tar.gz").remarks == ()
