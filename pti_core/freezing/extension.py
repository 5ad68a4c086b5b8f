"""What a data set has that a run has not: new files, and files that are no longer what was inverted.

A changed file is another image: it is appended as `photo.png@2` and what was found for `photo.png` stays, so that no
image has two rows and nothing that was paid for is lost. Where only its address is another, nothing is.
What comes to a group that the run has makes a group `anna@2`, with a generator of its own beside the one that `anna`
has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pti_core import images
from pti_core.freezing.compared import Compared, Seen
from pti_core.freezing.matching import are_in, differ, last_places, lasting_column, whole
from pti_core.freezing.readdressed import as_listed, check_addresses, namesakes
from pti_core.reading import read_bytes
from pti_core.runs import Run
from pti_core.shard.inputs import MISSING
from pti_core.storage.files import DamagedFile
from pti_core.storage.markers import gone_rejects, temporary_rejects
from pti_core.tables import assign_shards

_AT_ONCE: Final = 16  # files that are read at the same time
_DEAD: Final = "0-"  # the etag of a link without a target, which has neither size nor date
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
    and of one that cannot be read (`unread`). A file that was not there to be read, and is not looked for any more, has
    changed once it is there, though size and etag are those of then. What a former comparison has found (`remember`) is
    not read again. Only files of finished shards count, since the others will be read as they are then, and so will be
    those that were refused for a passing reason, by `--retry-rejects`.

    A file at a new address is read as well where its image_id is that of an input whose address is gone, as where a
    data set was cut into other Parquet files: it has moved where its content is the same, and has changed otherwise.
    Where its shard was still to invert it, it is appended unread. More than `most_read` files are not read, and the
    result is not `sure`.

    Raises RunError where all images have other addresses for a reason that the run should not follow.
    """
    frozen = run.manifest.table(["image_id", "uri", "group", "shard", "bytes", "etag"])
    uri, name = lasting_column(listing["uri"]), listing["image_id"]
    own = as_listed(frozen, listing, uri)
    row, gone_rows = last_places(uri, own), np.flatnonzero(~are_in(own, uri))  # the last is the newest version
    if _may_be_renamed(own, gone_rows, left_out):
        shared = bool(are_in(name, frozen["image_id"]).any())
        check_addresses(run.name, own.to_pylist(), uri.to_pylist(), shared, left_out)
    done = run.store.done(run.name)
    inputs = _Inputs(frozen, gone_rows, done.keys())
    missed = _missed(run, {shard for shard, marker in done.items() if gone_rejects(marker)})
    there = np.flatnonzero(row >= 0)
    before, now = (one.select(["bytes", "etag"]).take(rows) for one, rows in ((frozen, row[there]), (listing, there)))
    other = differ(before["bytes"], now["bytes"]) | differ(before["etag"], now["etag"])
    if missed:
        dead = np.asarray(pc.and_(pc.equal(now["etag"], _DEAD), pc.starts_with(uri.take(there), "file://")))
        other |= are_in(inputs.names.take(row[there]), pa.array(missed, pa.large_string())) & ~dead
    touched = there[other & inputs.done[row[there]]]
    moved = (row < 0) & are_in(name, pa.array(inputs.moved_from, pa.large_string()))
    new = np.flatnonzero((row < 0) & ~moved & (np.arange(len(row)) < (len(row) if limit is None else limit)))
    places = sorted([*touched.tolist(), *np.flatnonzero(moved).tolist()])
    listed = [_Listed(i, uri[i].as_py(), name[i].as_py(), int(row[i]), listing) for i in places]
    gone = {own[i].as_py() for i in gone_rows} - {own[i].as_py() for one in listed for i in inputs.rows(one)}
    first_gone = next((inputs.name(i) for i in gone_rows if own[i].as_py() in gone), "")
    shards = {inputs.shard(one.row) for one in listed if one.row >= 0}
    retried = _retried(run, {shard for shard in shards if temporary_rejects(done[shard])})
    listed = [one for one in listed if one.row < 0 or inputs.name(one.row) not in retried]
    compared = Compared(run.store, run.name)
    sure = most_read is None or sum(one.seen not in compared for one in listed) <= most_read
    differing = _by_content(run, inputs, listed, compared, missed) if sure and listed else [True] * len(listed)
    same = [one for one, differs in zip(listed, differing, strict=True) if differs is False]
    changed = [one.place for one, differs in zip(listed, differing, strict=True) if differs]
    added, renewed, grown = _appended(run, frozen, listing, new.tolist(), changed)
    return Changes(
        added,
        renewed,
        len(gone),
        first_gone,
        moved=sum(one.row < 0 for one in same),
        grown=grown,
        sure=sure,
        unread=sum(differs is None for differs in differing),
        remember=lambda: compared.keep(one.seen for one in same),
    )


def _may_be_renamed(own: pa.Array, gone_rows: NDArray[np.int64], left_out: bool) -> bool:
    """Whether to ask `check_addresses`, which wants all addresses as Python's: where it could find anything wrong."""
    gone = own.take(gone_rows)
    return (left_out and len(gone) == len(own)) or bool(pc.any(pc.starts_with(gone, "parquet://")).as_py())


class _Listed:
    """An image of the listing that may be another than the run has."""

    def __init__(self, place: int, uri: str, image_id: str, row: int, listing: pa.Table) -> None:
        """`place`: its row in the listing; `uri`: lasting; `row`: that of its address in the manifest, or -1."""
        self.place, self.uri, self.image_id, self.row = place, uri, image_id, row
        self.address: str = listing["uri"][place].as_py()
        self.seen: Seen = uri, listing["bytes"][place].as_py(), listing["etag"][place].as_py()


class _Inputs:
    """What a run has, by the rows of its manifest."""

    def __init__(self, frozen: pa.Table, gone: NDArray[np.int64], done: Collection[int]) -> None:
        """`gone`: rows whose addresses the data set has no more; `done`: finished shards."""
        self.names = whole(frozen["image_id"])
        self._shards = frozen["shard"].to_numpy()
        self.done = np.isin(self._shards, list(done))  # whether a row's shard is; others are still to be read
        self.moved_from = namesakes([self.name(i) for i in gone], gone.tolist())

    def name(self, row: int | np.integer[Any]) -> str:
        """The image_id of a row."""
        return str(self.names[row].as_py())

    def shard(self, row: int) -> int:
        """The shard of a row."""
        return int(self._shards[row])

    def rows(self, one: _Listed) -> list[int]:
        """The rows that a listed image is or may be: that of its address, and those of its name, newest first.

        Both, since a data set may be cut back into the files of before.
        """
        return [one.row] * (one.row >= 0) + self.moved_from.get(one.image_id, [])


def _by_content(
    run: Run, inputs: _Inputs, listed: Sequence[_Listed], compared: Compared, missed: Collection[str]
) -> list[bool | None]:
    """Whether listed images have another content than their rows; None for one that cannot be read now.

    One that was `missed` and is not there either now, as a link without a target, is as it was.
    """
    known = [inputs.rows(one) for one in listed]
    also = np.flatnonzero(are_in(inputs.names, pa.array([one.image_id for one in listed], pa.large_string())))
    rows = {row for some in known for row in some} | set(also.tolist())
    was = _inverted(run, {inputs.shard(row) for row in rows if inputs.done[row]})
    was |= _inverted_so_far(run, {inputs.shard(row) for row in rows if not inputs.done[row]})

    def differs(one: _Listed, rows: list[int]) -> bool | None:
        sums = [was.get(name) for name in (*map(inputs.name, rows), one.image_id)]
        if not inputs.done[rows[0]] and not any(sums):
            return True  # it has moved before its shard has read it, and is not there any more
        try:
            own = compared.sha256(one.seen, one.address)
            if own in sums or sums[0] is not None:
                return own not in sums
            # Its newest version has no pivot: it was refused, and is the same as long as it is no image to invert.
            return _invertible(read_bytes(one.address), inputs.name(rows[0]), run)
        except OSError as error:  # which says nothing of what is in it
            missing = inputs.name(rows[0]) in missed and isinstance(error, FileNotFoundError)
            return False if missing else None

    with ThreadPoolExecutor(_AT_ONCE, "pti-changed") as pool:
        return list(pool.map(differs, listed, known))


def _retried(run: Run, shards: set[int]) -> set[str]:
    """Images that were refused for a passing reason: `--retry-rejects` inverts them as they are now."""
    where = [("shard", "in", sorted(shards))]
    rows = run.store.read_arrow("rejects", run.name, ["image_id", "permanent"], where)
    return set(rows.filter(pc.invert(rows["permanent"]))["image_id"].to_pylist())


def _missed(run: Run, shards: set[int]) -> set[str]:
    """Images whose files were not there in any try: once they are, whatever their date, nobody has inverted them."""
    if not shards:
        return set()
    where = [("shard", "in", sorted(shards))]
    rows = run.store.read_arrow("rejects", run.name, ["image_id", "permanent", "error"], where)
    return set(rows.filter(pc.and_(rows["permanent"], pc.equal(rows["error"], MISSING)))["image_id"].to_pylist())


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


def _appended(
    run: Run, frozen: pa.Table, listing: pa.Table, new: list[int], changed: list[int]
) -> tuple[pa.Table, pa.Table, int]:
    """The rows of the listing to append, under names that are free in the run; how many groups of the run grow so."""
    chosen = pa.concat_arrays([pa.array(new, pa.int64()), pa.array(changed, pa.int64())])
    candidates = listing.take(chosen)
    # Of the run's names those that are in the way, and newer versions.
    versions = pc.match_substring_regex(frozen["image_id"], r"@\d+$").to_numpy()
    taken = set(
        frozen["image_id"].filter(pa.array(are_in(frozen["image_id"], candidates["image_id"]) | versions)).to_pylist()
    )
    grown: dict[str, str] = {}
    if run.config.mode == "multi":
        groups = pc.unique(frozen["group"])
        used = set(groups.to_pylist()) | set(pc.unique(listing["group"]).to_pylist())
        shared = set(groups.filter(pa.array(~are_in(groups, frozen["image_id"]))).to_pylist())
        for group in pc.unique(candidates["group"]).to_pylist():
            if group in shared:  # what is called as an image is named with it
                grown[group] = _free(group, used)
                used.add(grown[group])
    added, renewed = (_named(listing, rows, taken, grown) for rows in (new, changed))
    return added, renewed, len(grown)


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
