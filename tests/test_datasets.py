"""Scanning datasets: what counts, in which order, under which id, and every way it can be wrong."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import fsspec
import pytest

from pti_core.datasets import DEMO_FOLDER, DatasetError, inputs_digest, natural_key, read_bytes, redact, scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["10.png", "2.PNG", "b/x.jpg", "a/1.webp", "a/c/3.tiff", "notes.txt", ".hidden.png", ".git/y.png"]:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "data/__MACOSX").mkdir()
    (tmp_path / "data/__MACOSX/z.png").write_bytes(b"")
    return tmp_path / "data"


def refused(dataset: str, **options: int) -> str:
    with pytest.raises(DatasetError) as caught:
        scan(dataset, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_in_natural_order(folder: Path) -> None:
    entries = scan(str(folder))
    assert [e.image_id for e in entries] == ["2.PNG", "10.png", "a/1.webp", "a/c/3.tiff", "b/x.jpg"]
    assert [e.group for e in entries] == [e.image_id for e in entries]
    assert [read_bytes(e.uri).decode() for e in entries] == [e.image_id for e in entries]
    assert [e.bytes for e in entries] == [len(e.image_id) for e in entries]
    assert scan(f"file://{folder}/") == scan(f"{folder}//") == entries
    assert scan(str(folder), limit=2) == entries[:2]
    assert scan(str(folder), limit=99) == entries


def test_group_by_folder(folder: Path) -> None:
    groups = {e.image_id: e.group for e in scan(str(folder), group_by_folder=True)}
    assert groups == {"2.PNG": "2.PNG", "10.png": "10.png", "a/1.webp": "a", "a/c/3.tiff": "a", "b/x.jpg": "b"}


def test_natural_key() -> None:
    names = ["a", "A", "img10", "img9", "img09", "b/2", "b/10", "10", "9", "²"]
    assert sorted(names, key=natural_key) == ["9", "10", "A", "a", "b/2", "b/10", "img09", "img9", "img10", "²"]


def test_single_file_and_glob(folder: Path) -> None:
    (one,) = scan(str(folder / "b/x.jpg"))
    assert one.image_id == "x.jpg"
    assert one.etag == scan(str(folder))[-1].etag
    assert [e.image_id for e in scan(f"{folder}/a/**")] == ["1.webp", "c/3.tiff"]
    assert [e.image_id for e in scan(f"{folder}/*/*.*")] == ["a/1.webp", "b/x.jpg"]
    assert "nothing matches" in refused(f"{folder}/*.bmp")
    assert "not an image by its name" in refused(str(folder / "notes.txt"))


def test_a_folder_named_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "set [1]").mkdir()
    (tmp_path / "set [1]/a#?.png").write_bytes(b"1")
    (entry,) = scan(str(tmp_path / "set [1]"))
    assert entry.image_id == "a#?.png"
    assert read_bytes(entry.uri) == b"1"


def test_links_are_followed_and_loops_end(folder: Path, tmp_path: Path) -> None:
    for name in ("p", "q"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "i.png").write_bytes(name.encode())
    (tmp_path / "p/q").symlink_to("../q")
    (tmp_path / "q/p").symlink_to("../p")
    (tmp_path / "p/dead.png").symlink_to("nowhere")
    entries = scan(str(tmp_path / "p"))
    assert [e.image_id for e in entries] == ["dead.png", "i.png", "q/i.png"]
    assert read_bytes(entries[2].uri) == b"q"
    with pytest.raises(FileNotFoundError):
        read_bytes(entries[0].uri)
    (tmp_path / "linked").symlink_to(folder)
    assert len(scan(str(tmp_path / "linked"))) == 5


def test_etag_and_digest_follow_the_file(folder: Path) -> None:
    before = scan(str(folder))
    assert inputs_digest(before) == inputs_digest(scan(str(folder)))
    os.utime(folder / "10.png", ns=(1, 1))
    after = scan(str(folder))
    assert [a.image_id for a, b in zip(after, before, strict=True) if a.etag != b.etag] == ["10.png"]
    assert inputs_digest(before) != inputs_digest(after)
    assert inputs_digest(before[:2]) != inputs_digest(before)


def test_archives(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    for dataset in (f"{tmp_path}/set.zip", f"zip://::{tmp_path}/set.zip"):
        entries = scan(dataset)
        assert [e.image_id for e in entries] == [e.image_id for e in scan(str(folder))]
        assert [read_bytes(e.uri).decode() for e in entries] == [e.image_id for e in entries]
        assert len({e.etag for e in entries}) == 5
    assert [e.image_id for e in scan(f"zip://a::{tmp_path}/set.zip")] == ["1.webp", "c/3.tiff"]


def test_memory_file_system_and_duplicates() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/ds-test/a/1.png": b"1", "/ds-test/2.png": b"22"})
    entries = scan("memory://ds-test")
    assert [(e.image_id, e.bytes) for e in entries] == [("2.png", 2), ("a/1.png", 1)]
    assert read_bytes(entries[0].uri) == b"22"
    fs.pipe({"/ds-test/a//1.png": b"1"})
    assert "two files have the image_id 'a/1.png'" in refused("memory://ds-test")


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


@pytest.mark.skipif(not DEMO_FOLDER.is_dir(), reason="the demo's images are not made yet")
def test_demo() -> None:
    entries = scan("demo")
    assert entries
    assert all(e.uri == f"demo://{e.image_id}" for e in entries)
    assert read_bytes(entries[0].uri) == (DEMO_FOLDER / entries[0].image_id).read_bytes()
    assert len(scan("demo", limit=1)) == 1


def _importable(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True
