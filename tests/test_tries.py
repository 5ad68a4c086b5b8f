"""Shards that one task does together: one that fails costs no other, and only what is left is tried again.

And no task's result is kept by Prefect.
"""

from __future__ import annotations

import importlib
import pickle
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, PREFECT_RESULTS_PERSIST_BY_DEFAULT, temporary_settings
from prefect.testing.utilities import prefect_test_harness

import tasks
from flows.runners import started
from flows.shard_work import ShardsFailed, do_shards
from pti_core.freezing.freeze import freeze
from pti_core.machine.device import UnfitMachine
from pti_core.machine.parallel import Stopped
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.inputs import InputsUnreadable
from pti_core.shard.shard_progress import PREPARING, ShardProgress
from pti_core.storage.files import OutputRefused
from tasks.progress import listen
from tasks.shards import invert_shards, measure_shards
from tasks.tries import ShardsLeft, each, worth_another_try

SHARDS = 5


@pytest.fixture
def run(dataset: Any, tiny_checkpoint: str, tmp_path: Path) -> Run:
    """A run of one image a shard, of which nothing is done."""
    return freeze(str(dataset(SHARDS)), str(tmp_path / "out"), tiny_checkpoint, configure("noop"), shard_size=1)


def block(run: Run, table: str, shard: int) -> Path:
    """A folder that is in the way of a shard's part."""
    path = Path(run.store.root) / run.store.part_path(table, run.name, shard, 0)
    path.mkdir(parents=True)
    return path


def test_shards_that_fail_cost_no_other_of_their_task(run: Run) -> None:
    root, numbers = run.store.root, list(range(SHARDS))
    ways = block(run, "pivots", 2), block(run, "locality", 4)
    with listen(lambda _: None):
        with pytest.raises(ShardsLeft, match=r"^1 of 5 shards failed, first shard 2: output .* cannot be") as caught:
            invert_shards.fn(root, run.name, numbers)
        left = pickle.loads(pickle.dumps(caught.value))
        assert str(left) == str(caught.value)
        assert [one["shard"] for one in left.done] == [0, 1, 3, 4]
        assert (list(left.failed), left.passing, left.away) == ([2], True, False)
        with pytest.raises(ShardsLeft, match=r"^1 of 4 shards failed, first shard 4: ") as caught:
            measure_shards.fn(root, run.name, left.done)
        assert [one["shard"] for one in caught.value.done] == [0, 1, 3]
        assert run.to_do().shards == [2, 4]
        for way in ways:
            way.rmdir()
        measure_shards.fn(root, run.name, invert_shards.fn(root, run.name, run.to_do().shards))
    assert run.to_do().shards == []


@pytest.mark.parametrize("error", [Stopped("stopped"), OutputRefused("full"), UnfitMachine("no memory")])
def test_what_ends_all_work_of_a_process_ends_a_task_at_once(error: Exception) -> None:
    begun, work = failing({1: error})
    with pytest.raises(type(error), match=str(error)):
        each(range(SHARDS), work)
    assert begun == [0, 1]


@pytest.mark.parametrize("first", [0, 1])
def test_where_a_data_set_is_away_no_other_shard_is_begun(first: int) -> None:
    begun, work = failing({first: InputsUnreadable("away")})
    with pytest.raises(ShardsLeft) as caught:
        each(range(SHARDS), work)
    assert begun == list(range(first + 1))
    left = caught.value
    assert left.failed == dict.fromkeys(range(first, SHARDS), "away")
    assert (left.done, left.passing, left.away) == (list(range(first)), True, first == 0)


def test_a_shard_that_no_other_try_helps_makes_its_task_not_worth_one() -> None:
    for error, passing in ((ValueError("never"), False), (MemoryError(), True), (OSError("later"), True)):
        with pytest.raises(ShardsLeft) as caught:
            each(range(SHARDS), failing({3: error})[1])
        assert caught.value.failed == {3: str(error) or "MemoryError"}
        assert (caught.value.done, caught.value.passing) == ([0, 1, 2, 4], passing)


def failing(errors: dict[int, Exception]) -> tuple[list[int], Callable[[int], int]]:
    """Work that fails at some shards; and which of them were begun."""
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number in errors:
            raise errors[number]
        return number

    return begun, work


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=400):
        yield


def test_no_task_leaves_to_prefect_s_settings_whether_its_result_is_kept() -> None:
    found = {task.name: task for task in all_tasks()}
    assert {"freeze-manifest", "invert-shards", "edit-shards", "study-alpha", "train-encoder"} <= found.keys()
    kept = {name for name, one in found.items() if one.persist_result is not False or one.cache_policy != NO_CACHE}
    assert kept == set()


def all_tasks() -> Iterator[Task[..., Any]]:
    """Those of all modules of the package."""
    for module in pkgutil.iter_modules(tasks.__path__, "tasks."):
        yield from (one for one in vars(importlib.import_module(module.name)).values() if isinstance(one, Task))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_a_task_that_is_called_again_does_what_is_lost_meanwhile(run: Run, tmp_path: Path) -> None:
    keeping = {PREFECT_RESULTS_PERSIST_BY_DEFAULT: True, PREFECT_LOCAL_STORAGE_PATH: tmp_path / "kept"}
    part = Path(run.store.root) / run.store.part_path("pivots", run.name, 0, 0)

    @flow(name="twice")
    def twice() -> None:
        invert_shards(run.store.root, run.name, [0])
        part.unlink()
        invert_shards(run.store.root, run.name, [0])

    with temporary_settings(keeping), listen(lambda _: None):
        twice()
    assert part.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_only_the_shards_that_are_left_are_tried_again_and_only_those_that_fail_for_good_are_left(run: Run) -> None:
    block(run, "pivots", 1)
    passing = {"invert-shards": block(run, "pivots", 3), "measure-shards": block(run, "locality", 4)}
    begun: Counter[int] = Counter()

    def heard(progress: ShardProgress) -> None:
        begun[progress.shard] += progress.doing == PREPARING

    def freed(*told: Any) -> bool:
        """Called between two tries."""
        if (way := passing.pop(told[0].name, None)) is not None:
            way.rmdir()
        return worth_another_try(*told)

    steps = [
        task.with_options(retry_condition_fn=freed, retry_delay_seconds=0.1) for task in (invert_shards, measure_shards)
    ]

    @flow(name="work")
    def all_pending() -> None:
        plan = {"pending": run.to_do().shards, "images": SHARDS, "done": 0}
        common = {"root": run.store.root, "run": run.name}
        do_shards(
            steps, plan, SHARDS, lambda step, x: common | {"inverted" if step else "numbers": x}, started("threads", 1)
        )

    with listen(heard), pytest.raises(ShardsFailed, match=r"^1 of 5 shards failed and are left, first shard 1: "):
        all_pending()
    assert run.to_do().shards == [1]
    assert begun == {0: 1, 1: 3, 2: 1, 3: 2, 4: 1}
