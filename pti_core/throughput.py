"""How fast a run was, by the markers of its shards alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pti_core.words import counted


def throughput(markers: Iterable[Mapping[str, Any]]) -> dict[str, float] | None:
    """`images_an_hour`, and `median` and `p95` of the seconds per image of shards; None where nothing took time.

    A marker's seconds are the wall seconds of its parts, inverting and measuring, one after the other. Where several
    are in work at the same time each counts in full, so this is the speed of one worker: a run has about as many times
    that as it works on shards at once. Rejects are images too.
    """
    sizes = np.array([(marker["counts"]["manifest"], marker["seconds"]) for marker in markers], float).reshape(-1, 2)
    sizes = sizes[sizes[:, 0] > 0]
    images, seconds = (float(total) for total in sizes.sum(axis=0))
    if seconds <= 0:
        return None
    median, p95 = np.quantile(sizes[:, 1] / sizes[:, 0], (0.5, 0.95))
    return {"images_an_hour": 3600 * images / seconds, "median": float(median), "p95": float(p95)}


def in_words(found: Mapping[str, float]) -> str:
    """One line for a person."""
    images = counted(round(found["images_an_hour"]), "image")
    each = f"median {found['median']:.3g}, 95th percentile {found['p95']:.3g}"
    return f"{images} an hour and worker; seconds per image of a shard: {each}"
