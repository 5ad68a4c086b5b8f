"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
from enum import StrEnum
from typing import Annotated, Any

import typer


class RunnerKind(StrEnum):
    """Where tasks run."""

    threads = "threads"
    dask = "dask"
    ray = "ray"


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


class SettingError(ValueError, argparse.ArgumentTypeError):
    """Not NAME=VALUE. argparse, which scripts and benchmarks use, shows the sentence of an `ArgumentTypeError`."""


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


def set_option(text: str) -> tuple[str, Any]:
    """`parse_setting` of `--set`, as the type of an argparse argument."""
    return parse_setting("--set", text)


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
