"""Reading the edits of a run again: is each part of their table as it was written, and each picture still there?

What is damaged is given up at once: a part becomes one without rows (a damaged file would keep everybody from reading
the table), a row loses the picture that is gone, and the shard has answered nothing. So the next `pti edit` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import pyarrow as pa

from pti_core import tables
from pti_core.editing.answers import Answers, forget_answers, read_all_answers, read_answers, write_answers
from pti_core.editing.pictures import unedited_path
from pti_core.storage.files import DamagedFile, FileInfo, MissingFile
from pti_core.storage.layout import checked
from pti_core.storage.markers import part_shard
from pti_core.storage.store import Store

NAMED: Final = 3  # pictures in a message


def check_edits(store: Store, run: str) -> Iterator[tuple[int, list[str]]]:
    """What is wrong with the edits of each shard that has some; no problem if all is well.

    Raises StoreError where the store cannot be read.
    """
    parts: dict[int, set[str]] = {}
    for path in store.files.find(f"edits/run={checked(run)}"):
        if (shard := part_shard(path)) is not None:
            parts.setdefault(shard, set()).add(path)
    recorded = {shard for shard, answers in read_all_answers(store, run).items() if answers.files}
    # Listed once: there may be millions. What seems gone is asked for by its name.
    pictures = store.files.find(f"runs/{run}/edits") if parts else {}
    for shard in sorted(parts.keys() | recorded):
        yield shard, _check_shard(store, run, shard, parts.get(shard, set()), pictures)


def _check_shard(store: Store, run: str, shard: int, paths: set[str], pictures: Mapping[str, int]) -> list[str]:
    answers = read_answers(store, run, shard)
    problems: list[str] = []
    recorded = {file.path: file for file in answers.files}
    for path in sorted(paths | recorded.keys()):
        problem, content = _check_part(store, run, path, recorded.get(path), pictures)
        if problem is None:
            continue
        if read_answers(store, run, shard) != answers:  # somebody edits it just now
            return problems
        problems.append(problem)
        forget_answers(store, run, shard, [path])  # first: whoever ends here leaves a part that is whole, not recorded
        if content is not None:
            file = store.files.put(path, tables.to_parquet("edits", content))
            kept = [other for other in answers.files if other.path != path]
            write_answers(store, run, shard, Answers([], [*kept, file]))
        answers = read_answers(store, run, shard)
    return problems


def _check_part(
    store: Store, run: str, path: str, recorded: FileInfo | None, pictures: Mapping[str, int]
) -> tuple[str | None, pa.Table | None]:
    """What is wrong with a part, and what is to be in its place."""
    empty = tables.table("edits", [])
    try:
        file, table = store.read_table(path)
    except MissingFile as error:
        return (str(error), None) if recorded else (None, None)
    except DamagedFile as error:
        return str(error), empty
    if recorded not in (None, file):
        return f"file {path!r}: {file.bytes} bytes, not as written", empty
    try:
        named = table["picture"].to_pylist()
    except KeyError:
        return f"part {path!r} has no column 'picture': it is no part of the table", empty
    beside = [unedited_path(run, picture) for picture in named]
    seen = [path for path in (*named, *beside) if path and not pictures.get(path)]
    # Read, not listed again: an edit may have been at work since then.
    gone = {path for path, data in store.files.get_all(list(dict.fromkeys(seen))).items() if not data}
    if not gone:
        return None, None
    lost = pa.array([None if {a, b} & gone else a for a, b in zip(named, beside, strict=True)], pa.string())
    column = table.schema.get_field_index("picture")
    some = ", ".join(map(repr, sorted(gone)[:NAMED])) + (", ..." if len(gone) > NAMED else "")
    what = "picture is" if len(gone) == 1 else "pictures are"
    return f"{len(gone)} {what} missing or empty: {some}", table.set_column(column, table.schema.field(column), lost)
