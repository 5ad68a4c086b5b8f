"""`pti report`: the page of a run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flows import options
from flows.lines import line


def report(
    root: options.Root,
    run: options.RunName = None,
    images: Annotated[
        str | None, typer.Option(help="How many images get pictures: a number, or 'all'. 48 if left out.")
    ] = None,
    one_file: Annotated[
        bool,
        typer.Option("--one-file", help="Hold all pictures in the page, to send it; above 300 they lie beside it."),
    ] = False,
    credentials: options.Credentials = None,
) -> None:
    """Write the report of a run, a page to open in a browser: runs/<run>/report/index.html.

    Half of the pictures are of the worst images by any measure, half of random ones. What was drawn before is kept.
    """
    from flows.console import ProgressView

    console = Console()
    with ProgressView(console, "the run") as view:
        from pti_core.html_report import DRAWN, write_page
        from pti_core.runs import find_run
        from pti_core.shard.shard_progress import drawing
        from pti_core.words import counted

        count = _count(images, DRAWN)
        options.use_credentials(credentials)
        opened = find_run(root, run)
        written = write_page(opened, count, lambda done, total: view(drawing("report", done, total)), one_file)
    text = f"{counted(written.images, 'image')}, {written.drawn} with pictures, {written.bytes / 2**20:.1f} MiB"
    if written.beside:
        text += f", and {written.beside / 2**20:.1f} MiB of pictures beside it in sprites/"
    line(console, f"report  {written.path} ({text})")


def _count(images: str | None, default: int) -> int | None:
    """The number of images with pictures; None for all."""
    if images is None:
        return default
    if images == "all":
        return None
    if not images.isdecimal():
        raise ValueError(f"--images {images!r}: a number from 0 up, or 'all', expected")
    return int(images)
