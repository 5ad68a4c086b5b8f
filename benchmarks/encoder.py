"""What an encoder's start brings: the pivot's LPIPS against steps, from w_avg and from the encoder.

    python -m benchmarks.encoder --out out/encoder                       # the table, and the plot beside it
    python -m benchmarks.encoder --out out/encoder --lr 0.03 --lr 0.05   # learning rates from the encoder's start

Targets are the demo faces (`--images`) and samples of the generator that no encoder has seen. Every number of steps is
a search of its own, with its own rise and fall of the learning rate. Results are kept in OUT/results.json, so that a
run that was stopped goes on. One core searches for one image; `taskset` limits the cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.arguments import set_option
from flows.errors import one_sentence
from pti_core.datasets import scan
from pti_core.encoder.files import load_encoder
from pti_core.encoder.samples import draw
from pti_core.encoder.start import encoded_start
from pti_core.engine import Engine
from pti_core.generators.checkpoints import load_generator
from pti_core.images import decode, fit, to_float
from pti_core.machine.device import best_device
from pti_core.metrics import measure
from pti_core.pivot import Pivots, find_pivots, initial_noise
from pti_core.presets import configure
from pti_core.reading import read_bytes
from pti_core.sampling import ImageRandom, seed_for

STEPS = (0, 5, 10, 15, 20, 30, 45, 60, 90, 120)


def targets_of(engine: Engine, images: str, samples: int, limit: int | None = None) -> dict[str, Tensor]:
    """Both sets, `[N, C, H, W]` each."""
    found = []
    for entry in scan(images, limit=limit).to_pylist():
        name = entry["image_id"]
        pixels = decode(read_bytes(entry["uri"]), name, engine.config.image)
        found.append(
            torch.from_numpy(to_float(fit(pixels, engine.generator.img_resolution, name, engine.config.image)))
        )
    _, drawn = draw(engine.generator, engine.statistics, range(samples), "encoder benchmark", 0)
    return {"faces": torch.stack(found), "samples": drawn}


def search(engine: Engine, images: Tensor, start: str, settings: dict[str, Any]) -> dict[str, list[float]]:
    """LPIPS of the pivot of each image, its distance to w_avg, and the seconds of its search."""
    steps = settings.pop("pivot.steps")
    config = configure("demo", settings | {"pivot.steps": max(1, steps)}).pivot

    def one(i: int, check: Callable[[], None]) -> tuple[float, float, float]:
        image, seed, begin = images[i : i + 1].to(engine.device), seed_for(str(i), "pivot"), time.perf_counter()
        w = None
        if start == "encoder":
            assert engine.encoder is not None
            w = encoded_start(engine.encoder, engine.generator, image, engine.lpips)
        if steps:
            on_step = lambda step, lpips: check()  # noqa: E731
            found = find_pivots(engine.drawing, image, [seed], config, engine.statistics, engine.judge, on_step, w)
        else:
            w = engine.statistics.w_avg[None, None] if w is None else w
            found = Pivots(w, initial_noise(engine.generator, ImageRandom([seed]), config), engine.generator.num_ws)
        seconds = time.perf_counter() - begin
        with torch.no_grad():
            lpips = measure(image, engine.generator.synthesis(found.ws, noise=found.noise), engine.lpips)[0]["lpips"]
        assert lpips is not None
        return lpips, (found.w[0, 0] - engine.statistics.w_avg).norm().item(), seconds

    rows = list(engine.in_parallel(one, range(len(images))))
    return dict(zip(("lpips", "distance", "seconds"), map(list, zip(*rows, strict=True)), strict=True))


def table(results: dict[str, Any], starts: Sequence[str], sets: Sequence[str]) -> str:
    """Medians as Markdown."""
    columns = [(name, start) for name in sets for start in starts]
    lines = ["| steps | " + " | ".join(f"{name}, {start}" for name, start in columns) + " |"]
    lines.append("| ---: |" + " ---: |" * len(columns))
    for steps in STEPS:
        found = [results.get(f"{name}/{start}/{steps}") for name, start in columns]
        if any(found):
            cells = [f"{statistics.median(f['lpips']):.4f}" if f else "" for f in found]
            lines.append(f"| {steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict[str, Any], starts: Sequence[str], sets: Sequence[str], path: Path) -> None:
    """Medians against steps, a panel a set."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(sets), figsize=(5 * len(sets), 4), squeeze=False)
    titles = {"faces": "demo faces", "samples": "the generator's own samples"}
    for name, panel in zip(sets, panels[0], strict=True):
        for start in starts:
            line = [(s, statistics.median(r["lpips"])) for s in STEPS if (r := results.get(f"{name}/{start}/{s}"))]
            if line:
                panel.plot(*zip(*line, strict=True), marker="o", label=f"from {start}")
        panel.set(title=titles.get(name, name), xlabel="steps of the pivot search", yscale="log")
        panel.set_yticks([0.05, 0.1, 0.2, 0.3, 0.4], ["0.05", "0.1", "0.2", "0.3", "0.4"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    panels[0][0].set_ylabel("median LPIPS of the pivot")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the arguments, search what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--images", default="demo")
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("--samples", type=int, default=12, help="of the generator")
    parser.add_argument("--steps", type=int, nargs="*", default=list(STEPS))
    parser.add_argument("--starts", nargs="*", default=["w_avg", "encoder"])
    parser.add_argument("--sets", nargs="*", default=["faces", "samples"])
    parser.add_argument("--lr", type=float, action="append", help="sweep: the encoder's start with this peak rate")
    parser.add_argument(
        "--set", type=set_option, action="append", default=[], metavar="NAME=VALUE", help="for the encoder's start"
    )
    parser.add_argument("--out", type=Path, default=Path("out/encoder"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    loaded = load_generator(args.generator)
    encoder = load_encoder(loaded).encoder if "encoder" in args.starts else None
    engine = Engine(loaded.generator, configure("demo"), best_device(), encoder)
    sets = {
        name: images
        for name, images in targets_of(engine, args.images, args.samples, args.limit).items()
        if name in args.sets
    }
    fixed: dict[str, Any] = dict(args.set)
    starts: dict[str, dict[str, Any]] = {s: dict(fixed) if s == "encoder" else {} for s in args.starts}
    if args.lr:
        starts = {f"encoder lr {lr:g}": fixed | {"pivot.lr": lr} for lr in args.lr}
    for start, settings in starts.items():
        for steps in args.steps:
            for name, images in sets.items():
                key = f"{name}/{start}/{steps}"
                if key in results:
                    continue
                results[key] = search(engine, images, start.split(" ")[0], settings | {"pivot.steps": steps})
                path.write_text(json.dumps(results))
                medians = {k: round(statistics.median(v), 4) for k, v in results[key].items()}
                print(key, medians, flush=True)
    distances = (engine.statistics.samples - engine.statistics.w_avg).norm(dim=1)
    median, most = distances.median().item(), distances.quantile(0.95).item()
    print(f"\nsamples of W: median distance to w_avg {median:.2f}, 95 % below {most:.2f}\n")
    print(table(results, list(starts), list(sets)))
    plot(results, list(starts), list(sets), args.out / "encoder.png")


if __name__ == "__main__":
    with one_sentence():
        main()
