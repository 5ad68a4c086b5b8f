"""Distortion against editability of W, W+, pivotal tuning without locality, and pivotal tuning: a table and a plot.

    python scripts/tradeoff.py demo --output out/tradeoff

Leaves tradeoff.png, tradeoff.csv (medians) and tradeoff.parquet (one row per image, method, direction and strength)
in the output folder, beside the tables of the three runs that it makes. The same command again does what is missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import wilcoxon
from studies import decimals, markdown, parser, progress, settings_of

from flows.errors import one_sentence
from pti_core.studies.comparison import WAYS, invert
from pti_core.studies.tradeoff import compare, summary

COLOURS = {"W": "#2563eb", "W+": "#dc2626", "PTI without locality": "#f59e0b", "PTI": "#059669"}
AXES = {"magnitude": "change of the attribute, 1 as asked", "correlation": "correlation with the edit in W"}


def plot(rows: pd.DataFrame, images: int) -> Figure:
    """Distortion to the right, editability upwards; a point per image, large ones are medians."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    each = rows.groupby(["method", "image_id"], as_index=False)[["distortion", *AXES]].median()
    medians = summary(rows)
    for axes, (measure, label) in zip(figure.subplots(1, 2), AXES.items(), strict=True):
        for method, colour in COLOURS.items():
            points = each[each["method"] == method]
            axes.scatter(points["distortion"], points[measure], s=14, color=colour, alpha=0.35, linewidths=0)
            x, y = medians.loc[method, "distortion"], medians.loc[method, measure]
            axes.scatter(x, y, s=130, color=colour, edgecolors="white", zorder=3, label=method)
        axes.set_xlabel("distortion (LPIPS to the target)")
        axes.set_ylabel(f"editability: {label}")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.suptitle(f"Better is up and to the left ({images} images; large: medians)", fontsize=11)
    return figure


def by_direction(rows: pd.DataFrame) -> str:
    """Medians of the magnitude, a column a direction, as Markdown."""
    medians = rows.pivot_table(index="method", columns="direction", values="magnitude", aggfunc="median")
    medians = medians.reindex(list(COLOURS)).rename_axis("magnitude along")
    return markdown(medians, {name: (str(name), decimals(3)) for name in medians.columns})


def wins(rows: pd.DataFrame) -> str:
    """On how many images pivotal tuning edits better than the others, and whether chance could have done it."""
    each = rows.groupby(["image_id", "method"])[list(AXES)].median().unstack("method")
    lines = []
    for measure in AXES:
        for other in ("W+", "PTI without locality"):
            pairs = each[measure][["PTI", other]].dropna()
            better = int((pairs["PTI"] > pairs[other]).sum())
            p = wilcoxon(pairs["PTI"], pairs[other]).pvalue
            lines.append(f"{measure}: PTI above {other} on {better} of {len(pairs)} images (Wilcoxon, p = {p:.2g})")
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, invert, compare, write."""
    arguments = parser(__doc__, "demo", "out/tradeoff")
    arguments.add_argument("--direction", action="append", metavar="SOURCE", help="default: pca:0, pca:1, pca:2")
    arguments.add_argument("--strength", action="append", type=float, help="default: -2 and 2")
    arguments.add_argument("--samples", type=int, default=1500, help="of the generator, to learn the attributes from")
    args = arguments.parse_args()
    runs = invert(
        WAYS, args.images, args.output, args.generator, args.preset, settings_of(args), args.limit, progress()
    )
    print("editing", file=sys.stderr, flush=True)
    directions = args.direction or ["pca:0", "pca:1", "pca:2"]
    rows, r2 = compare(runs, directions, args.strength or [-2.0, 2.0], args.samples)
    folder = Path(args.output)
    rows.to_parquet(folder / "tradeoff.parquet")
    medians = summary(rows)
    medians.to_csv(folder / "tradeoff.csv")
    plot(rows, rows["image_id"].nunique()).savefig(folder / "tradeoff.png", dpi=130)
    print(markdown(medians, {name: (name, decimals(3)) for name in medians.columns}))
    print(by_direction(rows))
    print(wins(rows))
    print("attributes seen with an R2 of " + ", ".join(f"{name} {value:.2f}" for name, value in r2.items()))
    print(f"plot  {folder / 'tradeoff.png'}")


if __name__ == "__main__":
    with one_sentence():
        main()
