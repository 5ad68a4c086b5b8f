"""The flow `pti`: freeze the manifest, invert each shard, measure it, publish a summary."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from pti_core.presets import configure
from tasks.freeze import freeze_manifest
from tasks.publish import publish_summary
from tasks.shards import invert_shard, measure_shard

Dataset = Annotated[str, Field(description="Folder, glob, file or archive (any fsspec URL), or 'demo'")]
Output = Annotated[str, Field(description="Where the tables go: a folder or any fsspec URL")]
GeneratorRef = Annotated[str, Field(description="A built-in name ('pocket-ffhq-128') or the path of a checkpoint")]
Limit = Annotated[int | None, Field(ge=1, description="Only the first images")]


@flow(name="pti", flow_run_name="pti-{preset}", validate_parameters=True)
def pti(
    dataset: Dataset = "demo",
    output: Output = "out/demo",
    generator: GeneratorRef = "pocket-ffhq-128",
    preset: Literal["demo", "fast", "paper"] = "fast",
    mode: Annotated[Literal["single", "multi"], Field(description="A generator an image, or one a folder")] = "single",
    limit: Limit = None,
    existing: Literal["resume", "overwrite"] = "resume",
    convert: bool = False,
    seed: int = 0,
    shard_size: Annotated[int, Field(ge=1, description="Images in a shard, the unit of work")] = 64,
    workers: Annotated[int, Field(ge=1, description="Shards at once in this process")] = 1,
    settings: Annotated[dict[str, Any] | None, Field(description="Single settings, e.g. {'tuning.steps': 100}")] = None,
) -> dict[str, Any]:
    """Invert a data set into a generator: pivots, weight deltas, metrics and locality as Parquet tables.

    Args:
        dataset: a folder, glob, file or archive behind any fsspec URL, or `demo`, the packaged faces.
        output: root of the tables, a folder or any fsspec URL.
        generator: a built-in name, or the path or URL of a checkpoint.
        preset: `demo` (minutes on a laptop), `fast`, or `paper` (as published).
        mode: a generator for each image (`single`), or one for each folder of images (`multi`).
        limit: only the first images.
        existing: finish what is missing of the same job (`resume`), or do it again (`overwrite`).
        convert: accept grey, palette, CMYK, 16-bit and transparent images too, converted to RGB.
        seed: of all random numbers.
        shard_size: images in a shard.
        workers: shards at once in this process; more than one needs a device that holds as many.
        settings: single settings by dotted name, over the preset's.
    """
    overrides = {"mode": mode, "seed": seed, "image.convert": convert, **(settings or {})}
    config = configure(preset, overrides).model_dump(mode="json")
    frozen = freeze_manifest(dataset, output, generator, config, limit, shard_size, existing)
    root, run = output, frozen["run"]

    failed: dict[int, str] = {}
    # Twice the threads, since a measuring task holds one while it waits for its inversion.
    threads: Any = ThreadPoolTaskRunner(max_workers=2 * workers)  # its types know only coroutines
    with threads as runner:
        in_flight: deque[tuple[int, list[PrefectFuture[Any]]]] = deque()
        for shard in frozen["pending"]:
            if len(in_flight) >= workers:  # a window, so that memory does not grow with the number of shards
                failed |= _failure(*in_flight.popleft())
            inverted = runner.submit(invert_shard, {"root": root, "run": run, "shard": shard})
            measured = runner.submit(measure_shard, {"root": root, "run": run, "inverted": inverted})
            in_flight.append((shard, [inverted, measured]))
        for shard, futures in in_flight:
            failed |= _failure(shard, futures)
    if failed:
        first = min(failed)
        raise ShardsFailed(
            f"{len(failed)} of {len(frozen['pending'])} shards failed and are left for the next run, "
            f"first shard {first}: {failed[first]}"
        )
    return publish_summary(root, run)


class ShardsFailed(RuntimeError):
    """Some shards could not be done; the others are in the store."""


def _failure(shard: int, futures: list[PrefectFuture[Any]]) -> dict[int, str]:
    """Wait for a shard's tasks; what the first that failed of them failed of, by the shard's number."""
    for future in futures:
        future.wait()
        if not future.state.is_completed():
            error = future.result(raise_on_failure=False)
            return {shard: str(error) if isinstance(error, Exception) else str(future.state.message)}
    return {}
