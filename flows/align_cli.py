"""`pti align`: faces cut out of photographs as generators of FFHQ know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from flows import options
from flows.lines import line, progress_of

SHOWN = 5  # images that are named of those that lack something


def align(
    dataset: Annotated[str, typer.Argument(help="Photographs: any data set that `pti run` takes.")],
    landmarks: Annotated[
        str, typer.Argument(help="CSV or Parquet: image_id, left_eye_x, left_eye_y, right_eye_x, ... mouth_right_y.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of this machine for the faces, PNG.")],
    size: Annotated[int, typer.Option(min=16, help="Pixels of a side: the generator's resolution or more.")] = 1024,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make faces anew that are there.")] = False,
    credentials: options.Credentials = None,
) -> None:
    """Align faces as FFHQ does, by the eyes and mouth that a face detector has found; then `pti run` them.

    Left is the left of the picture. A row is a face; an image may have several.
    """
    from pti_core.alignment import align as align_faces
    from pti_core.words import counted

    options.use_credentials(credentials)
    console = Console()
    with progress_of(console, "faces") as progress:
        done = align_faces(dataset, landmarks, output, size, overwrite, progress)
    for sentence in done.wrong:
        line(console, f"note: {sentence}", "yellow")
    _tell(console, "without landmarks", done.without)
    _tell(console, "with landmarks, and not in the data set", done.unknown)
    kept = f", {done.kept} were there" if done.kept else ""
    line(console, f"{counted(done.written, 'face')} in {output}{kept}")


def _tell(console: Console, what: str, names: Sequence[str]) -> None:
    """How many images are so, and the first of them."""
    if names:
        named = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        line(console, f"note: {len(names)} {what}: {named}", "yellow")
