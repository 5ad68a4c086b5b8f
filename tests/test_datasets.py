"""Scanning datasets: what counts, in which order, under which id, and every way it can be wrong."""

from __future__ import annotations

import io
import os
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pti_core.addresses import canonical, redact
from pti_core.datasets import LISTING, DatasetError, inputs_digest, natural_key, scan
from pti_core.reading import DEMO_FOLDER, read_bytes
from pti_core.sources import base
from pti_core.sources.base import EXTENSIONS, LISTED, Listed
from pti_core.tables import TABLES

Row = namedtuple("Row", LISTING.names)


def rows(dataset: str, **options: Any) -> list[Any]:
    listing = scan(dataset, **options)
    assert listing.schema.equals(LISTING)
    return [Row(**row) for row in listing.to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["10.png", "2.PNG", "b/x.jpg", "a/1.webp", "a/c/3.tiff", "notes.txt", ".hidden.png", ".git/y.png"]:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "data/__MACOSX").mkdir()
    (tmp_path / "data/__MACOSX/z.png").write_bytes(b"")
    return tmp_path / "data"


def refused(dataset: str, **options: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        scan(dataset, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_in_natural_order(folder: Path) -> None:
    entries = rows(str(folder))
    assert [e.image_id for e in entries] == ["2.PNG", "10.png", "a/1.webp", "a/c/3.tiff", "b/x.jpg"]
    assert [e.group for e in entries] == [e.image_id for e in entries]
    assert [read_bytes(e.uri).decode() for e in entries] == [e.image_id for e in entries]
    assert [e.bytes for e in entries] == [len(e.image_id) for e in entries]
    assert rows(f"file://{folder}/") == rows(f"{folder}//") == entries
    assert rows(str(folder), limit=2) == entries[:2]
    assert rows(str(folder), limit=99) == entries


def test_the_extensions_that_count_are_in_the_docs() -> None:
    text = (Path(__file__).parent.parent / "docs/inputs.md").read_text()
    sentence = text.partition("Images count by their extension")[2].partition(".")[0]
    assert {f".{name}" for name in sentence.split("`")[1::2]} == EXTENSIONS


def test_group_by_folder(folder: Path) -> None:
    groups = {e.image_id: e.group for e in rows(str(folder), group_by="folder")}
    assert groups == {"2.PNG": "2.PNG", "10.png": "10.png", "a/1.webp": "a", "a/c/3.tiff": "a", "b/x.jpg": "b"}


def test_group_by_a_pattern(folder: Path) -> None:
    def groups(spec: str) -> list[str]:
        return [row.group for row in rows(str(folder), group_by=spec)]

    assert groups(r"regex:(\d+)\.") == ["2", "10", "1", "3", "b/x.jpg"]
    assert groups(r"regex:^(\w)(?:/\w)?/(?P<group>\d)") == ["2.PNG", "10.png", "1", "3", "b/x.jpg"]
    assert groups(r"regex:(z?)x") == [row.image_id for row in rows(str(folder))]  # nothing captured is no group
    assert "'regex:(': not a regular expression (missing ), " in refused(str(folder), group_by="regex:(")
    assert "'regex:a': no capture group; put" in refused(str(folder), group_by="regex:a")
    for unknown in ("", "colour", "column:", "regex:", "count:", "folder:x"):
        expected = f"group_by {unknown!r}: 'folder', 'column:NAME', 'regex:PATTERN' or 'count:N'"
        assert expected in refused("demo", group_by=unknown)
    assert "no image of dataset" in refused(str(folder), group_by="column:label")


def test_group_by_number_follows_the_order_of_the_list(folder: Path) -> None:
    def groups(spec: str, **options: Any) -> list[tuple[str, str]]:
        return [(row.image_id, row.group) for row in rows(str(folder), group_by=spec, **options)]

    five = ["2.PNG", "10.png", "a/1.webp", "a/c/3.tiff", "b/x.jpg"]
    assert groups("count:2") == list(zip(five, [f"group-0000{i}" for i in (0, 0, 1, 1, 2)], strict=True))
    assert groups("count:2", limit=3) == groups("count:2")[:3]
    assert [group for _, group in groups("count:9")] == ["group-00000"] * 5
    for wrong in ("count:0", "count:-1", "count:2.5", "count:four", "count:²"):
        assert f"group_by {wrong!r}: a whole number from 1 expected" in refused("demo", group_by=wrong)


def test_natural_key() -> None:
    names = ["a", "A", "img10", "img9", "img09", "b/2", "b/10", "10", "9", "²"]
    assert sorted(names, key=natural_key) == ["9", "10", "A", "a", "b/2", "b/10", "img09", "img9", "img10", "²"]


def test_single_file_and_glob(folder: Path) -> None:
    (one,) = rows(str(folder / "b/x.jpg"))
    assert one.image_id == "x.jpg"
    assert one.etag == rows(str(folder))[-1].etag
    assert [e.image_id for e in rows(f"{folder}/a/**")] == ["1.webp", "c/3.tiff"]
    assert [e.image_id for e in rows(f"{folder}/*/*.*")] == ["a/1.webp", "b/x.jpg"]
    assert "nothing matches" in refused(f"{folder}/*.bmp")
    assert "not an image by its name" in refused(str(folder / "notes.txt"))


def test_a_folder_named_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "set [1]").mkdir()
    (tmp_path / "set [1]/a#?.png").write_bytes(b"1")
    (entry,) = rows(str(tmp_path / "set [1]"))
    assert entry.image_id == "a#?.png"
    assert read_bytes(entry.uri) == b"1"


def test_links_are_followed_and_loops_end(folder: Path, tmp_path: Path) -> None:
    for name in ("p", "q"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "i.png").write_bytes(name.encode())
    (tmp_path / "p/q").symlink_to("../q")
    (tmp_path / "q/p").symlink_to("../p")
    (tmp_path / "p/dead.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "p/pipe.png")
    entries = rows(str(tmp_path / "p"))
    assert [e.image_id for e in entries] == ["dead.png", "i.png", "q/i.png"]
    assert read_bytes(entries[2].uri) == b"q"
    with pytest.raises(FileNotFoundError):
        read_bytes(entries[0].uri)
    (tmp_path / "linked").symlink_to(folder)
    assert len(rows(str(tmp_path / "linked"))) == 5


def test_etag_and_digest_follow_the_file(folder: Path) -> None:
    before = scan(str(folder))
    assert inputs_digest(before) == inputs_digest(scan(str(folder)))
    os.utime(folder / "10.png", ns=(1, 1))
    after = scan(str(folder))
    changed = [a["image_id"] for a, b in zip(after.to_pylist(), before.to_pylist(), strict=True) if a != b]
    assert changed == ["10.png"]
    assert inputs_digest(before) != inputs_digest(after)
    assert inputs_digest(before[:2]) != inputs_digest(before)


def test_archives(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    for dataset in (f"{tmp_path}/set.zip", f"zip://::{tmp_path}/set.zip"):
        entries = rows(dataset)
        assert [e.image_id for e in entries] == [e.image_id for e in rows(str(folder))]
        assert [read_bytes(e.uri).decode() for e in entries] == [e.image_id for e in entries]
        assert len({e.etag for e in entries}) == 5
    assert [e.image_id for e in rows(f"zip://a::{tmp_path}/set.zip")] == ["1.webp", "c/3.tiff"]


def test_memory_file_system_and_duplicates() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/ds-test/a/1.png": b"1", "/ds-test/2.png": b"22"})
    entries = rows("memory://ds-test")
    assert [(e.image_id, e.bytes) for e in entries] == [("2.png", 2), ("a/1.png", 1)]
    assert read_bytes(entries[0].uri) == b"22"
    fs.pipe({"/ds-test/a//1.png": b"1"})
    assert "two files have the image_id 'a/1.png'" in refused("memory://ds-test")


def test_hidden_archives_are_none_but_those_that_are_named(tmp_path: Path) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("1.png", b"1")
    fs = fsspec.filesystem("memory")
    fs.pipe({f"/ds-hidden/{name}": zipped.getvalue() for name in (".cache/x.zip", ".y.zip")})
    assert "holds no image (2 hidden)" in refused("memory://ds-hidden")
    fs.pipe({"/ds-hidden/2.png": b"22"})
    noted: list[str] = []
    assert scan("memory://ds-hidden", note=noted.append)["image_id"].to_pylist() == ["2.png"]
    assert noted == []
    for named in (".cache/x.zip", ".y.zip", ".cache/*.zip", ".cache"):
        assert [e.image_id.rpartition("/")[2] for e in rows(f"memory://ds-hidden/{named}")] == ["1.png"]


def test_refusals(folder: Path, tmp_path: Path) -> None:
    assert "limit 0: at least 1" in refused(str(folder), limit=0)
    assert "does not exist" in refused(str(tmp_path / "missing"))
    assert "does not exist" in refused(str(folder / "notes.txt/below"))
    assert "Protocol not known: foo" in refused("foo://bucket")
    assert "expected" in refused(" ")
    (tmp_path / "docs/.cache").mkdir(parents=True)
    assert "holds no image (no file)" in refused(str(tmp_path / "docs"))
    for name in ("a.txt", "b.txt", "c", ".d.png"):
        (tmp_path / "docs" / name).write_bytes(b"")
    message = refused(str(tmp_path / "docs"))
    assert "holds no image (2 .txt, 1 without extension, 1 hidden)" in message
    assert ".png" in message


def test_missing_package_is_named() -> None:
    missing = [p for p, m in {"gs": "gcsfs", "abfs": "adlfs", "hf": "huggingface_hub"}.items() if not _importable(m)]
    for protocol in missing:
        assert "a package for this protocol is missing" in refused(f"{protocol}://bucket/x")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    assert "not UTF-8" in refused(str(tmp_path))


def test_redact() -> None:
    assert redact("s3://key:secret@bucket/x") == "s3://bucket/x"
    assert redact("https://u:p@h/a.png?X-Amz-Signature=1 b") == "https://h/a.png b"
    assert redact("/data/a@b.png") == "/data/a@b.png"
    assert "secret" not in refused("foo://me:secret@host/x")


def test_every_way_to_name_a_folder_names_one_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    ways = [
        "data",
        "data/",
        "./data",
        "data/.",
        "data/a/..",
        ".//data",
        f"{folder}/",
        f"file://{folder}",
        "file://data",
    ]
    assert {canonical(way) for way in ways} == {str(folder)}
    assert {tuple(rows(way)) for way in ways} == {tuple(rows(str(folder)))}
    assert canonical("data/*.png") == f"{folder}/*.png"
    assert canonical("zip://a/::x.zip") == f"zip://a::{folder.parent}/x.zip"
    assert canonical("s3://bucket/x/") == "s3://bucket/x"
    for fixed in ("demo", "memory://", "https://h/x?a=/", "", " "):
        assert canonical(fixed) == fixed
    monkeypatch.setenv("HOME", str(folder))
    assert canonical("~/a/") == f"{folder}/a"


def test_the_folder_above_a_link_is_that_of_its_target(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder / "a/c")
    assert canonical(f"{tmp_path}/link/..") == str(folder / "a")
    assert canonical(f"{tmp_path}/link") == f"{tmp_path}/link"


def test_names_with_two_colons_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d::e").mkdir()
    for name in ("a::b.png", "d::e/s3::1.png"):
        (tmp_path / name).write_bytes(name.encode())
    for dataset in ("a::b.png", str(tmp_path / "a::b.png"), "*::b.png"):
        (entry,) = rows(dataset)
        assert entry.image_id == "a::b.png"
        assert read_bytes(entry.uri) == b"a::b.png"
    entries = rows(str(tmp_path))
    assert [e.image_id for e in entries] == ["a::b.png", "d::e/s3::1.png"]
    assert [read_bytes(e.uri).decode() for e in entries] == [e.image_id for e in entries]
    with zipfile.ZipFile(tmp_path / "d::e/set.zip", "w") as archive:
        archive.writestr("1.png", b"1")
    assert "'::' in its path; rename it" in refused("d::e/set.zip")


def test_the_output_in_a_data_set_is_no_input(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(str(folder))
    sheet = folder / "out/runs/abc/report/contact_sheet.png"
    sheet.parent.mkdir(parents=True)
    sheet.write_bytes(b"sheet")
    assert len(rows(str(folder))) == len(before) + 1
    (tmp_path / "link").symlink_to(folder / "out")
    monkeypatch.chdir(folder)
    for without in ("out", f"{folder}/out/", f"file://{folder}/out", f"{tmp_path}/link"):
        assert rows(str(folder), without=without) == before
        assert rows(f"{folder}/**", without=without) == before
    assert rows(str(folder), without=f"{folder}/ou") == rows(str(folder))
    assert rows(str(folder), without="memory://out") == rows(str(folder))
    # an output above the data set, and pictures of a run that are asked for by their place
    assert rows(str(folder / "b"), without=str(folder)) == rows(str(folder / "b"))
    assert [e.image_id for e in rows(str(sheet), without=str(folder / "out"))] == ["contact_sheet.png"]


def test_a_data_set_that_is_its_own_output(folder: Path) -> None:
    before = rows(str(folder))
    (folder / "runs/abc/report").mkdir(parents=True)
    (folder / "runs/abc/report/contact_sheet.png").write_bytes(b"sheet")
    for left in ("edits/pca-1/a.png/+2.png", "edits/unedited/a.png/0.png"):
        (folder / "runs/abc" / left).parent.mkdir(parents=True)
        (folder / "runs/abc" / left).write_bytes(b"edit")
    assert rows(str(folder), without=str(folder)) == before


def test_a_data_set_of_parquet_files_that_is_its_own_output(tmp_path: Path) -> None:
    images = pa.table({"image": [b"1", b"2"], "id": ["a", "b"]})
    pq.write_table(images, tmp_path / "images.parquet")
    for table in TABLES:
        (tmp_path / table / "run=abc/shard=00000").mkdir(parents=True)
        pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / table / "run=abc/shard=00000/part-0.parquet")
    assert len(rows(str(tmp_path), without=str(tmp_path))) == 2


def test_the_output_in_a_bucket_is_no_input() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/ds-out/1.png": b"1", "/ds-out/out/runs/a/report/s.png": b"s", "/ds-out/outer/2.png": b"2"})
    for without in ("memory://ds-out/out", "memory://ds-out/out/"):
        assert [e.image_id for e in rows("memory://ds-out", without=without)] == ["1.png", "outer/2.png"]


def test_demo() -> None:
    entries = rows("demo")
    assert entries
    assert all(e.uri == f"demo://{e.image_id}" for e in entries)
    assert read_bytes(entries[0].uri) == (DEMO_FOLDER / entries[0].image_id).read_bytes()
    assert len(rows("demo", limit=1)) == 1


def _importable(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def test_what_other_runs_have_written_is_no_input(tmp_path, dataset):
    folder = dataset(2)
    for below in ("out", "sub/other"):
        for file in ("runs/abc/manifest.parquet", "runs/abc/report/contact_sheet.png", "edits/run=abc/1.png"):
            (folder / below / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / below / file).write_bytes(b"-")
    (folder / "runs/mine").mkdir(parents=True)
    (folder / "runs/mine/photo.png").write_bytes(b"-")  # a folder that is only called so
    (folder / "out/metrics").mkdir()
    (folder / "out/metrics/photo.png").write_bytes(b"-")
    found = scan(str(folder))["image_id"].to_pylist()
    assert found == ["0.png", "1.png", "out/metrics/photo.png", "runs/mine/photo.png"]
    assert len(scan(str(folder / "out/edits/run=abc"))) == 1  # where it is asked for
    assert len(scan(str(folder / "out/runs/abc/report"))) == 1
    assert len(scan(str(folder / "out/runs/*/report/*.png"))) == 1


def test_braces_at_the_top_of_a_file_system(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({f"/ds-{pet}/{name}": b"-" for pet in ("cat", "dog") for name in ("1.png", "a/2.png")})
    names = [f"ds-{pet}/{name}" for pet in ("cat", "dog") for name in ("1.png", "a/2.png")]
    assert [e.image_id for e in rows("memory://ds-{cat,dog}")] == names
    assert [e.image_id for e in rows("memory://{ds-cat,ds-dog}/*.png")] == names[::2]
    assert [e.image_id for e in rows("memory://ds-{cat,dog}/{1,a/2}.png")] == names
    assert [e.image_id for e in rows("memory://ds-cat/{1,a/2}.png")] == ["1.png", "a/2.png"]


def test_many_small_tables_become_few_and_large_ones_are_not_copied() -> None:
    def part(first: int, count: int) -> Listed:
        names = pa.array([f"{i}.png" for i in range(first, first + count)], pa.large_string())
        sizes = pa.array(range(count), pa.int64())
        return Listed(base.table({"name": names, "uri": names, "bytes": sizes, "etag": names}))

    parts = [part(3 * i, 3) for i in range(500)] + [part(1500, 5000), part(6500, 0), part(6500, 7)]
    found = Listed.of(parts).images
    assert found.equals(pa.concat_tables([p.images for p in parts]))
    assert found["name"].num_chunks == 3
    assert found["name"].chunk(1).buffers()[2].address == parts[500].images["name"].chunk(0).buffers()[2].address
    assert Listed.of([]).images.schema == LISTED
