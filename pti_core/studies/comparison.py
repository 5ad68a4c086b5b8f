"""One data set inverted in several ways, to compare them: ordinary runs under one root, resumed like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shard_progress import OnShardProgress
from pti_core.shard.shards import invert_shard, measure_shard


@dataclass(frozen=True)
class Way:
    """What one run does differently."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted name, over the preset's and the caller's
    group_by: str | None = None  # of mode "multi"


WAYS: Final[dict[str, Way]] = {
    "pti": Way(),  # the preset as it is: its pivots are W, its tuned generators PTI
    "free": Way({"locality.enabled": False}),
    "w+": Way({"pivot.space": "w+", "tuning.steps": 1, "measure.z_samples": 0}),  # its generators are not used
}
METHODS: Final = {  # name: run, and the stage of its metrics table
    "W": ("pti", "pivot"),
    "W+": ("w+", "pivot"),
    "PTI without locality": ("free", "stored"),
    "PTI": ("pti", "stored"),
}


def in_groups(size: int, **settings: Any) -> Way:
    """One generator for every `size` images that are neighbours in the data set."""
    return Way({"mode": "multi", **settings}, f"count:{size}")


def invert(
    ways: Mapping[str, Way],
    dataset: str,
    root: str,
    generator: str,
    preset: str,
    settings: Mapping[str, Any] | None = None,
    limit: int | None = None,
    on_progress: Callable[[str], OnShardProgress] | None = None,
) -> dict[str, Run]:
    """A finished run for each way; what is done already is not done again. Raises as `freeze` and `invert_shard`."""
    runs = {}
    for name, way in ways.items():
        config = configure(preset, {**(settings or {}), **way.settings})
        run = freeze(dataset, root, generator, config, limit, group_by=way.group_by)
        for shard in run.to_do().shards:
            done = invert_shard(run, shard, on_progress(name) if on_progress else None)
            measure_shard(run, shard, done["files"], done["seconds"])
        runs[name] = run
    return runs
