"""Bytes of a stored delta against what its picture loses, for every codec: a Markdown table and a plot.

    python -m benchmarks.codecs                      # inverts the demo's faces first (some minutes on two cores)
    python -m benchmarks.codecs out/fp16             # deltas of a run that was made with --set codec=fp16

The run's fp16 deltas count as what tuning found; each codec encodes them again, and the picture at the stored pivot is
measured as the metrics table does. Bytes are of the payloads, noise maps included; shares are of the generator's
float32 weights with its mapping.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flows.errors import one_sentence
from pti_core import deltas
from pti_core.deltas import fitting, layered, table
from pti_core.freezing.freeze import freeze
from pti_core.generators.base import Generator
from pti_core.images import to_float
from pti_core.machine.device import exact_float32
from pti_core.metrics import measure
from pti_core.pivot import Pivots
from pti_core.presets import configure
from pti_core.runs import Run, engine_for, find_run, load_run, read_stored
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.tables import records

PROMISED = deltas.Promise().lpips
COLOURS = {
    "fp16": "#4c566a",
    "int8": "#4c566a",
    "int4": "#4c566a",
    "svd": "#b48a00",
    "sparse": "#c2553a",
    "adaptive, no picture": "#8a6bb8",
    "adaptive, without components": "#3f8fbf",
    "adaptive": "#1f7a4d",
}
RANKS = 256  # enough for these energies of a pocket generator's delta
Rows = list[deltas.EncodedTensor]


@dataclass
class Case:
    """One image: what tuning found, and what its picture must be compared with."""

    image_id: str
    base: Generator
    tuned: Generator
    delta: dict[str, Tensor]
    image: Tensor  # [1, C, H, W]
    pivots: Pivots  # as a reader of the tables gets them
    noise_bytes: int
    goal: dict[str, float | None]


@dataclass
class Point:
    """A codec's setting over all images."""

    family: str
    setting: str
    bytes: list[int] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)  # loss
    decibels: list[float] = field(default_factory=list)  # loss
    encode: list[float] = field(default_factory=list)  # s
    decode: list[float] = field(default_factory=list)  # s


def demo(folder: str) -> Run:
    """The demo's faces, inverted with fp16 deltas."""
    run = freeze("demo", folder, "pocket-ffhq-128", configure("demo", {"codec": "fp16"}))
    for shard in run.to_do().shards:
        invert_shard(run, shard)
        measure_shard(run, shard)
    return load_run(folder, run.name)


def cases(run: Run, limit: int) -> Iterator[Case]:
    """The images of a run, one after the other."""
    engine = engine_for(run)
    for pivot in records(run.store.read("pivots", run=run.name))[:limit]:
        stored = read_stored(run, engine, pivot)
        pixels = run.read_input(pivot["uri"], pivot["image_id"], engine.generator.img_resolution).pixels
        image = torch.from_numpy(to_float(pixels))[None].to(engine.device)
        old = engine.generator.tunable()
        delta = {name: p - old[name] for name, p in stored.generator.tunable().items()}
        pivots = Pivots(stored.ws, stored.noise, engine.generator.num_ws)
        goal = draw(stored.generator, image, pivots, engine.lpips)
        noise = len(pivot["noise"])
        yield Case(pivot["image_id"], engine.generator, stored.generator, delta, image, pivots, noise, goal)


@torch.no_grad()
def draw(generator: Generator, image: Tensor, pivots: Pivots, lpips: torch.nn.Module) -> dict[str, float | None]:
    """The measures of the picture at a pivot."""
    return measure(image, generator.synthesis(pivots.ws, noise=pivots.noise), lpips)[0]  # type: ignore[arg-type]


def each_tensor(case: Case, codec: str, encoder: Callable[[np.ndarray], tuple[float, bytes]]) -> Rows:
    """Encode tensor by tensor."""
    return [
        deltas.EncodedTensor(name, tuple(value.shape), codec, *encoder(value.cpu().numpy()))
        for name, value in case.delta.items()
    ]


def fixed_step(case: Case, costs: dict[str, Tensor], step: float, max_rank: int) -> Rows:
    """The codec `adaptive` with a given step and rank."""
    rows = []
    weights = fitting.channel_weights([costs[name] for name in case.delta])
    for (name, value), by_channel in zip(case.delta.items(), weights, strict=True):
        whole = layered.Decomposed(value, by_channel, max_rank)
        payload = layered.pack(whole.quantise(step, whole.rank(step))[0])
        rows.append(deltas.EncodedTensor(name, whole.shape, "adaptive", step, payload))
    return rows


def truncated(case: Case, wholes: dict[str, layered.Decomposed], energy: float) -> Rows:
    """The codec `svd` with a given energy."""
    return [
        deltas.EncodedTensor(name, whole.shape, "svd", *table.truncated(whole, energy))
        for name, whole in wholes.items()
    ]


def settings(case: Case, lpips: torch.nn.Module) -> Iterator[tuple[str, str, Callable[[], Rows]]]:
    """Family, setting and encoder of every point of the plot."""
    for codec in ("fp16", "int8", "int4"):
        yield codec, "", lambda codec=codec: deltas.encode(case.delta, codec)
    wholes = {name: layered.Decomposed(value, max_rank=RANKS) for name, value in case.delta.items()}
    for energy in (0.5, 0.8, 0.9):
        yield "svd", f"energy {energy}", lambda e=energy: truncated(case, wholes, e)
    for c in (0.5, 1.0, 2.0):
        yield "sparse", f"step {c} rms", lambda c=c: each_tensor(case, "sparse", lambda v: table.sparse_encode(v, c))
    for c in (0.5, 1.0, 2.0, 3.0):
        yield (
            "adaptive, no picture",
            f"step {c} rms",
            lambda c=c: each_tensor(case, "adaptive", lambda v: table.adaptive_encode(v, c)),
        )
    costs = fitting.importance(case.tuned, case.image, case.pivots, lpips, 1024)  # type: ignore[arg-type]
    for step in (2.5e-6, 5e-6, 1e-5):
        yield "adaptive, without components", f"step {step:g}", lambda s=step: fixed_step(case, costs, s, 0)
    for promise in (
        deltas.Promise(1.25e-4, 0.025),
        deltas.Promise(),
        deltas.Promise(2e-3, 0.4),
        deltas.Promise(8e-3, 1.6),
    ):
        yield (
            "adaptive",
            f"LPIPS + {promise.lpips:g}, PSNR - {promise.decibels:g} dB",
            lambda promise=promise: deltas.fit(
                case.base,
                case.tuned,
                case.image,
                case.pivots,
                lpips,
                promise=promise,  # type: ignore[arg-type]
            ),
        )


def compare(run: Run, limit: int) -> Iterator[list[Point]]:
    """Every setting on the first image, on the first two, and so on."""
    points: dict[tuple[str, str], Point] = {}
    lpips = engine_for(run).lpips
    for case in cases(run, limit):
        for family, setting, encoder in settings(case, lpips):
            point = points.setdefault((family, setting), Point(family, setting))
            start = time.perf_counter()
            rows = encoder()
            point.encode.append(time.perf_counter() - start)
            start = time.perf_counter()
            decoded = deltas.decode(rows, deltas.shapes_of(case.base))
            point.decode.append(time.perf_counter() - start)
            back = copy.deepcopy(case.base)
            deltas.apply(back, decoded)
            found = draw(back, case.image, case.pivots, lpips)
            point.bytes.append(sum(len(row.payload) for row in rows) + case.noise_bytes)
            point.lpips.append((found["lpips"] or 0) - (case.goal["lpips"] or 0))
            point.decibels.append((case.goal["psnr"] or 0) - (found["psnr"] or 0))
        print(f"{case.image_id} done", flush=True)
        yield list(points.values())


def whole_bytes(generator: Generator) -> int:
    """A generator's float32 parameters, mapping included."""
    return 4 * sum(p.numel() for p in generator.parameters())  # type: ignore[attr-defined]


def as_markdown(points: Sequence[Point], whole: int) -> str:
    """The comparison as a table."""
    text = (
        "| codec | setting | KB, image | most | % of fp32 | LPIPS loss | worst | PSNR loss, dB | worst | encode s |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    for p in points:
        size = statistics.median(p.bytes)
        text += (
            f"| {p.family} | {p.setting} | {size / 1e3:.0f} | {max(p.bytes) / 1e3:.0f} | {100 * size / whole:.2f} "
            f"| {statistics.median(p.lpips):.4f} | {max(p.lpips):.4f} | {statistics.median(p.decibels):.2f} "
            f"| {max(p.decibels):.2f} | {statistics.median(p.encode):.2f} |\n"
        )
    return text


def plot(points: Sequence[Point], whole: int, path: Path) -> None:
    """Share of the generator's bytes against the loss of LPIPS: medians, with a line up to the worst image."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.add_subplot()
    least, left = 5e-5, 0.05
    axes.axhline(PROMISED, color="#1f7a4d", alpha=0.5, lw=1, ls="--")
    axes.text(left * 1.1, PROMISED * 0.93, "promised at most", va="top", color="#1f7a4d", fontsize=9)
    for family, colour in COLOURS.items():
        own = [p for p in points if p.family == family]
        x = [100 * statistics.median(p.bytes) / whole for p in own]
        y = [max(statistics.median(p.lpips), least) for p in own]
        axes.vlines(x, y, [max(*p.lpips, least) for p in own], color=colour, alpha=0.5, lw=1.2)
        axes.plot(x, y, "o-", color=colour, ms=6, lw=1.8, label=None if len(own) == 1 else family)
        if len(own) == 1:
            axes.annotate(family, (x[0], y[0]), (0, 8), textcoords="offset points", ha="center", color=colour)
    axes.set(xscale="log", yscale="log", xlim=(left, 60), ylim=(least * 0.75, None))
    axes.set_xlabel("bytes per image, % of the float32 generator")
    axes.set_ylabel("LPIPS lost by storing")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_yticks([least, 1e-4, 1e-3, 1e-2], ["none", "0.0001", "0.001", "0.01"])
    axes.set_title("Dots: median of the images. Lines reach up to the worst image.", fontsize=10, loc="left")
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", help="output of a run with fp16 deltas; made anew by default")
    parser.add_argument("--images", type=int, default=1000, help="at most so many")
    parser.add_argument("--out", type=Path, default=Path("out/codecs.md"), help="the table; the plot lies beside it")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = find_run(arguments.root) if arguments.root else demo(folder)
        whole, text = whole_bytes(engine_for(run).generator), ""
        with exact_float32(engine_for(run).device):  # as the product fits deltas and measures
            for points in compare(run, arguments.images):  # written after each image, since it takes a while
                plot(points, whole, arguments.out.with_suffix(".png"))
                text = as_markdown(points, whole)
                arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    with one_sentence():
        main()
