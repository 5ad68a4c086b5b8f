"""Two processes on one run that retry rejects, begin or extend at the same time: nothing that is there is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import finish
from PIL import Image

from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run, load_run
from pti_core.shard.meanwhile import WrittenByAnother
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.known_runs import RunError

Begin = Callable[..., Run]


@pytest.fixture
def begin(tmp_path: Path, tiny_checkpoint: str) -> Begin:
    def freeze_into(dataset: Path, settings: Any = None, **options: Any) -> Run:
        config = configure("noop", {"batch": 4} | (settings or {}))
        return freeze(str(dataset), str(tmp_path / "out"), tiny_checkpoint, config, shard_size=4, **options)

    return freeze_into


def do(run: Run, retry: bool = False, on_progress: Any = None, shard: int = 0) -> None:
    found = invert_shard(run, shard, on_progress, retry)
    measure_shard(run, shard, found["files"], found["seconds"], found["counts"])


def images(run: Run) -> tuple[list[str], list[str]]:
    """Those with pivots, and rejects."""
    return tuple(sorted(run.store.read(table, run.name)["image_id"]) for table in ("pivots", "rejects"))  # type: ignore


def without(folder: Path, *names: str) -> dict[str, bytes]:
    data = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    return data


def test_two_that_retry_one_part_do_not_write_over_each_other(dataset: Any, begin: Begin) -> None:
    folder = dataset(4)
    run = begin(folder)
    gone = without(folder, "1.png")
    do(run)
    (folder / "1.png").write_bytes(gone["1.png"])
    without(folder, "0.png")  # by a rule that deletes old files: what was found for it cannot be found again
    other, theirs = load_run(run.store.root, run.name), list[Any]()

    def they_retry(_: object) -> None:
        if not theirs:
            theirs.append(None)
            theirs[0] = invert_shard(other, 0, None, retry_rejects=True)  # written, not measured yet

    with pytest.raises(WrittenByAnother):
        do(run, retry=True, on_progress=they_retry)
    measure_shard(other, 0, theirs[0]["files"], theirs[0]["seconds"], theirs[0]["counts"])
    do(run, retry=True)
    assert (images(run), run.to_do().shards) == ((["0.png", "1.png", "2.png", "3.png"], []), [])
    assert all(not run.store.verify(marker) for marker in run.store.done(run.name).values())


def test_a_marker_does_not_vouch_for_what_a_retry_writes_over(dataset: Any, begin: Begin) -> None:
    folder = dataset(4)
    run = begin(folder)
    gone = without(folder, "1.png", "2.png")
    do(run)
    without(folder, "0.png")
    other, once = load_run(run.store.root, run.name), list[int]()

    def they_finish(_: object) -> None:
        if not once:
            once.append(1)
            do(other)
            (folder / "1.png").write_bytes(gone["1.png"])

    invert_shard(run, 0, they_finish, retry_rejects=True)  # killed before it measures
    assert run.to_do().shards == [0]
    do(load_run(run.store.root, run.name))
    assert (images(run), run.to_do().shards) == ((["0.png", "1.png", "3.png"], ["2.png"]), [])


def test_parts_do_not_clear_what_an_overwriting_process_has_left(
    dataset: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(4)
    run = finish(begin(folder))
    (Path(run.store.root) / f"runs/{run.name}/config.json").unlink()
    run.store.files.put(f"runs/{run.name}/clearing", b"")
    with pytest.raises(RunError, match=r"was cut off while it was overwritten; run the command once without --part"):
        begin(folder, alone=False)
    assert images(run)[0]  # nothing is removed
    assert begin(folder).to_do().shards == [0]
    assert begin(folder, alone=False).to_do().shards == [0]


def test_a_run_that_another_process_is_overwriting_is_not_removed_once_more(dataset: Any, begin: Begin) -> None:
    folder = dataset(4)
    run = finish(begin(folder))
    remove = run.store.files.remove

    def cut_off(path: str) -> None:
        remove(path)
        if path.startswith("pivots"):
            raise KeyboardInterrupt

    run.store.files.remove = cut_off  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.store.clear_run(run.name)
    with pytest.raises(RunError, match=r"is being overwritten by \S+ since 2\S+; wait for that, or run it again"):
        begin(folder)
    clearing = Path(run.store.root) / f"runs/{run.name}/clearing"
    left = json.loads(clearing.read_bytes())
    assert begin(folder, existing="overwrite").to_do().shards == [0]
    clearing.with_name("config.json").unlink()
    clearing.write_text(json.dumps(left | {"since": "2020-01-01T00:00:00+00:00"}))
    assert begin(folder).to_do().shards == [0]


def test_a_groups_other_rejects_keep_their_tries(
    dataset: Any, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "grouped" / "anna"
    folder.parent.mkdir()
    dataset(4).rename(folder)
    run = begin(folder.parent, {"mode": "multi"})
    without(folder, "1.png")
    read, away = Run.read_input, [True]

    def read_some(self: Run, uri: str, *rest: Any) -> Any:
        if uri.endswith("2.png") and away[0]:
            raise OSError("503")
        return read(self, uri, *rest)

    monkeypatch.setattr(Run, "read_input", read_some)
    for _ in range(3):
        do(run, retry=True)
    assert run.store.markers(run.name)[0]["counts"]["gone"] == 1
    away[0] = False
    do(run, retry=True)
    rejects = run.store.read("rejects", run.name).set_index("image_id")
    assert rejects.index.tolist() == ["anna/1.png"]
    assert bool(rejects.loc["anna/1.png", "permanent"])
    assert run.store.markers(run.name)[0]["counts"]["gone"] == 1


def test_what_others_have_appended_meanwhile_is_not_counted(
    dataset: Any, begin: Begin, pictures: Any, tmp_path: Path
) -> None:
    folder = dataset(4)
    run = finish(begin(folder))
    before = begin(folder)
    assert before.manifest.rows == 4
    Image.fromarray(pictures[7]).save(folder / "7.png")
    finish(begin(folder, existing="extend"))
    (tmp_path / "out" / run.store.part_path("pivots", run.name, 0, 0)).unlink()
    assert before.to_do() == ([0], 0, [0])


def test_shards_that_are_retried_are_not_to_do_for_the_first_time(dataset: Any, begin: Begin) -> None:
    folder = dataset(6)
    run = begin(folder)
    without(folder, "1.png")
    do(run)
    assert run.to_do(retry_rejects=True) == ([0, 1], 0, [1])
    assert run.to_do() == ([1], 4, [1])
