"""Try settings one after the other on a few images: a Markdown table of medians, to choose a preset's numbers by.

    python scripts/sweep.py IMAGES --generator mobile-ffhq --preset mobile \
        --vary pivot.lr=0.03,0.05,0.1 --vary tuning.lr=3e-4,1e-3 --out out/sweep.md

Each value replaces the preset's alone, all else stays. Pivots are searched once for all variations of the tuning.
Images of different variations are not done at the same time, so that the seconds are comparable.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pti_core.config import RunConfig
from pti_core.datasets import read_bytes, scan
from pti_core.engine import Delta, Engine, Failure, Inversion, Target, _Found, _Owner
from pti_core.generators.checkpoints import load_generator
from pti_core.images import decode, fit, to_float
from pti_core.measure import measure_locality
from pti_core.parallel import in_parallel
from pti_core.presets import configure
from pti_core.progress import WorkCounter

HEADINGS = "| setting | pivot LPIPS | MSE | tuned LPIPS | MSE | PSNR gain dB | drift at w_r | s pivot | s tuning |\n"


def load(images: str, resolution: int, config: RunConfig) -> list[Target]:
    """The images of a data set as targets."""
    targets = []
    for entry in scan(images).to_pylist():
        name = entry["image_id"]
        pixels = fit(decode(read_bytes(entry["uri"]), name, config.image), resolution, name, config.image)
        targets.append(Target(name, name, torch.from_numpy(to_float(pixels))))
    return targets


def pivots_of(engine: Engine, targets: Sequence[Target]) -> list[_Found]:
    """Their pivots."""
    work = partial(engine._pivots, WorkCounter(engine.config, len(targets), None))
    found = [one for part in in_parallel(work, [[t] for t in targets], engine.device) for one in part]
    failed = [one for one in found if isinstance(one, Failure)]
    if failed:
        raise RuntimeError(f"{failed[0].image_id}: {failed[0].message}")
    return [one for one in found if not isinstance(one, Failure)]


def drifts(engine: Engine, inversion: Inversion, delta: Delta) -> list[float]:
    """LPIPS between old and new generator at points w_r around one pivot."""
    ws = inversion.w[None].to(engine.device).expand(-1, engine.generator.num_ws, -1)
    tuned = engine.stored_generator(delta.tensors)
    rows = measure_locality(
        engine.generator, tuned, ws, inversion.image_id, engine.config.measure, engine.lpips, batch=engine.at_once
    )
    return [row.lpips for row in rows if row.where == "interpolated"]


def row(label: str, engine: Engine, found: Sequence[_Found]) -> str:
    """Tune at these pivots; the line of the table."""
    start = time.perf_counter()
    work = partial(engine._tune, WorkCounter(engine.config, len(found), None))
    jobs: list[list[_Owner]] = [[(one.target.image_id, [one])] for one in found]
    done = list(in_parallel(work, jobs, engine.device))
    seconds = time.perf_counter() - start
    inversions = [results[0] for results in done]
    drift = statistics.median(value for results in done for value in drifts(engine, *results))

    def median(stage: str, measure: str) -> float:
        return statistics.median(i.measures[stage][measure] for i in inversions)  # type: ignore[union-attr, index]

    gain = median("tuned", "psnr") - median("pivot", "psnr")
    cells = [f"{median(stage, measure):.4f}" for stage in ("pivot", "tuned") for measure in ("lpips", "mse")]
    pivot_seconds = statistics.median(one.seconds for one in found)
    cells += [f"{gain:.2f}", f"{drift:.4f}", f"{pivot_seconds:.1f}", f"{seconds / len(found):.1f}"]
    return f"| {label} | {' | '.join(cells)} |"


def main() -> None:
    """Parse the arguments and go through the variations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for all variations")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=VALUE,VALUE", help="one at a time")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    fixed: dict[str, Any] = {k: json.loads(v) for k, v in (s.split("=", 1) for s in args.set)}
    base = Engine(load_generator(args.generator).generator, configure(args.preset, fixed))
    targets = load(args.images, base.generator.img_resolution, base.config)
    lines: list[str] = []

    def add(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")

    def engine(settings: dict[str, Any]) -> Engine:
        varied = Engine(base.generator, configure(args.preset, fixed | settings))
        varied.__dict__["statistics"] = base.statistics
        return varied

    add(HEADINGS + "| --- |" + " ---: |" * 8)
    find: Callable[[Engine], list[_Found]] = partial(pivots_of, targets=targets)
    pivots = find(base)
    add(row(args.preset, base, pivots))
    for text in args.vary:
        name, values = text.split("=", 1)
        for value in values.split(","):
            varied = engine({name: json.loads(value)})
            add(row(f"{name} {value}", varied, find(varied) if name.startswith("pivot.") else pivots))


if __name__ == "__main__":
    main()
