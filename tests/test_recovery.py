"""What a run survives: lost and damaged files, inputs that cannot be read for a while, overwriting, being killed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import shutil
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import QUICK_SETTINGS
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image, ImageFile

from pti_core import report, tables
from pti_core.datasets import DatasetError, scan
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.reading import read_bytes
from pti_core.runs import Run
from pti_core.shard.inputs import InputsUnreadable
from pti_core.shard.originals import OriginalGone
from pti_core.shard.parts import INVERTED
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.shard.staged import end_changes, put_aside
from pti_core.status import run_status
from pti_core.storage.files import StoreError
from pti_core.storage.known_runs import RunError
from pti_core.storage.layout import CLEARING
from pti_core.storage.notes import read_notes

COLUMNS = ["image_id", "stage", "lpips"]


@pytest.fixture
def begin(tmp_path, tiny_checkpoint):
    def freeze_into(dataset, limit=None, shard_size=64, existing="resume", **settings) -> Run:
        config = configure("demo", QUICK_SETTINGS | {"batch": 2} | settings)
        return freeze(str(dataset), str(tmp_path / "out"), tiny_checkpoint, config, limit, shard_size, existing)

    return freeze_into


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("pti_core.reading.READ_WAITS", (0.0, 0.0))


def finish(run: Run, retry: bool = False) -> Run:
    for shard in run.to_do(retry).shards:
        inverted = invert_shard(run, shard, retry_rejects=retry)
        inverted = json.loads(json.dumps(inverted))  # as it goes from task to task
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    return run


def frame(run: Run, table: str = "metrics", columns: list[str] | None = None) -> pd.DataFrame:
    columns = columns or COLUMNS
    return run.store.read(table, run=run.name, columns=columns).sort_values(columns).reset_index(drop=True)


def check_whole(run: Run, images: int, rejects: int = 0) -> None:
    assert run.to_do().shards == []
    assert run.store.check_complete(run.name) == {"manifest": images, "pivots": images - rejects, "rejects": rejects}
    assert all(run.store.verify(marker) == [] for marker in run.store.done(run.name).values())
    owners = set(run.store.read("deltas", columns=["owner"])["owner"])
    assert owners == set(run.store.read("locality", columns=["image_id"])["image_id"]) == set(frame(run)["image_id"])


def part(run: Run, table: str, number: int) -> Path:
    return Path(run.store.root) / run.store.part_path(table, run.name, 0, number)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def times(run: Run) -> dict[str, int]:
    found = [path for path in Path(run.store.root).rglob("*.parquet") if "run=" in str(path)]
    return {f"{path.parts[-4]}/{path.name}": path.stat().st_mtime_ns for path in found}


# --- lost and damaged files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [True, False])
def test_what_was_lost_or_damaged_is_done_again_and_nothing_else_is(dataset, begin, marked):
    run = finish(begin(dataset(4)))
    undisturbed, whole = frame(run), times(run)
    marker = Path(run.store.root) / f"runs/{run.name}/done/00000.json"
    for number, (table, damage) in enumerate(
        [
            ("deltas", truncate),
            ("deltas", Path.unlink),
            ("pivots", Path.unlink),
            ("rejects", Path.unlink),
            ("metrics", truncate),
            ("locality", truncate),
        ]
    ):
        damaged = number % 2
        damage(part(run, table, damaged))
        if not marked:
            marker.unlink()
        assert run.to_do().shards == [0], table
        before = times(run)
        finish(run)
        check_whole(run, 4)
        after = times(run)
        assert after.keys() == whole.keys()
        changed = {name for name in after if after[name] != before.get(name)}
        again = ["locality"] if table == "locality" else tables.PARTS
        assert changed == {f"{t}/{part(run, t, damaged).name}" for t in again}, table
        pd.testing.assert_frame_equal(frame(run), undisturbed, atol=1e-3)


def test_damage_that_keeps_the_size_is_found_where_the_shard_is_done_again(dataset, begin):
    run = finish(begin(dataset(4)))
    undisturbed = frame(run)
    change(part(run, "deltas", 0))
    part(run, "pivots", 1).unlink()
    finish(run)
    check_whole(run, 4)
    pd.testing.assert_frame_equal(frame(run), undisturbed, atol=1e-3)


def test_damage_beside_a_part_that_was_lost_too_is_not_taken_for_whole(dataset, begin):
    run = finish(begin(dataset(4)))
    undisturbed = frame(run, "locality", ["image_id", "where", "t", "lpips"])
    path = part(run, "locality", 1)
    table = pq.read_table(path, partitioning=None)  # its seal stays: only the marker knows its bytes
    wrong = table.set_column(
        table.schema.get_field_index("lpips"), table.schema.field("lpips"), pa.array([9.0] * len(table))
    )
    pq.write_table(wrong, path)
    part(run, "pivots", 0).unlink()
    finish(run)
    check_whole(run, 4)
    pd.testing.assert_frame_equal(frame(run, "locality", ["image_id", "where", "t", "lpips"]), undisturbed, atol=1e-3)


@pytest.mark.parametrize("seal", [b"{", b"\xff", b"[]", b'{"seconds": 1}', b'{"seconds": 1, "sha256": 2}'])
@pytest.mark.parametrize("table", ["metrics", "locality"])
def test_a_seal_that_cannot_be_read_is_none(dataset, begin, table, seal):
    run = begin(dataset(2), **{"engine": "noop"})
    finish(run)
    path = part(run, table, 0)
    content = pq.read_table(path, partitioning=None)
    pq.write_table(content.replace_schema_metadata({**content.schema.metadata, b"pti_part": seal}), path)
    (Path(run.store.root) / f"runs/{run.name}/done/00000.json").unlink()
    finish(run)
    assert run.to_do().shards == []
    assert pq.read_schema(path).metadata[b"pti_part"] != seal


def test_tables_of_different_tries_are_not_taken_together(dataset, begin):
    """A worker was killed while it did a part again: its deltas are of one try, its pivots of another."""
    folder = dataset(2)
    run, other = begin(folder), begin(folder, seed=1)
    for one in (run, other):
        invert_shard(one, 0)
    undisturbed = frame(run)
    shutil.copy(part(other, "deltas", 0), part(run, "deltas", 0))
    finish(run)
    assert run.store.check_complete(run.name) == {"manifest": 2, "pivots": 2, "rejects": 0}
    assert part(run, "deltas", 0).read_bytes() != part(other, "deltas", 0).read_bytes()
    pd.testing.assert_frame_equal(frame(run), undisturbed, atol=1e-3)


def test_a_part_lost_after_it_was_inverted_is_named_and_done_by_the_next_run(dataset, begin):
    run = begin(dataset(2))
    inverted = invert_shard(run, 0)
    part(run, "pivots", 0).unlink()
    with pytest.raises(RuntimeError, match=r"pivots/.*part-0\.parquet' is missing"):
        measure_shard(run, 0, inverted["files"], inverted["seconds"])
    check_whole(finish(run), 2)


def test_seconds_are_those_of_all_the_work_also_of_a_shard_that_was_cut_off(dataset, begin):
    run = begin(dataset(4))
    start = time.perf_counter()

    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.done > 2:  # in the second part
            raise Killed

    with pytest.raises(Killed):
        invert_shard(run, 0, kill)
    first = time.perf_counter() - start
    inverted = invert_shard(run, 0)
    second = time.perf_counter() - start - first
    assert inverted["seconds"] > second  # the first part's are in it
    measure_shard(run, 0, inverted["files"], inverted["seconds"])
    marker = run.store.done(run.name)[0]
    assert inverted["seconds"] < marker["seconds"] < time.perf_counter() - start
    part(run, "locality", 0).unlink()
    finish(run)
    assert run.store.done(run.name)[0]["seconds"] > inverted["seconds"]


def test_time_left_is_that_of_inverting_too(dataset, begin):
    run = begin(dataset(6), shard_size=2)
    inverted = invert_shard(run, 0)
    measure_shard(run, 0, inverted["files"], inverted["seconds"])
    marker = run.store.done(run.name)[0]
    assert marker["seconds"] > inverted["seconds"] > 0
    assert run_status(run.store, run.name).seconds_left == pytest.approx(2 * marker["seconds"])  # two shards are left


# --- inputs that cannot be read ------------------------------------------------------------------------------------


def test_memory_that_is_short_for_one_image_rejects_that_one_until_another_try(dataset, begin, monkeypatch):
    folder, load = dataset(3), ImageFile.ImageFile.load
    Image.new("RGB", (44, 44)).save(folder / "large.png")

    def short(image):
        if image.size == (44, 44):
            raise MemoryError
        return load(image)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", short)
        run = finish(begin(folder, engine="noop"))
    assert run.store.check_complete(run.name) == {"manifest": 4, "pivots": 3, "rejects": 1}
    assert frame(run, "rejects", ["image_id", "error", "permanent"]).to_numpy().tolist() == [
        ["large.png", "MemoryError", False]
    ]
    finish(run, retry=True)
    assert run.store.check_complete(run.name) == {"manifest": 4, "pivots": 4, "rejects": 0}


class Flaky(MemoryFileSystem):
    """A file system whose reads fail as often as `failures` says, by the file's name."""

    protocol = "flaky"
    failures: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("flaky://"))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        name = path.rpartition("/")[2]
        if Flaky.failures[name]:
            Flaky.failures[name] -= 1
            raise TimeoutError(f"{name}: read timed out after https://host/{name}?X-Amz-Signature=abc")
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture
def flaky(dataset):
    """The first four pictures on a file system whose reads fail for a while."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    fs, folder = fsspec.filesystem("flaky"), dataset(4)
    for path in folder.iterdir():
        fs.pipe_file(f"/pictures/{int(path.stem) // 2}/{path.name}", path.read_bytes())
    Flaky.failures.clear()
    yield "flaky://pictures"
    Flaky.failures.clear()


def test_reads_that_fail_for_a_moment_are_tried_again(flaky, begin):
    Flaky.failures["1.png"] = 2
    check_whole(finish(begin(flaky)), 4)
    assert Flaky.failures["1.png"] == 0


def test_rejects_are_noted_while_a_shard_is_at_work(flaky, begin, monkeypatch):
    monkeypatch.setattr("pti_core.storage.notes.EVERY", 0.0)
    run = begin(flaky)

    def wait(progress):  # until it is noted, or the next one would not be
        for _ in range(500):
            if any(note.images == progress.done for note in read_notes(run.store.files, run.name, [0])):
                return
            time.sleep(0.01)

    for failures, retry, rejects in ((3, False, 1), (3, True, 1), (0, True, 0)):
        Flaky.failures["1.png"] = failures
        invert_shard(run, 0, wait, retry_rejects=retry)
        (note,) = read_notes(run.store.files, run.name, [0])
        assert (note.images, note.rejects) == (4, rejects)


def test_what_could_not_be_read_is_tried_again_by_the_next_run(flaky, begin):
    run = begin(flaky)
    Flaky.failures["1.png"] = 6
    finish(run)
    check_whole(run, 4, rejects=1)
    assert run_status(run.store, run.name).state == "done"
    columns = ["image_id", "stage", "error", "permanent", "attempts"]
    assert frame(run, "rejects", columns).to_numpy().tolist() == [["0/1.png", "read", "ReadError", False, 1]]
    (message,) = run.store.read("rejects")["message"]
    assert "timed out" in message and "\n" not in message and "Signature" not in message
    before, metrics = times(run), frame(run)
    assert (run.to_do().shards, run.to_do(retry_rejects=True).shards) == ([], [0])
    finish(run, retry=True)  # in vain
    check_whole(run, 4, rejects=1)
    assert frame(run, "rejects", columns)["attempts"].tolist() == [2]
    written = {"rejects/part-0.parquet", "metrics/part-0.parquet"}
    assert {name for name, at in times(run).items() if at != before[name]} == written
    run = finish(begin(flaky), retry=True)
    check_whole(run, 4)
    assert run.to_do(retry_rejects=True).shards == []
    assert len(frame(run)) == 4 * 3
    pd.testing.assert_frame_equal(frame(run)[lambda f: f.image_id != "0/1.png"].reset_index(drop=True), metrics)
    assert run.store.read("metrics").attrs == {"lpips_net": "alex"}


def test_a_group_is_done_again_as_a_whole(flaky, begin):
    run = begin(flaky, mode="multi")
    Flaky.failures["1.png"] = 3
    finish(run)
    check = run.store.check_complete(run.name)
    assert check == {"manifest": 4, "pivots": 3, "rejects": 1}
    before = times(run)
    Flaky.failures["0.png"] = 3  # now another one of the group: the group stays as it is
    finish(run, retry=True)
    assert run.store.check_complete(run.name) == check
    assert times(run) == before
    finish(run, retry=True)
    assert run.store.check_complete(run.name) == {"manifest": 4, "pivots": 4, "rejects": 0}
    assert run.store.read("deltas")["owner"].value_counts().nunique() == 1
    assert run.to_do().shards == []


def test_a_data_set_that_is_away_does_not_become_rejects(dataset, begin):
    folder = dataset(4)
    run = begin(folder)
    folder.rename(folder.with_name("away"))
    with pytest.raises(InputsUnreadable, match=r"data set '.*data': none of 4 images can be read.*run the same"):
        invert_shard(run, 0)
    assert not list(Path(run.store.root).rglob("part-*"))
    folder.with_name("away").rename(folder)
    check_whole(finish(run), 4)


def test_a_link_without_a_target_is_one_reject_even_in_a_part_of_its_own(dataset, begin):
    folder = dataset(2)
    (folder / "9.png").symlink_to(folder / "nothing.png")
    run = finish(begin(folder))
    check_whole(run, 3, rejects=1)
    shutil.copy(folder / "0.png", folder / "nothing.png")
    check_whole(finish(run, retry=True), 3)


def zipped(path: Path, folder: Path, damage: str) -> Path:
    """The folder's files stored in a zip, one of them damaged."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(damage).header_offset
    data = bytearray(path.read_bytes())
    data[offset + 200 : offset + 260] = bytes(60)
    path.write_bytes(data)
    return path


def test_a_damaged_member_of_a_zip_costs_itself_only(dataset, tmp_path, begin):
    run = finish(begin(zipped(tmp_path / "set.zip", dataset(3), "1.png")))
    check_whole(run, 3, rejects=1)
    (row,) = tables.records(run.store.read("rejects"))
    assert (row["image_id"], row["stage"]) == ("1.png", "read")
    assert row["message"].startswith("'zip://1.png!") and "\n" not in row["message"]
    assert row["message"].endswith("; `--retry-rejects` (retry_rejects=true) tries it again")


def test_an_encrypted_zip_is_an_error_of_reading(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("1.png", b"1")
    data = bytearray((tmp_path / "set.zip").read_bytes())
    data[6] |= 1  # the flag, in both headers
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "set.zip").write_bytes(data)
    (entry,) = scan(str(tmp_path / "set.zip")).to_pylist()
    with pytest.raises(OSError, match=r"zip://1\.png!.* cannot be read \(RuntimeError: .*encrypted"):
        read_bytes(entry["uri"])


# --- overwriting and freezing --------------------------------------------------------------------------------------


def test_overwrite_lists_the_inputs_anew_and_leaves_nothing_old(dataset, begin, pictures):
    folder = dataset(3)
    run = finish(begin(folder, shard_size=1))
    report.publish(run)
    sheet = Path(run.store.root) / f"runs/{run.name}/report/contact_sheet.png"
    old = np.asarray(Image.open(sheet))
    Image.fromarray(pictures[5]).save(folder / "0.png")
    (folder / "1.png").unlink()
    again = finish(begin(folder, existing="overwrite"))
    assert again.name == run.name
    check_whole(again, 2)
    report.publish(again)
    assert np.asarray(Image.open(sheet)).shape[0] < old.shape[0]
    assert again.manifest.shards == 1
    assert len(again.store.read("rejects", columns=["image_id"])) == 0


def test_overwrite_without_inputs_loses_nothing(dataset, begin):
    folder = dataset(2)
    run = finish(begin(folder))
    report.publish(run)
    files = {p: p.read_bytes() for p in Path(run.store.root).rglob("*") if p.is_file()}
    folder.rename(folder.with_name("away"))
    with pytest.raises(DatasetError, match="does not exist"):
        begin(folder, existing="overwrite")
    assert {p: p.read_bytes() for p in Path(run.store.root).rglob("*") if p.is_file()} == files


def test_a_run_cut_off_while_it_was_frozen_or_overwritten_is_frozen_anew(dataset, begin, pictures):
    folder = dataset(3)
    run = finish(begin(folder))
    (Path(run.store.root) / f"runs/{run.name}/config.json").rename(Path(run.store.root) / f"runs/{run.name}/{CLEARING}")
    Image.fromarray(pictures[5]).save(folder / "7.png")
    again = begin(folder, shard_size=2)
    assert (again.name, again.to_do().shards, again.manifest.rows) == (run.name, [0, 1], 4)
    check_whole(finish(again), 4)


def test_a_gone_image_that_has_a_damaged_part_to_itself_keeps_its_pivot(dataset, begin):
    folder = dataset(3)
    run = finish(begin(folder))
    part(run, "metrics", 1).write_bytes(b"damaged")
    (folder / "2.png").unlink()
    before = part(run, "pivots", 1).read_bytes()
    with pytest.raises(InputsUnreadable, match=r"'2.png' cannot be read any more .*if they are gone for good, remove"):
        invert_shard(run, 0)
    assert part(run, "pivots", 1).read_bytes() == before


def test_a_group_with_a_changed_image_is_not_tried_again_for_another_s_reject(dataset, pictures, begin):
    folder = dataset(2, "people")
    (folder / "anna").mkdir()
    for name in ("0.png", "1.png"):
        (folder / name).rename(folder / "anna" / name)
    file = folder / "anna/1.png"
    was = file.read_bytes()
    file.unlink()
    file.symlink_to("nowhere")
    run = finish(begin(folder, mode="multi"))
    before = part(run, "pivots", 0).read_bytes()
    file.unlink()
    file.write_bytes(was)
    Image.fromarray(pictures[5]).save(folder / "anna/0.png")
    finish(run, retry=True)
    assert part(run, "pivots", 0).read_bytes() == before


def test_a_run_that_has_lost_its_configuration_is_not_done_again_without_being_asked(dataset, tmp_path, begin):
    folder = dataset(2)
    run = finish(begin(folder))
    config = tmp_path / "out/runs" / run.name / "config.json"
    content = config.read_bytes()
    config.unlink()
    marker = config.parent / "done/00000.json"
    for gone in (config, marker):  # parts are results, too
        gone.unlink(missing_ok=True)
        with pytest.raises(RunError, match=r"has lost its configuration; bring .* back, or `pti run` with --overwrite"):
            begin(folder)
    config.write_bytes(content)
    finish(begin(folder))
    assert begin(folder).to_do().shards == []
    config.unlink()
    again = begin(folder, existing="overwrite")
    assert again.to_do().shards == [0]
    check_whole(finish(again), 2)


@pytest.mark.parametrize("gone", [False, True])
def test_what_is_whole_is_kept_where_another_table_is_damaged_and_the_file_is_another_by_now(
    gone, dataset, pictures, tmp_path, begin
):
    folder = dataset(2)
    run = finish(begin(folder))
    pivots, metrics = part(run, "pivots", 0), part(run, "metrics", 0)
    before = pivots.read_bytes()
    metrics.write_bytes(b"damaged")
    file = folder / "1.png"
    was = file.read_bytes()
    file.unlink() if gone else Image.fromarray(pictures[5]).save(file)
    said = "cannot be read any more" if gone else "is another file than was inverted"
    for unmarked in (False, True):  # as by a try that was killed
        if unmarked:
            run.store.unmark(run.name, 0, {0})
        with pytest.raises(OriginalGone, match=rf"image '1.png' {said}.*; bring the file back and run it again, or"):
            invert_shard(run, 0)
    assert pivots.read_bytes() == before
    file.write_bytes(was)
    folder.rename(tmp_path / "away")
    with pytest.raises(InputsUnreadable, match="check that it is there"):
        invert_shard(run, 0)
    (tmp_path / "away").rename(folder)
    check_whole(finish(run), 2)
    metrics.write_bytes(b"damaged")
    Image.fromarray(pictures[5]).save(file)
    pivots.unlink()  # as the sentence says, to have it inverted as it is now
    check_whole(finish(run), 2)


def test_a_retry_that_fails_at_any_write_costs_nothing_though_the_inputs_are_gone(
    dataset, tmp_path, begin, monkeypatch
):
    folder, out, kept = dataset(1), tmp_path / "out", tmp_path / "kept"
    (folder / "1.png").symlink_to(tmp_path / "1.png")
    run = finish(begin(folder))
    check_whole(run, 2, rejects=1)
    before = frame(run)
    original = (folder / "0.png").read_bytes()
    shutil.copytree(out, kept)
    replace, added = Path.replace, 0
    for failing in range(1, 99):
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        (folder / "0.png").write_bytes(original)
        (tmp_path / "1.png").write_bytes(original)
        writes = itertools.count(1)

        def at_times(path: Path, target: Path, writes: Any = writes, failing: int = failing) -> Path:
            if next(writes) == failing:
                raise OSError(errno.EIO, "Input/output error")
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", at_times)
            with contextlib.suppress(StoreError):
                finish(run, retry=True)
        if next(writes) <= failing:
            break  # no write of it failed
        (folder / "0.png").unlink()
        (tmp_path / "1.png").unlink()
        finish(run)
        left = len(run.store.read("rejects"))
        check_whole(run, 2, rejects=left)
        pd.testing.assert_frame_equal(frame(run)[lambda f: f.image_id == "0.png"], before)
        assert not list((out / "runs" / run.name).glob("staged/*"))
        added += left == 0
    assert failing > 10
    assert added > 4  # all of the new files were aside


@pytest.mark.parametrize("why", ["ended", "of another state", "of before --overwrite", "not all there"])
def test_only_a_change_of_what_is_there_is_ended(why, dataset, begin):
    run = finish(begin(dataset(1), engine="noop"))
    paths = {table: part(run, table, 0) for table in INVERTED}
    before = {table: run.store.file_info(run.store.part_path(table, run.name, 0, 0)).sha256 for table in INVERTED}
    of = replace(run, created="2020") if why == "of before --overwrite" else run
    folder = Path(run.store.root) / put_aside(of, 0, 0, before, {"pivots": b"new pivots", "metrics": b"new metrics"})
    paths["pivots"].write_bytes(b"new pivots")  # as far as the try before came
    if why == "of another state":
        paths["deltas"].write_bytes(b"done again since")
    if why == "not all there":
        (folder / "metrics.part").unlink()
    metrics = paths["metrics"].read_bytes()
    end_changes(run, 1)  # another shard's
    assert folder.exists()
    end_changes(run, 0)
    assert not folder.exists()
    assert paths["metrics"].read_bytes() == (b"new metrics" if why == "ended" else metrics)


def test_only_the_folders_of_its_own_shard_are_looked_into(dataset, begin, monkeypatch):
    run = finish(begin(dataset(1), engine="noop"))
    before = {table: run.store.file_info(run.store.part_path(table, run.name, 0, 0)).sha256 for table in INVERTED}
    own, *others = (put_aside(run, shard, 0, before, {"metrics": b"new"}) for shard in (0, 1, 2, 100_000))
    listed, ls = [], run.store.files.fs.ls
    monkeypatch.setattr(run.store.files.fs, "ls", lambda path, **how: listed.append(path) or ls(path, **how))
    end_changes(run, 0)
    assert [run.store.files.at(path) for path in (own.rpartition("/")[0], own)] == listed
    assert part(run, "metrics", 0).read_bytes() == b"new"
    assert all((Path(run.store.root) / folder / "change.json").exists() for folder in others)
