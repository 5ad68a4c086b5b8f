"""Many images are read back part by part, each of its files once, and draw what each alone draws."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK_SETTINGS
from PIL import Image

from pti_core import read_back
from pti_core.export import ExportError, export_images
from pti_core.freezing.freeze import freeze
from pti_core.machine.parallel import CORES
from pti_core.presets import configure
from pti_core.read_back import stored_rows
from pti_core.runs import Run, engine_for, load_run, read_stored, stored_from_rows
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.store import StoreError
from pti_core.tables import records

NAMES = [f"{i}.png" for i in range(5)]


@pytest.fixture(scope="module")
def finished(pictures: Any, tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One shard of three parts: two images, two, and one."""
    folder = tmp_path_factory.mktemp("read_back")
    (folder / "data").mkdir()
    for name, picture in zip(NAMES, pictures, strict=False):
        Image.fromarray(picture).save(folder / "data" / name)
    config = configure("demo", QUICK_SETTINGS | {"batch": 2})
    run = freeze(str(folder / "data"), str(folder / "out"), tiny_checkpoint, config)
    measure_shard(run, 0, invert_shard(run, 0)["files"])
    return run


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy to damage."""
    return load_run(str(shutil.copytree(finished.store.root, tmp_path / "out")), finished.name)


def deltas(run: Run, number: int) -> Path:
    return Path(run.store.root) / run.store.part_path("deltas", run.name, 0, number)


@pytest.mark.parametrize(("cores", "sizes"), [(1, [2, 2, 1]), (3, [4, 1]), (8, [5])])
def test_each_file_is_read_once(cores: int, sizes: list[int], finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_back, "available_cores", lambda: cores)  # a machine of the tests may have two
    opened: list[str] = []
    read = read_back.read_files
    monkeypatch.setattr(read_back, "read_files", lambda *given: opened.extend(given[2]) or read(*given))
    engine = engine_for(finished)
    pieces = list(stored_rows(finished, engine, 0, NAMES))
    tables = ("pivots", "deltas")
    assert sorted(opened) == sorted(path for t in tables for path in finished.store.parts(t, finished.name, 0).values())
    assert len(opened) == 6
    assert list(map(len, pieces)) == sizes
    pivots = records(finished.store.read("pivots", finished.name))
    rows = [row for piece in pieces for row in piece]
    assert [row.pivot["image_id"] for row in rows] == [pivot["image_id"] for pivot in pivots] == NAMES
    for row, pivot in zip(rows, pivots, strict=True):
        found, expected = stored_from_rows(finished, engine, row.pivot, row.delta), read_stored(finished, engine, pivot)
        assert torch.equal(found.ws, expected.ws)
        assert all(map(torch.equal, found.noise, expected.noise))
        for name, value in expected.generator.tunable().items():
            assert torch.equal(found.generator.tunable()[name], value)


def test_some_images_are_read_without_the_deltas_of_other_parts(run: Run, tmp_path: Path) -> None:
    for number in (0, 2):
        deltas(run, number).write_bytes(b"not to be read")
    pieces = list(stored_rows(run, engine_for(run), 0, ["3.png", "9.png", "2.png"]))
    assert [row.pivot["image_id"] for piece in pieces for row in piece] == ["2.png", "3.png"]
    assert export_images(run.store.root, tmp_path / "faces", "3.png").written == 1
    assert list(stored_rows(run, engine_for(run), 0, ["9.png"])) == []


def test_a_damaged_part_costs_no_image_before_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CORES, "1")
    deltas(run, 2).write_bytes(bytes(deltas(run, 2).stat().st_size))
    with pytest.raises(StoreError, match=r"part-0002\.parquet"):
        export_images(run.store.root, tmp_path / "faces")
    assert sorted(path.name for path in (tmp_path / "faces").iterdir()) == NAMES[:4]


def test_an_image_without_its_delta_is_told_after_those_before_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = run.store.read_table(run.store.part_path("deltas", run.name, 0, 1))[1]
    kept = [owner != "3.png" for owner in table["owner"].to_pylist()]
    info = run.store.write_part("deltas", run.name, 0, 1, table.filter(kept))
    marker = run.store.marker(run.name, 0)
    assert marker is not None
    files = [vars(info) if file["path"] == info.path else file for file in marker["files"]]
    run.store.mark_done(run.name, 0, marker | {"files": files})
    with pytest.raises(ExportError, match=r"no delta of '3.png' in the deltas table; `pti run` again makes"):
        export_images(run.store.root, tmp_path / "faces")
    assert {"0.png", "1.png", "2.png"} <= {path.name for path in (tmp_path / "faces").iterdir()}
