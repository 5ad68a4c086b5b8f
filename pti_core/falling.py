"""How the learning rate of tuning rises and falls, and when tuning ends: for each generator by its own images."""

from __future__ import annotations

import math

from pti_core.config import TuningConfig

_OF_COSINE = 0.9
"""How far along the cosine the fall goes. The rest would multiply the rate by less than 0.025: the LPIPS of the demo
faces stays where it is, to 0.0001, so those steps are not made."""


class FallingRate:
    """The factor of the learning rate: a rise to 1, then a cosine down to nearly 0, whose end is the end of tuning.

    The rise is linear and takes `config.lr_rampup` of all steps. Adam's first steps move every weight by the whole
    rate, whichever way its first gradient points; at a high rate that throws the image far back.

    The fall takes `config.lr_rampdown` of all steps. It begins as late as `config.steps` allow, or as soon as every
    image has an LPIPS of at most `config.stop_lpips`: a high rate leaves weights unsettled, so an image that is good
    enough early has its fall early, as long as befits the steps so far, and not just an end. Without a fall, as in the
    paper, tuning ends at once.
    """

    def __init__(self, config: TuningConfig) -> None:
        self.steps, self.share, self.stop = config.steps, config.lr_rampdown, config.stop_lpips
        self.rise = config.lr_rampup * config.steps
        self.latest = round((1 - self.share) * self.steps)
        self.begin: int | None = None
        self.length = 0

    def factor(self, step: int, lpips: float) -> float | None:
        """For the update of `step` (from 0, one after the other), before which the worst image has this LPIPS.

        None where tuning has ended: this update is not to be made.
        """
        if self.begin is None and step >= self.latest:
            self.begin, self.length = step, self.steps - step
        elif self.begin is None and lpips <= self.stop:
            self.begin, self.length = step, round(step * self.share / (1 - self.share))
        risen = min(1.0, (step + 1) / self.rise) if self.rise > 0 else 1.0
        if self.begin is None:
            return risen
        if step >= self.begin + self.length:
            return None
        return risen * (0.5 + 0.5 * math.cos(math.pi * _OF_COSINE * (step - self.begin) / self.length))
