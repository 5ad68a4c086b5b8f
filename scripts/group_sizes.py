"""One tuned generator for several images: quality, drift, time and bytes against the number of images that share it.

    python scripts/group_sizes.py

Pivots are searched once, and generators tuned at them for each image alone, for every two neighbours, and so on. Leaves
group_sizes.md (medians), group_sizes.png and group_sizes.parquet (one row per image and size) in the output folder. The
same command again does what is missing: what is found is kept by settings, data set and generator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from studies import decimals, markdown, parser, settings_of

from flows.errors import one_sentence
from pti_core.datasets import inputs_digest, scan
from pti_core.encoder.files import encoder_for
from pti_core.engine import Engine
from pti_core.generators.checkpoints import load_generator
from pti_core.machine.device import best_device
from pti_core.presets import configure
from pti_core.progress import Progress
from pti_core.studies.quality import ALPHA
from pti_core.studies.retuning import by_group_size, kept_pivots, load_targets

SIZES = (1, 2, 4, 8, 16, 32)
COLUMNS = {
    "lpips": ("LPIPS", decimals(4)),
    "psnr": ("PSNR dB", decimals(2)),
    "drift_w_r": ("drift at w_r", decimals(4)),
    "drift_w_z": ("drift at w_z", decimals(4)),
    "steps": ("steps", decimals(0)),
    "seconds": ("s per image", decimals(1)),
    "delta_bytes": ("delta MiB per image", decimals(2, 2**20)),
}
INK, SECOND = "#2563eb", "#d97706"


def band(axes: Axes, rows: pd.DataFrame, column: str, label: str, colour: str) -> None:
    """A line of medians over the images, and a band from the lower to the upper quartile."""
    by = rows.groupby("group_size")[column]
    middle = by.median()
    axes.fill_between(middle.index, by.quantile(0.25), by.quantile(0.75), color=colour, alpha=0.15, linewidth=0)
    axes.plot(middle.index, middle, color=colour, marker="o", markersize=5, label=label)


def plot(rows: pd.DataFrame) -> Figure:
    """Distance to the target, drift, and what is stored, against the size of the group."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    target, drift, stored = figure.subplots(1, 3)
    band(target, rows, "lpips", "", INK)
    target.set_title("distance to the target (LPIPS)", fontsize=10)
    band(drift, rows, "drift_w_r", "w_r", INK)
    band(drift, rows, "drift_w_z", "w_z", SECOND)
    drift.legend(frameon=False)
    drift.set_title("drift: old against new generator (LPIPS)", fontsize=10)
    size = rows.groupby("group_size")["delta_bytes"].mean() / 2**20
    bars = stored.bar([str(n) for n in size.index], size, color=INK, width=0.6)
    stored.bar_label(bars, [f"{value:.2g}" for value in size], fontsize=8, padding=2)
    stored.set_title("weight delta, MiB per image", fontsize=10)
    for axes in (target, drift):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(rows["group_size"].unique()), [str(n) for n in sorted(rows["group_size"].unique())])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.margins(x=0.12)
    for axes in (target, drift, stored):
        axes.set_xlabel("images that share a generator")
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{rows['image_id'].nunique()} images, the same pivots (line: median, band: quartiles)", fontsize=11
    )
    return figure


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def of_size(size: int, images: int) -> Callable[[int], None]:
    """Progress of the tuning in groups."""
    return lambda done: say(f"groups of {size}: {done} of {images} images tuned")


def main() -> None:
    """Parse the arguments, search pivots, tune in groups of each size, write."""
    arguments = parser(__doc__, "benchmarks/faces64.zip", "out/group_sizes")
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the groups")
    arguments.set_defaults(limit=32)
    args = arguments.parse_args()
    config = configure(args.preset, {"measure.alphas": [ALPHA], **settings_of(args)})
    loaded, listing = load_generator(args.generator), scan(args.images, args.limit)
    encoder = encoder_for(loaded, config.pivot.start)
    start = (encoder.encoder, encoder.sha256) if encoder is not None else (None, None)
    engine = Engine(loaded.generator, config, best_device(), start[0])
    digest = config.digest(generator=loaded.sha256, inputs=inputs_digest(listing), encoder=start[1])
    folder = Path(args.output)
    kept = folder / digest[:12]
    kept.mkdir(parents=True, exist_ok=True)
    targets, last = load_targets(args.images, engine.generator.img_resolution, config, args.limit), [0.0]

    def searching(now: Progress) -> None:
        if (share := now.share * len(targets)) >= last[0] + 0.5:
            last[0] = share
            say(f"pivots: step {now.step} of {now.steps}, {now.images} images at once")

    pivots = kept_pivots(kept / "pivots.pt", engine, targets, searching)
    parts = []
    for size in [size for size in sorted(set(args.sizes)) if size <= len(targets)]:
        path = kept / f"size-{size}.parquet"
        if not path.exists():
            by_group_size(engine, pivots, size, ALPHA, of_size(size, len(targets))).to_parquet(path)
        parts.append(pd.read_parquet(path))
    rows = pd.concat(parts, ignore_index=True)
    rows.to_parquet(folder / "group_sizes.parquet")
    medians = rows.groupby("group_size")[list(COLUMNS)].median().rename_axis("images a generator")
    table = markdown(medians, COLUMNS)
    (folder / "group_sizes.md").write_text(table + "\n")
    plot(rows).savefig(folder / "group_sizes.png", dpi=130)
    print(table)
    say(f"medians of {len(targets)} images; plot {folder / 'group_sizes.png'}")


if __name__ == "__main__":
    with one_sentence():
        main()
