"""Several processes on one run at the same time: they begin it, extend it, do the same shards, or a part each."""

from __future__ import annotations

import errno
import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, ClassVar

import fsspec
import pytest
from conftest import finish
from fsspec.implementations.memory import MemoryFileSystem
from killable import Job, work_on_part
from killable import begin as begin_job
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.report import publish
from pti_core.runs import Run, load_run
from pti_core.shard.meanwhile import WrittenByAnother
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.files import Files
from pti_core.storage.share import ShareError, share_of
from pti_core.storage.store import StoreError
from tasks.progress import listen
from tasks.shards import invert_shards, measure_shards
from tasks.tries import ShardsLeft

Begin = Callable[..., Run]


@pytest.fixture
def begin(tmp_path: Path, tiny_checkpoint: str) -> Begin:
    def freeze_into(dataset: object, output: object = None, shard_size: int = 4, **more: Any) -> Run:
        config = configure("noop", {"batch": 2})
        where = str(output or tmp_path / "out")
        return freeze(str(dataset), where, tiny_checkpoint, config, shard_size=shard_size, **more)

    return freeze_into


def written(root: object) -> dict[Path, bytes]:
    """All files of the tables and markers."""
    found = [*Path(str(root)).rglob("part-*.parquet"), *Path(str(root)).glob("runs/*/done/*")]
    return {path: path.read_bytes() for path in found}


def check_whole(run: Run, images: int) -> None:
    """As `pti check` does: every file is as its marker says, and nothing else is there."""
    assert run.to_do().shards == []
    assert run.store.check_complete(run.name) == {"manifest": images, "pivots": images, "rejects": 0}
    assert [problem for marker in run.store.done(run.name).values() for problem in run.store.verify(marker)] == []
    assert run.store.strays(run.name) == []


# --- a file only where there is none -------------------------------------------------------------------------------


def test_of_many_who_create_a_file_at_once_one_has_its_way(tmp_path: Path) -> None:
    files, at_once = Files(str(tmp_path)), 8
    for turn in range(20):
        ready = Barrier(at_once)

        def create(number: int, turn: int = turn, ready: Barrier = ready) -> bool:
            ready.wait()
            return files.create(f"runs/{turn}/config.json", f"{number}".encode())

        with ThreadPoolExecutor(at_once) as pool:
            answers = list(pool.map(create, range(at_once)))
        assert answers.count(True) == 1
        assert files.get(f"runs/{turn}/config.json", "") == str(answers.index(True)).encode()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


class Meanwhile(MemoryFileSystem):
    """An object store on which somebody does something, once, directly before a file is created."""

    protocol = "meanwhile-created"
    does: ClassVar[list[tuple[str, Callable[[], object]]]] = []
    knows: ClassVar[bool] = True  # how to create a file only where there is none

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("meanwhile-created://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self.does and re.search(self.does[0][0], path):
            self.does.pop(0)[1]()
        if mode == "create" and not self.knows:
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        super().pipe_file(path, value, mode, **kwargs)


@pytest.fixture
def object_store(tmp_path: Path) -> str:
    fsspec.register_implementation("meanwhile-created", Meanwhile, clobber=True)
    return f"meanwhile-created://{tmp_path.name}"


def test_what_another_one_has_created_meanwhile_stays_on_an_object_store(object_store: str) -> None:
    files = Files(object_store)
    Meanwhile.does.append(("/a$", lambda: files.put("a", b"theirs")))
    assert files.create("a", b"mine") is False
    assert files.get("a", "") == b"theirs"
    assert files.create("a", b"theirs") is True  # as where the answer to an earlier try was lost
    assert files.create("b", b"mine") is True


def test_a_service_that_does_not_know_how_is_written_to_all_the_same(
    object_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meanwhile, "knows", False)
    files = Files(object_store)
    assert files.create("a", b"mine") is True
    assert files.create("a", b"other") is False
    assert files.get("a", "") == b"mine"


# --- the beginning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 4, 6)])
def test_all_that_begin_a_run_at_once_have_the_same_one(dataset: Any, begin: Begin, sizes: tuple[int, ...]) -> None:
    folder, ready = dataset(12), Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda size: begin(folder, shard_size=size, ready=ready.wait), sizes))
    assert len({run.name for run in runs}) == 1
    config = runs[0].store.read_config(runs[0].name)
    assert {run.created for run in runs} == {config["created"]}
    assert len({run.manifest.shards for run in runs}) == 1
    check_whole(finish(runs[1]), 12)


def test_a_list_that_was_left_without_a_configuration_is_replaced(
    dataset: Any, begin: Begin, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pti_core.freezing.beginning.PATIENCE", 0.0)
    folder = dataset(2)
    run = begin(folder)
    (Path(run.store.root) / f"runs/{run.name}/config.json").unlink()
    Image.fromarray(pictures[5]).save(folder / "new.png")
    assert begin(folder).manifest.rows == 3


def test_two_who_extend_at_once_do_not_write_over_each_other(
    dataset: Any, begin: Begin, pictures: Any, object_store: str
) -> None:
    folder = dataset(2)
    finish(begin(folder, object_store))
    Image.fromarray(pictures[5]).save(folder / "5.png")

    def other() -> None:
        Image.fromarray(pictures[6]).save(folder / "6.png")
        finish(begin(folder, object_store, existing="extend"))

    Meanwhile.does.append((r"/manifest-\d+\.parquet$", other))
    with pytest.raises(StoreError, match="another process has begun or extended this run meanwhile; run it again"):
        begin(folder, object_store, existing="extend")
    run = begin(folder, object_store, existing="extend")
    assert run.remarks == ()
    check_whole(run, 4)


# --- the same shard ------------------------------------------------------------------------------------------------


def test_a_shard_that_another_one_has_finished_is_not_done_again(dataset: Any, begin: Begin) -> None:
    run = begin(dataset(4))
    other = load_run(run.store.root, run.name)
    theirs = invert_shard(run, 0)
    measure_shard(run, 0, theirs["files"], theirs["seconds"], theirs["counts"])
    before, seen = written(run.store.root), list[Any]()
    found = invert_shard(other, 0, seen.append)
    assert (found["images"], found["counts"]) == (4, {"pivots": 4, "rejects": 0, "temporary": 0, "gone": 0})
    assert [(one.done, one.total) for one in seen] == [(4, 4)]
    measured = measure_shard(other, 0, found["files"], found["seconds"], found["counts"])
    assert (measured["shard"], measured["images"], measured["pivots"]) == (0, 4, 4)
    assert written(run.store.root) == before
    marker = run.store.markers(run.name, whole=True)[0]
    run.store.mark_damaged(run.name, 0, marker)
    again = invert_shard(other, 0)
    measure_shard(other, 0, again["files"], again["seconds"], again["counts"])
    assert run.to_do().shards == []


def test_a_shard_that_another_one_finishes_meanwhile_is_left_to_it(dataset: Any, begin: Begin) -> None:
    run = begin(dataset(4))
    before: dict[Path, bytes] = {}

    def other_finishes(_: object) -> None:
        if not before:
            finish(load_run(run.store.root, run.name))
            before.update(written(run.store.root))

    found = invert_shard(run, 0, other_finishes)
    measure_shard(run, 0, found["files"], found["seconds"], found["counts"])
    assert written(run.store.root) == before
    check_whole(run, 4)


def test_a_marker_of_files_that_this_process_has_written_over_is_taken_back(dataset: Any, begin: Begin) -> None:
    run = begin(dataset(4))
    whole = finish(begin(run.dataset, f"{run.store.root}-other"))
    (marker,) = whole.store.markers(run.name, whole=True).values()

    def other_marks(progress: Any) -> None:
        """With what it saw before this process wrote its first part; the sizes are the same."""
        if progress.done == 2 and not run.store.marker(run.name, 0):
            for path, data in written(whole.store.root).items():
                mine = Path(run.store.root) / path.relative_to(whole.store.root)
                if path.suffix == ".parquet" and not mine.exists():
                    mine.parent.mkdir(parents=True, exist_ok=True)
                    mine.write_bytes(data)
            files = [file | {"bytes": run.store.file_info(file["path"]).bytes} for file in marker["files"]]
            run.store.mark_done(run.name, 0, marker | {"files": files, "created": run.created})

    finish_with(run, other_marks)
    check_whole(run, 4)


def finish_with(run: Run, progress: Callable[[Any], None]) -> None:
    found = invert_shard(run, 0, progress)
    measure_shard(run, 0, found["files"], found["seconds"], found["counts"])


def test_a_marker_does_not_vouch_for_what_another_one_has_written(dataset: Any, begin: Begin) -> None:
    run = begin(dataset(2))
    ours = invert_shard(run, 0)
    for path in Path(run.store.root).rglob("metrics/**/part-0.parquet"):
        path.unlink()
    invert_shard(run, 0)
    with pytest.raises(WrittenByAnother, match=r"metrics/.*part-0\.parquet' is not the one that was inverted"):
        measure_shard(run, 0, ours["files"], ours["seconds"], ours["counts"])
    assert run.to_do().shards == [0]
    measure_shards.fn(run.store.root, run.name, [ours])  # a task takes the parts as they are now
    check_whole(run, 2)


def test_three_who_do_all_of_a_run_at_once_end_well(dataset: Any, begin: Begin) -> None:
    folder, ready = dataset(12), Barrier(3)

    def work(_: int) -> int:
        run = begin(folder, ready=ready.wait)
        for tries in range(1, 9):
            try:
                with listen(lambda progress: None):
                    measure_shards.fn(
                        run.store.root, run.name, invert_shards.fn(run.store.root, run.name, run.to_do().shards)
                    )
                return tries
            except ShardsLeft:  # of parts that another one was writing just then; the flow tries them again later
                continue
        return 0

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))
    run = begin(folder)
    check_whole(finish(run), 12)


# --- a part each ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["8/8", "-1/8", "1", "a/b", "1/0", "1/2/3", ""])
def test_a_wrong_part_is_one_sentence(part: str, tmp_path: Path) -> None:
    expected = f"part {part!r}: I/N expected, with I from 0 to N-1, such as 0/8 for the first of eight"
    with pytest.raises(ShareError, match=re.escape(expected)):
        share_of(part)
    result = CliRunner().invoke(app, ["run", "nowhere", "-o", str(tmp_path / "out"), f"--part={part}"])
    assert (result.exit_code, result.output) == (1, f"error: {expected}\n")


def test_parts_do_not_overwrite(tmp_path: Path) -> None:
    arguments = ["run", "nowhere", "-o", str(tmp_path / "out"), "--part", "0/2", "--overwrite"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "part '0/2' with --overwrite" in result.output


def test_parts_are_all_of_a_run_and_count_their_own_images(dataset: Any, begin: Begin) -> None:
    run = begin(dataset(11), shard_size=2)
    parts = [share_of(f"{i}/4") for i in range(4)]
    assert [run.to_do(share=part).shards for part in parts] == [[0, 4], [1, 5], [2], [3]]
    assert [run.manifest.images_of(part) for part in parts] == [4, 3, 2, 2]
    for shard in (0, 1, 5):
        found = invert_shard(run, shard)
        measure_shard(run, shard, found["files"], found["seconds"], found["counts"])
    assert [run.to_do(share=part)[:2] for part in parts] == [([4], 2), ([], 3), ([2], 0), ([3], 0)]
    assert run.to_do()[:2] == ([2, 3, 4], 5)


def test_a_part_that_is_done_says_what_is_left_and_the_last_one_publishes(
    dataset: Any, begin: Begin, tiny_checkpoint: str
) -> None:
    run = begin(dataset(6), shard_size=2)
    arguments = ["run", run.dataset, "-o", run.store.root, "--generator", tiny_checkpoint, "--preset", "noop"]
    arguments += ["--set", "batch=2", "--part", "1/2"]
    found = invert_shard(run, 1)
    measure_shard(run, 1, found["files"], found["seconds"], found["counts"])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"part 1/2 is done; 2 shards are left to other parts, run {run.name}" in " ".join(result.output.split())
    assert not run.store.exists(f"runs/{run.name}/report/summary.json")
    finish(run)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert run.store.exists(f"runs/{run.name}/report/summary.json")


def test_parts_that_begin_at_once_leave_a_run_that_is_whole(
    dataset: Any, tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the fork server finds `killable`
    processes, count = multiprocessing.get_context("forkserver"), 3
    processes.set_forkserver_preload(["killable"])
    job: Job = str(dataset(12)), str(tmp_path / "out"), tiny_checkpoint, 2, {"engine": "noop", "batch": 2}
    at_once, answers = processes.Barrier(count), processes.SimpleQueue()
    working = [
        processes.Process(target=work_on_part, args=(job, f"{i}/{count}", at_once, answers)) for i in range(count)
    ]
    for process in working:
        process.start()
    for process in working:
        process.join(120)
    assert [process.exitcode for process in working] == [0] * count
    told = [answers.get() for _ in working]
    run = begin_job(job)
    assert {created for created, _ in told} == {run.created}
    assert any(left == 0 for _, left in told)  # who publishes
    check_whole(run, 12)
    assert publish(run)["images"] == 12


def test_two_commands_that_do_a_part_each_at_once(
    dataset: Any, tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    folder, out = dataset(10), tmp_path / "out"
    command = [sys.executable, "-m", "flows.cli", "run", folder, "-o", out, "--generator", tiny_checkpoint]
    command += ["--preset", "noop", "--shard-size", "2"]
    working = []
    for i in range(2):
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path / f"home-{i}"))
        told = subprocess.PIPE
        working.append(subprocess.Popen([*command, "--part", f"{i}/2"], stdout=told, stderr=told, text=True))
    said = [process.communicate(timeout=300) for process in working]
    assert [process.returncode for process in working] == [0, 0], said
    assert [error for _, error in said] == ["", ""]
    (name,) = (path.parent.name for path in out.glob("runs/*/config.json"))
    run = load_run(str(out), name)
    check_whole(run, 10)
    summary = json.loads(run.store.files.get(f"runs/{name}/report/summary.json", "no summary"))
    assert summary["summary"]["images"] == 10
    assert any("pandas.read_parquet" in text for text, _ in said)
    for i, (text, _) in enumerate(said):
        assert "pandas.read_parquet" in text or f"part {i}/2 is done; " in text
