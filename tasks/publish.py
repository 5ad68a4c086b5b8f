"""The end of a run: pictures, and a summary as Prefect artifacts."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pti_core import report
from pti_core.runs import load_run


@task(name="publish-summary")
def publish_summary(root: str, run: str) -> dict[str, Any]:
    """Write the contact sheet where it is missing; publish the table of medians; return the summary."""
    opened = load_run(root, run)
    summary = report.publish(opened)
    rows = [{"stage": stage, **values} for stage, values in summary["medians"].items()]
    create_table_artifact(table=rows, key="pti-medians", description=f"Medians of run {run}")
    create_markdown_artifact(key="pti-summary", markdown=report.markdown(summary))
    return summary
