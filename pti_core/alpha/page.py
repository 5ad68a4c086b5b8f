"""The study as one HTML page that opens from disk and loads nothing, in the style of the run's report."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import pandas as pd
from PIL import Image

from pti_core import html_report
from pti_core.alpha.findings import CONFIDENCE, NO_STATEMENT, QUARTER, THREE_QUARTERS, Finding, label
from pti_core.alpha.stored import Request
from pti_core.alpha.study import OFF
from pti_core.runs import Run
from pti_core.words import counted

_HERE: Final = Path(__file__).parent
_STYLES: Final = (Path(html_report.__file__).parent / "report.css", _HERE / "page.css")
_MARKS: Final = {"borne out": "yes", "contradicted": "no", "not decided": "open"}  # classes of the style sheet


@dataclass(frozen=True)
class Study:
    """All that a page of the study says."""

    run: Run
    request: Request
    images: int
    findings: Sequence[Finding]
    nearness: pd.DataFrame
    drift: pd.DataFrame
    remarks: Sequence[str]
    nearness_png: bytes
    drift_png: bytes
    strips: Mapping[str, bytes]  # PNG by image_id
    others: Mapping[str, str]  # files beside the page by image_id

    @property
    def scope(self) -> str:
        """What was studied, in a sentence."""
        images, samples = counted(self.images, "image"), counted(self.request.z_samples, "sample")
        alphas = ", ".join(label(alpha) for alpha in self.request.numbers)
        off = " and without the regulariser" if OFF in self.request.alphas else ""
        pull = self.run.config.tuning.pull
        stays = f" In all of them tuning.pull = {pull:g} holds W as well." if pull else ""
        return f"{images}, {samples} z an image, preset {self.run.config.preset}; alpha {alphas}{off}.{stays}"


def render(study: Study, report_beside: bool) -> str:
    """The page. `report_beside`: whether the run has a report to link to."""
    style = "\n".join(path.read_text(encoding="utf-8") for path in _STYLES)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        study=study,
        run=study.run,
        marks=_MARKS,
        no_statement=NO_STATEMENT,
        confidence=f"{CONFIDENCE:.0%}",
        quarter=QUARTER,
        three_quarters=THREE_QUARTERS,
        counts={verdict: sum(f.verdict == verdict for f in study.findings) for verdict in _MARKS},
        tables={"alpha": _cells(study.nearness), "tuned with alpha": _cells(study.drift)},
        plots={name: _uri(png, "png") for name, png in (("near", study.nearness_png), ("drift", study.drift_png))},
        strips={image_id: _uri(_webp(png), "webp") for image_id, png in study.strips.items()},
        report="../index.html" if report_beside else None,
        style=style,
        style_hash="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def _cells(frame: pd.DataFrame) -> dict[str, Any]:
    """Headings, and rows of texts."""
    rows = [
        [label(name) if isinstance(name, float) else str(name), *("" if pd.isna(v) else f"{v:.4f}" for v in values)]
        for name, values in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return {"headings": list(map(str, frame.columns)), "rows": rows}


def _webp(png: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
