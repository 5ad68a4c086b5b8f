"""The charts of a report as coordinates; `charts.html.j2` draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pti_core.html_report.figures import MEASURES, Figures, Measure
from pti_core.inversions import STAGES
from pti_core.words import counted

WIDTH: Final = 360  # of histograms
WIDE: Final = 560  # of curves
LEFT, RIGHT, TOP = 52, 12, 8
LANE, GAP, AXIS = 46, 12, 26  # pixels of a histogram's stage, between two, and of the axis below
CURVE: Final = 200  # height of a curve's field
BINS: Final = (8, 40)  # at least and at most
TAIL: Final = 0.5  # percent at each end that is shown in the first and last bar


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Lane:
    """The histogram of one stage."""

    stage: str
    y: float  # of its base line
    bars: list[tuple[float, float, float, float, str]]  # x, y, width, height, text
    median: float  # x
    median_text: str


@dataclass(frozen=True)
class Histogram:
    """How a measure is distributed, a lane a stage."""

    label: str
    height: float
    ticks: list[Tick]
    lanes: list[Lane]


@dataclass(frozen=True)
class Curve:
    """Median and quartiles against something."""

    label: str
    x_label: str
    height: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[tuple[float, float, str]]  # x, y, text
    line: str  # coordinates of a polyline
    bands: list[str]  # of polygons


def histograms(figures: Figures) -> list[Histogram]:
    """One for each measure that was taken."""
    found = []
    for name, measure in MEASURES.items():
        columns = {str(stage): figures.images.get(f"{stage}.{name}") for stage in STAGES}
        values = {stage: _finite(column) for stage, column in columns.items() if column is not None}
        values = {stage: column for stage, column in values.items() if len(column)}
        if values:
            found.append(_histogram(measure, values))
    return found


def _histogram(measure: Measure, values: dict[str, NDArray[np.float64]]) -> Histogram:
    everything = np.concatenate(list(values.values()))
    low, high = (float(x) for x in np.percentile(everything, [TAIL, 100 - TAIL]))
    if high - low < 1e-9:
        low, high = low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    bins = int(np.clip(2 * max(map(len, values.values())) ** 0.5, *BINS))
    edges = np.linspace(low, high, bins + 1)
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    lanes = []
    for i, (stage, column) in enumerate(values.items()):
        base = TOP + (i + 1) * LANE + i * GAP
        counts = np.histogram(column.clip(low, high), edges)[0]
        bars = []
        for start, stop, count in zip(edges[:-1], edges[1:], counts, strict=True):
            height = LANE * 0.66 * count / counts.max()
            text = f"{stage}: {count} of {len(column)} from {start:.{measure.digits}f} to {stop:.{measure.digits}f}"
            if count:
                x = LEFT + (start - low) * scale
                bars.append((x + 0.5, base - height, (stop - start) * scale - 1, height, text))
        median = float(np.median(column))
        text = f"{median:.{measure.digits}f}"
        lanes.append(Lane(stage, base, bars, LEFT + (min(max(median, low), high) - low) * scale, text))
    height = TOP + len(lanes) * (LANE + GAP) - GAP + AXIS
    label = f"{measure.label}, {measure.unit}" if measure.unit else measure.label
    return Histogram(label, height, [Tick(LEFT + (t - low) * scale, f"{t:g}") for t in ticks], lanes)


def locality_curves(figures: Figures) -> list[Curve]:
    """LPIPS of old against new generator: against alpha, with w_z at the end, and against t."""
    frame = figures.locality[np.isfinite(figures.locality["lpips"].astype(float))]
    if frame.empty:
        return []
    return [_against_alpha(frame), _against_t(frame)]


def _against_alpha(frame: pd.DataFrame) -> Curve:
    alphas = sorted(frame["alpha"].unique())
    finite = [alpha for alpha in alphas if math.isfinite(alpha)]
    end = max(finite, default=1.0) * 1.22  # where w_z stands
    groups = [(end if math.isinf(alpha) else alpha, frame[frame["alpha"] == alpha]["lpips"]) for alpha in alphas]
    names = ["w_z" if math.isinf(alpha) else f"{alpha:g}" for alpha in alphas]
    texts = ["at w_z" if math.isinf(alpha) else f"at alpha {alpha:g}" for alpha in alphas]
    ticks = [(at, name) for (at, _), name in zip(groups, names, strict=True)]
    label, x_label = "By distance", "alpha: distance from the pivot, in the paper's unit"
    return _curve(label, x_label, groups, texts, (0.0, end * 1.04), ticks, end)


def _against_t(frame: pd.DataFrame) -> Curve:
    most = float(frame["t"].quantile(0.98))
    edges = np.linspace(0, max(most, 1.0) + 1e-6, 10 if len(frame) > 500 else 7)
    place = np.digitize(frame["t"].clip(upper=edges[-1] - 1e-9), edges) - 1
    groups, texts = [], []
    for i in range(len(edges) - 1):
        rows = frame[place == i]
        if len(rows):
            groups.append((float(rows["t"].median()), rows["lpips"]))
            texts.append(f"at t {edges[i]:.2f} to {max(edges[i + 1], rows['t'].max()):.2f}")
    ticks = [(t, f"{t:g}") for t in nice_ticks(0, float(edges[-1]))]
    label, x_label = "By share of the way", "t: 0 at the pivot, 1 at w_z"
    return _curve(label, x_label, groups, texts, (0.0, max(float(edges[-1]), ticks[-1][0])), ticks)


def _curve(
    label: str,
    x_label: str,
    groups: Sequence[tuple[float, pd.Series[Any]]],
    texts: Sequence[str],
    extent: tuple[float, float],
    x_ticks: Sequence[tuple[float, str]],
    alone: float | None = None,
) -> Curve:
    """Groups are joined by a line, in order of their x; the one at `alone` stands apart."""
    quartiles = [(at, *(float(q) for q in group.quantile([0.25, 0.5, 0.75])), len(group)) for at, group in groups]
    top = max([1e-6, *(high for _, _, _, high, _ in quartiles)])
    y_ticks = nice_ticks(0, top)
    top = max(top, y_ticks[-1]) * 1.04

    def x(value: float) -> float:
        return LEFT + (value - extent[0]) / (extent[1] - extent[0]) * (WIDE - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + CURVE * (1 - value / top)

    points = [
        (
            x(at),
            y(half),
            f"{text}: median {half:.4f}, quartiles {low:.4f} to {high:.4f}, {counted(int(count), 'point')}",
        )
        for text, (at, low, half, high, count) in zip(texts, quartiles, strict=True)
    ]
    apart = [group for group in quartiles if group[0] == alone]
    joined = [group for group in quartiles if group[0] != alone]

    def band(outline: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{px:.1f},{py:.1f}" for px, py in outline)

    upper = [(x(at), y(high)) for at, _, _, high, _ in joined]
    lower = [(x(at), y(low)) for at, low, _, _, _ in reversed(joined)]
    bars = [
        [(x(at) + dx, y(edge)) for dx, edge in ((-7, high), (7, high), (7, low), (-7, low))]
        for at, low, _, high, _ in apart
    ]
    return Curve(
        label=label,
        x_label=x_label,
        height=TOP + CURVE + AXIS + 18,
        x_ticks=[Tick(x(at), text) for at, text in x_ticks],
        y_ticks=[Tick(y(at), f"{at:g}") for at in y_ticks],
        points=points,
        line=band([(x(at), y(half)) for at, _, half, _, _ in joined]),
        bands=[band([*upper, *lower]), *map(band, bars)],
    )


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, at most `most` and at least two, from a step of 1, 2 or 5."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * s for s in (1, 2, 5, 10, 20) if span / (power * s) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, max(last, first + 1) + 1)]


def _finite(column: pd.Series[Any]) -> NDArray[np.float64]:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return values[np.isfinite(values)]
