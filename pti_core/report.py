"""What a person looks at: medians of a run, and the contact sheet. Everything is read back from the store."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pti_core import images
from pti_core.directions import Direction, visible_directions
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.runs import Run, engine_for, read_stored
from pti_core.tables import records

CONTACT_SHEET = "contact_sheet.png"
STAGES = ("pivot", "tuned", "stored")
MAX_MESSAGES = 10
MIN_CELL, MAX_CELL = 128, 256  # pixels; larger images are reduced, smaller ones enlarged
MAX_ROWS = 24
EDIT_STRENGTH = 2.0  # standard deviations of W along the direction
INK, PAPER, GREY = (24, 24, 27), (255, 255, 255), (113, 113, 122)


def medians(run: Run) -> pd.DataFrame:
    """Medians over the images of a run: a row a stage, columns lpips, mse, psnr, ssim, ms_ssim, steps, seconds."""
    frame = run.store.read("metrics", run=run.name)
    columns = ["lpips", "mse", "psnr", "ssim", "ms_ssim", "steps", "seconds"]
    table = frame.groupby("stage", observed=True)[columns].median(numeric_only=True)
    return table.reindex([stage for stage in STAGES if stage in table.index])


def locality_medians(run: Run) -> pd.Series[Any]:
    """Median LPIPS of old against new generator, by where: `alpha 30`, ..., `w_z`."""
    frame = run.store.read("locality", run=run.name, columns=["where", "alpha", "lpips"])
    order = frame["alpha"].where(frame["where"] == "interpolated", float("inf"))
    table = frame["lpips"].groupby(order).median()
    return table.rename(lambda alpha: "w_z" if alpha == float("inf") else f"alpha {alpha:g}")


@dataclass(frozen=True)
class _Row:
    image_id: str
    cells: list[Image.Image]
    captions: list[str]


@torch.no_grad()
def contact_sheet(run: Run, engine: Engine, limit: int = MAX_ROWS) -> Image.Image:
    """A row an image: target, pivot, tuned as stored, and edits of the base and of the tuned generator, side by side.

    The directions are the two principal components of W that change the mean image most.
    """
    directions = visible_directions(engine.generator, engine.statistics, engine.lpips)
    metrics = run.store.read("metrics", run=run.name, columns=["image_id", "stage", "lpips"])
    lpips = dict(zip(zip(metrics["image_id"], metrics["stage"], strict=True), metrics["lpips"], strict=True))
    # Ids first: the noise maps of a whole run may not fit into memory.
    ids = run.store.read("pivots", run=run.name, columns=["image_id", "shard"]).head(limit)
    where = [("shard", "in", sorted({int(s) for s in ids["shard"]})), ("image_id", "in", list(ids["image_id"]))]
    rows = [
        _row(run, engine, pivot, directions, lpips)
        for pivot in records(run.store.read("pivots", run=run.name, filters=where).head(limit))
    ]
    headings = ["target", "pivot", "tuned"]
    for direction in directions:
        headings += [f"{direction.name}: base", f"{direction.name}: tuned"]
    return _sheet(headings, rows, min(MAX_CELL, max(MIN_CELL, engine.generator.img_resolution)))


def _row(
    run: Run, engine: Engine, pivot: dict[str, Any], directions: list[Direction], lpips: dict[tuple[str, str], float]
) -> _Row:
    stored = read_stored(run, engine, pivot)
    target = _target(run, pivot, engine.generator.img_resolution)

    def draw(generator: Generator, ws: Tensor) -> Image.Image:
        return _picture(generator.synthesis(ws, noise=stored.noise))

    base, tuned, ws = engine.generator, stored.generator, stored.ws
    cells = [target, draw(base, ws), draw(tuned, ws)]
    image_id = pivot["image_id"]
    captions = [image_id, *(f"LPIPS {lpips[image_id, stage]:.3f}" for stage in ("pivot", "stored"))]
    for direction in directions:
        # Towards the mean: the half of the axis where the generator has more to show.
        position = float((ws.mean(dim=1)[0] - engine.statistics.w_avg) @ direction.vector.to(ws.device))
        strength = -EDIT_STRENGTH if position > 0 else EDIT_STRENGTH
        edited = direction.edit(ws, strength)
        cells += [draw(base, edited), draw(tuned, edited)]
        captions += [f"{strength:+.0f} sigma", ""]
    return _Row(image_id, cells, captions)


def _target(run: Run, pivot: dict[str, Any], resolution: int) -> Image.Image:
    """The input once more; grey where it is gone or has changed since."""
    try:
        found = run.read_input(pivot["uri"], pivot["image_id"], resolution)
    except (OSError, images.ImageError):
        found = None
    if found is None or found.sha256 != pivot["sha256"]:
        return Image.new("RGB", (resolution, resolution), GREY)
    return Image.fromarray(found.pixels)


def _picture(image: Tensor) -> Image.Image:
    array = images.to_uint8(image.cpu().numpy())[0]
    return Image.fromarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def _sheet(headings: list[str], rows: list[_Row], cell: int) -> Image.Image:
    """Draw the table; groups of columns (reconstruction, each direction) are set apart."""
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    margin, gap, group_gap, head, caption = 16, 4, 18, 26, 20
    lefts, x = [], margin
    for i in range(len(headings)):
        lefts.append(x)
        x += cell + (group_gap if i >= 2 and i % 2 == 0 else gap)
    width, height = lefts[-1] + cell + margin, margin + head + len(rows) * (cell + caption) + margin // 2
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left + cell / 2, margin), heading, INK, font, anchor="ma")
    for i, row in enumerate(rows):
        top = margin + head + i * (cell + caption)
        for left, picture, text in zip(lefts, row.cells, row.captions, strict=True):
            sheet.paste(picture.resize((cell, cell), Image.Resampling.LANCZOS), (left, top))
            draw.text((left + cell / 2, top + cell + 3), _shorten(text, small, cell), GREY, small, anchor="ma")
    return sheet


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut a caption to the width of a cell, keeping its end (the file's name)."""
    while len(text) > 4 and font.getlength(text) > width:
        text = "…" + text[2:]
    return text


def publish(run: Run) -> dict[str, Any]:
    """Write `runs/<run>/report/contact_sheet.png` where it is missing; return the run's summary."""
    path = f"runs/{run.name}/report/{CONTACT_SHEET}"
    frame = run.store.read("pivots", run=run.name, columns=["image_id"])
    if len(frame) and not run.store.exists(path):
        buffer = io.BytesIO()
        contact_sheet(run, engine_for(run)).save(buffer, "PNG", optimize=True)
        run.store.write_report(run.name, CONTACT_SHEET, buffer.getvalue())
    return summary(run)


def summary(run: Run) -> dict[str, Any]:
    """Plain figures of a run, for artifacts and the command line. JSON types only; what was not measured is None."""
    counts = run.store.check_complete(run.name)
    rejects = run.store.read("rejects", run=run.name, columns=["message"])
    files = [file for marker in run.store.done(run.name).values() for file in marker["files"]]
    delta_bytes = sum(file["bytes"] for file in files if file["path"].startswith("deltas/"))
    path = f"runs/{run.name}/report/{CONTACT_SHEET}"
    return {
        "run": run.name,
        "preset": run.config.preset,
        "images": counts["pivots"],
        "rejected": counts["rejects"],
        "reject_messages": rejects["message"].head(MAX_MESSAGES).tolist(),
        "medians": {str(stage): _plain(row) for stage, row in medians(run).iterrows()},
        "locality": _plain(locality_medians(run)),
        "delta_bytes": delta_bytes / max(1, counts["pivots"]),
        "contact_sheet": f"{run.store.root}/{path}" if run.store.exists(path) else None,
    }


def _plain(row: pd.Series[Any]) -> dict[str, float | None]:
    return {str(name): None if pd.isna(value) else float(value) for name, value in row.items()}


def markdown(summary: dict[str, Any]) -> str:
    """The summary as Markdown, for Prefect's page of the run."""
    lines = [f"## Run {summary['run']}", "", f"{summary['images']} images, {summary['rejected']} rejected.", ""]
    lines += ["| stage | LPIPS | MSE | PSNR dB | SSIM |", "| --- | --- | --- | --- | --- |"]
    for stage, row in summary["medians"].items():
        lines.append(f"| {stage} | {row['lpips']:.4f} | {row['mse']:.4f} | {row['psnr']:.2f} | {row['ssim']:.3f} |")
    lines += ["", f"Contact sheet: `{summary['contact_sheet']}`"]
    return "\n".join([*lines, *(f"- {message}" for message in summary["reject_messages"])])
