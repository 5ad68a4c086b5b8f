"""Pivots that are searched once, and generators that are tuned at them again and again: for studies of the tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pti_core.batches import as_stored, find_all, tune_all
from pti_core.config import RunConfig
from pti_core.datasets import scan
from pti_core.engine import Engine
from pti_core.images import decode, fit, to_float
from pti_core.inversions import Delta, Failure, Found, Inversion, Target
from pti_core.measure import LocalityRow, measure_locality
from pti_core.pivot import Pivots
from pti_core.progress import OnProgress, WorkCounter
from pti_core.reading import read_bytes

OnGroup = Callable[[int], None]
"""Called with the number of images that are done."""


def load_targets(dataset: str, resolution: int, config: RunConfig, limit: int | None = None) -> list[Target]:
    """The images of a data set, the first `limit` of them, as targets. Raises DatasetError, ImageError, OSError."""
    targets = []
    for entry in scan(dataset, limit).to_pylist():
        name = entry["image_id"]
        pixels = fit(decode(read_bytes(entry["uri"]), name, config.image), resolution, name, config.image)
        targets.append(Target(name, name, torch.from_numpy(to_float(pixels))))
    return targets


def find_all_pivots(engine: Engine, targets: Sequence[Target], on_progress: OnProgress | None = None) -> list[Found]:
    """Their pivots, in order. RuntimeError where one diverges or does not fit into memory."""
    engine.prepare(len(targets))
    found = list(find_all(engine, WorkCounter(engine.config, len(targets), on_progress), targets))
    if failed := [one for one in found if isinstance(one, Failure)]:
        raise RuntimeError(f"{failed[0].image_id}: {failed[0].message}")
    return [one for one in found if not isinstance(one, Failure)]


def kept_pivots(
    path: Path, engine: Engine, targets: Sequence[Target], on_progress: OnProgress | None = None
) -> list[Found]:
    """As `find_all_pivots`, kept in a file, which must be of these targets and settings: the caller names it so."""
    if not path.exists():
        found = find_all_pivots(engine, targets, on_progress)
        content = [
            {"w": f.pivot.w.cpu(), "noise": [n.cpu() for n in f.pivot.noise], "lpips": f.lpips, "s": f.seconds}
            for f in found
        ]
        half = path.with_suffix(".part")
        torch.save(content, half)
        half.replace(path)  # whole or not at all
    device, num_ws = engine.device, engine.generator.num_ws
    return [
        as_stored(engine, target, Pivots(kept["w"].to(device), kept["noise"], num_ws), kept["lpips"], kept["s"])
        for target, kept in zip(targets, torch.load(path, weights_only=True), strict=True)
    ]


def tune_in_groups(
    engine: Engine, found: Sequence[Found], size: int = 1, on_group: OnGroup | None = None
) -> list[tuple[list[Inversion], Delta]]:
    """One generator for every `size` neighbours, the last group may be smaller: its images and its delta.

    RuntimeError where one diverges or does not fit into memory.
    """
    engine.prepare(len(found))
    groups = [list(found[i : i + size]) for i in range(0, len(found), size)]
    done, images = [], 0
    owners = [(group[0].target.image_id, group) for group in groups]
    for results in tune_all(engine, WorkCounter(engine.config, len(found)), owners):
        if failed := [one for one in results if isinstance(one, Failure)]:
            raise RuntimeError(f"{failed[0].image_id}: {failed[0].message}")
        (delta,) = [one for one in results if isinstance(one, Delta)]
        done.append(([one for one in results if isinstance(one, Inversion)], delta))
        images += len(done[-1][0])
        if on_group is not None:
            on_group(images)
    return done


def drifts(engine: Engine, inversions: Sequence[Inversion], delta: Delta) -> list[LocalityRow]:
    """Old against new generator around the pivots of images that share it, at the points of `config.measure`."""
    tuned, rows = engine.stored_generator(delta.tensors), []
    for one in inversions:
        ws = one.w[None].to(engine.device).expand(-1, engine.generator.num_ws, -1)
        rows += measure_locality(
            engine.generator, tuned, ws, one.image_id, engine.config.measure, engine.lpips, one.seed, engine.at_once
        )
    return rows


def by_group_size(
    engine: Engine, found: Sequence[Found], size: int, alpha: float, on_group: OnGroup | None = None
) -> pd.DataFrame:
    """Tune in groups of `size` and measure: a row an image.

    Columns `image_id`, `group_size`, `lpips`, `mse`, `psnr` (dB), `ssim` of target and stored image; `drift_w_r` (at
    `alpha`, which `config.measure` must have) and `drift_w_z`, the medians over samples z of the LPIPS of old and new
    generator; `steps` of the tuning; `seconds` and `delta_bytes`, the image's share of its group's.
    """

    def measured(group: tuple[list[Inversion], Delta], check: Callable[[], None]) -> list[dict[str, Any]]:
        check()
        inversions, delta = group
        drift = pd.DataFrame([asdict(row) for row in drifts(engine, inversions, delta)])
        w_r = drift[drift["alpha"] == alpha].groupby("image_id")["lpips"].median()
        w_z = drift[drift["where"] == "wz"].groupby("image_id")["lpips"].median()
        size_of_delta = sum(len(tensor.payload) for tensor in delta.tensors)
        return [
            {
                "image_id": one.image_id,
                "group_size": size,
                **{name: one.measures["stored"][name] for name in ("lpips", "mse", "psnr", "ssim")},
                "drift_w_r": w_r[one.image_id],
                "drift_w_z": w_z[one.image_id],
                "steps": one.tuning_steps,
                "seconds": one.tuning_seconds,
                "delta_bytes": size_of_delta / len(inversions),
            }
            for one in inversions
        ]

    groups = tune_in_groups(engine, found, size, on_group)
    return pd.DataFrame([row for rows in engine.in_parallel(measured, groups) for row in rows])
