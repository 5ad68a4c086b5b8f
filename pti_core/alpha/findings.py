"""What the alpha study found: medians, paired differences with bootstrap confidence intervals, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 9999
MIN_IMAGES: Final = 3
"""Below this there is no interval worth the name."""


@dataclass(frozen=True)
class Finding:
    """A statement of the paper against the data: a paired difference over images, its interval, and a verdict."""

    statement: str
    difference: float  # mean over images; its sign as the sentence says
    low: float
    high: float
    images: int
    verdict: str  # "borne out", "contradicted" or "not decided"

    def sentence(self) -> str:
        """The whole finding in one line."""
        interval = f"[{self.low:+.4f}, {self.high:+.4f}]" if self.images >= MIN_IMAGES else "no interval"
        found = f"mean difference {self.difference:+.4f}, {CONFIDENCE:.0%} {interval}, {self.images} images"
        return f"{self.statement}: {self.verdict} ({found})"


def paired(statement: str, differences: pd.Series) -> Finding:
    """A statement that holds where paired differences (one an image) are below 0."""
    values = differences.dropna().to_numpy(dtype=float)
    mean = float(values.mean()) if len(values) else float("nan")
    if len(values) < MIN_IMAGES:
        return Finding(statement, mean, float("nan"), float("nan"), len(values), "not decided")
    if np.ptp(values) == 0:
        low = high = mean
    else:
        found = bootstrap(
            (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", random_state=0
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    verdict = "borne out" if high < 0 else "contradicted" if low > 0 else "not decided"
    return Finding(statement, mean, low, high, len(values), verdict)


def nearness_table(near: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles of LPIPS(G(w_r), G(w_z)) and the median t, a row an alpha."""
    groups = near.groupby("alpha")
    table = groups["lpips"].quantile(np.array([0.25, 0.5, 0.75])).unstack()
    table.columns = ["lower quartile", "median LPIPS to w_z", "upper quartile"]
    table.insert(0, "t", groups["t"].median())
    return table


def drift_table(drift: pd.DataFrame) -> pd.DataFrame:
    """Medians of LPIPS, a row a tuning alpha (`off`: none): to the target; old against new on the path and at w_z."""
    labelled = drift.assign(tuned=drift["tuned_alpha"].map(label))
    order = [label(alpha) for alpha in sorted(drift["tuned_alpha"].dropna().unique())] + ["off"]
    columns = {
        "target": "tuned against target",
        "interpolated": "old against new on the path",
        "wz": "old against new at w_z",
    }
    table = labelled.pivot_table(index="tuned", columns="where", values="lpips", aggfunc="median")
    return table.reindex([name for name in order if name in table.index])[list(columns)].rename(columns=columns)


def label(alpha: float) -> str:
    """`30`, or `off` for tuning without the regulariser."""
    return "off" if pd.isna(alpha) else f"{alpha:g}"


def path_curves(drift: pd.DataFrame) -> pd.DataFrame:
    """Median LPIPS of old against new, a row a place on the path (alpha, then w_z as inf), a column a tuning alpha."""
    there = drift[drift["where"] != "target"]
    there = there.assign(place=there["alpha"].fillna(np.inf), tuned=there["tuned_alpha"].map(label))
    return there.pivot_table(index="place", columns="tuned", values="lpips", aggfunc="median")


def findings(near: pd.DataFrame, drift: pd.DataFrame) -> list[Finding]:
    """The paper's statements, as far as the study's alphas allow."""
    found = []
    by_alpha = near.pivot_table(index="image_id", columns="alpha", values="lpips")
    if {30.0, 60.0} <= set(by_alpha.columns):
        found.append(paired("G(w_r) is nearer to G(w_z) at alpha 60 than at 30", by_alpha[60.0] - by_alpha[30.0]))
    if {0.0, 30.0} <= set(by_alpha.columns):
        found.append(
            paired("at alpha 30, G(w_r) is nearer to G(w_z) than the pivot is", by_alpha[30.0] - by_alpha[0.0])
        )
    means = (
        drift.assign(tuned=drift["tuned_alpha"].map(label))
        .pivot_table(index="image_id", columns=["where", "tuned"], values="lpips")
        .dropna(axis=1, how="all")
    )

    def difference(where: str, a: str, b: str) -> pd.Series | None:
        return means[where, a] - means[where, b] if {(where, a), (where, b)} <= set(means.columns) else None

    for where, place in (("wz", "at w_z"), ("interpolated", "along the path")):
        for alpha in ("15", "30", "60"):
            if (change := difference(where, alpha, "off")) is not None:
                found.append(paired(f"tuning with alpha {alpha} drifts less {place} than without", change))
    for other in ("15", "60"):
        if (change := difference("wz", "30", other)) is not None:
            found.append(paired(f"at w_z, alpha 30 drifts less than alpha {other}", change))
    if (change := difference("target", "off", "30")) is not None:
        found.append(paired("without the regulariser the target is drawn better than with alpha 30", change))
    return found
