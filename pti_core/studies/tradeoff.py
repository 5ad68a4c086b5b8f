"""Distortion against editability of one data set inverted in four ways: the trade-off that pivotal tuning breaks.

W and W+ (the base generator at a pivot in either space; Tov et al. 2021 name the trade-off between the two), pivotal
tuning without its locality term, and pivotal tuning (see `comparison`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor

from pti_core.directions import Direction
from pti_core.directions.specs import resolve
from pti_core.editing.attributes import Attributes, fit_attributes, usual_change
from pti_core.editing.measures import correlation, size_ratio
from pti_core.editing.plans import EditError
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.machine.device import exact_float32
from pti_core.metrics import round_uint8
from pti_core.runs import Run, engine_for, read_stored
from pti_core.studies.comparison import METHODS
from pti_core.tables import records

USUAL: Final = 24  # samples that tell what an edit usually does


@dataclass(frozen=True)
class Measured:
    """One image, direction and strength, done in one way."""

    image_id: str
    method: str
    direction: str
    strength: float
    distortion: float  # LPIPS of target and reconstruction
    magnitude: float  # change of the attribute by what the same edit changes in the generator's samples; 1 is as asked
    correlation: float | None  # of the edit's pixel change with that of the base generator at the pivot in W
    gain: float | None  # the sizes of the two changes, by each other


def compare(
    runs: Mapping[str, Run], directions: Sequence[str], strengths: Sequence[float], samples: int = 1500
) -> tuple[pd.DataFrame, dict[str, float]]:
    """A row (`Measured`) for each image, method, direction and strength; and how well each direction can be seen (R2).

    Only images that all runs have. Raises DirectionError, and EditError where a direction moves some layers only.
    """
    engine = engine_for(runs["pti"])
    with exact_float32(engine.device):
        return _compared(engine, runs, directions, strengths, samples)


def _compared(
    engine: Engine, runs: Mapping[str, Run], directions: Sequence[str], strengths: Sequence[float], samples: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    found, _ = resolve(directions, engine, _no_labels)
    try:
        attributes = fit_attributes(engine.generator, engine.statistics, engine.lpips, found, samples)
        usual = {
            (i, strength): usual_change(attributes, engine.generator, engine.statistics, direction, i, USUAL, strength)
            for i, direction in enumerate(found)
            for strength in strengths
        }
    except ValueError as error:
        raise EditError(f"{error} in a study of the trade-off") from error
    pivots = {name: {row["image_id"]: row for row in _pivots(run)} for name, run in runs.items()}
    distortion = {
        (method, row["image_id"]): row["lpips"]
        for method, (name, stage) in METHODS.items()
        for row in records(runs[name].store.read("metrics", run=runs[name].name, filters=[("stage", "==", stage)]))
    }
    ids = [i for i in pivots["pti"] if all(i in of for of in pivots.values())]

    def measured(image_id: str, check: Callable[[], None]) -> list[Measured]:
        check()
        ways = _ways(runs, {name: of[image_id] for name, of in pivots.items()}, engine)
        before = {method: way.draw(way.ws) for method, way in ways.items()}
        return [
            Measured(image_id, method, direction.name, strength, distortion[method, image_id], *values)
            for i, direction in enumerate(found)
            for strength in strengths
            for method, values in _changes(ways, before, direction, strength, attributes, i, usual[i, strength]).items()
        ]

    rows = [asdict(row) for part in engine.in_parallel(measured, ids) for row in part]
    return pd.DataFrame(rows), {d.name: float(r2) for d, r2 in zip(found, attributes.r2, strict=True)}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over images, directions and strengths, a row a method."""
    columns = ["distortion", "magnitude", "correlation", "gain"]
    return rows.groupby("method")[columns].median().reindex(list(METHODS))


@dataclass(frozen=True)
class _Way:
    generator: Generator
    ws: Tensor
    noise: list[Tensor]

    def draw(self, ws: Tensor) -> Tensor:
        with torch.no_grad():
            return round_uint8(self.generator.synthesis(ws, noise=self.noise))


def _ways(runs: Mapping[str, Run], pivots: Mapping[str, Mapping[str, Any]], engine: Engine) -> dict[str, _Way]:
    stored = {name: read_stored(run, engine, pivots[name]) for name, run in runs.items()}
    ways = {}
    for method, (name, stage) in METHODS.items():
        one = stored[name]
        ways[method] = _Way(engine.generator if stage == "pivot" else one.generator, one.ws, one.noise)
    return ways


def _changes(
    ways: Mapping[str, _Way],
    before: Mapping[str, Tensor],
    direction: Direction,
    strength: float,
    attributes: Attributes,
    number: int,
    usual: float,
) -> dict[str, tuple[float, float | None, float | None]]:
    """Magnitude, correlation and gain of one edit, for each method."""
    after = {method: way.draw(direction.edit(way.ws, strength)) for method, way in ways.items()}
    reference = after["W"] - before["W"]
    found = {}
    for method in ways:
        change = after[method] - before[method]
        seen = attributes(torch.cat([before[method], after[method]]))[:, number]
        magnitude = float(seen[1] - seen[0]) / usual
        found[method] = (magnitude, correlation(change, reference), size_ratio(change, reference))
    return found


def _pivots(run: Run) -> list[dict[str, Any]]:
    return records(run.store.read("pivots", run=run.name))


def _no_labels(uri: str) -> Any:
    raise EditError(f"direction 'learned:{uri}': a study of the trade-off takes pca, sefa and files; save it as one")
