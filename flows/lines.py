"""Lines in the terminal, and a bar that is gone afterwards. Small, since each command imports it at its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


def line(console: Console, text: str, style: str | None = None) -> None:
    """Show a text as it is: what rich takes for its markup stays, and lines are broken by the terminal alone."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_of(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, where there is a terminal; what it gives takes how many are done, and of how many."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
