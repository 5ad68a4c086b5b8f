"""`pti tables`: a run in a few large files that say the same as its tables, read a window at a time."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import QUICK_SETTINGS, finish
from PIL import Image

from pti_core import tables
from pti_core.freezing.freeze import freeze
from pti_core.large_tables import gathering, large_files, wide
from pti_core.large_tables.gathering import COPIED, GatherError, gather
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.storage.files import Files, StoreError
from pti_core.storage.known_runs import RunError


def write(folder: Path, pictures, names) -> Path:
    for name, picture in zip(names, pictures, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return folder


def begin(data, root, checkpoint, size=2, **settings) -> Run:
    more = {name: settings.pop(name) for name in ("existing", "limit") if name in settings}
    config = configure("demo", QUICK_SETTINGS | settings)
    return freeze(str(data), str(root), checkpoint, config, shard_size=size, **more)


@pytest.fixture(scope="module")
def measured(pictures, tiny_checkpoint, tmp_path_factory) -> Run:
    """A real run of three shards, one image rejected; `batch` 1, so that a shard has several parts."""
    folder = tmp_path_factory.mktemp("measured")
    data = write(folder / "data", pictures, ["a/0.png", "a/1.png", "b/2.png", "b/3.png"])
    (data / "broken.png").write_text("no image")
    return finish(begin(data, folder / "out", tiny_checkpoint, **{"measure.z_samples": 2, "batch": 1}))


@pytest.fixture(scope="module")
def noop(pictures, tiny_checkpoint, tmp_path_factory) -> Run:
    """A run of five shards without the method; two images are rejected."""
    folder = tmp_path_factory.mktemp("noop")
    data = write(folder / "data", pictures, [f"{i}.png" for i in range(8)])
    for name in ("3x.png", "9.png"):
        (data / name).write_text("no image")
    return finish(begin(data, folder / "out", tiny_checkpoint, engine="noop", batch=1))


def root_of(run: Run) -> str:
    return run.store.root


def test_a_row_an_image_says_what_the_tables_say(measured, tmp_path):
    done = gather(root_of(measured), str(tmp_path))
    assert (done.run, done.inverted, done.rejected, done.shards, done.left_out) == (measured.name, 4, 1, 3, 0)
    root, images = root_of(measured), pd.read_parquet(tmp_path / "images.parquet").set_index("image_id")
    assert list(images.index) == ["a/0.png", "a/1.png", "b/2.png", "b/3.png", "broken.png"]
    assert images["status"].tolist() == ["inverted"] * 4 + ["rejected"]
    assert images["shard"].tolist() == [0, 0, 1, 1, 2]
    metrics = pd.read_parquet(f"{root}/metrics")
    for stage, taken in wide.MEASURED.items():
        of_stage = metrics[metrics["stage"] == stage].set_index("image_id")
        for name in taken:
            expected = of_stage[name].reindex(images.index).astype(float)
            np.testing.assert_array_equal(images[f"{name}_{stage}"].astype(float), expected, err_msg=name)
    locality = pd.read_parquet(f"{root}/locality")
    assert len(locality) == 4 * 2 * 4
    for alpha in (15, 30, 60):
        expected = locality[locality["alpha"] == alpha].groupby("image_id")["lpips"].mean()
        np.testing.assert_allclose(images[f"drift_alpha{alpha}"], expected.reindex(images.index))
    expected = locality[locality["where"] == "wz"].groupby("image_id")["lpips"].mean()
    np.testing.assert_allclose(images["drift_w_z"], expected.reindex(images.index))
    deltas = pd.read_parquet(f"{root}/deltas")
    sizes = deltas.groupby("owner")["payload"].agg(lambda payloads: payloads.map(len).sum())
    inverted = images[images["status"] == "inverted"]
    assert inverted["owner"].tolist() == inverted.index.tolist()
    assert ((inverted["delta_bytes"] - sizes) / len(deltas["tensor"].unique())).between(4, 100).all()  # page headers
    reject, expected = images.loc["broken.png"], pd.read_parquet(f"{root}/rejects").iloc[0]
    for name in wide.REJECTED:
        assert reject[f"reject_{name}"] == expected[name]
    assert reject[["lpips_stored", "drift_w_z", "owner", "delta_bytes"]].isna().all()
    assert images["reject_message"].notna().sum() == 1


def same_rows(copied: pd.DataFrame, original: pd.DataFrame) -> None:
    """Whatever the order of the original, whose files pandas reads in the order of their names."""
    own = list(tables.COLUMNS[next(t for t in COPIED if set(original) >= set(tables.COLUMNS[t]))])
    keys = [name for name in ("image_id", "stage", "where", "seed", "alpha") if name in own]
    original = original.assign(run=original["run"].astype(str), shard=original["shard"].astype("int32"))
    left, right = (
        frame.drop(columns="noise", errors="ignore").sort_values(keys, ignore_index=True)
        for frame in (copied, original)
    )
    pd.testing.assert_frame_equal(left, right[left.columns], check_dtype=False)


def test_tables_are_copied_with_run_and_shard_in_the_order_of_shards(measured, tmp_path):
    done = gather(root_of(measured), str(tmp_path), noise=True)
    for table in COPIED:
        file = pq.ParquetFile(tmp_path / f"{table}.parquet")
        assert file.schema_arrow.names == [*tables.COLUMNS[table], "run", "shard"]
        for name, column in tables.COLUMNS[table].items():
            assert file.schema_arrow.field(name).type == column.type, name
        assert file.schema_arrow.field("shard").type == pa.int32()
        copied, original = (
            pd.read_parquet(tmp_path / f"{table}.parquet"),
            pd.read_parquet(f"{root_of(measured)}/{table}"),
        )
        assert copied["shard"].is_monotonic_increasing
        assert done.files[table][0] == len(copied) == len(original) > 0
        same_rows(copied, original)
    metrics = pq.ParquetFile(tmp_path / "metrics.parquet").metadata.row_group(0)
    at = {metrics.column(i).path_in_schema: metrics.column(i).statistics for i in range(metrics.num_columns)}
    assert (at["shard"].min, at["shard"].max) == (0, 1)
    assert pd.read_parquet(tmp_path / "metrics.parquet").attrs == {"lpips_net": "alex"}
    noisy = pd.read_parquet(tmp_path / "pivots.parquet")["noise"]
    assert noisy.map(len).min() > 100
    gather(root_of(measured), str(tmp_path))
    assert "noise" not in pq.read_schema(tmp_path / "pivots.parquet").names


def test_types_are_those_that_are_documented(noop, tmp_path):
    gather(root_of(noop), str(tmp_path))
    schema = pq.read_schema(tmp_path / "images.parquet")
    expected = wide.columns((15.0, 30.0, 60.0))
    assert {field.name: field.type for field in schema} == {name: column.type for name, column in expected.items()}
    images = pq.read_table(tmp_path / "images.parquet")
    assert images["delta_bytes"].null_count == len(images)  # of a run that makes none
    assert images["reject_permanent"].null_count == 8
    assert not {"w", "noise", "payload"} & set(schema.names)
    assert list(wide.drifts((1e-05, 1.5e-07))) == ["drift_alpha1_5e_07", "drift_alpha1e_05", "drift_w_z"]
    assert wide.drifts((7.5, 30.0)) == {"drift_alpha7_5": 7.5, "drift_alpha30": 30.0, "drift_w_z": np.inf}


@pytest.mark.parametrize("size", [1, 3, 10**6])
def test_windows_of_any_size_give_the_same(noop, size, tmp_path):
    seen = []
    done = gather(root_of(noop), str(tmp_path), window=size, on_progress=lambda *at: seen.append(at))
    assert seen == [(10, 10)] if size > 10 else [(2, 10), (4, 10), (6, 10), (8, 10), (10, 10)]
    images = pd.read_parquet(tmp_path / "images.parquet")
    assert images["image_id"].tolist() == noop.manifest.table()["image_id"].to_pylist()
    assert images.loc[images["status"] == "rejected", "image_id"].tolist() == ["3x.png", "9.png"]
    assert (done.inverted, done.rejected) == (8, 2)
    for table in COPIED:
        same_rows(pd.read_parquet(tmp_path / f"{table}.parquet"), pd.read_parquet(f"{root_of(noop)}/{table}"))


def test_a_window_s_files_are_read_when_its_turn_comes_and_then_no_more(noop, tmp_path):
    root = shutil.copytree(root_of(noop), tmp_path / "out")

    def remove(done, total):
        """The shards that are done with; what is still to be read becomes other values."""
        for table in COPIED:
            shutil.rmtree(root / table / f"run={noop.name}/shard={done // 2 - 1:05d}")
        if done == 2:
            for path in (root / "pivots").rglob("*.parquet"):
                rows = pq.read_table(path, partitioning=None)
                rows = rows.set_column(2, rows.schema.field(2), pa.array(["late"] * len(rows), pa.string()))
                path.write_bytes(tables.to_parquet("pivots", rows))

    gather(str(root), str(tmp_path / "large"), window=2, on_progress=remove)
    found = pd.read_parquet(tmp_path / "large/pivots.parquet")
    assert ((found["sha256"] == "late") == (found["shard"] > 0)).all()


def test_few_bytes_are_read_together(noop, tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "READ_BYTES", 1)
    gather(root_of(noop), str(tmp_path))
    assert len(pd.read_parquet(tmp_path / "metrics.parquet")) == 24


def test_groups_share_their_delta(pictures, tiny_checkpoint, tmp_path):
    data = write(tmp_path / "data", pictures, ["a/0.png", "a/1.png", "b/2.png"])
    run = finish(begin(data, tmp_path / "out", tiny_checkpoint, mode="multi"))
    gather(root_of(run), str(tmp_path / "large"))
    images = pd.read_parquet(tmp_path / "large/images.parquet").set_index("image_id")
    assert images["owner"].tolist() == images["group"].tolist() == ["a", "a", "b"]
    assert images.loc["a/0.png", "delta_bytes"] == images.loc["a/1.png", "delta_bytes"] > 1000
    sizes = pd.read_parquet(tmp_path / "out/deltas").groupby("owner")["payload"].agg(lambda p: p.map(len).sum())
    assert abs(images.loc["b/2.png", "delta_bytes"] - sizes["b"]) < 3000


def test_several_runs_and_one_that_was_extended(noop, pictures, tiny_checkpoint, tmp_path):
    root = shutil.copytree(root_of(noop), tmp_path / "out")
    data = write(tmp_path / "data", pictures, ["0.png", "1.png", "2.png"])
    finish(begin(data, root, tiny_checkpoint, engine="noop"))
    write(data, pictures[5:], ["1.png", "7.png"])
    newest = finish(begin(data, root, tiny_checkpoint, engine="noop", existing="extend"))
    assert newest.name != noop.name
    done = gather(str(root), str(tmp_path / "large"))
    images = pd.read_parquet(tmp_path / "large/images.parquet")
    assert (done.run, set(images["run"])) == (newest.name, {newest.name})
    assert images["image_id"].tolist() == ["0.png", "1.png", "2.png", "7.png", "1.png@2"]
    assert images["shard"].tolist() == [0, 0, 1, 2, 2]
    assert set(pd.read_parquet(tmp_path / "large/pivots.parquet")["run"]) == {newest.name}
    assert gather(str(root), str(tmp_path / "large"), run=noop.name).inverted == 8
    with pytest.raises(RunError, match="no run 'other'"):
        gather(str(root), str(tmp_path / "large"), run="other")
    assert len(pd.read_parquet(tmp_path / "large/images.parquet")) == 10  # replaced, and then not


def test_an_unfinished_run_is_refused_or_taken_as_far_as_it_is(noop, tmp_path):
    root, run = shutil.copytree(root_of(noop), tmp_path / "out"), noop.name
    for shard in (1, 4):
        (root / f"runs/{run}/done/{shard:05d}.json").unlink()
    sentence = (
        rf"run {run} is unfinished \(3 of 5 shards are done\); the same `pti run` again finishes it, and --partial"
    )
    with pytest.raises(GatherError, match=sentence):
        gather(str(root), str(tmp_path / "large"))
    assert not (tmp_path / "large").exists()
    done = gather(str(root), str(tmp_path / "large"), partial=True, window=1)
    assert (done.shards, done.left_out, done.inverted + done.rejected) == (3, 2, 6)
    for file in ("images", "pivots", "metrics"):
        assert set(pd.read_parquet(tmp_path / f"large/{file}.parquet")["shard"]) == {0, 2, 3}, file
    # A marker that says that its shard was found damaged does not count, though its name is there.
    found = noop.store.markers(run, whole=True)[1]
    for shard in (1, 4):
        marker = noop.store.files.get(f"runs/{run}/done/{shard:05d}.json", "")
        (root / f"runs/{run}/done/{shard:05d}.json").write_bytes(marker)
    type(noop.store)(str(root)).mark_damaged(run, 1, found)
    with pytest.raises(GatherError, match=r"\(shard 1 is not done\)"):
        gather(str(root), str(tmp_path / "large"))
    assert len(pd.read_parquet(tmp_path / "large/images.parquet")) == 6
    assert {path.name for path in (tmp_path / "large").iterdir()} == {f"{t}.parquet" for t in ("images", *COPIED)}
    shutil.rmtree(root / f"runs/{run}/done")
    with pytest.raises(GatherError, match=r"\(0 of 5 shards are done\); the same `pti run` again finishes it$"):
        gather(str(root), str(tmp_path / "large"), partial=True)


def test_rows_that_do_not_add_up_are_told(noop, tmp_path):
    root = shutil.copytree(root_of(noop), tmp_path / "out")
    path = root / noop.store.part_path("pivots", noop.name, 0, 0)
    part = pq.read_table(path, partitioning=None)
    path.write_bytes(tables.to_parquet("pivots", part.slice(0, 0)))
    with pytest.raises(
        StoreError, match=r"have 9 rows for 10 images \('0.png' has no row, or two\); `pti check` names what"
    ):
        gather(str(root), str(tmp_path / "large"))
    path.unlink()
    with pytest.raises(StoreError, match="a file of it is gone"):
        gather(str(root), str(tmp_path / "large"))
    assert not list((tmp_path / "large").iterdir())


def test_the_run_s_own_folders_are_no_output(noop, tmp_path, monkeypatch):
    root = Path(root_of(noop))
    (tmp_path / "link").symlink_to(root / "metrics")
    monkeypatch.chdir(root)
    for folder in (root / "metrics", root / "runs/x", "locality", root / "a/../pivots/", tmp_path / "link/deep"):
        with pytest.raises(GatherError, match=r"lies in '\w+' of .*; choose a folder outside"):
            gather(str(root), str(folder))
    with pytest.raises(GatherError, match="lies in 'metrics'"):
        gather(str(root), f"file://{root}/metrics")
    before = sorted(path for path in root.rglob("*") if "large" not in path.parts)
    gather(str(root), str(root / "large"))  # beside them is a place as any other
    assert sorted(path for path in root.rglob("*") if "large" not in path.parts) == before
    shutil.rmtree(root / "large")


def test_what_a_killed_call_has_left_is_removed_and_what_another_writes_is_not(tmp_path):
    code = (
        "import sys; from pti_core.large_tables.large_files import *; from pti_core.storage.files import Files\n"
        "with large_files(Files(sys.argv[1]), ['images']) as files: print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        (spool,) = tmp_path.glob(".pti-*")
        with large_files.large_files(Files(str(tmp_path)), ["images"]):
            assert spool.exists()
        other.kill()
    assert spool.exists()
    (tmp_path / ".pti-of-others").mkdir()
    with large_files.large_files(Files(str(tmp_path)), ["images"]):
        assert not spool.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".pti-of-others"]


def test_the_data_set_is_no_output(noop, tmp_path):
    data = Path(noop.store.read_config(noop.name)["dataset"])
    with pytest.raises(
        GatherError, match="lies in the data set of the run, whose next listing would take these tables"
    ):
        gather(root_of(noop), str(data / "large"))
    assert not (data / "large").exists()
    gather(root_of(noop), str(data / ".large"))  # hidden folders are not listed
    shutil.rmtree(data / ".large")


def test_the_folder_of_a_data_set_of_parquet_files_is_no_output(noop, tmp_path):
    config = noop.store.read_config(noop.name)
    for dataset in (f"{tmp_path}/*.parquet", "memory://faces"):
        shutil.copytree(root_of(noop), root := tmp_path / "out", dirs_exist_ok=True)
        (root / f"runs/{noop.name}/config.json").write_text(json.dumps(config | {"dataset": dataset}))
        with pytest.raises(GatherError, match="lies in the data set of the run"):
            gather(str(root), dataset.replace("/*.parquet", "").replace("faces", "faces/tables"))
    assert list(tmp_path.glob("*.parquet")) == []


def test_secrets_in_addresses_of_earlier_versions_are_left_out(noop):
    rows = pa.table(
        {"uri": ["https://x/a.png?X-Amz-Signature=abc", "/data/a?b.png", "s3://k:secret@b/a.png", "s3://b/a#.png"]}
    )
    assert gathering._harmless(rows)["uri"].to_pylist() == [
        "https://x/a.png",
        "/data/a?b.png",
        "s3://b/a.png",
        "s3://b/a#.png",
    ]


def test_a_folder_of_any_file_system(noop):
    """Files of before are replaced there too."""
    import fsspec

    fs = fsspec.filesystem("memory")
    done = gather(root_of(noop), "memory://large/of", file_bytes=1)
    assert [file.name for file in done.files["images"][1]] == ["images.parquet"]
    assert sorted(path.rpartition("/")[2] for path in fs.ls("/large/of", detail=False)) == sorted(
        f"{table}.parquet" for table in ("images", *COPIED)
    )
    fs.pipe_file("/large/of/metrics-00003.parquet", fs.cat_file("/large/of/metrics.parquet"))
    gather(root_of(noop), "memory://large/of")
    assert len(fs.ls("/large/of")) == 5
    with fs.open("/large/of/images.parquet") as file:
        assert len(pq.read_table(file)) == 10
    fs.rm("/large", recursive=True)


def test_large_tables_are_of_several_files(noop, tmp_path, monkeypatch):
    monkeypatch.setattr(large_files, "GROUP_ROWS", 4)
    done = gather(root_of(noop), str(tmp_path), file_bytes=1)
    names = [file.name for file in done.files["metrics"][1]]
    assert names == [f"metrics-{i:05d}.parquet" for i in range(6)]  # 24 rows
    metrics = pd.concat(map(pd.read_parquet, sorted(tmp_path.glob("metrics*.parquet"))))
    assert metrics["shard"].is_monotonic_increasing
    assert len(metrics) == 24
    gather(root_of(noop), str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {f"{table}.parquet" for table in ("images", *COPIED)}


def test_rows_of_many_bytes_come_in_smaller_row_groups(noop, tmp_path, monkeypatch):
    monkeypatch.setattr(large_files, "GROUP_BYTES", 1000)
    gather(root_of(noop), str(tmp_path), window=2)
    found = pq.ParquetFile(tmp_path / "pivots.parquet").metadata
    groups = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
    assert sum(groups) == 8
    assert 1 < max(groups) < 8


@pytest.mark.filterwarnings("error")
def test_an_error_half_way_leaves_what_was_there(noop, tmp_path, monkeypatch, capfd):
    gather(root_of(noop), str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(large_files, "GROUP_ROWS", 1)

    def stop(done, total):
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(root_of(noop), str(tmp_path), window=2, file_bytes=1, on_progress=stop)
    gc.collect()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert capfd.readouterr().err == ""


def test_files_of_others_are_not_replaced(noop, tmp_path):
    pd.DataFrame({"image_id": ["a"]}).to_parquet(tmp_path / "images.parquet")
    with pytest.raises(StoreError, match=r"'images.parquet' there was not written by `pti tables`"):
        gather(root_of(noop), str(tmp_path))
    (tmp_path / "images.parquet").unlink()
    (tmp_path / "rejects.parquet").write_text("mine")
    with pytest.raises(StoreError, match=r"'rejects.parquet' there was not written"):
        gather(root_of(noop), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["rejects.parquet"]
    with pytest.raises(StoreError, match="is a file where a folder is needed"):
        gather(root_of(noop), str(tmp_path / "rejects.parquet/x"))
