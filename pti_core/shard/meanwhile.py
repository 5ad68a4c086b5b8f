"""What other processes do to a shard that this one works on: they may finish it, or write over what this one wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa

from pti_core import tables
from pti_core.runs import Run
from pti_core.storage.files import DamagedFile, FileInfo, StoreError
from pti_core.storage.known_runs import RunError
from pti_core.storage.layout import shard_folder
from pti_core.storage.markers import part_number, temporary_rejects

Marker = Mapping[str, Any]


class WrittenByAnother(StoreError):
    """A part is not the one that this process has written or read."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"part {path!r} is not the one that was inverted: it was damaged, or another process does the same shard "
            "and has written it; end that one, or wait for its end, and run it again"
        )
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """It may come from the processes of a cluster."""
        return type(self), (self.path,)


def is_finished(run: Run, shard: int, marker: Marker | None, retry_rejects: bool = False) -> bool:
    """Whether a shard with this marker is done: it is of this run, and its files are there in the sizes it names.

    With `retry_rejects` one that has rejects which another try may help is not. Nothing is listed for a marker that
    does not count.
    """
    if marker is None or marker.get("damaged") or (marker["run"], marker["shard"]) != (run.name, shard):
        return False
    if marker["digest"] != run.digest or (run.created and marker.get("created") not in (None, run.created)):
        return False
    if retry_rejects and temporary_rejects(marker):
        return False
    folders = [shard_folder(table, run.name, shard) for table in tables.PARTS]
    sizes = {path: size for folder in folders for path, size in run.store.files.find(folder).items()}
    return all(sizes.get(file["path"]) == file["bytes"] for file in marker["files"])


def finished_by_another(run: Run, shard: int, retry_rejects: bool = False) -> Marker | None:
    """The marker of a shard that another process has finished since this one has begun it; None where none has.

    Where it has, all files are read: what this process has written since the other one looked at it is not as marked.
    Then the marker is taken back, since nobody else may ever see that; and so is one that does not count here, before
    it vouches for what this process writes. Raises RunError where the run itself was overwritten: the marker is the new
    one's.
    """
    marker = run.store.marker(run.name, shard)
    if marker is None or marker.get("damaged"):
        return None
    if run.created and marker.get("created") not in (None, run.created):
        _check_not_overwritten(run)
    if not is_finished(run, shard, marker, retry_rejects) or run.store.verify(marker):
        parts = {part_number(file["path"]) for file in marker["files"]}
        run.store.unmark(run.name, shard, {part for part in parts if part is not None})
        return None
    return marker


def _check_not_overwritten(run: Run) -> None:
    created = run.store.read_config(run.name).get("created")
    if created != run.created:
        raise RunError(
            f"run {run.name} was overwritten meanwhile (it is of {created}, this process works on that of "
            f"{run.created}); what is left of the old one ends here, and the same command again works on the new one"
        )


def read_known(run: Run, file: FileInfo) -> pa.Table:
    """A file of a part. WrittenByAnother where it is another by now, which the marker would vouch for unseen."""
    with suppress(DamagedFile):
        found, content = run.store.read_table(file.path)
        if found == file:
            return content
    raise WrittenByAnother(file.path)


def check_unchanged(run: Run, files: Iterable[FileInfo]) -> None:
    """Before the marker vouches for them: raise WrittenByAnother where one of these files is another by now, or gone.

    All are read at once.
    """
    known = {file.path: file for file in files}
    for path, data in run.store.files.get_all(list(known)).items():
        if data is None or FileInfo.of(path, data) != known[path]:
            raise WrittenByAnother(path)
