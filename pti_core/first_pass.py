"""One step of all that jobs will do, done alone, before they begin together.

oneDNN makes a kernel when it is first asked for one of its shape, and seems to choose its blocking by variables that
all threads share (3.12, as in torch 2.13). Two threads that ask at the same moment can each get half of the other's
choice: one gradient of garbage, and sums in another order for as long as the process lives (seen once in about 300
processes, in the gradient of a float32 convolution with channels last in memory). After this pass every kernel is
there.
"""

from __future__ import annotations

import torch

from pti_core.bases import Bases
from pti_core.config import RunConfig
from pti_core.deltas.fitting import importance
from pti_core.generators.base import Generator
from pti_core.perceptual import LPIPS
from pti_core.pivot import find_pivots
from pti_core.sampling import WStatistics
from pti_core.tuning import tune


def first_pass(
    generator: Generator, config: RunConfig, statistics: WStatistics, lpips: LPIPS, bases: Bases | None
) -> None:
    """A step of the search, one of tuning and the gradients of the stored delta, for a grey image on a CPU."""
    size = generator.img_resolution
    grey = torch.zeros(1, generator.img_channels, size, size)
    pivots = find_pivots(generator, grey, [0], config.pivot.model_copy(update={"steps": 1}), statistics, lpips)
    tuning = config.tuning.model_copy(update={"steps": 1, "stop_lpips": 0.0})
    tuned = tune(generator, grey, pivots, [0], tuning, config.locality, lpips, bases=bases)
    importance(tuned.generator, grey, pivots, lpips, tuning.max_resolution)
