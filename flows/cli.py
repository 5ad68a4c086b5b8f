"""The `pti` command: its commands, each of a file `flows/*_cli.py`, are put together here."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

# Before Prefect is imported: no telemetry, no server noise in a terminal, and time enough for a slow machine.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is said in one sentence; PTI_TRACEBACK=1 shows more
}.items():
    os.environ.setdefault(_name, _value)

import typer  # noqa: E402
from typer.core import TyperCommand  # noqa: E402

from flows import (  # noqa: E402
    align_cli,
    alpha_cli,
    check_cli,
    edit_cli,
    encoder_cli,
    export_cli,
    generator_cli,
    report_cli,
    run_cli,
    status_cli,
    tables_cli,
)
from flows.errors import one_sentence  # noqa: E402


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pti {version('pti-at-scale')}")
        raise typer.Exit


app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(help="Pivotal Tuning Inversion at scale.", epilog="Start with: pti run demo -o out/demo --preset demo")
def _pti(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def _add(to: typer.Typer, *commands: Callable[..., None], cls: type[TyperCommand] | None = None) -> None:
    for command in commands:
        to.command(cls=cls)(one_sentence("stopped; the same command again finishes it")(command))


_add(app, run_cli.run, cls=run_cli.RunCommand)
_add(app, status_cli.status, status_cli.show, report_cli.report, tables_cli.tables)
_add(app, edit_cli.edit, export_cli.export, check_cli.check)
_add(app, alpha_cli.alpha_study, encoder_cli.train_encoder, align_cli.align)
generators = typer.Typer(no_args_is_help=True, help="Generators as files: fetch, inspect, convert.")
app.add_typer(generators, name="generator")
_add(generators, generator_cli.fetch, generator_cli.inspect, generator_cli.convert)


def main() -> None:
    """Entry point of the `pti` command."""
    app()


if __name__ == "__main__":
    main()
