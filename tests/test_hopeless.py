"""An output that takes nothing more, or a data set that is away, ends a flow after a few shards, not after all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import LARGE, PAGE, Disk
from PIL import Image
from prefect import flow, task
from prefect.testing.utilities import prefect_test_harness
from s3_server import s3_server, use

from flows.runners import started
from flows.shard_work import AWAY, ShardsFailed, do_shards
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard
from tasks.shards import invert_shards, measure_shards
from tasks.tries import ShardsLeft

pytestmark = pytest.mark.slow
SHARDS = 60
FEW = 4  # with one thread two tasks are in flight
WITH_THE_NEWEST = FEW + 2  # it is tried, too, while others go on


@pytest.fixture(scope="module", autouse=True)
def _prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=400):
        yield


@pytest.fixture
def data(pictures: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(SHARDS):
        Image.fromarray(pictures[i % len(pictures)]).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def begin(data: Path, tiny_checkpoint: str) -> Callable[[object], Run]:
    """A function that freezes a run of one image a shard into an output."""
    return lambda out: freeze(str(data), str(out), tiny_checkpoint, configure("noop"), shard_size=1)


def work(run: Run, done: Callable[..., None] = lambda *_: None, delays: list[float] | None = None) -> int:
    """What is pending, by the flow's own tasks; how many of them failed. `done` is called after each shard."""
    failed: list[int] = []  # how often each was tried
    hooks = {"on_failure": [lambda task, task_run, state: failed.append(task_run.run_count)]}
    options = hooks | ({"retry_delay_seconds": delays} if delays else {})
    steps = [invert_shards.with_options(**options), measure_shards.with_options(**options, on_completion=[done])]

    @flow(name="work")
    def all_pending() -> None:
        pending, before, _ = run.to_do()
        plan = {"pending": pending, "images": run.manifest.rows, "done": before}
        common = {"root": run.store.root, "run": run.name}
        do_shards(
            steps, plan, 1, lambda step, x: common | {"inverted" if step else "numbers": x}, started("threads", 1)
        )

    try:
        all_pending()
    except ShardsFailed as error:
        raise Ended(str(error), failed) from None
    return len(failed)


class Ended(Exception):
    """The sentence of a flow that ended, and how often each of its tasks that failed had been tried."""

    def __init__(self, sentence: str, failed: list[int]) -> None:
        super().__init__(sentence)
        self.failed = failed


def check_ended(run: Run, sentence: str, tries: int = 1, few: int = FEW, **how: Any) -> None:
    """The flow ends by a sentence, after few tries, with shards done and many left that nobody began."""
    with pytest.raises(Ended, match=sentence) as caught:
        work(run, **how)
    left = run.to_do().shards
    (told,) = re.findall(rf"^ended with (\d+) of {SHARDS} shards left; shard ", str(caught.value))
    assert len(left) <= int(told) <= len(left) + 2  # of those in flight some may have been done
    assert re.search("the same (command|run)", str(caught.value))
    assert 0 < len(caught.value.failed) <= few
    assert max(caught.value.failed) == tries
    assert SHARDS / 3 < len(left) < SHARDS


def check_finished(run: Run) -> None:
    assert work(run) == 0
    assert run.store.check_complete(run.name) == {"manifest": SHARDS, "pivots": SHARDS, "rejects": 0}


def test_a_disk_that_fills_up(disk: Disk, begin: Any) -> None:
    run = begin(disk.folder / "out")
    disk.fill(150 * PAGE)
    check_ended(run, "no space is left; .* With this output the same run goes on")
    (disk.folder / "filler").unlink()
    disk.remount(LARGE)
    invert_shard(run, run.to_do().shards[0])  # who goes on in this process can work
    check_finished(run)


def test_rights_that_are_withdrawn(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = s3_server()
    bucket = server.bucket()
    mine = server.user(policy("s3:*"))
    done: list[object] = []

    def withdraw(*event: object) -> None:
        done.append(event)
        if len(done) == 3:
            server.change_policy(mine, policy("s3:GetObject", "s3:ListBucket"))

    with server.checking_credentials():
        use(monkeypatch, server.url, **mine)
        run = begin(f"s3://{bucket}/out")
        check_ended(run, "cannot be written: access denied .* With this output the same run goes on", done=withdraw)
        server.change_policy(mine, policy("s3:*"))
        check_finished(run)


def test_a_data_set_that_is_away(begin: Any, data: Path, tmp_path: Path) -> None:
    run, done = begin(tmp_path / "out"), []

    def unmount(*event: object) -> None:
        done.append(event)
        if len(done) == 3:
            data.rename(data.with_name("away"))

    says = "none of .* images can be read.* run the same command"
    check_ended(run, says, tries=3, few=WITH_THE_NEWEST, done=unmount, delays=[0.1, 0.1])
    assert run.store.read("rejects", run.name).empty
    data.with_name("away").rename(data)
    check_finished(run)


@pytest.mark.parametrize("readable", [True, False])
def test_before_a_data_set_is_taken_for_away_the_newest_shard_is_tried(readable: bool) -> None:
    """Where that one can be read, three more fail before the newest of those that are left is tried."""
    newest, tried = SHARDS - 1, list[int]()

    @task(name="some")
    def some(numbers: list[int]) -> list[dict[str, int]]:
        tried.extend(numbers)
        if not readable or numbers != [newest]:
            raise ShardsLeft([], dict.fromkeys(numbers, "away"), passing=True, away=True)
        return [{"shard": number, "images": 1} for number in numbers]

    @flow(name="work")
    def all_pending() -> None:
        plan = {"pending": list(range(SHARDS)), "images": SHARDS, "done": 0}
        do_shards([some], plan, 1, lambda step, numbers: {"numbers": numbers}, started("threads", 1))

    left = SHARDS - readable
    with pytest.raises(ShardsFailed, match=rf"^ended with {left} of {SHARDS} shards left; shard \d+: away"):
        all_pending()
    assert tried.count(newest) == 1
    assert tried.index(newest) >= AWAY
    assert (newest - 1 in tried) == readable
    assert len(tried) < SHARDS / 2


def policy(*actions: str) -> str:
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
