"""Try settings one after the other on a few images: a Markdown table of medians, to choose a preset's numbers by.

    python scripts/sweep.py IMAGES --generator mobile-ffhq --preset fast \
        --vary pivot.lr=0.03,0.05,0.1 --vary tuning.lr=3e-4,1e-3 --out out/sweep.md

Each value replaces the preset's alone, all else stays. Pivots are searched once for all variations of the tuning.
Images of different variations are not done at the same time, so that the seconds are comparable.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flows.arguments import set_option
from flows.errors import one_sentence
from pti_core.config import RunConfig
from pti_core.encoder.files import encoder_for
from pti_core.encoder.network import Encoder
from pti_core.engine import Engine
from pti_core.generators.checkpoints import LoadedGenerator, load_generator
from pti_core.metrics import measure
from pti_core.presets import configure
from pti_core.studies.retuning import Found, drifts, find_all_pivots, load_targets, tune_in_groups

HEADINGS = (
    "| setting | pivot LPIPS | MSE | tuned LPIPS | MSE | PSNR gain dB | drift at w_r | w_z | s pivot | s tuning |\n"
    "| --- |" + " ---: |" * 9
)
PIVOT_HEADINGS = "| setting | pivot LPIPS | MSE | s pivot |\n| --- |" + " ---: |" * 3


def pivot_row(label: str, engine: Engine, found: Sequence[Found]) -> str:
    """The line of pivots alone."""
    measured = []
    for one in found:
        with torch.no_grad():
            drawn = engine.generator.synthesis(one.pivot.ws, noise=one.pivot.noise)
        measured += measure(one.target.image[None].to(engine.device), drawn, engine.lpips)
    cells = [f"{statistics.median(float(m[name] or 0) for m in measured):.4f}" for name in ("lpips", "mse")]
    return f"| {label} | {' | '.join([*cells, f'{statistics.median(one.seconds for one in found):.1f}'])} |"


def row(label: str, engine: Engine, found: Sequence[Found]) -> str:
    """Tune at these pivots; the line of the table."""
    start = time.perf_counter()
    done = tune_in_groups(engine, found)
    seconds = time.perf_counter() - start
    inversions = [one for results, _ in done for one in results]
    points = [point for results, delta in done for point in drifts(engine, results, delta)]
    near, far = (statistics.median(p.lpips for p in points if p.where == where) for where in ("interpolated", "wz"))

    def median(stage: str, measure: str) -> float:
        return statistics.median(i.measures[stage][measure] for i in inversions)  # type: ignore[union-attr, index]

    gain = median("tuned", "psnr") - median("pivot", "psnr")
    cells = [f"{median(stage, measure):.4f}" for stage in ("pivot", "tuned") for measure in ("lpips", "mse")]
    pivot_seconds = statistics.median(one.seconds for one in found)
    cells += [f"{gain:.2f}", f"{near:.4f}", f"{far:.4f}", f"{pivot_seconds:.1f}", f"{seconds / len(found):.1f}"]
    return f"| {label} | {' | '.join(cells)} |"


def encoder_of(generator: LoadedGenerator, config: RunConfig) -> Encoder | None:
    """The encoder that a run with this configuration would use."""
    found = encoder_for(generator, config.pivot.start)
    return found.encoder if found is not None else None


def variation(text: str) -> tuple[str, list[str]]:
    """`--vary`: a setting's name and its values."""
    name, _ = set_option(text, "--vary")
    return name, text.partition("=")[2].split(",")


def main() -> None:
    """Parse the arguments and go through the variations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("--set", type=set_option, action="append", default=[], metavar="NAME=VALUE", help="of all")
    parser.add_argument("--vary", type=variation, action="append", default=[], metavar="NAME=VALUE,…", help="in turn")
    parser.add_argument("--pivots-only", action="store_true", help="no tuning: a table of pivots")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    fixed: dict[str, Any] = dict(args.set)
    loaded = load_generator(args.generator)
    config = configure(args.preset, fixed)
    base = Engine(loaded.generator, config, encoder=encoder_of(loaded, config))
    targets = load_targets(args.images, base.generator.img_resolution, base.config, args.limit)
    lines: list[str] = []

    def add(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")

    def engine(settings: dict[str, Any]) -> Engine:
        config = configure(args.preset, fixed | settings)
        varied = Engine(base.generator, config, encoder=encoder_of(loaded, config))
        if config.pivot.w_samples == base.config.pivot.w_samples:
            varied.__dict__["statistics"] = base.statistics  # sampled once
        return varied

    add(PIVOT_HEADINGS if args.pivots_only else HEADINGS)
    line = pivot_row if args.pivots_only else row
    pivots = find_all_pivots(base, targets)
    add(line(args.preset, base, pivots))
    for name, values in args.vary:
        for value in values:
            varied = engine(dict([set_option(f"{name}={value}", "--vary")]))
            found = find_all_pivots(varied, targets) if name.startswith("pivot.") else pivots
            add(line(f"{name} {value}", varied, found))


if __name__ == "__main__":
    with one_sentence():
        main()
