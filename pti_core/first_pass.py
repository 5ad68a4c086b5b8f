"""The first steps of all that jobs will do, done alone, before they begin together.

They show what memory an image takes (`room`), and in half precision they make the kernels.

oneDNN makes a kernel when it is first asked for one of its shape, and seems to choose its blocking by variables that
all threads share (3.12, as in torch 2.13). Two threads that ask at the same moment can each get half of the other's
choice: one gradient of garbage, and sums in another order for as long as the process lives (seen once in about 300
processes, in the gradient of a float32 convolution with channels last in memory). After this pass every kernel is
there.
"""

from __future__ import annotations

from collections.abc import Callable

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
    generator: Generator,
    config: RunConfig,
    statistics: WStatistics,
    judge: LPIPS,
    lpips: LPIPS,
    bases: Bases | None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """A step of the search, two of tuning and the gradients of the stored delta, for a grey image on a CPU.

    Both steps of tuning have the locality term, and the second the optimiser's state beside it: so memory is seen at
    its most, whatever the term's interval. `judge` is the LPIPS of losses, `lpips` that of measures.
    `check` is called between them: a caller that wants no more of it raises there.
    """
    check()
    size = generator.img_resolution
    grey = torch.zeros(1, generator.img_channels, size, size)
    pivots = find_pivots(generator, grey, [0], config.pivot.model_copy(update={"steps": 1}), statistics, judge)
    check()
    tuning = config.tuning.model_copy(update={"steps": 2, "stop_lpips": 0.0})
    locality = config.locality.model_copy(update={"interval": 1})
    tuned = tune(generator, grey, pivots, [0], tuning, locality, judge, bases=bases)
    check()
    importance(tuned.generator, grey, pivots, lpips, tuning.max_resolution)
