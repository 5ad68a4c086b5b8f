"""What comes of a tuned generator: its delta as it is stored, and the measures of pivot, tuned and stored pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from pti_core import deltas
from pti_core.inversions import Delta, Failure, Found, Inversion, Measures, Result, Stage
from pti_core.machine.device import exact_float32
from pti_core.measure import measure_fit
from pti_core.pivot import Pivots
from pti_core.tuning import Tuned

if TYPE_CHECKING:
    from pti_core.engine import Engine


def results_of(
    engine: Engine,
    owner: str,
    members: Sequence[Found],
    images: Tensor,
    pivots: Pivots,
    tuned: Tuned,
    seconds: float,
    at_once: int,
) -> list[Result]:
    """The delta of an owner whose generator is tuned, and what its images `[K, C, H, W]` look like; or failures.

    `seconds`: an image's share of the tuning. Images are drawn `at_once`.
    """
    config = engine.config
    try:
        with exact_float32(engine.device):
            encoded = deltas.fit(
                engine.generator,
                tuned.generator,
                images,
                pivots,
                engine.lpips,
                config.codec,
                at_once,
                config.tuning.max_resolution,
            )
    except deltas.NotFiniteError:
        way_out = f"a tuning.lr below {config.tuning.lr:g} may help (a new run)"
        ids = [member.target.image_id for member in members]
        return [
            Failure(
                name, "tuning", "NotFinite", f"image_id {name!r}: its tuning diverged to NaN; {way_out}", permanent=True
            )
            for name in ids
        ]
    shots: list[bytes] = []
    measured = partial(measure_fit, images, pivots, engine.lpips, at_once)
    measures: dict[Stage, list[Measures]] = {
        "pivot": measured(engine.generator),
        "tuned": measured(tuned.generator.with_precision("fp32"), shots),
        "stored": measured(engine.stored_generator(encoded)),
    }
    inversions = [
        Inversion(
            image_id=member.target.image_id,
            owner=owner,
            w=member.pivot.w[0].cpu(),
            noise=member.noise,
            measures={stage: rows[i] for stage, rows in measures.items()},
            shot=shots[i],
            pivot_steps=config.pivot.steps,
            tuning_steps=tuned.steps,
            pivot_seconds=member.seconds,
            tuning_seconds=seconds,
            seed=config.seed,
        )
        for i, member in enumerate(members)
    ]
    return [*inversions, Delta(owner, encoded)]
