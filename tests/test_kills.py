"""SIGKILL at any moment, then the same again: nothing lost, nothing twice, every number to the last bit the same."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS
from killable import Job, begin, work

from pti_core.runs import Run
from pti_core.tables import PARTS

pytestmark = pytest.mark.slow
KILLS = 10
Process = Callable[..., int]


@pytest.fixture(scope="module")
def in_a_process() -> Iterator[Process]:
    """A function that works in a process until the end or the kill, and tells how many moments it had."""
    # Each is a fork of a process that has imported everything, which takes seconds.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["killable"])

    def run(job: Job, kill_at: int | None = None, writes_only: bool = False) -> int:
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(target=work, args=(job, kill_at, writes_only, there))
        process.start()
        there.close()
        process.join(120)
        assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)
        return here.recv() if kill_at is None else kill_at

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the fork server finds `killable`
        yield run


@pytest.fixture
def job_of(dataset: Any, tmp_path: Path, tiny_checkpoint: str) -> Callable[..., Job]:
    """A function that makes a data set of n images and the job of inverting them."""

    def make(images: int, shard_size: int) -> Job:
        return str(dataset(images)), str(tmp_path / "out"), tiny_checkpoint, shard_size, QUICK_SETTINGS | {"batch": 2}

    return make


def elsewhere(job: Job, output: Path) -> Job:
    return (job[0], str(output), *job[2:])


def same_tables(one: str, other: str) -> None:
    """Every table of two stores, down to the last bit, apart from what a clock tells."""
    for table in PARTS:
        frames = [pd.read_parquet(f"{root}/{table}").drop(columns="seconds", errors="ignore") for root in (one, other)]
        keys = ["image_id", "owner", "tensor", "stage", "where", "alpha", "seed"]
        keys = [key for key in keys if key in frames[0].columns]
        left, right = (frame.sort_values(keys).reset_index(drop=True) for frame in frames)
        assert not left.duplicated(keys).any(), table
        pd.testing.assert_frame_equal(left, right, check_exact=True, obj=table)


def check_whole(run: Run, images: int) -> None:
    assert run.to_do().shards == []
    assert run.store.check_complete(run.name) == {"manifest": images, "pivots": images, "rejects": 0}
    done = run.store.done(run.name)
    assert len(done) == run.manifest.shards
    assert [problem for marker in done.values() for problem in run.store.verify(marker)] == []


def leftovers(output: str) -> list[Path]:
    """Temporary files of processes that were killed while they wrote."""
    return [path for path in Path(output).rglob("*") if path.is_file() and path.name.startswith(".")]


def test_ten_kills_in_a_row_leave_what_an_undisturbed_run_leaves(job_of, in_a_process, tmp_path):
    job = job_of(10, 4)
    moments = in_a_process(job)
    # A run that goes on has at least the moments that were left of it: all ten kills find it at work.
    at = sorted(random.Random(3).sample(range(1, moments), KILLS))
    killed = elsewhere(job, tmp_path / "killed")
    for before, now in itertools.pairwise([0, *at]):
        in_a_process(killed, kill_at=now - before)
    in_a_process(killed)
    check_whole(begin(killed), 10)
    same_tables(killed[1], job[1])


def test_a_kill_before_any_file_gets_its_name_costs_nothing_that_was_there(job_of, in_a_process, tmp_path):
    job = job_of(2, 2)
    writes = in_a_process(job, writes_only=True)
    assert writes == len(("check that files can be written", "manifest", "config", "shots", *PARTS, "marker"))
    for write in range(1, writes + 1):
        killed = elsewhere(job, tmp_path / f"killed-{write}")
        in_a_process(killed, kill_at=write, writes_only=True)
        (half,) = leftovers(killed[1])  # it has its content, but no name
        assert half.stat().st_size > 0
        in_a_process(killed)
        assert set(leftovers(killed[1])) <= {half}
        check_whole(begin(killed), 2)
        same_tables(killed[1], job[1])
