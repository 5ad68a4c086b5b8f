"""How many images to work on at once: what costs least an image on the device at hand, found by trying."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pti_core.config import RunConfig
from pti_core.generators.base import Generator
from pti_core.memory import is_out_of_memory
from pti_core.perceptual import LPIPS
from pti_core.pivot import Pivots, find_pivots
from pti_core.sampling import WStatistics
from pti_core.stacked import tune_stack

GAIN = 0.95  # a width is worth it if an image then costs at most this share
STEPS = 2  # of the work that is tried


def fastest_width(seconds: Callable[[int], float], most: int) -> int:
    """The width from 1, 2, 4, … up to `most` at which an image costs least.

    `seconds(width)` does a little of the work for so many images and tells how long it took. Doubling ends where it
    gains less than a twentieth, or where memory ends: an out-of-memory error of a width is its answer, any other error
    is raised. `most` itself is tried too, where it is no power of two.
    """
    best, cost, width = 1, seconds(1), 1
    while width < most:
        width = min(2 * width, most)
        try:
            now = seconds(width) / width
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if now > GAIN * cost:
            break
        best, cost = width, now
    return best


def widths(
    generator: Generator, config: RunConfig, statistics: WStatistics, lpips: LPIPS, most: int, device: torch.device
) -> tuple[int, int]:
    """How many images to search pivots of together, and how many to tune in one stack, on this device.

    Where the generator draws in half precision a stack is not tried: its scaling of gradients is for one image's pass.
    """
    pivot = config.pivot.model_copy(update={"steps": STEPS})
    tuning = config.tuning.model_copy(update={"steps": STEPS, "stop_lpips": 0.0})
    shape = (generator.img_channels, generator.img_resolution, generator.img_resolution)
    w = statistics.w_avg.view(1, 1, -1)

    def search(n: int) -> None:
        find_pivots(generator, torch.zeros(n, *shape, device=device), range(n), pivot, statistics, lpips)

    def tune(n: int) -> None:
        noise = [m[None, None].repeat(n, 1, 1, 1) for m in generator.noise_const()]
        targets, pivots = torch.zeros(n, *shape, device=device), Pivots(w.repeat(n, 1, 1), noise, generator.num_ws)
        tune_stack(generator, targets, pivots, range(n), tuning, config.locality, lpips)

    def fastest(work: Callable[[int], None]) -> int:
        def done(n: int) -> None:
            work(n)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)

        def seconds(n: int) -> float:
            done(n)  # the first time also chooses kernels and gets memory
            start = time.perf_counter()
            done(n)
            return time.perf_counter() - start

        return fastest_width(seconds, most)

    return fastest(search), 1 if config.precision != "fp32" else fastest(tune)
