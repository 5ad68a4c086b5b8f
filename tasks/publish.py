"""The end of a run: pictures, and a summary as Prefect artifacts."""

from __future__ import annotations

import base64
import io
from functools import partial
from typing import Any

from PIL import Image
from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from pti_core import report
from pti_core.runs import load_run
from pti_core.shard.shard_progress import drawing
from pti_core.storage.share import others_left, share_of
from pti_core.words import counted, some_of
from tasks.credentials import use_credentials
from tasks.page import key_of, show
from tasks.progress import reporter
from tasks.tries import UNKEPT

MAX_PICTURE = 250_000  # bytes of JPEG; the server keeps artifacts in its database
MAX_WIDTH = 1400  # pixels
COLUMNS = {  # of the table of medians: heading, decimals
    "lpips": ("LPIPS", 4),
    "mse": ("MSE", 4),
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "steps": ("steps", 0),
    "seconds": ("s per image", 1),
}


@task(name="publish-summary", task_run_name="publish", **UNKEPT)
def publish_summary(root: str, run: str, credentials: str | None = None, part: str | None = None) -> dict[str, Any]:
    """Write the contact sheet where it is missing; publish medians, summary and picture; return the summary.

    At the end of a `part`, while others are at work, only `run`, `part` and how many shards are `left`.
    """
    use_credentials(credentials)
    opened, share = load_run(root, run), share_of(part)
    if not share.whole and (left := len(opened.to_do().shards)):
        get_run_logger().info(others_left(run, share, left))
        return {"run": run, "part": str(share), "left": left}
    get_run_logger().info("all shards are done; writing the contact sheet and the report where they are missing")
    tell = reporter()
    summary = report.publish(opened, lambda what, done, total: tell(drawing(what, done, total)))
    of = some_of(summary.get("medians_of", summary["images"]), summary["images"], "image")
    medians = f"Medians of {of} of run {run}"
    text, words = report.markdown(summary), f"Run {run}: {root}"
    table, keys = _table(summary["medians"]), partial(key_of, address=opened.dataset)
    artifacts = [
        partial(create_table_artifact, table=table, key=keys("pti-medians"), description=medians),
        partial(create_markdown_artifact, key=keys("pti-summary"), markdown=text, description=words),
    ]
    if summary["contact_sheet"]:
        sheet = opened.store.files.get(f"runs/{run}/report/{report.CONTACT_SHEET}", f"run {run}: no contact sheet")
        words = f"Run {run}, in full: {summary['contact_sheet']}"
        key = keys("pti-contact-sheet")
        artifacts.append(partial(create_image_artifact, as_data_uri(sheet), key=key, description=words))
    show(artifacts, "the tables are complete, and the same run again publishes it")
    lpips = ", ".join(f"{stage} {row['lpips']:.4f}" for stage, row in summary["medians"].items() if row.get("lpips"))
    found = f"{counted(summary['images'], 'image')} inverted, {summary['rejected']:,} rejected"
    get_run_logger().info("run %s is complete: %s%s", run, found, f"; medians of LPIPS: {lpips}" if lpips else "")
    return summary


def _table(medians: dict[str, dict[str, float | None]]) -> list[dict[str, str]]:
    """The medians as a person reads them, without columns that nothing was measured for."""
    columns = {name: how for name, how in COLUMNS.items() if any(row.get(name) is not None for row in medians.values())}

    def text(value: float | None, decimals: int) -> str:
        return "" if value is None else f"{value:.{decimals}f}"

    return [
        {"stage": stage} | {heading: text(row.get(name), digits) for name, (heading, digits) in columns.items()}
        for stage, row in medians.items()
    ]


def as_data_uri(picture: bytes, most: int = MAX_PICTURE) -> str:
    """A picture as a JPEG of at most so many bytes that needs no other server: the store may be private."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    scale = min(1.0, MAX_WIDTH / image.width)
    while True:
        reduced = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        for quality in (85, 60):
            buffer = io.BytesIO()
            reduced.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= most:
                return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        scale *= 0.85
