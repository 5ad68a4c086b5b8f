"""What a data set has that a run has not: new files, and files that are no longer what was inverted.

A changed file is another image: it is appended as `photo.png@2` and what was found for `photo.png` stays, so that no
image has two rows and nothing that was paid for is lost. Where only its address is another, nothing is.
What comes to a group that the run has makes a group `anna@2`, with a generator of its own beside the one that `anna`
has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pti_core import images
from pti_core.addresses import lasting
from pti_core.compared import Compared, Seen
from pti_core.files import DamagedFile
from pti_core.markers import temporary_rejects
from pti_core.readdressed import as_listed, check_addresses, namesakes
from pti_core.reading import read_bytes
from pti_core.runs import Run
from pti_core.tables import assign_shards

_AT_ONCE: Final = 16  # files that are read at the same time
_ANY_SIZE: Final = 16  # pixels: whether an image can be brought to one size says whether to all


@dataclass(frozen=True)
class Changes:
    """A data set against a run's frozen inputs."""

    new: pa.Table  # rows of the listing, image_ids unique in the run
    changed: pa.Table  # with another content than was inverted
    gone: int  # inputs of the run that the data set has no more
    first_gone: str = ""  # the image_id of one
    moved: int = 0  # inputs of the run that the data set has at other addresses, as they were
    grown: int = 0  # groups of the run that have more images now
    sure: bool = True  # whether the content of changed ones was looked at; else it is their size or date that differs
    unread: int = 0  # files that look changed and could not be read to see whether they are
    remember: Callable[[], None] = lambda: None  # so that what was read and is the same is not read again

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return len(self.new) + len(self.changed) == 1

    def counts(self) -> str:
        """`3 new and 1 changed files are`, or nothing."""
        kinds = (("new", len(self.new)), ("changed" if self.sure else "touched", len(self.changed)))
        found = " and ".join(f"{count} {kind}" for kind, count in kinds if count)
        return f"{found} {'file is' if self.single else 'files are'}" if found else ""


def changes(
    run: Run, listing: pa.Table, limit: int | None = None, most_read: int | None = None, left_out: bool = False
) -> Changes:
    """Compare the listing of a whole data set (`datasets.scan`) with a run's inputs.

    With `limit` only what is new among the first so many files is new. `left_out`: whether the listing is without
    archives or Parquet files that are beside pictures.

    A file is known by its address (a member of an archive by its name, and a row of Parquet by its id, wherever they
    lie). Where its size or etag is another than when the run was frozen it is read, and has changed where its SHA-256
    is neither the pivot's nor that of the image_id which it has in the listing: touching a file, making an archive
    anew, or changing a file before its shard read it, is no change. Nor is one of a file that was refused and still is,
    and of one that cannot be read (`unread`). What a former comparison has found (`remember`) is not read again. Only
    files of finished shards count, since the others will be read as they are then, and so will be those that were
    refused for a passing reason, by `--retry-rejects`.

    A file at a new address is read as well where its image_id is that of an input whose address is gone, as where a
    data set was cut into other Parquet files: it has moved where its content is the same, and has changed otherwise.
    Where its shard was still to invert it, it is appended unread. More than `most_read` files are not read, and the
    result is not `sure`.

    Raises RunError where all images have other addresses for a reason that the run should not follow.
    """
    frozen = run.manifest.table(["image_id", "uri", "group", "shard", "bytes", "etag"])
    uri = [lasting(address) for address in listing["uri"].to_pylist()]
    listed = _Listed(uri, listing["image_id"].to_pylist(), listing["bytes"].to_pylist(), listing["etag"].to_pylist())
    uris, name = as_listed(frozen, listing, uri), frozen["image_id"].to_pylist()
    check_addresses(run.name, uris, uri, not set(name).isdisjoint(listed.image_id), left_out)
    done = run.store.done(run.name)
    inputs = _Inputs(name, uris, frozen["shard"].to_pylist(), set(uris) - set(uri), done.keys())
    size, etag = frozen["bytes"].to_pylist(), frozen["etag"].to_pylist()
    new, differing, gone = [], [], set(inputs.gone)
    for i, own in enumerate(uri):
        row = inputs.last.get(own)
        if row is None:
            if listed.image_id[i] in inputs.moved_from:
                differing.append(i)
            elif limit is None or i < limit:
                new.append(i)
        elif (size[row], etag[row]) != (listed.bytes[i], listed.etag[i]) and not inputs.unfinished(row):
            differing.append(i)
    gone -= {uris[row] for i in differing for row in inputs.rows(uri[i], listed.image_id[i])}
    there = {inputs.last[uri[i]] for i in differing if uri[i] in inputs.last}
    retried = _retried(run, {inputs.shard[row] for row in there if temporary_rejects(done[inputs.shard[row]])})
    differing = [i for i in differing if uri[i] not in inputs.last or name[inputs.last[uri[i]]] not in retried]
    compared = Compared(run.store, run.name)
    sure = most_read is None or sum(listed.seen(i) not in compared for i in differing) <= most_read
    other: dict[int, bool | None] = dict.fromkeys(differing, True)
    if sure and differing:
        other = _by_content(run, inputs, listed, differing, listing["uri"].to_pylist(), compared)
    same = [i for i in differing if other[i] is False]
    changed = [i for i in differing if other[i]]
    first_gone = next((own for own, address in zip(name, uris, strict=True) if address in gone), "")
    taken, groups = set(name), set(frozen["group"].to_pylist())
    grown: dict[str, str] = {}
    if run.config.mode == "multi":
        used = groups | set(listing["group"].to_pylist())
        for group in pc.unique(listing.take(pa.array(new + changed, pa.int64()))["group"]).to_pylist():
            if group in groups - taken:  # what is called as an image is named with it
                grown[group] = _free(group, used)
                used.add(grown[group])
    added, renewed = (_named(listing, rows, taken, grown) for rows in (new, changed))
    return Changes(
        added,
        renewed,
        len(gone),
        first_gone,
        moved=sum(uri[i] not in inputs.last for i in same),
        grown=len(grown),
        sure=sure,
        unread=sum(found is None for found in other.values()),
        remember=lambda: compared.keep(listed.seen(i) for i in same),
    )


@dataclass(frozen=True)
class _Listed:
    """What a data set has now, by the rows of its listing."""

    uri: list[str]  # lasting addresses
    image_id: list[str]
    bytes: list[int | None]
    etag: list[str]

    def seen(self, i: int) -> Seen:
        return self.uri[i], self.bytes[i], self.etag[i]


class _Inputs:
    """What a run has, by the rows of its manifest, and how they are found again."""

    def __init__(
        self, name: list[str], uris: list[str], shard: list[int], gone: set[str], done: Collection[int]
    ) -> None:
        """`uris`: lasting addresses, of which the data set has those in `gone` no more; `done`: finished shards."""
        self.name, self.shard, self.gone, self._done = name, shard, gone, done
        self.last = dict(zip(uris, range(len(uris)), strict=True))  # the last row of an address is its newest version
        self.moved_from = namesakes(name, uris, gone)

    def unfinished(self, row: int) -> bool:
        """Whether a row's shard is still to be done, or to be done again."""
        return self.shard[row] not in self._done

    def rows(self, uri: str, image_id: str) -> list[int]:
        """The rows that a listed image is or may be: that of its address, and those of its name, newest first.

        Both, since a data set may be cut back into the files of before.
        """
        own = [self.last[uri]] if uri in self.last else []
        return own + self.moved_from.get(image_id, [])


def _by_content(
    run: Run, inputs: _Inputs, listed: _Listed, differing: list[int], address: list[str], compared: Compared
) -> dict[int, bool | None]:
    """Whether listed images have another content than their rows; None for one that cannot be read now."""
    known = {i: inputs.rows(listed.uri[i], listed.image_id[i]) for i in differing}
    also, rows = {listed.image_id[i] for i in differing}, {row for some in known.values() for row in some}
    rows |= {row for row, own in enumerate(inputs.name) if own in also}
    was = _inverted(run, {inputs.shard[row] for row in rows if not inputs.unfinished(row)})
    was |= _inverted_so_far(run, {inputs.shard[row] for row in rows if inputs.unfinished(row)})

    def differs(i: int) -> bool | None:
        names = [inputs.name[row] for row in known[i]]
        sums = list(map(was.get, [*names, listed.image_id[i]]))
        if inputs.unfinished(known[i][0]) and not any(sums):
            return True  # it has moved before its shard has read it, and is not there any more
        try:
            own = compared.sha256(listed.seen(i), address[i])
            if own in sums or sums[0] is not None:
                return own not in sums
            # Its newest version has no pivot: it was refused, and is the same as long as it is no image to invert.
            return _invertible(read_bytes(address[i]), names[0], run)
        except OSError:
            return None  # which says nothing

    with ThreadPoolExecutor(_AT_ONCE, "pti-changed") as pool:
        return dict(zip(differing, pool.map(differs, differing), strict=True))


def _retried(run: Run, shards: set[int]) -> set[str]:
    """Images that were refused for a passing reason: `--retry-rejects` inverts them as they are now."""
    where = [("shard", "in", sorted(shards))]
    rows = run.store.read_arrow("rejects", run.name, ["image_id", "permanent"], where)
    return set(rows.filter(pc.invert(rows["permanent"]))["image_id"].to_pylist())


def _inverted(run: Run, shards: set[int]) -> dict[str, str]:
    """SHA-256 of the files that pivots were found for, by image_id; rejects are not among them."""
    where = [("shard", "in", sorted(shards))]
    rows = run.store.read_arrow("pivots", run.name, ["image_id", "sha256"], where)
    return dict(zip(rows["image_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))


def _inverted_so_far(run: Run, shards: set[int]) -> dict[str, str]:
    """The same of shards that are not done: of the parts whose metrics are there, which are written last.

    A damaged file is no reason to stop: whoever does its shard makes the part again.
    """
    where = [("shard", "in", sorted(shards))]
    try:
        sealed = set(run.store.read_arrow("metrics", run.name, ["image_id"], where)["image_id"].to_pylist())
        return {own: sha256 for own, sha256 in _inverted(run, shards).items() if own in sealed}
    except DamagedFile:
        if len(shards) == 1:
            return {}
        return {own: sha256 for shard in shards for own, sha256 in _inverted_so_far(run, {shard}).items()}


def _invertible(data: bytes, image_id: str, run: Run) -> bool:
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
