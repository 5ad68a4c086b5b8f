"""Which requests a shard has answered, and the parts of the table `edits` that hold what came of them.

    runs/<run>/edits/done/00000.json        {"answers": [...], "files": [{"path": ..., "bytes": ..., "sha256": ...}]}

Without torch, which `pti check` does not need. A file is recorded after it was written, and its record is taken back
before it is written again: what is recorded and another now is damaged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Final

from pti_core.storage.files import FileInfo, MissingFile
from pti_core.storage.layout import checked, shard_folder
from pti_core.storage.store import Store

KEPT: Final = 100  # answers of a shard; an older one is worth a look at its table


@dataclass(frozen=True)
class Answers:
    """Of one shard."""

    answers: list[str] = field(default_factory=list)
    files: list[FileInfo] = field(default_factory=list)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether its files are there in their sizes; one without a file tells nothing."""
        return bool(self.files) and all(sizes.get(file.path) == file.bytes for file in self.files)


def answers_path(run: str, shard: int) -> str:
    """Where the answers of a shard lie, or would."""
    return f"runs/{checked(run)}/edits/done/{shard:05d}.json"


def parse_answers(data: bytes | None) -> Answers:
    """No answers where there is no such file, one of an older version (a list) or a damaged one.

    The shard is then looked at again, and rows that hold are kept: that is cheap.
    """
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(data or b"")
        return Answers([str(a) for a in found["answers"]], [FileInfo(**file) for file in found["files"]])
    return Answers()


def read_answers(store: Store, run: str, shard: int) -> Answers:
    """Of one shard. StoreError where they may not be read."""
    with suppress(MissingFile):
        return parse_answers(store.files.get(answers_path(run, shard), "no answers"))
    return Answers()


def read_all_answers(store: Store, run: str, shards: Iterable[int] | None = None) -> dict[int, Answers]:
    """Of these shards; of all that have some where None. StoreError where they may not be read."""
    there = store.files.find(f"runs/{checked(run)}/edits/done")
    named = [re.fullmatch(r".*/(\d{5,})\.json", path) for path in there]
    wanted = [int(match[1]) for match in named if match] if shards is None else list(shards)
    paths = {shard: answers_path(run, shard) for shard in wanted}
    found = store.files.get_all([path for path in paths.values() if path in there])
    return {shard: parse_answers(found.get(path)) for shard, path in paths.items()}


def write_answers(store: Store, run: str, shard: int, answers: Answers) -> None:
    """Over any older ones."""
    content = json.dumps(asdict(Answers(answers.answers[-KEPT:], answers.files)), indent=1)
    store.files.put(answers_path(run, shard), content.encode())


def add_answer(store: Store, run: str, shard: int, answer: str, files: Sequence[FileInfo]) -> bool:
    """A shard has answered; `files` are the parts that this was about, as they are now.

    False, and nothing counts as answered, where the record names another file in the place of one of them: somebody
    has written it meanwhile, and which rows are in it is to be looked at again.
    """
    before = read_answers(store, run, shard)
    if others := {file.path for file in files if _another(before, file.path, file)}:
        forget_answers(store, run, shard, others)
        return False
    now = {file.path: file for file in (*before.files, *files)}
    kept = [a for a in before.answers if a != answer]
    write_answers(store, run, shard, Answers([*kept, answer], [now[path] for path in sorted(now)]))
    return True


def forget_answers(store: Store, run: str, shard: int, paths: Iterable[str]) -> None:
    """All that was answered counts no more, since these files have lost rows of it."""
    before, gone = read_answers(store, run, shard), set(paths)
    if before != Answers():
        write_answers(store, run, shard, Answers([], [file for file in before.files if file.path not in gone]))


def forget_lost(store: Store, run: str, shard: int) -> None:
    """The same where recorded files are gone or of another size: rows of any request may be lost with them."""
    if (before := read_answers(store, run, shard)) == Answers():
        return
    sizes = store.files.find(shard_folder("edits", run, shard))
    if lost := [file.path for file in before.files if sizes.get(file.path) != file.bytes]:
        forget_answers(store, run, shard, lost)


def about_to_write(store: Store, run: str, shard: int, path: str, seen: FileInfo | None) -> bool:
    """A file is no longer recorded, so that it is not taken for a damaged one; all rows of `seen` are to stay in it.

    False where the record names another file than this one: it was written since, and is to be read again. Nothing
    counts as answered then, since who wrote it may not have had the rows of others.
    """
    before = read_answers(store, run, shard)
    if _another(before, path, seen):
        forget_answers(store, run, shard, [path])
        return False
    if any(file.path == path for file in before.files):
        kept = [file for file in before.files if file.path != path]
        write_answers(store, run, shard, Answers(before.answers, kept))
    return True


def _another(answers: Answers, path: str, seen: FileInfo | None) -> bool:
    """Whether another file of this path is recorded."""
    return any(file.path == path and file != seen for file in answers.files)
