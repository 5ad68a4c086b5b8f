"""The alpha study on plain functions: tables that pair up, what is done again, and what cannot be studied."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import QUICK_SETTINGS

from pti_core.alpha import plans, shards, stored
from pti_core.alpha.stored import Request
from pti_core.alpha.study import AlphaError, check_alphas, drift
from pti_core.checking import check_all
from pti_core.engine import Engine
from pti_core.freezing.freeze import freeze
from pti_core.pivot import Pivots
from pti_core.presets import configure
from pti_core.runs import load_run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.known_runs import RunError
from pti_core.storage.store import StoreError

REQUEST = Request([0.0, 30.0, 60.0, "off"], 2)


def finished(data, output, checkpoint, preset="demo", **settings):
    config = configure(preset, (QUICK_SETTINGS if preset == "demo" else {}) | settings)
    run = freeze(str(data), str(output), checkpoint, config, shard_size=3)
    for shard in run.to_do().shards:
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    return run


@pytest.fixture(scope="module")
def studied(pictures, tiny_checkpoint, tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("alpha")
    (folder / "data").mkdir()
    for i in range(4):
        Image.fromarray(pictures[i]).save(folder / "data" / f"{i}.png")
    run = finished(folder / "data", folder / "out", tiny_checkpoint)
    chosen = plans.chosen(run, 12)
    told = []
    done = [shards.study_shard(run, n, ids, REQUEST, told.append, 3 * n, 4) for n, ids in chosen.items()]
    return run, chosen, done, told


@pytest.fixture
def copy(studied, tmp_path):
    """The studied run in a folder of its own, to be damaged."""
    run, _, _, _ = studied
    shutil.copytree(run.store.root, tmp_path / "out")
    return load_run(str(tmp_path / "out"), run.name)


def test_every_image_is_tuned_with_every_alpha_and_measured_at_the_same_points(studied):
    run, chosen, done, _ = studied
    assert chosen == {0: ["0.png", "1.png", "2.png"], 1: ["3.png"]}
    assert done == [shards.Studied(3, {}), shards.Studied(1, {})]
    drift = run.store.read("alpha_drift", run=run.name)
    per = drift.groupby(["image_id", drift["tuned_alpha"].fillna(-1)])
    assert len(per) == 4 * 3
    assert set(per.size()) == {1 + 2 * (2 + 1)}  # the target; for two z: alphas 30, 60 and w_z
    drift = drift[drift["where"] != "target"]
    assert set(drift.groupby("image_id")["seed"].nunique()) == {2}
    near = run.store.read("alpha_nearness", run=run.name)
    assert set(near["seed"]) == set(drift["seed"])
    assert len(near) == 4 * 2 * 3
    assert (near[near["alpha"] == 0]["t"] == 0).all()


def test_progress_says_which_image_is_tuned_with_what(studied):
    _, _, _, told = studied
    last = {p.shard: (p.done, p.total) for p in told}
    assert last == {0: (3.0, 3), 1: (1.0, 1)}
    for shard in (0, 1):
        done = [p.done for p in told if p.shard == shard]
        assert done == sorted(done)
    words = {p.words for p in told}
    assert {"tuning image 1 of 4 with alpha 30", "tuning image 4 of 4 without the regulariser"} <= words
    assert "" not in words


def test_what_is_there_is_not_done_again_unless_more_is_asked(studied):
    run, _, _, _ = studied
    before = run.store.read("alpha_drift", run=run.name)
    assert plans.plan(str(run.store.root), run.name, 12, [], REQUEST.alphas, 2).pending == []
    for less in (REQUEST, Request([30.0, "off"], 1)):
        assert shards.study_shard(run, 1, ["3.png"], less).done == 0
    pd.testing.assert_frame_equal(run.store.read("alpha_drift", run=run.name), before)
    assert shards.study_shard(run, 1, ["3.png"], Request([30.0, 45.0], 1)).done == 1  # replaces what was there
    plan = plans.plan(str(run.store.root), run.name, 12, [], REQUEST.alphas, 2)
    assert (plan.pending, plan.left, plan.before) == ([1], (4, 3), {0: 0, 1: 3})
    assert shards.study_shard(run, 1, ["3.png"], REQUEST).done == 1
    pd.testing.assert_frame_equal(run.store.read("alpha_drift", run=run.name), before)  # the same numbers again


def test_rows_of_a_request_are_those_of_a_study_that_asked_for_no_more(studied, copy):
    _, chosen, _, _ = studied
    less = Request([30.0, "off"], 1)

    def rows():
        there = stored.places(copy, {1: chosen[1]})
        return stored.requested(copy, stored.studied(copy, there.values(), less), less)

    kept = rows()
    shutil.rmtree(copy.store.root + "/alpha_drift")
    assert shards.study_shard(copy, 1, chosen[1], less).done == 1
    for ours, theirs in zip(kept, rows(), strict=True):
        pd.testing.assert_frame_equal(ours, theirs)
    assert len(kept[1]) == 2 * (1 + 1 + 1)  # two tunings: target, alpha 30, w_z


def found_in(run):
    return check_all(run.store, run.name, run.store.markers(run.name))


def test_a_study_that_is_damaged_is_done_again(copy):
    before = copy.store.read("alpha_drift", run=copy.name)
    for table in stored.TABLES:
        path = Path(copy.store.root, copy.store.part_path(table, copy.name, 1, 0))
        for data in (b"garbage", path.read_bytes()[:-9]):
            path.write_bytes(data)
            assert [c.shard for c in found_in(copy) if c.problems] == [1]
            assert plans.plan(str(copy.store.root), copy.name, 12, [], REQUEST.alphas, 2).pending == [1]
            assert shards.study_shard(copy, 1, ["3.png"], REQUEST).done == 1
            assert [c.shard for c in found_in(copy) if c.problems] == []
    pd.testing.assert_frame_equal(copy.store.read("alpha_drift", run=copy.name), before)


def test_another_pivot_is_studied_again_and_the_same_one_is_not(copy):
    path = copy.store.parts("pivots", copy.name, 1)[0]
    _, table = copy.store.read_table(path)

    def changed(column, values):
        field = table.schema.field(column)
        return table.set_column(table.column_names.index(column), field, pa.array(values, field.type))

    slower = changed("seconds", [99.0])
    copy.store.write_part("pivots", copy.name, 1, 0, slower)
    assert plans.plan(copy.store.root, copy.name, 12, [], REQUEST.alphas, 2).pending == []
    w = table["w"].to_pylist()
    w[0][0] += 0.5
    copy.store.write_part("pivots", copy.name, 1, 0, changed("w", w))
    assert plans.plan(copy.store.root, copy.name, 12, [], REQUEST.alphas, 2).pending == [1]
    assert shards.study_shard(copy, 1, ["3.png"], REQUEST).done == 1
    assert plans.plan(copy.store.root, copy.name, 12, [], REQUEST.alphas, 2).pending == []


def test_an_image_that_is_missing_or_changed_costs_itself_only(pictures, dataset, tiny_checkpoint, tmp_path):
    from PIL import Image

    data = dataset(3)
    run = finished(data, tmp_path / "out", tiny_checkpoint)
    (data / "0.png").unlink()
    Image.fromarray(pictures[5]).save(data / "1.png")
    told = []
    request = Request([30.0], 1)
    found = shards.study_shard(run, 0, ["0.png", "1.png", "2.png"], request, told.append)
    assert found.done == 1
    assert "'0.png' cannot be read any more" in found.left_out["0.png"]
    assert "'1.png' has changed since it was inverted" in found.left_out["1.png"]
    assert told[-1].done == 3
    assert set(run.store.read("alpha_drift", run=run.name)["image_id"]) == {"2.png"}
    Image.fromarray(pictures[0]).save(data / "0.png")  # it is back
    again = shards.study_shard(run, 0, ["0.png", "1.png", "2.png"], request)
    assert (again.done, set(again.left_out)) == (1, {"1.png"})


def test_tuning_without_the_regulariser_is_what_the_table_of_metrics_says_without_it(studied, tiny_checkpoint):
    """The study's own tuning against the engine's."""
    run, _, _, _ = studied
    plain = configure("demo", QUICK_SETTINGS | {"locality.enabled": False, "tuning.stop_lpips": 0.0})
    other = freeze(run.dataset, str(run.store.root) + "-plain", tiny_checkpoint, plain)
    invert_shard(other, 0)
    tuned = other.store.read("metrics").query("stage == 'tuned'").set_index("image_id")["lpips"]
    drift = run.store.read("alpha_drift", run=run.name)
    fits = drift[(drift["where"] == "target") & drift["tuned_alpha"].isna()].set_index("image_id")["lpips"]
    assert np.allclose(fits.sort_index(), tuned.sort_index(), atol=5e-3)  # noise maps went through 8 bits


@pytest.mark.parametrize(("alphas", "text"), [([-30.0], "alpha -30"), ([0.0, "off"], "above 0"), ([], "above 0")])
def test_alphas_that_mean_nothing_are_refused(alphas, text):
    with pytest.raises(AlphaError, match=text):
        check_alphas(alphas)


def test_what_cannot_be_studied_is_said_before_any_work(studied, dataset, tiny_checkpoint, tmp_path):
    run, _, _, _ = studied
    with pytest.raises(AlphaError, match=r"has no image 'nobody\.png'; it has 4"):
        plans.plan(run.store.root, run.name, 1, ["nobody.png"], REQUEST.alphas, 1)
    with pytest.raises(AlphaError, match="above 0"):
        plans.plan(run.store.root, run.name, 1, [], [], 1)
    with pytest.raises(RunError, match="no run there"):
        plans.plan(str(tmp_path), None, 1, [], REQUEST.alphas, 1)
    nothing = finished(dataset(2), tmp_path / "noop", tiny_checkpoint, "noop")
    with pytest.raises(AlphaError, match="engine 'noop', which inverts nothing"):
        plans.plan(nothing.store.root, None, 1, [], REQUEST.alphas, 1)
    free = finished(dataset(1, "one"), tmp_path / "free", tiny_checkpoint, **{"locality.weight": 0.0})
    with pytest.raises(AlphaError, match=r"has locality\.weight 0, so alpha decides nothing; use"):
        plans.plan(free.store.root, None, 1, [], REQUEST.alphas, 1)


def test_a_tuning_that_diverges_leaves_out_its_image_and_says_with_which_alpha(copy):
    found = shards.study_shard(copy, 0, ["0.png"], Request([1e30], 1))
    assert found.left_out == {
        "0.png": "image '0.png': tuning it with alpha 1e+30 diverged to NaN; leave that alpha out"
    }


def test_the_first_images_are_chosen_without_reading_the_shards_of_others(copy):
    for path in Path(copy.store.root).glob("pivots/run=*/shard=00001/*.parquet"):
        path.write_bytes(b"not to be read")
    assert plans.chosen(copy, 2) == {0: ["0.png", "1.png"]}
    assert plans.chosen(copy, 3) == {0: ["0.png", "1.png", "2.png"]}
    with pytest.raises(StoreError, match="shard=00001"):
        plans.chosen(copy, 4)


def test_a_shard_whose_pivots_are_gone_is_told_of(copy):
    for path in Path(copy.store.root).glob("pivots/run=*/shard=00000/*.parquet"):
        path.unlink()
    with pytest.raises(AlphaError, match=r"has no pivots: 'pivots/run=.*/shard=00000/part-0\.parquet' is missing"):
        plans.chosen(copy, 3)


def test_a_place_is_of_its_pivot_its_noise_and_its_input(studied):
    run, chosen, _, _ = studied
    place = stored.places(run, chosen)["0.png"]
    changes = ({"w": np.zeros(24)}, {"noise": b"x"}, {"sha256": "x"})
    others = {replace(place, pivot=dict(place.pivot) | change).sha256 for change in changes}
    assert len(others | {place.sha256}) == 4
    assert replace(place, pivot=dict(place.pivot) | {"lpips": 1.0}).sha256 == place.sha256


def test_how_many_points_are_drawn_at_once_is_halved_where_memory_is_short(tiny_generator):
    engine, sizes = Engine(tiny_generator, configure("demo", QUICK_SETTINGS)), []
    w = tiny_generator.mapping.w_avg.view(1, 1, -1)
    pivots = Pivots(w, [n[None, None] for n in tiny_generator.noise_const()], tiny_generator.num_ws)
    found = (engine, tiny_generator, torch.zeros(3, 32, 32), pivots, "0.png", "off", REQUEST.alphas, 2)
    expected = drift(*found)

    def hungry(_, given):
        sizes.append(len(given[0]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no room for more than two")

    engine.at_once = 4  # as on a GPU
    hook = engine.generator.synthesis.register_forward_pre_hook(hungry)
    try:
        rows = drift(*found)
    finally:
        hook.remove()
    assert (len(rows), engine.at_once, [size for size in sizes if size > 2]) == (len(expected), 2, [4])
