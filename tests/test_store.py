"""The store on a real disk, in memory, and on S3 over HTTP: layout, markers, crashes, and unusable outputs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pti_core import tables
from pti_core.checking import Checked, check_run
from pti_core.storage.files import FileInfo, Files
from pti_core.storage.layout import run_id
from pti_core.storage.markers import make_marker
from pti_core.storage.store import Store, StoreError

RUN, DIGEST = "abc123abc123", "abc123abc123" * 5 + "0000"


def manifest(count: int = 5, size: int = 2) -> Any:
    names = [f"{i}.png" for i in range(count)]
    listing = {"image_id": names, "uri": [f"u/{i}" for i in range(count)], "group": names, "bytes": [1] * count}
    return tables.assign_shards(pa.table(listing | {"etag": ["e"] * count}), size)


def pivot(name: str) -> dict[str, Any]:
    row = {"image_id": name, "uri": "u", "sha256": "0", "group": name, "space": "w", "w": [1.0], "noise": None}
    return row | {"lpips": 0.5, "mse": 0.5, "steps": 1, "seconds": 1.0, "seed": 1}


def reject(name: str) -> dict[str, Any]:
    row = {"image_id": name, "uri": "u", "stage": "decode", "error": "ImageError", "message": "no"}
    return row | {"permanent": True, "attempts": 1}


def metric(name: str) -> dict[str, Any]:
    row = dict.fromkeys(tables.schema("metrics").names)
    values = {"image_id": name, "group": name, "stage": "tuned", "lpips": 0.5, "mse": 0.5, "psnr": 9.0, "ssim": 1.0}
    return row | values


def write_parts(store: Store, run: str, shard: int, names: list[str], bad: int = 0) -> list[FileInfo]:
    """A shard whose first `bad` images are rejects."""
    rows = {"rejects": [reject(n) for n in names[:bad]], "pivots": [pivot(n) for n in names[bad:]]}
    rows["metrics"] = [metric(n) for n in names[bad:]]
    net = {"lpips_net": "alex"}
    return [store.write_part(t, run, shard, 0, tables.table(t, rows.get(t, []), net)) for t in tables.PARTS]


def do_shard(store: Store, run: str, shard: int, bad: int = 0) -> None:
    frame = store.manifest(run).table().to_pandas()
    names = frame.loc[frame["shard"] == shard, "image_id"].tolist()
    files = write_parts(store, run, shard, names, bad)
    counts = {"manifest": len(names), "pivots": len(names) - bad, "rejects": bad}
    store.mark_done(run, shard, make_marker(counts, 1.5, DIGEST, files))


def start(store: Store, run: str = RUN) -> Store:
    store.check_writable()
    store.write_config(run, {"digest": DIGEST, "seed": 0})
    store.write_manifest(run, manifest())
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return start(Store(str(tmp_path / "out")))


def test_an_output_has_a_folder_for_each_table_of_the_documentation(store: Store, tmp_path: Path) -> None:
    """Partitioned by run and shard, as docs/tables.md says; what belongs to one run alone is below runs/."""
    do_shard(store, RUN, 1)
    store.write_report(RUN, "index.html", b"<html>")
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    part = f"run={RUN}/shard=00001/part-0"
    tables_ = [f"{t}/{part}.parquet" for t in ("locality", "metrics", "pivots", "rejects")]
    run = [f"runs/{RUN}/{f}" for f in ("config.json", "done/00001.json", "manifest.parquet", "report/index.html")]
    assert found == sorted([f"deltas/{part}000.parquet", *tables_, *run])


def test_pandas_reads_every_table_even_with_no_rows(store: Store) -> None:
    for shard in range(3):
        do_shard(store, RUN, shard)
    for name in tables.PARTS:
        frame = pd.read_parquet(f"{store.root}/{name}")
        assert list(frame.columns) == [*tables.schema(name).names, "run", "shard"]
        assert frame.attrs == {"lpips_net": "alex"}
    assert len(pd.read_parquet(f"{store.root}/rejects")) == 0
    metrics = pd.read_parquet(f"{store.root}/metrics")
    assert list(metrics["run"]) == [RUN] * 5
    assert list(metrics["shard"]) == [0, 0, 1, 1, 2]


def test_read(store: Store) -> None:
    assert list(store.read("metrics").columns) == [*tables.schema("metrics").names, "run", "shard"]
    assert len(store.read("pivots", RUN, columns=["image_id"])) == 0
    for shard in range(3):
        do_shard(store, RUN, shard)
    frame = store.read("metrics", RUN)
    assert frame.dtypes["run"] == store.read("metrics", "other").dtypes["run"] == "str"
    assert frame.dtypes["shard"] == "int32"
    assert list(store.read("metrics", columns=["image_id", "run"])["run"]) == [RUN] * 5
    filters = [("shard", "==", 1), ("image_id", "in", ["2.png", "4.png"])]
    assert list(store.read("metrics", RUN, filters=filters)["image_id"]) == ["2.png"]
    assert store.read("metrics").attrs == {"lpips_net": "alex"}


def test_runs_lie_side_by_side(store: Store) -> None:
    start(store, "second")
    do_shard(store, RUN, 0)
    do_shard(store, "second", 1)
    assert store.runs() == [RUN, "second"]
    assert set(pd.read_parquet(f"{store.root}/pivots")["run"]) == {RUN, "second"}
    assert set(store.read("pivots", "second")["shard"]) == {1}
    assert (list(store.done(RUN)), list(store.done("second"))) == ([0], [1])


@pytest.mark.parametrize(
    ("digest", "expected"),
    [
        ("abcdef123456" + "0" * 52, "abcdef123456"),
        ("000000000012ab" + "0" * 50, "00000000012a"),
        ("123456789012f" + "0" * 51, "23456789012f"),
        ("1e5000000000" + "b" * 52, "e5000000000b"),
    ],
)
def test_run_id_never_reads_as_a_number(digest: str, expected: str, tmp_path: Path) -> None:
    assert run_id(digest) == expected
    store = start(Store(str(tmp_path)), run_id(digest))
    do_shard(store, run_id(digest), 0)
    assert list(pd.read_parquet(tmp_path / "pivots")["run"]) == [expected] * 2


@pytest.mark.parametrize("run", ["000000000012", "1e5", "2024", "nan", "", "a/b", "..", "a=b", "a b", "_x", ".x", "é"])
def test_run_names_that_would_not_survive_are_refused(store: Store, run: str) -> None:
    with pytest.raises(StoreError, match="choose another name"):
        store.write_config(run, {})


def test_config_and_manifest_are_frozen(store: Store) -> None:
    assert store.read_config(RUN) == {"digest": DIGEST, "seed": 0}
    store.write_config(RUN, {"digest": DIGEST, "seed": 0})
    with pytest.raises(StoreError, match="another configuration"):
        store.write_config(RUN, {"digest": "else"})
    assert store.manifest(RUN).table().equals(manifest())
    store.write_manifest(RUN, manifest())
    with pytest.raises(StoreError, match=r"5 images there, 4 now.*: another process has begun or extended"):
        store.write_manifest(RUN, manifest(4))
    (Path(store.root) / f"runs/{RUN}/config.json").unlink()  # as if its writer had been killed between the two
    store.write_manifest(RUN, manifest(4))
    assert store.manifest(RUN).rows == 4
    with pytest.raises(StoreError, match="run 'none' has no config in"):
        store.read_config("none")
    with pytest.raises(StoreError, match="run 'none' has no manifest in"):
        store.manifest("none")
    store.files.put(f"runs/{RUN}/config.json", b"{")
    with pytest.raises(StoreError, match=rf"'runs/{RUN}/config.json' in .* is damaged \(.*\); bring it back"):
        store.read_config(RUN)


def test_a_config_that_is_there_stays(store: Store) -> None:
    store.write_config("b", {"digest": DIGEST, "created": "now"})
    store.write_config("b", {"digest": DIGEST, "created": "by another process, a moment later"})
    assert store.read_config("b")["created"] == "now"


def test_a_shard_of_a_run_that_was_overwritten_meanwhile_is_not_done(store: Store) -> None:
    store.write_config("b", {"digest": DIGEST, "created": "then"})
    store.write_manifest("b", manifest())
    files = write_parts(store, "b", 0, ["0.png", "1.png"])
    counts = {"manifest": 2, "pivots": 2, "rejects": 0}
    store.mark_done("b", 0, make_marker(counts, 1.5, DIGEST, files, "then"))
    assert list(store.done("b")) == [0]
    store.clear_run("b")
    store.write_manifest("b", manifest())
    store.write_config("b", {"digest": DIGEST, "created": "now"})
    write_parts(store, "b", 0, ["0.png", "1.png"])  # by a worker that still does the old run
    store.mark_done("b", 0, make_marker(counts, 1.5, DIGEST, files, "then"))
    assert list(store.done("b")) == []
    store.mark_done("b", 0, make_marker(counts, 1.5, DIGEST, files, "now"))
    assert list(store.done("b")) == [0]


def test_a_check_leaves_alone_what_is_done_again_meanwhile(store: Store) -> None:
    for shard in range(2):
        do_shard(store, RUN, shard)
    found = check_run(store, RUN, store.markers(RUN))
    assert next(found) == Checked(0, [])
    do_shard(store, RUN, 1, bad=1)  # `--retry-rejects`, while shard 0 was read
    assert list(found) == [Checked(1, [])]
    assert list(store.done(RUN)) == [0, 1]
    found = check_run(store, RUN, store.markers(RUN))
    assert next(found) == Checked(0, [])
    store.unmark(RUN, 1, {0})  # or it is at work just now
    write_parts(store, RUN, 1, ["2.png", "3.png"])
    before = store.marker(RUN, 1)
    assert list(found) == [Checked(1, [])]
    assert store.marker(RUN, 1) == before


def test_a_folder_with_two_colons_in_its_name(tmp_path: Path) -> None:
    for name in ("o::1", "o::2"):
        store = start(Store(str(tmp_path / name)), RUN)
        do_shard(store, RUN, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o::1", "o::2"]
    assert len(pd.read_parquet(f"{store.root}/pivots")) == 2


def test_rows_add_up(store: Store) -> None:
    do_shard(store, RUN, 0, bad=1)
    do_shard(store, RUN, 1)
    with pytest.raises(StoreError, match=r"3 pivots and 1 rejects for 5 images.*\['4.png'\]"):
        store.check_complete(RUN)
    do_shard(store, RUN, 2, bad=1)
    assert store.check_complete(RUN) == {"manifest": 5, "pivots": 3, "rejects": 2}
    write_parts(store, RUN, 7, ["0.png"])
    stray = rf"file 'deltas/run={RUN}/shard=00007/part-0000.parquet' is no part of this run .*; remove it, and 4 more"
    with pytest.raises(StoreError, match=f"an image has two rows; {stray}"):
        store.check_complete(RUN)


def test_a_shard_done_twice_is_there_once(store: Store) -> None:
    for _ in range(2):
        for shard in range(3):
            do_shard(store, RUN, shard)
    assert store.check_complete(RUN)["pivots"] == 5
    assert list(store.done(RUN)) == [0, 1, 2]


def test_clear_run(store: Store) -> None:
    start(store, "second")
    for run in (RUN, "second"):
        do_shard(store, run, 0)
        store.write_report(run, "index.html", b"")
    store.clear_run(RUN)
    store.clear_run(RUN)
    assert store.runs() == ["second"]
    assert not [f for f in store.files.find("") if RUN in f]
    assert list(store.done("second")) == [0]


def test_payload_without_marker_is_not_done(store: Store) -> None:
    write_parts(store, RUN, 0, ["0.png", "1.png"])
    assert store.done(RUN) == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"run": "abc123abc123", "shard": 0}', b'{"files": 1}']
)
def test_unreadable_markers_do_not_count(store: Store, content: bytes) -> None:
    do_shard(store, RUN, 0)
    store.files.put(f"runs/{RUN}/done/00000.json", content)
    store.files.put(f"runs/{RUN}/done/notes.txt", b"")
    assert store.done(RUN) == {}


def test_markers_that_do_not_match_do_not_count(store: Store, tmp_path: Path) -> None:
    for shard in range(3):
        do_shard(store, RUN, shard)
    done = tmp_path / "out/runs" / RUN / "done"
    (done / "00004.json").write_bytes((done / "00002.json").read_bytes())  # another shard's
    other = json.loads((done / "00002.json").read_text()) | {"digest": "else"}
    (done / "00002.json").write_text(json.dumps(other))
    (tmp_path / f"out/pivots/run={RUN}/shard=00001/part-0.parquet").unlink()
    assert list(store.done(RUN)) == [0]
    (tmp_path / f"out/metrics/run={RUN}/shard=00000/part-0.parquet").write_bytes(b"PAR1")
    assert store.done(RUN) == {}


def test_unmark(store: Store) -> None:
    store.unmark(RUN, 0)
    assert store.marker(RUN, 0) is None
    do_shard(store, RUN, 0)
    assert store.marker(RUN, 0) == store.done(RUN, whole=True)[0]
    before = store.marker(RUN, 0)
    store.unmark(RUN, 0)
    left = store.marker(RUN, 0)
    assert store.done(RUN) == {}
    assert (left["files"], left["counts"]) == (before["files"], before["counts"])
    store.unmark(RUN, 0, {0})
    assert store.marker(RUN, 0)["files"] == []


def test_verify(store: Store, tmp_path: Path) -> None:
    do_shard(store, RUN, 0)
    (marker,) = store.done(RUN).values()
    assert store.verify(marker) == []
    path = tmp_path / f"out/pivots/run={RUN}/shard=00000/part-0.parquet"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert list(store.done(RUN)) == [0]  # sizes only
    assert "not as written" in store.verify(marker)[0]
    path.unlink()
    assert "is missing" in store.verify(marker)[0]


def test_marks_that_do_not_add_up_are_refused(store: Store) -> None:
    files = write_parts(store, RUN, 0, ["0.png", "1.png"])
    with pytest.raises(StoreError, match="1 pivots and 0 rejects for 2 images"):
        store.mark_done(RUN, 0, make_marker({"manifest": 2, "pivots": 1, "rejects": 0}, 1, DIGEST, files))
    counts = {"manifest": 2, "pivots": 2, "rejects": 0}
    with pytest.raises(StoreError, match="no part of table 'rejects'"):
        store.mark_done(RUN, 0, make_marker(counts, 1, DIGEST, files[:-1]))
    second = store.write_part("deltas", RUN, 0, 1, tables.table("deltas", []))
    with pytest.raises(StoreError, match="lacks part 1 of table 'pivots'"):
        store.mark_done(RUN, 0, make_marker(counts, 1, DIGEST, [*files, second]))
    with pytest.raises(StoreError, match=r"shard=00001.* is no part of it"):
        store.mark_done(RUN, 0, make_marker(counts, 1, DIGEST, [*files, *write_parts(store, RUN, 1, ["0.png"])]))
    with pytest.raises(StoreError, match="lacks digest, seconds"):
        store.mark_done(RUN, 0, {"counts": counts, "files": []})
    assert store.done(RUN) == {}


def check_whole_files(folder: Path) -> None:
    """All tables and markers that are there can be read to their ends."""
    for path in folder.rglob("*.parquet"):
        pq.read_table(path, partitioning=None)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())


def test_killed_writers_leave_nothing_that_is_read(store: Store, tmp_path: Path) -> None:
    """The kernel kills processes at a byte in the middle of a file; whatever they left, readers see whole files."""
    do_shard(store, RUN, 0)
    script = """
import os, resource, signal, sys, tests.test_store as t
store = t.Store(sys.argv[1])
for limit, work in [
    (100, lambda: t.do_shard(store, t.RUN, 0, bad=2)),  # over one that is done
    (1000, lambda: t.do_shard(store, t.RUN, 1)),
    (200, lambda: store.write_config("second", {"digest": t.DIGEST * 100})),
]:
    writer = os.fork()
    if not writer:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGXFSZ
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script, store.root], env=env, timeout=120, check=True)
    sizes = [path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {100, 200, 1000} <= set(sizes)  # each was in the middle of a file
    check_whole_files(tmp_path / "out")
    for shard, marker in store.done(RUN).items():
        assert store.verify(marker) == [], shard
    assert store.runs() == [RUN]
    for shard in range(3):
        do_shard(store, RUN, shard)
    assert len(pd.read_parquet(f"{store.root}/metrics")) == len(store.read("metrics")) == 5
    assert store.check_complete(RUN)["pivots"] == 5


def test_a_store_can_be_pickled(store: Store) -> None:
    do_shard(pickle.loads(pickle.dumps(store)), RUN, 0)
    assert list(store.done(RUN)) == [0]


def test_object_store_in_memory() -> None:
    store = start(Store("memory://store-test/out"))
    for shard in range(3):
        do_shard(store, RUN, shard, bad=shard % 2)
    assert store.check_complete(RUN) == {"manifest": 5, "pivots": 4, "rejects": 1}
    store.unmark(RUN, 1)
    assert list(store.done(RUN)) == [0, 2]
    store.clear_run(RUN)
    assert (store.runs(), store.done(RUN)) == ([], {})


class Unreliable(MemoryFileSystem):
    """A file system whose uploads fail `failures` times with an error that may pass."""

    protocol = "unreliable"
    failures = 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if Unreliable.failures:
            Unreliable.failures -= 1
            raise TimeoutError("read timed out after password=hunter22")
        super().pipe_file(path, value, mode, **kwargs)


def test_failed_uploads_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    monkeypatch.setattr("pti_core.storage.files.UPLOAD_WAITS", (0.0, 0.0, 0.0))
    store = Store("unreliable://store-test/again", {"password": "hunter22"})
    Unreliable.failures = 3
    store.write_config(RUN, {"digest": DIGEST})
    assert store.read_config(RUN) == {"digest": DIGEST}
    Unreliable.failures = 4
    with pytest.raises(StoreError, match=r"no connection \(read timed out after password=\*\*\*\)") as caught:
        store.write_config("def", {"digest": DIGEST})
    assert "hunter22" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["", "below", "below/that"])
def test_a_file_where_a_folder_is_needed(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=f"'{tmp_path}/file' is a file where a folder is needed"):
        Store(str(tmp_path / "file" / name)).check_writable()


def test_a_file_in_the_place_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("x")
    with pytest.raises(StoreError, match=f"'{tmp_path}/metrics' is a file where a folder is needed"):
        Store(str(tmp_path)).check_writable()


@pytest.mark.parametrize("root", ["/proc/pti", "/sys/pti"])
def test_places_that_take_no_files(root: str) -> None:
    with pytest.raises(StoreError, match=f"output '{root}' cannot be written: ") as caught:
        Store(root).check_writable()
    assert "\n" not in str(caught.value)


def test_unknown_places() -> None:
    for root in ("foo://x", " "):
        with pytest.raises(StoreError, match="output"):
            Store(root)


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    Store(str(tmp_path / "new")).check_writable()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_file_that_goes_while_it_is_read_is_no_place_that_takes_none(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    said = "a file of it is gone; if another process does the run anew"
    with pytest.raises(StoreError, match=said), files.explained("read"):
        files.open("runs/a/manifest.parquet")


def test_a_damaged_part_is_named_in_one_line(tmp_path: Path) -> None:
    path = "rejects/run=abcdef/shard=00001/part-0.parquet"
    for shard in range(2):
        (tmp_path / f"rejects/run=abcdef/shard=0000{shard}").mkdir(parents=True)
        pd.DataFrame({"image_id": ["1.png"] * 50}).to_parquet(tmp_path / path.replace("00001", f"0000{shard}"))
    whole = (tmp_path / path).read_bytes()
    for data, which in (
        (whole[:-60] + b"\xff" * 52 + whole[-8:], f"file '{path}'"),
        (whole[:-20], f"file '{path}'"),
        (b"", f"file '{path}'"),
        (whole[:4] + b"\xff" * 40 + whole[44:], "a Parquet file"),
    ):
        (tmp_path / path).write_bytes(data)
        with pytest.raises(StoreError) as caught:
            Store(str(tmp_path)).read("rejects", run="abcdef")
        message = str(caught.value)
        assert message.startswith(f"output '{tmp_path}' cannot be read: {which} is damaged (")
        assert message.endswith("; `pti check` finds it, and the command that made it does it again")
        assert "\n" not in message


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_files_that_begin_so(place: str, tmp_path: Path) -> None:
    files = Files(str(tmp_path) if place == "disk" else f"memory://{tmp_path.name}")
    for name in ("a/00001-b/x", "a/00001-c", "a/000010-d/x", "a/e/00001-f", "00001-g"):
        files.put(name, b"")
    assert list(files.find("a", begin="00001-")) == ["a/00001-b/x", "a/00001-c"]
    assert list(files.find("a", maxdepth=1, begin="00001-")) == ["a/00001-c"]
    assert files.find("a", begin="2") == files.find("no", begin="0") == {}
