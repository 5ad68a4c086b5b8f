"""Runs of earlier versions are gone on with, and what a run that is found again keeps as it was is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import finish
from PIL import Image

import pti_core
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run, any_engine_for
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.known_runs import RunError
from pti_core.versions import made_with, versions

Begin = Callable[..., Run]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def begin(dataset: Any, tmp_path: Path, tiny_checkpoint: str) -> Begin:
    folder = dataset(4)

    def freeze_it(
        existing: Any = "resume", shard_size: int = 2, preset: str = "noop", limit: int | None = None, **settings: Any
    ) -> Run:
        config = configure(preset, settings)
        return freeze(str(folder), str(tmp_path / "out"), tiny_checkpoint, config, limit, shard_size, existing)

    return freeze_it


def half_done(run: Run) -> Run:
    done = invert_shard(run, 0)
    measure_shard(run, 0, done["files"])
    return run


def rewrite(run: Run, change: Change) -> None:
    """Change what `config.json` says."""
    path = Path(run.store.root) / f"runs/{run.name}/config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def as_of_before(run: Run, change: Change, name: str = "0123abcd4567") -> Run:
    """The run as made by a version whose settings had another digest, and so another name; `change` is of them."""
    root, digest = Path(run.store.root), name + "0" * 52

    def renamed(content: dict[str, Any]) -> None:
        change(content["config"])
        content |= {"run": name, "digest": digest}

    rewrite(run, renamed)
    for marker in root.glob(f"runs/{run.name}/done/*.json"):
        marker.write_text(marker.read_text().replace(run.digest, digest).replace(run.name, name))
    (root / "runs" / run.name).rename(root / "runs" / name)
    for folder in root.glob(f"*/run={run.name}"):
        folder.rename(folder.with_name(f"run={name}"))
    return Run(run.store, name, digest, run.config, run.dataset, run.generator, run.generator_sha256, run.created)


def without_basis(config: dict[str, Any]) -> None:
    del config["tuning"]["basis"]


def test_a_run_that_lacks_a_setting_of_today_is_finished(begin: Begin) -> None:
    old = as_of_before(half_done(begin()), without_basis)
    run = begin()
    assert (run.name, run.digest, run.to_do().shards, run.remarks) == (old.name, old.digest, [1], ())
    finish(run)
    assert run.store.check_complete(old.name) == {"manifest": 4, "pivots": 4, "rejects": 0}
    assert run.store.runs() == [old.name]


def test_and_extended(begin: Begin, pictures: Any) -> None:
    old = as_of_before(half_done(begin()), without_basis)
    Image.fromarray(pictures[5]).save(Path(old.dataset) / "9.png")
    run = begin("extend")
    assert (run.name, run.remarks) == (old.name, ("1 new file is appended as shard 2",))
    assert run.to_do().shards == [1, 2]


def test_and_overwritten_in_its_place(begin: Begin) -> None:
    old = as_of_before(half_done(begin()), without_basis)
    run = begin("overwrite")
    assert (run.name, run.digest, run.to_do().shards, run.store.runs()) == (old.name, old.digest, [0, 1], [old.name])
    assert run.created != old.created
    finish(run)
    again = begin()
    assert (again.name, again.to_do().shards) == (old.name, [])
    assert begin(batch=7).name == old.name  # which is of no digest


@pytest.mark.parametrize("setting", ["basis", "steps"])
def test_a_setting_with_another_value_is_another_run(begin: Begin, setting: str) -> None:
    other = {"basis": "inputs", "steps": 7}

    def changed(config: dict[str, Any]) -> None:
        without_basis(config)
        config["tuning"][setting] = other[setting]

    old = as_of_before(half_done(begin()), changed)
    with pytest.raises(RunError, match=rf"run {old.name} .* but tuning\.{setting} {other[setting]}, now \w+; "):
        begin("extend")
    run = begin()
    assert run.name != old.name
    assert f"tuning.{setting} {other[setting]}, now" in run.remarks[0]
    assert "not there" not in run.remarks[0]


def test_nor_is_one_of_another_limit_or_with_a_setting_that_is_no_more(begin: Begin) -> None:
    old = as_of_before(begin(), without_basis)
    assert begin(limit=3).name != old.name
    rewrite(old, lambda content: content["config"].update(of_before=1))
    assert begin().name != old.name


def test_of_several_the_newest_is_meant_and_before_all_that_of_today_s_digest(begin: Begin) -> None:
    first = begin()
    store, old = first.store, as_of_before(first, without_basis)
    for name, created in (("0123abcd4568", "2001"), ("0123abcd4566", "2099")):
        store.write_manifest(name, old.manifest.table())
        config = store.read_config(old.name)
        store.write_config(name, config | {"run": name, "digest": name + "0" * 52, "created": created})
    assert begin().name == "0123abcd4566"
    store.write_manifest(first.name, old.manifest.table())
    store.write_config(first.name, store.read_config(old.name) | {"run": first.name, "digest": first.digest})
    assert begin().name == first.name


# --- what stays as it was ------------------------------------------------------------------------------------------


def test_what_a_run_and_its_parts_were_made_with(begin: Begin, tmp_path: Path) -> None:
    run = finish(begin())
    kept = run.store.read_config(run.name)["versions"]
    assert (kept["pti"], kept["torch"]) == (pti_core.__version__, versions()["torch"])
    (path, _) = sorted((tmp_path / "out/metrics").rglob("part-0.parquet"))
    seal = json.loads(pq.read_schema(path).metadata[b"pti_part"])
    engine = any_engine_for(run)
    made = made_with(engine.device)
    assert {key: seal.get(key) for key in made} == made
    assert made.keys() - {"gpu"} == {"device", "pti", "torch"}
    assert ("gpu" in seal) == (engine.device.type == "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU of NVIDIA")
def test_on_a_gpu_its_name_is_told() -> None:
    assert made_with(torch.device("cuda"))["gpu"] == torch.cuda.get_device_name()


def test_other_versions_are_told_while_something_is_left_to_do(begin: Begin) -> None:
    run = half_done(begin())
    torch_now = versions()["torch"]
    assert begin().remarks == ()
    rewrite(run, lambda content: content["versions"].update(torch="1.0", pillow="1.0"))
    says = f"the run was frozen with torch 1.0; what is left is done with torch {torch_now}, so"
    for existing in ("resume", "extend"):
        (remark,) = begin(existing).remarks
        assert remark.startswith(says)
    rewrite(run, lambda content: content["versions"].pop("torch"))  # as of a version that did not say
    assert begin().remarks == ()
    rewrite(run, lambda content: content["versions"].update(pti="0.0.1"))
    assert begin().remarks[0].startswith("the run was frozen with pti 0.0.1; what is left is done with pti ")
    finish(run)
    assert begin().remarks == begin("extend").remarks == ()


def test_options_that_change_nothing_in_a_run_that_is_there_are_told(begin: Begin) -> None:
    run = begin()
    assert begin(shard_size=64).remarks == begin(batch=64).remarks == ()  # the defaults, as where none is given
    (remark,) = begin(shard_size=3).remarks
    assert remark.startswith("shard_size 3 (--shard-size) changes nothing here: the run was made with 2, and its")
    assert begin("extend", shard_size=3).remarks == ()  # it holds for what is appended
    for existing in ("resume", "extend"):
        (remark,) = begin(existing, batch=3).remarks
        assert remark.startswith("batch 3 (--set batch) changes nothing here: the run was made with 64, which all its")
    rewrite(run, lambda content: content.pop("shard_size"))  # as of a version that did not say
    assert begin(shard_size=3).remarks == ()
    made = begin("overwrite", shard_size=3, batch=3)
    assert (made.remarks, made.config.batch, made.manifest.shards) == ((), 3, 2)
    assert begin(shard_size=3, batch=3).remarks == ()


def test_a_retry_in_vain_leaves_what_the_part_was_made_with(begin: Begin, tmp_path: Path) -> None:
    run = begin()
    (Path(run.dataset) / "1.png").unlink()
    finish(run)
    path = tmp_path / "out" / run.store.part_path("metrics", run.name, 0, 0)
    content = pq.read_table(path)
    seal = json.loads(content.schema.metadata[b"pti_part"]) | {"torch": "1.0"}
    pq.write_table(content.replace_schema_metadata({b"pti_part": json.dumps(seal).encode()}), path)
    (tmp_path / f"out/runs/{run.name}/done/00000.json").unlink()  # which has the checksum of the file as it was
    measure_shard(run, 0, invert_shard(run, 0, retry_rejects=True)["files"])
    assert pd.read_parquet(tmp_path / "out/rejects")["attempts"].tolist() == [2]
    assert json.loads(pq.read_schema(path).metadata[b"pti_part"])["torch"] == "1.0"
