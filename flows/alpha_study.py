"""The flow `alpha-study`: what the distance of the locality regulariser does, on images of a finished run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows.addresses import Address
from flows.run_names import named
from flows.runners import RunnerName, started
from flows.shard_work import do_shards
from pti_core.alpha.study import ALPHAS
from tasks.alpha import plan_alpha_study, publish_alpha_study, study_alpha

Positive = Annotated[int, Field(ge=1)]
Alphas = Annotated[list[float | Literal["off"]], Field(min_length=1)]
DEFAULT: list[float | Literal["off"]] = list(ALPHAS)


@flow(name="alpha-study", flow_run_name=named("alpha-study", "root"), validate_parameters=True)
def alpha_study(
    root: Address = "out/demo",
    run: str | None = None,
    limit: Positive = 12,
    images: list[str] | None = None,
    alphas: Alphas = DEFAULT,
    z_samples: Positive = 2,
    shards_per_task: Positive = 1,
    runner: RunnerName = "threads",
    address: Address | None = None,
    workers: Positive | None = None,
    resources: dict[str, float] | None = None,
    credentials: str | None = None,
) -> dict[str, Any]:
    """Tune images with several alphas and without the regulariser; compare the generators; say what was found.

    Args:
        root: Root of the tables of a run: its output, a folder or any fsspec URL
        run: Name of the run; the newest if left out
        limit: Only the first so many images of the run
        images: Only these image_ids, whatever the limit
        alphas: In the paper's unit, 0 for the pivot itself, and 'off' for tuning without the regulariser
        z_samples: Samples z for an image
        shards_per_task: Shards that one task does; more cost less
        runner: Where tasks run: here, or on a Dask or Ray cluster
        address: Of the Dask scheduler or the Ray head; none starts one
        workers: Tasks at once; by default one thread, or what the cluster has room for
        resources: What a task takes of a cluster's worker, e.g. {'GPU': 1}
        credentials: Name of a Secret block: storage options as JSON. Never the secrets themselves
    """
    plan = plan_alpha_study(root, run, limit, images or [], list(alphas), z_samples, credentials)
    common = {"root": root, "run": plan["run"], "request": plan["request"], "credentials": credentials}
    shard = {one["shard"]: one for one in plan["shards"]}

    def parameters(step: int, numbers: Any) -> dict[str, Any]:
        chosen = [shard[number] for number in numbers]
        return common | {"chosen": chosen, "images": plan["images"], "version": plan["version"]}

    do_shards([study_alpha], plan, shards_per_task, parameters, started(runner, workers, address, resources))
    return publish_alpha_study(shards=plan["shards"], **common)
