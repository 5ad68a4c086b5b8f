"""Parquet files with images: which column, which id, which group, and how little is read for a row."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from pti_core.addresses import lasting
from pti_core.datasets import DatasetError, scan
from pti_core.reading import read_bytes
from pti_core.sources import parquet_rows

IMAGES = [f"image {i}".encode() for i in range(12)]


def column(paths: list[str | None], images: list[bytes] | None = None) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": path} for data, path in zip(images or IMAGES, paths, strict=False)]


def write(path: Path, row_group_size: int = 5, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
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


def test_images_as_hugging_face_writes_them(tmp_path: Path) -> None:
    paths = [f"{i}.jpg" for i in (3, 1, 2)]
    label = pa.array([1, None, 0])
    path = write(tmp_path / "train.parquet", image=column(paths), mask=column(paths), label=label, id=["a", "b", "c"])
    assert contents(path) == dict(zip(paths, IMAGES, strict=False))  # in the order of the rows, which are read so
    assert contents(path, limit=2) == dict(zip(paths[:2], IMAGES, strict=False))
    assert [row["group"] for row in rows(path, group_by="column:label")] == ["1", "1.jpg", "0"]
    assert [row["group"] for row in rows(path, group_by="column:mask.path")] == paths
    said = pa.array(["x", "", " "])
    path_of_text = write(tmp_path / "text.parquet", image=column(paths), label=said)
    assert [row["group"] for row in rows(path_of_text, group_by="column:label")] == ["x", *paths[1:]]
    assert refused(path, group_by="column:colour").endswith("has it; there are: id, label, mask")
    assert contents(f"parquet://mask::{path}").keys() == set(paths)
    assert "no column 'label' with images; there are 'image', 'mask'" in refused(f"parquet://label::{path}")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_plain_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", row_group_size=2, jpg=pa.array(IMAGES[:3], kind), key=[7, 8, 9])
    assert contents(path) == {"7": IMAGES[0], "8": IMAGES[1], "9": IMAGES[2]}


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    def chosen(**columns: Any) -> str:
        return rows(write(tmp_path / "x.parquet", **columns))[0]["uri"].partition("!")[0]

    assert chosen(face=[b"1"], age=[3]) == "parquet://face"
    assert chosen(face=[b"1"], Image=[b"1"], img=[b"1"]) == "parquet://Image"
    assert chosen(embedding=[b"1"], jpg=[b"1"]) == "parquet://jpg"
    message = refused(write(tmp_path / "x.parquet", face=[b"1"], eye=column(["e.png"], [b"1"])))
    assert "columns 'face', 'eye' may all hold the images; choose one by parquet://face::/" in message
    assert "columns 'jpg', 'png' may" in refused(write(tmp_path / "x.parquet", jpg=[b"1"], png=[b"1"], mask=[b""]))
    assert "no column with images among 'url', 'text'" in refused(write(tmp_path / "x.parquet", url=["u"], text=["t"]))


def test_ids(tmp_path: Path) -> None:
    def ids(**columns: Any) -> list[str]:
        return list(contents(write(tmp_path / "x.parquet", **columns)))

    two = IMAGES[:2]
    assert ids(image=column(["./a/1.png", "/b//2.png"])) == ["a/1.png", "b/2.png"]
    for useless in (["same.png"] * 2, [None, "1.png"], ["", "1.png"]):
        assert ids(image=column(useless)) == ["x/000000", "x/000001"]
        assert ids(image=column(useless), file_name=["p.png", "q.png"]) == ["p.png", "q.png"]
    assert ids(img=two, id=[5, 5], key=["k", "l"]) == ["k", "l"]
    assert ids(img=two, id=[0.5, 1.5]) == ["x/000000", "x/000001"]
    assert ids(image=[{"bytes": b"1", "path": "e\u0301.png"}, {"bytes": b"2", "path": "2"}]) == ["\u00e9.png", "2"]
    same = write(tmp_path / "x.parquet", image=column(["e\u0301.png", "\u00e9.png"]))
    assert "two files have the image_id '\u00e9.png', 'parquet://image!path=" in refused(same)


SECRET = "wJalrXUtnFEMIbPxRfiCY"


@pytest.mark.parametrize(
    "address",
    [
        f"https://host/{{}}.jpg?X-Amz-Signature={SECRET}",
        f"https://bob:{SECRET}@host/{{}}.jpg",
        f"https:/bob:{SECRET}@host/{{}}.jpg",
        f"s3://key:{SECRET}@bucket/{{}}.jpg",
        f"{{}}.jpg?sv=2024&sig={SECRET}",
    ],
)
def test_an_address_with_a_secret_becomes_no_id(tmp_path: Path, address: str) -> None:
    paths = ["0.jpg", address.format(1)]
    without = rows(write(tmp_path / "x.parquet", image=column(paths)))
    assert [row["image_id"] for row in without] == ["x/000000", "x/000001"]
    named = rows(write(tmp_path / "x.parquet", image=column(paths), image_id=paths, key=["a", "b"]))
    assert [row["image_id"] for row in named] == ["a", "b"]
    assert SECRET not in str(without + named)


def test_addresses_and_names_without_a_secret_are_ids(tmp_path: Path) -> None:
    paths = ["https://host/0.jpg?width=512", "s3://bucket/photo:a@2x.png", "b@2x.png", "what?;#~&.png"]
    found = rows(write(tmp_path / "x.parquet", image=column(paths)))
    assert [row["image_id"] for row in found] == [path.replace("//", "/") for path in paths]


def test_ids_and_labels_as_pandas_and_polars_write_them(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(3)]
    categories = pa.array(["u", "v", "u"]).dictionary_encode()
    for ids in (pa.array(names).dictionary_encode(), pa.array(names, pa.string_view())):
        path = write(tmp_path / "a.parquet", 2, image=IMAGES[:3], image_id=ids, label=categories)
        assert contents(path) == dict(zip(names, IMAGES, strict=False))
        assert [row["group"] for row in rows(path, group_by="column:label")] == ["u", "v", "u"]
    path = write(tmp_path / "a.parquet", 2, image=IMAGES[:3], label=pa.array(["u", None, " "], pa.string_view()))
    assert [row["group"] for row in rows(path, group_by="column:label")] == ["u", "a/000001", "a/000002"]


def test_labels_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=IMAGES[:2], hash=[b"\xff\xfe", b"b"], word=[b"a", b"b"])
    address = f"parquet://image::{path}"
    message = refused(address, group_by="column:hash")
    assert message.endswith("a.parquet': column 'hash' holds binary that is no text; group by another column")
    assert [row["group"] for row in rows(address, group_by="column:word")] == ["a", "b"]


def test_several_files(tmp_path: Path) -> None:
    for i, name in enumerate(("data/train-2.parquet", "data/train-10.parquet", "test/a.pq")):
        own = IMAGES[3 * i : 3 * i + 3]
        write(tmp_path / "hub" / name, image=column([f"{k}.jpg" for k in range(3)], own), label=[i] * 3)
    everything = contents(tmp_path / "hub")
    assert list(everything.values()) == IMAGES[:9]
    assert list(everything)[2:5] == ["data/train-2/2.jpg", "data/train-10/0.jpg", "data/train-10/1.jpg"]
    assert list(contents(f"{tmp_path}/hub/data/*.parquet"))[3] == "train-10/0.jpg"
    assert list(contents(f"{tmp_path}/hub/data/train-{{2,10}}.parquet")) == list(everything)[:0] + [
        f"train-{i}/{k}.jpg" for i in (2, 10) for k in range(3)
    ]
    assert {row["group"] for row in rows(tmp_path / "hub", group_by="folder")} == {"data", "test"}
    assert {row["group"] for row in rows(tmp_path / "hub", group_by="column:label")} == {"0", "1", "2"}
    write(tmp_path / "hub/data/train-10.parquet", image=column(["x.jpg", "y.jpg"]))
    write(tmp_path / "hub/data/train-2.parquet", image=column([None, "y.jpg"]))
    assert list(contents(tmp_path / "hub"))[:3] == [
        "data/train-2/000000",
        "data/train-2/000001",
        "data/train-10/000000",
    ]


def test_null_images_are_empty_and_cost_themselves_only(tmp_path: Path) -> None:
    structs = [{"bytes": b"1", "path": "1"}, None, {"bytes": None, "path": "3"}]
    assert list(contents(write(tmp_path / "a.parquet", image=structs)).values()) == [b"1", b"", b""]
    assert list(contents(write(tmp_path / "b.parquet", image=[None, b"2"])).values()) == [b"", b"2"]


def test_a_file_without_rows_says_nothing(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", image=column(["a.png", "b.png"]), key=["a", "b"])
    for i, empty in enumerate(({}, {"image": pa.nulls(0)}, {"x": pa.array([], pa.binary()), "y": pa.nulls(0)})):
        write(tmp_path / f"2{i}.parquet", **empty)
    assert contents(tmp_path) == {"a.png": IMAGES[0], "b.png": IMAGES[1]}
    assert "holds no image (3 archive or Parquet files)" in refused(tmp_path / "2*.parquet")


def test_a_column_without_values_is_what_it_is_in_other_files(tmp_path: Path) -> None:
    """As pandas writes one: without a type."""
    write(tmp_path / "1.parquet", image=IMAGES[:2], mask=[b"m", b"m"], key=["a", "b"])
    write(tmp_path / "2.parquet", image=pa.nulls(2), mask=[b"m", b"m"], note=pa.nulls(2), key=["c", "d"])
    write(tmp_path / "3.parquet", image=pa.nulls(1), key=["e"])
    expected = {"a": IMAGES[0], "b": IMAGES[1], "c": b"", "d": b"", "e": b""}
    assert contents(tmp_path) == contents(f"parquet://image::{tmp_path}/*.parquet") == expected
    assert [row["bytes"] for row in rows(tmp_path)][2:] == [0, 0, 0]
    assert set(contents(tmp_path / "2.parquet").values()) == {b"m"}  # where no other file tells
    assert "there are: key, mask, note" in refused(tmp_path, group_by="column:note")
    none = refused(tmp_path / "3.parquet")
    assert "no column with images among 'image', 'key' (bytes or struct{bytes, path} expected); name the files" in none
    write(tmp_path / "4.parquet", image=column(["p.png"]), key=["f"])  # with paths, which those without values have not
    assert list(contents(tmp_path)) == ["a", "b", "c", "d", "e", "f"]


def test_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=[os.urandom(1000) for _ in range(20)])
    found, whole = rows(path), path.read_bytes()
    for bad in (whole[:9000], b"", b"<html>", whole[:-8] + b"\xff" * 8):
        path.write_bytes(bad)
        message = refused(path)
        assert "a.parquet' is no whole Parquet file (" in message and message.endswith("fetch or make it again")
    assert "holds no image (1 archive or Parquet file)" in refused(write(path, image=pa.array([], pa.binary())))
    path.write_bytes(whole[:4] + b"\0" * 3000 + whole[3004:])  # in the first row group
    with pytest.raises(OSError, match=r"'parquet://image!0::.*a\.parquet' cannot be read"):
        read_bytes(found[0]["uri"])
    assert len(read_bytes(found[19]["uri"])) == 1000
    write(path, image=[b"1"])
    parquet_rows._reader.forget()
    with pytest.raises(OSError, match="no row 19 of 1; the file has changed since it was listed"):
        read_bytes(found[19]["uri"])
    assert read_bytes(found[0]["uri"]) == b"1"


def test_a_row_is_found_by_its_id_where_the_file_was_written_again(tmp_path: Path) -> None:
    def written(names: list[str], **more: Any) -> Path:
        images = [f"image {name}".encode() for name in names]
        return write(tmp_path / "a.parquet", image=images, key=names, **more)

    names = ["b", "50% ::!3", "a/c!key=d:", "d", "e", "f", "g"]
    found = rows(written(names))
    assert found[0]["uri"] == f"parquet://image!key=b!0::{tmp_path}/a.parquet"
    written(["new", *names[1:], "b"])
    parquet_rows._reader.forget()
    assert [read_bytes(row["uri"]) for row in found] == [f"image {name}".encode() for name in names]
    assert lasting(rows(tmp_path / "a.parquet")[7]["uri"]) == lasting(found[0]["uri"])
    written(names[2:])
    parquet_rows._reader.forget()
    assert [read_bytes(row["uri"]) for row in found[2:]] == [f"image {name}".encode() for name in names[2:]]
    with pytest.raises(FileNotFoundError, match="no row with key 'b'; the file has changed since it was listed"):
        read_bytes(found[0]["uri"])
    written(["x", "b", "b"])
    parquet_rows._reader.forget()
    with pytest.raises(OSError, match="column 'key' does not tell all rows apart any more; the file has changed"):
        read_bytes(found[0]["uri"])
    assert read_bytes(f"parquet://image!2::{tmp_path}/a.parquet") == b"image b"  # as manifests of before have it


def test_paths_of_images_tell_rows_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a row group is read in pieces."""
    monkeypatch.setattr(parquet_rows, "_WHOLE", 0)
    monkeypatch.setattr(parquet_rows, "_PIECE", 30)
    names = [f"{i}.png" for i in range(12)]
    found = rows(write(tmp_path / "a.parquet", image=column(names)))
    write(tmp_path / "a.parquet", image=column([*names[5:], *names[:5]], IMAGES[5:] + IMAGES[:5]))
    parquet_rows._reader.forget()
    assert [read_bytes(row["uri"]) for row in found] == IMAGES
    write(tmp_path / "a.parquet", image=IMAGES)
    parquet_rows._reader.forget()
    with pytest.raises(OSError, match=r"no column 'image\.path'; the file has changed since it was listed"):
        read_bytes(found[0]["uri"])


class Counter:
    count = 0


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Counts the bytes that are read of files on `memory://`."""
    found, read = Counter(), MemoryFile.read

    def counted(file: Any, size: int = -1) -> bytes:
        data = read(file, size)
        found.count += len(data)
        return data

    monkeypatch.setattr(MemoryFile, "read", counted)
    yield found
    parquet_rows._reader.forget()


@pytest.mark.parametrize("large", [False, True])
def test_each_byte_is_read_about_once(
    counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """`large`: row groups that are read in pieces, as those above 128 MB are."""
    images = [np.random.default_rng(i).bytes(20_000) for i in range(400)]
    names, other = [f"{i}.png" for i in range(400)], [os.urandom(20_000) for _ in range(400)]
    path = write(tmp_path / "a.parquet", 100, image=column(names, images), mask=column(names, other))
    fsspec.filesystem("memory").pipe("/x/a.parquet", path.read_bytes())
    if large:
        monkeypatch.setattr(parquet_rows, "_WHOLE", 0)
        monkeypatch.setattr(parquet_rows, "_PIECE", 400_000)
    found = rows("memory://x/a.parquet")
    assert counter.count < 200_000
    assert sum(row["bytes"] for row in found) == pytest.approx(sum(map(len, images)), rel=0.01)
    counter.count = 0
    assert [read_bytes(row["uri"]) for row in found] == images
    assert counter.count < 1.2 * sum(map(len, images))
    counter.count = 0
    assert read_bytes(found[399]["uri"]) == images[399]
    assert counter.count == 0  # it is there from before
    parquet_rows._reader.forget()
    assert read_bytes(found[399]["uri"]) == images[399]
    assert counter.count < 2_500_000
    order = random.Random(0).sample(range(400), 40)
    assert all(read_bytes(found[i]["uri"]) == images[i] for i in order)


def test_many_threads_read_a_file_once(counter: Counter, tmp_path: Path) -> None:
    images = [os.urandom(5000) for _ in range(300)]
    fsspec.filesystem("memory").pipe("/y/a.parquet", write(tmp_path / "a.parquet", 100, image=images).read_bytes())
    found = rows("memory://y/a.parquet")
    counter.count = 0
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_bytes, [row["uri"] for row in found])) == images
    assert counter.count < 5 * sum(map(len, images))  # a thread may lag behind; a row at a time would be 100 times


def test_a_process_that_lives_on_reads_a_file_as_it_is_now(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=[b"old"], key=["a"])
    uri = rows(path)[0]["uri"]
    assert read_bytes(uri) == b"old"
    write(tmp_path / "b.parquet", image=[b"new"], key=["a"]).replace(path)
    assert read_bytes(uri) == b"new"
