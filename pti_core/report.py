"""What a person looks at: medians of a run, and the contact sheet. Everything is read back from the store."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from pti_core import images
from pti_core.causes import causes_of, in_lines
from pti_core.directions import Direction, visible_directions
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.html_report import PAGE, write_page
from pti_core.medians import images_in, locality_medians, medians, sample
from pti_core.read_back import StoredRows, stored_rows
from pti_core.runs import Run, engine_for, stored_from_rows
from pti_core.sheet import Cell, sheet
from pti_core.storage.markers import sum_text
from pti_core.storage.store import StoreError
from pti_core.throughput import in_words, throughput
from pti_core.words import escaped, some_of

CONTACT_SHEET = "contact_sheet.png"
SUMMARY = "summary.json"
MAX_MESSAGES = 10
PAGE_OF = 200_000  # images; of more `pti report` makes the page, when it is wanted
MAX_ROWS = 24
EDIT_STRENGTH = 2.0  # standard deviations of W along the direction

Markers = Mapping[int, Mapping[str, Any]]
"""Of finished shards, as `Store.done` reads them."""

OnDrawing = Callable[[str, int, int], None]
"""Called with what is drawn (`report`, say), for how many images it is there, and for how many it is wanted."""


@torch.no_grad()
def contact_sheet(
    run: Run,
    engine: Engine,
    limit: int = MAX_ROWS,
    markers: Markers | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Image.Image:
    """A row per image: target, pivot, tuned as stored, and edits of the base and of the tuned generator, side by side.

    The directions are the two principal components of W that change the mean image most. `on_progress` is called with
    the rows that are drawn, and how many are wanted.
    """
    # Ids first, of no more shards than it takes: tables and noise maps of a whole run may not fit into memory.
    shards = first_shards(run, limit, markers)
    columns = ["image_id", "shard"]
    ids = run.store.read("pivots", run=run.name, columns=columns, filters=[("shard", "in", shards)]).head(limit)
    where = [("shard", "in", shards), ("image_id", "in", list(ids["image_id"]))]
    metrics = run.store.read("metrics", run=run.name, columns=["image_id", "stage", "lpips"], filters=where)
    lpips = dict(zip(zip(metrics["image_id"], metrics["stage"], strict=True), metrics["lpips"], strict=True))
    lines: list[list[Cell]] = []
    on_progress(0, len(ids))
    directions = visible_directions(engine.generator, engine.statistics, engine.lpips)
    for shard, names in ids.groupby("shard", sort=False)["image_id"]:
        for rows in chain.from_iterable(stored_rows(run, engine, int(str(shard)), list(names))):
            lines.append(_line(run, engine, rows, directions, lpips))
            on_progress(len(lines), len(ids))
    headings = ["target", "pivot", "tuned"]
    for direction in directions:
        headings += [f"{direction.name}: base", f"{direction.name}: tuned"]
    return sheet(headings, lines, range(3, len(headings), 2))


def first_shards(run: Run, images: int, markers: Markers | None = None) -> list[int]:
    """The shards that hold the first so many images which were not rejected."""
    shards = []
    for shard, marker in sorted((run.store.markers(run.name) if markers is None else markers).items()):
        if images > 0 and marker["counts"]["pivots"]:
            shards.append(shard)
            images -= marker["counts"]["pivots"]
    return shards


def _line(
    run: Run, engine: Engine, rows: StoredRows, directions: list[Direction], lpips: dict[tuple[str, str], float]
) -> list[Cell]:
    pivot, stored = rows.pivot, stored_from_rows(run, engine, rows.pivot, rows.delta)
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
        captions += 2 * [f"{strength:+.0f} sigma"]
    return [Cell(*cell) for cell in zip(cells, captions, strict=True)]


def _target(run: Run, pivot: dict[str, Any], resolution: int) -> Image.Image | None:
    """The input once more; None where it is gone or has changed since."""
    try:
        found = run.read_input(pivot["uri"], pivot["image_id"], resolution)
    except (OSError, images.ImageError):
        found = None
    return Image.fromarray(found.pixels) if found and found.sha256 == pivot["sha256"] else None


def _picture(image: Tensor) -> Image.Image:
    return images.picture(images.to_uint8(image.nan_to_num().cpu().numpy())[0])


def publish(run: Run, on_drawing: OnDrawing = lambda what, done, total: None) -> dict[str, Any]:
    """Check that every image has its row, write report, contact sheet and summary; return the last.

    What is there is kept where the shards' markers are still those that it was made of. `on_drawing` hears of nothing
    where no picture is lacking.

    Raises StoreError for a run that is not complete.
    """
    markers = run.store.done(run.name)
    known = _known_summary(run, markers)
    if known is None:
        run.store.check_complete(run.name, markers)
    path = f"runs/{run.name}/report/{CONTACT_SHEET}"
    pivots = any(marker["counts"]["pivots"] for marker in markers.values())
    if pivots and run.config.engine == "pti" and (known is None or not run.store.exists(path)):
        buffer = io.BytesIO()
        drawing = partial(on_drawing, "contact sheet")
        drawn = contact_sheet(run, engine_for(run), markers=markers, on_progress=drawing)
        drawn.save(buffer, "PNG", optimize=True)
        run.store.write_report(run.name, CONTACT_SHEET, buffer.getvalue())
    if _wants_page(run) and (known is None or not run.store.exists(_page(run))):
        write_page(run, markers=markers, on_progress=partial(on_drawing, "report"))
    if known is None:
        known = _summary(run, markers)
        content = {"of": _fingerprint(markers), "summary": known}
        run.store.write_report(run.name, SUMMARY, json.dumps(content, indent=1).encode())
    return known | _pictures_at(run)


def summary(run: Run) -> dict[str, Any]:
    """Plain figures of a run, for artifacts and the command line. JSON types only; what was not measured is None.

    `medians` and `locality` are of `medians_of` images (see `medians.sample`).

    As it was published, where the shards' markers are still the same. Raises StoreError where some are not done.
    """
    markers = run.store.done(run.name)
    return (_known_summary(run, markers) or _summary(run, markers)) | _pictures_at(run)


def _known_summary(run: Run, markers: Markers) -> dict[str, Any] | None:
    """What was published of these very markers: nothing has been done, lost or found damaged since."""
    with suppress(StoreError, ValueError, TypeError, KeyError):
        content = json.loads(run.store.files.get(f"runs/{run.name}/report/{SUMMARY}", "no summary"))
        told = content.get("of")
        if told == _fingerprint(markers) if told else content["markers"] == _earlier_fingerprint(run, markers):
            return dict(content["summary"]) | _of_markers(markers)  # which earlier versions did not write
    return None


def _fingerprint(markers: Markers) -> str:
    sums = [(shard, marker["sha256"]) for shard, marker in sorted(markers.items())]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _earlier_fingerprint(run: Run, markers: Markers) -> str:
    """As earlier versions wrote it with the summary, of all that markers say."""
    whole = run.store.markers(run.name, whole=True)
    found = [(shard, marker) for shard, marker in sorted(whole.items()) if shard in markers]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _wants_page(run: Run) -> bool:
    return run.config.engine == "pti" and run.manifest.rows <= PAGE_OF


def _page(run: Run) -> str:
    return f"runs/{run.name}/report/{PAGE}"


def _pictures_at(run: Run) -> dict[str, str | None]:
    paths = {"contact_sheet": f"runs/{run.name}/report/{CONTACT_SHEET}", "report": _page(run)}
    return {name: f"{run.store.root}/{path}" if run.store.exists(path) else None for name, path in paths.items()}


def _summary(run: Run, markers: Markers) -> dict[str, Any]:
    counts = {name: sum(marker["counts"][name] for marker in markers.values()) for name in ("pivots", "rejects")}
    if sum(counts.values()) != run.manifest.rows:
        text, left = sum_text({"manifest": run.manifest.rows, **counts}), set(range(run.manifest.shards)) - set(markers)
        why = f"shard {min(left)} is not done, or another process has done it at the same time; " if left else ""
        raise StoreError(f"run {run.name!r} is not complete: {text}; {why}run it again to finish it")
    shards, delta_bytes = sample(run, markers), sum(marker["files"].bytes_of("deltas") for marker in markers.values())
    return {
        "run": run.name,
        "preset": run.config.preset,
        "images": counts["pivots"],
        "rejected": counts["rejects"],
        "reject_messages": _reject_messages(run, markers),
        "medians": {str(stage): _plain(row) for stage, row in medians(run, shards).iterrows()},
        "locality": _plain(locality_medians(run, shards)),
        "medians_of": images_in(markers, shards),
        "delta_bytes": delta_bytes / max(1, counts["pivots"]),
    } | _of_markers(markers)


def _of_markers(markers: Markers) -> dict[str, Any]:
    """What the markers alone tell of rejects and speed."""
    causes = causes_of(marker["counts"] for marker in markers.values())
    return {"reject_causes": causes, "throughput": throughput(markers.values())}


def _reject_messages(run: Run, markers: Markers) -> list[str]:
    """The first few, in the order of the shards."""
    shards = sorted(shard for shard, marker in markers.items() if marker["counts"]["rejects"])[:MAX_MESSAGES]
    if not shards:
        return []
    found = run.store.read_arrow("rejects", run.name, ["message"], [("shard", "in", shards)])
    return list(found["message"].slice(0, MAX_MESSAGES).to_pylist())


def _plain(row: pd.Series[Any]) -> dict[str, float | None]:
    return {str(name): None if pd.isna(value) else float(value) for name, value in row.items()}


def markdown(summary: dict[str, Any]) -> str:
    """The summary as Markdown, for Prefect's page of the run."""
    lines = [f"## Run {summary['run']}", "", f"{summary['images']} images, {summary['rejected']} rejected.", ""]
    if (some := summary.get("medians_of", summary["images"])) < summary["images"]:
        lines += [f"Medians of {some_of(some, summary['images'], 'image')}:", ""]
    lines += ["| stage | LPIPS | MSE | PSNR dB | SSIM |", "| --- | --- | --- | --- | --- |"]
    for stage, row in summary["medians"].items():
        forms = {"lpips": ".4f", "mse": ".4f", "psnr": ".2f", "ssim": ".3f"}
        cells = ("" if row[name] is None else format(row[name], form) for name, form in forms.items())
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    if summary["contact_sheet"]:
        lines += ["", f"Contact sheet: `{summary['contact_sheet']}`"]
    if summary["report"]:
        lines += ["", f"Report: `{summary['report']}`"]
    if summary["throughput"]:
        lines += ["", f"{in_words(summary['throughput'])}."]
    if summary["reject_causes"]:
        lines += ["", "Rejected, by cause:", "", *(f"- {escaped(line)}" for line in in_lines(summary["reject_causes"]))]
    if summary["reject_messages"]:
        lines += ["", "Rejected:", "", *(f"- {escaped(message)}" for message in summary["reject_messages"])]
    return "\n".join(lines)
