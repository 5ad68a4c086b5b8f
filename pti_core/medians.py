"""Medians over the images of a run; of large runs, over a sample of them: whole shards, evenly spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pti_core.inversions import STAGES
from pti_core.runs import Run

MEDIANS_OF: Final = 1_000_000  # images; the medians of more change no digit that is shown
FILES: Final = 2000  # of a table that are read for them: to open one costs more than to read its rows

Markers = Mapping[int, Mapping[str, Any]]


def sample(run: Run, markers: Markers) -> list[int] | None:
    """The shards that medians are taken of, always the same ones of the same run.

    None for all, where these have no more than `MEDIANS_OF` images and `FILES` files of metrics.
    """
    files = sum(1 for marker in markers.values() for _ in marker["files"].sizes("metrics"))
    step = max(-(-run.manifest.rows // MEDIANS_OF), -(-files // FILES))
    return list(range(0, run.manifest.shards, step)) if step > 1 else None


def images_in(markers: Markers, shards: Sequence[int] | None) -> int:
    """Images of these shards that were not rejected."""
    chosen = markers.keys() if shards is None else markers.keys() & set(shards)
    return sum(int(markers[shard]["counts"]["pivots"]) for shard in chosen)


def medians(run: Run, shards: Sequence[int] | None = None) -> pd.DataFrame:
    """Medians over the images of these shards, or all.

    A row a stage, columns lpips, mse, psnr, ssim, ms_ssim, steps, seconds.
    """
    columns = ["lpips", "mse", "psnr", "ssim", "ms_ssim", "steps", "seconds"]
    table = run.store.read_arrow("metrics", run.name, ["stage", *columns], _only(shards))
    rows = {}
    for stage in STAGES:
        of_stage = table.filter(pc.equal(table["stage"], stage))
        if len(of_stage):
            rows[stage] = {column: median(of_stage[column]) for column in columns}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float).rename_axis("stage")


def locality_medians(run: Run, shards: Sequence[int] | None = None) -> pd.Series[Any]:
    """Median LPIPS of old against new generator, by where: `alpha 30`, ..., `w_z`; of these shards, or all."""
    table = run.store.read_arrow("locality", run.name, ["where", "alpha", "lpips"], _only(shards))
    at = pc.if_else(pc.equal(table["where"], "interpolated"), table["alpha"], float("inf"))
    found = {float(a): median(table["lpips"].filter(pc.equal(at, a))) for a in pc.unique(at).drop_null().to_pylist()}
    names = {a: "w_z" if a == float("inf") else f"alpha {a:g}" for a in sorted(found)}
    return pd.Series({name: found[a] for a, name in names.items()}, dtype=float)


def median(values: pa.ChunkedArray) -> float:
    """Of what was measured; NaN where nothing was."""
    median = pc.quantile(values.cast(pa.float64()), 0.5)[0].as_py()
    return float("nan") if median is None else float(median)


def _only(shards: Sequence[int] | None) -> list[tuple[str, str, list[int]]] | None:
    return None if shards is None else [("shard", "in", list(shards))]
