"""A data set that grows: what `extend` appends, what `resume` says of it, and what stays as it is."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import QUICK_SETTINGS
from PIL import Image

from pti_core.datasets import DatasetError
from pti_core.freezing.freeze import freeze
from pti_core.generators.checkpoints import save_generator
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.known_runs import RunError
from pti_core.tables import schema, to_parquet


@pytest.fixture
def begin(tmp_path, tiny_checkpoint):
    def freeze_into(dataset, preset="demo", settings=None, generator=tiny_checkpoint, **options):
        config = configure(preset, (QUICK_SETTINGS if preset == "demo" else {}) | (settings or {}))
        return freeze(str(dataset), str(tmp_path / "out"), generator, config, shard_size=2, **options)

    return freeze_into


def finish(run):
    done = run.to_do().shards
    for shard in done:
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    return done


def ids(run):
    return run.manifest.table()["image_id"].to_pylist()


def test_new_and_changed_files_become_new_shards_and_what_was_done_stays(dataset, begin, pictures, tmp_path):
    folder = dataset(3)
    first = begin(folder)
    finish(first)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("part-*")}
    Image.fromarray(pictures[5]).save(folder / "7.png")
    Image.fromarray(pictures[6]).save(folder / "1.png")  # other content under a known name
    (folder / "0.png").unlink()
    extended = begin(folder, existing="extend")
    assert extended.name == first.name
    gone = "1 of this run's {} files is gone from the data set, '0.png'; it stays in the run"
    assert extended.remarks == ("1 new and 1 changed files are appended as shard 2", gone.format(3))
    assert ids(extended) == ["0.png", "1.png", "2.png", "7.png", "1.png@2"]
    assert finish(extended) == [2]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert extended.store.check_complete(extended.name) == {"manifest": 5, "pivots": 5, "rejects": 0}
    pivots = pd.read_parquet(tmp_path / "out/pivots").set_index("image_id")
    assert pivots.loc["1.png", "uri"] == pivots.loc["1.png@2", "uri"]
    assert pivots.loc["1.png", "sha256"] != pivots.loc["1.png@2", "sha256"]
    again = begin(folder, existing="extend")
    assert (again.remarks, again.to_do().shards, again.manifest.rows) == ((gone.format(5),), [], 5)
    Image.fromarray(pictures[7]).save(folder / "1.png")
    assert ids(begin(folder, existing="extend"))[-1] == "1.png@3"


def test_extend_of_a_run_that_was_never_made_makes_it(dataset, begin):
    run = begin(dataset(2), existing="extend")
    assert (run.to_do().shards, run.manifest.rows) == ([0], 2)


def test_extend_does_not_begin_anew_where_options_were_left_out(dataset, begin, tiny_generator, tmp_path):
    folder = dataset(3)
    paper = begin(folder, preset="paper", generator="pocket-ffhq-128", limit=2)
    grouped = {"mode": "multi"}
    sentence = "no run there is of this job, so none can be extended; run {} is of the same data set with {}: say so"
    for options, of in (
        ({"preset": "fast", "generator": "pocket-ffhq-128", "limit": 2}, "--preset paper"),
        ({"preset": "paper", "generator": "pocket-ffhq-128", "limit": 3}, "--limit 2"),
        ({"preset": "fast", "generator": "pocket-ffhq-128", "limit": 1}, "--preset paper --limit 2"),
    ):
        with pytest.raises(RunError, match=re.escape(sentence.format(paper.name, of))):
            begin(folder, existing="extend", **options)
    # What has options of its own is another job, and one without a limit may follow a trial.
    own = begin(folder, existing="extend", preset="noop", limit=2)
    whole = begin(folder, existing="extend", preset="paper", generator="pocket-ffhq-128")
    multi = begin(folder, existing="extend", preset="noop", settings=grouped, group_by="regex:^(.)")
    with pytest.raises(RunError, match=re.escape(sentence.format(multi.name, "--group-by 'regex:^(.)'"))):
        begin(folder, existing="extend", preset="noop", settings=grouped)
    assert len({paper.name, own.name, whole.name, multi.name}) == 4
    assert begin(folder, preset="fast", generator="pocket-ffhq-128").manifest.rows == 3  # as a new run, asked for


def test_extend_does_not_begin_anew_where_only_settings_differ(dataset, begin, tmp_path, tiny_generator):
    folder, other = dataset(2), {"tuning.steps": 7, "measure.alphas": [20]}
    first = begin(folder)
    differs = r"run {} is of the same data set, .*, but tuning\.steps 5, now 7, measure\.alphas \[15\.0, 30\.0, 60\.0\]"
    ways = (
        r"do it once without --extend .* by --set tuning\.steps=5 --set 'measure\.alphas=\[15\.0,30\.0,60\.0\]' \(set"
    )
    with pytest.raises(RunError, match=differs.format(first.name) + ".*" + ways):
        begin(folder, settings=other, existing="extend")
    assert first.store.runs() == [first.name]
    begun = begin(folder, settings=other)
    assert begin(folder, settings=other, existing="extend").name == begun.name
    with pytest.raises(RunError, match=f"run {begun.name} .*, but tuning.steps 7, now 8; "):  # the nearest is named
        begin(folder, settings=other | {"tuning.steps": 8}, existing="extend")
    another = str(tmp_path / "another.safetensors")
    save_generator(tiny_generator, another, {"note": "another file"})
    for options in ({"preset": "noop"}, {"settings": {"mode": "multi"}}, {"limit": 1}, {"generator": another}):
        assert begin(folder, **options, existing="extend").remarks[0].startswith("a new run beside")


def test_a_run_of_another_version_is_named_without_settings_that_cannot_be_given(dataset, begin, tmp_path):
    folder = dataset(1)
    run = begin(folder, settings={"tuning.steps": 7})
    path = tmp_path / "out/runs" / run.name / "config.json"
    content = json.loads(path.read_text())
    content["config"]["of_before"] = content["config"].pop("codec")
    path.write_text(json.dumps(content))
    says = "but tuning.steps 7, now 5, of_before adaptive, now not there; .* a new run$"
    with pytest.raises(RunError, match=says):
        begin(folder, existing="extend")


def test_a_limit_holds_for_extensions_too(dataset, begin, pictures):
    folder = dataset(3)
    finish(begin(folder, limit=2))
    Image.fromarray(pictures[5]).save(folder / "00.png")  # now among the first two
    extended = begin(folder, limit=2, existing="extend")
    assert ids(extended) == ["0.png", "1.png", "00.png"]
    assert extended.remarks == ("1 new file is appended as shard 1",)


def test_a_changed_file_of_a_shard_to_come_is_read_as_it_is_and_not_twice(dataset, begin):
    folder = dataset(2)
    begin(folder)
    os.utime(folder / "0.png", ns=(1, 1))
    assert ids(begin(folder, existing="extend")) == ["0.png", "1.png"]


def test_a_file_that_changed_before_its_shard_read_it_is_not_inverted_twice(dataset, begin, pictures):
    folder = dataset(2)
    begin(folder, preset="noop")
    Image.fromarray(pictures[5]).save(folder / "1.png")
    run = begin(folder, preset="noop")
    finish(run)
    assert begin(folder, preset="noop").remarks == ()
    assert ids(begin(folder, preset="noop", existing="extend")) == ["0.png", "1.png"]


def test_files_that_were_only_touched_are_not_inverted_again(dataset, begin, pictures, monkeypatch):
    folder = dataset(3)
    finish(begin(folder, preset="noop"))
    for name in ("0.png", "1.png", "2.png"):
        os.utime(folder / name, ns=(1, 1))
    assert begin(folder, preset="noop").remarks == ()
    Image.fromarray(pictures[5]).save(folder / "1.png")
    monkeypatch.setattr("pti_core.freezing.freeze.LOOKED_AT", 2)  # too many to be read for a remark
    (remark,) = begin(folder, preset="noop").remarks
    assert remark.startswith(
        "3 touched files are not in this run; `--extend` (existing=extend) adds them, but for those whose content"
    )
    assert begin(folder, preset="noop", existing="extend").remarks == ("1 changed file is appended as shard 2",)


def test_touched_files_are_read_once(dataset, begin, tmp_path, monkeypatch):
    folder = dataset(3)
    run = begin(folder, preset="noop")
    finish(run)
    (folder / "2.png").unlink()

    def touch(second):
        for name in ("0.png", "1.png"):
            os.utime(folder / name, ns=(second, second))

    def extended():
        return ids(begin(folder, preset="noop", existing="extend"))

    touch(1)
    assert extended() == ["0.png", "1.png", "2.png"]
    data = bytearray((folder / "1.png").read_bytes())
    data[-1] ^= 1
    (folder / "1.png").write_bytes(data)
    touch(1)  # of the size and date that were compared, so that only reading would tell
    assert extended() == ["0.png", "1.png", "2.png"]
    monkeypatch.setattr("pti_core.freezing.freeze.LOOKED_AT", 0)
    assert len(begin(folder, preset="noop").remarks) == 1  # of the one that is gone
    touch(2)
    assert "2 touched files" in begin(folder, preset="noop").remarks[0]
    assert extended()[3:] == ["1.png@2"]
    # What is appended needs no memory, the other is in it.
    memory = tmp_path / "out/runs" / run.name / "compared.parquet"
    assert pd.read_parquet(memory)["uri"].str.rpartition("/")[2].tolist() == ["0.png"]
    for content in (b"garbage", None):
        if content is None:
            memory.unlink()
        else:
            memory.write_bytes(content)
        assert extended()[3:] == ["1.png@2"]
        assert pd.read_parquet(memory)["etag"].str.endswith("-2").all()


def test_touched_files_that_cannot_be_read_now_are_not_taken_for_changed(dataset, begin, pictures, monkeypatch):
    folder = dataset(3)
    finish(begin(folder, preset="noop"))
    for name in ("0.png", "2.png"):
        os.utime(folder / name, ns=(1, 1))

    def away(uri):
        raise OSError("503")

    with monkeypatch.context() as patched:
        patched.setattr("pti_core.freezing.compared.read_bytes", away)
        extended = begin(folder, preset="noop", existing="extend")
    assert ids(extended) == ["0.png", "1.png", "2.png"]
    assert extended.remarks == (
        "2 files that may have changed or moved could not be read to see whether the content is another, and left "
        "out; extend again later",
    )
    Image.fromarray(pictures[5]).save(folder / "2.png")
    assert ids(begin(folder, preset="noop", existing="extend")) == ["0.png", "1.png", "2.png", "2.png@2"]


def test_a_refused_file_is_appended_again_only_when_it_has_become_an_image(dataset, begin, pictures):
    folder = dataset(2)
    (folder / "1.png").write_bytes(b"no image")
    finish(begin(folder, preset="noop"))
    for again in (b"no image", b"still none, and longer"):
        (folder / "1.png").write_bytes(again)
        os.utime(folder / "1.png", ns=(len(again), 1))
        assert ids(begin(folder, preset="noop", existing="extend")) == ["0.png", "1.png"]
    Image.fromarray(pictures[5]).save(folder / "1.png")
    assert ids(begin(folder, preset="noop", existing="extend")) == ["0.png", "1.png", "1.png@2"]


def test_a_file_that_was_refused_for_a_passing_reason_is_tried_again_and_not_appended_as_well(
    dataset, begin, pictures, tmp_path, monkeypatch
):
    folder = dataset(3)
    (folder / "2.png").write_bytes(b"no image")
    read = Run.read_input

    def away(run, uri, *rest):
        if uri.endswith("/1.png"):
            raise OSError("503")
        return read(run, uri, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "read_input", away)
        finish(begin(folder, preset="noop"))
    for name in ("1.png", "2.png"):
        Image.fromarray(pictures[5]).save(folder / name)
    assert begin(folder, preset="noop").remarks[0].startswith("1 changed file is not in this run")
    run = begin(folder, preset="noop", existing="extend")
    assert ids(run) == ["0.png", "1.png", "2.png", "2.png@2"]
    for shard in run.to_do(retry_rejects=True).shards:
        inverted = invert_shard(run, shard, retry_rejects=True)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    assert set(pd.read_parquet(tmp_path / "out/pivots")["image_id"]) == {"0.png", "1.png", "2.png@2"}
    assert ids(begin(folder, preset="noop", existing="extend")) == ids(run)


def test_overwriting_an_extended_run_leaves_one_manifest(dataset, begin, pictures, tmp_path):
    folder = dataset(2)
    finish(begin(folder))
    Image.fromarray(pictures[5]).save(folder / "9.png")
    finish(begin(folder, existing="extend"))
    run = begin(folder, existing="overwrite")
    assert ids(run) == ["0.png", "1.png", "9.png"]
    assert [p.name for p in (tmp_path / "out/runs" / run.name).glob("manifest*")] == ["manifest.parquet"]


def test_a_run_that_is_overwritten_twice_by_the_same_is_resumed(dataset, begin, tmp_path):
    folder = dataset(3)
    finish(begin(folder, preset="noop"))
    overwritten = begin(folder, preset="noop", existing="overwrite", by="flow run 1")
    assert overwritten.to_do().shards == [0, 1]
    invert_shard(overwritten, 0)
    measure_shard(overwritten, 0)
    again = begin(folder, preset="noop", existing="overwrite", by="flow run 1")  # *Retry* on its page
    assert (again.to_do().shards, again.created) == ([1], overwritten.created)
    assert begin(folder, preset="noop", existing="overwrite", by="flow run 2").to_do().shards == [0, 1]
    assert begin(folder, preset="noop", existing="overwrite").to_do().shards == [0, 1]


@pytest.mark.parametrize("existing", ["resume", "extend"])
def test_the_flow_of_a_command_does_not_list_the_data_set_that_the_command_has_just_listed(
    dataset, begin, pictures, existing
):
    folder = dataset(2)
    if existing == "extend":
        begin(folder, preset="noop", by="flow run 0")
    begin(folder, preset="noop", existing=existing)
    Image.fromarray(pictures[5]).save(folder / "9.png")
    assert begin(folder, preset="noop", by="flow run 1").remarks == ()
    for by in ("flow run 1", "flow run 2", None):
        (remark,) = begin(folder, preset="noop", by=by).remarks
        assert remark.startswith("1 new file is not in this run")


def test_a_flow_that_comes_late_or_after_a_failed_extension_lists_the_data_set(dataset, begin, pictures, monkeypatch):
    folder = dataset(2)
    begin(folder, preset="noop")
    Image.fromarray(pictures[5]).save(folder / "9.png")
    with monkeypatch.context() as patched:
        patched.setattr("pti_core.freezing.freeze._FLOW_COMES", -1.0)
        assert len(begin(folder, preset="noop", by="flow run 1").remarks) == 1
    away = folder.rename(folder.parent / "away")
    with pytest.raises(DatasetError):
        begin(folder, preset="noop", existing="extend")
    away.rename(folder)
    assert len(begin(folder, preset="noop", by="flow run 1").remarks) == 1


def test_a_changed_configuration_makes_a_new_run_and_says_so(dataset, begin):
    folder = dataset(2)
    first = begin(folder)
    second = begin(folder, settings={"tuning.steps": 7})
    assert second.name != first.name
    (remark,) = second.remarks
    assert remark == f"a new run beside {first.name}, which stays as it is (tuning.steps 5, now 7)"
    assert begin(folder, settings={"tuning.steps": 7}).remarks == ()


def test_what_comes_to_a_group_makes_a_group_of_its_own(begin, pictures, tmp_path):
    folder = tmp_path / "data"

    def save(*names):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[int(name[-5])]).save(folder / name)

    save("anna/0.png", "anna/1.png")
    finish(begin(folder, settings={"mode": "multi"}))
    save("anna/2.png", "anna/3.png", "ben/4.png")
    extended = begin(folder, settings={"mode": "multi"}, existing="extend")
    assert extended.remarks[0] == "3 new files are appended as shards 1 to 2"
    assert extended.remarks[1].startswith("1 of 2 groups has one image and gets a generator of its own; `--group-by")
    assert extended.remarks[2].startswith("1 group that is in this run already has more images now; these get a gen")
    assert extended.manifest.table()["group"].to_pylist() == ["anna", "anna", "anna@2", "anna@2", "ben"]
    finish(extended)
    deltas = pd.read_parquet(tmp_path / "out/deltas")
    assert (deltas.groupby("owner")["shard"].nunique() == 1).all()
    save("anna/5.png", "anna@3/6.png")
    groups = begin(folder, settings={"mode": "multi"}, existing="extend").manifest.table()["group"].to_pylist()
    assert sorted(groups[5:]) == ["anna@3", "anna@4"]  # a folder of that name is another group


def test_groups_are_for_the_mode_that_shares(dataset, begin):
    with pytest.raises(RunError, match="mode=multi"):
        begin(dataset(2), group_by="folder")


def test_the_engine_that_does_nothing_writes_all_tables(dataset, begin, tmp_path):
    folder = dataset(3)
    (folder / "broken.png").write_bytes(b"no picture")
    run = begin(folder, preset="noop")
    finish(run)
    assert run.store.check_complete(run.name) == {"manifest": 4, "pivots": 3, "rejects": 1}
    metrics = pd.read_parquet(tmp_path / "out/metrics")
    assert len(metrics) == 9
    assert metrics["lpips"].isna().all()


def test_what_a_generator_cannot_do_is_told_before_any_work(dataset, begin):
    images = dataset(1)
    with pytest.raises(RunError, match=r"tuning\.from_resolution 4096: at most \d+"):
        begin(images, settings={"tuning.from_resolution": 4096})


def test_an_archive_that_is_made_again_with_one_more_file_gives_one_new_image(dataset, begin, pictures, tmp_path):
    folder, archive = dataset(3), tmp_path / "set.tar"

    def pack(names):
        with tarfile.open(archive, "w") as tar:
            for name in names:
                tar.add(folder / name, name)

    pack(["0.png", "2.png"])
    finish(begin(archive))
    pack(["0.png", "1.png", "2.png"])  # 2.png lies elsewhere now
    extended = begin(archive, existing="extend")
    assert extended.remarks == ("1 new file is appended as shard 1",)
    assert ids(extended) == ["0.png", "2.png", "1.png"]


@pytest.fixture
def rows_of(pictures, tmp_path):
    """Writes a Parquet file with an image for each name, the one of that number."""

    def write(*named):
        images = []
        for _, number in named:
            Image.fromarray(pictures[number]).save(buffer := io.BytesIO(), "PNG")
            images.append(buffer.getvalue())
        pq.write_table(pa.table({"image": images, "key": [name for name, _ in named]}), tmp_path / "set.parquet")
        return tmp_path / "set.parquet"

    return write


def test_a_row_more_anywhere_in_a_parquet_file_gives_one_new_image(begin, rows_of):
    finish(begin(rows_of(("a", 0), ("b", 1), ("c", 2)), preset="noop"))
    path = rows_of(("new", 3), ("a", 0), ("c", 5), ("b", 1))
    extended = begin(path, preset="noop", existing="extend")
    assert extended.remarks == ("1 new and 1 changed files are appended as shard 2",)
    assert ids(extended) == ["a", "b", "c", "new", "c@2"]
    finish(extended)
    path = rows_of(("a", 0), ("b", 1), ("c", 2))  # as it was
    (remark,) = begin(path, preset="noop", existing="extend").remarks
    assert remark == "1 of this run's 5 files is gone from the data set, 'new'; it stays in the run"


@pytest.mark.parametrize("by_names_of_numbers", [False, True])
def test_rows_that_a_run_of_before_knows_by_their_numbers_are_found(begin, rows_of, tmp_path, by_names_of_numbers):
    run = begin(rows_of(("a", 0), ("b", 1), ("c@2", 2)), preset="noop")
    (manifest,) = (tmp_path / "out/runs" / run.name).glob("manifest.parquet")
    content = run.manifest.table()
    old = [re.sub("!key=[^!]*", "", uri) for uri in content["uri"].to_pylist()]
    assert old[1] == f"parquet://image!1::{tmp_path}/set.parquet"
    content = content.set_column(content.column_names.index("uri"), "uri", pa.array(old))
    if by_names_of_numbers:  # as where the ids were categorical
        numbers = pa.array([f"set/{i:06d}" for i in range(3)])
        content = content.set_column(content.column_names.index("image_id"), "image_id", numbers)
    manifest.write_bytes(to_parquet("manifest", content.cast(schema("manifest"))))
    finish(begin(tmp_path / "set.parquet", preset="noop"))
    if by_names_of_numbers:
        assert begin(tmp_path / "set.parquet", preset="noop", existing="extend").remarks == ()
        return
    path = rows_of(("new", 3), ("a", 0), ("b", 5), ("c@2", 2))
    extended = begin(path, preset="noop", existing="extend")
    assert ids(extended) == ["a", "b", "c@2", "new", "b@2"]
    assert finish(extended) == [2]
    assert begin(path, preset="noop", existing="extend").remarks == ()
