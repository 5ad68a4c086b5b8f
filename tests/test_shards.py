"""Runs on plain functions, without Prefect: freeze, invert, measure, publish; then what users do to them."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Semaphore

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import QUICK_SETTINGS
from PIL import Image
from rich.console import Console

from flows.console import show_summary
from pti_core import report, runs
from pti_core.datasets import DatasetError
from pti_core.export import export_images
from pti_core.freezing.freeze import freeze
from pti_core.generators.checkpoints import CheckpointError, save_generator
from pti_core.presets import configure
from pti_core.runs import engine_for, load_run, read_stored
from pti_core.sampling import seed_for
from pti_core.shard.shards import invert_shard, measure_shard, plan_parts
from pti_core.shard.shots import read_shots, write_shots
from pti_core.sheet import MIN_CELL
from pti_core.storage.files import StoreError
from pti_core.storage.known_runs import RunError
from pti_core.tables import COLUMNS, PARTS

STAGES = {"pivot", "tuned", "stored"}


def begin(dataset, output, checkpoint, shard_size=64, limit=None, existing="resume", **settings):
    config = configure("demo", QUICK_SETTINGS | settings)
    return freeze(str(dataset), str(output), checkpoint, config, limit, shard_size, existing)


def finish(run):
    for shard in run.to_do().shards:
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    return run


def test_all_tables_have_their_columns_and_add_up(dataset, tmp_path, tiny_checkpoint):
    run = finish(begin(dataset(6), tmp_path / "out", tiny_checkpoint, shard_size=4))
    assert run.to_do().shards == []
    frames = {name: pd.read_parquet(tmp_path / "out" / name) for name in PARTS}
    for name, frame in frames.items():
        assert [c for c in frame.columns if c not in ("run", "shard")] == list(COLUMNS[name]), name
        if len(frame):
            assert set(frame["run"].astype(str)) == {run.name}
    assert len(frames["pivots"]) + len(frames["rejects"]) == run.manifest.rows == 6
    assert frames["metrics"].groupby("image_id")["stage"].agg(set).tolist() == [STAGES] * 6
    per_image = len(run.config.measure.alphas) + 1
    assert frames["locality"].groupby("image_id").size().tolist() == [per_image] * 6
    assert set(frames["deltas"]["owner"]) == set(frames["pivots"]["image_id"])
    assert set(frames["deltas"]["base_sha256"]) == {run.generator_sha256}
    assert frames["metrics"].attrs["lpips_net"] == "alex"
    parts = list((tmp_path / "out/metrics").rglob("*.parquet"))
    made = [json.loads(pq.read_schema(part).metadata[b"pti_part"]) for part in parts]
    engine = engine_for(run)
    assert {(m["device"], m["precision"]) for m in made} == {(engine.device.type, engine.config.precision)}
    assert run.config.precision == "auto"
    assert engine.config.precision in ("half", "fp32")  # what `auto` came to
    assert all(len(w) == 24 for w in frames["pivots"]["w"])
    seeds = dict(zip(frames["pivots"]["image_id"], frames["pivots"]["seed"], strict=True))
    assert seeds == {f"{i}.png": seed_for(f"{i}.png", "pivot", run.config.seed) for i in range(6)}
    stored = frames["metrics"]["stage"] == "stored"
    assert frames["metrics"][["steps", "seconds"]].isna().all(axis=1).equals(stored)
    assert frames["metrics"].loc[~stored, ["steps", "seconds"]].notna().all(axis=None)


def test_shards_that_begin_together_share_one_engine(dataset, tmp_path, tiny_checkpoint):
    run = begin(dataset(2), tmp_path / "out", tiny_checkpoint, shard_size=1)
    for made in (runs.loaded, runs._engine):  # as in a new process
        made.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        engines = set(pool.map(lambda _: engine_for(load_run(str(tmp_path / "out"), run.name, run.version)), range(4)))
    assert len(engines) == 1


def test_tables_are_enough_to_draw_the_image_again(dataset, tmp_path, tiny_checkpoint):
    run = finish(begin(dataset(2), tmp_path / "out", tiny_checkpoint))
    pivot = run.store.read("pivots", run=run.name).iloc[1].to_dict()
    engine = engine_for(run)
    stored = read_stored(run, engine, pivot)
    image = stored.generator.synthesis(stored.ws, noise=stored.noise)
    pixels = run.read_input(pivot["uri"], pivot["image_id"], 32).pixels
    drawn = ((image[0].clamp(-1, 1) + 1) * 127.5).round().cpu().numpy().transpose(1, 2, 0)
    mse = np.mean(((drawn - pixels) / 127.5) ** 2)
    metrics = run.store.read("metrics", run=run.name)
    row = metrics[(metrics.image_id == pivot["image_id"]) & (metrics.stage == "stored")].iloc[0]
    assert mse == pytest.approx(row["mse"], rel=1e-3)


BAD = {
    "text.png": (lambda path, _: path.write_text("this is no image"), "not an image"),
    "empty.png": (lambda path, _: path.write_bytes(b""), "empty"),
    "grey.png": (lambda path, im: im.convert("L").save(path), "grey"),
    "palette.png": (lambda path, im: im.convert("P").save(path), "palette"),
    "cmyk.jpg": (lambda path, im: im.convert("CMYK").save(path), "CMYK"),
    "deep.png": (
        lambda path, im: Image.fromarray(np.asarray(im.convert("L")).astype(np.uint16) * 256).save(path),
        "16",
    ),
    "alpha.png": (lambda path, im: (im.putalpha(100), im.save(path)), "alpha|transparent"),
    "huge.png": (lambda path, _: Image.new("RGB", (5000, 5000)).save(path), "megapixels"),
}


def test_a_run_keeps_a_picture_of_every_tuned_image(dataset, tmp_path, tiny_checkpoint):
    run = finish(begin(dataset(3), tmp_path / "out", tiny_checkpoint, batch=2))
    found = read_shots(run, 0)
    assert sorted(found) == ["0.png", "1.png", "2.png"]
    metrics = run.store.read("metrics", run=run.name).query("stage == 'tuned'").set_index("image_id")
    for image_id, pivot in run.store.read("pivots", run=run.name).set_index("image_id").iterrows():
        picture = np.asarray(Image.open(io.BytesIO(found[image_id])).convert("RGB"), dtype=float)
        target = run.read_input(pivot["uri"], image_id, 32).pixels
        assert np.mean(((picture - target) / 127.5) ** 2) == pytest.approx(metrics.loc[image_id, "mse"], rel=0.15)
    write_shots(run, 0, 1, {"new.png": b"x"}, more=True)  # as where a rejected image is tried again
    assert read_shots(run, 0) == found | {"new.png": b"x"}
    write_shots(run, 0, 1, {"new.png": b"x"}, more=False)  # and where a part is done again
    assert sorted(read_shots(run, 0)) == ["0.png", "1.png", "new.png"]
    for path in (tmp_path / "out").glob("runs/*/report/tuned/*/part-0.parquet"):
        path.write_bytes(b"PAR1 cut off")
    assert read_shots(run, 0) == {"new.png": b"x"}


def test_bad_images_become_rejects_and_the_good_ones_are_inverted_all_the_same(
    dataset, tmp_path, tiny_checkpoint, pictures
):
    folder = dataset(3)
    for name, (write, _) in BAD.items():
        write(folder / name, Image.fromarray(pictures[4]))
    whole = (folder / "0.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    settings = {"image.max_megapixels": 20.0}
    run = finish(begin(folder, tmp_path / "out", tiny_checkpoint, **settings))
    pivots, rejects = (pd.read_parquet(tmp_path / "out" / name) for name in ("pivots", "rejects"))
    assert sorted(pivots["image_id"]) == ["0.png", "1.png", "2.png"]
    messages = dict(zip(rejects["image_id"], rejects["message"], strict=True))
    assert set(messages) == {*BAD, "truncated.png"}
    for name, (_, pattern) in BAD.items():
        assert pd.Series([messages[name]]).str.contains(pattern, case=False).item(), messages[name]
        assert name in messages[name]
    assert "truncated" in messages["truncated.png"]
    assert rejects["permanent"].all()
    assert report.publish(run)["rejected"] == len(BAD) + 1
    # Other members of the shard change nothing.
    alone = finish(begin(folder / "0.png", tmp_path / "alone", tiny_checkpoint))
    one = alone.store.read("metrics", run=alone.name).set_index("stage")["lpips"]
    both = run.store.read("metrics", run=run.name, filters=[("image_id", "==", "0.png")]).set_index("stage")["lpips"]
    np.testing.assert_allclose(both[one.index], one, atol=1e-3)


def test_convert_accepts_what_can_be_converted(dataset, tmp_path, tiny_checkpoint, pictures):
    folder = dataset(1)
    convertible = ["grey.png", "palette.png", "cmyk.jpg", "deep.png", "alpha.png"]
    for name in convertible:
        BAD[name][0](folder / name, Image.fromarray(pictures[4]))
    finish(begin(folder, tmp_path / "out", tiny_checkpoint, **{"image.convert": True}))
    assert len(pd.read_parquet(tmp_path / "out/pivots")) == 1 + len(convertible)


def test_a_data_set_of_bad_images_alone_ends_with_rejects_only(tmp_path, tiny_checkpoint):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "![a].png").write_text("no")
    run = finish(begin(folder, tmp_path / "out", tiny_checkpoint))
    summary = report.publish(run)
    assert (summary["images"], summary["rejected"], summary["contact_sheet"]) == (0, 1, None)
    assert r"\!\[a\]\.png" in report.markdown(summary)
    for name in PARTS:
        assert list(pd.read_parquet(tmp_path / "out" / name).columns)[: len(COLUMNS[name])] == list(COLUMNS[name])


def test_the_same_job_resumes_and_a_changed_job_makes_a_new_run(dataset, tmp_path, tiny_checkpoint):
    folder = dataset(3)
    first = finish(begin(folder, tmp_path / "out", tiny_checkpoint))
    marker = (tmp_path / f"out/runs/{first.name}/done/00000.json").read_bytes()
    again = begin(folder, tmp_path / "out", tiny_checkpoint)
    assert (again.name, again.to_do().shards) == (first.name, [])
    other = begin(folder, tmp_path / "out", tiny_checkpoint, seed=1)
    assert other.name != first.name
    assert other.to_do().shards == [0]
    assert (tmp_path / f"out/runs/{first.name}/done/00000.json").read_bytes() == marker
    # Output place, batch and shard size are not part of what a run is.
    assert begin(folder, tmp_path / "elsewhere", tiny_checkpoint, shard_size=2, batch=1).name == first.name


def test_overwrite_does_it_again(dataset, tmp_path, tiny_checkpoint):
    folder = dataset(2)
    first = finish(begin(folder, tmp_path / "out", tiny_checkpoint))
    again = begin(folder, tmp_path / "out", tiny_checkpoint, existing="overwrite")
    assert (again.name, again.to_do().shards) == (first.name, [0])
    assert not list((tmp_path / "out/pivots").rglob("*.parquet"))
    finish(again)
    assert len(pd.read_parquet(tmp_path / "out/pivots")) == 2


def test_a_shard_that_was_cut_off_goes_on_with_its_first_missing_part(dataset, tmp_path, tiny_checkpoint):
    run = begin(dataset(6), tmp_path / "out", tiny_checkpoint, batch=2)
    whole = finish(begin(tmp_path / "data", tmp_path / "whole", tiny_checkpoint, batch=2))

    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.done > 2.5:  # in the second of three parts
            raise Killed

    with pytest.raises(Killed):
        invert_shard(run, 0, kill)
    (first,) = (tmp_path / "out/metrics").rglob("*.parquet")
    written = first.stat().st_mtime_ns
    assert run.to_do().shards == [0]
    finish(run)
    assert first.stat().st_mtime_ns == written
    columns = ["image_id", "stage", "lpips"]
    cut, undisturbed = (r.store.read("metrics", columns=columns).sort_values(columns[:2]) for r in (run, whole))
    pd.testing.assert_frame_equal(cut.reset_index(drop=True), undisturbed.reset_index(drop=True), atol=1e-3)
    assert run.store.check_complete(run.name) == {"manifest": 6, "pivots": 6, "rejects": 0}
    assert all(run.store.verify(m) == [] for m in run.store.done(run.name).values())


def test_mode_multi_shares_a_generator_in_each_folder(dataset, tmp_path, tiny_checkpoint, pictures):
    folder = tmp_path / "people"
    for person in ("ann", "bob"):
        (folder / person).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(pictures[i]).save(folder / person / f"{i}.png")
    run = finish(begin(folder, tmp_path / "out", tiny_checkpoint, mode="multi"))
    assert sorted(run.store.read("deltas")["owner"].unique()) == ["ann", "bob"]
    assert run.store.read("metrics").groupby("group").size().to_dict() == {"ann": 6, "bob": 6}
    assert report.publish(run)["images"] == 4


def test_plan_parts_is_the_same_every_time_and_keeps_groups_whole():
    rows = [{"image_id": str(i), "group": "ab"[i % 2]} for i in range(7)]
    assert [len(p) for p in plan_parts(rows, 3, multi=False)] == [3, 3, 1]
    assert [[r["image_id"] for r in p] for p in plan_parts(rows, 3, multi=True)] == [list("0246"), list("135")]


def test_contact_sheet_has_a_row_an_image_and_is_not_made_twice(dataset, tmp_path, tiny_checkpoint):
    run = finish(begin(dataset(3), tmp_path / "out", tiny_checkpoint))
    summary = report.publish(run)
    path = tmp_path / f"out/runs/{run.name}/report/contact_sheet.png"
    assert summary["contact_sheet"] == str(path)
    sheet = Image.open(path)
    assert sheet.width > 7 * MIN_CELL
    assert 3 * MIN_CELL < sheet.height < 4.5 * MIN_CELL
    first = path.stat().st_mtime_ns
    report.publish(load_run(str(tmp_path / "out"), run.name))
    assert path.stat().st_mtime_ns == first
    # The first cell is the target itself, enlarged.
    cell = np.asarray(sheet.crop((16, 42, 16 + MIN_CELL, 42 + MIN_CELL)), dtype=float)
    target = Image.fromarray(run.read_input(str(tmp_path / "data/0.png"), "0.png", 32).pixels)
    expected = np.asarray(target.resize((MIN_CELL, MIN_CELL), Image.Resampling.LANCZOS), dtype=float)
    assert np.abs(cell - expected).mean() < 3


def test_the_contact_sheet_of_an_extended_run_is_made_anew(dataset, tmp_path, tiny_checkpoint, pictures):
    folder = dataset(2)
    run = finish(begin(folder, tmp_path / "out", tiny_checkpoint))
    path = report.publish(run)["contact_sheet"]
    before = Image.open(path).height
    Image.fromarray(pictures[5]).save(folder / "7.png")
    run = finish(begin(folder, tmp_path / "out", tiny_checkpoint, existing="extend"))
    assert report.publish(run)["images"] == 3
    assert Image.open(path).height > before + MIN_CELL


def test_summary_is_json_and_holds_the_medians(dataset, tmp_path, tiny_checkpoint):
    run = finish(begin(dataset(4), tmp_path / "out", tiny_checkpoint))
    summary = json.loads(json.dumps(report.publish(run)))
    metrics = run.store.read("metrics")
    for stage in STAGES:
        expected = metrics[metrics.stage == stage]["lpips"].median()
        assert summary["medians"][stage]["lpips"] == pytest.approx(expected)
    assert list(summary["locality"]) == ["alpha 15", "alpha 30", "alpha 60", "w_z"]
    assert summary["delta_bytes"] > 1000
    assert (summary["medians"]["stored"]["steps"], summary["medians"]["stored"]["seconds"]) == (None, None)
    console = Console(file=io.StringIO(), width=200)
    show_summary(console, summary, str(tmp_path / "out"))
    (line,) = (line for line in console.file.getvalue().splitlines() if "stored" in line)
    assert [cell.strip() for cell in line.split("│")][-3:] == ["", "", ""]
    assert "nan" not in report.markdown(summary).lower()


def test_a_stored_generator_that_draws_no_numbers_costs_the_others_nothing(dataset, tmp_path, tiny_checkpoint):
    """Too large a delta: its picture is black and grey, the run's end and the export of all images are not an error."""
    run = finish(begin(dataset(2), tmp_path / "out", tiny_checkpoint))
    (path,) = run.store.parts("deltas", run.name, 0).values()
    _, content = run.store.read_table(path)
    rows = [row | {"scale": row["scale"] * (1e17 if row["owner"] == "0.png" else 1)} for row in content.to_pylist()]
    written = run.store.write_part("deltas", run.name, 0, 0, pa.Table.from_pylist(rows, content.schema))
    marker = run.store.marker(run.name, 0)
    files = [asdict(written) if file["path"] == path else file for file in marker["files"]]
    run.store.mark_done(run.name, 0, marker | {"files": files})
    assert report.publish(run)["images"] == 2
    exported = export_images(str(tmp_path / "out"), str(tmp_path / "pictures"))
    assert exported.written == 1
    assert [
        sentence for sentence in exported.left_out if "image '0.png': its stored generator draws values" in sentence
    ]


def test_how_many_are_measured_at_once_is_found_once_and_not_by_every_image(dataset, tmp_path, tiny_checkpoint):
    run = begin(dataset(3), tmp_path / "out", tiny_checkpoint)
    inverted, engine, sizes = invert_shard(run, 0), engine_for(run), []

    def hungry(_, given):
        sizes.append(len(given[0]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no room for more than two")

    engine.at_once, engine._room = 4, Semaphore(1)  # as on a GPU: one job after the other
    hook = engine.generator.synthesis.register_forward_pre_hook(hungry)
    measure_shard(run, 0, inverted["files"])
    hook.remove()
    assert engine.at_once == 2
    assert [size for size in sizes if size > 2] == [4]
    assert len(pd.read_parquet(tmp_path / "out/locality")) == 3 * 4  # three alphas, and w_z


def test_a_folder_without_images_a_missing_folder_and_no_generator_are_named(dataset, tmp_path, tiny_checkpoint):
    (tmp_path / "none").mkdir()
    (tmp_path / "none/notes.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"none.*image"):
        begin(tmp_path / "none", tmp_path / "out", tiny_checkpoint)
    with pytest.raises(DatasetError, match="nowhere"):
        begin(tmp_path / "nowhere", tmp_path / "out", tiny_checkpoint)
    picture = dataset(1) / "0.png"
    with pytest.raises(CheckpointError, match=r"0\.png.*PNG"):
        begin(tmp_path / "data", tmp_path / "out", str(picture))
    with pytest.raises(CheckpointError, match="pocket-ffhq-128"):
        begin(tmp_path / "data", tmp_path / "out", "no-such-generator")
    with pytest.raises(StoreError, match=r"0\.png"):
        begin(tmp_path / "data", picture / "out", tiny_checkpoint)


def test_a_generator_that_changed_after_the_run_was_frozen_is_refused(
    dataset, tmp_path, tiny_checkpoint, tiny_generator
):
    path = tmp_path / "generator.safetensors"
    shutil.copy(tiny_checkpoint, path)
    run = begin(dataset(1), tmp_path / "out", str(path))
    save_generator(tiny_generator, path, {"note": "other bytes"})
    runs.loaded.cache_clear()  # as in a new process
    with pytest.raises(RunError, match="changed"):
        invert_shard(run, 0)


def test_a_process_that_has_loaded_a_generator_finds_the_one_that_took_its_place(
    dataset, tmp_path, tiny_checkpoint, tiny_generator
):
    path = tmp_path / "generator.safetensors"
    save_generator(tiny_generator, path, {"note": "other bytes"})
    new = path.read_bytes()
    run = begin(dataset(1), tmp_path / "out", str(path))  # by another process, say
    path.write_bytes(Path(tiny_checkpoint).read_bytes())
    runs.loaded.cache_clear()
    old = runs.loaded_now(str(path))
    assert old.sha256 != run.generator_sha256
    assert runs.loaded_now(str(path)) is old
    path.write_bytes(new)
    assert invert_shard(run, 0)["counts"]["pivots"] == 1
    assert runs.loaded(str(path)).sha256 == run.generator_sha256
    path.write_bytes(Path(tiny_checkpoint).read_bytes())
    assert runs.loaded_now(str(path)).sha256 == old.sha256
    assert runs.loaded_now("pocket") is runs.loaded_now("pocket")


def test_an_unknown_run_is_named_with_those_that_exist(dataset, tmp_path, tiny_checkpoint):
    run = begin(dataset(1), tmp_path / "out", tiny_checkpoint)
    with pytest.raises(RunError, match=f"'nothing'.*{run.name}"):
        load_run(str(tmp_path / "out"), "nothing")
