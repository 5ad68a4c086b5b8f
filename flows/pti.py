"""The flow `pti`: freeze the manifest, invert each shard, measure it, publish a summary."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows.addresses import Address
from flows.run_names import named
from flows.runners import RunnerName, started
from flows.shard_work import do_shards
from pti_core.defaults import DEFAULT_GENERATOR, SHARD_SIZE
from pti_core.machine.device import best_device
from pti_core.machine.parallel import tasks_for_all_cores
from pti_core.presets import configure
from pti_core.storage.share import share_of
from tasks.freeze import freeze_manifest
from tasks.publish import publish_summary
from tasks.shards import invert_shards, measure_shards

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@flow(name="pti", flow_run_name=named("pti-{preset}", "dataset"), validate_parameters=True)
def pti(
    dataset: Address = "demo",
    output: Address = "out/demo",
    generator: Address = DEFAULT_GENERATOR,
    preset: Literal["demo", "fast", "paper", "noop"] = "fast",
    mode: Literal["single", "multi"] = "single",
    group_by: str | None = None,
    limit: Count | None = None,
    existing: Literal["resume", "extend", "overwrite"] = "resume",
    retry_rejects: bool = False,
    max_rejects: Share | None = None,
    convert: bool = False,
    seed: int = 0,
    shard_size: Count = SHARD_SIZE,
    shards_per_task: Count = 1,
    runner: RunnerName = "threads",
    address: Address | None = None,
    workers: Count | None = None,
    resources: dict[str, float] | None = None,
    credentials: str | None = None,
    part: str | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Invert a data set into a generator: pivots, weight deltas, metrics and locality as Parquet tables.

    The form of a deployment shows what is said here of the arguments.

    Args:
        dataset: folder, glob, archive, Parquet or one file (any fsspec URL), or 'demo', the packaged faces.
        output: where the tables go: a folder or any fsspec URL.
        generator: a built-in name ('pocket-ffhq-128'), or the path or URL of a checkpoint.
        preset: steps and weights of the method: 'fast' for data sets, 'paper' as published, 'demo' takes minutes on a
            laptop, 'noop' does nothing.
        mode: a generator for each image ('single'), or one for each group ('multi').
        group_by: groups of mode 'multi': 'folder', 'column:NAME', 'regex:PATTERN' or 'count:N'.
        limit: only the first images.
        existing: a job that was done before: finish it ('resume'), add new and changed images ('extend'), or do all
            of it again ('overwrite').
        retry_rejects: try again what failed for a passing reason.
        max_rejects: end early where more than this share is rejected of the images that this run has done, at least 200
            (or all of a smaller run): 0.2 is a fifth; by default any number is borne.
        convert: accept grey, palette, CMYK, 16-bit and transparent images, converted to RGB.
        seed: of the random numbers of images; each has its own, by this and its image_id.
        shard_size: images in a shard, the unit of work.
        shards_per_task: shards that one task does; more cost less.
        runner: where tasks run: in this process ('threads'), or on a Dask or Ray cluster.
        address: of the Dask scheduler or the Ray head; without one a cluster is started here.
        workers: tasks that compute at once; by default what a cluster has room for; in threads 1, but on a CPU in
            mode 'single' one for every `batch` cores. In threads half as many more read ahead and write behind.
        resources: what a task takes of a cluster's worker, e.g. {"GPU": 1}.
        credentials: name of a Prefect Secret block with storage options as JSON; never the secrets themselves.
        part: 'I/N' for the part I (from 0 to N-1) of N: only the shards whose number divided by N leaves I, where N
            processes or machines share an output. Runs of one deployment wait for each other, unless its
            concurrency limit is N.
        settings: single settings over the preset's, e.g. {"tuning.steps": 100}; docs/settings.md lists all.
    """
    share_of(part, existing)  # what is wrong is said before a cluster is started
    overrides = {"mode": mode, "seed": seed, "image.convert": convert, **(settings or {})}
    chosen = configure(preset, overrides)
    config = chosen.model_dump(mode="json")
    if workers is None and runner == "threads" and chosen.mode == "single":
        # Not in mode multi: a core would have a group, and memory all images of as many groups as there are cores.
        workers = tasks_for_all_cores(chosen.batch, best_device())
    # The cluster first: where it cannot be had, no run is frozen, which would be the newest one, with nothing in it.
    with started(runner, workers, address, resources) as pool:
        frozen = freeze_manifest(
            dataset, output, generator, config, limit, shard_size, existing, group_by, retry_rejects, credentials, part
        )
        common = {"root": output, "run": frozen["run"], "version": frozen["version"], "credentials": credentials}

        def parameters(step: int, content: Any) -> dict[str, Any]:
            own = {"inverted": content} if step else {"numbers": content, "retry_rejects": retry_rejects}
            return common | own

        do_shards([invert_shards, measure_shards], frozen, shards_per_task, parameters, nullcontext(pool), max_rejects)
    return publish_summary(output, frozen["run"], credentials, part)
