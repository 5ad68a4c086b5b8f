"""A run in a process of its own, which may kill itself at one moment of it: for tests, preloaded by a fork server."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import torch

torch.set_num_threads(1)  # before anything starts threads, which a fork would lose

from pti_core.freezing.freeze import freeze  # noqa: E402
from pti_core.perceptual import load_lpips  # noqa: E402
from pti_core.presets import configure  # noqa: E402
from pti_core.runs import Run  # noqa: E402
from pti_core.shard.shards import invert_shard, measure_shard  # noqa: E402
from pti_core.storage.share import share_of  # noqa: E402

load_lpips("alex", "cpu")  # once for all processes

Job = tuple[str, str, str, int, dict[str, Any]]
"""Data set, output, checkpoint, images in a shard, settings."""


class Moments:
    """Counts the moments of a process: files of `output` opened or named, steps of the engine; kills it at one."""

    def __init__(self, output: str, kill_at: int | None, writes_only: bool) -> None:
        self.output, self.kill_at, self.writes_only = output, kill_at, writes_only
        self.count, self.lock = 0, threading.Lock()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """`os.rename` and `os.link` are told before the file has its name, `open` before it is there."""
        wanted = event in ("os.rename", "os.link") or (event == "open" and not self.writes_only)
        if wanted and str(arguments[0]).startswith(self.output):
            self.next()

    def next(self, *_: object) -> None:
        with self.lock:
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def begin(job: Job) -> Run:
    dataset, output, checkpoint, shard_size, settings = job
    return freeze(dataset, output, checkpoint, configure("demo", settings), shard_size=shard_size)


def work(job: Job, kill_at: int | None, writes_only: bool, told: Any) -> None:
    """All of a run, or what is left of it, as the flow does it."""
    moments = Moments(job[1], kill_at, writes_only)
    run = begin(job)
    for shard in run.to_do().shards:
        inverted = invert_shard(run, shard, None if writes_only else moments.next)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    told.send(moments.count)


def work_on_part(job: Job, part: str, at_once: Any, told: Any) -> None:
    """A part of a run, begun together with the others; tells when the run was frozen, and how many shards are left."""
    at_once.wait()
    run = begin(job)
    for shard in run.to_do(share=share_of(part)).shards:
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"], inverted["counts"])
    told.put((run.created, len(run.to_do().shards)))
