"""What each way to compute a step costs here, of tuning and of the search: the figures behind what the engine does.

    python -m benchmarks.steps --generator pocket            # a Markdown table; --compile adds torch.compile (a minute)

Milliseconds per image and step, the median of runs that take turns, one thread on a CPU as the engine uses it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.side import generator_for
from flows.options import one_sentence
from pti_core.config import TuningConfig
from pti_core.device import best_device
from pti_core.generators.base import Generator
from pti_core.generators.half import multiplies_bf16
from pti_core.matmul import convolution
from pti_core.memory import keep_freed_memory
from pti_core.perceptual import load_lpips
from pti_core.stacked import Stack
from pti_core.tuning import adam, tunable_copy

STACK = 4  # images that are tuned at once
ONE = "tuning: one image"
BATCH = 8  # images whose pivots are searched at once
Work = Callable[[], object]


class _TorchsOwn(TorchFunctionMode):
    """While in force, all convolutions are torch's (see `pti_core.matmul`)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is convolution:
            x, weight, bias, padding = args
            return F.conv2d(x, weight, bias, padding=padding)
        return func(*args, **(kwargs or {}))


def works(name: str, device: str, compiled: bool) -> dict[str, tuple[Work, int]]:
    """What is timed, and how many images it does."""
    generator = generator_for(name)[0].to(device)  # type: ignore[attr-defined]
    lpips, size = load_lpips(device=device), generator.img_resolution
    with torch.no_grad():
        ws = generator.mapping(torch.randn(1, generator.z_dim, device=device))
        features = lpips.features(torch.zeros(1, generator.img_channels, size, size, device=device))
    noise = [n[None, None] for n in generator.noise_const()]
    new = tunable_copy(generator)

    def step_of(tuned: Any = new, draw: Callable[..., torch.Tensor] | None = None) -> Work:
        draw = draw or tuned.synthesis

        def work() -> None:
            lpips.distance(lpips.features(draw(ws, noise=noise)), features).sum().backward()
            for p in tuned.tunable().values():
                p.grad = None

        return work

    def by_torch() -> None:
        with _TorchsOwn():
            step_of()()

    last = copy.deepcopy(new).to(memory_format=torch.channels_last)
    stack = Stack(generator, STACK, TuningConfig())
    of_stack = ws.expand(STACK, -1, -1), [n.expand(STACK, -1, -1, -1) for n in noise]

    def stacked() -> None:
        lpips.distance(lpips.features(stack.draw(*of_stack)), features).sum().backward()
        for p in stack.theta.values():
            p.grad = None

    def search_of(images: int, generator: Generator = generator) -> Work:
        w = ws[:, :1].repeat(images, 1, 1).requires_grad_(True)
        maps = [n.repeat(images, 1, 1, 1).requires_grad_(True) for n in noise]

        def work() -> None:
            drawn = generator.synthesis(w.expand(-1, generator.num_ws, -1), noise=maps)
            loss = lpips.distance(lpips.features(drawn), [f.expand(images, -1, -1, -1) for f in features]).sum()
            torch.autograd.grad(loss, [w, *maps])

        return work

    # On a CPU without instructions for it a step in half precision takes twenty times as long.
    pays = torch.device(device).type != "cpu" or multiplies_bf16(torch.device(device))
    half = generator.with_precision("half") if pays else None
    found: dict[str, tuple[Work, int]] = {
        "search: one image": (search_of(1), 1),
        **({"search: one image, half precision": (search_of(1, half), 1)} if half else {}),
        f"search: {BATCH} images in one convolution": (search_of(BATCH), BATCH),
        ONE: (step_of(), 1),
        **({f"{ONE}, half precision": (step_of(tunable_copy(half)), 1)} if half else {}),
        f"{ONE}, small convolutions as torch does them": (by_torch, 1),
        f"{ONE}, weights in channels_last": (step_of(last), 1),
        f"tuning: {STACK} images, stacked weights": (stacked, STACK),
    }
    if compiled:
        found[f"{ONE}, torch.compile"] = (step_of(draw=torch.compile(new.synthesis)), 1)
    for label, fused in (("Adam as it is", False), ("Adam, fused", True)):
        parameters = [torch.randn_like(p).requires_grad_(True) for p in new.tunable().values()]
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer = adam(parameters, TuningConfig()) if fused else torch.optim.Adam(parameters)
        found[label] = (optimizer.step, 1)
    return found


def timed(todo: Mapping[str, tuple[Work, int]], device: str, rounds: int) -> dict[str, float]:
    """Milliseconds per image, medians; all take turns, so that a disturbance hits all."""
    times: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(rounds + 2):
        for name, (work, images) in todo.items():
            start = time.perf_counter()
            work()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 2:
                times[name].append(1000 * (time.perf_counter() - start) / images)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Parse the arguments, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--device", help="default: as a run chooses it")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--plain-malloc", action="store_true", help="one image, with malloc as it comes")
    args = parser.parse_args()
    args.device = args.device or best_device()
    torch.set_num_threads(1)
    if args.plain_malloc:
        work = {ONE: works(args.generator, args.device, False)[ONE]}
        print(next(iter(timed(work, args.device, args.rounds).values())))
        return
    rows = {}
    if args.device == "cpu" and not os.environ.get("MALLOC_MMAP_MAX_"):
        command = [sys.executable, "-m", "benchmarks.steps", "--generator", args.generator, "--plain-malloc"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows[f"{ONE}, memory given back at every free"] = float(done.stdout)
    keep_freed_memory()
    rows |= timed(works(args.generator, args.device, args.compile), args.device, args.rounds)
    print("| a step of tuning or search, forward and backward | ms per image |\n| --- | ---: |")
    for name, value in rows.items():
        print(f"| {name} | {value:.1f} |")


if __name__ == "__main__":
    with one_sentence():
        main()
