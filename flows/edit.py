"""The flow `edit`: freeze directions, edit each shard of a run, publish pictures and medians."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.addresses import Address
from flows.run_names import named
from flows.runners import RunnerName, started
from flows.shard_work import do_shards
from tasks.edit import edit_shards, plan_edits, publish_edits

Positive = Annotated[int, Field(ge=1)]


@flow(name="edit", flow_run_name=named("edit", "root"), validate_parameters=True)
def edit(
    root: Address = "out/demo",
    run: str | None = None,
    directions: Annotated[list[str], Field(min_length=1)] | None = None,
    strengths: Annotated[list[float], Field(min_length=1)] | None = None,
    images: list[str] | None = None,
    pictures: bool = True,
    shards_per_task: Positive = 1,
    runner: RunnerName = "threads",
    address: Address | None = None,
    workers: Positive | None = None,
    resources: dict[str, float] | None = None,
    credentials: str | None = None,
) -> dict[str, Any]:
    """Edit the images of a finished run with their tuned generators: pictures, and the table `edits`.

    Args:
        root: Root of the tables of a run: its output, a folder or any fsspec URL
        run: Name of the run; the newest if left out
        directions: Each pca:K, sefa:K, a file .npy .npz .pt, learned:TABLE (CSV or Parquet with image_id and score)
            or visible, the default; perhaps with :layers=coarse, :name=NAME, :key=ARRAY
        strengths: In standard deviations of W along the direction, other than 0; -2 and 2 if left out
        images: Only these image_ids; all if left out
        pictures: Write the edited images, beside the table of measures
        shards_per_task: Shards that one task does; more cost less
        runner: Where tasks run: here, or on a Dask or Ray cluster
        address: Of the Dask scheduler or the Ray head; none starts one
        workers: Tasks at once; by default one thread, or what the cluster has room for
        resources: What a task takes of a cluster's worker, e.g. {'GPU': 1}
        credentials: Name of a Secret block: storage options as JSON. Never the secrets themselves
    """
    plan = plan_edits(root, run, directions, strengths, images, pictures, credentials)
    common = {"root": root, "run": plan["run"], "version": plan["version"], "credentials": credentials}

    def parameters(step: int, numbers: Any) -> dict[str, Any]:
        return common | {"numbers": numbers, "request": plan["request"]}

    do_shards([edit_shards], plan, shards_per_task, parameters, started(runner, workers, address, resources))
    return publish_edits(root, plan["run"], plan["request"], credentials)
