"""`pti check` of runs that lack a manifest, have damaged markers or studies, or are unfinished."""

import shutil
from pathlib import Path

import pytest
from test_store import RUN, do_shard, manifest, start
from typer.testing import CliRunner

from flows.cli import app
from pti_core import tables
from pti_core.storage.store import Store
from pti_core.words import counted


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run with three shards, all done."""
    store = start(Store(str(tmp_path / "out")))
    for shard in range(3):
        do_shard(store, RUN, shard)
    return store


def check(store: Store, *more: str) -> tuple[int, list[str]]:
    """Exit status and lines of `pti check`; the last one is what is said on stderr."""
    result = CliRunner().invoke(app, ["check", store.root, *more])
    return result.exit_code, result.output.splitlines()


def well(read: int, left: int = 0) -> tuple[int, list[str]]:
    """What `check` gives of one run in which nothing is wrong, by its shards that were read and are left."""
    of_run = f"run {RUN}: {counted(read, 'shard')} read"
    all_of_it = f"1 run, {counted(read, 'shard')}: "
    if not left:
        return 0, [of_run, f"{all_of_it}everything is as written"]
    are = "is" if left == 1 else "are"
    return 0, [
        f"{of_run}; {left} {are} unfinished and not read",
        f"{all_of_it}all that was read is as written; {counted(left, 'shard')} {are} unfinished",
    ]


def test_what_is_not_read_is_counted(store: Store) -> None:
    assert check(store) == well(3)
    for shard in (2, 1):
        Path(f"{store.root}/runs/{RUN}/done/0000{shard}.json").unlink()
        assert check(store) == well(shard, 3 - shard)
    flipped = Path(f"{store.root}/pivots/run={RUN}/shard=00000/part-0.parquet")
    flipped.write_bytes(flipped.read_bytes()[:-1])
    assert check(store)[0] == 1
    assert check(store) == well(0, 3)  # it is known by now


@pytest.mark.parametrize("content", ["garbage", "[]", '{"run": 1}', "of another shard"])
def test_a_marker_that_is_none_is_named(store: Store, content: str) -> None:
    marker = Path(f"{store.root}/runs/{RUN}/done/00000.json")
    other = marker.with_name("00001.json").read_text()
    marker.write_text(other if content == "of another shard" else content)
    status, (problem, read, error) = check(store)
    assert status == 1
    assert problem == (
        f"run {RUN}, shard 0: marker 'runs/{RUN}/done/00000.json' cannot be read, so this shard counts as not done; "
        "`pti run` again makes it once more"
    )
    assert read == f"run {RUN}: 2 shards read"
    assert error == "error: 1 shard is not as written; the same `pti run` again does what is damaged once more"
    assert 0 not in store.done(RUN)  # so a run does it
    store.unmark(RUN, 0)  # it is at work
    if content != "of another shard":
        assert check(store) == well(2, 1)


def test_a_run_without_its_manifest_keeps_nobody_from_checking_the_others(store: Store) -> None:
    start(store, "second")
    do_shard(store, "second", 0)
    start(store, "third")
    Path(f"{store.root}/runs/third/config.json").write_text("garbage")
    do_shard(store, "third", 0)
    path = Path(f"{store.root}/runs/{RUN}/manifest.parquet")
    whole = path.read_bytes()
    path.unlink()
    status, lines = check(store)
    assert status == 1
    assert lines[0] == (
        f"run {RUN}: manifest 'runs/{RUN}/manifest.parquet' is missing: without it the run cannot go on; "
        "bring it back, or `pti run ... --overwrite` does all again"
    )
    assert lines[1:3] == [f"run {RUN}: 3 shards read", "run second: 1 shard read; 2 are unfinished and not read"]
    assert lines[3].startswith(f"run third: 'runs/third/config.json' in '{store.root}' is damaged")
    assert lines[4:] == ["error: 2 runs could not be checked in full, for what is said above"]
    assert check(store, "--run", "second")[0] == 0
    for damaged in (b"garbage", whole[: len(whole) // 2], whole[:4] + b"\xff" * 40 + whole[44:]):
        path.write_bytes(damaged)
        status, lines = check(store, "--run", RUN)
        assert status == 1
        assert lines[0].startswith(f"run {RUN}: the manifest cannot be read (")
        assert lines[0].endswith("bring it back, or `pti run ... --overwrite` does all again")
        assert "next `pti run`" not in lines[0]
        assert "pti check" not in lines[0]
        assert lines[1] == f"run {RUN}: 3 shards read"


def test_a_manifest_whose_later_file_is_gone(store: Store) -> None:
    listing = tables.assign_shards(manifest().drop_columns(["shard"]), 2, 3)
    store.write_manifest(RUN, listing)
    do_shard(store, RUN, 5)
    assert check(store) == well(4, 2)
    Path(f"{store.root}/runs/{RUN}/manifest-00003.parquet").unlink()
    status, lines = check(store)
    assert status == 1
    assert "shard 5 is done, and what is there of the manifest ends with shard 2" in lines[0]
    assert lines[1] == f"run {RUN}: 4 shards read"


def test_a_manifest_whose_middle_file_is_gone(store: Store) -> None:
    rows = manifest().drop_columns(["shard"])
    for first in (3, 6):
        store.write_manifest(RUN, tables.assign_shards(rows, 2, first))
    for shard in range(3, 9):
        do_shard(store, RUN, shard)
    assert check(store) == well(9)
    Path(f"{store.root}/runs/{RUN}/manifest-00003.parquet").unlink()
    status, lines = check(store)
    assert status == 1
    assert f"run {RUN!r} lacks a file of its manifest (shards 3 to 5 are listed nowhere)" in lines[0]
    assert "bring it back" in lines[0]


def test_a_network_that_fails_is_no_damage(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    def slow(*_: object, **__: object) -> None:
        raise TimeoutError("read timed out")

    monkeypatch.setattr("pyarrow.parquet.read_metadata", slow)
    status, lines = check(store)
    assert status == 1
    assert "no connection (read timed out); check the address and the network" in lines[0]
    assert "--overwrite" not in lines[0]


def test_files_that_are_no_parts_of_their_run_are_named_and_have_to_be_removed(store: Store) -> None:
    Path(f"{store.root}/runs/{RUN}/done/00002.json").unlink()  # at work: what is there may be of it
    part = Path(f"{store.root}/pivots/run={RUN}/shard=00001/part-0.parquet")
    strays = [part.with_name(name) for name in ("notes.txt", "part-0 (1).parquet", "part-1.parquet")]
    strays += [
        Path(f"{store.root}/rejects/run={RUN}/shard=0000{n}/{name}") for n, name in ((2, "a.parquet"), (3, part.name))
    ]
    for path in strays:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(part, path)
    part.with_name("_notes.txt").write_text("no reader takes it for a part")
    status, lines = check(store)
    assert status == 1
    assert lines[:5] == [
        f"run {RUN}: file '{path.relative_to(store.root)}' is no part of this run (a worker of before `--overwrite` "
        "has left it, or it is a copy); remove it"
        for path in strays
    ]
    assert lines[5:] == [
        f"run {RUN}: 2 shards read; 1 is unfinished and not read",
        "error: 5 files are no parts of their runs; remove them",
    ]
    for path in strays:
        path.unlink()
    assert check(store)[0] == 0


def test_that_all_is_well_is_said_of_all_runs_together(store: Store) -> None:
    start(store, "second")
    for shard in range(3):
        do_shard(store, "second", shard)
    assert check(store)[1][-1] == "2 runs, 6 shards: everything is as written"
    assert check(store, "--run", "second")[1][-1] == "1 run, 3 shards: everything is as written"
    Path(f"{store.root}/pivots/run={RUN}/shard=00000/part-0.parquet").unlink()
    assert "as written; " not in check(store)[1][-2]
    assert check(store)[1][-1] == "2 runs, 5 shards: all that was read is as written; 1 shard is unfinished"


def test_help_says_that_all_runs_are_checked() -> None:
    said = " ".join(CliRunner().invoke(app, ["check", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "Name of a run; all of them if left out." in said


def test_nothing_of_torch_is_needed(store: Store) -> None:
    import subprocess
    import sys

    code = "import sys; from flows.cli import app; app(['check', sys.argv[1]], standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, store.root], check=False).returncode == 0


def test_a_damaged_study_is_found(store: Store) -> None:
    for table in ("alpha_nearness", "alpha_drift"):
        whole = Path(f"{store.root}/pivots/run={RUN}/shard=00001/part-0.parquet")
        part = Path(f"{store.root}/{table}/run={RUN}/shard=00001/part-0.parquet")
        part.parent.mkdir(parents=True)
        shutil.copy(whole, part)
        assert check(store)[0] == 0
        part.write_bytes(whole.read_bytes()[:-20])
        status, lines = check(store)
        assert status == 1
        assert lines[0].startswith(f"run {RUN}, shard 1: part '{table}/run={RUN}/shard=00001/part-0.parquet' in")
        assert lines[0].endswith("`pti alpha-study` again makes it once more")
        assert lines[2].startswith("error: 1 shard is not as written; the same `pti alpha-study` again does")
        part.unlink()
