"""Finding a run again: the same data set by any name, what has changed in it since, and the output that lies in it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import QUICK_SETTINGS
from PIL import Image

from pti_core import report
from pti_core.datasets import DatasetError
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard

Begin = Callable[..., Run]


@pytest.fixture
def begin(tmp_path: Path, tiny_checkpoint: str) -> Begin:
    def freeze_into(dataset: object, output: object = tmp_path / "out", **options: Any) -> Run:
        generator = options.pop("generator", tiny_checkpoint)
        return freeze(str(dataset), str(output), generator, configure("demo", QUICK_SETTINGS), **options)

    return freeze_into


def finish(run: Run) -> Run:
    for shard in run.to_do().shards:
        measure_shard(run, shard, invert_shard(run, shard)["files"])
    return run


def test_one_folder_by_any_name_is_one_run(
    dataset: Any, tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(1, "photos")
    monkeypatch.chdir(tmp_path)
    names = ["photos", "photos/", "./photos", folder, f"file://{folder}", "photos/../photos"]
    runs = [begin(name) for name in names]
    assert len({run.name for run in runs}) == 1
    assert runs[0].dataset == str(folder)
    assert begin("photos/*.png").name != runs[0].name


def test_the_same_relative_name_elsewhere_is_another_data_set(
    dataset: Any, tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(1, "photos")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere/photos")
    monkeypatch.chdir(tmp_path)
    here = begin("photos")
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = begin("photos")
    assert there.name != here.name
    assert there.manifest.table()["uri"].to_pylist() == [f"file://{tmp_path}/elsewhere/photos/0.png"]
    assert begin(tmp_path / "photos").name == here.name


def test_a_generator_by_a_relative_path_is_found_from_everywhere(
    dataset: Any, tmp_path: Path, begin: Begin, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(1)
    shutil.copy(tiny_checkpoint, tmp_path / "own.safetensors")
    monkeypatch.chdir(tmp_path)
    first = begin(folder, generator="own.safetensors")
    assert first.generator == str(tmp_path / "own.safetensors")
    monkeypatch.chdir(folder)
    assert begin(folder, generator="../own.safetensors").generator == first.generator
    assert begin("demo", limit=1, generator="pocket-ffhq-128").generator == "pocket-ffhq-128"


def test_the_demo_is_recorded_without_a_path_of_this_machine(begin: Begin) -> None:
    run = begin("demo", limit=2)
    assert run.dataset == "demo"
    assert all(uri.startswith("demo://") for uri in run.manifest.table()["uri"].to_pylist())


def test_who_is_at_work_on_what_is_done_all_anew_is_told(dataset: Any, begin: Begin) -> None:
    folder = dataset(2)
    run = begin(folder)
    note = {"shard": 0, "state": "running", "time": time.time(), "images": 1.0, "where": "there:7", "error": ""}
    run.store.files.put(f"runs/{run.name}/notes/00000.json", json.dumps(note).encode())
    (remark,) = begin(folder, existing="overwrite").remarks
    assert remark.startswith(f"run {run.name}: shard 0 is at work on there:7, last heard of ")
    assert begin(folder, existing="overwrite").remarks == ()


def test_new_changed_and_missing_files_are_told(
    dataset: Any, tmp_path: Path, begin: Begin, pictures: list[Any]
) -> None:
    folder = dataset(3)
    first = finish(begin(folder))
    assert first.remarks == begin(folder).remarks == ()
    for i in (3, 4):
        Image.fromarray(pictures[i]).save(folder / f"{i}.png")
    Image.fromarray(pictures[5]).save(folder / "0.png")
    again = begin(folder)
    assert (again.name, again.to_do().shards, again.manifest.rows) == (first.name, [], 3)
    assert again.remarks == ("2 new and 1 changed files are not in this run; `--extend` (existing=extend) adds them",)
    for name in ("0.png", "3.png"):
        (folder / name).unlink()
    assert begin(folder).remarks == (
        "1 new file is not in this run; `--extend` (existing=extend) adds it",
        "1 of this run's 3 files is gone from the data set",
    )
    assert first == replace(begin(folder), remarks=(), store=first.store)  # the run itself is as it was frozen


def test_changes_beyond_the_limit_and_in_shards_to_come_are_none(
    dataset: Any, begin: Begin, pictures: list[Any]
) -> None:
    folder = dataset(3)
    run = begin(folder, limit=2)
    os.utime(folder / "0.png", ns=(1, 1))  # is read as it is then
    Image.fromarray(pictures[3]).save(folder / "9.png")
    assert begin(folder, limit=2).remarks == ()
    Image.fromarray(pictures[4]).save(folder / "00.png")
    assert "1 new file" in begin(folder, limit=2).remarks[0]
    assert run.to_do().shards == [0]


def test_a_finished_run_needs_no_data_set(dataset: Any, tmp_path: Path, begin: Begin) -> None:
    folder = dataset(1)
    begin(folder)
    folder.rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match="does not exist"):  # its image could not be read
        begin(folder)
    (tmp_path / "moved").rename(folder)
    finish(begin(folder))
    folder.rename(tmp_path / "moved")
    again = begin(folder)
    assert again.to_do().shards == []
    assert again.remarks == ("the data set cannot be listed now",)


def test_an_output_in_its_data_set_is_not_read_as_input(
    dataset: Any, tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(1, "d")
    monkeypatch.chdir(tmp_path)
    first = finish(begin("d", "d/out"))
    report.publish(first)
    assert list(folder.rglob("contact_sheet.png"))
    assert begin("d", "d/out").remarks == ()
    second = begin("d", "d/out", limit=9)
    assert second.name != first.name
    assert second.manifest.table()["image_id"].to_pylist() == ["0.png"]


def test_a_bucket_by_any_name_is_one_run(begin: Begin, dataset: Any) -> None:
    fsspec.filesystem("memory").pipe("/ds-resume/0.png", (dataset(1) / "0.png").read_bytes())
    first = begin("memory://ds-resume", "memory://ds-resume/out")
    finish(begin("memory://ds-resume/", "memory://ds-resume/out"))
    report.publish(first)
    again = begin("memory://ds-resume", "memory://ds-resume/out/")
    assert (again.name, again.remarks, again.to_do().shards) == (first.name, (), [])
    config = json.loads(fsspec.filesystem("memory").cat(f"/ds-resume/out/runs/{first.name}/config.json"))
    assert config["dataset"] == "memory://ds-resume"
