"""The start of a run: check everything, freeze the configuration and the list of inputs."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from pti_core.addresses import redact
from pti_core.config import RunConfig
from pti_core.freezing import freeze
from pti_core.status import others_at_work
from pti_core.storage.share import share_of
from pti_core.words import counted
from tasks.credentials import use_credentials
from tasks.tries import UNKEPT


@task(name="freeze-manifest", **UNKEPT)
def freeze_manifest(
    dataset: str,
    output: str,
    generator: str,
    config: dict[str, Any],
    limit: int | None,
    shard_size: int,
    existing: freeze.Existing,
    group_by: str | None = None,
    retry_rejects: bool = False,
    credentials: str | None = None,
    part: str | None = None,
) -> dict[str, Any]:
    """Freeze the run, or find it again; its name, its size, and the shards that are still to do, of a part its own."""
    use_credentials(credentials)
    share = share_of(part, existing)
    run = freeze.freeze(
        dataset,
        output,
        generator,
        RunConfig.model_validate(config),
        limit,
        shard_size,
        existing,
        group_by,
        flow_run.id,
        alone=share.whole,
    )
    for remark in run.remarks:
        get_run_logger().warning(remark)
    left = run.to_do(retry_rejects, share)
    pending, done = left.shards, left.images_done
    if others := others_at_work(run.store, run.name, pending):
        get_run_logger().warning(others)
    images = run.manifest.images_of(share)
    shards = f"{counted(len(pending), 'shard')} to do" if pending else "nothing to do"
    how_many = f"{counted(images, 'image')}, {done:,} of them done before, {shards}"
    which = f"run {run.name}" if share.whole else f"part {share} of run {run.name}"
    get_run_logger().info("%s in %s: %s", which, redact(output), how_many)
    return {
        "run": run.name,
        "version": run.version,
        "images": images,
        "done": done,
        "pending": pending,
        "fresh": left.fresh,
    }
