"""What a person sees in the terminal: a progress bar (or plain lines where there is no terminal) and the summary."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from flows import BEGUN
from flows.lines import line
from pti_core.causes import in_lines
from pti_core.shard.shard_progress import PICTURES, PREPARING, ShardProgress
from pti_core.throughput import in_words
from pti_core.words import PERCENT, counted, how_far, rate_of, some_of

PLAIN_EVERY = 5.0  # seconds between lines where output is not a terminal


class ProgressView:
    """Shows images done, images/s, time left and the LPIPS of the images in work, from the first second."""

    def __init__(self, console: Console, reading: str = "generator and data set") -> None:
        """`reading`: what takes the first seconds."""
        self.console, self.reading = console, reading
        self.lock = threading.Lock()
        self.in_work: dict[int, ShardProgress] = {}
        self.ended: set[int] = set()
        self.started, self.finished = False, 0  # `finished`: images of shards that have ended
        self.start, self.first_work = BEGUN, time.monotonic()
        self.begun: dict[int, float] = {}  # by shard: images of it that were done before this command
        self.images, self.done_before = 0, 0
        self.last_line = -PLAIN_EVERY
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[doing]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("images", total=None, rate="", doing="starting")

    def __enter__(self) -> Self:
        self.bar.start()
        self.say(f"reading {self.reading}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, SystemExit):  # of a full disk, of a pipe: what ended the work is to be told
            self.bar.stop()

    def say_last(self, text: str) -> None:
        """The last words before the process ends, which it does also where nobody can hear them."""
        with suppress(OSError, SystemExit):
            self.bar.stop()
            line(self.console, text, "yellow")

    def note(self, text: str) -> None:
        """Something that a person should know; it stays above the bar."""
        line(self.bar.console, f"note: {text}", "yellow")

    def say(self, text: str) -> None:
        """What is going on besides shards."""
        if self.console.is_terminal:
            self.bar.update(self.task, doing=text)
        else:
            line(self.console, f"[{time.monotonic() - self.start:5.1f} s] {text}")

    def expect(self, images: int, done: int, unit: str = "images") -> None:
        """The images of the whole run, and those of shards that were done before; 100 of `PERCENT`, of other work."""
        self.bar.update(self.task, description=unit)
        self.images, self.done_before = images, done

    def __call__(self, progress: ShardProgress) -> None:
        """Take the progress of one shard; shards in work at the same time are summed. Pictures count by themselves."""
        with self.lock:
            if progress.shard == PICTURES:
                self._show_pictures(progress)
                return
            # The first word of a shard tells what of it was done before this command: that is no speed.
            self.begun.setdefault(progress.shard, progress.done if progress.doing == PREPARING else 0.0)
            if not self.started and progress.doing != PREPARING:
                self.first_work, self.started = time.monotonic(), True
            if progress.shard not in self.ended:
                self.in_work[progress.shard] = progress
                if progress.now is None and progress.done >= progress.total:  # not summed again for each of thousands
                    self.ended.add(progress.shard)
                    self.finished += self.in_work.pop(progress.shard).total
            done = self.done_before + self.finished + sum(p.done for p in self.in_work.values())
            total = max(self.images, self.finished + sum(p.total for p in self.in_work.values()))
            elapsed = time.monotonic() - self.first_work
            new = done - self.done_before - sum(self.begun.values())
            rate = rate_of(new, elapsed) if self.started else 0.0
            doing = progress.words or "writing, measuring"
            if self.console.is_terminal:
                speed = f"{rate:.2f} images/s" if rate and progress.unit != PERCENT else ""
                self.bar.update(self.task, completed=int(done), total=total, rate=speed, doing=doing)
            elif time.monotonic() - self.last_line >= PLAIN_EVERY:
                self.last_line = time.monotonic()
                self.say(f"{how_far(done, total, rate, progress.unit)}, {doing}")

    def _show_pictures(self, progress: ShardProgress) -> None:
        """What is drawn of a whole run, once its shards are done."""
        if self.console.is_terminal:
            done, words = int(progress.done), progress.words
            self.bar.update(
                self.task, description="pictures", completed=done, total=progress.total, rate="", doing=words
            )
        elif time.monotonic() - self.last_line >= PLAIN_EVERY:
            self.last_line = time.monotonic()
            self.say(progress.words)


def show_summary(console: Console, summary: dict[str, Any], root: str, alone: bool = True) -> None:
    """The table of medians, the counts, and where to look next. `alone`: the root has no other run."""
    if summary["images"]:
        _show_medians(console, summary)
    if summary["rejected"]:
        images_were = "image was" if summary["rejected"] == 1 else "images were"
        console.print(f"{summary['rejected']} {images_were} rejected:", style="yellow")
        for cause in in_lines(summary.get("reject_causes", {})):
            line(console, f"  {cause}")
        for message in summary["reject_messages"]:
            line(console, f"  {message}")
    if summary["contact_sheet"]:
        line(console, f"\ncontact sheet  {summary['contact_sheet']}")
    if summary["report"]:
        line(console, f"report         {summary['report']}")
    table = "metrics" if summary["images"] else "rejects"
    line(console, f"{table:14} {reading(root, table, summary['run'], alone)}")


def reading(root: str, table: str, run: str, alone: bool) -> str:
    """The line of pandas that reads a table of one run; the folder holds all runs of the root."""
    filters = "" if alone else f', filters=[("run", "==", "{run}")]'
    return f'pandas.read_parquet("{root.rstrip("/")}/{table}"{filters})'


def _show_medians(console: Console, summary: dict[str, Any]) -> None:
    images = counted(summary["images"], "image")
    if not any(_number(row["lpips"], ".4f") for row in summary["medians"].values()):
        line(console, f"run {summary['run']}: {images}, and no measures (the engine noop takes none)")
        return
    of = some_of(summary.get("medians_of", summary["images"]), summary["images"], "image")
    table = Table(title=f"run {summary['run']}: medians of {of}", title_justify="left")
    table.add_column("stage")
    for heading in ("LPIPS", "MSE", "PSNR dB", "SSIM", "steps", "s per image"):
        table.add_column(heading, justify="right")
    for stage, row in summary["medians"].items():
        forms = {"lpips": ".4f", "mse": ".4f", "psnr": ".2f", "ssim": ".3f", "steps": ".0f", "seconds": ".1f"}
        cells = [_number(row[name], form) for name, form in forms.items()]
        table.add_row(stage, *cells)
    console.print(table)
    if summary["locality"]:
        text = ", ".join(f"{name} {value:.4f}" for name, value in summary["locality"].items())
        line(console, f"old against new generator, median LPIPS: {text}")
    line(console, f"weight deltas: {summary['delta_bytes'] / 2**20:.2f} MiB per image")
    if summary.get("throughput"):
        line(console, in_words(summary["throughput"]))


def _number(value: float | None, form: str) -> str:
    return "" if value is None or value != value else format(value, form)
