"""Which runs of the same images an output has already, and what a new run differs in from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pti_core.addresses import redact
from pti_core.config import RunConfig
from pti_core.encoder.kept import encoder_of_config
from pti_core.store import Store


def remarks_on_others(
    store: Store, config: RunConfig, dataset: str, generator_sha256: str, encoder_sha256: str | None
) -> list[str]:
    """That this is a new run although the same images were inverted here before, and by what it differs."""
    best: tuple[int, str, list[str]] | None = None
    for name in store.runs():
        other = store.read_config(name)
        if other.get("dataset") != redact(dataset):
            continue
        differs = _differences(other["config"], config.model_dump(mode="json"))
        if other["generator"]["sha256"] != generator_sha256:
            differs.insert(0, "another generator")
        elif encoder_of_config(other) != encoder_sha256:
            differs.insert(0, "another encoder" if encoder_sha256 else "no encoder")
        if best is None or len(differs) < best[0]:
            best = (len(differs), name, differs)
    if best is None:
        return []
    _, name, differs = best
    shown = ", ".join(differs[:3]) + (f" and {len(differs) - 3} more" if len(differs) > 3 else "")
    return [f"a new run beside {name}, which stays as it is ({shown or 'another limit or other groups'})"]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, as `tuning.steps 28, now 30`."""
    found = []
    for key in [key for key in new if key != "batch"]:
        if isinstance(new[key], dict):
            found += _differences(old.get(key) or {}, new[key], f"{prefix}{key}.")
        elif old.get(key) != new[key]:
            found.append(f"{prefix}{key} {old.get(key)}, now {new[key]}")
    return found
