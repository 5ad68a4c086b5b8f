"""What is to be edited: directions frozen in the run's folder, strengths, images; and which shards have it already.

runs/<run>/edits/<direction>/direction.npz              the direction as it is applied
runs/<run>/edits/<direction>/<image_id>/+2.png          pictures (`pictures`)
runs/<run>/edits/done/00000.json                        which requests a shard has answered (`answers`)
edits/run=<run>/shard=00000/part-0.parquet              the table
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch

from pti_core.addresses import redact
from pti_core.directions import Direction, DirectionError
from pti_core.directions.learned import Learned, learn, read_scores
from pti_core.directions.specs import VISIBLE, parse, resolve
from pti_core.editing.answers import add_answer, read_all_answers
from pti_core.editing.identity import face_embedding_name
from pti_core.editing.results import results_sha256
from pti_core.engine import Engine
from pti_core.names import as_listed
from pti_core.runs import Run, engine_for, find_run
from pti_core.status import no_pivot, nothing_done
from pti_core.storage.files import FileInfo
from pti_core.storage.lookup import rows_of

DEFAULT_STRENGTHS: Final = (-2.0, 2.0)
VERSION: Final = 1  # of the measures; a change makes what is there be done again


class EditError(ValueError):
    """Edits that cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Request:
    """What is asked for, as tasks get it: JSON types, and directions by name."""

    directions: dict[str, str]  # name: SHA-256 of its frozen file
    strengths: list[float]
    images: list[str] | None  # all where None
    pictures: bool
    embedding: str | None = None  # the face embedding that was installed when this was asked for

    @property
    def sha256(self) -> str:
        """The same for the same request."""
        return hashlib.sha256(json.dumps([VERSION, asdict(self)], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A request of a run, and the shards that it is about."""

    run: Run
    request: Request
    images: dict[int, int]  # of each shard
    pending: list[int]  # shards that have not answered it yet
    remarks: list[str]

    @property
    def left(self) -> tuple[int, int]:
        """All images, and those that are done."""
        total = sum(self.images.values())
        return total, total - sum(self.images[shard] for shard in self.pending)


def plan(
    root: str,
    name: str | None = None,
    directions: Sequence[str] | None = None,
    strengths: Sequence[float] | None = None,
    images: Sequence[str] | None = None,
    pictures: bool = True,
) -> Plan:
    """Check everything and freeze the directions, before any work.

    `name`: of the run, the newest of the root where None. `directions`: as a person writes them (`specs`), the two
    visible ones where None; `strengths`: -2 and 2 where None. Raises EditError for a run that has nothing finished or
    no deltas, an unknown image or a strength that is none; DirectionError; RunError for no such run; StoreError where
    the output cannot be read.
    """
    directions = [VISIBLE] if directions is None else directions
    for text in directions:
        parse(text)  # what is wrong with it as a text is said before anything is read
    run = find_run(root, name)
    strengths = DEFAULT_STRENGTHS if strengths is None else strengths
    wrong = [s for s in strengths if not math.isfinite(s) or s == 0]
    if wrong or not strengths:
        found = f"strength {wrong[0]:g}" if wrong else "no strength"
        raise EditError(f"{found}: finite numbers other than 0 expected, in standard deviations of W; -2 and 2, say")
    engine, markers = engine_for(run), run.store.done(run.name, whole=True)  # edits are of these checksums
    if not markers:
        raise EditError(nothing_done(run))
    counts = {shard: int(marker["counts"]["pivots"]) for shard, marker in sorted(markers.items())}
    remarks = []
    if (missing := run.manifest.shards - len(markers)) > 0:
        remarks.append(f"{missing} shards of run {run.name} are unfinished and left out; finish it, then edit again")
    if images is not None:
        images = sorted(set(map(as_listed, images)))
        counts = _shards_of(run, images)
        if unfinished := sorted(counts.keys() - markers.keys()):
            raise EditError(
                f"shard {unfinished[0]} of run {run.name}, which has one of these images, is unfinished; `pti run` "
                "again finishes it"
            )
    resolved, notes = resolve(directions, engine, lambda uri: _learned(run, uri, engine))
    request = Request(
        directions={direction.name: _freeze(run, direction) for direction in resolved},
        strengths=sorted({float(s) for s in strengths}),
        images=None if images is None else list(images),
        pictures=pictures,
        embedding=face_embedding_name(),
    )
    counts = {shard: count for shard, count in counts.items() if count and shard in markers}
    answered = read_all_answers(run.store, run.name, counts)
    sizes = run.store.files.find(f"edits/run={run.name}")
    pending = [
        s for s in counts if not answered[s].holds(sizes) or _answer(request, markers[s]) not in answered[s].answers
    ]
    return Plan(run, request, counts, pending, remarks + notes)


def load_directions(run: Run, request: Request) -> list[Direction]:
    """The frozen directions. EditError where one has been replaced by another of its name."""
    found = []
    for name, sha256 in request.directions.items():
        data = run.store.files.get(_direction_path(run, name), f"direction {name!r} is missing")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise EditError(f"direction {name!r} of run {run.name} was replaced meanwhile; start these edits again")
        found.append(_parsed(name, data))
    return found


def mark_answered(run: Run, shard: int, request: Request, marker: Mapping[str, Any], files: Sequence[FileInfo]) -> bool:
    """All edits of a shard are in the store, in these parts of the table. False where another of them is recorded."""
    return add_answer(run.store, run.name, shard, _answer(request, marker), files)


def _shards_of(run: Run, images: Sequence[str]) -> dict[int, int]:
    """How many of these images each shard has. EditError for one that has no pivot."""
    found = rows_of(run.store, "pivots", run.name, images, ["image_id", "shard"])
    if missing := sorted(set(images) - set(found["image_id"])):
        raise EditError(no_pivot(run.store, [run.name], missing[0]))
    return {int(str(shard)): int(count) for shard, count in found["shard"].value_counts().sort_index().items()}


def _learned(run: Run, uri: str, engine: Engine) -> Learned:
    scores = read_scores(uri)
    pivots = rows_of(run.store, "pivots", run.name, list(scores.index), ["image_id", "w"])
    if not len(pivots):
        raise DirectionError(f"labels {redact(uri)!r}: none of its {len(scores)} images is in run {run.name}")
    w = torch.from_numpy(np.stack([np.asarray(w, np.float32) for w in pivots["w"]]))
    w = w.view(len(w), -1, engine.generator.w_dim).mean(dim=1)
    return learn(
        w, torch.tensor(scores[pivots["image_id"].astype(str)].to_list()), engine.statistics.w_std, redact(uri)
    )


def _freeze(run: Run, direction: Direction) -> str:
    """Write the direction into the run's folder; the SHA-256 of its file.

    One that is there stays if it differs by rounding alone: computed on another machine it is the same direction.
    """
    path = _direction_path(run, direction.name)
    if run.store.exists(path):
        data = run.store.files.get(path, "no direction")
        try:
            before = _parsed(direction.name, data)
        except (ValueError, OSError, KeyError, zipfile.BadZipFile):
            before = None
        if before is not None and _same(before, direction):
            return hashlib.sha256(data).hexdigest()
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"sigma": np.float64(direction.sigma), "layers": np.array(direction.layers)}
    np.savez(buffer, vector=direction.vector.cpu().numpy(), **arrays)
    return run.store.files.put(path, buffer.getvalue()).sha256


def _parsed(name: str, data: bytes) -> Direction:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return Direction(name, torch.from_numpy(file["vector"]), float(file["sigma"]), str(file["layers"]))


def _same(a: Direction, b: Direction) -> bool:
    shape = (a.layers, a.vector.shape) == (b.layers, b.vector.shape)
    return (
        shape and math.isclose(a.sigma, b.sigma, rel_tol=1e-4) and torch.allclose(a.vector, b.vector.cpu(), atol=1e-4)
    )


def _answer(request: Request, marker: Mapping[str, Any]) -> str:
    """A request, and the results of a shard that it was answered of."""
    return hashlib.sha256(f"{request.sha256} {results_sha256(marker['files'])}".encode()).hexdigest()


def _direction_path(run: Run, name: str) -> str:
    return f"runs/{run.name}/edits/{name}/direction.npz"
