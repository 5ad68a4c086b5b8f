"""Edits of a run as tasks: plan, edit shards, publish. Only names and numbers go in, counts and medians come out."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from prefect import task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.logging import get_run_logger

from pti_core.addresses import redact
from pti_core.editing import plans, report
from pti_core.editing.pictures import strength_text
from pti_core.editing.shards import edit_shard
from pti_core.runs import load_run
from pti_core.words import counted
from tasks.credentials import use_credentials
from tasks.page import show
from tasks.placement import use_own_share
from tasks.progress import reporter
from tasks.publish import as_data_uri
from tasks.tries import RETRY, UNKEPT, each

COLUMNS = {  # of the table of medians: heading, decimals
    "lpips": ("LPIPS tuned", 3),
    "lpips_base": ("LPIPS base", 3),
    "correlation": ("correlation", 3),
    "gain": ("gain", 2),
    "identity": ("identity", 3),
}


@task(name="plan-edits", **UNKEPT)
def plan_edits(
    root: str,
    run: str | None,
    directions: list[str] | None = None,
    strengths: list[float] | None = None,
    images: list[str] | None = None,
    pictures: bool = True,
    credentials: str | None = None,
) -> dict[str, Any]:
    """Check everything and freeze the directions; the run's name, the request, and the shards still to do."""
    use_credentials(credentials)
    plan = plans.plan(root, run, directions, strengths, images, pictures)
    for remark in plan.remarks:
        get_run_logger().warning(remark)
    total, done = plan.left
    request = asdict(plan.request)
    work = (
        f"{counted(total, 'image')} x {counted(len(plan.request.directions), 'direction')}, {done:,} images done before"
    )
    get_run_logger().info("edits of run %s in %s: %s", plan.run.name, redact(root), work)
    found = {"run": plan.run.name, "version": plan.run.version, "request": request}
    return {**found, "images": total, "done": done, "pending": plan.pending}


@task(name="edit-shards", task_run_name="edit-{numbers[0]}", **RETRY)
def edit_shards(
    root: str,
    run: str,
    numbers: list[int],
    request: dict[str, Any],
    version: str | None = None,
    credentials: str | None = None,
) -> list[dict[str, Any]]:
    """Edit the images of shards; write pictures and the table `edits`. Counts of each shard."""
    use_credentials(credentials)
    use_own_share()
    opened, report_progress = load_run(root, run, version), reporter()
    return each(numbers, lambda number: edit_shard(opened, number, plans.Request(**request), report_progress))


@task(name="publish-edits", task_run_name="publish", **UNKEPT)
def publish_edits(root: str, run: str, request: dict[str, Any], credentials: str | None = None) -> dict[str, Any]:
    """Write the sheet of pictures; publish it and the medians; return the summary."""
    use_credentials(credentials)
    opened = load_run(root, run)
    summary = report.publish(opened, plans.Request(**request))
    table, words = table_of(summary.medians), f"Medians over {summary.images} images of run {run}"
    words += ": what edits do after tuning, and before"
    artifacts = [partial(create_table_artifact, table=table, key="pti-edits", description=words)]
    if summary.sheet:
        sheet = opened.store.files.get(f"runs/{run}/report/{report.SHEET}", f"run {run}: no sheet of edits")
        words = f"In full: {summary.sheet}"
        artifacts.append(partial(create_image_artifact, as_data_uri(sheet), key="pti-edits-sheet", description=words))
    show(artifacts)
    get_run_logger().info("edits of run %s are complete: %s in %s", run, counted(summary.images, "image"), redact(root))
    return asdict(summary)


def table_of(medians: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The medians as a person reads them, without measures that were not taken."""
    columns = {name: how for name, how in COLUMNS.items() if any(row[name] is not None for row in medians)}

    def text(value: float | None, decimals: int) -> str:
        return "" if value is None else f"{value:.{decimals}f}"

    return [
        {"direction": row["direction"], "strength": strength_text(row["strength"])}
        | {heading: text(row[name], digits) for name, (heading, digits) in columns.items()}
        for row in medians
    ]
