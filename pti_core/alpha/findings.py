"""What the alpha study found: medians, paired measures with bootstrap confidence intervals, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap, norm
from scipy.stats import t as student

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 9999
MIN_IMAGES: Final = 6
"""Of fewer images no resampling gives an interval that holds what it says: the mean of all lies outside of all values
in one case of 2^(n-1)."""

DIFFERENCE: Final = "difference of LPIPS"
RATIO: Final = "ratio of LPIPS"
QUARTER, THREE_QUARTERS = 0.25, 0.75
"""What "almost w_z" and "a compromise" mean here: what is left of the pivot's LPIPS to w_z."""


@dataclass(frozen=True)
class Finding:
    """A statement of the paper against the data: a measure paired by image, its interval, and a verdict.

    The statement holds where the mean lies between `above` and `below`.
    """

    statement: str
    measure: str  # what `mean` is the mean of: `DIFFERENCE` or `RATIO`
    mean: float  # over images
    low: float  # of the confidence interval, nan where there is none
    high: float
    above: float  # -inf: no bound
    below: float
    images: int
    verdict: str  # "borne out", "contradicted" or "not decided"

    @property
    def claim(self) -> str:
        """Where the mean has to lie."""
        return f"below {self.below:g}" if math.isinf(self.above) else f"between {self.above:g} and {self.below:g}"

    @property
    def figures(self) -> str:
        """Mean and interval."""
        form = "+.4f" if self.measure == DIFFERENCE else ".3f"
        if not self.images:
            return "not measured"
        few = f"without an interval, which takes {MIN_IMAGES} images"
        return f"{self.mean:{form}} {few if math.isnan(self.low) else f'[{self.low:{form}}, {self.high:{form}}]'}"

    def sentence(self) -> str:
        """The whole finding in one line."""
        sure = "" if math.isnan(self.low) else f", {CONFIDENCE:.0%}"
        return f"{self.statement}: {self.verdict} ({self.images} images: mean {self.measure} {self.figures}{sure})"


def paired(
    statement: str, values: pd.Series, measure: str = DIFFERENCE, above: float = -math.inf, below: float = 0.0
) -> Finding:
    """A statement that holds where the mean of values (one an image) lies between `above` and `below`."""
    numbers = values.to_numpy(dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    mean = float(numbers.mean()) if len(numbers) else math.nan
    low = high = math.nan
    if len(numbers) >= MIN_IMAGES and np.ptp(numbers) == 0:
        low = high = mean
    elif len(numbers) >= MIN_IMAGES:
        low, high = interval(numbers)
    holds, fails = above < low and high < below, high < above or low > below
    verdict = "borne out" if holds else "contradicted" if fails else "not decided"
    return Finding(statement, measure, mean, low, high, above, below, len(numbers), verdict)


def interval(numbers: NDArray[np.float64]) -> tuple[float, float]:
    """The bootstrap's confidence interval of the mean: the expanded percentile interval (Hesterberg 2015, section 5.3).

    Percentiles of resampled means, further out than the confidence says: as far as Student's t and n - 1 in place of n
    ask for. Without that, percentiles and BCa alike hold the mean of six to eight images in 87 % of cases, not in
    95 %. (Of strongly skewed values this one holds 88 to 91 %.)
    """
    n = len(numbers)
    tail = norm.cdf(student.ppf((1 - CONFIDENCE) / 2, n - 1) * math.sqrt(n / (n - 1)))
    found = bootstrap(
        (numbers,), np.mean, confidence_level=1 - 2 * tail, n_resamples=RESAMPLES, method="percentile", random_state=0
    ).confidence_interval
    return float(found.low), float(found.high)


NO_STATEMENT: Final = (
    "These alphas allow no statement: 0, 15, 30, 60 and “off” are what the statements are about; study 30 and “off” at "
    "least, or leave the alphas out to study all."
)


def findings(near: pd.DataFrame, drift: pd.DataFrame) -> list[Finding]:
    """The paper's statements, as far as the study's alphas allow."""
    return [*_of_nearness(near), *_of_drift(drift)]


def _of_nearness(near: pd.DataFrame) -> list[Finding]:
    """What is left at w_r of the LPIPS between pivot and w_z (alpha 0): "60 is almost w_z, 30 is a compromise"."""
    found, means = [], near.pivot_table(index="image_id", columns="alpha", values="lpips")
    if {0.0, 60.0} <= set(means.columns):
        text = "at alpha 60, G(w_r) is almost G(w_z): at most a quarter of the pivot's LPIPS to it"
        found.append(paired(text, means[60.0] / means[0.0], RATIO, below=QUARTER))
    if {0.0, 30.0} <= set(means.columns):
        text = "at alpha 30, G(w_r) is half way: a quarter to three quarters of the pivot's LPIPS to G(w_z)"
        found.append(paired(text, means[30.0] / means[0.0], RATIO, QUARTER, THREE_QUARTERS))
    if {30.0, 60.0} <= set(means.columns):
        found.append(paired("G(w_r) is nearer to G(w_z) at alpha 60 than at 30", means[60.0] - means[30.0]))
    return found


def _of_drift(drift: pd.DataFrame) -> list[Finding]:
    """Old against new generator, tuned with one alpha or another or without; up to w_z, not beyond it."""
    found, within = [], drift[drift["t"] <= 1]
    means = (
        within.assign(tuned=within["tuned_alpha"].map(label))
        .pivot_table(index="image_id", columns=["where", "tuned"], values="lpips")
        .dropna(axis=1, how="all")
    )

    def difference(where: str, a: str, b: str) -> pd.Series | None:
        return means[where, a] - means[where, b] if {(where, a), (where, b)} <= set(means.columns) else None

    for where, place in (("wz", "at w_z"), ("interpolated", "along the path to w_z")):
        for alpha in ("15", "30", "60"):
            if (change := difference(where, alpha, "off")) is not None:
                found.append(paired(f"tuning with alpha {alpha} drifts less {place} than without", change))
    for other in ("15", "60"):
        if (change := difference("wz", "30", other)) is not None:
            found.append(paired(f"at w_z, alpha 30 drifts less than alpha {other}", change))
    if (change := difference("target", "off", "30")) is not None:
        found.append(paired("without the regulariser the target is drawn better than with alpha 30", change))
    return found


def findings_table(found: Sequence[Finding]) -> pd.DataFrame:
    """A row a finding, its fields as columns; no bound and no interval are empty."""
    columns = list(Finding.__dataclass_fields__)
    return pd.DataFrame([asdict(one) for one in found], columns=columns).replace([-math.inf, math.inf], math.nan)


def nearness_table(near: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles of LPIPS(G(w_r), G(w_z)) and the median t, a row an alpha."""
    groups = near.groupby("alpha")
    table = groups["lpips"].quantile(np.array([0.25, 0.5, 0.75])).unstack()
    table.columns = ["lower quartile", "median LPIPS to w_z", "upper quartile"]
    table.insert(0, "t", groups["t"].median())
    return table


def drift_table(drift: pd.DataFrame) -> pd.DataFrame:
    """Medians of LPIPS, a row a tuning alpha (`off`: none): to the target; old against new up to w_z and at w_z."""
    labelled = drift[drift["t"] <= 1].assign(tuned=drift["tuned_alpha"].map(label))
    order = [label(alpha) for alpha in sorted(drift["tuned_alpha"].dropna().unique())] + ["off"]
    columns = {
        "target": "tuned against target",
        "interpolated": "old against new on the path to w_z",
        "wz": "old against new at w_z",
    }
    table = labelled.pivot_table(index="tuned", columns="where", values="lpips", aggfunc="median")
    table = table.reindex(index=[name for name in order if name in table.index], columns=list(columns))
    return table.rename(columns=columns)


def label(alpha: float) -> str:
    """`30`, or `off` for tuning without the regulariser."""
    return "off" if pd.isna(alpha) else f"{alpha:g}"


def path_curves(drift: pd.DataFrame) -> pd.DataFrame:
    """Median LPIPS of old against new: a row a place on the path, a column a tuning alpha.

    The index has the place's alpha (inf for w_z) and its median t, by which rows are in order: w_z lies at 1.
    """
    there = drift[drift["where"] != "target"]
    there = there.assign(place=there["alpha"].fillna(np.inf), tuned=there["tuned_alpha"].map(label))
    curves = there.pivot_table(index="place", columns="tuned", values="lpips", aggfunc="median")
    at = there.groupby("place")["t"].median().rename("t")
    return curves.set_index(at.reindex(curves.index), append=True).sort_index(level="t")
