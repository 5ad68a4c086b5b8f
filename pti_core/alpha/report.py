"""The alpha study as pictures, plots and a page of Markdown, beside the run's report."""

from __future__ import annotations

import io
from typing import Any, Final

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pti_core.alpha.findings import drift_table, findings, label, nearness_table, path_curves
from pti_core.alpha.shards import strip_name
from pti_core.alpha.study import AlphaError
from pti_core.runs import Run

matplotlib.use("Agg")  # no screen

FOLDER: Final = "alpha"
STRIPS: Final = 6
"""Images whose strips are on the page; the others are beside it."""

_SIZE: Final = (7.2, 4.2)  # inches


def publish(run: Run) -> dict[str, Any]:
    """Write `runs/<run>/report/alpha/` from the tables: nearness.png, drift.png, study.md. Returns a summary.

    Raises AlphaError where nothing was studied.
    """
    near = run.store.read("alpha_nearness", run=run.name)
    drift = run.store.read("alpha_drift", run=run.name)
    if near.empty or drift.empty:
        raise AlphaError(f"run {run.name} has no alpha study; `pti alpha-study {run.store.root}` makes one")
    found = findings(near, drift)
    pictures = {"nearness.png": nearness_plot(near), "drift.png": drift_plot(drift)}
    for name, figure in pictures.items():
        run.store.write_report(run.name, f"{FOLDER}/{name}", _png(figure))
    text = markdown(run, near, drift)
    run.store.write_report(run.name, f"{FOLDER}/study.md", text.encode())
    return {
        "run": run.name,
        "images": int(drift["image_id"].nunique()),
        "findings": [finding.sentence() for finding in found],
        "page": f"{run.store.root}/runs/{run.name}/report/{FOLDER}/study.md",
        "markdown": text,
    }


def nearness_plot(near: pd.DataFrame) -> Figure:
    """LPIPS of G(w_r) to G(w_z) over alpha: median, quartiles, and every image as a thin line."""
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    for _, rows in near.groupby(["image_id", "seed"]):
        axes.plot(rows["alpha"], rows["lpips"], color="0.75", linewidth=0.5)
    table = nearness_table(near)
    axes.fill_between(table.index, table["lower quartile"], table["upper quartile"], alpha=0.25, color="tab:blue")
    axes.plot(table.index, table["median LPIPS to w_z"], marker="o", color="tab:blue", label="median and quartiles")
    axes.set(xlabel="alpha (paper's unit)", ylabel="LPIPS of G(w_r) to G(w_z)", ylim=(0, None))
    axes.set_title("How near is w_r to w_z?  Base generator", loc="left")
    axes.legend(frameon=False)
    return _plain(figure)


def drift_plot(drift: pd.DataFrame) -> Figure:
    """Old against new generator along the path, a line a tuning alpha."""
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    curves = path_curves(drift)
    names = sorted(curves.columns, key=lambda name: np.inf if name == "off" else float(name))
    places = [*range(len(curves))]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(1, len(names) - 1)))
    for i, name in enumerate(names):
        style: dict[str, Any] = {"color": "tab:red", "linestyle": "--"} if name == "off" else {"color": colours[i]}
        text = "no regulariser" if name == "off" else f"tuned with alpha {name}"
        axes.plot(places, curves[name], marker="o", markersize=3, label=text, **style)
    axes.set_xticks(places, ["w_z" if np.isinf(place) else label(place) for place in curves.index])
    axes.set(xlabel="where: alpha from the pivot (paper's unit)", ylabel="LPIPS, old against new", ylim=(0, None))
    axes.set_title("What tuning leaves of the old generator (medians)", loc="left")
    axes.legend(frameon=False, fontsize=8)
    return _plain(figure)


def markdown(run: Run, near: pd.DataFrame, drift: pd.DataFrame) -> str:
    """The study as a page: what was asked, tables, plots, and each statement with its figures."""
    images, z = near["image_id"].nunique(), near.groupby("image_id")["seed"].nunique().max()
    lines = [
        f"# Alpha study of run {run.name}",
        "",
        f"{images} images, {z} samples z each, preset {run.config.preset}.",
    ]
    lines += ["", "![How near is w_r to w_z?](nearness.png)", "", _table(nearness_table(near), "alpha")]
    lines += ["", "![Drift along the path](drift.png)", "", _table(drift_table(drift), "tuned with alpha")]
    for image_id in sorted(drift["image_id"].unique())[:STRIPS]:
        lines += ["", f"![{image_id}]({strip_name(image_id)})"]
    lines += ["", "## Statements", ""]
    lines += [f"- {finding.sentence()}" for finding in findings(near, drift)]
    lines += ["", "Differences are paired by image; intervals are bootstrap (BCa) over images. Below 0 bears it out."]
    return "\n".join(lines) + "\n"


def _table(frame: pd.DataFrame, index: str) -> str:
    heading = [index, *map(str, frame.columns)]
    rows = [
        [label(i) if isinstance(i, float) else str(i), *(f"{v:.4f}" for v in row)]
        for i, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    cells = [heading, ["---:"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
