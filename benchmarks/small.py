"""Has the engine become slow, or worse? Two faces, a minute or two; exits with a sentence where it has.

    python -m benchmarks.small

Three sides as in `benchmarks.bench`: the plain loop and the engine with the same few steps of `paper`, and the engine
with `fast` as it is, which is what most people run. Ratios and measures of pictures only, so that it can run on any
machine, and with room enough that only a large loss fails. By two cores of a CPU: the engine does an image a core, and
two images are too few for more, which the plain loop would use.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import pandas as pd

from benchmarks.bench import add_common, markdown, run_side, summary
from flows.errors import one_sentence
from pti_core.presets import configure

PLAIN, ENGINE, FAST = "plain loop", "engine", "engine, fast"
CORES = 2
FEW: dict[str, Any] = {
    "pivot.steps": 20,
    "pivot.w_samples": 500,
    "tuning.steps": 16,
    "tuning.stop_lpips": 0.0,
    "locality.interval": 1,
    "codec": "fp16",  # what `adaptive` takes would be a large part of so few steps
}

STEP_SPEED = 0.8
"""Images an hour of the engine by the plain loop's, with the same steps: below this it fails."""

STEP_LPIPS = 1.15
"""Final LPIPS of the engine by the plain loop's, with the same steps."""

FAST_SPEED = 6.0
"""Images an hour of `fast` by the plain loop's, whose time is reckoned for all of its steps; 10 to 12 were measured."""

FAST_MOST = {"LPIPS": 0.008, "drift w_r": 0.04, "drift w_z": 0.02, "share of fp32": 0.025}
"""What `fast` may end at; the plain loop ends at an LPIPS of 0.0041 and drifts of 0.017 and 0.020 (docs/speed.md)."""


def losses(table: pd.DataFrame) -> list[str]:
    """What is much worse in the table of the three sides than it was, a sentence each."""
    found = []
    paper = configure("paper")
    whole = (paper.pivot.steps + paper.tuning.steps) / (FEW["pivot.steps"] + FEW["tuning.steps"])
    speeds = {name: table.loc[name, "images an hour"] / table.loc[PLAIN, "images an hour"] for name in table.index}
    if speeds[ENGINE] < STEP_SPEED:
        found.append(
            f"with the same steps the engine does {speeds[ENGINE]:.2f} times the plain loop's images an hour; "
            f"at least {STEP_SPEED} expected"
        )
    if speeds[FAST] * whole < FAST_SPEED:
        found.append(
            f"preset fast does {speeds[FAST] * whole:.1f} times the plain loop's images an hour; "
            f"at least {FAST_SPEED} expected"
        )
    quality = table.loc[ENGINE, "LPIPS"] / table.loc[PLAIN, "LPIPS"]
    if not quality <= STEP_LPIPS:
        found.append(
            f"with the same steps the engine ends at {quality:.2f} times the plain loop's LPIPS; "
            f"at most {STEP_LPIPS} expected"
        )
    found += [
        f"preset fast ends at {column} {table.loc[FAST, column]:.4f}; at most {most} expected"
        for column, most in FAST_MOST.items()
        if not table.loc[FAST, column] <= most
    ]
    return found


def main() -> None:
    """Run the three sides, print their table, fail where one is much worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.set_defaults(limit=CORES, device="cpu")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(CORES), "PTI_CORES": str(CORES)}  # of the sides' processes
    table = summary(
        {
            PLAIN: run_side("plain", "paper", args, FEW),
            ENGINE: run_side("engine", "paper", args, FEW),
            FAST: run_side("engine", "fast", args, {"precision": "fp32"}),
        }
    )
    print(markdown(table))
    if found := losses(table):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    with one_sentence():
        main()
