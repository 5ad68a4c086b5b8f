"""A whole part that is about to change: all its new files are written aside first, then each over the one before.

Its files get their names one after the other, and what is there may be all that is left of inputs that have changed or
gone since (`originals`). So where a change was left half done, the next try ends it, and inverts nothing for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa

from pti_core.files import DamagedFile, MissingFile, StoreError
from pti_core.runs import Run


def put_aside(run: Run, shard: int, number: int, files: Mapping[str, bytes]) -> None:
    """Write the new files of a part, by table, aside; the last one tells that all are there."""
    for table, data in files.items():
        run.store.files.put(f"{_folder(run, shard, number)}/{table}.part", data)


def forget_aside(run: Run, shard: int, number: int) -> None:
    """Remove them, once the part has them; where nothing may be removed they stay, and do no harm."""
    with suppress(StoreError):
        run.store.files.remove(_folder(run, shard, number))


def end_change(
    run: Run,
    shard: int,
    number: int,
    marked: Mapping[str, str],
    seal: Callable[[pa.Table], Mapping[str, Any] | None],
) -> bool:
    """End a change of a part that was left half done; whether there was one.

    `marked`: the checksums that must be, by path; `seal`: what a part's metrics say, with the checksums `sha256` of its
    other tables. Each file has to be there in the new state, in its place or aside; or nothing is touched.
    """
    folder = _folder(run, shard, number)
    try:
        metrics, content = run.store.read_table(f"{folder}/metrics.part")
    except (MissingFile, DamagedFile):
        return False
    if (sealed := seal(content)) is None:
        return False
    moved: dict[str, bytes] = {}
    for table, sha256 in {**sealed["sha256"], "metrics": metrics.sha256}.items():
        path = run.store.part_path(table, run.name, shard, number)
        if marked.get(path, sha256) != sha256:
            return False
        if _content(run, path, sha256) is None:
            data = _content(run, f"{folder}/{table}.part", sha256)
            if data is None:
                return False
            moved[path] = data
    for path, data in moved.items():
        run.store.files.put(path, data)
    forget_aside(run, shard, number)
    return True


def _content(run: Run, path: str, sha256: str) -> bytes | None:
    """A file's content; None where it is another one or not there."""
    with suppress(MissingFile):
        data = run.store.files.get(path, "no file")
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    return None


def _folder(run: Run, shard: int, number: int) -> str:
    return f"runs/{run.name}/staged/{shard:05d}-{number:04d}"
