"""How far a batch is, for the display: steps of images in work become a share of the batch's whole work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

from torch import Tensor

from pti_core.config import RunConfig


@dataclass(frozen=True)
class Progress:
    """What the engine is doing now."""

    stage: Literal["pivot", "tuning"]
    step: int
    steps: int  # at most
    lpips: float  # mean over the images in work
    images: int  # images that this step works on
    share: float  # of the batch's whole work that is done, in [0, 1]


OnProgress = Callable[[Progress], None]
OnImageStep = Callable[[Literal["pivot", "tuning"], Sequence[str], int, Tensor], None]
"""Stage, ids of the images that are worked on together, step from 1, their LPIPS `[N]` before it (see `OnStep`)."""


class WorkCounter:
    """Turns steps of images in work, in whatever thread, into the share of a batch's work, for the display."""

    def __init__(
        self, config: RunConfig, images: int, on_progress: OnProgress | None = None, on_step: OnImageStep | None = None
    ) -> None:
        self.on_progress, self.on_step, self.lock = on_progress, on_step, Lock()
        regularised = 1 / config.locality.interval if config.locality.enabled else 0.0
        self.steps = {"pivot": config.pivot.steps, "tuning": config.tuning.steps}
        # In steps of the pivot search; only the display depends on it.
        self.cost = {"pivot": 1.0, "tuning": 1.0 + 1.3 * regularised}
        self.total = images * sum(self.steps[stage] * self.cost[stage] for stage in self.steps)
        self.work: dict[tuple[str, str], float] = {}
        self.lpips: dict[tuple[str, str], list[float]] = {}  # of what is in work

    def step(
        self, stage: Literal["pivot", "tuning"], name: str, images: Sequence[str], step: int, lpips: Tensor
    ) -> None:
        """Step `step` of these images, which together go by `name`, is done; their LPIPS `[N]` (see `OnStep`)."""
        steps, key = self.steps[stage], (stage, name)
        with self.lock:
            if self.on_step is not None:
                self.on_step(stage, images, step, lpips)
            self.work[key] = len(lpips) * step * self.cost[stage]
            self.lpips[key] = [value for value in lpips.tolist() if not math.isnan(value)]
            values = [value for (s, _), found in self.lpips.items() if s == stage for value in found]
            if stage == "pivot" and step == steps:
                del self.lpips[key]
            share = min(1.0, sum(self.work.values()) / self.total)
            if self.on_progress is not None:
                mean = sum(values) / len(values) if values else math.nan
                self.on_progress(Progress(stage, step, steps, mean, len(values), share))

    def finish(self, name: str, images: int) -> None:
        """An owner is tuned, maybe before its last step."""
        with self.lock:
            self.work["tuning", name] = images * self.steps["tuning"] * self.cost["tuning"]
            self.lpips.pop(("tuning", name), None)
