"""Which runs an output has, for all that work on finished ones. It loads no torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Final

from pti_core.storage.files import MissingFile
from pti_core.storage.layout import CLEARING
from pti_core.storage.store import Store
from pti_core.tables import TABLES

_CLEARED_IN: Final = timedelta(minutes=10)  # later whoever was to remove a run is taken to have been cut off


class RunError(ValueError):
    """A run that cannot be opened; the message says why and what to do."""


def run_names(store: Store, name: str | None = None) -> list[str]:
    """The names of an output's runs, sorted; only `name` where one is given. Raises RunError where there is none.

    StoreError where the output cannot be listed.
    """
    names = store.runs()
    if name is None and names:
        return names
    if name in names:
        return [name]
    for lost in without_config(store, names):
        if name in (None, lost):
            raise RunError(lost_config(store, lost))
    if names:
        raise RunError(f"{store.root}: no run {name!r}; runs there: {', '.join(names)}")
    if {"config.json", "manifest.parquet"} <= store.files.find("", maxdepth=1).keys():
        root, _, run = (store.files.at("").rstrip("/") if store.files.local else store.root).rsplit("/", 2)
        raise RunError(f"{store.root} is the folder of run {run}; give the root of its tables, {root or '/'}")
    raise RunError(f"{store.root}: no run there; `pti run DATASET --output {store.root}` makes one")


def newest_run(store: Store, name: str | None = None) -> str:
    """The one that was begun last, or `name`. Raises RunError where there is none."""
    names = run_names(store, name)
    return max(names, key=lambda run: (store.read_config(run).get("created", ""), run)) if len(names) > 1 else names[0]


def without_config(store: Store, names: Collection[str]) -> list[str]:
    """Runs beside those of these names, of which there is a manifest but no configuration; sorted."""
    found = [path.split("/") for path in store.files.find("runs", maxdepth=2)]
    return sorted({parts[1] for parts in found if parts[2:] == ["manifest.parquet"]} - set(names))


def left_unfrozen(store: Store, run: str) -> bool:
    """Whether there are files of a run that was cut off while it was frozen, or overwritten, or lost its configuration.

    False where another process has frozen it meanwhile, or does just now, and is at work: first its files are listed,
    then its configuration is looked for, which is there before any of them but the manifest.
    """
    folders = (f"runs/{run}", *(f"{table}/run={run}" for table in TABLES))
    of_freezing = {f"runs/{run}/manifest.parquet", f"runs/{run}/config.json"}
    left = any(store.files.find(folder).keys() - of_freezing for folder in folders)
    return left and not store.exists(f"runs/{run}/config.json")


def check_not_cleared(store: Store, run: str) -> None:
    """Raise RunError where another process has just begun to overwrite a run: it would remove what is frozen now."""
    path = f"runs/{run}/{CLEARING}"
    try:
        found = json.loads(store.files.get(path, f"run {run!r} is not removed"))
        age = abs(datetime.now(UTC) - datetime.fromisoformat(found["since"]))
    except (MissingFile, ValueError, TypeError, KeyError):  # empty in earlier versions
        return
    if age < _CLEARED_IN:
        raise RunError(
            f"{store.root}: run {run} is being overwritten by {found.get('by')} since {found['since']}; wait for that, "
            "or run it again with --overwrite (existing=overwrite) where it was cut off"
        )


def lost_config(store: Store, run: str) -> str:
    """A sentence about such a run."""
    anew = "`pti run` with --overwrite (existing=overwrite)" if lost_results(store, run) else "the same `pti run` again"
    return (
        f"{store.root}: run {run!r} there has lost its configuration; bring 'runs/{run}/config.json' back, or {anew} "
        "does all of it anew"
    )


def lost_results(store: Store, run: str) -> bool:
    """Whether there are results of such a run: it was not cut off while it was frozen or overwritten."""
    there = store.files.find(f"runs/{run}")
    done = any(path.startswith(f"runs/{run}/done/") for path in there)
    done = done or any(store.files.find(f"{table}/run={run}") for table in TABLES)
    # Looked for last, as in `left_unfrozen`: another process may freeze it just now.
    return done and f"runs/{run}/{CLEARING}" not in there and not store.exists(f"runs/{run}/config.json")
