"""`pti check`: everything is read again, and what is damaged or gone is made again by what made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.lines import line
from flows.options import Credentials, Root, use_credentials

if TYPE_CHECKING:
    from pti_core.storage.store import Store

console = Console()

Again = dict[tuple[str, int], set[str]]
"""By run and shard, the commands that make once more what is damaged there."""


def check(
    root: Root,
    name: Annotated[str | None, typer.Option("--run", help="Name of a run; all of them if left out.")] = None,
    credentials: Credentials = None,
) -> None:
    """Read every file of the runs under ROOT again; what is damaged or gone is then made again by what made it.

    Files of runs and edits are compared with their checksums, those of alpha studies read, pictures of edits looked
    for. Files in a run's tables that are no parts of it are named, to be removed.
    """
    from pti_core.storage.files import OutputRefused, StoreError
    from pti_core.storage.known_runs import lost_config, run_names, without_config
    from pti_core.storage.store import Store
    from pti_core.words import counted

    use_credentials(credentials)
    store, stuck, shards, unfinished = Store(root), 0, 0, 0
    again: Again = {}
    strays: list[str] = []
    names = run_names(store, name)
    for lost in without_config(store, names) if name is None else ():
        line(console, lost_config(store, lost))
        stuck += 1
    for run in names:
        try:
            read, left, whole = _read(store, run, again, strays)
            shards += read
            unfinished += left
            stuck += not whole
        except OutputRefused:
            raise  # it is so for all runs
        except StoreError as error:
            line(console, f"run {run}: {error}")
            stuck += 1
    said = []
    if again:
        commands = sorted({f"`{command}`" for some in again.values() for command in some}, reverse=True)
        shards_are = f"{counted(len(again), 'shard')} {'is' if len(again) == 1 else 'are'}"
        do = "does" if len(commands) == 1 else "do"
        said.append(
            f"{shards_are} not as written; the same {' and '.join(commands)} again {do} what is damaged once more"
        )
    if strays:
        are = "file is no part of its run" if len(strays) == 1 else "files are no parts of their runs"
        said.append(f"{len(strays):,} {are}; remove {'it' if len(strays) == 1 else 'them'}")
    if stuck:
        said.append(f"{counted(stuck, 'run')} could not be checked in full, for what is said above")
    if said:
        raise RuntimeError("; ".join(said))
    found = "everything is as written"
    if unfinished:
        are = "is" if unfinished == 1 else "are"
        found = f"all that was read is as written; {counted(unfinished, 'shard')} {are} unfinished"
    line(console, f"{counted(len(names), 'run')}, {counted(shards, 'shard')}: {found}")


def _read(store: Store, run: str, again: Again, strays: list[str]) -> tuple[int, int, bool]:
    """Check one run, say what is found, add it to `again` or `strays`.

    Returns its shards that were read and those that are unfinished, and whether its manifest can be read.
    """
    from rich.progress import track

    from pti_core.checking import RUN, check_all, check_manifest
    from pti_core.storage.completeness import STRAY
    from pti_core.words import counted

    markers, seen = store.markers(run), set[int]()
    total, problem = check_manifest(store, run, markers)
    if problem:
        line(console, f"run {run}: {problem}")
    everything = check_all(store, run, markers)
    quiet = not console.is_terminal
    for found in track(everything, f"run {run}", len(markers), console=console, transient=True, disable=quiet):
        for text in found.problems:
            line(console, f"run {run}, shard {found.shard}: {text}; `{found.again}` again makes it once more")
            again.setdefault((run, found.shard), set()).add(found.again)
        if found.again == RUN:
            seen.add(found.shard)
    for path in () if problem else store.strays(run):
        line(console, f"run {run}: file {path!r} {STRAY}")
        strays.append(path)
    left = max(0, (total or 0) - len(seen))
    unfinished = f"; {left} {'is' if left == 1 else 'are'} unfinished and not read" if left else ""
    line(console, f"run {run}: {counted(len(markers), 'shard')} read{unfinished}")
    return len(markers), left, problem is None
