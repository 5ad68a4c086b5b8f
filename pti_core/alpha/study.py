"""The alpha study of one image: how near w_r is to w_z, and what tuning with each alpha leaves of the old generator.

(a) Nearness: G(w_r) against G(w_z), base generator, as alpha grows ("60 is nearly w_z, 30 is a compromise").
(b) Drift: tuned from the same pivot with each alpha and without the regulariser, same random numbers, same number of
steps; old against new generator along the whole path from the pivot to w_z and at w_z ("the loss at w_z is lower when
tuned with alpha 30"). Roich et al. 2021, section 3.2 and equations 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from torch import Tensor

from pti_core.config import LARGEST_ALPHA, MeasureConfig, RunConfig
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.locality import interpolate
from pti_core.machine.device import exact_float32
from pti_core.measure import measure_locality
from pti_core.metrics import measure, round_uint8
from pti_core.pivot import Pivots
from pti_core.sampling import ImageRandom, sample_w, seed_for
from pti_core.tuning import tune

OFF: Literal["off"] = "off"
Alpha = float | Literal["off"]

ALPHAS: Final[tuple[Alpha, ...]] = (0.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, OFF)
"""What is studied where nothing else is asked for."""


class AlphaError(ValueError):
    """An alpha that cannot be studied; the message says which and why."""


@dataclass(frozen=True)
class Nearness:
    """One point w_r against its w_z, both drawn by the base generator. Columns of the table `alpha_nearness`."""

    image_id: str
    seed: int  # of z
    alpha: float
    radius: float
    t: float
    lpips: float
    mse: float


@dataclass(frozen=True)
class Drift:
    """Two images after tuning with one alpha. Columns of the table `alpha_drift`."""

    image_id: str
    tuned_alpha: float | None  # None: without the regulariser
    where: Literal["target", "interpolated", "wz"]
    seed: int  # of z; 0 for the target
    alpha: float | None
    radius: float
    t: float
    lpips: float
    mse: float


def check_alphas(alphas: Sequence[Alpha]) -> list[Alpha]:
    """Sorted, each once, "off" last. AlphaError for one below 0 or none; 0 is the pivot itself and only in (a)."""
    numbers = sorted({float(alpha) for alpha in alphas if alpha != OFF})
    for alpha in numbers:
        if not 0 <= alpha <= LARGEST_ALPHA:
            way = "30 is half way to a sample"
            raise AlphaError(f"alpha {alpha:g}: 0 or above, up to 1e6, expected (in the paper's unit; {way})")
    if not any(numbers):
        raise AlphaError(f"alphas {list(alphas)}: at least one above 0 expected, such as 30")
    return [*numbers, *([OFF] if OFF in alphas else [])]


@torch.no_grad()
def nearness(
    engine: Engine, ws: Tensor, image_id: str, alphas: Sequence[Alpha], z_samples: int, seed: int = 0
) -> list[Nearness]:
    """G(w_r) against G(w_z) around a pivot ws `[1, num_ws, w_dim]`, for the samples that (b) measures at too."""
    generator, rows = engine.generator, []
    with exact_float32(engine.device):
        for i in range(z_samples):
            z_seed = seed_for(image_id, f"locality/{i}", seed)
            w_z = sample_w(generator, ImageRandom([z_seed], ws.device))
            there = round_uint8(generator.synthesis(w_z[:, None].expand_as(ws)))
            for alpha in alphas:
                if alpha == OFF:
                    continue
                point = interpolate(ws, w_z, float(alpha)) if alpha else None
                here = round_uint8(generator.synthesis(point.ws if point else ws))
                rows.append(
                    Nearness(
                        image_id,
                        z_seed,
                        float(alpha),
                        point.radius.item() if point else 0.0,
                        point.t.item() if point else 0.0,
                        engine.lpips(here, there).item(),
                        (here - there).square().mean().item(),
                    )
                )
    return rows


def tuned_with(
    engine: Engine, target: Tensor, pivots: Pivots, image_id: str, alpha: Alpha, on_step: Callable[[int], None]
) -> Generator:
    """The generator tuned for a target `[C, H, W]` at its pivot with one alpha, or without the regulariser.

    All random numbers are the same for every alpha, and no tuning stops early, so that differences are paired.
    """
    config: RunConfig = engine.config
    locality = config.locality.model_copy(
        update={"enabled": False} if alpha == OFF else {"enabled": True, "alpha": float(alpha)}
    )
    tuned = tune(
        engine.drawing,
        target[None].to(engine.device),
        pivots,
        [seed_for(image_id, "tuning", config.seed)],
        config.tuning.model_copy(update={"stop_lpips": 0.0}),
        locality,
        engine.judge,
        lambda step, lpips: on_step(step),
        engine.at_once,
        engine.bases,
    )
    return tuned.generator.with_precision("fp32")


@torch.no_grad()
def drift(
    engine: Engine,
    new: Generator,
    target: Tensor,
    pivots: Pivots,
    image_id: str,
    tuned_alpha: Alpha,
    alphas: Sequence[Alpha],
    z_samples: int,
) -> list[Drift]:
    """Old against new generator along the path and at w_z; and how well the new one draws the target."""
    key = None if tuned_alpha == OFF else float(tuned_alpha)
    with exact_float32(engine.device):
        fit = measure(target[None].to(engine.device), new.synthesis(pivots.ws, noise=pivots.noise), engine.lpips)[0]
    rows = [Drift(image_id, key, "target", 0, None, 0.0, 0.0, float(fit["lpips"] or 0), float(fit["mse"] or 0))]
    path = MeasureConfig(alphas=tuple(float(a) for a in alphas if a and a != OFF), z_samples=z_samples)
    seed = engine.config.seed
    compared = partial(measure_locality, engine.generator, new, pivots.ws, image_id, path, engine.lpips, seed)
    for row in engine.drawn_at_once(compared):
        rows.append(Drift(image_id, key, row.where, row.seed, row.alpha, row.radius, row.t, row.lpips, row.mse))
    return rows
