"""One side of the comparison in a process of its own: the plain loop, or the engine with a preset.

    python -m benchmarks.side '{"side": "engine", "preset": "fast", ...}' out.json

Started by `benchmarks.bench`, so that its peak memory and its threads are its own.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.profiled import part_busy, steps_profiled
from benchmarks.reference import invert
from flows.errors import one_sentence
from pti_core.config import MeasureConfig, RunConfig
from pti_core.encoder.files import encoder_for
from pti_core.encoder.network import Encoder
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.generators.checkpoints import load_generator
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.inversions import Delta, Failure, Inversion, Target
from pti_core.machine.device import exact_float32, reason_of
from pti_core.measure import measure_locality
from pti_core.metrics import measure
from pti_core.perceptual import LPIPS, load_lpips, reference_lpips
from pti_core.presets import configure
from pti_core.sampling import w_statistics
from pti_core.studies.retuning import load_targets
from pti_core.words import counted

RANDOM = "random-1024"  # a StyleGAN2 config-f at 1024 with random weights, for speed only
CURVE_POINTS = 60


@dataclass
class Row:
    """One image of one side."""

    image_id: str
    seconds: float  # of the machine, this image's share
    steps: int
    lpips: float  # of what a reader gets: theta* in memory for the plain loop, decoded from its delta for the engine
    psnr: float
    pivot_lpips: float
    drift_wr: float  # LPIPS between old and new generator at w_r, alpha 30
    drift_wz: float
    bytes: int  # weights, pivot and noise
    curve: list[tuple[float, float]] = field(default_factory=list)  # seconds from the image's start, LPIPS


def generator_for(name: str, start: Literal["auto", "w_avg", "encoder"] = "auto") -> tuple[Generator, Encoder | None]:
    """A generator by its reference and the encoder that a run with this start would use, or the random one."""
    if name != RANDOM:
        loaded = load_generator(name)
        encoder = encoder_for(loaded, start)
        return loaded.generator, encoder.encoder if encoder is not None else None
    torch.manual_seed(0)
    kwargs = {"channel_base": 32768, "channel_max": 512}
    return StyleGAN2(512, 0, 512, 1024, 3, {"num_layers": 8}, kwargs).eval().requires_grad_(False), None


def drift(old: Generator, new: Generator, ws: Tensor, image_id: str, lpips: LPIPS) -> tuple[float, float]:
    """Median LPIPS between both at w_r (alpha 30) and at w_z, over four samples."""
    rows = measure_locality(old, new, ws, image_id, MeasureConfig(alphas=(30.0,), z_samples=4), lpips, batch=1)
    places = ("interpolated", "wz")
    near, far = (statistics.median(row.lpips for row in rows if row.where == place) for place in places)
    return near, far


FEW = 2, 2
"""Steps of search and tuning after which a GPU has loaded and chosen its kernels."""


def with_few_steps(config: RunConfig) -> RunConfig:
    """The same method, cut short."""
    few = [part.model_copy(update={"steps": n}) for part, n in zip((config.pivot, config.tuning), FEW, strict=True)]
    return config.model_copy(update={"pivot": few[0], "tuning": few[1]})


def begin_peak(device: str) -> None:
    """The peak of a GPU's memory begins here: after what was only tried."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def plain(generator: Generator, targets: Sequence[Target], config: RunConfig, device: str) -> list[Row]:
    """The plain loop, on all cores or the GPU."""
    generator = generator.to(device)  # type: ignore[attr-defined]
    of_w, lpips, package = w_statistics(generator), load_lpips(device=device), reference_lpips().to(device)
    rows = []
    if torch.device(device).type != "cpu":  # the first pass of a GPU chooses kernels: no image's time
        few = with_few_steps(config)
        invert(generator, targets[0].image.to(device), "first", few, of_w.w_avg, of_w.w_std, package)
    begin_peak(device)
    for target in targets:
        start, curve = time.perf_counter(), []

        def on_step(_stage: str, _step: int, value: float, start: float = start, curve: Any = curve) -> None:
            curve.append((time.perf_counter() - start, value))

        image = target.image.to(device)
        found = invert(generator, image, target.image_id, config, of_w.w_avg, of_w.w_std, package, on_step)
        seconds, ws = found.pivot_seconds + found.tuning_seconds, found.w.expand(1, generator.num_ws, -1)
        with torch.no_grad(), exact_float32(image.device):
            before, after = (g.synthesis(ws, noise=found.noise) for g in (generator, found.generator))
            tuned, pivot = (measure(image[None], drawn, lpips)[0] for drawn in (after, before))
        steps, state = config.pivot.steps + config.tuning.steps, found.generator.state_dict()  # type: ignore[attr-defined]
        size = sum(t.numel() * 4 for t in [*state.values(), found.w, *found.noise])
        near, far = drift(generator, found.generator, ws, target.image_id, lpips)
        quality = (float(tuned["lpips"]), float(tuned["psnr"]), float(pivot["lpips"]))  # type: ignore[arg-type]
        rows.append(Row(target.image_id, seconds, steps, *quality, near, far, size, thinned(curve)))
        print(f"plain loop: {target.image_id}, {seconds:.0f} s, LPIPS {quality[0]:.4f}", file=sys.stderr, flush=True)
    return rows


def filled(targets: Sequence[Target], made: Engine) -> list[Target]:
    """Targets; on a GPU again and again, by other names, up to a multiple of what is drawn together there.

    A few images would otherwise be drawn at another width than the many of a data set.
    """
    width = max(made.at_once, made.stack)
    more = [f" again {n}" if n else "" for n in range(width)]  # enough for one target
    repeated = [replace(t, image_id=t.image_id + word, group=t.group + word) for word in more for t in targets]
    return repeated[: width * math.ceil(len(targets) / width)]


def engine(made: Engine, targets: Sequence[Target]) -> list[Row]:
    """The engine, all images in one call, as a part of a shard; a row for each of the targets.

    On a GPU as many images as it draws together, see `filled`.
    """
    made.prepare()
    device, todo = made.device, filled(targets, made)
    if device.type != "cpu":  # what a GPU loads and chooses when it is first used is no image's time
        list(made.with_steps(*FEW).invert(todo[: max(made.at_once, made.stack)]))
    begin_peak(str(device))
    seen: dict[str, list[tuple[str, float]]] = {}
    start = time.perf_counter()

    def on_step(stage: str, names: Sequence[str], _step: int, lpips: Tensor) -> None:
        for name, value in zip(names, lpips.tolist(), strict=True):
            if not math.isnan(value):  # of an image that is finished
                seen.setdefault(name, []).append((stage, value))

    results = list(made.invert(todo, on_step=on_step))
    seconds = (time.perf_counter() - start) / len(todo)
    if failed := [r for r in results if isinstance(r, Failure)]:
        raise RuntimeError(f"{len(failed)} of {counted(len(todo), 'image')} failed: {failed[0].message}")
    by_owner = {r.owner: r for r in results if isinstance(r, Delta)}
    by_id, rows = {r.image_id: r for r in results if isinstance(r, Inversion)}, []
    for one in (by_id[target.image_id] for target in targets):
        delta = by_owner[one.owner].tensors
        ws = one.w[None].to(device).expand(1, made.generator.num_ws, -1)
        near, far = drift(made.generator, made.stored_generator(delta), ws, one.image_id, made.lpips)
        size = sum(len(t.payload) for t in delta) + len(one.noise or b"") + 4 * one.w.numel()
        stored, pivot = one.measures["stored"], one.measures["pivot"]
        quality = (float(stored["lpips"]), float(stored["psnr"]), float(pivot["lpips"]))  # type: ignore[arg-type]
        steps = one.pivot_steps + one.tuning_steps
        curve = spread(seen.get(one.image_id, []), seconds, one.pivot_seconds, one.tuning_seconds)
        rows.append(Row(one.image_id, seconds, steps, *quality, near, far, size, curve))
    return rows


def spread(seen: Sequence[tuple[str, float]], seconds: float, pivot: float, tuning: float) -> list[tuple[float, float]]:
    """The LPIPS of an image's steps over its share of the machine's seconds; two images share a core in turn."""
    points, at = [], 0.0
    for stage, own in (("pivot", pivot), ("tuning", tuning)):
        values = [value for name, value in seen if name == stage]
        share = seconds * own / (pivot + tuning)
        points += [(at + share * (i + 1) / len(values), value) for i, value in enumerate(values)]
        at += share
    return thinned(points)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `CURVE_POINTS` of them, the last among them."""
    return [*points[:: max(1, len(points) // CURVE_POINTS)], *points[-1:]]


def main() -> None:
    """Run one side as the first argument says; write its rows to the second."""
    said, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    device = said["device"]
    config = configure(said["preset"], said.get("settings", {}))
    generator, encoder = generator_for(said["generator"], config.pivot.start)
    targets = load_targets(said["images"], generator.img_resolution, config, said["limit"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    made = None if said["side"] == "plain" else Engine(generator, config, device, encoder)
    rows = engine(made, targets) if made else plain(generator, targets, config, device)
    # The engine has let the kernel begin the peak anew, after everything was loaded.
    peak = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    if torch.device(device).type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    parameters = sum(p.numel() for p in generator.parameters())  # type: ignore[attr-defined]
    found = {"rows": [asdict(r) for r in rows], "peak": peak, "fp32_bytes": 4 * parameters}
    if made:
        found |= {"at_once": made.at_once, "stack": made.stack}
        todo = filled(targets, made)
        try:
            found |= steps_profiled(made)
            found["part_busy"] = part_busy(made, todo, rows[0].seconds * len(todo))
        except Exception as error:  # a profiler may fail in its own ways, and the rows took minutes
            print(f"where the time goes was not seen: {reason_of(error)}", file=sys.stderr)
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    with one_sentence():
        main()
