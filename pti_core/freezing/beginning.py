"""The first files of a new run, its manifest and its configuration, also where several processes write them at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from pti_core.storage import manifests
from pti_core.storage.files import StoreError
from pti_core.storage.store import Store
from pti_core.tables import to_parquet

PATIENCE: Final = 5.0
"""Seconds for the configuration of another process to follow its manifest, which takes it one request."""

_LOOK_EVERY: Final = 0.25  # seconds


def begin(store: Store, run: str, manifest: pa.Table, config: Mapping[str, Any]) -> None:
    """Freeze a run that has no configuration: the manifest, then the configuration, with which it is frozen.

    Of several processes that do so at once one has its way, and all go on with what that one has written, though their
    data set or their `shard_size` is another. A manifest without a configuration is replaced where nobody is between
    the two: a process has ended there. StoreError where another one freezes the run in the moment of that.
    """
    path = manifests.path_of(run, 0)
    replaced = False
    if not store.files.create(path, to_parquet("manifest", manifest)) and not _frozen(store, run):
        store.write_manifest(run, manifest)
        replaced = True
    store.write_config(run, config)
    if replaced and store.read_config(run).get("created") != config["created"]:
        raise StoreError(f"run {run!r} has another manifest: {manifests.MEANWHILE}")


def _frozen(store: Store, run: str) -> bool:
    """Whether a run gets its configuration now, by another process; waits for it."""
    end = time.monotonic() + PATIENCE
    while not (found := store.exists(f"runs/{run}/config.json")) and time.monotonic() < end:
        time.sleep(_LOOK_EVERY)
    return found
