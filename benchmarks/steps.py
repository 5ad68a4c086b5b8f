"""What each way to compute a step costs here, of tuning and of the search: the figures behind what the engine does.

    python -m benchmarks.steps --generator pocket            # a Markdown table
    python -m benchmarks.steps --generator pocket --compile  # of a step of tuning with torch.compile (a minute)

Milliseconds per image and step, the median of runs that take turns, one thread on a CPU as the engine uses it. On a
GPU of NVIDIA there are rows of what the engine does not do: docs/speed.md, "What was tried and left out".
"""

from __future__ import annotations

import argparse
import copy
import json
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
from flows.errors import one_sentence
from pti_core.config import PivotConfig, TuningConfig
from pti_core.generators.base import Generator
from pti_core.generators.half import multiplies_bf16
from pti_core.machine.device import best_device, exact_float32, reason_of
from pti_core.machine.malloc import keep_freed_memory
from pti_core.machine.matmul import convolution
from pti_core.perceptual import LPIPS, area_downsample, load_lpips
from pti_core.stacked import Stack
from pti_core.tuning import adam, tunable_copy

STACK = 4  # images that are tuned at once
ONE = "tuning: one image"
BATCH = 8  # images whose pivots are searched at once
SEARCH = f"search: {BATCH} images in one convolution"
STACKED = f"tuning: {STACK} images, stacked weights"
COMPILED = f"{ONE}, torch.compile"
MAIN = "search: one image", SEARCH, ONE, STACKED  # what a GPU's other ways are tried with
Work = Callable[[], object]


class _TorchsOwn(TorchFunctionMode):
    """While in force, all convolutions are torch's (see `pti_core.machine.matmul`)."""

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
    grey = torch.zeros(1, generator.img_channels, size, size, device=device)
    seen = PivotConfig().max_resolution  # what the search looks at
    with torch.no_grad():
        ws = generator.mapping(torch.randn(1, generator.z_dim, device=device))
        features, reduced = lpips.features(grey), lpips.features(area_downsample(grey, seen))
    noise = [n[None, None] for n in generator.noise_const()]
    new = tunable_copy(generator)

    def step_of(tuned: Any = new, draw: Callable[..., torch.Tensor] | None = None, judge: LPIPS = lpips) -> Work:
        draw = draw or tuned.synthesis
        goal = features if judge is lpips else judge.features(grey)

        def work() -> None:
            judge.distance(judge.features(draw(ws, noise=noise)), goal).sum().backward()
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
            drawn = area_downsample(generator.synthesis(w.expand(-1, generator.num_ws, -1), noise=maps), seen)
            loss = lpips.distance(lpips.features(drawn), reduced).sum()
            torch.autograd.grad(loss, [w, *maps])

        return work

    # On a CPU without instructions for it a step in half precision takes twenty times as long.
    pays = torch.device(device).type != "cpu" or multiplies_bf16(torch.device(device))
    half = generator.with_precision("half") if pays else None
    found: dict[str, tuple[Work, int]] = {
        "search: one image": (search_of(1), 1),
        **({"search: one image, half precision": (search_of(1, half), 1)} if half else {}),
        SEARCH: (search_of(BATCH), BATCH),
        ONE: (step_of(), 1),
        **({f"{ONE}, half precision": (step_of(tunable_copy(half)), 1)} if half else {}),
        **({f"{ONE}, LPIPS in half precision": (step_of(judge=lpips.in_half_precision()), 1)} if half else {}),
        f"{ONE}, small convolutions as torch does them": (by_torch, 1),
        f"{ONE}, weights in channels_last": (step_of(last), 1),
        STACKED: (stacked, STACK),
    }
    if compiled:
        found[COMPILED] = (step_of(draw=torch.compile(new.synthesis)), 1)
    if torch.device(device).type == "cuda":
        bf16 = generator.with_precision("bf16")
        found |= {
            "search: one image, bf16": (search_of(1, bf16), 1),
            f"{ONE}, bf16": (step_of(tunable_copy(bf16)), 1),
        }
        searched = copy.deepcopy(generator).to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
        found |= {
            f"{SEARCH}, weights in channels_last": (search_of(BATCH, searched), BATCH),
            f"{SEARCH}, TF32 off": (exactly(search_of(BATCH)), BATCH),
            f"{ONE}, TF32 off": (exactly(step_of()), 1),
        }
    for label, fused in (("Adam as it is", False), ("Adam, fused", True)):
        parameters = [torch.randn_like(p).requires_grad_(True) for p in new.tunable().values()]
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer = adam(parameters, TuningConfig()) if fused else torch.optim.Adam(parameters)
        found[label] = (optimizer.step, 1)
    return found


def exactly(work: Work) -> Work:
    """The same with nothing rounded to TF32."""

    def exact() -> None:
        with exact_float32(torch.device("cuda")):
            work()

    return exact


def as_graph(work: Work) -> Work:
    """The same as one CUDA graph: recorded at the first call, played again at every other.

    As torch's notes on CUDA show it: some calls on a side stream first, then one that is recorded. What it reads and
    writes stays where it was in memory, which suits a step: its tensors are made once.
    """
    recorded: list[torch.cuda.CUDAGraph] = []

    def play() -> None:
        if not recorded:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(3):
                    work()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
            recorded.append(graph)
        recorded[0].replay()

    return play


def timed(todo: Mapping[str, tuple[Work, int]], device: str, rounds: int) -> dict[str, float | str]:
    """Milliseconds per image, medians; all take turns, so that a disturbance hits all. What fails: why, in a line."""
    times: dict[str, list[float]] = {name: [] for name in todo}
    failed: dict[str, str] = {}
    for turn in range(rounds + 2):
        for name, (work, images) in todo.items():
            if name in failed:
                continue
            start = time.perf_counter()
            try:
                work()
                if torch.device(device).type == "cuda":
                    torch.cuda.synchronize(device)
            except (RuntimeError, MemoryError) as error:
                failed[name] = reason_of(error) or type(error).__name__
                continue
            if turn >= 2:
                times[name].append(1000 * (time.perf_counter() - start) / images)
    return {name: failed[name] if name in failed else statistics.median(values) for name, values in times.items()}


def in_a_process(args: argparse.Namespace, *options: str) -> dict[str, float | str]:
    """Rows of another process: what it is told cannot be taken back, and its errors are its own."""
    command = [sys.executable, "-m", "benchmarks.steps", "--generator", args.generator, "--device", args.device]
    done = subprocess.run([*command, *options, "--rounds", str(args.rounds)], capture_output=True, text=True)
    if done.returncode:
        return {" ".join(options): (done.stderr.strip().splitlines() or ["ended by a signal"])[-1][:150]}
    return {
        name: value
        for line in done.stdout.splitlines()
        if line.startswith("{")
        for name, value in json.loads(line).items()
    }


def show(rows: Mapping[str, float | str]) -> None:
    """Rows of the table, as they are known."""
    for name, value in rows.items():
        print(f"| {name} | {value if isinstance(value, str) else f'{value:.1f}'} |", flush=True)


def main() -> None:
    """Parse the arguments, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--device", help="default: as a run chooses it")
    parser.add_argument("--compile", action="store_true", help="only a step of tuning, as it is and with torch.compile")
    parser.add_argument("--rounds", type=int, default=8)
    # Each in a process of its own, which is started here:
    parser.add_argument("--plain-malloc", action="store_true", help="one image, with malloc as it comes")
    parser.add_argument(
        "--cudnn-benchmark", action="store_true", help="the main rows, with convolutions that are tried"
    )
    parser.add_argument("--as-graph", choices=MAIN, help="one of the main rows, as a CUDA graph")
    args = parser.parse_args()
    args.device = args.device or best_device()
    torch.set_num_threads(1)
    if args.plain_malloc or args.cudnn_benchmark or args.as_graph:
        torch.backends.cudnn.benchmark = args.cudnn_benchmark
        names, way = ([ONE], "memory given back at every free") if args.plain_malloc else (MAIN, "cudnn.benchmark")
        todo = works(args.generator, args.device, False)
        own = {f"{name}, {way}": todo[name] for name in names}
        if args.as_graph:
            work, images = todo[args.as_graph]
            own = {f"{args.as_graph}, as a CUDA graph": (as_graph(work), images)}
        print(json.dumps(timed(own, args.device, args.rounds)))
        return
    print("| a step of tuning or search, forward and backward | ms per image |\n| --- | ---: |")
    if args.device == "cpu" and not os.environ.get("MALLOC_MMAP_MAX_") and not args.compile:
        show(in_a_process(args, "--plain-malloc"))
    keep_freed_memory()
    todo = works(args.generator, args.device, args.compile)
    if args.compile:
        show(timed({name: todo[name] for name in (ONE, COMPILED)}, args.device, args.rounds))
        return
    show(timed(todo, args.device, args.rounds))
    if torch.device(args.device).type == "cuda":
        # torch keeps the way of a convolution that it found first, and a failed recording may leave a process with an
        # error that all others of it then meet.
        show(in_a_process(args, "--cudnn-benchmark"))
        for name in MAIN:
            show(in_a_process(args, "--as-graph", name))


if __name__ == "__main__":
    with one_sentence():
        main()
