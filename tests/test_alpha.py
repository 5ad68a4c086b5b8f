"""The alpha study on plain functions: tables that pair up, statements with figures, and what cannot be studied."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK_SETTINGS

from pti_core.alpha import report, shards
from pti_core.alpha.findings import paired
from pti_core.alpha.study import AlphaError, check_alphas
from pti_core.freezing import freeze
from pti_core.presets import configure
from pti_core.runs import RunError, find_run
from pti_core.shards import invert_shard, measure_shard

ALPHAS = [0.0, 30.0, 60.0, "off"]


@pytest.fixture(scope="module")
def studied(pictures, tiny_checkpoint, tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("alpha")
    (folder / "data").mkdir()
    for i in range(4):
        Image.fromarray(pictures[i]).save(folder / "data" / f"{i}.png")
    config = configure("demo", QUICK_SETTINGS)
    run = freeze(str(folder / "data"), str(folder / "out"), tiny_checkpoint, config, shard_size=3)
    for shard in run.pending():
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    chosen = shards.chosen(run, 12)
    told = []
    done = [shards.study_shard(run, n, ids, ALPHAS, 2, told.append) for n, ids in chosen.items()]
    return run, chosen, done, told


def test_every_image_is_tuned_with_every_alpha_and_measured_at_the_same_points(studied):
    run, chosen, done, told = studied
    assert (chosen, done) == ({0: ["0.png", "1.png", "2.png"], 1: ["3.png"]}, [3, 1])
    assert {p.shard: (p.done, p.total) for p in told} == {0: (pytest.approx(3), 3), 1: (pytest.approx(1), 1)}
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


def test_what_is_there_is_not_done_again_unless_asked_otherwise(studied):
    run, _, _, _ = studied
    before = run.store.read("alpha_drift", run=run.name)
    assert shards.study_shard(run, 1, ["3.png"], ALPHAS, 2) == 0
    pd.testing.assert_frame_equal(run.store.read("alpha_drift", run=run.name), before)
    assert shards.study_shard(run, 1, ["3.png"], [30.0, "off"], 1) == 1
    assert shards.study_shard(run, 1, ["3.png"], ALPHAS, 2) == 1
    pd.testing.assert_frame_equal(run.store.read("alpha_drift", run=run.name), before)  # the same numbers again


def test_tuning_without_the_regulariser_is_what_the_table_of_metrics_says_without_it(studied, tiny_checkpoint):
    """The study's own tuning against the engine's."""
    run, _, _, _ = studied
    plain = configure("demo", QUICK_SETTINGS | {"locality.enabled": False, "tuning.stop_lpips": 0.0})
    data = run.dataset
    other = freeze(data, str(run.store.root) + "-plain", tiny_checkpoint, plain)
    invert_shard(other, 0)
    tuned = other.store.read("metrics").query("stage == 'tuned'").set_index("image_id")["lpips"]
    drift = run.store.read("alpha_drift", run=run.name)
    fits = drift[(drift["where"] == "target") & drift["tuned_alpha"].isna()].set_index("image_id")["lpips"]
    assert np.allclose(fits.sort_index(), tuned.sort_index(), atol=5e-3)  # noise maps went through 8 bits


def test_the_page_says_each_statement_with_its_figures(studied):
    run, _, _, _ = studied
    found = report.publish(run)
    assert found["images"] == 4
    page = (run.store.files.get(f"runs/{run.name}/report/alpha/study.md", "")).decode()
    for text in ("alpha 60 than at 30", "tuning with alpha 30 drifts less at w_z than without", "95% [", "4 images"):
        assert text in page
    for name in ("nearness.png", "drift.png", shards.strip_name("0.png")):
        assert name in page
        assert run.store.files.get(f"runs/{run.name}/report/alpha/{name}", "")[:4] == b"\x89PNG"


def test_verdicts():
    below = pd.Series([-0.5, -0.4, -0.6, -0.45])
    assert paired("x", below).verdict == "borne out"
    assert paired("x", -below).verdict == "contradicted"
    assert paired("x", pd.Series([-1.0, 1.0, -0.9, 0.9, 0.1, -0.1])).verdict == "not decided"
    assert paired("x", below.head(2)).verdict == "not decided"


@pytest.mark.parametrize(("alphas", "text"), [([-30.0], "alpha -30"), ([0.0, "off"], "above 0"), ([], "above 0")])
def test_alphas_that_mean_nothing_are_refused(alphas, text):
    with pytest.raises(AlphaError, match=text):
        check_alphas(alphas)


def test_what_is_not_there_is_said(studied, tmp_path):
    run, _, _, _ = studied
    with pytest.raises(AlphaError, match=r"nobody\.png.*no pivot"):
        shards.chosen(run, 1, ["nobody.png"])
    with pytest.raises(RunError, match="no run there"):
        find_run(str(tmp_path))
