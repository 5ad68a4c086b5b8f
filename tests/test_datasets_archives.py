"""Tar and zip archives: what of them is listed, under which id and group, and that each image is read by its place."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import re
import tarfile
import threading
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import s3_server, use

from pti_core.addresses import lasting
from pti_core.connections import TooLarge
from pti_core.datasets import DatasetError, scan
from pti_core.reading import read_bytes
from pti_core.sources import base, tars, zips

SAMPLES = {
    "000001.jpg": b"one",
    "000001.cls": b"6\n",
    "000001.json": json.dumps({"key": "a", "person": {"name": "Ada"}, "tags": ["x", 1]}).encode(),
    "000000.jpg": b"zero",
    "000000.cls": b"7",
    "000000.json": b'{"person": {"name": null}}',
    "000002.png": b"",
    "sub/000002.png": b"two",
}


def tar(path: Path, members: Mapping[str, bytes], mode: Any = "w", **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **more) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_blank_label_is_none(tmp_path: Path) -> None:
    members = {"1.png": b"1", "1.json": b'{"who": " "}', "2.png": b"2", "2.json": b'{"who": "Ada"}'}
    assert groups(tar(tmp_path / "a.tar", members), "column:who") == {"1.png": "1.png", "2.png": "Ada"}


def test_what_is_no_label_costs_no_other(tmp_path: Path) -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    for said in (b"NaN", b'"\\ud83d"', deep):
        members = {"1.png": b"1", "1.json": b'{"who": ' + said + b"}", "2.png": b"2", "2.json": b'{"who": "Ada"}'}
        assert groups(tar(tmp_path / "a.tar", members), "column:who") == {"1.png": "1.png", "2.png": "Ada"}
        labels = b'{"labels": [["1.png", ' + said + b'], ["2.png", "Ada"]]}'
        path = zipped(tmp_path / "a.zip", {"1.png": b"1", "2.png": b"2", "dataset.json": labels})
        if said is deep:
            assert "is none of dataset_tool" in refused(path, group_by="column:label")
        else:
            assert groups(path, "column:label") == {"1.png": "1.png", "2.png": "Ada"}
    for kind in (pa.float32(), pa.float64()):
        who = pa.array([1, float("nan"), None, float("nan")], kind)
        pq.write_table(pa.table({"image": [b"1"] * 4, "who": who}), tmp_path / "a.parquet")
        found = [row["group"] for row in scan(str(tmp_path / "a.parquet"), group_by="column:who").to_pylist()]
        assert found == ["1", "a/000001", "a/000002", "a/000003"]


def test_only_images_in_a_tar_need_names_in_utf8(tmp_path: Path) -> None:
    other, latin = {"r\xe9adme.txt": b"x", "1.\xe9": b"y"}, {"encoding": "latin-1", "format": tarfile.GNU_FORMAT}
    path = tar(tmp_path / "a.tar", {"1.png": b"one", "1.cls": b"7"} | other, **latin)
    assert contents(path) == {"1.png": b"one"}
    assert groups(path, "column:cls") == {"1.png": "7"}
    assert refused(path, group_by="column:other").endswith("has it; there are: cls, txt")
    assert ", 1 .txt, 1 .\ufffd)" in refused(tar(tmp_path / "b.tar", other, **latin))
    assert "its name is not UTF-8; rename it" in refused(tar(tmp_path / "c.tar", {"\xe9.png": b""}, **latin))


def zipped(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def rows(dataset: object, **options: Any) -> list[dict[str, Any]]:
    return scan(str(dataset), **options).to_pylist()


def contents(dataset: object, **options: Any) -> dict[str, bytes]:
    return {row["image_id"]: read_bytes(row["uri"]) for row in rows(dataset, **options)}


def refused(dataset: object, **options: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        scan(str(dataset), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def groups(dataset: object, group_by: str) -> dict[str, str]:
    return {row["image_id"]: row["group"] for row in rows(dataset, group_by=group_by)}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_of_any_kind(tmp_path: Path, mode: str, form: int) -> None:
    names = ["2.png", "10.png", "./dir/3.png", f"{'long/' * 15}{'n' * 90}.png", "é::%3A.png", "!7+8.png", "empty.png"]
    members = {name: b"" if name == "empty.png" else os.urandom(600) for name in names}
    path = tar(tmp_path / "set.tar", members | {"notes.txt": b"-", ".hidden.png": b"-"}, mode, format=form)
    found = rows(path)
    assert {row["image_id"]: read_bytes(row["uri"]) for row in found} == {
        name.removeprefix("./"): data for name, data in members.items()
    }
    assert [row["image_id"] for row in found][:3] == ["2.png", "10.png", "!7+8.png"]
    assert {row["bytes"] for row in found} == {0, 600}
    assert found[0]["etag"] == "600-1700000000"


def test_a_table_beside_images_leaves_their_order(tmp_path: Path) -> None:
    names = ["1.png", "2.png", "4.png", "10.png", "33.png"]
    for name in reversed(names):
        (tmp_path / name).write_bytes(b"-")
    pq.write_table(pa.table({"image_id": ["1.png"]}), tmp_path / "landmarks.parquet")
    assert [row["image_id"] for row in rows(tmp_path)] == names
    assert [row["image_id"] for row in rows(tmp_path, limit=2)] == names[:2]


def test_an_image_without_a_group_is_in_none_that_is_called_as_it(tmp_path: Path) -> None:
    table = pa.table({"id": ["0", "1", "2", "1@2"], "image": [b"-"] * 4, "label": ["1", None, "1", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert groups(tmp_path / "a.parquet", "column:label") == {"0": "1", "1": "1@3", "2": "1", "1@2": "1@2"}
    assert groups(tmp_path / "a.parquet", "regex:^(1)@") == {"0": "0", "1": "1@3", "2": "2", "1@2": "1"}


def test_members_that_point_out_of_an_archive_are_images_and_nothing_is_hidden_by_it(tmp_path: Path) -> None:
    members = {name: os.urandom(600) for name in ("../../up.png", "in/../out.png", "/etc/abs.png")}
    path = tar(tmp_path / "set.tar", members | dict.fromkeys((".hidden.png", "..hidden.png", "...png"), b"-"))
    assert contents(path) == {name.lstrip("/"): data for name, data in members.items()}


def test_samples_of_a_webdataset_and_their_groups(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", SAMPLES)
    assert list(contents(path)) == ["000000.jpg", "000001.jpg", "000002.png", "sub/000002.png"]
    own = {"000002.png": "000002.png", "sub/000002.png": "sub/000002.png"}
    assert groups(path, "column:cls") == {"000000.jpg": "7", "000001.jpg": "6"} | own
    unsaid = tar(tmp_path / "unsaid.tar", SAMPLES | {"000002.cls": b" \n"})
    assert groups(unsaid, "column:cls") == groups(path, "column:cls")
    assert groups(path, "column:person.name") == {"000000.jpg": "000000.jpg", "000001.jpg": "Ada"} | own
    assert groups(path, "column:tags")["000001.jpg"] == '["x", 1]'
    assert refused(path, group_by="column:colour").endswith("has it; there are: cls, key, person, tags")


def test_several_tars(tmp_path: Path) -> None:
    for shard in ("set/b/8.tar", "set/b/9.tar", "set/b/10.tar"):
        tar(tmp_path / shard, {name: shard.encode() + data for name, data in SAMPLES.items()})
    (tmp_path / "set/b/10.parquet").write_bytes(b"of img2dataset, with no image in it")
    everything = contents(tmp_path / "set")
    assert list(everything)[:5] == [f"b/8/{name}" for name in sorted(n for n in SAMPLES if "g" in n)] + [
        "b/9/000000.jpg"
    ]
    assert everything["b/10/000001.jpg"] == b"set/b/10.tarone"
    assert [name.partition("/")[0] for name in contents(f"{tmp_path}/set/b/*.tar")] == ["8"] * 4 + ["9"] * 4 + [
        "10"
    ] * 4
    assert list(contents(f"{tmp_path}/set/b/{{8..9}}.tar", limit=1)) == ["8/000000.jpg"]
    assert list(contents(f"tar://*.jpg::{tmp_path}/set/b/{{10,8}}.tar")) == [
        "8/000000.jpg", "8/000001.jpg", "10/000000.jpg", "10/000001.jpg",
    ]  # fmt: skip
    assert groups(f"{tmp_path}/set/b/*.tar", "folder")["9/000001.jpg"] == "9"
    assert "/set/b/11.tar', one of 4 that the braces name, does not exist" in refused(f"{tmp_path}/set/b/{{8..11}}.tar")
    assert "over 1,000,000 files" in refused(f"{tmp_path}/{{0..9999}}/{{0..9999}}.tar")
    zipped(tmp_path / "set/c.zip", {"1.png": b"1"})
    assert "holds tar and zip files; name those" in refused(tmp_path / "set")
    (tmp_path / "set/1.png").write_bytes(b"1")
    assert list(contents(tmp_path / "set")) == ["1.png"]  # images go before what else is there


def test_links_in_a_tar_are_what_they_link_to(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/1.png").write_bytes(b"1")
    (tmp_path / "in/sub/2.png").hardlink_to(tmp_path / "in/1.png")
    (tmp_path / "in/sub/3.png").symlink_to("../1.png")
    (tmp_path / "in/sub/4.png").symlink_to("4.png")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "in", ".")
    assert contents(tmp_path / "set.tar") == {"1.png": b"1", "sub/2.png": b"1", "sub/3.png": b"1"}


def test_what_dataset_tool_writes(tmp_path: Path) -> None:
    images = {f"0000{i}/img0000000{i}.png": bytes([i]) * 9 for i in range(3)}
    labels = [["00000/img00000000.png", 6], ["00001/img00000001.png", [0.5, 1]]]
    path = zipped(tmp_path / "ffhq.zip", images | {"dataset.json": json.dumps({"labels": labels}).encode()})
    assert contents(path) == images
    found = groups(path, "column:label")
    assert list(found.values()) == ["6", "[0.5, 1]", "00002/img00000002.png"]
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "ffhq")
    assert groups(tmp_path / "ffhq", "column:label") == found
    assert "has it; there are: none" in refused(path, group_by="column:cls")
    empty = zipped(tmp_path / "no.zip", images | {"dataset.json": b'{"labels": null}'})
    assert "has it" in refused(empty, group_by="column:label")
    other = zipped(tmp_path / "other.zip", images | {"dataset.json": b"[1]"})
    assert "is none of dataset_tool" in refused(other, group_by="column:label")
    assert contents(other) == images


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_zips_are_read_by_place_and_by_their_directory(tmp_path: Path, method: int) -> None:
    members = {"2.png": b"a" * 5000, "10.png": os.urandom(99), "é/::%.png": b"", "x" * 250 + ".png": b"b"}
    path = zipped(tmp_path / "set.zip", members, method)
    assert contents(path) == members
    # written to a pipe: sizes and sums are behind the data
    with (tmp_path / "pipe.zip").open("wb") as file, zipfile.ZipFile(Unseekable(file), "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert contents(tmp_path / "pipe.zip") == members
    assert read_bytes(f"zip://2.png::{path}") == members["2.png"]  # of runs made before addresses had places


class Unseekable:
    def __init__(self, file: Any) -> None:
        self.write, self.flush = file.write, file.flush


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_was_made_again_is_read_by_names(tmp_path: Path, kind: str) -> None:
    path, write = tmp_path / f"set.{kind}", tar if kind == "tar" else zipped
    write(path, {"1.png": b"1", "2.png": b"22", "3.png": b"333"})
    found = rows(path)
    write(path, {"0.png": b"0" * 999, "3.png": b"333", "2.png": b"new 2"})
    assert [lasting(row["uri"]) for row in found] == [f"{kind}://{i}.png::{path}" for i in (1, 2, 3)]
    assert read_bytes(found[1]["uri"]) == b"new 2"
    assert read_bytes(found[2]["uri"]) == b"333"
    with pytest.raises(FileNotFoundError, match=r"has no member '1\.png'"):
        read_bytes(found[0]["uri"])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_one_size_are_not_taken_for_each_other(tmp_path: Path, form: int, mode: str) -> None:
    folder = f"{'d' * 70}/"  # two of them are more than a header holds, and begin alike
    names = ["a.png", "ü.png", "ö.png", f"{folder}{'n' * 60}1.png", f"{folder}{'n' * 60}2.png"]
    members = {name: name[-5:].encode().rjust(600) for name in names}
    path = tar(tmp_path / "set.tar", members, mode, format=form)
    found = {row["image_id"]: row["uri"] for row in rows(path)}
    assert {name: read_bytes(uri) for name, uri in found.items()} == members
    tar(path, {name: members[name] for name in reversed(names)}, mode, format=form)
    for kept in (tars._index, tars.unpacked):
        kept.forget()  # as in the process of a worker
    assert {name: read_bytes(uri) for name, uri in found.items()} == members


def test_a_member_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "LARGEST", 1000)
    path = zipped(tmp_path / "set.zip", {"0.png": b"0" * 1000, "1.png": b"0" * 1001}, zipfile.ZIP_DEFLATED)
    good, bad = rows(path)
    assert len(read_bytes(good["uri"])) == 1000
    for uri in (bad["uri"], f"zip://1.png::{path}"):
        with pytest.raises(TooLarge, match="is too large; an image file of at most"):
            read_bytes(uri)


def test_damage(tmp_path: Path) -> None:
    data = {f"{i}.png": os.urandom(2000) for i in range(20)}
    whole = tar(tmp_path / "set.tar", data).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: 2560 * 7 + 700])
    assert re.search(r"cut\.tar' is no whole tar archive \(.*\); fetch or make it again", refused(cut))
    cut.write_bytes(whole[: 2560 * 7 + 200])
    assert "no whole tar archive" in refused(cut)
    cut.write_bytes(whole[: 2560 * 7 + 148] + b"damaged!" + whole[2560 * 7 + 156 :])
    assert "damaged at byte 17920" in refused(cut)
    (tmp_path / "cut.tgz").write_bytes(gzip.compress(whole)[:-5000])
    assert "no whole tar archive" in refused(tmp_path / "cut.tgz")
    found = rows(tmp_path / "set.tar")
    (tmp_path / "set.tar").write_bytes(whole[: 2560 * 15 + 900])
    assert read_bytes(found[3]["uri"]) == data["3.png"]
    with pytest.raises(OSError, match=r"15\.png.* cannot be read"):
        read_bytes(found[15]["uri"])
    zipped(tmp_path / "set.zip", data)
    for name in ("is.tar", "is.zip", "is.tar.gz"):
        (tmp_path / name).write_bytes(b"<html>not found</html>" * 99)
        assert "is no whole" in refused(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        assert "is no whole" in refused(tmp_path / name)
    (tmp_path / "half.zip").write_bytes((tmp_path / "set.zip").read_bytes()[:20000])
    assert "is no whole zip archive" in refused(tmp_path / "half.zip")
    assert "1 archive or Parquet file, 2 .txt, 1 hidden" in refused(
        zipped(tmp_path / "text.zip", {"a.txt": b"", "b.txt": b"", ".c.png": b""})
    )
    assert "1 archive or Parquet file" in refused(tar(tmp_path / "none.tar", {}))


def test_several_damaged_archives_are_named_at_once(tmp_path: Path) -> None:
    whole = {i: tar(tmp_path / f"{i}.tar", {"a.png": b"-" * 600}) for i in range(10)}
    whole[4].write_bytes(whole[4].read_bytes()[:800])
    assert re.fullmatch(r"'\S+/4\.tar' is no whole tar archive \(.*\); fetch or make it again", refused(tmp_path))
    for i in (7, 9):
        whole[i].write_bytes(b"<html>" * 200)
    message = refused(tmp_path)
    each = ", ".join(rf"'\S+/{i}\.tar' is no whole tar archive \([^;]*\)" for i in (4, 7, 9))
    assert re.fullmatch(rf"3 of 10 files cannot be listed: {each}; fetch or make it again", message)
    fs = fsspec.filesystem("memory")
    fs.pipe({f"/damaged/{i}.tar": path.read_bytes()[: None if i == 3 else 800] for i, path in whole.items()})
    message = refused("memory://damaged")
    assert message.startswith("9 of 10 files cannot be listed: 'memory:///damaged/0.tar' is")
    assert message.endswith("), and 4 more; fetch or make it again")
    assert message.count("is no whole tar archive") == 5


def test_two_files_of_one_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as archive, zipfile.ZipFile(tmp_path / "twice.zip", "w") as other:
        for name in ("a.png", "b.png", "a.png"):
            archive.addfile(tarfile.TarInfo(name))
        other.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            other.writestr("a.png", b"2")
    message = refused(tmp_path / "twice.tar")
    assert "two files have the image_id 'a.png', 'tar://a.png!0+0::" in message
    assert "and 'tar://a.png!1024+0::" in message
    assert "and 'zip://a.png!" in refused(tmp_path / "twice.zip")
    # two ways to write é look the same, capital letters do not
    folder = tmp_path / "names"
    folder.mkdir()
    for name in ("A.png", "a.png", unicodedata.normalize("NFD", "é.png")):
        (folder / name).write_bytes(name.encode())
    found = contents(folder)
    assert list(found) == ["A.png", "a.png", unicodedata.normalize("NFC", "é.png")]
    assert found[unicodedata.normalize("NFC", "é.png")] == unicodedata.normalize("NFD", "é.png").encode()
    (folder / unicodedata.normalize("NFC", "é.png")).write_bytes(b"")
    assert r"e\u0301.png' and 'file:///" in refused(folder) or r"\xe9.png' and 'file:///" in refused(folder)
    tar(tmp_path / "same/x.tar", {"1.png": b""})
    tar(tmp_path / "same/x.tgz", {"1.png": b""}, "w:gz")
    assert "two files have the image_id 'x/1.png'" in refused(tmp_path / "same")


def test_many_threads_read_one_archive(tmp_path: Path) -> None:
    members = {f"{i}.png": os.urandom(3000 + i) for i in range(60)}
    paths = [
        tar(tmp_path / "a.tar", members),
        tar(tmp_path / "b.tgz", members, "w:gz"),
        zipped(tmp_path / "c.zip", members),
    ]
    with ThreadPoolExecutor(8) as pool:
        for path in paths:
            found = rows(path) * 5
            data = pool.map(read_bytes, [row["uri"] for row in found])
            assert all(members[row["image_id"]] == d for row, d in zip(found, data, strict=True))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Files of a folder by HTTP, from a server that does not know ranges."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_archives_elsewhere(tmp_path: Path, web: str) -> None:
    images = {name: data for name, data in SAMPLES.items() if "g" in name}
    tar(tmp_path / "s-0.tar", SAMPLES)
    zipped(tmp_path / "s.zip", SAMPLES, zipfile.ZIP_DEFLATED)
    fs = fsspec.filesystem("memory")
    for name in ("s-0.tar", "s.zip"):
        fs.pipe(f"/archives/{name}", (tmp_path / name).read_bytes())
        assert contents(f"memory://archives/{name}") == images
    fs.pipe("/archives/s-1.tar", (tmp_path / "s-0.tar").read_bytes())
    assert len(contents("memory://archives/s-{0..1}.tar")) == len(contents("memory://archives/*.tar")) == 8
    assert groups("memory://archives/*.tar", "column:cls")["s-1/000001.jpg"] == "6"
    place = re.compile(r"memory://archives/(?=s)")
    for name in ("s-0.tar", "s.zip"):  # listed where that is possible, read from a server without ranges
        found = rows(f"memory://archives/{name}")
        assert {r["image_id"]: read_bytes(place.sub(f"{web}/", r["uri"])) for r in found} == images


@pytest.mark.parametrize("place", ["memory://replaced", "http"])
def test_an_archive_elsewhere_that_was_replaced(
    tmp_path: Path, web: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LOOK_AGAIN", 0)

    def read(content: bytes) -> bytes:
        path = tar(tmp_path / "s.tgz", {"a.png": content}, "w:gz")
        fsspec.filesystem("memory").pipe("/replaced/s.tgz", path.read_bytes())
        return read_bytes(f"tar://a.png::{web if place == 'http' else place}/s.tgz")

    assert read(b"old") == b"old"
    assert read(b"new, longer") == b"new, longer"


@pytest.mark.slow
@pytest.mark.computing
def test_a_bucket_of_archives_and_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = s3_server()
    use(monkeypatch, server.url)
    bucket = server.bucket()
    images = {name: data for name, data in SAMPLES.items() if "g" in name}
    for name in ("1.tar", "2.tar"):
        tar(tmp_path / "tars" / name, SAMPLES)
    (tmp_path / "zips").mkdir()
    zipped(tmp_path / "zips/1.zip", SAMPLES, zipfile.ZIP_DEFLATED)
    (tmp_path / "rows").mkdir()
    column = [{"bytes": data, "path": name} for name, data in images.items()]
    pq.write_table(pa.table({"image": column}), tmp_path / "rows/1.parquet", row_group_size=2)
    for kind in ("tars", "zips", "rows"):
        server.upload(tmp_path / kind, bucket, kind)
    for dataset in ("tars/1.tar", "zips/1.zip", "rows/1.parquet", "rows", "rows/*.parquet"):
        assert contents(f"s3://{bucket}/{dataset}") == images
    for dataset in ("tars", "tars/*.tar", "tars/{1..2}.tar"):
        assert contents(f"s3://{bucket}/{dataset}") == {f"{i}/{n}": d for i in (1, 2) for n, d in images.items()}


@pytest.mark.slow
@pytest.mark.computing
def test_a_bucket_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    server = s3_server()
    use(monkeypatch, server.url)
    bucket = server.bucket()
    assert "holds no image (no file)" in refused(f"s3://{bucket}")
    own = {"2.png": b"2", "10.png": b"10", "a/1.png": b"a1", "a/b/1.png": b"ab1", "c/1.png": b"c1", "c/a::b.png": b"c"}
    for name, data in own.items() | {"a/": b"", "a/notes.txt": b"-", ".git/1.png": b"-", "c/out/1.png": b"-"}.items():
        server.s3.put_object(Bucket=bucket, Key=f"set/{name}", Body=data)
    server.s3.put_object(Bucket=bucket, Key="set2/9.png", Body=b"")
    for name in ("runs/abc/manifest.parquet", "runs/abc/report/a.png", "runs/abc/edits/d/a.png", "runs/b/report/a.png"):
        server.s3.put_object(Bucket=bucket, Key=f"others/{name}", Body=b"-")
    assert list(contents(f"s3://{bucket}/others")) == ["runs/b/report/a.png"]  # no run: it has no list of inputs
    assert list(contents(f"s3://{bucket}/others/runs/abc/edits")) == ["d/a.png"]  # where it is asked for
    assert list(contents(f"s3://{bucket}/others/runs/*/edits/*/*.png")) == ["abc/edits/d/a.png"]
    server.s3.delete_object(Bucket=bucket, Key="others/runs/b/report/a.png")
    out = f"s3://{bucket}/set/c/out"
    assert contents(f"s3://{bucket}/set", without=out) == own
    assert list(contents(f"s3://{bucket}/set/", without=out)) == [*own]
    assert rows(f"s3://{bucket}/set")[0]["etag"] == hashlib.md5(b"2").hexdigest()
    assert list(contents(f"s3://{bucket}")) == [f"set/{name}" for name in [*own, "c/out/1.png"]] + ["set2/9.png"]
    assert list(contents(f"s3://{bucket}/set/*.png")) == ["2.png", "10.png"]
    assert list(contents(f"s3://{bucket}/set/*/1.png")) == ["a/1.png", "c/1.png"]
    assert list(contents(f"s3://{bucket}/set/a/**")) == ["1.png", "b/1.png"]
    assert list(contents(f"s3://{bucket}/set{{,2}}/*.png")) == ["set/2.png", "set/10.png", "set2/9.png"]
    assert groups(f"s3://{bucket}", "folder")["set2/9.png"] == "set2"
    assert "does not exist" in refused(f"s3://{bucket}/se")
    assert "does not exist" in refused("s3://no-such-bucket/x")
    assert "nothing matches" in refused(f"s3://{bucket}/set/*.bmp")


def test_places_make_the_directory_needless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{i}.png": os.urandom(500) for i in range(3)}
    found = [*rows(tar(tmp_path / "a.tar", members)), *rows(zipped(tmp_path / "b.zip", members, zipfile.ZIP_DEFLATED))]

    def needed(*args: Any) -> Any:
        raise AssertionError("the archive was searched")

    monkeypatch.setattr(tars, "_index", needed)
    monkeypatch.setattr(zips, "_archive", needed)
    assert [read_bytes(row["uri"]) for row in found] == [*members.values()] * 2


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_that_was_replaced_is_read_as_it_is_now(tmp_path: Path, kind: str) -> None:
    """By a worker that has read the old one: the names are the same, and the content lies elsewhere."""

    def written(name: str, members: dict[str, bytes]) -> Path:
        path = tmp_path / name
        return zipped(path, members) if kind == "zip" else tar(path, members, "w:gz" if kind == "tar.gz" else "w")

    path = written(f"set.{kind}", {"a.png": b"old", "b.png": b"same"})
    uris = {row["image_id"]: row["uri"] for row in rows(path)}
    assert read_bytes(uris["a.png"]) == b"old"
    written(f"next.{kind}", {"0.png": b"first", "a.png": b"new, longer", "b.png": b"same"}).replace(path)
    assert read_bytes(uris["a.png"]) == b"new, longer"
    assert read_bytes(uris["b.png"]) == b"same"
