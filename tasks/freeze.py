"""The start of a run: check everything, freeze the configuration and the list of inputs."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from pti_core import runs
from pti_core.config import RunConfig


@task(name="freeze-manifest")
def freeze_manifest(
    dataset: str,
    output: str,
    generator: str,
    config: dict[str, Any],
    limit: int | None,
    shard_size: int,
    existing: runs.Existing,
) -> dict[str, Any]:
    """Freeze the run, or find it again; its name, and the shards that are still to do."""
    run = runs.freeze(dataset, output, generator, RunConfig.model_validate(config), limit, shard_size, existing)
    for remark in run.remarks:
        get_run_logger().warning(remark)
    return {"run": run.name, "images": len(run.manifest), "pending": run.pending()}
