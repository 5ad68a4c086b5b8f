"""How many images to work on at once: what costs least an image on the device at hand, found by trying."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from pti_core.bases import Bases
from pti_core.config import RunConfig
from pti_core.generators.base import Generator
from pti_core.machine.device import reason_of, seconds_since
from pti_core.machine.out_of_memory import free_memory, shortage
from pti_core.machine.room import too_small_for_one
from pti_core.perceptual import LPIPS
from pti_core.pivot import Pivots, find_pivots
from pti_core.sampling import WStatistics
from pti_core.stacked import tune_stack
from pti_core.tuning import tune
from pti_core.words import counted

_log = logging.getLogger(__name__)

GAIN = 0.95  # a width is worth it if an image then costs at most this share
MISSES = 2  # doublings in a row without it, after which no more are tried
NEAR = 0.1  # a width whose cost is within this share of the limit is timed again, and the quicker time counts
STEPS = 4  # of the work that are timed


class Widths(NamedTuple):
    """How many images to work on at once."""

    search: int  # whose pivots are searched together
    stack: int  # that are tuned in one stack
    ended: bool  # for want of gain or memory: wider ones need not be tried, however many images come


def fastest_width(seconds: Callable[[int], float], most: int) -> int:
    """The width from 1, 2, 4, … up to `most` at which an image costs least.

    `seconds(width)` does a little of the work for so many images and tells how long it took. Doubling ends where it
    gains less than a twentieth twice in a row (two images together are drawn in another way than one, which costs more
    by itself), or where memory ends: an out-of-memory error of a width is its answer, any other error is raised. `most`
    itself is tried too, where it is no power of two. A width that gains about a twentieth is asked for again: anything
    else that the machine does makes it take longer.

    UnfitMachine where there is not memory enough for one.
    """
    best, cost, width, missed = 1, math.inf, 1, 0
    while True:
        try:
            now = seconds(width) / width
            if math.isfinite(cost) and abs(now - GAIN * cost) < NEAR * GAIN * cost:
                now = min(now, seconds(width) / width)
        except (RuntimeError, MemoryError) as error:
            if width == 1:
                raise too_small_for_one(error) from None
            short = shortage(error)
            # What is not plainly said to be memory may be a convolution that cuDNN has no way to compute.
            level = logging.INFO if isinstance(short, torch.OutOfMemoryError | MemoryError) else logging.WARNING
            _log.log(level, "%s at once: no memory for them (%s)", counted(width, "image"), reason_of(short))
            break
        if now <= GAIN * cost:
            best, cost, missed = width, now, 0
        else:
            missed += 1
        if width == most or missed == MISSES:
            break
        width = min(2 * width, most)
    return best


def widths(
    generator: Generator,
    config: RunConfig,
    statistics: WStatistics,
    lpips: LPIPS,
    bases: Bases | None,
    device: torch.device,
    most: int,
) -> Widths:
    """How many images to search pivots of together, and how many to tune in one stack, at most `most` each.

    A stack is not tried where it has no use, in mode "multi".
    """
    shape = (generator.img_channels, generator.img_resolution, generator.img_resolution)
    w = statistics.w_avg.view(1, 1, -1)

    def search(n: int, steps: int) -> None:
        pivot = config.pivot.model_copy(update={"steps": steps})
        find_pivots(generator, torch.zeros(n, *shape, device=device), range(n), pivot, statistics, lpips)

    def tuning(n: int, steps: int) -> None:
        settings = config.tuning.model_copy(update={"steps": steps, "stop_lpips": 0.0})
        noise = [m[None, None].repeat(n, 1, 1, 1) for m in generator.noise_const()]
        targets, pivots = torch.zeros(n, *shape, device=device), Pivots(w.repeat(n, 1, 1), noise, generator.num_ws)
        common = (generator, targets, pivots, range(n), settings, config.locality, lpips)
        if n == 1:  # as the engine does
            tune(*common, bases=bases)
        else:
            tune_stack(*common, bases=bases)

    def fastest(work: Callable[[int, int], None]) -> tuple[int, bool]:
        def took(n: int, steps: int) -> float:
            start = time.perf_counter()
            work(n, steps)
            return seconds_since(start, device)

        tried = 0

        def seconds(n: int) -> float:
            nonlocal tried
            if n > tried:  # the first time also chooses kernels and gets memory, some of it at the second step
                took(n, 1 + STEPS)
                tried = n
            if most == 1:  # nothing to choose; whether there is memory enough is known
                return 0.0
            few, many = took(n, 1), took(n, 1 + STEPS)
            # Without what is done once, however many steps. Where that was disturbed, an upper bound: a width must not
            # win by chance.
            return many - few if many > few else many

        found = fastest_width(seconds, most)
        free_memory(device)  # the widest took most, and may have failed for it
        return found, tried < most

    together, ended = fastest(search)
    stack, ended_too = fastest(tuning) if config.mode == "single" else (1, True)
    _log.info(
        "pivots of %s are searched together on %s, %s tuned in a stack", counted(together, "image"), device, stack
    )
    return Widths(together, stack, ended and ended_too)
