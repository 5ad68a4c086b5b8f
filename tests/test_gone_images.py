"""Images that are not there when they are to be read: how often they are looked for, and how they are found again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.inputs import MISSING_TRIES, MOST_TRIES
from pti_core.shard.shards import invert_shard, measure_shard

Begin = Callable[..., Run]


@pytest.fixture
def begin(tmp_path: Path, tiny_checkpoint: str) -> Begin:
    def freeze_it(dataset: Path, existing: Any = "resume", shard_size: int = 4, **settings: Any) -> Run:
        config = configure("noop", settings)
        return freeze(str(dataset), str(tmp_path / "out"), tiny_checkpoint, config, None, shard_size, existing)

    return freeze_it


def do(run: Run, retry: bool = True) -> list[int]:
    """What a scheduled run does: all that is left, and rejects once more. The shards that it worked on."""
    left = run.to_do(retry).shards
    for shard in left:
        done = invert_shard(run, shard, retry_rejects=retry)
        measure_shard(run, shard, done["files"], done["seconds"], done["counts"])
    return left


def rejects(run: Run) -> list[tuple[str, str, bool, int]]:
    columns = ["image_id", "error", "permanent", "attempts"]
    return [tuple(row) for row in run.store.read("rejects", run.name, columns).to_numpy().tolist()]


def written(run: Run) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(run.store.root).rglob("part-*.parquet")}


def names(run: Run) -> list[str]:
    return run.manifest.table(["image_id"])["image_id"].to_pylist()


def test_a_file_that_is_gone_is_looked_for_three_times(dataset: Any, begin: Begin) -> None:
    run = begin(dataset(4))
    (Path(run.dataset) / "1.png").unlink()
    for tried in range(1, MISSING_TRIES + 1):
        assert do(run) == [0]
        assert rejects(run) == [("1.png", "FileNotFoundError", tried == MISSING_TRIES, tried)]
    before = written(run)
    for existing in ("resume", "extend"):
        assert do(begin(Path(run.dataset), existing)) == []
    assert written(run) == before
    assert run.store.check_complete(run.name) == {"manifest": 4, "pivots": 3, "rejects": 1}
    (message,) = run.store.read("rejects", run.name)["message"]
    assert message.endswith("tried 3 times, and not again: `--extend` (existing=extend) appends it once it is there")
    assert "--retry-rejects" not in message


def test_what_fails_for_another_passing_reason_is_tried_ten_times(
    dataset: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch, pictures: Any
) -> None:
    folder = dataset(3)
    read = Run.read_input

    def broken(run: Run, uri: str, *rest: Any) -> Any:
        if uri.endswith("/1.png"):
            raise OSError("503")
        return read(run, uri, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "read_input", broken)
        run = begin(folder)
        for tried in range(1, MOST_TRIES + 1):
            assert do(run) == [0]
            assert rejects(run) == [("1.png", "OSError", tried == MOST_TRIES, tried)]
    assert do(run) == []
    (message,) = run.store.read("rejects", run.name)["message"]
    assert message.startswith("503; tried 10 times, and not again: `--overwrite` (existing=overwrite) does, and")
    assert names(begin(folder, "extend")) == ["0.png", "1.png", "2.png"]
    Image.fromarray(pictures[5]).save(folder / "1.png")
    assert names(begin(folder, "extend"))[3:] == ["1.png@2"]
    assert do(begin(folder, "overwrite")) == [0]
    assert rejects(run) == []


@pytest.mark.parametrize("gone", [1, 4])  # some of a part, and all of it
def test_a_retry_in_vain_writes_nothing_but_that_it_was_one(dataset: Any, begin: Begin, gone: int) -> None:
    folder = dataset(8)
    run = begin(folder)
    for i in range(gone):
        (folder / f"{i}.png").unlink()
    do(run)
    deltas = Path(run.store.root) / run.store.part_path("deltas", run.name, 0, 0)
    before, inode = written(run), deltas.stat().st_ino
    assert do(run) == [0]
    new = {Path(path).relative_to(run.store.root).parts[0] for path, at in written(run).items() if at != before[path]}
    assert new == {"rejects", "metrics"}
    assert deltas.stat().st_ino == inode
    assert [row[3] for row in rejects(run)] == [2] * gone
    assert run.store.check_complete(run.name) == {"manifest": 8, "pivots": 8 - gone, "rejects": gone}
    assert all(run.store.verify(marker) == [] for marker in run.store.done(run.name).values())


def test_a_file_that_comes_back_as_it_was_is_appended(dataset: Any, begin: Begin) -> None:
    folder = dataset(4)
    run, file = begin(folder), folder / "1.png"
    was, at = file.read_bytes(), file.stat().st_mtime_ns
    file.unlink()
    for _ in range(MISSING_TRIES):
        do(begin(folder, "extend"))
    assert names(begin(folder, "extend")) == names(run)
    file.write_bytes(was)
    os.utime(file, ns=(at, at))
    (remark,) = begin(folder).remarks
    assert remark.startswith("1 changed file is not in this run; `--extend`")
    run = begin(folder, "extend")
    assert run.remarks == ("1 changed file is appended as shard 1",)
    assert do(run) == [1]
    assert run.store.read("pivots", run.name)["image_id"].tolist()[-1] == "1.png@2"
    again = begin(folder, "extend")
    assert (again.remarks, do(again)) == ((), [])


def test_one_that_comes_back_before_that_is_tried_again_and_not_appended_as_well(dataset: Any, begin: Begin) -> None:
    folder = dataset(4)
    run, file = begin(folder), folder / "1.png"
    was, at = file.read_bytes(), file.stat().st_mtime_ns
    file.unlink()
    do(run)
    file.write_bytes(was)
    os.utime(file, ns=(at, at))
    run = begin(folder, "extend")
    assert (run.remarks, do(run), rejects(run)) == ((), [0], [])


def test_a_link_without_a_target_is_listed_and_not_appended(
    dataset: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(2)
    (folder / "9.png").symlink_to(folder / "nothing.png")
    for _ in range(MISSING_TRIES + 1):
        do(begin(folder, "extend"))
    assert rejects(begin(folder)) == [("9.png", "FileNotFoundError", True, MISSING_TRIES)]
    monkeypatch.setattr("pti_core.freezing.freeze.LOOKED_AT", 0)  # nor are many of them read to see
    for existing in ("resume", "extend"):
        run = begin(folder, existing)
        assert (run.remarks, names(run)) == ((), ["0.png", "1.png", "9.png"])
    (folder / "0.png").rename(folder / "nothing.png")
    assert names(begin(folder, "extend"))[3:] == ["nothing.png", "9.png@2"]


def test_while_the_data_set_is_away_no_try_counts(dataset: Any, begin: Begin) -> None:
    folder = dataset(8)
    run = begin(folder)
    (folder / "1.png").unlink()
    do(run)
    away = folder.rename(folder.with_name("away"))
    before = written(run)
    for _ in range(MISSING_TRIES):
        assert do(begin(folder)) == [0]
    assert (rejects(run), written(run)) == ([("1.png", "FileNotFoundError", False, 1)], before)
    assert run.to_do().shards == []
    away.rename(folder)
    do(run)
    assert [row[3] for row in rejects(run)] == [2]
