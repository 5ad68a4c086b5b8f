"""An engine that does nothing: what a run costs without the method, to measure and to test everything around it.

Inputs are read and decoded, all tables are written; every image gets the mean w as its pivot and no delta, and no
measure is taken (NaN).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from pti_core.config import RunConfig
from pti_core.generators.base import Generator
from pti_core.inversions import Delta, Inversion, Measures, Target
from pti_core.progress import OnProgress

_NOT_TAKEN: Measures = {"lpips": math.nan, "mse": math.nan, "psnr": math.nan, "ssim": math.nan, "ms_ssim": None}


class NoopEngine:
    """Answers as `Engine` does."""

    def __init__(self, generator: Generator, config: RunConfig, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator, self.config = generator, config

    def invert(self, targets: Sequence[Target], on_progress: OnProgress | None = None) -> Iterator[Inversion | Delta]:
        """An `Inversion` for each target, at once."""
        for target in targets:
            yield Inversion(
                image_id=target.image_id,
                owner=self.config.owner(target.image_id, target.group),
                w=self.generator.mapping.w_avg[None].cpu(),
                noise=None,
                measures=dict.fromkeys(("pivot", "tuned", "stored"), _NOT_TAKEN),
                shot=None,
                pivot_steps=0,
                tuning_steps=0,
                pivot_seconds=0.0,
                tuning_seconds=0.0,
                seed=self.config.seed,
            )
