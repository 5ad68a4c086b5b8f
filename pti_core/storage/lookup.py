"""A few images among millions: the manifest tells their shards, and only files of these are opened.

It loads no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from pti_core.storage.files import DamagedFile
from pti_core.storage.store import Store, StoreError


def rows_of(
    store: Store, table: str, run: str, images: Collection[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """The rows of a table of a run that are of these images, as `Store.read` has them.

    Where the run's manifest is lost or damaged they are looked for in all shards. StoreError where the store cannot be
    read.
    """
    where: list[tuple[str, str, Any]] = [("image_id", "in", sorted(set(images)))]
    try:
        shards = set(store.manifest(run).shards_of(images).values())
    except StoreError as error:
        if not manifest_is_lost(store, run, error):
            raise
        return store.read(table, run, columns, where)
    return store.read(table, run, columns, [("shard", "in", sorted(shards)), *where])


def manifest_is_lost(store: Store, run: str, error: StoreError) -> bool:
    """Whether an error of reading a run's manifest is not one that may pass."""
    return isinstance(error, DamagedFile) or not store.exists(f"runs/{run}/manifest.parquet")
