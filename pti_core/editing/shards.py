"""The edits of one shard, part by part; what is in the table already, of the same results, is not done again."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pti_core import tables
from pti_core.directions import Direction
from pti_core.editing.answers import about_to_write, forget_answers, forget_lost
from pti_core.editing.identity import face_embedding, face_embedding_name
from pti_core.editing.measures import Edit, edits
from pti_core.editing.pictures import UNEDITED, picture_path
from pti_core.editing.plans import (
    VERSION,
    EditError,
    Request,
    load_directions,
    mark_answered,
)
from pti_core.editing.results import finished, image_sums, results_sha256
from pti_core.engine import Engine
from pti_core.images import picture, to_uint8
from pti_core.machine.device import exact_float32
from pti_core.machine.parallel import one_at_a_time
from pti_core.metrics import round_uint8
from pti_core.runs import Run, engine_for, stored_from_rows
from pti_core.shard.shard_progress import OnShardProgress, ShardProgress
from pti_core.storage.files import DamagedFile, FileInfo, MissingFile, StoreError
from pti_core.storage.known_runs import RunError
from pti_core.tables import Row

_Wanted = list[tuple[Direction, float]]


@dataclass(frozen=True)
class _Edited:
    """What came of one image."""

    rows: list[dict[str, Any]]
    too_far: EditError | None  # why some rows are missing


def edit_shard(run: Run, shard: int, request: Request, on_progress: OnShardProgress | None = None) -> dict[str, Any]:
    """Edit the images of a finished shard; write pictures, then the table's part. Counts of images and edits.

    Edits of other directions and strengths that are there stay. Raises StoreError where the shard is unfinished,
    EditError where a direction was replaced, and, when all else is written, where a strength is too far from 0 to give
    an image; RunError where a delta is missing.
    """
    marker = finished(run.store, run.name, shard)
    engine, directions = engine_for(run), load_directions(run, request)
    parts = run.store.parts("pivots", run.name, shard)
    images = {number: _pivots(run, path, request) for number, path in sorted(parts.items())}
    forget_lost(run.store, run.name, shard)
    too_far: EditError | None = None
    total, done, made = sum(map(len, images.values())), 0, 0
    faces = request.embedding is not None and face_embedding_name() is not None

    def say() -> None:
        if on_progress is not None:
            on_progress(ShardProgress(shard, done, total, None))

    say()
    for number, pivots in images.items():
        rows, metadata, _ = _there(run, shard, number, marker, request)
        jobs = [(pivot, wanted) for pivot in pivots if (wanted := _missing(pivot, directions, request, rows, faces))]
        done += len(pivots) - len(jobs)
        new: list[dict[str, Any]] = []
        for found in _edited(run, engine, shard, number, jobs, request):
            new += found.rows
            too_far = too_far or found.too_far
            done += 1
            say()
        if new:
            now = finished(run.store, run.name, shard)
            if _results(now, run, shard, number) != _results(marker, run, shard, number):
                raise StoreError(f"run {run.name}: shard {shard} was done again while it was edited; edit it again")
            # Others may have edited meanwhile: read once more, or their rows would be lost.
            path, ready = run.store.part_path("edits", run.name, shard, number), False
            while not ready:
                rows, metadata, file = _there(run, shard, number, marker, request)
                ready = about_to_write(run.store, run.name, shard, path, file)
            before = {(row["image_id"], row["direction"], row["strength"]): row for row in rows}
            for row in new:
                last = before.pop((row["image_id"], row["direction"], row["strength"]), None)
                row["picture"] = row["picture"] or (last["picture"] if last else None)
            kept = list(before.values())
            if "images" not in metadata:
                metadata["images"] = json.dumps(image_sums(run, shard, number), sort_keys=True)
            content = sorted(kept + new, key=lambda row: (row["image_id"], row["direction"], row["strength"]))
            run.store.write_part("edits", run.name, shard, number, tables.table("edits", content, metadata))
            made += len(new)
    if too_far is not None:
        raise too_far

    def answering() -> list[FileInfo] | None:
        """The parts as they are now, if nothing is missing: others may have written them, or found a picture gone."""
        files: list[FileInfo] = []
        for number, pivots in images.items():
            rows, _, file = _there(run, shard, number, marker, request)
            if any(_missing(pivot, directions, request, rows, faces) for pivot in pivots):
                return None
            files += [file] if file else []
        return files

    while (files := answering()) is None or not mark_answered(run, shard, request, marker, files):
        if files is None:
            raise StoreError(
                f"run {run.name}: another process has changed the edits of shard {shard} meanwhile; "
                "the same again does what is missing"
            )
    say()
    return {"shard": shard, "images": total, "edits": made}


def _pivots(run: Run, path: str, request: Request) -> list[dict[str, Any]]:
    rows = tables.records(run.store.read_part(path))
    if request.images is None:
        return rows
    wanted = set(request.images)
    return [row for row in rows if row["image_id"] in wanted]


def _there(
    run: Run, shard: int, number: int, marker: Mapping[str, Any], request: Request
) -> tuple[list[dict[str, Any]], dict[str, str], FileInfo | None]:
    """The rows of a part of the table that still hold; metadata to write, of what results and directions; the file.

    Where rows do not hold, no request that they answered counts as answered any more.
    """
    embedding = face_embedding_name()
    results = _results(marker, run, shard, number)
    path = run.store.part_path("edits", run.name, shard, number)
    rows: list[dict[str, Any]] = []
    known: dict[str, str] = {}
    images: str | None = None
    file, whole = None, True
    try:
        file, table = run.store.read_table(path)
    except MissingFile:
        pass
    except DamagedFile:
        whole = False
    else:
        found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if found.get("version", "1") == str(VERSION):
            known = dict(json.loads(found.get("directions", "{}")))
            replaced = {name for name, sha256 in request.directions.items() if known.get(name, sha256) != sha256}
            rows = [row for row in table.to_pylist() if row["direction"] not in replaced]
            if found.get("results_sha256") == results:
                images = found.get("images")
            else:
                was = json.loads(found.get("images", "{}"))
                now = image_sums(run, shard, number) if was else {}
                rows = [row for row in rows if now.get(row["image_id"], "gone") == was.get(row["image_id"])]
            if embedding is None:
                embedding = found.get("embedding")  # what others have measured stays
            elif found.get("embedding", embedding) != embedding:
                rows = [row | {"identity": None} for row in rows]  # of another embedding: not to be compared
        whole = len(rows) == len(table)
    if not whole:
        forget_answers(run.store, run.name, shard, [path])
    directions = json.dumps(known | request.directions, sort_keys=True)
    metadata = {"lpips_net": run.config.net, "results_sha256": results, "directions": directions}
    metadata["version"] = str(VERSION)
    more = {"embedding": embedding, "images": images}
    return rows, metadata | {name: value for name, value in more.items() if value}, file


def _results(marker: Mapping[str, Any], run: Run, shard: int, number: int) -> str:
    """What a part's edits are made of."""
    names = {run.store.part_path(table, run.name, shard, number) for table in ("pivots", "deltas")}
    return results_sha256([file for file in marker["files"] if file["path"] in names])


def _missing(
    pivot: Row, directions: Sequence[Direction], request: Request, rows: Sequence[Row], faces: bool
) -> _Wanted:
    """What of the request an image does not have yet, as far as this machine can give it."""
    there = {
        (row["direction"], row["strength"])
        for row in rows
        if row["image_id"] == pivot["image_id"]
        and (row["picture"] or not request.pictures)
        and (row["identity"] is not None or not faces)
    }
    return [(d, s) for d in directions for s in request.strengths if (d.name, s) not in there]


def _edited(
    run: Run, engine: Engine, shard: int, number: int, jobs: Sequence[tuple[Row, _Wanted]], request: Request
) -> Iterator[_Edited]:
    """The new rows of each image, in order; its pictures are in the store by then."""
    if not jobs:
        return
    frame = run.store.read_part(run.store.part_path("deltas", run.name, shard, number))
    deltas = {str(owner): tables.records(rows) for owner, rows in frame.groupby("owner", sort=False)}
    embedding = face_embedding()

    def edited(job: tuple[Row, _Wanted], check: Callable[[], None]) -> _Edited:
        check()
        pivot, wanted = job
        image_id, owner = pivot["image_id"], run.config.owner(pivot["image_id"], pivot["group"])
        if owner not in deltas:
            raise RunError(
                f"run {run.name}: no delta of {owner!r} in the deltas table; "
                "`pti check` finds what is damaged, and `pti run` again does it once more"
            )
        stored = stored_from_rows(run, engine, pivot, deltas[owner])
        rows: list[dict[str, Any]] = []
        too_far: EditError | None = None

        def keep(direction: str, strength: float, image: Tensor) -> str:
            path = picture_path(run.store, run.name, direction, image_id, strength)
            run.store.files.put(path, as_png(image))
            return path

        with exact_float32(engine.device):
            if request.pictures:
                keep(UNEDITED, 0.0, round_uint8(stored.generator.synthesis(stored.ws, noise=stored.noise)))
            for edit, image in edits(
                engine.generator, stored.generator, stored.ws, stored.noise, wanted, engine.lpips, embedding
            ):
                check()
                # Without a picture to be written, nobody would see it, and medians would be of the others.
                if not all(map(math.isfinite, (edit.lpips, edit.lpips_base, image.sum().item()))):
                    too_far = too_far or _too_far(edit, image_id)
                    continue
                path = keep(edit.direction, edit.strength, image) if request.pictures else None
                rows.append({"image_id": image_id, **asdict(edit), "picture": path})
        return _Edited(rows, too_far)

    with one_at_a_time(engine.device):
        yield from engine.in_parallel(edited, jobs)


def _too_far(edit: Edit, image_id: str) -> EditError:
    return EditError(
        f"direction {edit.direction!r} at strength {edit.strength:g}: the edit of image {image_id!r} has values "
        "that are no numbers; choose a strength nearer 0"
    )


def as_png(image: Tensor) -> bytes:
    """An image `[1, C, H, W]` in [-1, 1] as a PNG."""
    buffer = io.BytesIO()
    picture(to_uint8(image.cpu().numpy())[0]).save(buffer, "PNG")
    return buffer.getvalue()
