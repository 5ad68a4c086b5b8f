"""`alpha-study/demo` through a real server and worker, and `pti alpha-study` from a shell against the same server."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

from flows.alpha_study import alpha_study
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.shard.shards import invert_shard, measure_shard

ROOT = Path(__file__).parents[1]
FLOW = {"flows": {"name": {"any_": ["alpha-study"]}}, "sort": "START_TIME_DESC"}


def finished(data, output, checkpoint, preset="demo"):
    settings = QUICK_SETTINGS | {"measure.z_samples": 0} if preset == "demo" else {}
    run = freeze(str(data), str(output), checkpoint, configure(preset, settings), shard_size=2)
    for shard in run.to_do().shards:
        measure_shard(run, shard, invert_shard(run, shard)["files"])
    return output


def test_the_form_shows_the_alphas_and_takes_no_empty_list():
    alphas = parameter_schema(alpha_study).properties["alphas"]
    assert alphas["default"] == [0, 10, 15, 20, 30, 45, 60, 90, "off"]
    assert alphas["minItems"] == 1
    with pytest.raises(ParameterTypeError, match="alphas"):
        alpha_study.validate_parameters({"alphas": []})


def typed(*arguments, env=None):
    command = [sys.executable, "-m", "flows.cli", "alpha-study", *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_deployment_run_ends_completed_and_the_command_finds_all_done(server, dataset, tiny_checkpoint, tmp_path):
    root = finished(dataset(5), tmp_path / "out", tiny_checkpoint)
    asked = {"root": str(root), "limit": 4, "alphas": [0, 30, 60, "off"], "z_samples": 1, "shards_per_task": 2}
    result = server.run("alpha-study/demo", asked)
    assert result.returncode == 0, result.stdout + result.stderr
    drift = pd.read_parquet(root / "alpha_drift")
    assert len(drift) == 4 * 3 * (1 + 2 + 1)  # images, tunings; the target, two alphas, w_z
    assert len(pd.read_parquet(root / "alpha_nearness")) == 4 * 3
    (folder,) = (root / "runs").glob("*/report/alpha")
    said = pd.read_csv(folder / "findings.csv")
    assert set(said["images"]) == {4}
    assert set(said["verdict"]) <= {"borne out", "contradicted", "not decided"}

    run = server.api("POST", "flow_runs/filter", FLOW)[0]
    assert run["name"] == f"alpha-study-{root.name}"
    messages = [log["message"] for log in server.logs(run["id"])]
    assert any(f"in {root}: 4 images x 4 alphas, 0 images done before" in message for message in messages)
    assert any(message.endswith(f"is complete: {folder / 'index.html'}") for message in messages)
    shown = server.artifacts(run["id"])
    assert shown["alpha-study-progress"]["data"] == 100
    assert all(text in shown["pti-alpha-study"]["data"] for text in said["statement"])
    assert "![" not in shown["pti-alpha-study"]["data"]
    for name in ("nearness", "drift", "strip"):
        assert shown[f"pti-alpha-study-{name}"]["data"].startswith("data:image/jpeg;base64,")

    before = {path: path.stat().st_mtime_ns for path in root.glob("alpha_*/**/*.parquet")}
    options = [word for alpha in asked["alphas"] for word in ("--alpha", alpha)]
    again = typed(root, "--limit", 4, "--z-samples", 1, *options, env=server.env)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "everything is done already" in again.stdout
    assert all(text in " ".join(again.stdout.split()) for text in said["statement"])
    assert {path: path.stat().st_mtime_ns for path in root.glob("alpha_*/**/*.parquet")} == before

    more = typed(root, "--image", "4.png", "--alpha", 30, "--z-samples", 1, env=server.env)  # at work, in its own words
    assert more.returncode == 0, more.stdout + more.stderr
    assert "image 1 of 1" in " ".join(more.stdout.split())
    assert "writing, measuring" not in more.stdout
    assert pd.read_parquet(root / "alpha_drift")["image_id"].nunique() == 5


@pytest.mark.slow
def test_a_run_without_results_is_refused_in_one_sentence(server, dataset, tiny_checkpoint, tmp_path):
    root = finished(dataset(2), tmp_path / "noop", tiny_checkpoint, "noop")
    result = typed(root)
    assert result.returncode == 1
    assert "was made by the engine 'noop', which inverts nothing" in result.stderr
    assert "Prefect" not in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert "inverts nothing" in server.refused("alpha-study/demo", {"root": str(root)})


@pytest.mark.slow
def test_an_alpha_below_zero_is_refused_in_one_sentence(server, dataset, tiny_checkpoint, tmp_path):
    root = finished(dataset(2), tmp_path / "out", tiny_checkpoint)
    message = server.refused("alpha-study/demo", {"root": str(root), "alphas": [-5, 30]})
    assert "alpha -5" in message
    result = typed(root, "--alpha", "-5")
    assert result.returncode == 1
    assert "alpha -5" in result.stderr
    assert not (root / "alpha_drift").exists()
