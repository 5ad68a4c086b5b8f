"""`pti status` and `pti show`: what is done of the runs of a root, and the medians of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.errors import errors
from flows.lines import line
from flows.options import Credentials, Root, RunName, use_credentials

if TYPE_CHECKING:
    from pti_core.status import RunStatus

SHOWN = 5  # failed shards whose reason is shown
WIDEST = 100_000  # characters: nothing is cut
console = Console()


def status(
    root: Root,
    shards: Annotated[
        bool, typer.Option("--shards", help="One line of CSV a shard, for other programs, and nothing else.")
    ] = False,
    credentials: Credentials = None,
) -> None:
    """What is done and what is left of every run under ROOT."""
    from pti_core.causes import in_lines
    from pti_core.shard_list import write_shards
    from pti_core.status import run_status
    from pti_core.storage.files import OutputRefused
    from pti_core.storage.known_runs import lost_config, run_names, without_config
    from pti_core.storage.notes import LATE
    from pti_core.storage.store import Store, StoreError
    from pti_core.words import counted, duration

    use_credentials(credentials)
    store = Store(root)
    names = run_names(store)
    found, wrong = [], [lost_config(store, lost) for lost in without_config(store, names)]
    if shards:
        with _while_read():
            wrong += write_shards(store, names, sys.stdout)
            sys.stdout.flush()
    for name in () if shards else names:
        try:
            found.append(run_status(store, name))
        except OutputRefused:
            raise  # it is so for all runs
        except StoreError as error:
            wrong.append(str(error))
    if found:
        _show_runs(found)
    for run in found:
        for note in run.running[:SHOWN]:
            heard = f", last heard of {duration(note.age)} ago" if note.age > LATE else ""
            line(console, f"run {run.run}, shard {note.shard} is at work on {note.where}{heard}")
        for note in run.failed[:SHOWN]:
            line(console, f"run {run.run}, shard {note.shard} failed: {note.error}")
        for cause in in_lines(run.causes):
            line(console, f"run {run.run} rejected {cause}")
        if run.temporary:
            text = f"{run.temporary} rejects are temporary; `pti run ... --retry-rejects` tries them"
            line(console, f"run {run.run}: {text}")
    for sentence in wrong:
        line(errors if shards else console, sentence)
    if wrong:
        raise StoreError(f"{counted(len(wrong), 'run')} cannot be read, for what is said above")


@contextmanager
def _while_read() -> Iterator[None]:
    """What a pipe's reader does not want any more, such as `head`, is no error."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain as it ends


def _show_runs(found: Sequence[RunStatus]) -> None:
    """A table with all in it; where the terminal has no room for the data sets, these follow, a line each."""
    from rich.box import SIMPLE_HEAD
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    def table(datasets: bool) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in ("run", "state", "images", "shards", "rejected", "left", "preset", *["data set"] * datasets):
            table.add_column(heading, no_wrap=True)
        for run in found:
            cells = (
                run.run,
                run.state + (f" ({len(run.running)})" if run.state == "running" else ""),
                f"{run.images_done} / {run.images}",
                f"{run.shards_done} / {run.shards}",
                str(run.rejected),
                _time_left(run.seconds_left) if run.state != "done" else "",
                run.preset,
            )
            table.add_row(*cells, *[Text(run.dataset)] * datasets)
        return table

    wide = Console(width=WIDEST)
    fits = Measurement.get(wide, wide.options, table(True)).maximum <= console.width
    datasets = fits or not console.is_terminal
    wide.print(table(datasets), soft_wrap=True)
    if not datasets:
        for run in found:
            line(console, f"run {run.run} is of {run.dataset}")


def _time_left(seconds: float | None) -> str:
    """At the speed so far; a word where nothing is known yet."""
    from pti_core.words import duration

    return "unknown" if seconds is None else duration(seconds)


def show(root: Root, name: RunName = None, credentials: Credentials = None) -> None:
    """The medians, the rejects and the pictures of a finished run."""
    from flows.console import show_summary
    from pti_core.status import or_another, run_status
    from pti_core.storage.known_runs import newest_run
    from pti_core.storage.store import Store

    use_credentials(credentials)
    store = Store(root)
    newest = newest_run(store, name)
    state = run_status(store, newest)
    if state.state != "done":
        done = f"{state.images_done} of {state.images} images"
        other = or_another(store, newest)
        raise ValueError(f"run {newest} is unfinished ({done} done); the same `pti run` again finishes it{other}")
    from pti_core.report import summary
    from pti_core.runs import load_run

    others = [run for run in store.runs() if run != newest]
    show_summary(console, summary(load_run(root, newest)), root, not others)
    if others and name is None:
        line(console, f"other runs here: {', '.join(others)}")
