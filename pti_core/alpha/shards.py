"""The alpha study of a run's images, shard by shard; a part an image, what is there is not done again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from threading import Lock
from typing import Any, Final

import torch

from pti_core import deltas, images, tables
from pti_core.alpha.strips import ends
from pti_core.alpha.study import OFF, Alpha, AlphaError, drift, nearness, tuned_with
from pti_core.engine import Engine
from pti_core.parallel import in_parallel, one_at_a_time
from pti_core.parts import part_table
from pti_core.pivot import Pivots
from pti_core.runs import Run, engine_for
from pti_core.shards import OnShardProgress, ShardProgress
from pti_core.store import DamagedPart, StoreError

TABLES: Final = ("alpha_nearness", "alpha_drift")
_SETTINGS: Final = b"pti_alpha_study"


def chosen(run: Run, count: int, ids: Sequence[str] = ()) -> dict[int, list[str]]:
    """The images to study by shard: those named, or the first `count`.

    Raises AlphaError for an image_id that the run has no pivot of, and for a run without pivots.
    """
    frame = run.store.read("pivots", run=run.name, columns=["image_id", "shard"])
    if frame.empty:
        raise AlphaError(f"run {run.name} has no pivots yet; finish it with the same `pti run`")
    if missing := sorted(set(ids) - set(frame["image_id"])):
        raise AlphaError(
            f"image_id {missing[0]!r}: run {run.name} has no pivot of it; see its pivots and rejects tables"
        )
    frame = frame[frame["image_id"].isin(ids)] if ids else frame.head(count)
    found: dict[int, list[str]] = {}
    for shard, image_id in zip(frame["shard"], frame["image_id"], strict=True):
        found.setdefault(int(shard), []).append(image_id)
    return found


def study_shard(
    run: Run,
    shard: int,
    ids: Sequence[str],
    alphas: Sequence[Alpha],
    z_samples: int,
    on_progress: OnShardProgress | None = None,
) -> int:
    """Study images of one shard; write the tables `alpha_nearness` and `alpha_drift`. How many were done now.

    `on_progress` is told of each tuned generator as a share of an image.
    """
    engine = engine_for(run)
    rows = run.store.read("pivots", run=run.name, filters=[("shard", "==", shard), ("image_id", "in", list(ids))])
    settings = json.dumps({"alphas": list(alphas), "z_samples": z_samples}).encode()
    places = {row["image_id"]: i for i, row in enumerate(run.manifest.shard(shard))}
    todo = [row for row in tables.records(rows) if not _is_there(run, shard, places[row["image_id"]], settings)]
    _ = engine.lpips, engine.statistics  # made before threads share them
    lock, done = Lock(), float(len(ids) - len(todo))

    def add(share: float) -> None:
        nonlocal done
        with lock:
            done += share
            if on_progress is not None:
                on_progress(ShardProgress(shard, done, len(ids), None))

    add(0.0)
    work = partial(_study, run, engine, alphas, z_samples, add)
    with one_at_a_time(engine.device):
        for row, found in zip(todo, in_parallel(work, todo, engine.device), strict=True):
            for table, content in zip(TABLES, found, strict=True):
                made = part_table(run, table, content)
                made = made.replace_schema_metadata({**made.schema.metadata, _SETTINGS: settings})
                run.store.write_part(table, run.name, shard, places[row["image_id"]], made)
    return len(todo)


def _study(
    run: Run,
    engine: Engine,
    alphas: Sequence[Alpha],
    z_samples: int,
    on_done: Callable[[float], None],
    pivot: Mapping[str, Any],
    check: Callable[[], None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    image_id, generator = pivot["image_id"], engine.generator
    found = run.read_input(pivot["uri"], image_id, generator.img_resolution)
    if found.sha256 != pivot["sha256"]:
        raise AlphaError(f"image {image_id!r} has changed since it was inverted; extend the run, or leave it out")
    target = torch.from_numpy(images.to_float(found.pixels[None]))[0]
    w = torch.tensor(pivot["w"], dtype=torch.float32, device=engine.device).view(1, -1, generator.w_dim)
    noise = [n.to(engine.device) for n in deltas.decode_noise(pivot["noise"], generator.noise_shapes)]
    pivots = Pivots(w, noise, generator.num_ws)
    near = [asdict(row) for row in nearness(engine, pivots.ws, image_id, alphas, z_samples, run.config.seed)]
    drifts, tuned = [], {}
    steps = [alpha for alpha in alphas if alpha == OFF or float(alpha) > 0]
    for alpha in steps:
        tuned[alpha] = tuned_with(engine, target, pivots, image_id, alpha, check)
        found_there = drift(engine, tuned[alpha], target, pivots, image_id, alpha, alphas, z_samples)
        drifts += [asdict(row) for row in found_there]
        on_done(1 / len(steps))
    picture = ends(engine, target, pivots, image_id, alphas, tuned)
    run.store.write_report(run.name, f"alpha/{strip_name(image_id)}", picture)
    return near, drifts


def strip_name(image_id: str) -> str:
    """The file of an image's strips; one name an image, whatever characters it has."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', image_id)[-60:]}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}.png"


def _is_there(run: Run, shard: int, number: int, settings: bytes) -> bool:
    for table in TABLES:
        try:
            _, content = run.store.read_table(run.store.part_path(table, run.name, shard, number))
        except (DamagedPart, StoreError):
            return False
        if (content.schema.metadata or {}).get(_SETTINGS) != settings:
            return False
    return True
