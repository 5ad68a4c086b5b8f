"""The alpha study as tasks: plan, study shards, publish. Only names and numbers go in, counts and findings come out."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.logging import get_run_logger

from pti_core.addresses import redact
from pti_core.alpha import plans, report
from pti_core.alpha.shards import study_shard
from pti_core.alpha.stored import Request
from pti_core.alpha.study import Alpha
from pti_core.runs import load_run
from pti_core.words import counted
from tasks.credentials import use_credentials
from tasks.page import show
from tasks.placement import use_own_share
from tasks.progress import reporter
from tasks.publish import as_data_uri
from tasks.tries import RETRY, UNKEPT, each

KEY = "pti-alpha-study"  # of the artifact in words; those of the pictures begin with it
SHOWN = {"nearness": "How near is w_r to w_z", "drift": "Old against new generator", "strip": "The first image"}


@task(name="plan-alpha-study", **UNKEPT)
def plan_alpha_study(
    root: str,
    run: str | None,
    limit: int,
    images: list[str],
    alphas: list[Alpha],
    z_samples: int,
    credentials: str | None = None,
) -> dict[str, Any]:
    """Check what was asked; the run, the request, the images by shard, and the shards still to do."""
    use_credentials(credentials)
    plan = plans.plan(root, run, limit, images, alphas, z_samples)
    (total, done), before = plan.left, plan.before
    work = f"{counted(total, 'image')} x {counted(len(plan.request.alphas), 'alpha')}, {done:,} images done before"
    get_run_logger().info("alpha study of run %s in %s: %s", plan.run.name, redact(root), work)
    return {
        "run": plan.run.name,
        "version": plan.run.version,
        "request": asdict(plan.request),
        "shards": [{"shard": n, "ids": names, "before": before[n]} for n, names in plan.images.items()],
        "pending": plan.pending,
        "images": total,
        "done": done,
    }


@task(name="study-alpha", task_run_name="study-alpha-{chosen[0][shard]}", **RETRY)
def study_alpha(
    root: str,
    run: str,
    chosen: list[dict[str, Any]],
    request: dict[str, Any],
    images: int,
    version: str | None = None,
    credentials: str | None = None,
) -> list[dict[str, int]]:
    """Tune each image with each alpha, compare old and new generator, write two tables and a picture an image."""
    use_credentials(credentials)
    use_own_share()
    opened, report_progress = load_run(root, run, version), reporter()
    of = {one["shard"]: one for one in chosen}

    def study(number: int) -> dict[str, int]:
        ids, before = of[number]["ids"], of[number]["before"]
        found = study_shard(opened, number, ids, Request(**request), report_progress, before, images)
        for why in found.left_out.values():
            get_run_logger().warning("left out: %s", why)
        return {"shard": number, "images": len(ids)}

    return each(list(of), study)


@task(name="publish-alpha-study", task_run_name="publish", **UNKEPT)
def publish_alpha_study(
    root: str, run: str, shards: list[dict[str, Any]], request: dict[str, Any], credentials: str | None = None
) -> dict[str, Any]:
    """Write page, plots and findings; publish findings and pictures; return the summary."""
    use_credentials(credentials)
    opened = load_run(root, run)
    found = report.publish(opened, {one["shard"]: one["ids"] for one in shards}, Request(**request))
    words = f"Alpha study of run {run}: {found.page}"
    artifacts = [partial(create_markdown_artifact, key=KEY, markdown=found.markdown, description=words)]
    for name, path in found.pictures.items():
        picture = as_data_uri(opened.store.files.get(path, f"run {run}: no picture {path!r}"))
        words = f"{SHOWN[name]}: {root}/{path}"
        artifacts.append(partial(create_image_artifact, picture, key=f"{KEY}-{name}", description=words))
    show(artifacts)
    get_run_logger().info("alpha study of run %s is complete: %s", run, redact(found.page))
    return asdict(found)
