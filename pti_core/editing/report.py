"""What a person sees of the edits of a run: medians, and a sheet of pictures. All of it is read back from the store."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pti_core.editing.pictures import UNEDITED, strength_text, unedited_path
from pti_core.editing.plans import Request
from pti_core.medians import median
from pti_core.runs import Run
from pti_core.sheet import Cell, sheet
from pti_core.tables import Row

SHEET: Final = "edits.png"
MAX_IMAGES: Final = 12
MAX_COLUMNS: Final = 16
MEDIANS_OF: Final = 1_000_000  # edits; the medians of more change no digit that is shown
MEASURES: Final = ("lpips", "lpips_base", "correlation", "gain", "identity")


@dataclass(frozen=True)
class Summary:
    """Of one request."""

    run: str
    images: int
    medians: list[dict[str, Any]]  # a row a direction and strength; a measure that was not taken is None
    sheet: str | None  # address of the picture


def publish(run: Run, request: Request) -> Summary:
    """Write `runs/<run>/report/edits.png` of the request's pictures; return medians over its images.

    Of more than `MEDIANS_OF` edits, medians of about so many: whole shards, evenly spread. The sheet is of these too.
    """
    some: pa.Table | None = None
    images, counts = 0, Counter[tuple[str, float]]()
    for where in _slices(run, request):
        rows = run.store.read_arrow("edits", run.name, ["image_id", "direction", "strength", "shard", *MEASURES], where)
        images += pc.count_distinct(rows["image_id"]).as_py()
        for row in rows.group_by(["direction", "strength"]).aggregate([([], "count_all")]).to_pylist():
            counts[row["direction"], row["strength"]] += row["count_all"]
        if some is None or not len(some):
            some = rows
    assert some is not None
    drawn = request.pictures and images > 0
    if drawn:
        buffer = io.BytesIO()
        _sheet(run, request, some).save(buffer, "PNG", optimize=True)
        run.store.write_report(run.name, SHEET, buffer.getvalue())
    return Summary(
        run=run.name,
        images=images,
        medians=_medians(request, some, counts),
        sheet=f"{run.store.root}/runs/{run.name}/report/{SHEET}" if drawn else None,
    )


def _asked(request: Request) -> list[tuple[str, str, Any]]:
    """A filter for the rows of a request."""
    where: list[tuple[str, str, Any]] = [
        ("direction", "in", list(request.directions)),
        ("strength", "in", request.strengths),
    ]
    return where if request.images is None else [*where, ("image_id", "in", request.images)]


def _slices(run: Run, request: Request) -> Iterator[list[tuple[str, str, Any]]]:
    """Filters that share out the rows of a request, since those of millions of images do not fit into memory."""
    images = run.manifest.rows if request.images is None else len(request.images)
    step = -(-images * len(request.directions) * len(request.strengths) // MEDIANS_OF)
    if step <= 1:
        yield _asked(request)
        return
    shards = range(run.manifest.shards)
    for first in shards[:step]:
        yield [*_asked(request), ("shard", "in", list(shards[first::step]))]


def _medians(request: Request, rows: pa.Table, counts: Mapping[tuple[str, float], int]) -> list[dict[str, Any]]:
    found = []
    for direction, strength in product(request.directions, request.strengths):  # as they were asked for
        if not counts[direction, strength]:
            continue
        is_edit = pc.and_(pc.equal(rows["direction"], direction), pc.equal(rows["strength"], strength))
        row: dict[str, Any] = {
            "direction": direction,
            "strength": strength,
            "images": counts[direction, strength],
        }
        for name in MEASURES:
            value = median(rows.filter(is_edit)[name])
            row[name] = None if math.isnan(value) else value
        found.append(row)
    return found


def _sheet(run: Run, request: Request, rows: pa.Table) -> Image.Image:
    """A line an image: unedited, then each direction at each strength, with its correlation."""
    edits = list(product(request.directions, request.strengths))[:MAX_COLUMNS]
    ids = pc.unique(rows["image_id"])[:MAX_IMAGES]
    shards = pc.unique(rows["shard"].filter(pc.is_in(rows["image_id"], ids))).to_pylist()
    where = [*_asked(request), ("shard", "in", shards), ("image_id", "in", ids.to_pylist())]
    columns = ["image_id", "direction", "strength", "correlation", "picture"]
    found: dict[tuple[str, str, float], Row] = {}
    for row in run.store.read_arrow("edits", run.name, columns, where).to_pylist():
        found[row["image_id"], row["direction"], row["strength"]] = row
        if unedited := unedited_path(run.name, row["picture"]):
            found[row["image_id"], UNEDITED, 0.0] = {"picture": unedited, "correlation": None}
    data = run.store.files.get_all(list({row["picture"] for row in found.values() if row["picture"]}))
    headings = ["tuned", *(f"{direction} {strength_text(strength)}" for direction, strength in edits)]

    def cell(image_id: str, direction: str, strength: float) -> Cell:
        row = found.get((image_id, direction, strength), {"picture": None, "correlation": None})
        content, value = data.get(row["picture"]), row["correlation"]
        picture = None if content is None else Image.open(io.BytesIO(content)).convert("RGB")
        return Cell(picture, image_id if direction == UNEDITED else "" if value is None else f"r {value:.2f}")

    lines = [[cell(i, UNEDITED, 0.0), *(cell(i, d, s) for d, s in edits)] for i in ids.to_pylist()]
    groups = [0, *(1 + i for i in range(0, len(edits), len(request.strengths)))]
    return sheet(headings, lines, groups)
