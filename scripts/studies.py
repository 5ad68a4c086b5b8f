"""What the scripts that compare ways to invert a data set share: arguments, progress, tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from flows.arguments import set_option
from pti_core.defaults import DEFAULT_GENERATOR
from pti_core.shard.shard_progress import OnShardProgress, ShardProgress


def parser(doc: str | None, images: str, output: str) -> argparse.ArgumentParser:
    """The arguments of all of them; `images` and `output` are the defaults."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("images", nargs="?", default=images, help="any data set that `pti run` takes")
    found.add_argument("--output", default=output, help="a local folder")
    found.add_argument("--generator", default=DEFAULT_GENERATOR)
    found.add_argument("--preset", default="demo")
    found.add_argument("--limit", type=int, help="only the first images")
    found.add_argument(
        "--set", type=set_option, action="append", default=[], metavar="NAME=VALUE", help="a setting of all runs"
    )
    return found


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `--set` was given: values are JSON, or a word."""
    return dict(args.set)


def progress() -> Callable[[str], OnShardProgress]:
    """Prints a line for each image that a run has done."""
    last: dict[tuple[str, int], float] = {}

    def of_run(run: str) -> OnShardProgress:
        def say(now: ShardProgress) -> None:
            if now.done >= last.get((run, now.shard), -1) + 1 or now.done == now.total:
                last[run, now.shard] = now.done
                print(
                    f"run {run}, shard {now.shard}: {now.done:.0f} of {now.total} images", file=sys.stderr, flush=True
                )

        return say

    return of_run


def markdown(frame: pd.DataFrame, columns: Mapping[str, tuple[str, Callable[[float], str]]]) -> str:
    """A table as Markdown: its index, and of each column a heading and how its values are written."""
    headings = " | ".join(heading for heading, _ in columns.values())
    lines = [f"| {frame.index.name} | {headings} |", "| --- |" + " ---: |" * len(columns)]
    for name, row in frame.iterrows():
        cells = ["" if pd.isna(row[column]) else text(row[column]) for column, (_, text) in columns.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def decimals(count: int, unit: float = 1.0) -> Callable[[float], str]:
    """Writes a value, divided by `unit`, with so many decimals."""
    return lambda value: f"{value / unit:.{count}f}"
