"""Which runs of the same images an output has already, and what a job differs in from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pti_core.addresses import redact
from pti_core.config import RunConfig
from pti_core.encoder.kept import encoder_of_config
from pti_core.known_runs import RunError
from pti_core.store import Store

_SHOWN = 3  # differences that are named


@dataclass(frozen=True)
class Job:
    """What decides which run is meant."""

    dataset: str
    limit: int | None
    group_by: str | None
    generator_sha256: str
    encoder_sha256: str | None
    config: RunConfig


@dataclass(frozen=True)
class _Other:
    """A run of the same data set."""

    name: str
    content: Mapping[str, Any]  # its config.json
    differs: list[str]  # of a job, in words; the first is of generator or encoder, where they are others

    def shown(self) -> str:
        """What differs, the first of it."""
        more = len(self.differs) - _SHOWN
        return ", ".join(self.differs[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def remarks_on_others(store: Store, job: Job) -> list[str]:
    """That this is a new run although the same images were inverted here before, and by what it differs."""
    others = _others(store, job)
    if not others:
        return []
    nearest = _nearest(others)
    differs = nearest.shown() or "another limit or other groups"
    return [f"a new run beside {nearest.name}, which stays as it is ({differs})"]


def check_extended(store: Store, job: Job) -> None:
    """Raise RunError where the run to extend is not there, and one is that was probably meant.

    That is a run of the same data set, limit, groups, generator, preset and mode: only single settings or the encoder
    differ. They may have changed by themselves, such as defaults of another version, and a schedule would begin to
    invert everything anew, unseen.
    """
    meant = [other for other in _others(store, job) if other.differs and _same_job(other.content, job)]
    if not meant:
        return
    nearest = _nearest(meant)
    raise RunError(
        f"{store.root}: no run there has these settings, so none can be extended; run {nearest.name} is of the same "
        f"data set, generator, preset and mode, but {nearest.shown()}; do it once without --extend (existing=resume) "
        f"to begin a new run{_way_back(nearest, job)}"
    )


def _others(store: Store, job: Job) -> list[_Other]:
    found = []
    for name in store.runs():
        content = store.read_config(name)
        if content.get("dataset") != redact(job.dataset):
            continue
        differs = _in_words(_differences(content["config"], job.config.model_dump(mode="json")))
        if content["generator"]["sha256"] != job.generator_sha256:
            differs.insert(0, "another generator")
        elif encoder_of_config(content) != job.encoder_sha256:
            differs.insert(0, _encoders(encoder_of_config(content), job.encoder_sha256))
        found.append(_Other(name, content, differs))
    return found


def _nearest(others: list[_Other]) -> _Other:
    """That which least differs in; of several the newest."""
    newest_first = sorted(others, key=lambda other: other.content.get("created", ""), reverse=True)
    return min(newest_first, key=lambda other: len(other.differs))


def _same_job(content: Mapping[str, Any], job: Job) -> bool:
    config = content["config"]
    return (
        (content.get("limit"), content.get("group_by")) == (job.limit, job.group_by)
        and content["generator"]["sha256"] == job.generator_sha256
        and (config.get("preset"), config.get("mode")) == (job.config.preset, job.config.mode)
    )


def _encoders(old: str | None, new: str | None) -> str:
    """`another encoder (1f0c5a…, now 93ab01…)`, or that there is none now."""
    if new is None:
        return f"no encoder (before {str(old)[:12]}…)"
    return f"another encoder ({f'{old[:12]}…' if old else 'none'}, now {new[:12]}…)"


def _way_back(other: _Other, job: Job) -> str:
    """How to go on with that run, in words; nothing where that takes another version of the program."""
    differences = _differences(other.content["config"], job.config.model_dump(mode="json"))
    if any(None in (old, new) for _, old, new in differences):  # a setting that only one of the versions has
        return ""
    sets = [f"--set {name}={_value(old)}" for name, old, _ in differences]
    ways = [f"{' '.join(sets)} (settings)"] if sets else []
    if encoder_of_config(other.content) != job.encoder_sha256:
        ways.append("the encoder that it began with (docs/encoder.md)")
    return f", or go on with that one by {' and '.join(ways)}"


def _value(value: Any) -> str:
    """As `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _in_words(differences: list[tuple[str, Any, Any]]) -> list[str]:
    """`tuning.steps 28, now 30`, and so on."""
    said = [(name, *("not there" if value is None else value for value in values)) for name, *values in differences]
    return [f"{name} {old}, now {new}" for name, old, new in said]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Settings that differ: name, old and new value; None where there is no such setting."""
    found: list[tuple[str, Any, Any]] = []
    for key in [key for key in {**new, **old} if key != "batch"]:
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) or isinstance(now, dict):
            found += _differences(before or {}, now or {}, f"{prefix}{key}.")
        elif before != now:
            found.append((f"{prefix}{key}", before, now))
    return found
