"""Which runs an output has, for all that work on finished ones. It loads no torch."""

from __future__ import annotations

from pti_core.store import Store


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
    if lost := _without_config(store, names, name):
        raise RunError(
            f"{store.root}: run {lost!r} there has lost its configuration; bring 'runs/{lost}/config.json' back, or "
            "the same `pti run` again does all of it anew"
        )
    if names:
        raise RunError(f"{store.root}: no run {name!r}; runs there: {', '.join(names)}")
    if {"config.json", "manifest.parquet"} <= store.files.find("", maxdepth=1).keys():
        *above, _, run = store.root.rstrip("/").split("/")
        root = "/".join(above) or ("/" if store.root.startswith("/") else ".")
        raise RunError(f"{store.root} is the folder of a run; give the root of the tables: {root} --run {run}")
    raise RunError(f"{store.root}: no run there; `pti run DATASET --output {store.root}` makes one")


def newest_run(store: Store, name: str | None = None) -> str:
    """The one that was begun last, or `name`. Raises RunError where there is none."""
    names = run_names(store, name)
    return max(names, key=lambda run: (store.read_config(run).get("created", ""), run)) if len(names) > 1 else names[0]


def _without_config(store: Store, names: list[str], name: str | None) -> str | None:
    """A run, or this one, of which there is more than nothing but no config."""
    folders = {path.split("/")[1] for path in store.files.find("runs", maxdepth=2) if path.count("/") == 2}
    lost = sorted(folders - set(names))
    return next((run for run in lost if name is None or run == name), None)
