"""`pti export`: the tuned generator of an image as a file, or inverted images as pictures."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flows import options
from flows.lines import line, progress_of


def export(
    root: options.Root,
    image_id: Annotated[str | None, typer.Argument(help="Image, as in the pivots table.")] = None,
    pictures: Annotated[
        str | None,
        typer.Option(
            "--pictures",
            metavar="FOLDER",
            help="Write the inverted images there instead, as PNG: the one that is named, or all of the run.",
        ),
    ] = None,
    format: Annotated[
        options.Format | None,
        typer.Option(help="Format of the generator's file; what --output asks for if left out, or safetensors."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Name of the run; the one that has the image, or for all images the newest."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The generator's file; the image's name if left out.")
    ] = None,
    overwrite: options.Overwrite = False,
    credentials: options.Credentials = None,
) -> None:
    """Write the tuned generator of an image, for other tools, and its pivot beside it (.pivot.npz); or the images.

    The pivot's file has w [1, num_ws, w_dim] as NVIDIA's projected_w.npz has, and noise_00, noise_01, ... [H, W].
    The generator's own noise maps are those of the pivot. With --pictures files that are there are kept.
    """
    if pictures is not None:
        if output is not None or format is not None:
            raise ValueError("--pictures writes pictures, --output and --format a generator: give one or the other")
        options.use_credentials(credentials)
        _export_images(root, pictures, image_id, run, overwrite)
        return
    if image_id is None:
        raise ValueError("which image? give its image_id, or --pictures FOLDER for the pictures of all")
    from pti_core.export import export_image

    options.use_credentials(credentials)
    path = None if output is None else options.local_file(output)
    done = export_image(root, image_id, format.value if format else None, run, path, overwrite)
    options.say_wrote(Console(), done.generator, done.format, done.remarks)
    line(Console(), f"wrote {done.pivot}: w [1, num_ws, w_dim], noise maps")


def _export_images(root: str, folder: str, image_id: str | None, run: str | None, overwrite: bool) -> None:
    from pti_core.export import export_images
    from pti_core.words import counted

    console = Console()
    with progress_of(console, "images") as progress:
        done = export_images(root, folder, image_id, run, overwrite, progress)
    kept = f"; {done.kept} there already (--overwrite draws them anew)" if done.kept else ""
    line(console, f"wrote {counted(done.written, 'image')} of run {done.run} to {folder}{kept}")
    for sentence in done.left_out:
        line(console, f"note: {sentence}", "yellow")
    if done.unfinished:
        are = f"{counted(done.unfinished, 'shard')} {'is' if done.unfinished == 1 else 'are'}"
        line(console, f"note: {are} unfinished and left out; `pti run` again finishes the run", "yellow")
