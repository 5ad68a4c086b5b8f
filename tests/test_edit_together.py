"""Edits of a shard that others change meanwhile: their rows are read, lost ones never count, what holds stays."""

import shutil

import pytest
from fsspec.implementations.local import LocalFileSystem
from test_edit import do, finish, table

from pti_core.editing.answers import Answers, about_to_write, add_answer, read_answers
from pti_core.editing.plans import plan
from pti_core.editing.shards import edit_shard
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.files import StoreError
from pti_core.storage.store import Store


@pytest.mark.parametrize("before", [[], ["pca:0"]])
def test_rows_that_another_writes_after_a_part_was_read_are_kept(
    before, dataset, tiny_checkpoint, tmp_path, monkeypatch
):
    root = tmp_path / "out"
    finish(dataset(2), root, tiny_checkpoint)
    if before:
        do(root, None, before, [1.0])
    other, this = (plan(str(root), None, [name], [1.0]) for name in ("pca:1", "pca:2"))
    read, seen = LocalFileSystem.cat_file, []

    def reads(self, path, *args, **kwargs):
        try:
            return read(self, path, *args, **kwargs)
        finally:
            if "/edits/run=" in str(path):
                seen.append(path)
                if len(seen) == 2:  # the first was to know what is missing; what comes of this one is written back
                    edit_shard(other.run, 0, other.request)

    with monkeypatch.context() as patches:
        patches.setattr(LocalFileSystem, "cat_file", reads)
        edit_shard(this.run, 0, this.request)
    asked = [*before, "pca:1", "pca:2"]
    assert table(root)["direction"].value_counts().to_dict() == {name.replace(":", "-"): 2 for name in asked}
    assert do(root, None, asked, [1.0])[1] == {0: 0}


def test_an_answer_about_a_part_that_another_has_written_counts_no_more(tmp_path):
    store, path = Store(str(tmp_path)), "edits/run=a/shard=00000/part-0.parquet"
    old, new = store.files.put(path, b"old"), store.files.put(path, b"new")
    assert about_to_write(store, "a", 0, path, None)
    assert add_answer(store, "a", 0, "one", [old])
    assert not about_to_write(store, "a", 0, path, new)  # that was read before the other wrote
    assert read_answers(store, "a", 0) == Answers()
    assert add_answer(store, "a", 0, "one", [old])
    assert about_to_write(store, "a", 0, path, old)
    assert add_answer(store, "a", 0, "two", [old])  # of one who looked before this one writes
    assert not add_answer(store, "a", 0, "three", [new])
    assert read_answers(store, "a", 0) == Answers()
    assert add_answer(store, "a", 0, "three", [new])
    assert read_answers(store, "a", 0) == Answers(["three"], [new])


@pytest.fixture
def retried(dataset, tiny_checkpoint, tmp_path):
    """A run of a part with one image and one reject, which another try may help now; its root."""
    folder = dataset(1)
    (folder / "1.png").symlink_to(tmp_path / "later.png")
    run = finish(folder, tmp_path / "out", tiny_checkpoint)
    shutil.copy(folder / "0.png", tmp_path / "later.png")
    return run, tmp_path / "out"


def test_an_image_that_is_added_to_a_part_leaves_the_edits_of_the_others(retried):
    run, root = retried
    do(root, None, ["pca:0", "pca:1"], [1.0])
    before = table(root)
    measure_shard(run, 0, invert_shard(run, 0, retry_rejects=True)["files"])
    assert do(root, None, ["pca:0"], [1.0])[1] == {0: 1}
    assert do(root, None, ["pca:0"], [1.0])[1] == {}
    after = table(root)
    assert after["image_id"].value_counts().to_dict() == {"0.png": 2, "1.png": 1}
    assert after[after["image_id"] == "0.png"].reset_index(drop=True).equals(before)


def test_a_shard_that_is_done_again_loses_no_edits(retried):
    run, root = retried
    do(root, None, ["pca:0"], [1.0])
    before = table(root)
    planned = plan(str(root), None, ["pca:1"], [1.0])

    def again(now):
        if now.done:
            measure_shard(run, 0, invert_shard(run, 0, retry_rejects=True)["files"])

    with pytest.raises(StoreError, match="shard 0 was done again while it was edited; edit it again"):
        edit_shard(planned.run, 0, planned.request, again)
    run.store.unmark(run.name, 0, {0})
    with pytest.raises(StoreError, match="shard 0 is unfinished"):
        edit_shard(planned.run, 0, planned.request)
    assert table(root).equals(before)
    measure_shard(run, 0, invert_shard(run, 0)["files"])
    assert edit_shard(planned.run, 0, planned.request)["edits"] == 2
    assert table(root)["direction"].value_counts().to_dict() == {"pca-0": 1, "pca-1": 2}
