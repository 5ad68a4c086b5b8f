"""Which run a command takes, and what it says where there is none, or none with what it needs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK_SETTINGS
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.status import no_pivot, nothing_done
from pti_core.storage.known_runs import RunError, newest_run, run_names
from pti_core.storage.store import Store


@pytest.fixture(scope="module")
def runs(pictures: Any, tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run of two shards, of which the first is done; then one of which nothing is."""
    folder = tmp_path_factory.mktemp("known")
    (folder / "data").mkdir()
    for i in range(4):
        Image.fromarray(pictures[i]).save(folder / "data" / f"{i}.png")
    config = configure("demo", QUICK_SETTINGS)
    made = [freeze(str(folder / "data"), str(folder / "out"), tiny_checkpoint, config, n, 2) for n in (4, 3)]
    done = invert_shard(made[0], 0)
    measure_shard(made[0], 0, done["files"], done["seconds"])
    return made[0], made[1]


@pytest.fixture
def out(runs: tuple[Run, Run], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(runs[0].store.root, tmp_path / "out"))


def pti(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


def test_the_newest_is_the_one_that_was_begun_last(runs: tuple[Run, Run]) -> None:
    store = runs[0].store
    assert run_names(store) == sorted(run.name for run in runs)
    assert newest_run(store) == runs[1].name
    assert newest_run(store, runs[0].name) == runs[0].name


def test_a_run_that_is_not_there(runs: tuple[Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = runs[0].store
    with pytest.raises(RunError, match=f"no run 'other'; runs there: {', '.join(run_names(store))}"):
        run_names(store, "other")
    with pytest.raises(RunError, match=f"{tmp_path}: no run there; `pti run DATASET --output {tmp_path}` makes one"):
        run_names(Store(str(tmp_path)))
    folder = f"{store.root}/runs/{runs[0].name}"
    says = f"is the folder of run {runs[0].name}; give the root of its tables, {store.root}"
    monkeypatch.chdir(folder)
    for place in (folder, f"../{runs[0].name}", "."):
        with pytest.raises(RunError, match=re.escape(says)):
            run_names(Store(place))


def test_a_lost_config_is_named(out: Path, runs: tuple[Run, Run]) -> None:
    lost, other = runs[0].name, runs[1].name
    (out / f"runs/{lost}/config.json").unlink()
    assert run_names(Store(str(out))) == [other]
    with pytest.raises(RunError, match=f"run '{lost}' there has lost its configuration; bring 'runs/{lost}/config"):
        run_names(Store(str(out)), lost)
    for command in ("status", "check"):  # the other one is looked at all the same
        code, said = pti(command, out)
        assert code == 1
        assert f"run '{lost}' there has lost its configuration" in said
        assert f"{other} unfinished 0 / 3" in said or f"run {other}: 0 shards read; 2 are unfinished" in said


def test_what_has_nothing_names_the_run_that_has(runs: tuple[Run, Run]) -> None:
    first, second = runs
    message = nothing_done(second)
    assert message.startswith(f"run {second.name} has no finished shard yet; `pti run` again finishes it")
    assert message.endswith(f"choose another run with --run {first.name}")
    for command in (["edit"], ["report"], ["export", "--pictures", "pictures"], ["alpha-study"], ["show"]):
        code, said = pti(command[0], first.store.root, *command[1:])
        assert code == 1
        assert f"--run {first.name}" in said, said


def test_an_image_that_is_not_done_yet_is_not_called_unknown(runs: tuple[Run, Run]) -> None:
    run, store = runs[0], runs[0].store
    waiting = next(row["image_id"] for row in run.manifest.shard(1))
    expected = f"image '{waiting}' is not done yet; `pti run` again finishes run {run.name}"
    assert no_pivot(store, [run.name], waiting) == expected
    assert no_pivot(store, [run.name], "9.png").startswith(
        f"run {run.name} has no image '9.png'; it has 2, for example"
    )
    for command in (["export", waiting], ["edit", "--image", waiting], ["alpha-study", "--image", waiting]):
        code, said = pti(command[0], store.root, *command[1:], "--run", run.name)
        assert code == 1
        assert expected in said, said


def test_status_shows_the_others_where_one_run_has_lost_its_manifest(out: Path, runs: tuple[Run, Run]) -> None:
    lost, other = (run.name for run in runs)
    (out / f"runs/{lost}/manifest.parquet").unlink()
    code, said = pti("status", out)
    assert code == 1
    assert f"{other} unfinished 0 / 3" in said
    assert f"run '{lost}' has no manifest in '{out}': bring 'runs/{lost}/manifest.parquet' back" in said
    assert said.endswith("error: 1 run cannot be read, for what is said above")


def test_pictures_go_into_a_folder_and_not_into_a_file(runs: tuple[Run, Run], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        code, said = pti("export", runs[0].store.root, "--run", runs[0].name, "--pictures", place)
        assert code == 1
        assert f"'{tmp_path / 'file'}' is a file where a folder is needed" in said
    assert (tmp_path / "file").read_text() == "mine"
