"""What a data set has that a run has not: new files, and files that are no longer what was inverted.

A changed file is another image: it is appended as `photo.png@2` and what was found for `photo.png` stays, so that no
image has two rows and nothing that was paid for is lost. So is what comes to a group that the run has: it makes a group
`anna@2`, with a generator of its own beside the one that `anna` has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core import images
from pti_core.addresses import lasting, row_in, split_chain
from pti_core.reading import read_bytes
from pti_core.runs import Run
from pti_core.tables import assign_shards

_NUMBER: Final = re.compile(r"!\w+=[^!]*!(\d+)::")  # of a row in an address that has its id
_NUMBERED: Final = re.compile(r"/\d{6,}$")  # an image_id that was made of a row's number
_AT_ONCE: Final = 16  # files that are read at the same time
_ANY_SIZE: Final = 16  # pixels: whether an image can be brought to one size says whether to all


@dataclass(frozen=True)
class Changes:
    """A data set against a run's frozen inputs."""

    new: pa.Table  # rows of the listing, image_ids unique in the run
    changed: pa.Table  # with another content than was inverted
    gone: int  # inputs of the run that the data set has no more
    grown: int = 0  # groups of the run that have more images now
    sure: bool = True  # whether the content of changed ones was looked at; else it is their size or date that differs
    unread: int = 0  # files that look changed and could not be read to see whether they are

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return len(self.new) + len(self.changed) == 1

    def counts(self) -> str:
        """`3 new and 1 changed files are`, or nothing."""
        kinds = (("new", len(self.new)), ("changed" if self.sure else "touched", len(self.changed)))
        found = " and ".join(f"{count} {kind}" for kind, count in kinds if count)
        return f"{found} {'file is' if self.single else 'files are'}" if found else ""


def changes(run: Run, listing: pa.Table, limit: int | None = None, most_read: int | None = None) -> Changes:
    """Compare the listing of a whole data set (`datasets.scan`) with a run's inputs.

    With `limit` only what is new among the first so many files is new.

    A file is known by its address (a member of an archive by its name, and a row of Parquet by its id, wherever they
    lie). Where its size or etag is another than when the run was frozen it is read, and has changed where its SHA-256
    is neither the pivot's nor that of the image_id which it has in the listing: touching a file, making an archive
    anew, or changing a file before its shard read it, is no change. Nor is one of a file that was refused and still is,
    and of one that cannot be read (`unread`). Only files of finished shards count, since the others will be read as
    they are then. More than `most_read` such files are not read, and the result is not `sure`.
    """
    frozen = run.manifest.table(["image_id", "uri", "group", "shard", "bytes", "etag"])
    listed = [lasting(uri) for uri in listing["uri"].to_pylist()]
    uris = _as_listed(frozen, listing, listed)
    last = dict(zip(uris, range(len(uris)), strict=True))  # the last row of an address is its newest version
    unfinished = set(run.pending())
    shard, size, etag = frozen["shard"].to_pylist(), frozen["bytes"].to_pylist(), frozen["etag"].to_pylist()
    new, changed, unread = [], [], 0
    for i, (uri, bytes_, tag) in enumerate(
        zip(listed, listing["bytes"].to_pylist(), listing["etag"].to_pylist(), strict=True)
    ):
        row = last.get(uri)
        if row is None:
            if limit is None or i < limit:
                new.append(i)
        elif (size[row], etag[row]) != (bytes_, tag) and shard[row] not in unfinished:
            changed.append(i)
    sure = most_read is None or len(changed) <= most_read
    if sure and changed:
        name = frozen["image_id"].to_pylist()
        address, called = listing["uri"].to_pylist(), listing["image_id"].to_pylist()
        also = {called[i] for i in changed}
        was = _inverted(
            run,
            {shard[last[listed[i]]] for i in changed}
            | {number for own, number in zip(name, shard, strict=True) if own in also and number not in unfinished},
        )

        def differs(i: int) -> bool | None:
            image_id = name[last[listed[i]]]
            return _differs(run, address[i], image_id, was.get(image_id), was.get(called[i]))

        with ThreadPoolExecutor(_AT_ONCE, "pti-changed") as pool:
            found = list(pool.map(differs, changed))
        unread = found.count(None)
        changed = [i for i, other in zip(changed, found, strict=True) if other]
    gone = len(last.keys() - set(listed))
    taken, groups = set(frozen["image_id"].to_pylist()), set(frozen["group"].to_pylist())
    known: dict[str, str] = {}
    if run.config.mode == "multi":
        used = groups | set(listing["group"].to_pylist())
        for group in pc.unique(listing.take(pa.array(new + changed, pa.int64()))["group"]).to_pylist():
            if group in groups - taken:  # what is called as an image is named with it
                known[group] = _free(group, used)
                used.add(known[group])
    added, renewed = (_named(listing, rows, taken, known) for rows in (new, changed))
    return Changes(added, renewed, gone, len(known), sure, unread)


def _as_listed(frozen: pa.Table, listing: pa.Table, listed: Sequence[str]) -> list[str]:
    """The lasting addresses of a run's inputs: what it has by the number of a row as the listing has it by its id.

    Runs of before knew all rows of Parquet by their numbers, and by names made of them where ids were categorical.
    """
    uris = [lasting(uri) for uri in frozen["uri"].to_pylist()]
    old = [i for i, uri in enumerate(uris) if _by_number(uri)]
    if not old:
        return uris
    file = re.compile(r"^parquet://.*?::", re.DOTALL)
    with_id = [i for i, uri in enumerate(listed) if uri.startswith("parquet://") and not _by_number(uri)]
    names, places = listing["image_id"].to_pylist(), listing["uri"].to_pylist()
    known = {(names[i], file.sub("", listed[i])): listed[i] for i in with_id}
    numbered = {_NUMBER.sub(r"!\1::", places[i], count=1): listed[i] for i in with_id}
    own = frozen["image_id"].to_pylist()
    for i in old:
        where = file.sub("", uris[i])
        first = re.sub(r"@\d+$", "", own[i])  # of which it is a newer version, unless an image is so named
        by_name = known.get((own[i], where)) or known.get((first, where))
        uris[i] = by_name or (numbered.get(uris[i]) if _NUMBERED.search(first) else None) or uris[i]
    return uris


def _by_number(uri: str) -> bool:
    """Whether this is a row of Parquet without an id."""
    chain = split_chain(uri) if uri.startswith("parquet://") else None
    row = row_in(chain[0].removeprefix("parquet://")) if chain else None
    return row is not None and row.field is None


def _inverted(run: Run, shards: set[int]) -> dict[str, str]:
    """SHA-256 of the files that pivots were found for, by image_id; rejects are not among them."""
    where = [("shard", "in", sorted(shards))]
    rows = run.store.read_arrow("pivots", run.name, ["image_id", "sha256"], where)
    return dict(zip(rows["image_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))


def _differs(run: Run, uri: str, image_id: str, *sha256: str | None) -> bool | None:
    """Whether a file is another than its pivots were found for; None where it cannot be read now, which says nothing.

    Where the first `sha256` is None its newest version has no pivot: it was refused, and is the same to a reader as
    long as it is no image to invert.
    """
    try:
        data = read_bytes(uri)
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() in sha256:
        return False
    if sha256[0] is not None:
        return True
    try:
        images.fit(images.decode(data, image_id, run.config.image), _ANY_SIZE, image_id, run.config.image)
    except images.ImageError:
        return False
    return True


def _free(name: str, taken: set[str]) -> str:
    """The name, or its next version where it is taken."""
    version, free = 2, name
    while free in taken:
        free, version = f"{name}@{version}", version + 1
    return free


def _named(listing: pa.Table, rows: list[int], taken: set[str], known: Mapping[str, str]) -> pa.Table:
    """Rows of a listing; an image_id that is taken gets its next version, and a group that is `known` the name there.

    An image without a group has its own name as its group.
    """
    chosen = listing.take(pa.array(rows, pa.int64()))
    names, groups = [], []
    for name, group in zip(chosen["image_id"].to_pylist(), chosen["group"].to_pylist(), strict=True):
        names.append(_free(name, taken))
        taken.add(names[-1])
        groups.append(known.get(group, names[-1] if group == name else group))
    for column, values in (("image_id", names), ("group", groups)):
        chosen = chosen.set_column(chosen.column_names.index(column), column, pa.array(values, pa.string()))
    return chosen


def extension(found: Changes, shard_size: int, first_shard: int) -> pa.Table:
    """The rows to append to a run's manifest. Raises TableError for a shard size below 1."""
    return assign_shards(pa.concat_tables([found.new, found.changed]), shard_size, first_shard)
