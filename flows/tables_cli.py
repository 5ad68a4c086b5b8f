"""`pti tables`: a run in a few large files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows import options
from flows.lines import line, progress_of

if TYPE_CHECKING:
    from pti_core.large_tables.gathering import Gathered
    from pti_core.large_tables.joined import Joined


def tables(
    root: options.Root,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder or fsspec URL for the files.")],
    run: options.RunName = None,
    join: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="CSV or Parquet with a column image_id: its columns go into images.parquet."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Of an unfinished run, take the shards that are done.")
    ] = False,
    noise: Annotated[
        bool, typer.Option("--noise", help="Keep the noise maps of pivots, which are most of their bytes.")
    ] = False,
    credentials: options.Credentials = None,
) -> None:
    """Write a run's many small files as a few large ones, for pandas, DuckDB and polars.

    images.parquet has a row an image with all that was measured; metrics, locality, pivots and rejects are copied.
    Deltas are not: they are large. Files of an earlier call are replaced.
    """
    from pti_core.large_tables.gathering import gather

    options.use_credentials(credentials)
    console = Console()
    with progress_of(console, "images") as progress:
        done = gather(root, output, run, join, partial, noise, progress)
    _show(console, done, output)


def _show(console: Console, done: Gathered, output: str) -> None:
    from pti_core.addresses import redact
    from pti_core.words import counted

    images = done.inverted + done.rejected
    line(console, f"run {done.run}: {counted(images, 'image')}, {done.rejected:,} of them rejected")
    for rows, files in done.files.values():
        names = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
        size = sum(file.bytes for file in files) / 2**20
        line(console, f"{redact(output).rstrip('/')}/{names} ({counted(rows, 'row')}, {size:.1f} MiB)")
    if done.joined is not None:
        line(console, *_matched(done.joined, images))
    if done.left_out:
        of = f"{done.shards:,} of {counted(done.shards + done.left_out, 'shard')}"
        line(console, f"note: these are {of}; `pti run` again finishes the run", "yellow")


def _matched(joined: Joined, images: int) -> tuple[str, str | None]:
    """How many rows of the file found their image; a note where none did."""
    from pti_core.words import counted

    text = f"{joined.name}: {joined.matched:,} of {counted(joined.rows, 'row')} matched, of {counted(images, 'image')}"
    if joined.matched or not joined.rows:
        return text, None
    return f"note: {text}; it names {joined.first()!r}, which has to be written as in images.parquet", "yellow"
