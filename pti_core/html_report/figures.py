"""The figures of a report: every image's measures from the tables, their medians, the rejects, the settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from pydantic import BaseModel

from pti_core.causes import causes_of, in_lines
from pti_core.config import RunConfig
from pti_core.inversions import STAGES
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.sampling import seed_for
from pti_core.throughput import in_words, throughput

MEMBERS = 200  # image_ids that a group of rejects names


@dataclass(frozen=True)
class Measure:
    """How a measure is named and written."""

    label: str
    digits: int
    higher_is_better: bool = False
    unit: str = ""


MEASURES: Final[dict[str, Measure]] = {
    "lpips": Measure("LPIPS", 4),
    "mse": Measure("MSE", 4),
    "psnr": Measure("PSNR", 2, True, "dB"),
    "ssim": Measure("SSIM", 3, True),
    "ms_ssim": Measure("MS-SSIM", 3, True),
    "identity": Measure("identity", 3, True),
}
"""Of every stage; columns of the metrics table."""

DRIFT, SECONDS = "drift", "seconds"
OTHERS: Final[dict[str, Measure]] = {
    DRIFT: Measure("LPIPS of old against new generator at w_z", 4),
    SECONDS: Measure("time for pivot and tuning", 1, False, "s"),
}
"""Of an image."""


@dataclass(frozen=True)
class Figures:
    """What the tables say of the finished shards of a run."""

    images: pd.DataFrame  # one row per image: group, shard, `<stage>.<measure>` where measured, drift, seconds
    stages: pd.DataFrame  # medians, a row a stage: the measures, steps, seconds
    locality: pd.DataFrame  # alpha (inf at w_z), t, lpips
    rejects: list[dict[str, Any]]  # grouped: stage, error, reason, permanent, count, images (some of them)
    causes: list[str]  # of rejects, by the markers: lines such as `3 read FileNotFoundError`
    rejected: int
    delta_bytes: float  # an image
    speed: str  # in words, by the markers; empty where nothing took time
    shards_done: int

    @property
    def columns(self) -> dict[str, Measure]:
        """The columns of `images` that hold measures, as `<stage>.<measure>` or a name alone."""
        known = {f"{stage}.{name}": measure for stage in STAGES for name, measure in MEASURES.items()} | OTHERS
        return {name: measure for name, measure in known.items() if name in self.images.columns}


def gather(run: Run, markers: Mapping[int, Mapping[str, Any]] | None = None) -> Figures:
    """Read the tables of the finished shards (`markers` of `Store.done`). StoreError where they cannot be read."""
    markers = run.store.done(run.name) if markers is None else markers

    def read(table: str, *columns: str) -> pd.DataFrame:
        frame = run.store.read(table, run=run.name, columns=[*columns, "shard"])
        return frame[frame["shard"].isin(list(markers))]

    metrics = read("metrics", "image_id", "stage", *MEASURES, "steps", "seconds")
    locality = read("locality", "image_id", "where", "alpha", "t", "lpips")
    images = read("pivots", "image_id", "group").set_index("image_id")
    for stage in STAGES:
        taken = (
            metrics[metrics["stage"] == stage].set_index("image_id")[list(MEASURES)].dropna(axis="columns", how="all")
        )
        images = images.join(taken.add_prefix(f"{stage}."))
    if len(at_wz := locality[locality["where"] == "wz"]):
        images[DRIFT] = at_wz.groupby("image_id")["lpips"].median()
    if len(metrics) and metrics["seconds"].sum() > 0:
        images[SECONDS] = metrics.groupby("image_id")["seconds"].sum()
    stages = metrics.groupby("stage")[[*MEASURES, "steps", "seconds"]].median(numeric_only=True)
    rejects = read("rejects", "image_id", "uri", "stage", "error", "message", "permanent")
    return Figures(
        images=images,
        stages=stages.reindex([stage for stage in STAGES if stage in stages.index]),
        locality=pd.DataFrame(
            {
                "alpha": locality["alpha"].where(locality["where"] == "interpolated", math.inf),
                "t": locality["t"],
                "lpips": locality["lpips"],
            }
        ),
        rejects=_grouped(rejects),
        causes=in_lines(causes_of(marker["counts"] for marker in markers.values())),
        rejected=len(rejects),
        delta_bytes=sum(marker["files"].bytes_of("deltas") for marker in markers.values()) / max(1, len(images)),
        speed=in_words(speed) if (speed := throughput(markers.values())) else "",
        shards_done=len(markers),
    )


def choose(figures: Figures, count: int, seed: int = 0) -> list[str]:
    """`count` image_ids: half of them the worst by any measure, the others at random (the same every time)."""
    ids = figures.images.index
    if count >= len(ids):
        return list(ids)
    order = list(worst_first(figures).index)
    worst = order[: (count + 1) // 2]
    others = sorted(order[len(worst) :], key=lambda image_id: seed_for(image_id, "report", seed))
    return worst + others[: count - len(worst)]


def worst_first(figures: Figures) -> pd.Series[Any]:
    """Each image's best place on the lists of the worst by one measure, from 1; in this order."""
    asked = {name: m for name, m in figures.columns.items() if name != SECONDS and not name.startswith("tuned.")}
    places = pd.DataFrame(
        {
            name: figures.images[name].astype(float).rank(ascending=measure.higher_is_better, method="first")
            for name, measure in asked.items()
        },
        index=figures.images.index,
    )
    return places.min(axis=1).fillna(np.inf).sort_values(kind="stable")


def _grouped(rejects: pd.DataFrame) -> list[dict[str, Any]]:
    """Rejects by reason, the most frequent first. Names are taken out of messages, so that the same reason is one."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for row in rejects.to_dict("records"):
        reason = str(row["message"])
        for name in sorted({str(row["image_id"]), str(row["uri"])}, key=len, reverse=True):
            reason = reason.replace(repr(name), "…").replace(name, "…")
        reason = reason.removeprefix("image_id …: ")
        groups.setdefault((row["stage"], row["error"], reason, bool(row["permanent"])), []).append(row["image_id"])
    keys = ("stage", "error", "reason", "permanent")
    return [
        dict(zip(keys, key, strict=True)) | {"count": len(ids), "images": ids[:MEMBERS]}
        for key, ids in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def settings(config: RunConfig) -> list[dict[str, Any]]:
    """Every setting by its dotted name: value, the preset's own value where that differs, and what it is."""
    preset = dict(_flat(configure(config.preset)))
    return [
        {
            "name": name,
            "value": _text(value),
            "preset": _text(preset[name][0]) if preset[name][0] != value else None,
            "doc": doc,
        }
        for name, (value, doc) in _flat(config)
        if name != "preset"
    ]


def _flat(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, tuple[Any, str]]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", (value, (field.description or "").replace("`", ""))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run was made from and with, of its config.json: pairs of a name and a text."""
    generator = config["generator"]
    size = f"{generator['resolution']} x {generator['resolution']}, num_ws {generator['num_ws']}"
    versions = ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
    found = [
        ("data set", config["dataset"]),
        ("limit", config.get("limit")),
        ("groups", config.get("group_by")),
        ("generator", generator["source"]),
        ("", f"{generator['kind']}, {size}"),
        ("SHA-256", generator["sha256"]),
        ("digest", config["digest"]),
        ("made", config.get("created")),
        ("versions", versions),
    ]
    return [(name, str(text)) for name, text in found if text]
