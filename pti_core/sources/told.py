"""What is said of a listing: what is there where no image is, and what is left out beside images."""

from __future__ import annotations

from pti_core.addresses import redact
from pti_core.sources.base import Listed
from pti_core.sources.files import LOOKED_FOR
from pti_core.sources.folders import KINDS
from pti_core.words import counted


def nothing_found(dataset: str, found: Listed) -> str:
    """What is there instead."""
    containers = _containers(found)
    hidden = found.others.pop("hidden", 0)
    there = [counted(len(containers), "archive or Parquet file")] if containers else []
    there += [f"{count} {kind}" for kind, count in found.others.most_common(5)] + [f"{hidden} hidden"] * (hidden > 0)
    return f"dataset {redact(dataset)!r} holds no image ({', '.join(there) or 'no file'}); {LOOKED_FOR}"


def left_out(dataset: str, found: Listed) -> list[str]:
    """That archives and Parquet files beside images are not read; nothing where there are none."""
    containers = sorted(_containers(found))
    if not containers:
        return []
    first = containers[0]
    ending = next(ending for ending in KINDS if first.lower().endswith(ending))
    deep = any("/" in name for name in containers if name.lower().endswith(ending))
    one = len(containers) == 1
    return [
        f"{counted(len(containers), 'archive or Parquet file')} of dataset {redact(dataset)!r} "
        f"{'is' if one else 'are'} left out, since there are pictures beside {'it' if one else 'them'} (the first is "
        f"{first!r}); name them by a pattern such as {('**/*' if deep else '*') + ending!r} to read them instead"
    ]


def _containers(found: Listed) -> list[str]:
    return [file.name for kind in found.files.values() for file in kind]
