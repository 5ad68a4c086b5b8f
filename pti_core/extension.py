"""What a data set has that a run has not: new files, and files that are no longer what was inverted.

A changed file is another image: it is appended as `photo.png@2` and what was found for `photo.png` stays, so that no
image has two rows and nothing that was paid for is lost. So is what comes to a group that the run has: it makes a group
`anna@2`, with a generator of its own beside the one that `anna` has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.addresses import lasting
from pti_core.runs import Run
from pti_core.tables import assign_shards


@dataclass(frozen=True)
class Changes:
    """A data set against a run's frozen inputs."""

    new: pa.Table  # rows of the listing, image_ids unique in the run
    changed: pa.Table
    gone: int  # inputs of the run that the data set has no more
    grown: int = 0  # groups of the run that have more images now

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return len(self.new) + len(self.changed) == 1

    def counts(self) -> str:
        """`3 new and 1 changed files are`, or nothing."""
        kinds = (("new", len(self.new)), ("changed", len(self.changed)))
        found = " and ".join(f"{count} {kind}" for kind, count in kinds if count)
        return f"{found} {'file is' if self.single else 'files are'}" if found else ""


def changes(run: Run, listing: pa.Table, limit: int | None = None) -> Changes:
    """Compare the listing of a whole data set (`datasets.scan`) with a run's inputs.

    With `limit` only what is new among the first so many files is new.

    A file is known by its address (a member of an archive by its name, wherever it lies), and has changed where its
    size or etag has; only files of finished shards count, since the others will be read as they are now. Touching a
    file on disk changes its etag.
    """
    frozen = run.manifest.table(["image_id", "uri", "group", "shard", "bytes", "etag"])
    uris = [lasting(uri) for uri in frozen["uri"].to_pylist()]
    last = dict(zip(uris, range(len(uris)), strict=True))  # the last row of an address is its newest version
    unfinished = set(run.pending())
    shard, size, etag = frozen["shard"].to_pylist(), frozen["bytes"].to_pylist(), frozen["etag"].to_pylist()
    new, changed = [], []
    listed = [lasting(uri) for uri in listing["uri"].to_pylist()]
    for i, (uri, bytes_, tag) in enumerate(
        zip(listed, listing["bytes"].to_pylist(), listing["etag"].to_pylist(), strict=True)
    ):
        row = last.get(uri)
        if row is None:
            if limit is None or i < limit:
                new.append(i)
        elif (size[row], etag[row]) != (bytes_, tag) and shard[row] not in unfinished:
            changed.append(i)
    gone = len(last.keys() - set(listed))
    taken, groups = set(frozen["image_id"].to_pylist()), set(frozen["group"].to_pylist())
    known: dict[str, str] = {}
    if run.config.mode == "multi":
        used = groups | set(listing["group"].to_pylist())
        for group in pc.unique(listing.take(pa.array(new + changed, pa.int64()))["group"]).to_pylist():
            if group in groups - taken:  # what is called as an image is named with it
                known[group] = _free(group, used)
                used.add(known[group])
    return Changes(_named(listing, new, taken, known), _named(listing, changed, taken, known), gone, len(known))


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
