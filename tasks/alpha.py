"""The alpha study of the images of one shard, and its page."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact

from pti_core.alpha import report, shards
from pti_core.alpha.study import Alpha, check_alphas
from pti_core.runs import find_run, load_run
from tasks.credentials import use_credentials
from tasks.progress import reporter
from tasks.shards import RETRY, worth_another_try


@task(name="plan-alpha-study")
def plan_alpha_study(
    root: str, run: str | None, images: int, ids: list[str], alphas: list[Alpha], credentials: str | None = None
) -> dict[str, Any]:
    """Check what was asked; the run, the alphas in order, and the images by shard."""
    use_credentials(credentials)
    opened = find_run(root, run)
    chosen = shards.chosen(opened, images, ids)
    return {
        "run": opened.name,
        "alphas": check_alphas(alphas),
        "shards": [[number, names] for number, names in chosen.items()],
        "pending": list(chosen),
        "images": sum(map(len, chosen.values())),
        "done": 0,
    }


@task(name="study-alpha", task_run_name="study-alpha-{chosen[0][0]}", retry_condition_fn=worth_another_try, **RETRY)
def study_alpha(
    root: str,
    run: str,
    chosen: list[tuple[int, list[str]]],
    alphas: list[Alpha],
    z_samples: int,
    credentials: str | None = None,
) -> list[dict[str, int]]:
    """Tune each image with each alpha, compare old and new generator, write two tables and a picture an image."""
    use_credentials(credentials)
    opened, report_progress = load_run(root, run), reporter()
    for shard, ids in chosen:
        shards.study_shard(opened, shard, ids, alphas, z_samples, report_progress)
    return [{"shard": shard, "images": len(ids)} for shard, ids in chosen]


@task(name="publish-alpha-study")
def publish_alpha_study(root: str, run: str, credentials: str | None = None) -> dict[str, Any]:
    """Write plots and page; publish the page; return the findings."""
    use_credentials(credentials)
    found = report.publish(load_run(root, run))
    create_markdown_artifact(key="alpha-study", markdown=found["markdown"], description=f"Alpha study of run {run}")
    return found
