"""What a person sees of the alpha study: plots, findings, a page. All of it is read back from the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from pti_core.alpha.findings import NO_STATEMENT, Finding, drift_table, findings, findings_table, label, nearness_table
from pti_core.alpha.page import Study, render
from pti_core.alpha.plots import as_png, drift_plot, nearness_plot
from pti_core.alpha.shards import strip_name
from pti_core.alpha.stored import Request, places, reasons_left_out, requested, studied
from pti_core.alpha.study import AlphaError
from pti_core.runs import Run
from pti_core.words import escaped

FOLDER: Final = "alpha"
PAGE, FINDINGS, NEARNESS, DRIFT = "index.html", "findings.csv", "nearness.png", "drift.png"
STRIPS: Final = 6
"""Images whose strips are on the page; the others are beside it."""


@dataclass(frozen=True)
class Summary:
    """Of what was asked for, and of nothing else that the tables hold."""

    run: str
    images: int
    findings: list[str]  # sentences
    remarks: list[str]  # images that were left out, and why
    page: str  # with the store's root, as the others
    table: str
    markdown: str  # without pictures
    pictures: dict[str, str]  # below the root: the plots and the first image's strips, by what they show


def publish(run: Run, images: Mapping[int, Sequence[str]], request: Request) -> Summary:
    """Write page, plots and findings of these images into `runs/<run>/report/alpha/`.

    `images`: image_ids by shard. Those that could not be studied are left out, with a remark. Raises AlphaError where
    none was.
    """
    wanted = places(run, images)
    found = studied(run, wanted.values(), request)
    ids = [image_id for names in images.values() for image_id in names]
    reasons = reasons_left_out(run, images)
    left_out = {i: reasons.get(i, f"image {i!r} is not studied yet; the same command again does it") for i in ids}
    remarks = [f"left out: {why}" for i, why in left_out.items() if i not in found]
    if not found:
        raise AlphaError(f"run {run.name}: none of {len(ids)} images was studied; {remarks[0]}")
    near, drift = requested(run, found, request)
    said = findings(near, drift)
    plots = {NEARNESS: as_png(nearness_plot(near)), DRIFT: as_png(drift_plot(drift))}
    names = {i: strip_name(i) for i in found}
    paths = {i: _path(run, name) for i, name in names.items()}
    shown = run.store.files.get_all(list(paths.values())[:STRIPS])
    strips = {i: data for i, path in paths.items() if (data := shown.get(path)) is not None}
    study = Study(
        run=run,
        request=request,
        images=len(found),
        findings=said,
        nearness=nearness_table(near),
        drift=drift_table(drift),
        remarks=remarks,
        nearness_png=plots[NEARNESS],
        drift_png=plots[DRIFT],
        strips=strips,
        others=dict(list(names.items())[STRIPS:]),
    )
    files = plots | {
        FINDINGS: findings_table(said).to_csv(index=False).encode(),
        PAGE: render(study, run.store.exists(f"runs/{run.name}/report/{PAGE}")).encode(),
    }
    for name, content in files.items():
        run.store.write_report(run.name, f"{FOLDER}/{name}", content)
    pictures = {"nearness": _path(run, NEARNESS), "drift": _path(run, DRIFT)}
    return Summary(
        run=run.name,
        images=len(found),
        findings=[finding.sentence() for finding in said],
        remarks=remarks,
        page=f"{run.store.root}/{_path(run, PAGE)}",
        table=f"{run.store.root}/{_path(run, FINDINGS)}",
        markdown=markdown(study),
        pictures=pictures | ({"strip": paths[next(iter(strips))]} if strips else {}),
    )


def markdown(study: Study) -> str:
    """The study in words and tables, for a page that cannot show pictures from the store."""
    run, said = study.run, study.findings
    lines = [f"# Alpha study of run {escaped(run.name)}", "", study.scope, "", "## Findings", ""]
    headings = ["statement", "verdict", "measure", "has to be", "mean, 95 %", "images"]
    lines += [_rows(headings, map(_cells, said)) if said else NO_STATEMENT]
    lines += ["", "## How near is w_r to w_z?", "", _table(study.nearness, "alpha")]
    lines += ["", "## Old against new generator, medians", "", _table(study.drift, "tuned with alpha")]
    lines += ["", *(f"- {escaped(remark)}" for remark in study.remarks)]
    return "\n".join(lines).rstrip() + "\n"


def _cells(finding: Finding) -> list[str]:
    return [finding.statement, finding.verdict, finding.measure, finding.claim, finding.figures, str(finding.images)]


def _table(frame: pd.DataFrame, index: str) -> str:
    rows = [
        [label(i) if isinstance(i, float) else str(i), *("" if pd.isna(v) else f"{v:.4f}" for v in row)]
        for i, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return _rows([index, *map(str, frame.columns)], rows)


def _rows(heading: list[str], rows: Iterable[list[str]]) -> str:
    cells = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _path(run: Run, name: str) -> str:
    return f"runs/{run.name}/report/{FOLDER}/{name}"
