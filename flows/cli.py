"""The `pti` command: run, status, show, export, generator."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

# Before Prefect is imported: no telemetry, no server noise in a terminal, and time enough for a slow machine.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is said in one sentence; PTI_TRACEBACK=1 shows more
}.items():
    os.environ.setdefault(_name, _value)

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from flows import generator_cli  # noqa: E402

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pivotal Tuning Inversion at scale.",
)
console = Console()
errors = Console(stderr=True)


class Preset(StrEnum):
    """How much work an image is worth."""

    demo = "demo"
    fast = "fast"
    paper = "paper"


class Mode(StrEnum):
    """Who gets a generator."""

    single = "single"
    multi = "multi"


Root = Annotated[str, typer.Argument(help="Root of the tables: a folder or any fsspec URL.")]
RunName = Annotated[str | None, typer.Option("--run", help="Name of a run; the newest if left out.")]


@app.command()
def run(
    dataset: Annotated[str, typer.Argument(help="Folder, glob, file or archive (any fsspec URL), or 'demo'.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Where the tables go: a folder or any fsspec URL.")],
    generator: Annotated[str, typer.Option(help="Built-in name, or path of a checkpoint.")] = "pocket-ffhq-128",
    preset: Annotated[Preset, typer.Option(help="Steps and weights of the method.")] = Preset.fast,
    mode: Annotated[Mode, typer.Option(help="A generator for each image, or one for each folder.")] = Mode.single,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do a finished job again.")] = False,
    convert: Annotated[
        bool, typer.Option("--convert", help="Accept grey, palette, CMYK, 16-bit, transparent.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Images in a shard.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Shards at once in this process.")] = 1,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting, e.g. tuning.steps=100.")
    ] = None,
) -> None:
    """Invert a data set: pivots, weight deltas, metrics and locality as Parquet tables under OUTPUT.

    Run the same command again to finish what is missing.
    """
    with _one_sentence():
        from flows.console import ProgressView, show_summary

        settings = dict(_parse_setting(text) for text in setting or [])
        with ProgressView(console) as view:
            from pti_core.presets import configure
            from pti_core.report import publish
            from pti_core.runs import freeze

            overrides = {"mode": mode.value, "seed": seed, "image.convert": convert, **settings}
            existing: Any = "overwrite" if overwrite else "resume"
            # All that can go wrong is found here, in seconds, before a server or a worker is started.
            frozen = freeze(
                dataset, output, generator, configure(preset.value, overrides), limit, shard_size, existing=existing
            )
            for remark in frozen.remarks:
                view.note(remark)
            if frozen.pending():
                view.say("starting Prefect")
                from flows.pti import pti
                from flows.stopping import stop_at_once
                from tasks.progress import listen

                pending = set(frozen.pending())
                view.expect(len(frozen.manifest), int((~frozen.manifest["shard"].isin(pending)).sum()))
                with listen(view), stop_at_once(view.say_last):
                    summary = pti(
                        dataset=dataset,
                        output=output,
                        generator=generator,
                        preset=preset.value,
                        mode=mode.value,
                        limit=limit,
                        convert=convert,
                        seed=seed,
                        shard_size=shard_size,
                        workers=workers,
                        settings=settings,
                    )
            else:
                view.say("everything is done already")
                summary = publish(frozen)
        show_summary(console, summary, output)


@app.command()
def status(root: Root) -> None:
    """What is done and what is left of every run under ROOT."""
    with _one_sentence():
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        from pti_core.status import run_status
        from pti_core.store import Store

        store = Store(root)
        headings = ("run", "state", "images", "shards", "rejected", "left", "preset")
        found = [run_status(store, name) for name in _runs(store, root)]
        rows = [
            (
                run.run,
                run.state,
                f"{run.images_done} / {run.images}",
                f"{run.shards_done} / {run.shards}",
                str(run.rejected),
                _time_left(run.seconds_left) if run.state == "unfinished" else "",
                run.preset,
            )
            for run in found
        ]
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for heading, cells in zip(headings, zip(*rows, strict=True), strict=True):
            table.add_column(heading, no_wrap=True, min_width=max(map(len, (heading, *cells))))
        table.add_column("data set", overflow="fold", min_width=12)
        for row, run in zip(rows, found, strict=True):
            table.add_row(*row, run.dataset)
        console.print(table)


def _time_left(seconds: float | None) -> str:
    """Minutes at the speed so far; a word where nothing is known yet."""
    return "unknown" if seconds is None else f"{seconds / 60:.1f} min"


@app.command()
def show(root: Root, name: RunName = None) -> None:
    """The medians, the rejects and the pictures of a finished run."""
    with _one_sentence():
        from flows.console import show_summary
        from pti_core.store import Store

        store = Store(root)
        runs = _runs(store, root, name)
        newest = max(runs, key=lambda run: (store.read_config(run).get("created", ""), run))
        from pti_core.status import run_status

        state = run_status(store, newest)
        if state.state != "done":
            done = f"{state.images_done} of {state.images} images"
            raise ValueError(f"run {newest} is unfinished ({done} done); the same `pti run` again finishes it")
        from pti_core.report import summary
        from pti_core.runs import load_run

        show_summary(console, summary(load_run(root, newest)), root)
        if len(runs) > 1:
            console.print(f"other runs here: {', '.join(r for r in runs if r != newest)}", highlight=False)


def _runs(store: Any, root: str, name: str | None = None) -> list[str]:
    """The names of the runs of a store. A ValueError where there are none, or not the one that was asked for."""
    names = store.runs()
    if not names:
        raise ValueError(f"{root}: no run there; `pti run DATASET --output {root}` makes one")
    if name is not None and name not in names:
        raise ValueError(f"{root}: no run {name!r}; runs there: {', '.join(names)}")
    return names if name is None else [name]


def _parse_setting(text: str) -> tuple[str, Any]:
    """`tuning.steps=100` as name and value; the value is JSON, or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {text!r}: NAME=VALUE expected, e.g. tuning.steps=100")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Show what a person can act on as one sentence, without a traceback; exit status 1."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on where it was", style="yellow")
        raise typer.Exit(130) from None
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("PTI_TRACEBACK"):
            raise
        errors.print(f"error: {_sentence(error)}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _sentence(error: Exception) -> str:
    """The message of an error; of a value out of its range, which setting and why."""
    details = getattr(error, "errors", None)
    if callable(details):  # pydantic's ValidationError
        return "; ".join(f"{'.'.join(map(str, d['loc']))} {d.get('input')!r}: {d['msg']}" for d in details())
    return str(error) or type(error).__name__


generators = typer.Typer(no_args_is_help=True, help="Generators as files: fetch, inspect, convert.")
app.add_typer(generators, name="generator")
generators.command()(_one_sentence()(generator_cli.fetch))
generators.command()(_one_sentence()(generator_cli.inspect))
generators.command()(_one_sentence()(generator_cli.convert))
app.command()(_one_sentence()(generator_cli.export))


def main() -> None:
    """Entry point of the `pti` command."""
    app()


if __name__ == "__main__":
    main()
