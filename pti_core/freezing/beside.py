"""Which run of an output a job means, which others it has of the same images, and what the job differs in from them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from pti_core.addresses import redact
from pti_core.config import RunConfig
from pti_core.encoder.kept import encoder_of_config
from pti_core.storage.known_runs import RunError
from pti_core.storage.layout import run_id
from pti_core.storage.store import Store

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
    default_generator: bool = False  # whether it is the one that is taken where none is named

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it; what there is none of is left out."""
        more = {"group_by": self.group_by, "encoder": self.encoder_sha256}
        more = {key: value for key, value in more.items() if value}
        return self.config.digest(dataset=self.dataset, limit=self.limit, generator=self.generator_sha256, **more)


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


class Meant:
    """Which runs of an output jobs mean. The others' configurations are read once, and only for a name that is new."""

    def __init__(self, store: Store) -> None:
        """Raises StoreError where the output cannot be listed."""
        self._store, self.runs = store, frozenset(store.runs())

    @cached_property
    def _newest_first(self) -> list[dict[str, Any]]:
        found = [{**self._store.read_config(name), "run": name} for name in self.runs]
        return sorted(found, key=lambda content: (content.get("created", ""), content["run"]), reverse=True)

    def run(self, job: Job) -> tuple[str, str]:
        """Name and digest of a job's run, whether or not it is there.

        That is the one of the job's own digest. Where it is not there, it is the newest run of the same data set,
        limit, groups, generator and encoder whose settings are the same once those that its version did not have yet
        are filled in with their defaults: a setting that was added changes every digest, and no result.

        Raises StoreError where a configuration cannot be read.
        """
        name = run_id(job.digest)
        if name not in self.runs:
            for content in self._newest_first:
                if _is_of(content, job):
                    return content["run"], content["digest"]
        return name, job.digest


def _is_of(content: Mapping[str, Any], job: Job) -> bool:
    """Whether a run's `config.json` is of this job, apart from the size of its parts."""
    own = (content.get("dataset"), content.get("limit"), content.get("group_by"), content["generator"]["sha256"])
    if own != (redact(job.dataset), job.limit, job.group_by, job.generator_sha256):
        return False
    if encoder_of_config(content) != job.encoder_sha256:
        return False
    try:
        config = RunConfig.model_validate(content["config"])
    except ValidationError:  # it has a setting that there is no more
        return False
    return config.model_copy(update={"batch": job.config.batch}) == job.config


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
    invert everything anew, unseen. And it is one with options that this job leaves out, or with another limit.
    """
    others = _others(store, job)
    meant = [other for other in others if other.differs and _same_job(other.content, job)]
    if meant:
        nearest = _nearest(meant)
        raise RunError(
            f"{store.root}: no run there has these settings, so none can be extended; run {nearest.name} is of the "
            f"same data set, generator, preset and mode, but {nearest.shown()}; do it once without --extend "
            f"(existing=resume) to begin a new run{_way_back(nearest, job)}"
        )
    forgotten = {other.name: options for other in others if (options := _left_out(other.content, job))}
    if forgotten:
        nearest = _nearest([other for other in others if other.name in forgotten])
        options = forgotten[nearest.name]
        if nearest.content["config"].get("preset") == job.config.preset:  # else the preset gives them all
            settings = _differences(nearest.content["config"], job.config)
            own = [(key, old) for key, old, new in settings if new is not None and key not in ("preset", "mode")]
            options += [_set(key, old) for key, old in own]
        raise RunError(
            f"{store.root}: no run there is of this job, so none can be extended; run {nearest.name} is of the same "
            f"data set with {' '.join(options)}: say so too to extend that one, or do it once without "
            "--extend (existing=resume) to begin a new run"
        )


def _left_out(content: Mapping[str, Any], job: Job) -> list[str]:
    """Options of a run that a job has at their defaults, or another limit; none where the job has others of its own.

    A job without a limit may well follow one that was a trial.
    """
    was, now = content["config"], job.config
    default = RunConfig()
    options = [
        ("generator", content["generator"]["sha256"] == job.generator_sha256, job.default_generator),
        ("preset", was.get("preset") == now.preset, now.preset == "fast"),
        ("mode", was.get("mode") == now.mode, now.mode == default.mode),
        ("group_by", content.get("group_by") == job.group_by, job.group_by in (None, "folder")),
        ("limit", content.get("limit") == job.limit, job.limit is not None and content.get("limit") is not None),
    ]
    if any(not same and not omitted for _, same, omitted in options):
        return []
    value = {"generator": content["generator"]["source"], "preset": was.get("preset"), "mode": was.get("mode")}
    value |= {"group_by": content.get("group_by"), "limit": content.get("limit")}
    return [f"--{name.replace('_', '-')} {shlex.quote(str(value[name]))}" for name, same, _ in options if not same]


def _others(store: Store, job: Job) -> list[_Other]:
    found = []
    for name in store.runs():
        content = store.read_config(name)
        if content.get("dataset") != redact(job.dataset):
            continue
        differs = _in_words(_differences(content["config"], job.config))
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
    differences = _differences(other.content["config"], job.config)
    if any(new is None for _, _, new in differences):  # a setting that there is no more
        return ""
    sets = [_set(name, old) for name, old, _ in differences]
    ways = [f"{' '.join(sets)} (settings)"] if sets else []
    if encoder_of_config(other.content) != job.encoder_sha256:
        ways.append("the encoder that it began with (docs/encoder.md)")
    return f", or go on with that one by {' and '.join(ways)}"


def _set(name: str, value: Any) -> str:
    """`--set` as a shell takes it."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"--set {shlex.quote(f'{name}={text}')}"


def _in_words(differences: list[tuple[str, Any, Any]]) -> list[str]:
    """`tuning.steps 28, now 30`, and so on."""
    return [f"{name} {old}, now {'not there' if new is None else new}" for name, old, new in differences]


def _differences(old: Mapping[str, Any], now: RunConfig) -> list[tuple[str, Any, Any]]:
    """Settings that differ: name, old and new value; None where there is no such setting now.

    One that the old version did not have was its default.
    """
    defaults = _by_name(RunConfig().model_dump(mode="json"))
    before, after = defaults | _by_name(old), _by_name(now.model_dump(mode="json"))
    names = [name for name in {**after, **before} if name != "batch"]
    return [(name, before[name], after.get(name)) for name in names if before[name] != after.get(name)]


def _by_name(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The single settings of a dumped configuration by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _by_name(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
