"""How many images share one generator in mode multi: what is said of groups of one, and of very large ones."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.storage.known_runs import RunError
from pti_core.words import counted

MANY: Final = 64
"""Images of a group beyond which there is a remark: all of a group are read, searched and tuned together."""

MOST_UNASKED: Final = 1_000
"""Images of a group beyond which `group_by` has to be given: a tar is a group by default, whatever it holds."""


def remarks_on_groups(inputs: pa.Table, group_by: str | None, asked: bool) -> list[str]:
    """What a person may want to know of the groups of new inputs; nothing where `group_by` is None.

    `asked`: whether `group_by` was given, rather than taken by default. Raises RunError where it was not and a group is
    so large that it can hardly be meant.
    """
    if group_by is None:
        return []
    counts = pc.value_counts(inputs["group"])
    return _alone(counts.field("counts"), group_by) + _large(counts, group_by, asked)


def _alone(counts: pa.Array, group_by: str) -> list[str]:
    """That groups of one image share nothing: of a folder without subfolders all are, say.

    Nothing of groups by number, whose size was asked for: only the last can have fewer images.
    """
    alone = pc.sum(pc.equal(counts, 1)).as_py()
    if group_by.startswith("count:") or not alone:
        return []
    have = "has one image and gets" if alone == 1 else "have one image and get"
    whose = "its" if alone == 1 else "their"
    return [
        f"{alone} of {counted(len(counts), 'group')} {have} a generator of {whose} own; `--group-by folder`, "
        "`column:NAME`, `regex:PATTERN` or `count:N` says who shares one"
    ]


def _large(counts: pa.StructArray, group_by: str, asked: bool) -> list[str]:
    """That the largest group is large: of a tar of unrelated images, say."""
    most = pc.max(counts.field("counts")).as_py() or 0
    if most <= MANY:
        return []
    name = counts.field("values")[pc.index(counts.field("counts"), most).as_py()].as_py()
    if most > MOST_UNASKED and not asked:
        raise RunError(
            f"group {name!r} (by {group_by}, the default) has {counted(most, 'image')}, which would share one "
            f"generator and be held in memory together, at most {MOST_UNASKED:,} expected; say who shares one by "
            f"`--group-by` (group_by): `{group_by}` if it is all of these, else `column:NAME`, `regex:PATTERN` or "
            "`count:N`"
        )
    return [
        f"group {name!r} has {counted(most, 'image')}, which share one generator and are held in memory together; "
        "`--group-by column:NAME`, `regex:PATTERN` or `count:N` makes smaller groups"
    ]
