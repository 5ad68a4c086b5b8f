"""Quality of the ways to invert a data set: W, W+, pivotal tuning without locality, alone and in groups.

What is measured: the reconstruction from the store, how far the generator drifts from the old one between and at other
samples, and what an image costs in time and bytes. All of it comes from the tables of ordinary runs (`comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pandas as pd

from pti_core.runs import Run
from pti_core.studies.comparison import METHODS, WAYS, Way, in_groups

GROUPED: Final = "PTI in groups"
GROUPED_FREE: Final = f"{GROUPED} without locality"
ALPHA: Final = 30.0
"""Where w_r is measured, in the paper's unit: half way to another sample."""

MEASURES: Final = ("lpips", "mse", "psnr", "ssim", "drift_w_r", "drift_w_z", "seconds", "pivot_bytes", "delta_bytes")


IN_GROUPS: Final = {GROUPED_FREE: ("multi-free", "stored"), GROUPED: ("multi", "stored")}  # as `METHODS`


def ways(group_size: int) -> dict[str, Way]:
    """The runs that are compared; those of the trade-off's study are among them."""
    return {**WAYS, "multi": in_groups(group_size), "multi-free": in_groups(group_size, **WAYS["free"].settings)}


def measured(runs: Mapping[str, Run]) -> pd.DataFrame:
    """A row for each image that all runs have, and method: `image_id`, `method` and the columns `MEASURES`.

    lpips, mse, psnr (dB) and ssim: of target and image; drift_w_r and drift_w_z: LPIPS of old and new generator at w_r
    (`ALPHA`) and w_z, the median over the samples z, 0 where the generator is the old one and NaN where the run
    measured none; seconds: of the image's pivot and tuning, on the threads that it had; pivot_bytes and delta_bytes:
    its share of the run's files of these tables, 0 without a delta.
    """
    tables = {name: _of_run(run) for name, run in runs.items()}
    found = []
    for method, (name, stage) in {**METHODS, **IN_GROUPS}.items():
        rows = tables[name][stage].copy()
        if stage == "pivot":  # the old generator
            rows[["drift_w_r", "drift_w_z", "delta_bytes"]] = 0.0
        found.append(rows.assign(method=method))
    rows = pd.concat(found, ignore_index=True)
    everywhere = rows.groupby("image_id")["method"].transform("nunique") == len(found)
    return rows[everywhere][["image_id", "method", *MEASURES]].reset_index(drop=True)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over the images, a row a method."""
    return rows.groupby("method", sort=False)[list(MEASURES)].median()


def _of_run(run: Run) -> dict[str, pd.DataFrame]:
    """Images and their measures, but for the method, by stage."""
    columns = ["image_id", "stage", "lpips", "mse", "psnr", "ssim", "seconds"]
    metrics = run.store.read("metrics", run=run.name, columns=columns)
    seconds = {stage: rows.set_index("image_id")["seconds"] for stage, rows in metrics.groupby("stage", observed=True)}
    drift = run.store.read("locality", run=run.name, columns=["image_id", "where", "alpha", "lpips"])
    at = {"drift_w_r": drift["alpha"] == ALPHA, "drift_w_z": drift["where"] == "wz"}
    found = {}
    for stage in ("pivot", "stored"):
        rows = metrics[metrics["stage"] == stage].drop(columns="stage").set_index("image_id")
        rows["seconds"] = seconds["pivot"] + (seconds["tuned"] if stage == "stored" else 0.0)
        for name, chosen in at.items():
            rows[name] = drift[chosen].groupby("image_id")["lpips"].median().reindex(rows.index)
        for table in ("pivot", "delta"):
            rows[f"{table}_bytes"] = _bytes(run, f"{table}s") / len(rows)
        found[stage] = rows.reset_index()
    return found


def _bytes(run: Run, table: str) -> int:
    """Of all files of a table of the run."""
    return sum(marker["files"].bytes_of(table) for marker in run.store.markers(run.name).values())
