"""The two plots of the alpha study."""

from __future__ import annotations

import io
from typing import Any, Final

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pti_core.alpha.findings import label, nearness_table, path_curves

matplotlib.use("Agg")  # no screen

_SIZE: Final = (7.2, 4.4)  # inches


def nearness_plot(near: pd.DataFrame) -> Figure:
    """LPIPS of G(w_r) to G(w_z) over alpha: median, quartiles, and every sample of every image as a thin line."""
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
    """Old against new generator along the path, a line a tuning alpha; every place at its own t, w_z at 1."""
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    curves = path_curves(drift)
    t = curves.index.get_level_values("t").to_numpy(dtype=float)
    names = sorted(curves.columns, key=lambda name: np.inf if name == "off" else float(name))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for i, name in enumerate(names):
        style: dict[str, Any] = {"color": "tab:red", "linestyle": "--"} if name == "off" else {"color": colours[i]}
        text = "no regulariser" if name == "off" else f"tuned with alpha {name}"
        axes.plot(t, curves[name], marker="o", markersize=3, label=text, **style)
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes.annotate("w_z", (1, 0), (4, 4), textcoords="offset points", fontsize=8, color="0.4")
    axes.set(xlim=(0, None), ylim=(0, None), ylabel="LPIPS, old against new")
    axes.set_xlabel("where: t, share of the way from the pivot (0) to w_z (1); above, its alpha in the paper's unit")
    alphas = curves.index.get_level_values("place").to_numpy(dtype=float)
    top = axes.secondary_xaxis("top")
    places = [(at, label(alpha)) for at, alpha in zip(t, alphas, strict=True) if np.isfinite(alpha)]
    top.set_xticks([at for at, _ in places], [name for _, name in places], fontsize=7)
    axes.set_title("What tuning leaves of the old generator (medians)", loc="left")
    axes.legend(frameon=False, fontsize=8)
    return _plain(figure)


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
    return figure


def as_png(figure: Figure) -> bytes:
    """A plot as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
