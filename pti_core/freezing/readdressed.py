"""Images that a data set has at other addresses than those at which a run knows them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pti_core.addresses import redact, row_in, split_chain
from pti_core.freezing.matching import lasting_column, texts
from pti_core.storage.known_runs import RunError

_NUMBER: Final = re.compile(r"!\w+=[^!]*!(\d+)::")  # of a row in an address that has its id
_NUMBERED: Final = re.compile(r"/\d{6,}$")  # an image_id that was made of a row's number
_VERSION: Final = re.compile(r"@\d+$")  # of a newer version in an image_id, unless an image is so named
_CONTAINERS: Final = ("tar", "zip", "parquet")

_Form = tuple[str, str | None]  # how rows of Parquet are told apart: the column of images, and the field with the id


def as_listed(frozen: pa.Table, listing: pa.Table, listed: pa.Array) -> pa.Array:
    """The lasting addresses of a run's inputs: what it has by the number of a row as the listing has it by its id.

    `listed`: those of the listing. Runs of before knew all rows of Parquet by their numbers, and by names made of them
    where ids were categorical.
    """
    column = lasting_column(frozen["uri"])
    may_be = np.flatnonzero(pc.match_substring_regex(column, r"(?s)^parquet://.*![0-9]+::"))
    old = [int(i) for i, uri in zip(may_be, texts(column.take(may_be)), strict=True) if _by_number(uri)]
    if not old:
        return column
    uris = column.to_pylist()
    file = re.compile(r"^parquet://.*?::", re.DOTALL)
    addresses = listed.to_pylist()
    with_id = [i for i, uri in enumerate(addresses) if uri.startswith("parquet://") and not _by_number(uri)]
    names, places = listing["image_id"].to_pylist(), listing["uri"].to_pylist()
    known = {(names[i], file.sub("", addresses[i])): addresses[i] for i in with_id}
    numbered = {_NUMBER.sub(r"!\1::", places[i], count=1): addresses[i] for i in with_id}
    own = frozen["image_id"].to_pylist()
    for i in old:
        where = file.sub("", uris[i])
        first = _VERSION.sub("", own[i])
        by_name = known.get((own[i], where)) or known.get((first, where))
        uris[i] = by_name or (numbered.get(uris[i]) if _NUMBERED.search(first) else None) or uris[i]
    return pa.array(uris, pa.large_string())


def namesakes(names: Sequence[str], rows: Sequence[int]) -> dict[str, list[int]]:
    """Rows of a run whose addresses are gone, by each name that they may have in a data set now; the newest first.

    `names`: what they are called in the run, oldest first.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for name, row in zip(reversed(names), reversed(rows), strict=True):
        for known in {name, _VERSION.sub("", name)}:
            found[known].append(row)
    return dict(found)


def check_addresses(
    run: str, uris: Collection[str], listed: Collection[str], names_shared: bool = False, left_out: bool = False
) -> None:
    """Raise RunError where a data set gives its images other kinds of addresses than when the run was frozen.

    All of them would be new then. `uris` and `listed`: lasting addresses of the run and of the data set;
    `names_shared`: whether some images of both have one name, by which they are found; `left_out`: whether the data set
    has archives or Parquet files that were not listed, for pictures beside them.
    """
    there, known = set(listed), set(uris)
    if left_out and known.isdisjoint(there) and not any(map(_is_member, listed)) and all(map(_is_member, uris)):
        raise RunError(
            f"run {run}: its images are in archives or Parquet files, and the data set has pictures of its own now "
            f"({redact(next(iter(listed)))!r}, say), beside which no archive is read; move these pictures elsewhere to "
            "go on, or begin a new run of them with another --output"
        )
    if any(uri.startswith("parquet://") for uri in known - there):
        before, now = _forms(uris), _forms(listed)
        _check_forms(run, before, now)
        if not names_shared and before.keys().isdisjoint(now):
            _check_renamed(run, set().union(*before.values()), now)


_WAYS_OUT: Final = (
    "so that all would be inverted again; make the files as they were (a column counts where every file has it, "
    "without nulls and repeated values), or begin a new run with another --output"
)


def _check_forms(run: str, before: Mapping[str, set[_Form]], now: Mapping[str, set[_Form]]) -> None:
    """Of the files that both have: which rows are told apart otherwise now, by another column or by their numbers."""
    for file, forms in before.items():
        if not forms.isdisjoint(now.get(file, forms)):
            continue
        (old, new), added = (_in_words(min(some, key=str)) for some in (forms, now[file])), now.keys() - before.keys()
        since = f" ({redact(min(added))!r} is new beside it)" if added else ""
        raise RunError(
            f"run {run}: it knows the images in {redact(file)!r} by {old}, and the data set lists them by {new} now"
            f"{since}, {_WAYS_OUT}"
        )


def _check_renamed(run: str, before: set[_Form], now: Mapping[str, set[_Form]]) -> None:
    """The same where all files have other names now: they may be the same images, or those of another week."""
    forms = set().union(*now.values())
    if not now or not before.isdisjoint(forms):
        return
    old, new = (_in_words(min(some, key=str)) for some in (before, forms))
    raise RunError(
        f"run {run}: it knows images in Parquet files by {old}, and the data set has none of these files and lists "
        f"others ({redact(min(now))!r}, say) by {new} now, {_WAYS_OUT}"
    )


def _forms(uris: Iterable[str]) -> dict[str, set[_Form]]:
    """How the rows of each Parquet file are told apart."""
    found: dict[str, set[_Form]] = defaultdict(set)
    for uri in uris:
        chain = split_chain(uri) if uri.startswith("parquet://") else None
        if chain and (form := _form(chain[0])):
            found[chain[1]].add(form)
    return dict(found)


def _form(head: str) -> _Form | None:
    """Of the first part of an address, whose row may have been taken out."""
    inside = head.removeprefix("parquet://")
    row = row_in(inside) or row_in(f"{inside}!0")
    return (row.column, row.field) if row else None


def _in_words(form: _Form) -> str:
    column, field = form
    by = {None: "the numbers of rows", "path": "their own paths"}.get(field, f"column {field!r}")
    return f"{by} (images of column {column!r})"


def _by_number(uri: str) -> bool:
    """Whether this is a row of Parquet without an id."""
    chain = split_chain(uri) if uri.startswith("parquet://") else None
    row = row_in(chain[0].removeprefix("parquet://")) if chain else None
    return row is not None and row.field is None


def _is_member(uri: str) -> bool:
    """Whether this is in an archive or a Parquet file."""
    return uri.startswith(tuple(f"{kind}://" for kind in _CONTAINERS)) and split_chain(uri) is not None
