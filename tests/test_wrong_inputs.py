"""What a person gets wrong with a finished run is one sentence of the `pti` command, before Prefect is started."""

import shutil

import numpy as np
import pytest
from conftest import QUICK_SETTINGS
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import read_stored
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.tables import records

REPORT = "report/index.html"


def finish(data, root, checkpoint, group_by=None, **settings):
    config = configure("demo", QUICK_SETTINGS | settings)
    run = freeze(str(data), str(root), checkpoint, config, group_by=group_by)
    for shard in run.to_do().shards:
        done = invert_shard(run, shard)
        measure_shard(run, shard, done["files"], done["seconds"])
    return run


@pytest.fixture(scope="module")
def folder(pictures, tiny_checkpoint, tmp_path_factory):
    """`data` with three images, `out` with a run of them, `lost` the same without its deltas."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "data").mkdir()
    for i in range(3):
        Image.fromarray(pictures[i]).save(folder / "data" / f"{i}.png")
    finish(folder / "data", folder / "out", tiny_checkpoint)
    shutil.copytree(folder / "out", folder / "lost")
    shutil.rmtree(folder / "lost/deltas")
    np.save(folder / "long.npy", np.ones(512))
    return folder


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("edit {}/out -d {}/long.npy", "'long' has the shape [512]; this generator takes [24], [1, 24] or [8, 24]"),
        ("edit {}/out --image 7.png", "has no image '7.png'; it has 3, for example"),
        ("edit {}/lost", "has no deltas: 'deltas/run="),
        ("report {}/lost", "has no deltas: 'deltas/run="),
        ("alpha-study {}/out --image 7.png", "has no image '7.png'; it has 3, for example"),
        ("report {}/out --images -1", "--images '-1': a number from 0 up, or 'all', expected"),
        ("report {}/out --images few", "--images 'few': a number from 0 up, or 'all', expected"),
        ("alpha-study {}/out --alpha -1", "alpha -1: 0 or above, up to 1e6, expected"),
        ("alpha-study {}/out --alpha 0", "alphas [0.0]: at least one above 0 expected"),
        ("alpha-study {}/out --alpha nan", "alpha nan: 0 or above, up to 1e6, expected"),
        ("alpha-study {}/out --alpha 1e300", "alpha 1e+300: 0 or above, up to 1e6, expected"),
    ],
)
def test_it_is_one_sentence(folder, command, says):
    result = CliRunner().invoke(app, [part.replace("{}", str(folder)) for part in command.split()])
    assert result.exit_code == 1, result.output
    output = " ".join(result.output.split())
    assert output.count("error: ") == 1
    assert says in output
    assert "Traceback" not in output


@pytest.mark.parametrize("command", ["report", "edit", "alpha-study"])
def test_the_folder_of_a_run_in_place_of_the_root(folder, command):
    (run,) = (folder / "out/runs").iterdir()
    result = CliRunner().invoke(app, [command, f"{run}/"])
    assert result.exit_code == 1, result.output
    advice = f"is the folder of run {run.name}; give the root of its tables, {folder}/out"
    assert advice in result.output.replace("\n", "")


def test_the_report_of_a_run_without_its_deltas_stays_as_it_was(folder):
    runner, (run,) = CliRunner(), (path.name for path in (folder / "out/runs").iterdir())
    page = folder / "out/runs" / run / REPORT
    assert runner.invoke(app, ["report", str(folder / "out")]).exit_code == 0
    copy = folder / "lost/runs" / run / REPORT
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(page, copy)
    assert runner.invoke(app, ["report", str(folder / "lost")]).exit_code == 1
    assert copy.read_bytes() == page.read_bytes()


def test_groups_of_one_are_tuned_as_single_images_are(folder, tiny_checkpoint, tmp_path):
    single = finish(folder / "data", folder / "out", tiny_checkpoint)
    shared = finish(folder / "data", tmp_path, tiny_checkpoint, "count:1", mode="multi")
    assert shared.store.check_complete(shared.name) == {"manifest": 3, "pivots": 3, "rejects": 0}
    from pti_core.runs import engine_for

    weights = []
    for run in (single, shared):
        rows = sorted(records(run.store.read("pivots", run=run.name)), key=lambda row: row["image_id"])
        stored = [read_stored(run, engine_for(run), row).generator.tunable() for row in rows]
        weights.append([{name: p.clone() for name, p in one.items()} for one in stored])
    for one, other in zip(*weights, strict=True):
        for name, p in one.items():
            np.testing.assert_allclose(other[name], p, atol=1e-6)
