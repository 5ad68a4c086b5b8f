"""A few images of a run are found without opening the files of the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import QUICK_SETTINGS
from PIL import Image

from pti_core import status, tables
from pti_core.alpha import plans as alpha_plans
from pti_core.editing import plans as editing_plans
from pti_core.export import ExportError, export_image, export_images
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run, load_run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage import table_files
from pti_core.storage.lookup import rows_of
from pti_core.storage.manifests import write
from pti_core.storage.store import Store, StoreError


@pytest.fixture(scope="module")
def finished(pictures: Any, tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three shards of two images and one part each; `5.png` was rejected."""
    folder = tmp_path_factory.mktemp("lookup")
    (folder / "data").mkdir()
    for i in range(6):
        Image.fromarray(pictures[i]).save(folder / "data" / f"{i}.png")
    (folder / "data/5.png").write_text("no image")
    run = freeze(str(folder / "data"), str(folder / "out"), tiny_checkpoint, configure("demo", QUICK_SETTINGS), None, 2)
    for shard in run.to_do().shards:
        measure_shard(run, shard, invert_shard(run, shard)["files"])
    return run


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy to damage."""
    return load_run(str(shutil.copytree(finished.store.root, tmp_path / "out")), finished.name)


def spoil_all_but(run: Run, *shards: int) -> None:
    """Whoever opens a table's file of another shard fails."""
    for path in Path(run.store.root).glob("*/run=*/shard=*/*.parquet"):
        if int(path.parent.name.removeprefix("shard=")) not in shards:
            path.write_bytes(b"not to be read")


def test_an_image_is_exported_without_opening_the_files_of_other_shards(run: Run, tmp_path: Path) -> None:
    spoil_all_but(run, 1)
    done = export_image(run.store.root, "3.png", output=tmp_path / "tuned.safetensors")
    assert done.run == run.name
    with pytest.raises(StoreError, match="shard=00000"):
        export_image(run.store.root, "1.png", output=tmp_path / "other.safetensors")


def test_images_are_edited_and_studied_without_opening_the_files_of_other_shards(run: Run) -> None:
    spoil_all_but(run, 0, 2)
    planned = editing_plans.plan(run.store.root, images=["4.png", "1.png", "0.png"], strengths=[1.0])
    assert planned.images == {0: 2, 2: 1}
    assert alpha_plans.chosen(run, 1, ["4.png", "1.png"]) == {0: ["1.png"], 2: ["4.png"]}


def test_why_an_image_has_no_pivot_is_told_without_opening_the_files_of_other_shards(run: Run) -> None:
    spoil_all_but(run, 2)
    store, names = run.store, [run.name]
    assert status.no_pivot(store, names, "5.png").startswith(
        f"image '5.png' was rejected by run {run.name} (image_id '5.png':"
    )
    assert status.no_pivot(store, names, "9.png").startswith(f"run {run.name} has no image '9.png'; it has 5, for")
    assert "for example '4.png', '3.png', '2.png'" in status.no_pivot(store, names, "55.png")
    spoil_all_but(run)
    (Path(store.root) / store.part_path("rejects", run.name, 2, 0)).unlink()
    assert "is not done yet" in status.no_pivot(store, names, "5.png")


def test_without_its_manifest_a_run_is_searched_as_a_whole(run: Run, tmp_path: Path) -> None:
    (Path(run.store.root) / f"runs/{run.name}/manifest.parquet").unlink()
    assert export_image(run.store.root, "3.png", output=tmp_path / "tuned.safetensors").run == run.name
    assert export_images(run.store.root, tmp_path / "pictures", "3.png").written == 1
    with pytest.raises(ExportError, match=r"'5.png' was rejected"):
        export_image(run.store.root, "5.png", output=tmp_path / "no.safetensors")
    with pytest.raises(StoreError, match="has no manifest"):
        export_image(run.store.root, "9.png", output=tmp_path / "no.safetensors")


@pytest.mark.parametrize("few", [0, 32])
def test_rows_are_the_same_however_shards_are_listed(few: int, finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "_FEW", few)
    whole = finished.store.read("pivots", finished.name)
    for ids in (["4.png", "0.png", "3.png"], ["3.png"], ["9.png", "5.png"], []):
        found = rows_of(finished.store, "pivots", finished.name, ids, ["image_id", "shard", "seed"])
        expected = whole[whole["image_id"].isin(ids)][["image_id", "shard", "seed"]]
        assert found.to_numpy().tolist() == expected.to_numpy().tolist()


def test_of_very_many_names_none_is_compared_with_an_unknown_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for run, count in (("few", status.COMPARED - 1), ("many", status.COMPARED)):
        names = [f"{i:06d}.png" for i in reversed(range(count))]
        rows = {"image_id": names, "uri": names, "group": names, "bytes": [1] * count, "etag": [""] * count}
        write(store.files, run, tables.assign_shards(pa.table(rows), 64))
    near, first = "'049990.png', '", "'000000.png', '000001.png', '000002.png'"
    assert f"no image '049990.pn'; it has 49999, for example {near}" in status.no_pivot(store, ["few"], "049990.pn")
    assert status.no_pivot(store, ["many"], "049990.pn").endswith(f"; it has 50000, for example {first}")
    assert status.no_pivot(store, ["many", "few"], "x") == (
        f"the runs many, few has no image 'x'; it has 50000, for example {first}"
    )
