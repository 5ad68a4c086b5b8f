"""The page itself: figures, charts and pictures into one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import pandas as pd

from pti_core.html_report import charts
from pti_core.html_report.figures import MEASURES, Figures, choose, facts, gather, settings, worst_first
from pti_core.html_report.pictures import Layout, Pictures, draw
from pti_core.runs import Run
from pti_core.status import nothing_done
from pti_core.storage.known_runs import RunError
from pti_core.tables import records

PAGE: Final = "index.html"
DRAWN: Final = 48
"""Images with pictures where nothing else is asked for: half of them the worst, half at random."""

EMBEDDED: Final = 300
"""With more pictures than this they lie in files beside the page (`sprites/`), which the page fetches as they show."""

LISTED: Final = 5000
"""Images that the page lists with their figures, at most; distributions and medians are of all."""

_HERE: Final = Path(__file__).parent
_AT_ONCE: Final = 16  # files written at the same time

OnProgress = Callable[[int, int], None]
"""Images whose pictures are there, and how many are wanted; first of all, with none there, where any are wanted."""


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    path: str  # with the store's root
    bytes: int  # of the page
    images: int  # of the finished shards
    drawn: int  # of these with pictures
    beside: int  # bytes of the pictures in files beside the page; 0 where the page holds them


def write_page(
    run: Run,
    images: int | None = DRAWN,
    on_progress: OnProgress = lambda done, total: None,
    one_file: bool = False,
    markers: Mapping[int, Mapping[str, Any]] | None = None,
) -> Report:
    """Write `report/index.html` of a run, of all shards that are done (`markers` of `Store.done`).

    `images`: how many get pictures, None for all.

    With `one_file` the page holds its pictures, however many they are; else many (`EMBEDDED`) lie beside it.
    Pictures that were drawn before are taken from `report/pictures/`. Raises StoreError where the output cannot be
    read or written, RunError where no shard is done or the generator is no longer that of the run.
    """
    figures = gather(run, markers)
    if not figures.shards_done:  # nor is a page overwritten that showed what is lost now
        raise RunError(nothing_done(run))
    drawable = run.config.engine == "pti"
    chosen = choose(figures, len(figures.images) if images is None else images, run.config.seed) if drawable else []
    wanted: dict[int, list[str]] = {}
    for image_id, shard in figures.images.loc[chosen, "shard"].items():
        wanted.setdefault(int(shard), []).append(str(image_id))
    done = 0
    if chosen:
        on_progress(done, len(chosen))

    def on_picture() -> None:
        nonlocal done
        done += 1
        on_progress(done, len(chosen))

    return write(run, figures, draw(run, wanted, on_picture), one_file)


def write(run: Run, figures: Figures, pictures: Pictures, one_file: bool = False) -> Report:
    """Write the page of these figures and pictures; many pictures into files beside it, but with `one_file`."""
    beside = len(pictures.sprites) > EMBEDDED and not one_file
    places = _write_beside(run, pictures) if beside else {}
    html = render(run.store.read_config(run.name), run, figures, pictures, places)
    run.store.write_report(run.name, PAGE, html.encode())
    return Report(
        path=f"{run.store.root}/runs/{run.name}/report/{PAGE}",
        bytes=len(html.encode()),
        images=len(figures.images),
        drawn=len(pictures.sprites),
        beside=sum(map(len, pictures.sprites.values())) if beside else 0,
    )


def _write_beside(run: Run, pictures: Pictures) -> dict[str, str]:
    """Each sprite as a file named after its content; those that are there already stay."""
    folder = f"runs/{run.name}/report"
    there = {path.removeprefix(f"{folder}/") for path in run.store.files.find(f"{folder}/sprites")}
    names = {i: f"sprites/{hashlib.sha256(sprite).hexdigest()[:20]}.webp" for i, sprite in pictures.sprites.items()}
    missing = {name: pictures.sprites[i] for i, name in names.items() if name not in there}
    with ThreadPoolExecutor(_AT_ONCE, "pti-report") as pool:
        list(pool.map(lambda item: run.store.write_report(run.name, *item), missing.items()))
    return names


def render(config: Mapping[str, Any], run: Run, figures: Figures, pictures: Pictures, places: Mapping[str, str]) -> str:
    """The page. Sprites are embedded where they have no place (a path beside the page) of their own."""
    listed = list(worst_first(figures).index)
    drawn = [image_id for image_id in listed if image_id in pictures.sprites]
    others = [image_id for image_id in listed if image_id not in pictures.sprites]
    listed = [*drawn, *others[: max(0, LISTED - len(drawn))]]
    embedded = [
        (i, base64.b64encode(pictures.sprites[image_id]).decode())
        for i, image_id in enumerate(listed)
        if image_id in pictures.sprites and image_id not in places
    ]
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = _figure
    return environment.get_template("page.html.j2").render(
        run=run,
        made=config.get("created"),
        figures=figures,
        stages=_stage_rows(figures),
        measures={name: measure for name, measure in MEASURES.items() if name in _taken(figures)},
        total=run.manifest.rows,
        shards=run.manifest.shards,
        histograms=charts.histograms(figures),
        curves=charts.locality_curves(figures),
        chart=charts,
        settings=settings(run.config),
        facts=facts(config),
        drawn=len(drawn),
        listed=len(listed),
        data=_json(_data(figures, listed, pictures.layout, places)),
        sprites=embedded,
        style=style,
        script=script,
        style_hash=_integrity(style),
        script_hash=_integrity(script),
    )


def _taken(figures: Figures) -> set[str]:
    return {name.partition(".")[2] for name in figures.columns}


def _stage_rows(figures: Figures) -> list[dict[str, Any]]:
    return records(figures.stages.reset_index())


def _data(figures: Figures, listed: list[str], layout: Layout | None, places: Mapping[str, str]) -> dict[str, Any]:
    """What the script needs, a list a column."""
    frame = figures.images.loc[listed]
    return {
        "ids": listed,
        "groups": None if (frame["group"] == frame.index).all() else list(frame["group"]),
        "measures": {name: asdict(measure) for name, measure in figures.columns.items()},
        "values": {name: [_plain(value) for value in frame[name]] for name in figures.columns},
        "sprites": [places.get(image_id) for image_id in listed] if places else None,
        "layout": asdict(layout) | {"width": layout.width, "height": layout.height} if layout else None,
    }


def _plain(value: Any) -> float | None:
    """Five digits; None where nothing was measured. Infinity (PSNR of equal images) becomes a very large number."""
    if pd.isna(value):
        return None
    return float(f"{np.clip(float(value), -1e300, 1e300):.5g}")


def _figure(value: Any, digits: int) -> str:
    """A number as text; nothing where there is none."""
    if value is None or pd.isna(value):
        return ""
    return "∞" if math.isinf(value) else f"{value:,.{digits}f}"


def _json(content: Any) -> str:
    """JSON that cannot end the element it stands in, whatever the names of images are."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _integrity(text: str) -> str:
    """For the page's content security policy: it runs this script, has this style, and may load nothing."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
