"""Work on one run by two at once: a worker of before `--overwrite` that writes late, and the same run started twice."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import QUICK_SETTINGS
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from pti_core.checking import check_run
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run, load_run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage import completeness
from pti_core.storage.known_runs import RunError
from pti_core.storage.layout import CLEARING
from pti_core.storage.store import StoreError

Begin = Callable[..., Run]


@pytest.fixture
def begin(tmp_path: Path, tiny_checkpoint: str) -> Begin:
    def freeze_into(dataset: object, shard_size: int = 64, existing: Any = "resume", **settings: Any) -> Run:
        config = configure("demo", QUICK_SETTINGS | {"engine": "noop", "batch": 2} | settings)
        return freeze(str(dataset), str(tmp_path / "out"), tiny_checkpoint, config, None, shard_size, existing)

    return freeze_into


def finish(run: Run) -> Run:
    for shard in run.to_do().shards:
        measure_shard(run, shard, invert_shard(run, shard)["files"])
    return run


def part(run: Run, table: str, shard: int = 0) -> Path:
    return Path(run.store.root) / run.store.part_path(table, run.name, shard, 0)


def parts(run: Run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(run.store.root).rglob("part-*.parquet")}


def write_late(files: dict[Path, bytes]) -> None:
    """As the worker that made them, coming to its end only now."""
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


# --- a worker of before `--overwrite` ------------------------------------------------------------------------------


def test_a_part_from_before_an_overwrite_is_not_taken_for_one_of_the_new_run(
    dataset: Any, begin: Begin, pictures: list[Any]
) -> None:
    folder = dataset(2)
    old = begin(folder)
    invert_shard(old, 0)
    written = parts(old)
    Image.fromarray(pictures[5]).save(folder / "0.png")
    new = begin(folder, existing="overwrite")
    write_late(written)
    finish(new)
    sha256 = dict(new.store.read("pivots")[["image_id", "sha256"]].itertuples(index=False))
    assert sha256["0.png"] == hashlib.sha256((folder / "0.png").read_bytes()).hexdigest()
    assert new.to_do().shards == []


def test_a_worker_of_before_an_overwrite_leaves_the_shards_of_the_new_run_as_they_are(
    dataset: Any, begin: Begin
) -> None:
    folder = dataset(2)
    old, new = begin(folder), list[Run]()

    def overwrite(_: object) -> None:
        if not new:
            new.append(begin(folder, existing="overwrite"))
            finish(new[0])

    with pytest.raises(RunError, match=r"was overwritten meanwhile .*the same command again works on the new one"):
        invert_shard(old, 0, overwrite)
    assert new[0].to_do().shards == []
    assert not new[0].store.verify(new[0].store.markers(new[0].name)[0])


@pytest.mark.parametrize("table", ["metrics", "locality"])
def test_a_seal_says_of_which_run_it_is_and_one_of_an_earlier_version_counts(
    dataset: Any, begin: Begin, table: str
) -> None:
    run = finish(begin(dataset(2)))
    path, marker = part(run, table), Path(run.store.root) / f"runs/{run.name}/done/00000.json"
    content = pq.read_table(path, partitioning=None)
    seal = json.loads(content.schema.metadata[b"pti_part"])
    assert seal["created"] == run.created

    def seal_with(changed: dict[str, Any]) -> bytes:
        metadata = {**content.schema.metadata, b"pti_part": json.dumps(changed).encode()}
        pq.write_table(content.replace_schema_metadata(metadata), path)
        marker.unlink()
        return path.read_bytes()

    earlier = seal_with({key: value for key, value in seal.items() if key != "created"})
    finish(run)
    assert path.read_bytes() == earlier
    seal_with(seal | {"created": "2026-01-01T00:00:00.000+00:00"})
    finish(run)
    assert json.loads(pq.read_schema(path).metadata[b"pti_part"])["created"] == run.created


def test_a_shard_that_the_new_run_does_not_have_is_named_with_what_to_do(dataset: Any, begin: Begin) -> None:
    folder = dataset(4)
    old = begin(folder, shard_size=2)
    invert_shard(old, 1)
    written = parts(old)
    new = finish(begin(folder, existing="overwrite"))
    write_late(written)
    assert new.to_do().shards == []
    with pytest.raises(StoreError) as refused:
        new.store.check_complete(new.name)
    assert re.search(
        r"6 pivots and 0 rejects for 4 images in the manifest; an image has two rows; file 'deltas/.*/shard=00001/"
        r"part-0000\.parquet' is no part of this run .*; remove it, and 3 more that `pti check` names, and run it",
        str(refused.value),
    )
    strays = new.store.strays(new.name)
    assert {Path(new.store.root) / path for path in strays} == written.keys()
    for path in strays:
        new.store.files.remove(path)
    assert new.store.check_complete(new.name)["pivots"] == 4


def test_a_copy_beside_a_part_does_not_keep_its_shard_from_being_done(dataset: Any, begin: Begin) -> None:
    run = begin(dataset(4))
    inverted = invert_shard(run, 0)
    for table in ("pivots", "metrics"):
        shutil.copy(part(run, table), part(run, table).with_name("part-0 (1).parquet"))
    assert invert_shard(run, 0) == inverted  # all of it is there
    finish(run)
    assert run.to_do().shards == []
    assert len(run.store.strays(run.name)) == 2


def test_what_pandas_would_read_is_a_stray_and_what_it_passes_over_is_not(dataset: Any, begin: Begin) -> None:
    run = finish(begin(dataset(4)))
    beside = part(run, "metrics")
    for name in ("_SUCCESS", ".part.tmp"):
        beside.with_name(name).touch()
    pd.read_parquet(beside.parents[2])
    assert run.store.strays(run.name) == []
    beside.with_name(f"{beside.name}.tmp").touch()
    with pytest.raises(pa.ArrowInvalid):
        pd.read_parquet(beside.parents[2])
    (beside.parent / ".copies").mkdir()
    for name in (f"_{beside.name}", f".copies/{beside.name}"):  # which `pti` would read
        shutil.copy(beside, beside.parent / name)
    strays = [path.partition("/shard=00000/")[2] for path in run.store.strays(run.name)]
    assert strays == [f".copies/{beside.name}", f"_{beside.name}", f"{beside.name}.tmp"]
    assert completeness.strays([f"metrics/run={run.name}/shard=00000/"], run.store.markers(run.name), 1) == []


# --- the same run twice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [True, False])
def test_a_marker_does_not_vouch_for_files_that_another_process_has_written(
    dataset: Any, begin: Begin, mixed: bool
) -> None:
    run = begin(dataset(2), engine="pti")
    ours = invert_shard(run, 0)
    metrics = part(run, "metrics").read_bytes()
    part(run, "metrics").unlink()
    theirs = invert_shard(run, 0)  # other seconds, so other pivots
    if mixed:  # they are not yet where we are
        part(run, "metrics").write_bytes(metrics)
    with pytest.raises(StoreError, match=r"pivots/.*part-0\.parquet' is not the one that was inverted"):
        measure_shard(run, 0, ours["files"], ours["seconds"], ours["counts"])
    assert run.to_do().shards == [0]
    finish(run)
    (marker,) = run.store.done(run.name, whole=True).values()
    assert [found.problems for found in check_run(run.store, run.name, {0: marker})] == [[]]
    assert (theirs["files"] == marker["files"][:4]) is not mixed  # a part that is of both is done again


def test_a_part_that_is_damaged_before_its_shard_is_measured_is_said_to_be_and_made_again(
    dataset: Any, begin: Begin
) -> None:
    run = begin(dataset(2), engine="pti")
    ours = invert_shard(run, 0)
    part(run, "deltas").write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(StoreError, match=r"part 'deltas/.*' is not the one that was inverted: .*; end that one"):
        measure_shard(run, 0, ours["files"], ours["seconds"])
    assert finish(run).to_do().shards == []


def test_a_pivot_without_a_delta_is_named_and_done_again_once_its_part_is_removed(dataset: Any, begin: Begin) -> None:
    run = begin(dataset(2), engine="pti")
    invert_shard(run, 0)
    path = part(run, "deltas")
    content = pq.read_table(path, partitioning=None)
    pq.write_table(content.filter(pc.not_equal(content["owner"], "1.png")), path)
    with pytest.raises(StoreError, match=r"deltas/.*part-0000\.parquet' has no delta of '1\.png'; remove it"):
        measure_shard(run, 0)
    path.unlink()
    assert finish(run).to_do().shards == []


class Meanwhile(MemoryFileSystem):
    """A file system on which somebody does something, once, directly before a file is looked for or removed."""

    protocol = "meanwhile"
    does: ClassVar[list[Callable[[], object]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("meanwhile://"))

    def info(self, path: str, **options: Any) -> Any:
        if path.endswith("/config.json"):
            self.now()
        return super().info(path, **options)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self.now()
        super().rm(path, recursive, maxdepth)

    @classmethod
    def now(cls) -> None:
        while cls.does:
            cls.does.pop()()


@pytest.mark.parametrize("left", [True, False])
def test_who_freezes_a_run_does_not_remove_what_another_one_has_begun_meanwhile(
    dataset: Any, tiny_checkpoint: str, left: bool
) -> None:
    fsspec.register_implementation("meanwhile", Meanwhile, clobber=True)
    folder, output = dataset(2), f"meanwhile://first-{left}"
    config = configure("demo", QUICK_SETTINGS | {"engine": "noop"})

    def begin(ready: Callable[[], object] = lambda: None) -> Run:
        return freeze(str(folder), output, tiny_checkpoint, config, ready=ready)

    if left:  # of a run that was cut off while it was overwritten
        run = finish(begin())
        run.store.files.remove(f"runs/{run.name}/config.json")
        run.store.files.put(f"runs/{run.name}/{CLEARING}", b"")
    run = begin(ready=lambda: Meanwhile.does.append(lambda: finish(begin())))
    Meanwhile.now()
    assert load_run(output, run.name).to_do().shards == []
    assert run.store.check_complete(run.name) == {"manifest": 2, "pivots": 2, "rejects": 0}
