"""Quality of W, W+, pivotal tuning without locality, pivotal tuning, and one tuned generator for a group of images.

    python scripts/quality.py demo
    python scripts/quality.py benchmarks/faces64.zip

Prints medians over the images as a Markdown table: target against the image that the store gives (LPIPS, MSE, PSNR,
SSIM); drift, the LPIPS of old and new generator at w_r with alpha 30 and at w_z; seconds per image; and what it takes
in the store. Leaves quality.md, quality.csv (medians) and quality.parquet (one row per image and method) in the output
folder, out/comparison/<name of the data set>, beside the tables of the five runs that it makes. The same command again
does what is missing, and scripts/tradeoff.py with the same output uses three of the runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from studies import decimals, markdown, parser, progress, settings_of

from flows.errors import one_sentence
from pti_core.studies.comparison import invert
from pti_core.studies.quality import IN_GROUPS, measured, summary, ways

COLUMNS = {
    "lpips": ("LPIPS", decimals(4)),
    "mse": ("MSE", decimals(4)),
    "psnr": ("PSNR dB", decimals(2)),
    "ssim": ("SSIM", decimals(3)),
    "drift_w_r": ("drift at w_r", decimals(4)),
    "drift_w_z": ("drift at w_z", decimals(4)),
    "seconds": ("s per image", decimals(1)),
    "pivot_bytes": ("pivot, noise KiB", decimals(0, 2**10)),
    "delta_bytes": ("delta MiB", decimals(2, 2**20)),
}


def main() -> None:
    """Parse the arguments, invert, measure, write."""
    arguments = parser(__doc__, "demo", "out/comparison/<name of the data set>")
    arguments.add_argument("--group", type=int, default=4, help="images that share a generator in the last line")
    args = arguments.parse_args()
    if args.output == arguments.get_default("output"):
        args.output = f"out/comparison/{Path(args.images).stem}"
    runs = invert(
        ways(args.group),
        args.images,
        args.output,
        args.generator,
        args.preset,
        settings_of(args),
        args.limit,
        progress(),
    )
    rows, folder = measured(runs), Path(args.output)
    rows.to_parquet(folder / "quality.parquet")
    medians = summary(rows).rename(
        index={name: name.replace("groups", f"groups of {args.group}") for name in IN_GROUPS}
    )
    medians.to_csv(folder / "quality.csv")
    table = markdown(medians, COLUMNS)
    (folder / "quality.md").write_text(table + "\n")
    print(table)
    print(f"medians of {rows['image_id'].nunique()} images; {folder / 'quality.md'}", file=sys.stderr)


if __name__ == "__main__":
    with one_sentence():
        main()
