"""Where the time of an engine's steps goes: matrix work, the largest kernels, and how long a GPU has nothing to do.

By torch's profiler, which takes a little itself. Shares are of the time by the clock, so that a GPU that waits counts.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType

from pti_core.engine import Engine
from pti_core.inversions import Target
from pti_core.machine.parallel import one_thread
from pti_core.pivot import Pivots, find_pivots
from pti_core.stacked import tune_stack
from pti_core.tuning import tune

PROFILED = 4  # steps of each stage
TOP = 15  # kernels that are named
WHOLE_SECONDS = 30.0  # a part that takes longer is not done once more, to be profiled
MATRIX = ("conv", "linear", "gemm", "mm", "xmma", "nvjet", "cutlass", "winograd", "wgrad", "dgrad", "fprop")
"""In names of operators and kernels that convolve or multiply matrices."""
NO_MATRIX = ("adam", "converttensor", "conv_depthwise")
"""In names of others that have one of these in theirs: optimisers' kernels (…adammath…), casts by cuDNN, and
torch's own kernels for depthwise filters, which no matrix unit does."""


class Kernel(NamedTuple):
    """One kernel or copy that a GPU has run."""

    name: str
    begin: float  # s, by any clock
    end: float


@dataclass
class Stage:
    """What was seen of one stage, in seconds per image."""

    seconds: float  # by the clock
    busy: float  # in which a GPU had something to do; NaN of a CPU, and where no kernel was seen
    times: Mapping[str, float]  # of each kernel, or operator of a CPU


def is_matrix_work(name: str) -> bool:
    """Whether an operator or kernel of this name convolves or multiplies matrices."""
    lower = name.lower()
    return any(word in lower for word in MATRIX) and not any(word in lower for word in NO_MATRIX)


def busy_seconds(kernels: Iterable[Kernel]) -> float:
    """Time in which at least one of them ran: those of several streams overlap."""
    total, until = 0.0, -math.inf
    for kernel in sorted(kernels, key=lambda k: k.begin):
        total += max(0.0, kernel.end - max(kernel.begin, until))
        until = max(until, kernel.end)
    return total


def stage_of(kernels: Sequence[Kernel], seconds: float, images: int) -> Stage:
    """What a GPU did in these seconds for so many images."""
    times: Counter[str] = Counter()
    for kernel in kernels:
        times[kernel.name] += (kernel.end - kernel.begin) / images  # type: ignore[assignment]
    return Stage(seconds / images, busy_seconds(kernels) / images if kernels else math.nan, times)


def shares(stages: Sequence[Stage]) -> dict[str, Any]:
    """Of all stages: `matrix` and `busy`, shares of the time, and the largest `kernels` with theirs.

    NaN where the profiler saw nothing (a GPU whose counters nobody may read), so that no one takes it for no work.
    """
    seconds, times = sum(stage.seconds for stage in stages), Counter[str]()
    for stage in stages:
        times.update(stage.times)  # type: ignore[arg-type]
    matrix = sum(time for name, time in times.items() if is_matrix_work(name)) / seconds
    return {
        "matrix": matrix if all(stage.times for stage in stages) else math.nan,
        "busy": sum(stage.busy for stage in stages) / seconds,
        "kernels": [(name, time / seconds) for name, time in times.most_common(TOP)],
    }


def profiled(work: Callable[[], object], device: torch.device, images: int) -> Stage:
    """Do it, and see what it does for each of so many images."""
    cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    if cuda:
        torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[activity]) as profile:
        begin = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begin
    if cuda:
        return stage_of(kernels_of(profile), seconds, images)
    times = {event.key: event.self_cpu_time_total / 1e6 / images for event in profile.key_averages()}
    return Stage(seconds / images, math.nan, times)


def kernels_of(profile: torch.profiler.profile) -> list[Kernel]:
    """What a GPU has run, as the profiler wrote it down: torch's own lists take seconds for a hundred thousand."""
    seen = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    return [
        Kernel(event.name(), event.start_ns() / 1e9, event.end_ns() / 1e9)
        for event in seen
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()  # spans of what is named in code
    ]


def steps_profiled(made: Engine) -> dict[str, Any]:
    """`shares` of a few steps of an image: of the search and of tuning.

    Drawn as the engine draws, in its precision, along its bases, as many images at once, on a CPU with one thread.
    """
    generator, config, device = made.generator, made.config, made.device
    pivot = config.pivot.model_copy(update={"steps": PROFILED})
    tuning = config.tuning.model_copy(update={"steps": PROFILED, "stop_lpips": 0.0})
    lpips, of_w, bases = made.judge, made.statistics, made.bases
    made.prepare()  # finds how many images are searched, and tuned, together on a GPU
    shape = (generator.img_channels, generator.img_resolution, generator.img_resolution)
    together, stack = (torch.zeros(n, *shape, device=device) for n in (made.at_once, made.stack))

    def search() -> Pivots:
        return find_pivots(made.drawing, together, range(len(together)), pivot, of_w, lpips)

    start = search()[[0] * len(stack)]

    def tuned() -> None:
        common = (made.drawing, stack, start, range(len(stack)), tuning, config.locality, lpips)
        if len(stack) > 1:
            tune_stack(*common, bases=bases)
        else:
            tune(*common, bases=bases)

    with one_thread(device):
        tuned()  # each once before: kernels are chosen
        return shares([profiled(search, device, len(together)), profiled(tuned, device, len(stack))])


def part_busy(made: Engine, targets: Sequence[Target], seconds: float) -> float:
    """Share of a whole part's time in which a GPU had something to do, packing and all; NaN without one.

    NaN also where the part took more `seconds` than `WHOLE_SECONDS`: it is done once more for this.
    """
    if made.device.type != "cuda" or seconds > WHOLE_SECONDS:
        return math.nan
    found = profiled(lambda: list(made.invert(targets)), made.device, len(targets))
    return found.busy / found.seconds
