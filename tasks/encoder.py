"""The training of a generator's encoder."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from pti_core.addresses import redact
from pti_core.encoder import making
from pti_core.shard.shard_progress import ShardProgress
from pti_core.words import PERCENT
from tasks.credentials import use_credentials
from tasks.page import show
from tasks.progress import reporter
from tasks.tries import UNKEPT, worth_another_try


@task(name="train-encoder", retries=1, retry_condition_fn=worth_another_try, **UNKEPT)
def make_encoder(
    generator: str,
    samples: int,
    drawing_steps: int,
    seed: int,
    overwrite: bool = False,
    folder: str | None = None,
    credentials: str | None = None,
) -> dict[str, Any]:
    """Train an encoder and keep it if it is of use; publish its figures. What is there stays, unless `overwrite`."""
    use_credentials(credentials)
    report = reporter()

    def on_training(doing: str, share: float) -> None:
        report(ShardProgress(0, 100 * share, 100, None, doing, PERCENT))

    made = making.make(generator, samples, drawing_steps, seed, overwrite, folder, on_training)
    description = f"Encoder of generator {redact(generator)}"
    artifact = partial(create_markdown_artifact, key="encoder", markdown=made["markdown"], description=description)
    kept = made["path"] is not None
    show([artifact], "the encoder is kept, with its figures beside it" if kept else "the encoder was not kept")
    if made["trained"] and kept:
        get_run_logger().info("encoder of %s: %s", redact(generator), made["path"])
    elif kept:
        get_run_logger().info("encoder of %s: %s was there already", redact(generator), made["path"])
    if made["remark"]:
        get_run_logger().warning(made["remark"])
    return made
