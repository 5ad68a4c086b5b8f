"""The flow `train-encoder`: an encoder from image to w, from nothing but a generator."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.addresses import Address
from flows.run_names import named
from flows.stopping import end_when_told
from pti_core.defaults import DEFAULT_GENERATOR
from pti_core.words import PERCENT
from tasks.encoder import make_encoder
from tasks.progress import run_progress

Samples = Annotated[int, Field(ge=16)]
Steps = Annotated[int, Field(ge=0)]
SAMPLES, DRAWING_STEPS = 6000, 400


@flow(name="train-encoder", flow_run_name=named("train-encoder", "generator"), validate_parameters=True)
def train_encoder(
    generator: Address = DEFAULT_GENERATOR,
    samples: Samples = SAMPLES,
    drawing_steps: Steps = DRAWING_STEPS,
    seed: int = 0,
    overwrite: bool = False,
    folder: Address | None = None,
    credentials: str | None = None,
) -> dict[str, Any]:
    """Train an encoder for a generator on its own samples; runs then start their search for the pivot at its w.

    Args:
        generator: built-in name, path or fsspec URL of a generator.
        samples: samples of the generator to train on; most of the time goes into drawing them.
        drawing_steps: steps of the training's second half, which goes through the generator.
        seed: of all random numbers.
        overwrite: train also where this generator has an encoder; the new one replaces it.
        folder: where the encoder is written; by default the user's cache folder, where runs look for it.
        credentials: name of a Secret block with storage options as JSON; never the secrets themselves.
    """
    with run_progress(100, unit=PERCENT) as progress, end_when_told():
        made = make_encoder(generator, samples, drawing_steps, seed, overwrite, folder, credentials)
        progress.finished(0, 100)
    return made
