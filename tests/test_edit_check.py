"""What is damaged, gone or cannot be made of edits is said, and the same `pti edit` makes only what is missing."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from test_edit import do, finish, table
from typer.testing import CliRunner

from flows.cli import app
from pti_core.editing.answers import read_answers
from pti_core.editing.checking import check_edits
from pti_core.editing.plans import EditError, plan
from pti_core.editing.report import publish
from pti_core.editing.shards import edit_shard
from pti_core.storage.store import Store, StoreError
from tasks.edit import edit_shards
from tasks.progress import listen
from tasks.tries import ShardsLeft

ASKED = (None, ["pca:0"], [1.0])
SHARD = "shard=00000/part-0.parquet"


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, picture in zip(("0.png", "1.png", "2.png"), pictures, strict=False):
        Image.fromarray(picture).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def edited(data, tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("edited") / "out"
    finish(data, out, tiny_checkpoint)
    do(out, *ASKED)
    return out


@pytest.fixture
def root(edited, tmp_path):
    """Three images in two shards, each edited once; a copy of its own."""
    return shutil.copytree(edited, tmp_path / "out")


def part(root):
    return next(root.glob(f"edits/run=*/{SHARD}"))


def check(root):
    """Exit status and words of `pti check`."""
    result = CliRunner().invoke(app, ["check", str(root)])
    return result.exit_code, " ".join(result.output.split())


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(bytes(data))


def numbers(root):
    return table(root).drop(columns=["run", "shard"])


def test_a_part_of_another_size_or_gone_is_done_again_without_a_check(root):
    before = numbers(root)
    assert plan(str(root), *ASKED).pending == []
    for damage in (lambda: part(root).write_bytes(b"garbage\n"), lambda: part(root).unlink()):
        damage()
        planned, made = do(root, *ASKED)
        assert (planned.pending, made) == ([0], {0: 2})
        pd.testing.assert_frame_equal(numbers(root), before)
        assert plan(str(root), *ASKED).pending == []
        assert check(root)[0] == 0


def test_damage_that_keeps_the_size_is_found_and_done_again(root):
    before, good = numbers(root), part(root).read_bytes()
    # In the middle of a page, and in the footer's text: that one is still a file that can be read.
    for where in (len(good) // 4, good.rindex(b"parquet-cpp")):
        flip(part(root), where)
        if where > len(good) // 2:
            assert len(table(root)) == 3
        assert plan(str(root), *ASKED).pending == []
        status, said = check(root)
        assert status == 1
        assert f"shard 0: file '{part(root).relative_to(root)}'" in said or "is damaged" in said
        assert "`pti edit` again makes it once more" in said
        assert "error: 1 shard is not as written; the same `pti edit` again does what is damaged once more" in said
        assert len(table(root)) == 1  # what is damaged keeps nobody from reading the others
        assert check(root)[0] == 0
        planned, made = do(root, *ASKED)
        assert (planned.pending, made) == ([0], {0: 2})
        pd.testing.assert_frame_equal(numbers(root), before)
        assert check(root)[0] == 0


def test_other_requests_of_a_damaged_part_are_not_taken_for_answered(root):
    do(root, None, ["pca:1"], [1.0])
    before = numbers(root)
    part(root).write_bytes(b"garbage\n")
    assert do(root, *ASKED)[1] == {0: 2}
    assert do(root, None, ["pca:1"], [1.0])[1] == {0: 2}
    # The same where the damage has kept the size: it is met by an edit of something else.
    part(root).write_bytes(b"x" * part(root).stat().st_size)
    assert do(root, None, ["pca:0", "pca:1"], [1.0])[1] == {0: 4, 1: 0}
    pd.testing.assert_frame_equal(numbers(root), before)
    part(root).write_bytes(b"x" * part(root).stat().st_size)
    do(root, None, ["pca:2"], [1.0])
    assert do(root, *ASKED)[1] == {0: 2}


def test_answers_of_older_versions_are_asked_for_again_and_nothing_is_drawn(root):
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    for answers in root.rglob("edits/done/*.json"):
        answers.write_text(json.dumps(json.loads(answers.read_text())["answers"]))
    assert check(root)[0] == 0
    planned, made = do(root, *ASKED)
    assert (planned.pending, made) == ([0, 1], {0: 0, 1: 0})
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert plan(str(root), *ASKED).pending == []
    for answers in root.rglob("edits/done/*.json"):
        answers.write_text("garbage")
    assert plan(str(root), *ASKED).pending == [0, 1]


@pytest.mark.parametrize("folder", ["pca-0", "unedited"])
def test_a_picture_that_is_gone_is_found_and_drawn_again(root, folder):
    before = table(root)
    (gone,) = root.glob(f"runs/*/edits/{folder}/0.png/*.png")
    content = np.array(Image.open(gone))
    for damage in (gone.unlink, lambda: gone.write_bytes(b"")):
        damage()
        status, said = check(root)
        assert status == 1
        assert f"shard 0: 1 picture is missing or empty: '{gone.relative_to(root)}'; `pti edit` again" in said
        assert table(root)["picture"].isna().tolist() == [True, False, False]
        assert check(root)[0] == 0
        times = {path: path.stat().st_mtime_ns for path in root.rglob("1.png/*.png")}
        planned, made = do(root, *ASKED)
        assert (planned.pending, made) == ([0], {0: 1})
        assert np.array_equal(np.array(Image.open(gone)), content)
        assert {path: path.stat().st_mtime_ns for path in times} == times
        pd.testing.assert_frame_equal(table(root), before)
        assert check(root)[0] == 0


def test_a_check_leaves_alone_what_is_edited_meanwhile(root):
    store, run = Store(str(root)), plan(str(root)).run
    found = check_edits(store, run.name)
    assert next(found) == (0, [])  # what is there was listed
    do(root, None, ["pca:0", "pca:1"], [1.0, 2.0])
    assert list(found) == [(1, [])]
    assert len(table(root)) == 12
    # Ended between the part and its record: what is there is whole, and no damage.
    another = plan(str(root), None, ["pca:2"], [1.0])
    edit_shard(another.run, 0, another.request)
    answers = read_answers(store, run.name, 0)
    next(root.glob("runs/*/edits/done/00000.json")).write_text(json.dumps({"answers": answers.answers, "files": []}))
    assert check(root)[0] == 0
    assert len(table(root)) == 14


def files_ended_at(monkeypatch, name, times=1):
    """A process is killed when it is about to write a file of this name for the so many-th time."""
    replace, seen = Path.replace, []

    def ends(self, target):
        if Path(target).name == name:
            seen.append(target)
            if len(seen) == times:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", ends)


def test_an_edit_that_is_killed_before_its_part_is_recorded_has_damaged_nothing(root, monkeypatch):
    asked = (None, ["pca:1"], [1.0])
    planned = plan(str(root), *asked)
    with monkeypatch.context() as patches:
        files_ended_at(patches, "00000.json", times=2)  # the first one takes the record back
        with pytest.raises(KeyboardInterrupt):
            edit_shard(planned.run, 0, planned.request)
    assert len(table(root)) == 5
    assert check(root)[0] == 0
    assert len(table(root)) == 5
    assert do(root, *asked)[1] == {0: 0, 1: 1}


@pytest.mark.parametrize("times", [1, 2])
def test_a_check_that_is_killed_has_damaged_nothing(root, monkeypatch, times):
    do(root, None, ["pca:0", "pca:1"], [1.0])
    before = table(root)
    (gone,) = root.glob("runs/*/edits/pca-0/0.png/*.png")
    gone.unlink()
    run = plan(str(root)).run
    with monkeypatch.context() as patches:
        files_ended_at(patches, "00000.json", times)
        with pytest.raises(KeyboardInterrupt):
            list(check_edits(Store(str(root)), run.name))
    check(root)
    assert len(table(root)) == len(before)
    assert sum(do(root, None, ["pca:0", "pca:1"], [1.0])[1].values()) == 1
    pd.testing.assert_frame_equal(table(root), before)
    assert check(root)[0] == 0


def test_edits_and_checks_that_overlap_lose_nothing(data, tiny_checkpoint, tmp_path):
    root = tmp_path / "out"
    finish(data, root, tiny_checkpoint, batch=1)  # a part of each image
    do(root, *ASKED)
    first, second = plan(str(root), None, ["pca:1"], [1.0]), plan(str(root), None, ["pca:2"], [1.0], ["0.png"])
    (gone,) = root.glob("runs/*/edits/pca-0/0.png/*.png")
    seen = []

    def meanwhile(progress):
        seen.append(progress.done)
        if len(seen) == 3:  # the part of 0.png is written, that of 1.png is not
            edit_shard(second.run, 0, second.request)
            gone.unlink()
            check(root)

    edit_shard(first.run, 0, first.request, meanwhile)
    assert len(table(root)) == 6
    assert check(root)[0] == 0
    assert len(table(root)) == 6
    assert plan(str(root), None, ["pca:1"], [1.0]).pending == [1]
    assert do(root, *ASKED)[1] == {0: 1}
    assert not table(root)["picture"].isna().any()


def test_a_picture_that_is_found_gone_while_the_same_is_asked_for_is_drawn(root):
    asked = (None, ["pca:0", "pca:1"], [1.0])
    planned = plan(str(root), *asked)
    (gone,) = root.glob("runs/*/edits/pca-0/0.png/*.png")
    seen = []

    def meanwhile(progress):
        seen.append(progress.done)
        if len(seen) == 3:
            gone.unlink()
            check(root)

    with pytest.raises(StoreError, match="another process has changed the edits of shard 0 meanwhile"):
        edit_shard(planned.run, 0, planned.request, meanwhile)
    assert plan(str(root), *asked).pending == [0, 1]
    assert do(root, *asked)[1] == {0: 1, 1: 1}
    assert gone.exists()


def test_an_impossible_strength_costs_no_other_shard_of_its_task(root):
    asked = (None, ["pca:1"], [1.0, 1e30])
    planned = plan(str(root), *asked)
    with listen(lambda _: None), pytest.raises(ShardsLeft, match=r"direction 'pca-1' at strength 1e\+30"):
        edit_shards.fn(str(root), planned.run.name, planned.pending, asdict(planned.request))
    assert len(table(root)) == 6


def test_a_part_that_is_written_between_its_record_and_its_content_is_no_damage(root, monkeypatch):
    read, edits = LocalFileSystem.cat_file, []

    def reads(self, path, *args, **kwargs):
        if str(part(root)) in str(path) and not edits:
            edits.append("begun")
            edits.append(do(root, None, ["pca:1"], [1.0])[1])
        return read(self, path, *args, **kwargs)

    run = plan(str(root)).run
    with monkeypatch.context() as patches:
        patches.setattr(LocalFileSystem, "cat_file", reads)
        assert list(check_edits(Store(str(root)), run.name)) == [(0, []), (1, [])]
    assert edits[1:] == [{0: 2, 1: 1}]
    assert len(table(root)) == 6
    assert plan(str(root), None, ["pca:1"], [1.0]).pending == []


def test_a_damaged_file_that_a_person_meets_is_one_that_check_finds(root):
    planned = plan(str(root), *ASKED)
    part(root).write_bytes(b"x" * part(root).stat().st_size)
    with pytest.raises(StoreError, match=r"is damaged .*`pti check` finds it, and the command that made it does it ag"):
        publish(planned.run, planned.request)
    assert check(root)[0] == 1
    do(root, *ASKED)
    assert publish(planned.run, planned.request).images == 3


@pytest.mark.parametrize("drawn", [True, False])
def test_a_strength_that_gives_no_image_is_named_and_costs_nothing_else(root, drawn):
    asked = (None, ["pca:0", "pca:1"], [1.0, 1e30], None, drawn)
    planned = plan(str(root), *asked)
    said = r"direction 'pca-0' at strength 1e\+30: the edit of image '0.png' .*; choose a strength nearer 0"
    for _ in range(2):  # the same again
        with pytest.raises(EditError, match=said):
            edit_shard(planned.run, 0, planned.request)
        rows = table(root)
        assert rows["strength"].tolist() == [1.0] * 5
        assert np.isfinite(rows["lpips"]).all()
    assert plan(str(root), *asked).pending == [0, 1]
    assert do(root, None, ["pca:0", "pca:1"], [1.0], None, drawn)[1] == {0: 0, 1: 1}
