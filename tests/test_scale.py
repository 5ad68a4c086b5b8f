"""What large runs rely on: a manifest of many row groups and files, rows compared in windows, things read once."""

from __future__ import annotations

import io
import json
import threading
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from conftest import QUICK_SETTINGS
from rich.console import Console

from flows.console import ProgressView
from pti_core import completeness, report, table_files, tables
from pti_core.freezing import freeze
from pti_core.manifests import Manifest, write
from pti_core.presets import configure
from pti_core.runs import load_run
from pti_core.shards import ShardProgress, invert_shard, measure_shard
from pti_core.store import Store, StoreError


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
    inverted = invert_shard(run, 1)
    measure_shard(run, 1, inverted["files"], inverted["seconds"] + 1.0)  # another marker
    assert report.summary(run) == first
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
    asked = []
    read = Store.read_arrow
    monkeypatch.setattr(Store, "read_arrow", lambda *args: asked.append(args[-1]) or read(*args))
    monkeypatch.setattr(report, "MEDIANS_OF", 4)
    assert list(report.medians(run).index) == ["pivot", "tuned", "stored"]
    assert asked == [[("shard", "in", [0, 2])]]


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
