"""Options that several commands share, and what is checked of them before anything else is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.lines import line
from pti_core.addresses import redact, refusal


class RunnerKind(StrEnum):
    """Where tasks run."""

    threads = "threads"
    dask = "dask"
    ray = "ray"


class Format(StrEnum):
    """What a generator can be written as."""

    safetensors = "safetensors"
    rosinality = "rosinality"
    state_dict = "state-dict"


Root = Annotated[str, typer.Argument(help="Root of the tables: a folder or any fsspec URL.")]
RunName = Annotated[str | None, typer.Option("--run", help="Name of a run; the newest if left out.")]
ShardsPerTask = Annotated[int, typer.Option(min=1, help="Shards that one task does.")]
Runner = Annotated[RunnerKind, typer.Option(help="Where tasks run: here, or on a cluster.")]
Address = Annotated[str | None, typer.Option(help="Of the Dask scheduler or the Ray head.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Tasks at once: 1 here, all that a cluster has room for.")]
Resource = Annotated[
    list[str] | None, typer.Option(metavar="NAME=AMOUNT", help="What a task takes of a cluster's worker: GPU=1.")
]
Credentials = Annotated[str | None, typer.Option(help="Name of a Prefect Secret block with storage options as JSON.")]
GeneratorRef = Annotated[str, typer.Argument(metavar="GENERATOR", help="Built-in name ('pocket'), path or fsspec URL.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


class RunnerError(ValueError):
    """A runner that cannot be used; the message says what is missing."""


class SettingError(ValueError):
    """Not NAME=VALUE."""


def parse_setting(option: str, text: str) -> tuple[str, Any]:
    """`tuning.steps=100` as name and value; the value is JSON, or a word. Raises SettingError."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        example = "GPU=1" if option == "--resource" else "tuning.steps=100"
        raise SettingError(f"{option} {text!r}: NAME=VALUE expected, e.g. {example}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def resources_of(given: list[str] | None) -> dict[str, float] | None:
    """`--resource GPU=1` as what a task takes of a worker; None where nothing was given. Raises SettingError."""
    resources = {}
    for text in given or []:
        name, amount = parse_setting("--resource", text)
        try:
            resources[name] = float(amount)
        except (TypeError, ValueError):
            raise SettingError(f"--resource {text!r}: a number expected, e.g. {name}=1") from None
    return resources or None


def check_runner(name: str, address: str | None, resources: Mapping[str, float] | None) -> None:
    """Raise RunnerError for what can be seen to be wrong without reaching a cluster."""
    if address and (refused := refusal("address", address)):
        raise RunnerError(refused)
    if name == "threads":
        given = f"--address {address}" if address else f"--resource {_first(resources)}" if resources else None
        if given:
            raise RunnerError(f"{given} is for a cluster: add --runner dask or --runner ray (runner=dask, ray)")
        return
    if find_spec(f"prefect_{name}") is None:
        raise RunnerError(f"runner {name!r}: install it with `pip install '.[{name}]'` in the project's folder")
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise RunnerError(
            f"runner {name!r}: its workers need a Prefect server to report to; start one, set PREFECT_API_URL"
        )
    own = sorted((resources or {}).keys() - ({"GPU", "CPU"} if name == "ray" else set()))
    if own and not address:
        raise RunnerError(f"--resource {', '.join(own)}: what workers of a cluster have; add its --address")


def _first(resources: Mapping[str, float]) -> str:
    return next(f"{name}={amount:g}" for name, amount in resources.items())


def use_credentials(block: str | None) -> None:
    """Of a command that works without Prefect, which is imported only where a block is named."""
    if block is not None:
        from tasks.credentials import use_credentials as use

        use(block)


def local_file(text: str) -> Path:
    """The path of a file to write. A ValueError for a URL, of which `Path` would make a path."""
    if "://" in text:
        raise ValueError(f"{redact(text)}: a file on this machine expected")
    return Path(text)


def say_wrote(console: Console, path: Path, format: str, remarks: list[str]) -> None:
    """What file a command has written, and what is to be known of it."""
    size = path.stat().st_size / 2**20
    line(console, f"wrote {path} ({format}, {size:.1f} MiB)")
    for remark in remarks:
        line(console, f"note: {remark}", "yellow")
