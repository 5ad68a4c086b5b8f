"""What large runs rely on: a manifest of many row groups and files, rows compared in windows, things read once."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from conftest import QUICK_SETTINGS, finish
from rich.console import Console

from flows.console import ProgressView, show_summary
from pti_core import medians, report, tables
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import load_run
from pti_core.shard.shard_progress import ShardProgress
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage import checked, completeness, table_files
from pti_core.storage.manifests import Manifest, write
from pti_core.storage.shard_files import ShardFiles
from pti_core.storage.store import Store, StoreError


def listing(first: int, count: int) -> pa.Table:
    names = [f"{i:06d}.png" for i in range(first, first + count)]
    rows = {"image_id": names, "uri": [f"u/{name}" for name in names], "group": names}
    return pa.table(rows | {"bytes": [1] * count, "etag": ["e"] * count})


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    """Three files; the first has three row groups, whose shards of 7 do not end where they end."""
    files = Store(str(tmp_path)).files
    first = tables.assign_shards(listing(0, 40_000), 7)
    write(files, "abc", first)
    second = tables.assign_shards(listing(40_000, 20), 7, 1 + first["shard"][-1].as_py())
    write(files, "abc", second)
    write(files, "abc", tables.assign_shards(listing(40_020, 5), 7, 1 + second["shard"][-1].as_py()))
    return Manifest(files, "abc")


def test_a_shard_is_found_in_whichever_row_group_and_file_it_lies(manifest):
    whole = manifest.table().to_pandas()
    assert (len(whole), manifest.rows, manifest.shards) == (40_025, 40_025, 5715 + 3 + 1)
    crossing = [int(whole["shard"][i]) for i in (tables.ROW_GROUP, 2 * tables.ROW_GROUP)]
    for number in (0, *crossing, 5714, 5715, 5717, 5718):
        rows = manifest.shard(number)
        assert [row["image_id"] for row in rows] == whole.loc[whole["shard"] == number, "image_id"].tolist(), number
    with pytest.raises(StoreError, match="no shard 5719; it has 5719"):
        manifest.shard(5719)


def test_shards_are_found_by_names_and_row_groups_without_them_are_left_out(manifest):
    whole = manifest.table().to_pandas().set_index("image_id")["shard"]
    asked = ["040024.png", "000000.png", "016383.png", "016384.png", "000000.png"]
    assert manifest.shards_of([*asked, "no.png", ""]) == {name: whole[name] for name in asked}
    assert manifest.shards_of([]) == {}
    assert [part.may_hold(["016384.png", "016385.png"]) for part in manifest._parts] == [[1], [], []]
    assert [part.may_hold(["000000.png", "040021.png", "x"]) for part in manifest._parts] == [[0], [], [0]]


def test_a_manifest_whose_first_file_is_lost_or_damaged_is_told_before_any_work(manifest, tmp_path):
    first = tmp_path / "runs/abc/manifest.parquet"
    whole = first.read_bytes()
    first.unlink()
    with pytest.raises(
        StoreError, match=r"lacks a file of its manifest \(shards 0 to 5714 are listed nowhere\); bring"
    ):
        Manifest(Store(str(tmp_path)).files, "abc")
    first.write_bytes(whole[:1000])
    with pytest.raises(StoreError, match=r"manifest 'runs/abc/manifest.parquet' .* is damaged .*--overwrite"):
        Manifest(Store(str(tmp_path)).files, "abc")


@pytest.mark.parametrize("rows", [1, 5000, 10**9])
def test_windows_are_whole_shards_and_all_of_them(manifest, rows):
    shards, ids = [], []
    for numbers, table in islice(manifest.windows(rows, ["image_id"]), 50):  # all of them, but of one row each
        shards += numbers
        ids += table["image_id"].to_pylist()
    assert shards == list(range(manifest.shards if rows > 1 else 50))
    frame = manifest.table().to_pandas()
    assert ids == frame.loc[frame["shard"] <= shards[-1], "image_id"].tolist()


def test_threads_that_share_a_manifest_get_the_rows_they_asked_for(manifest):
    wrong = []

    def ask(numbers: list[int]) -> None:
        for number in numbers:
            wrong.extend(row for row in manifest.shard(number) if row["shard"] != number)

    rng = np.random.default_rng(0)
    threads = [threading.Thread(target=ask, args=(rng.integers(0, 5719, 60).tolist(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.fixture
def run(dataset, tiny_checkpoint, tmp_path):
    config = configure("demo", QUICK_SETTINGS | {"engine": "noop"})
    run = freeze(str(dataset(7)), str(tmp_path / "out"), tiny_checkpoint, config, shard_size=2)
    for shard in range(4):
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"], inverted["counts"])
    return run


def test_rows_are_compared_in_windows(run, monkeypatch):
    whole = run.store.check_complete(run.name)
    monkeypatch.setattr(completeness, "_WINDOW", 2)
    monkeypatch.setattr(table_files, "_AT_ONCE", 1)
    assert run.store.check_complete(run.name) == whole == {"manifest": 7, "pivots": 7, "rejects": 0}
    path = run.store.part_path("pivots", run.name, 2, 0)
    part = run.store.read_table(path)[1]
    run.store.files.remove(path)
    with pytest.raises(StoreError, match=r"5 pivots and 0 rejects for 7 .*\['4.png', '5.png'\]"):
        run.store.check_complete(run.name)
    run.store.write_part("pivots", run.name, 2, 0, part)
    run.store.write_part("pivots", run.name, 9, 0, part.slice(0, 1))  # of a shard that the run does not have
    with pytest.raises(
        StoreError, match=r"8 pivots and 0 rejects for 7 images.*shard=00009/part-0.parquet' is no part"
    ):
        run.store.check_complete(run.name)


def test_counts_of_a_marker_are_the_same_told_or_read(run):
    told = run.store.marker(run.name, 0)["counts"]
    measure_shard(run, 0)
    counts = {"manifest": 2, "pivots": 2, "rejects": 0, "temporary": 0, "gone": 0}
    assert run.store.marker(run.name, 0)["counts"] == told == counts


def test_a_published_summary_holds_until_a_shard_is_done_again(run):
    first = report.publish(run)
    path = f"runs/{run.name}/report/{report.SUMMARY}"
    known = json.loads(run.store.files.get(path, "none"))
    known["summary"]["preset"] = "as published"
    run.store.files.put(path, json.dumps(known).encode())
    assert report.summary(run) == report.publish(run) == first | {"preset": "as published"}
    run.store.unmark(run.name, 1)
    inverted = invert_shard(run, 1)
    measure_shard(run, 1, inverted["files"], inverted["seconds"] + 1.0)  # another marker
    slower = report.summary(run)
    assert slower.pop("throughput")["images_an_hour"] < first.pop("throughput")["images_an_hour"]
    assert slower == first
    run.store.unmark(run.name, 1)
    with pytest.raises(StoreError, match=r"5 pivots and 0 rejects for 7 images.*; shard 1 is not done, or another"):
        report.summary(run)


def test_a_run_is_opened_once_a_process_and_again_when_it_is_another(run, dataset, tiny_checkpoint):
    root = run.store.root
    opened = load_run(root, run.name, run.version)
    assert load_run(root, run.name, run.version) is opened
    assert load_run(root, run.name) is not opened
    dataset(2, "data/more")
    config = configure("demo", QUICK_SETTINGS | {"engine": "noop"})
    data = run.dataset.removeprefix("file://")
    extended = freeze(data, root, tiny_checkpoint, config, shard_size=2, existing="extend")
    assert extended.name == run.name
    assert extended.version != run.version
    assert load_run(root, run.name, extended.version).manifest.rows == 9


def test_medians_of_very_many_images_are_of_shards_evenly_spread(run, monkeypatch):
    markers = run.store.done(run.name)
    assert medians.sample(run, markers) is None
    monkeypatch.setattr(medians, "MEDIANS_OF", 4)
    assert medians.sample(run, markers) == [0, 2]
    monkeypatch.setattr(medians, "MEDIANS_OF", 7)
    monkeypatch.setattr(medians, "FILES", 3)  # there are four
    asked = []
    read = Store.read_arrow
    monkeypatch.setattr(Store, "read_arrow", lambda *args: asked.append(args[-1]) or read(*args))
    found = report.publish(run)
    assert asked == 2 * [[("shard", "in", [0, 2])]]
    assert (found["images"], found["medians_of"]) == (7, 4)
    assert "Medians of 4 of 7 images:" in report.markdown(found)


def test_a_sample_of_shards_is_told_where_the_medians_are_shown():
    row = dict.fromkeys(("lpips", "mse", "psnr", "ssim", "steps", "seconds"), 1.0)
    summary = {"run": "abc", "images": 7000, "rejected": 0, "medians": {"stored": row}, "locality": {}}
    summary |= {"delta_bytes": 0.0, "contact_sheet": None, "report": None}
    for told, title in (({}, "medians of 7,000 images"), ({"medians_of": 4000}, "medians of 4,000 of 7,000 images")):
        screen = Console(record=True, width=200)
        show_summary(screen, summary | told, "out")
        assert f"run abc: {title}" in screen.export_text()


def read_of(run, monkeypatch):
    """Parts of pivots and rejects that are read from now on."""
    opened = []
    read = checked.read_files
    monkeypatch.setattr(checked, "read_files", lambda *given: opened.extend(given[2]) or read(*given))
    return opened


def test_only_shards_that_have_changed_are_checked_again(run, monkeypatch, dataset, tiny_checkpoint):
    report.publish(run)
    opened, path = read_of(run, monkeypatch), f"runs/{run.name}/report/{checked.CHECKED}"
    whole = {"manifest": 7, "pivots": 7, "rejects": 0}
    assert run.store.check_complete(run.name, run.store.done(run.name)) == whole
    assert opened == []
    assert run.store.check_complete(run.name) == whole  # without markers all is read
    assert len(opened) == 8
    opened.clear()
    run.store.unmark(run.name, 1)
    inverted = invert_shard(run, 1)
    measure_shard(run, 1, inverted["files"], inverted["seconds"] + 1.0)
    report.publish(run)
    assert {part.split("shard=")[1][:5] for part in opened} == {"00001"}
    opened.clear()
    dataset(2, "data/more")
    config = configure("demo", QUICK_SETTINGS | {"engine": "noop"})
    data = run.dataset.removeprefix("file://")
    longer = finish(freeze(data, run.store.root, tiny_checkpoint, config, shard_size=2, existing="extend"))
    assert report.publish(longer)["images"] == 9
    assert {part.split("shard=")[1][:5] for part in opened} == {"00004"}
    for damage in (b"garbage", b"", None):
        opened.clear()
        if damage is None:
            run.store.files.remove(path)
        else:
            run.store.files.put(path, damage)
        assert longer.store.check_complete(run.name, run.store.done(run.name))["pivots"] == 9
        assert len(opened) == 10
        opened.clear()
        longer.store.check_complete(run.name, run.store.done(run.name))
        assert opened == []  # it was kept anew


def test_what_was_checked_does_not_hide_what_is_wrong_now(run, monkeypatch):
    store, name = run.store, run.name
    store.check_complete(name, store.done(name))
    first, second = (store.part_path("pivots", name, shard, 0) for shard in (0, 1))
    content = store.read_table(first)[1]
    # a file that is no part, in a shard that has not changed, and in one that the run does not have
    for place in ((0, 1), (9, 0)):
        store.write_part("pivots", name, *place, content.slice(0, 1))
        with pytest.raises(StoreError, match=r"an image has two rows; file .* is no part|missing or unknown"):
            store.check_complete(name, store.done(name))
        store.files.remove(store.part_path("pivots", name, *place))
    # a shard whose file is gone is not done, and is read
    store.files.remove(first)
    with pytest.raises(StoreError, match=r"missing or unknown: \['0.png', '1.png'\]"):
        store.check_complete(name, store.done(name))
    # rows of another shard, by a marker of now
    store.write_part("pivots", name, 0, 0, content)
    other = store.read_table(second)[1]
    written = store.write_part("pivots", name, 0, 0, other)
    marker = store.marker(name, 0)
    for file in marker["files"]:
        if file["path"] == first:
            file |= {"bytes": written.bytes, "sha256": written.sha256}
    store.mark_done(name, 0, {key: value for key, value in marker.items() if key not in ("run", "shard")})
    with pytest.raises(StoreError, match="missing or unknown"):
        store.check_complete(name, store.done(name))


def test_rows_that_are_in_each_others_shards_are_found_in_one_window(run):
    paths = [run.store.part_path("pivots", run.name, shard, 0) for shard in (0, 1)]
    contents = [run.store.read_table(path)[1] for path in paths]
    for shard, content in enumerate(reversed(contents)):
        run.store.write_part("pivots", run.name, shard, 0, content)
    with pytest.raises(StoreError, match=r"7 pivots .*; images are in other shards than their own; run it"):
        run.store.check_complete(run.name)


def test_another_manifest_is_checked_as_a_whole(run, monkeypatch, tmp_path):
    run.store.check_complete(run.name, run.store.done(run.name))
    path = tmp_path / "out/runs" / run.name / "manifest.parquet"
    path.write_bytes(tables.to_parquet("manifest", run.manifest.table().slice(0, 7)) + b"")
    opened = read_of(run, monkeypatch)
    run.store.check_complete(run.name, run.store.done(run.name))
    assert opened == []  # the same bytes
    table = run.manifest.table()
    names = pa.array([f"x{name}" if name == "3.png" else name for name in table["image_id"].to_pylist()])
    path.write_bytes(tables.to_parquet("manifest", table.set_column(0, table.schema.field(0), names)))
    with pytest.raises(StoreError, match=r"missing or unknown: \['3.png', 'x3.png'\]"):
        run.store.check_complete(run.name, run.store.done(run.name))


def test_a_summary_of_an_earlier_version_holds(run):
    first = report.publish(run)
    path = f"runs/{run.name}/report/{report.SUMMARY}"
    whole = sorted(run.store.markers(run.name, whole=True).items())
    sums = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    run.store.files.put(path, json.dumps({"markers": sums, "summary": first | {"preset": "as then"}}).encode())
    assert report.summary(run)["preset"] == "as then"
    run.store.files.put(path, json.dumps({"markers": "0", "summary": first | {"preset": "as then"}}).encode())
    assert report.summary(run) == first


def test_markers_are_kept_small_and_say_the_same(run):
    whole, small = run.store.markers(run.name, whole=True), run.store.done(run.name)
    assert list(whole) == list(small) == [0, 1, 2, 3]
    for shard, marker in whole.items():
        files = small[shard]["files"]
        assert dict(files.sizes()) == {file["path"]: file["bytes"] for file in marker["files"]}
        assert list(files.paths()) == [file["path"] for file in marker["files"]]
        assert files.bytes_of("deltas") == sum(f["bytes"] for f in marker["files"] if f["path"].startswith("deltas/"))
        assert {k: v for k, v in small[shard].items() if k not in ("files", "sha256")} == {
            k: v for k, v in marker.items() if k != "files"
        }
    assert small[0]["files"]._names is small[1]["files"]._names  # of millions of files some hundred bytes a shard
    odd = ShardFiles("abc", 7, [{"path": "elsewhere/a", "bytes": 3}, {"path": "pivots/b", "bytes": "x"}])
    assert dict(odd.sizes()) == {"elsewhere/a": 3, "pivots/b": -1}
    assert dict(odd.sizes("pivots")) == {"pivots/b": -1}


def test_progress_counts_each_shard_once():
    out = io.StringIO()
    view = ProgressView(Console(file=out))
    view.expect(40, 10)
    for shard in range(3):
        for done in (0.0, 4.5, 10.0, 10.0):
            view.last_line = -1e9
            view(ShardProgress(shard, done, 10, None))
    lines = out.getvalue().splitlines()
    assert "10.0 of 40 images" in lines[0]
    assert "40.0 of 40 images" in lines[-1]
    assert not view.in_work
