"""One row an input of a run, with what all tables say of it: the columns of `images.parquet`, and a window's rows.

It loads no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.storage.files import StoreError
from pti_core.tables import COLUMNS, Column, markdown

_S, _I, _F = pa.string(), pa.int64(), pa.float64()

MEASURED: Final[Mapping[str, tuple[str, ...]]] = {
    "pivot": ("lpips", "mse", "psnr", "ssim", "steps", "seconds"),
    "tuned": ("lpips", "mse", "psnr", "ssim", "steps", "seconds"),
    "stored": ("lpips", "mse", "psnr", "ssim"),  # it takes no steps, and its time is not measured
}
"""Of each stage in the metrics table, the columns that are taken."""

REJECTED: Final = ("stage", "error", "message", "permanent", "attempts")
"""The columns of the rejects table that are taken, each as `reject_<column>`."""


def columns(alphas: Sequence[float]) -> dict[str, Column]:
    """The columns of a run that measures locality at these alphas, in order."""
    manifest, metrics, rejects = COLUMNS["manifest"], COLUMNS["metrics"], COLUMNS["rejects"]
    found = {
        "image_id": Column(_S, manifest["image_id"].doc),
        "uri": Column(_S, manifest["uri"].doc),
        "group": Column(_S, manifest["group"].doc),
        "run": Column(_S, "name of the run"),
        "shard": Column(pa.int32(), manifest["shard"].doc),
        "status": Column(_S, "`inverted` (in pivots and metrics) or `rejected` (in rejects)"),
    }
    for stage, taken in MEASURED.items():
        for name in taken:
            doc = f"`{name}` of the stage `{stage}` in `metrics`"
            found[f"{name}_{stage}"] = Column(metrics[name].type, doc, True)
    for name, where in drifts(alphas).items():
        at = "at w_z" if math.isinf(where) else f"at alpha {where:g}"
        found[name] = Column(_F, f"mean `lpips` in `locality` {at}, over the samples", True)
    found["owner"] = Column(_S, "whose rows of `deltas` are its: the image_id, or in mode `multi` the group", True)
    found["delta_bytes"] = Column(_I, "bytes of the owner's payload in `deltas`; images of one owner share it", True)
    for name in REJECTED:
        found[f"reject_{name}"] = Column(rejects[name].type, f"`{name}` in `rejects`", True)
    return found


def schema(alphas: Sequence[float], metadata: Mapping[bytes, bytes] | None = None) -> pa.Schema:
    """The same as a schema."""
    fields = [pa.field(name, column.type, column.nullable) for name, column in columns(alphas).items()]
    return pa.schema(fields, metadata=metadata)


def docs() -> str:
    """The columns as Markdown, for the documentation."""
    return "\n".join(markdown(columns((15.0, 30.0, 60.0))))


def drifts(alphas: Sequence[float]) -> dict[str, float]:
    """The columns of drift, and the alpha of each; inf for w_z."""
    named = {f"drift_alpha{_plain(alpha)}": float(alpha) for alpha in sorted(alphas)}
    return {**named, "drift_w_z": math.inf}


def _plain(alpha: float) -> str:
    """30 for 30.0, and 7_5 for 7.5: SQL would need quotes around a dot."""
    return str(int(alpha)) if alpha == int(alpha) else re.sub(r"\W", "_", repr(float(alpha)))


def mean_drift(locality: pa.Table) -> pa.Table:
    """Of rows of the locality table: `image_id`, `at` (alpha, or inf for w_z) and `lpips`, the mean of the samples."""
    at = pc.if_else(pc.equal(locality["where"], "interpolated"), locality["alpha"], math.inf)
    points = pa.table({"image_id": locality["image_id"], "at": at, "lpips": locality["lpips"]})
    return (
        points.group_by(["image_id", "at"]).aggregate([("lpips", "mean")]).rename_columns(["image_id", "at", "lpips"])
    )


@dataclass(frozen=True)
class Window:
    """What was found of some inputs of a run."""

    inputs: pa.Table  # image_id, uri, group, shard, as in the manifest
    pivots: pa.Table  # image_id
    metrics: pa.Table  # image_id, stage and what `MEASURED` takes
    drift: pa.Table  # of `mean_drift`
    rejects: pa.Table  # image_id and `REJECTED`
    delta_bytes: Mapping[str, int]  # by owner


def rows(window: Window, run: str, multi: bool, alphas: Sequence[float]) -> pa.Table:
    """The rows of these inputs, in the order of the manifest. `multi`: images of a group share a delta.

    StoreError where an input is not in exactly one of pivots and rejects.
    """
    ids = window.inputs["image_id"].combine_chunks()
    inverted, at = pc.is_in(ids, window.pivots["image_id"]), _places(ids, window.rejects)
    _check(run, window, ids, inverted, pc.is_valid(at))
    found: dict[str, pa.Array | pa.ChunkedArray] = {name: window.inputs[name] for name in ("image_id", "uri", "group")}
    found |= {"run": pa.repeat(pa.scalar(run), len(ids)), "shard": window.inputs["shard"]}
    found["status"] = pc.if_else(inverted, "inverted", "rejected")
    for stage, taken in MEASURED.items():
        of_stage = window.metrics.filter(pc.equal(window.metrics["stage"], stage))
        places = _places(ids, of_stage)
        found |= {f"{name}_{stage}": of_stage[name].take(places) for name in taken}
    for name, where in drifts(alphas).items():
        there = window.drift.filter(pc.equal(window.drift["at"], where))
        found[name] = there["lpips"].take(_places(ids, there))
    owner = window.inputs["group" if multi else "image_id"]
    found["owner"] = pc.if_else(inverted, owner, pa.scalar(None, _S))
    sizes = pa.table({"image_id": pa.array(window.delta_bytes, _S), "bytes": pa.array(window.delta_bytes.values(), _I)})
    found["delta_bytes"] = sizes["bytes"].take(_places(found["owner"], sizes))
    found |= {f"reject_{name}": window.rejects[name].take(at) for name in REJECTED}
    wanted = schema(alphas)
    return pa.table(found).select(wanted.names).cast(wanted)


def _check(run: str, window: Window, ids: pa.Array, inverted: pa.Array, rejected: pa.Array) -> None:
    """StoreError for an input without a row or with two, and for rows of what is no input."""
    wrong = ids.filter(pc.equal(inverted, rejected))
    rows = len(window.pivots) + len(window.rejects)
    if len(wrong) or rows != len(ids):
        which = f"{wrong[0].as_py()!r} has no row, or two" if len(wrong) else "an image has two rows, or is unknown"
        raise StoreError(
            f"run {run}: pivots and rejects have {rows} rows for {len(ids)} images ({which}); `pti check` names what "
            "is damaged, and `pti run` again makes it once more"
        )


def _places(ids: pa.Array | pa.ChunkedArray, table: pa.Table) -> pa.Array | pa.ChunkedArray:
    """Where each image's row of a table is; null where it has none."""
    return pc.index_in(ids, value_set=table["image_id"], skip_nulls=True)
