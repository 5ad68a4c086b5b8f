"""The studies that compare ways to invert a data set, and sizes of groups, on a tiny generator."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK_SETTINGS

from pti_core.engine import Engine
from pti_core.presets import configure
from pti_core.studies.comparison import WAYS, invert
from pti_core.studies.quality import GROUPED, GROUPED_FREE, MEASURES, measured, summary, ways
from pti_core.studies.retuning import by_group_size, kept_pivots, load_targets

SETTINGS = QUICK_SETTINGS | {"tuning.steps": 12, "tuning.stop_lpips": 0.0, "measure.z_samples": 2}


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("comparison")
    (folder / "data").mkdir()
    for i in range(3):
        Image.fromarray(pictures[i]).save(folder / "data" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def runs(folder, tiny_checkpoint):
    return invert(ways(2), str(folder / "data"), str(folder / "out"), tiny_checkpoint, "demo", SETTINGS)


def test_quality_is_what_the_tables_of_the_runs_say(runs, folder):
    rows = measured(runs)
    assert list(rows.columns) == ["image_id", "method", *MEASURES]
    assert rows.groupby("method")["image_id"].nunique().to_dict() == dict.fromkeys(
        ["W", "W+", "PTI without locality", "PTI", GROUPED_FREE, GROUPED], 3
    )
    assert rows.notna().all(axis=None)
    of = {method: part.set_index("image_id") for method, part in rows.groupby("method")}
    metrics, drift = pd.read_parquet(folder / "out/metrics"), pd.read_parquet(folder / "out/locality")
    for method, run in (("PTI", runs["pti"]), (GROUPED, runs["multi"]), (GROUPED_FREE, runs["multi-free"])):
        own = metrics[metrics["run"] == run.name]
        stored = own[own["stage"] == "stored"].set_index("image_id")
        for column in ("lpips", "mse", "psnr", "ssim"):
            np.testing.assert_allclose(of[method][column], stored[column].loc[of[method].index])
        spent = own[own["stage"].isin(["pivot", "tuned"])].groupby("image_id")["seconds"].sum()
        np.testing.assert_allclose(of[method]["seconds"], spent.loc[of[method].index])
        at = drift[(drift["run"] == run.name) & (drift["image_id"] == "1.png")]
        assert of[method].loc["1.png", "drift_w_r"] == pytest.approx(at[at["alpha"] == 30]["lpips"].median())
        assert of[method].loc["1.png", "drift_w_z"] == pytest.approx(at[at["where"] == "wz"]["lpips"].median())
    for method in ("W", "W+"):
        assert (of[method][["drift_w_r", "drift_w_z", "delta_bytes"]] == 0).all(axis=None)
    files = (folder / "out/deltas" / f"run={runs['pti'].name}").rglob("*.parquet")
    assert of["PTI"]["delta_bytes"].sum() == pytest.approx(sum(path.stat().st_size for path in files))
    # Two generators for three images; the tables' own bytes are a part of so small a delta.
    assert 0.5 < of[GROUPED]["delta_bytes"].sum() / of["PTI"]["delta_bytes"].sum() < 0.9
    assert of["W+"]["pivot_bytes"].iloc[0] > of["W"]["pivot_bytes"].iloc[0]
    medians = summary(rows)
    assert list(medians.index) == ["W", "W+", "PTI without locality", "PTI", GROUPED_FREE, GROUPED]
    assert medians.loc["PTI", "lpips"] < medians.loc["W", "lpips"]


def test_the_study_of_the_trade_off_uses_the_same_runs(runs, folder, tiny_checkpoint):
    again = invert(WAYS, str(folder / "data"), str(folder / "out"), tiny_checkpoint, "demo", SETTINGS)
    assert {name: run.name for name, run in again.items()} == {name: runs[name].name for name in WAYS}


def test_an_image_that_one_run_has_not_is_in_none_of_the_medians(runs, folder, tiny_checkpoint):
    fewer = invert(
        {"free": WAYS["free"]}, str(folder / "data"), str(folder / "out"), tiny_checkpoint, "demo", SETTINGS, 2
    )
    assert set(measured({**runs, **fewer})["image_id"]) == {"0.png", "1.png"}


def test_groups_of_one_are_the_run_in_mode_single_and_larger_ones_the_run_in_mode_multi(
    runs, folder, tiny_generator, tmp_path
):
    config = configure("demo", {**SETTINGS, "measure.alphas": [30.0]})
    engine = Engine(tiny_generator, config)
    targets = load_targets(str(folder / "data"), 32, config)
    found = kept_pivots(tmp_path / "pivots.pt", engine, targets)
    again = kept_pivots(tmp_path / "pivots.pt", engine, targets)  # read back
    for a, b in zip(found, again, strict=True):
        assert torch.equal(a.pivot.ws, b.pivot.ws)
        assert all(torch.equal(m, n) for m, n in zip(a.pivot.noise, b.pivot.noise, strict=True))
    done: list[int] = []
    rows = measured(runs)
    for size, method in ((1, "PTI"), (2, GROUPED)):
        table = by_group_size(engine, again, size, 30.0, done.append).set_index("image_id")
        expected = rows[rows["method"] == method].set_index("image_id").loc[table.index]
        for column in ("lpips", "mse", "drift_w_r", "drift_w_z"):
            np.testing.assert_allclose(table[column], expected[column], rtol=0.02, atol=1e-4)
        assert (table["steps"] == 12).all()
    assert done == [1, 2, 3, 2, 3]
    first, second, alone = table["delta_bytes"]
    assert first == second  # two images share the first delta, the last has one of its own
    assert first < alone
    assert alone < 4 * sum(p.numel() for p in tiny_generator.tunable().values())
