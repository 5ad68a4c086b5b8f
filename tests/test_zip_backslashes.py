"""Zips of tools of Windows, whose names have backslashes: images are named by `/`, and found under the names there."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import finish
from PIL import Image

from pti_core.addresses import lasting
from pti_core.datasets import scan
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.reading import read_bytes
from pti_core.runs import Run

MEMBERS = {"anna\\0.png": b"a0", "anna\\1.png": b"a1", "bob\\old\\0.png": b"b0", "top.png": b"t"}
NAMES = ["anna/0.png", "anna/1.png", "bob/old/0.png", "top.png"]


def zipped(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_they_are_named_and_grouped_by_folders_and_read_under_their_own_names(tmp_path: Path) -> None:
    labels = json.dumps({"labels": [["anna/0.png", 6]]}).encode()
    path = zipped(tmp_path / "set.zip", {"anna\\": b"", **MEMBERS, ".x\\y.png": b"", "dataset.json": labels})
    found = scan(str(path), group_by="folder").to_pylist()
    assert [row["image_id"] for row in found] == NAMES
    assert [row["group"] for row in found] == ["anna", "anna", "bob", "top.png"]
    assert [lasting(row["uri"]) for row in found] == [f"zip://{name}::{path}" for name in MEMBERS]
    assert [read_bytes(row["uri"]) for row in found] == list(MEMBERS.values())
    assert scan(f"zip://anna::{path}")["image_id"].to_pylist() == ["0.png", "1.png"]
    assert scan(str(path), group_by="column:label")["group"][0].as_py() == "6"


@pytest.mark.parametrize("separator", ["\\", "/"])
def test_what_was_frozen_is_read_where_the_zip_was_made_again(tmp_path: Path, separator: str) -> None:
    path = zipped(tmp_path / "set.zip", MEMBERS)
    uris = scan(str(path))["uri"].to_pylist()
    again = {name.replace("\\", separator): data * 2 for name, data in reversed(MEMBERS.items())}
    zipped(path, {f"new{separator}0.png": b"n" * 500, **again})
    assert [read_bytes(uri) for uri in uris] == [data * 2 for data in MEMBERS.values()]


def test_a_backslash_beside_a_slash_is_part_of_a_name(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"anna\\0.png": b"1", "bob/0.png": b"2"})
    assert scan(str(path))["image_id"].to_pylist() == ["anna\\0.png", "bob/0.png"]
    with pytest.raises(FileNotFoundError, match="has no member"):
        read_bytes(f"zip://anna\\1.png::{path}")


def begun(path: Path, output: Path, tiny_checkpoint: str, **options: object) -> Run:
    return freeze(str(path), str(output), tiny_checkpoint, configure("noop", {}), **options)  # type: ignore[arg-type]


def test_a_run_that_has_names_with_backslashes_goes_on_and_gets_only_what_is_new(
    tmp_path: Path, tiny_checkpoint: str
) -> None:
    path, output = tmp_path / "set.zip", tmp_path / "out"
    members = {"anna\\0.png": picture(10), "anna\\1.png": picture(90)}
    zipped(path, {**members, "read/me.txt": b""})  # with a slash names stay as they are, as in runs of before
    run = finish(begun(path, output, tiny_checkpoint))
    assert run.manifest.table(["image_id"])["image_id"].to_pylist() == list(members)
    zipped(path, members)
    extended = begun(path, output, tiny_checkpoint, existing="extend")
    assert (extended.name, extended.remarks, extended.to_do().shards, extended.manifest.rows) == (run.name, (), [], 2)
    zipped(path, {**members, "anna\\2.png": picture(170)})
    extended = begun(path, output, tiny_checkpoint, existing="extend")
    assert extended.remarks == ("1 new file is appended as shard 1",)
    assert extended.manifest.shard(1)[0]["image_id"] == "anna/2.png"
    finish(extended)
    zipped(path, {**members, "anna\\1.png": picture(200), "anna\\2.png": picture(170)})
    assert begun(path, output, tiny_checkpoint).remarks[0].startswith("1 changed file is not in this run")
