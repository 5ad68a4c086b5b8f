"""The flow `alpha-study`: what the distance of the locality regulariser does, on images of a finished run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows.runners import RunnerName, started
from flows.shard_work import do_shards
from tasks.alpha import plan_alpha_study, publish_alpha_study, study_alpha

ALPHAS: tuple[float | Literal["off"], ...] = (0, 10, 15, 20, 30, 45, 60, 90, "off")
Count = Annotated[int, Field(ge=1)]


@flow(name="alpha-study", validate_parameters=True)
def alpha_study(
    root: str = "out/demo",
    run: str | None = None,
    images: Count = 12,
    ids: list[str] | None = None,
    alphas: list[float | Literal["off"]] | None = None,
    z_samples: Count = 2,
    runner: RunnerName = "threads",
    address: str | None = None,
    workers: Count | None = None,
    resources: dict[str, float] | None = None,
    credentials: str | None = None,
) -> dict[str, Any]:
    """Tune images with several alphas and without the regulariser; compare the generators; say what was found.

    Args:
        root: root of a finished run's tables, a folder or any fsspec URL.
        run: name of the run; the newest if left out.
        images: the first so many images of the run.
        ids: these images instead, by image_id.
        alphas: in the paper's unit, and 'off' for tuning without the regulariser; by default 0 to 90 and 'off'.
        z_samples: samples z for an image.
        runner: where tasks run: in threads of this process, or on a Dask or Ray cluster.
        address: of the Dask scheduler or the Ray head; without one a cluster is started.
        workers: tasks that compute at once; by default 1, or what the cluster has room for.
        resources: what a task takes of a cluster's worker, e.g. {"GPU": 1}.
        credentials: name of a Secret block with storage options as JSON; never the secrets themselves.
    """
    plan = plan_alpha_study(root, run, images, ids or [], list(alphas or ALPHAS), credentials)
    common = {"root": root, "run": plan["run"], "credentials": credentials}
    images_of = dict(plan["shards"])

    def parameters(step: int, numbers: Any) -> dict[str, Any]:
        chosen = [[number, images_of[number]] for number in numbers]
        return common | {"chosen": chosen, "alphas": plan["alphas"], "z_samples": z_samples}

    do_shards([study_alpha], plan, 1, parameters, started(runner, workers, address, resources))
    return publish_alpha_study(**common)
