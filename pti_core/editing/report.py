"""What a person sees of the edits of a run: medians, and a sheet of pictures. All of it is read back from the store."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from PIL import Image

from pti_core.editing.pictures import UNEDITED, strength_text, unedited_path
from pti_core.editing.plans import Request
from pti_core.runs import Run
from pti_core.sheet import Cell, sheet
from pti_core.tables import records

SHEET: Final = "edits.png"
MAX_IMAGES: Final = 12
MAX_COLUMNS: Final = 16
MEASURES: Final = ("lpips", "lpips_base", "correlation", "gain", "identity")


@dataclass(frozen=True)
class Summary:
    """Of one request."""

    run: str
    images: int
    medians: list[dict[str, Any]]  # a row a direction and strength; a measure that was not taken is None
    sheet: str | None  # address of the picture


def publish(run: Run, request: Request) -> Summary:
    """Write `runs/<run>/report/edits.png` of the request's pictures; return medians over its images."""
    rows = _rows(run, request)
    path = f"runs/{run.name}/report/{SHEET}"
    if request.pictures and len(rows):
        buffer = io.BytesIO()
        _sheet(run, request, rows).save(buffer, "PNG", optimize=True)
        run.store.write_report(run.name, SHEET, buffer.getvalue())
    return Summary(
        run=run.name,
        images=int(rows["image_id"].nunique()),
        medians=_medians(rows),
        sheet=f"{run.store.root}/{path}" if request.pictures and len(rows) else None,
    )


def _rows(run: Run, request: Request) -> pd.DataFrame:
    where: list[tuple[str, str, Any]] = [
        ("direction", "in", list(request.directions)),
        ("strength", "in", request.strengths),
    ]
    where += [] if request.images is None else [("image_id", "in", request.images)]
    columns = ["image_id", "direction", "strength", "picture", *MEASURES]
    rows = run.store.read("edits", run=run.name, columns=columns, filters=where)
    order = {name: i for i, name in enumerate(request.directions)}  # as they were asked for
    return rows.sort_values(["direction", "strength"], key=lambda c: c.map(order) if c.name == "direction" else c)


def _medians(rows: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for (direction, strength), group in rows.groupby(["direction", "strength"], sort=False):
        row: dict[str, Any] = {"direction": str(direction), "strength": float(str(strength)), "images": len(group)}
        for name in MEASURES:
            value = pd.to_numeric(group[name]).median()
            row[name] = None if pd.isna(value) else float(value)
        found.append(row)
    return found


def _sheet(run: Run, request: Request, rows: pd.DataFrame) -> Image.Image:
    """A line an image: unedited, then each direction at each strength, with its correlation."""
    edits = [(d, s) for d in request.directions for s in request.strengths][:MAX_COLUMNS]
    ids = list(dict.fromkeys(rows["image_id"]))[:MAX_IMAGES]
    keys = zip(rows["image_id"], rows["direction"], rows["strength"], strict=True)
    correlations = dict(zip(keys, pd.to_numeric(rows["correlation"]), strict=True))
    paths: dict[tuple[str, str, float], str] = {}
    for row in records(rows[rows["image_id"].isin(ids)]):
        if unedited := unedited_path(run.name, row["picture"]):
            paths[row["image_id"], row["direction"], row["strength"]] = row["picture"]
            paths[row["image_id"], UNEDITED, 0.0] = unedited
    data = run.store.files.get_all(list(set(paths.values())))
    headings = ["tuned", *(f"{direction} {strength_text(strength)}" for direction, strength in edits)]

    def cell(image_id: str, direction: str, strength: float) -> Cell:
        content = data.get(paths.get((image_id, direction, strength), ""))
        picture = None if content is None else Image.open(io.BytesIO(content)).convert("RGB")
        value = correlations.get((image_id, direction, strength))
        known = value is not None and not pd.isna(value)
        return Cell(picture, image_id if direction == UNEDITED else f"r {value:.2f}" if known else "")

    lines = [[cell(i, UNEDITED, 0.0), *(cell(i, d, s) for d, s in edits)] for i in ids]
    groups = [0, *(1 + i for i in range(0, len(edits), len(request.strengths)))]
    return sheet(headings, lines, groups)
