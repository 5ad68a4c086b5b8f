"""The engine beside the plain method: same generator, images, seeds and machine, one after the other.

    python -m benchmarks.bench                       # twelve faces: a table, a plot, all rows
    python -m benchmarks.bench --again               # the same of the engine alone, beside the last plain loop
    python -m benchmarks.bench --no-plain            # of the engine alone
    python -m benchmarks.bench --generator random-1024 --limit 2    # speed at 1024 (the faces are enlarged), for a GPU

Each side runs in a process of its own (`benchmarks.side`) on the whole machine. Measure on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from flows.arguments import set_option
from flows.errors import one_sentence
from pti_core.generators.half import multiplies_bf16
from pti_core.machine.device import best_device

PLAIN = "plain loop"
PAPER = f"{PLAIN}, paper"
NAMED = 90  # characters of a kernel's name
COLOURS = ("#6b7280", "#2563eb", "#059669", "#f59e0b", "#dc2626")


def run_side(side: str, preset: str, args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Rows, peak memory, the generator's size, and what it was measured on, of one side in a process of its own."""
    said = {"side": side, "preset": preset, "settings": settings, "images": args.images, "limit": args.limit}
    said |= {"generator": args.generator, "device": args.device}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "benchmarks.side", json.dumps(said), str(out)]
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join([root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
        quiet = {"KINETO_LOG_LEVEL": "99"}  # torch's profiler would say when it begins and ends
        status = subprocess.run(command, env=quiet | os.environ | {"PYTHONPATH": path}).returncode
        if status:  # the other process has said why, unless it was killed
            sys.exit(f"error: the side {side!r} was ended by signal {-status}" if status < 0 else status)
        found: dict[str, Any] = json.loads(out.read_text())
        return found | {"about": about(args)}


def summary(sides: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Medians over the images, a row a side; `times` are of the plain loop's images an hour, empty without it."""
    lines = []
    for name, found in sides.items():
        rows = pd.DataFrame(found["rows"])
        median = rows.median(numeric_only=True)
        lines.append(
            {
                "side": name,
                "steps": median["steps"],
                "s per image": median["seconds"],
                "images an hour": 3600 / rows["seconds"].mean(),
                "LPIPS": median["lpips"],
                "PSNR dB": median["psnr"],
                "drift w_r": median["drift_wr"],
                "drift w_z": median["drift_wz"],
                "MB per image": median["bytes"] / 1e6,
                "share of fp32": median["bytes"] / found["fp32_bytes"],
                "peak GB": found["peak"] / 1e9,
                "matrix work": found.get("matrix", math.nan),
                "GPU busy": found.get("busy", math.nan),
                "of a part": found.get("part_busy", math.nan),
                "at once": at_once(found),
            }
        )
    table = pd.DataFrame(lines).set_index("side")
    plain = [name for name in sides if name.startswith(PLAIN)]
    table.insert(2, "times", table["images an hour"] / (table.loc[plain[0], "images an hour"] if plain else math.nan))
    of_a_gpu = {"at once": table["at once"].any()} | {
        name: table[name].notna().any() for name in ("GPU busy", "of a part")
    }
    return table.drop(columns=[name for name, told in of_a_gpu.items() if not told])


def at_once(found: dict[str, Any]) -> str:
    """How many images a side searched, and tuned, together; empty where it was one."""
    together = found.get("at_once", 1), found.get("stack", 1)
    return "" if together == (1, 1) else "{}, {}".format(*together)


FORMATS = {
    "steps": "{:.0f}",
    "s per image": "{:.1f}",
    "times": "{:.1f} x",
    "images an hour": "{:.0f}",
    "LPIPS": "{:.4f}",
    "PSNR dB": "{:.2f}",
    "drift w_r": "{:.4f}",
    "drift w_z": "{:.4f}",
    "MB per image": "{:.2f}",
    "share of fp32": "{:.1%}",
    "peak GB": "{:.2f}",
    "matrix work": "{:.0%}",
    "GPU busy": "{:.0%}",
    "of a part": "{:.0%}",
    "at once": "{}",
}


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    lines = [f"| side | {' | '.join(table.columns)} |", "| --- |" + " ---: |" * len(table.columns)]
    for side, row in table.iterrows():
        cells = ["" if value != value else FORMATS[name].format(value) for name, value in row.items()]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kernels(sides: dict[str, dict[str, Any]]) -> str:
    """The kernels of a GPU that take most of each side's steps, as Markdown; nothing of a CPU."""
    text = ""
    for side, found in sides.items():
        if not math.isnan(found.get("busy", math.nan)):
            text += f"\n\n| {side}: kernels | of the time |\n| --- | ---: |"
            text += "".join(f"\n| {name.replace('|', ' ')[:NAMED]} | {share:.1%} |" for name, share in found["kernels"])
    return text


def plot(sides: dict[str, dict[str, Any]]) -> Figure:
    """LPIPS against an image's share of the machine's time; thin lines are images, thick ends medians."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for (name, found), colour in zip(sides.items(), cycle(COLOURS), strict=False):
        for row in (row for row in found["rows"] if row["curve"]):
            seconds, values = zip(*row["curve"], strict=True)
            axes.plot(seconds, values, color=colour, alpha=0.3, linewidth=1)
        rows = pd.DataFrame(found["rows"])
        x, y = rows["seconds"].median(), rows["lpips"].median()
        axes.scatter(x, y, s=110, color=colour, edgecolors="white", zorder=3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds of the machine for one image")
    axes.set_ylabel("LPIPS to the target")
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    return figure


def machine(device: str) -> str:
    """What it was measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "no GPU"
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{cores} cores ({cpu}), {gpu}, torch {torch.__version__}"


def about(args: argparse.Namespace) -> dict[str, str]:
    """What sides must have in common to be compared."""
    images = args.images if args.limit is None else f"the first {args.limit} of {args.images}"
    return {"generator": args.generator, "images": images, "machine": machine(args.device)}


def kept_from(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The plain loop's side of the last table. ValueError where it is not of this generator and machine."""
    if not path.exists():
        raise ValueError(f"{path} does not exist, there is no plain loop to keep; leave out --again")
    kept: dict[str, Any] | None = json.loads(path.read_text()).get(PAPER)
    if kept is None:
        raise ValueError(f"{path} has no plain loop to keep; leave out --again")
    if kept.get("about") != about(args):
        was = "; ".join(kept.get("about", {}).values()) or "something unknown"
        now = "; ".join(about(args).values())
        raise ValueError(f"the plain loop of {path} is of {was}, and not of {now}; leave out --again")
    return kept


def write(sides: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """Table, plot and all rows of what has been measured; the table."""
    args.output.mkdir(parents=True, exist_ok=True)
    images = len(next(iter(sides.values()))["rows"])
    table = f"{machine(args.device)}, medians of {images} images\n\n{markdown(summary(sides))}{kernels(sides)}"
    (args.output / "bench.md").write_text(table + "\n")
    (args.output / "bench.json").write_text(json.dumps(sides))
    plot(sides).savefig(args.output / "bench.png", dpi=130)
    return table


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of all comparisons."""
    parser.add_argument("--images", default="demo")
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("--device", help="default: as a run chooses it")


def main() -> None:
    """Parse the arguments, run the sides, write the table, the plot and all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--preset", action="append", help="of the engine; default: fast and demo")
    parser.add_argument(
        "--precision", action="append", help="of the engine; default: fp32, half where it pays, bf16 on a GPU"
    )
    parser.add_argument(
        "--set", type=set_option, action="append", default=[], metavar="NAME=VALUE", help="of the engine"
    )
    parser.add_argument("--output", type=Path, help="default: out/bench, or out/engine without the plain loop")
    plain = parser.add_mutually_exclusive_group()
    plain.add_argument("--again", action="store_true", help="keep the plain loop's rows of the last table there")
    plain.add_argument("--no-plain", action="store_true", help="leave out the plain loop, which takes most of the time")
    args = parser.parse_args()
    args.device = args.device or best_device()
    args.output = args.output or Path("out/engine" if args.no_plain else "out/bench")
    settings, last = dict(args.set), args.output / "bench.json"
    sides: dict[str, dict[str, Any]] = {}
    if args.again:
        sides[PAPER] = kept_from(last, args)
    elif not args.no_plain:
        sides[PAPER] = run_side("plain", "paper", args, {})
        write(sides, args)  # after each side: what has been measured stays, whatever ends the next ones
    device = torch.device(args.device)
    half = ["half", "bf16"] if device.type == "cuda" else ["half"] if multiplies_bf16(device) else []
    for preset in args.preset or ["fast", "demo"]:
        for precision in args.precision or [*half, "fp32"]:
            name = f"engine, {preset}, {precision}"
            sides[name] = run_side("engine", preset, args, settings | {"precision": precision})
            if len({tuple(row["image_id"] for row in side["rows"]) for side in sides.values()}) > 1:
                raise ValueError(f"the plain loop of {last} is of other images; leave out --again")
            print(f"{name} is done", file=sys.stderr, flush=True)
            table = write(sides, args)
    print(f"{table}\n\nplot  {args.output / 'bench.png'}")


if __name__ == "__main__":
    with one_sentence():
        main()
