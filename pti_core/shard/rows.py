"""What the engine found, as rows of the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pti_core.inversions import STAGES, Delta, Failure, Inversion
from pti_core.machine.parallel import one_at_a_time
from pti_core.progress import Progress
from pti_core.runs import Run, any_engine_for
from pti_core.sampling import seed_for
from pti_core.shard.inputs import Inputs, reject
from pti_core.shard.parts import Part
from pti_core.tables import Row


def inverted_rows(
    run: Run, rows: Sequence[Row], found: Inputs, tries: Mapping[str, int], report: Callable[[Progress], None]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, bytes]]:
    """Invert what was read of a part's manifest rows: new rows of the tables `parts.INVERTED`, shots by image_id.

    `tries`: how often an image was tried before, by image_id.
    """
    by_id = {row["image_id"]: row for row in rows}
    rejects, expected = list(found.rejects), len(found.targets) + len(found.rejects)
    pivots: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    tensors: list[dict[str, Any]] = []
    shots: dict[str, bytes] = {}
    engine = any_engine_for(run)
    with one_at_a_time(engine.device):
        for result in engine.invert(found.targets, report) if found.targets else ():
            if isinstance(result, Failure):
                row, before = by_id[result.image_id], tries.get(result.image_id, 0)
                rejects.append(reject(row, result.stage, result.error, result.message, result.permanent, before))
            elif isinstance(result, Delta):
                tensors += [
                    asdict(tensor) | {"owner": result.owner, "base_sha256": run.generator_sha256}
                    for tensor in result.tensors
                ]
            else:
                pivots.append(_pivot_row(run, by_id[result.image_id], found.sha256[result.image_id], result))
                metrics += _metrics_rows(by_id[result.image_id], result)
                if result.shot is not None:
                    shots[result.image_id] = result.shot
    if len(pivots) + len(rejects) != expected:
        raise AssertionError(f"{len(pivots)} pivots + {len(rejects)} rejects of {expected} images")
    return {"deltas": tensors, "pivots": pivots, "rejects": rejects, "metrics": metrics}, shots


def _pivot_row(run: Run, row: Row, sha256: str, result: Inversion) -> dict[str, Any]:
    return {
        "image_id": result.image_id,
        "uri": row["uri"],
        "sha256": sha256,
        "group": row["group"],
        "space": run.config.pivot.space,
        "w": result.w.flatten().numpy(),
        "noise": result.noise,
        "lpips": result.measures["pivot"]["lpips"],
        "mse": result.measures["pivot"]["mse"],
        "steps": result.pivot_steps,
        "seconds": result.pivot_seconds,
        "seed": seed_for(result.image_id, "pivot", result.seed),
    }


def _metrics_rows(row: Row, result: Inversion) -> list[dict[str, Any]]:
    steps = {"pivot": result.pivot_steps, "tuned": result.tuning_steps, "stored": None}
    seconds = {"pivot": result.pivot_seconds, "tuned": result.tuning_seconds, "stored": None}
    return [
        {"image_id": result.image_id, "group": row["group"], "stage": stage, "identity": None}
        | result.measures[stage]
        | {"steps": steps[stage], "seconds": seconds[stage]}
        for stage in STAGES
    ]


def rejected_ids(run: Run, part: Part) -> set[str]:
    """The images of a part that were rejected."""
    return set(run.store.read_part(part.files["rejects"].path)["image_id"])


def added(run: Run, before: Part, contents: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables of a part with rows of a new try; without those that stay as they are, which are not read either."""
    same = () if len(contents["pivots"]) else ("deltas", "pivots")
    new = {table: rows for table, rows in contents.items() if table not in same}
    old = {table: run.store.read_table(before.files[table].path)[1] for table in new}
    kept = [row["image_id"] not in before.temporary for row in old["rejects"].to_pylist()]
    old["rejects"] = old["rejects"].filter(pa.array(kept, pa.bool_()))
    return {table: pa.concat_tables([old[table], rows]) for table, rows in new.items()}
