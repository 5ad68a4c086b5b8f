"""What is to be studied: a run, its images by shard, alphas, samples; and what of it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pti_core.alpha.stored import Request, places, studied
from pti_core.alpha.study import Alpha, AlphaError, check_alphas
from pti_core.names import as_listed
from pti_core.report import first_shards
from pti_core.runs import Run, find_run
from pti_core.status import no_pivot, nothing_done
from pti_core.storage.lookup import rows_of


@dataclass(frozen=True)
class Plan:
    """A request of a run, and the images that it is about."""

    run: Run
    request: Request
    images: dict[int, list[str]]  # by shard
    pending: list[int]  # shards with images that are not studied yet

    @property
    def left(self) -> tuple[int, int]:
        """All images, and those of shards that are done."""
        total = sum(map(len, self.images.values()))
        return total, total - sum(len(self.images[shard]) for shard in self.pending)

    @property
    def before(self) -> dict[int, int]:
        """How many images come before those of a shard, to number them."""
        found, count = {}, 0
        for shard, ids in self.images.items():
            found[shard] = count
            count += len(ids)
        return found


def plan(root: str, name: str | None, count: int, ids: Sequence[str], alphas: Sequence[Alpha], z_samples: int) -> Plan:
    """Check everything before any work. `count`: the first so many images of the run, where `ids` names none.

    Raises AlphaError for alphas that cannot be studied, an unknown image and a run without pivots or with those of the
    engine `noop`; RunError for no such run.
    """
    request = Request(check_alphas(alphas), z_samples)
    run = find_run(root, name)
    if run.config.engine != "pti":
        raise AlphaError(
            f"run {run.name} was made by the engine {run.config.engine!r}, which inverts nothing: "
            "there is nothing to study; use a run of another preset"
        )
    if run.config.locality.weight == 0:
        raise AlphaError(
            f"run {run.name} has locality.weight 0, so alpha decides nothing; use a run with another weight"
        )
    images = chosen(run, count, ids)
    wanted = places(run, images)
    there = studied(run, wanted.values(), request)
    pending = [shard for shard, names in images.items() if not set(names) <= there.keys()]
    return Plan(run, request, images, pending)


def chosen(run: Run, count: int, ids: Sequence[str] = ()) -> dict[int, list[str]]:
    """The images to study by shard: those named, or the first `count`.

    Raises AlphaError for an image_id that the run has no pivot of, and for a run without finished shards.
    """
    ids = [as_listed(image_id) for image_id in ids]
    shards = [] if ids else first_shards(run, count)  # no more than it takes: there may be thousands
    if not ids and not shards:
        raise AlphaError(nothing_done(run))
    columns = ["image_id", "shard"]
    if ids:
        frame = rows_of(run.store, "pivots", run.name, ids, columns)
    else:
        frame = run.store.read("pivots", run=run.name, columns=columns, filters=[("shard", "in", shards)])
    if missing := sorted(set(ids) - set(frame["image_id"])):
        raise AlphaError(no_pivot(run.store, [run.name], missing[0]))
    if frame.empty and not ids:  # their files are gone, though their markers are there
        raise AlphaError(nothing_done(run))
    frame = frame if ids else frame.head(count)
    found: dict[int, list[str]] = {}
    for shard, image_id in zip(frame["shard"], frame["image_id"], strict=True):
        found.setdefault(int(shard), []).append(image_id)
    return found
