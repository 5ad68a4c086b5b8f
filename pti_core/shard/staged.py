"""A whole part that is about to change: all its new files are written aside first, then each over the one before.

Its files get their names one after the other, and what is there may be all that is left of inputs that have changed or
gone since (`originals`). So where a change was left half done, the next try ends it, and inverts nothing for it.

runs/<run>/staged/00003-0000-<digits>/     the new files of part 0 of shard 3, and change.json, which is written last
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from pti_core.runs import Run
from pti_core.storage.files import MissingFile, StoreError

_FOLDER: Final = re.compile(r"(runs/[^/]+/staged/(\d{5,})-(\d{4,})-[0-9a-f]+)/change\.json")


@dataclass(frozen=True)
class Change:
    """From which state of a part's files to which; checksums by table."""

    created: str  # when the run was frozen: after `--overwrite` it is another one
    before: dict[str, str]
    after: dict[str, str]


def put_aside(run: Run, shard: int, number: int, before: Mapping[str, str], new: Mapping[str, bytes]) -> str:
    """Write a part's new files, by table; returns the folder. `before`: the checksums of all of the part's files."""
    sums = {table: hashlib.sha256(data).hexdigest() for table, data in new.items()}
    change = Change(run.created, dict(before), {**before, **sums})
    content = json.dumps(asdict(change), indent=1).encode()
    folder = f"runs/{run.name}/staged/{shard:05d}-{number:04d}-{hashlib.sha256(content).hexdigest()[:12]}"
    try:
        for table, data in new.items():
            run.store.files.put(f"{folder}/{table}.part", data)
        run.store.files.put(f"{folder}/change.json", content)
    except StoreError:  # a full disk, say: what is of no use takes no room
        forget_aside(run, folder)
        raise
    return folder


def forget_aside(run: Run, folder: str) -> None:
    """Remove them, once the part has them; where nothing may be removed they stay, and do no harm."""
    with suppress(StoreError):
        run.store.files.remove(folder)


def end_changes(run: Run, shard: int) -> None:
    """End what was left half done of a shard's parts; what no longer belongs to a part as it is now is removed."""
    for path in run.store.files.find(f"runs/{run.name}/staged", begin=f"{shard:05d}-"):
        found = _FOLDER.fullmatch(path)
        if found and int(found[2]) == shard:
            _end(run, shard, int(found[3]), found[1], _read(run, path))
            forget_aside(run, found[1])


def _end(run: Run, shard: int, number: int, folder: str, change: Change | None) -> None:
    """Nothing is touched unless each file of the part is in the one state or the other, and all new ones are there."""
    if change is None or change.created != run.created:
        return
    moved: dict[str, bytes] = {}
    for table, sha256 in change.after.items():
        path = run.store.part_path(table, run.name, shard, number)
        now = _content(run, path)
        if now is None or (there := hashlib.sha256(now).hexdigest()) not in (sha256, change.before[table]):
            return
        if there != sha256:
            new = _content(run, f"{folder}/{table}.part")
            if new is None or hashlib.sha256(new).hexdigest() != sha256:
                return
            moved[path] = new
    for path, data in moved.items():
        run.store.files.put(path, data)


def _read(run: Run, path: str) -> Change | None:
    try:
        said: dict[str, Any] = json.loads(_content(run, path) or b"")
        change = Change(str(said["created"]), dict(said["before"]), dict(said["after"]))
    except (ValueError, KeyError, TypeError):
        return None
    return change if change.before.keys() == change.after.keys() else None


def _content(run: Run, path: str) -> bytes | None:
    with suppress(MissingFile):
        return run.store.files.get(path, "no file")
    return None
