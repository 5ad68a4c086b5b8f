"""`edit/demo` through a real server and worker, and `pti edit` from a shell against the same server."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import QUICK_SETTINGS
from prefect.utilities.callables import parameter_schema

from flows.edit import edit
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.shard.shards import invert_shard, measure_shard

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(dataset, tiny_checkpoint, tmp_path):
    """A finished run of five images in three shards."""
    settings = QUICK_SETTINGS | {"measure.z_samples": 0}
    run = freeze(str(dataset(5)), str(tmp_path / "out"), tiny_checkpoint, configure("demo", settings), shard_size=2)
    for shard in run.to_do().shards:
        measure_shard(run, shard, invert_shard(run, shard)["files"])
    return tmp_path / "out"


def test_the_deployment_is_the_flow_s_own_and_its_form_explains_everything():
    (deployed,) = (
        d
        for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
        if d["entrypoint"] == "flows/edit.py:edit"
    )
    assert (edit.name, deployed["name"]) == ("edit", "demo")
    assert edit.validate_parameters(deployed["parameters"])["root"] == "out/demo"
    assert deployed["concurrency_limit"]["limit"] == 1
    properties = parameter_schema(edit).properties
    assert [name for name, p in properties.items() if not p.get("description")] == []


@pytest.mark.slow
def test_deployment_run_of_edits_ends_completed_with_table_pictures_and_artifacts(server, root):
    result = server.run("edit/demo", {"root": str(root), "directions": ["pca:0", "sefa:0:layers=coarse"]})
    assert result.returncode == 0, result.stdout + result.stderr
    rows = pd.read_parquet(root / "edits")
    assert len(rows) == 5 * 2 * 2
    assert all((root / picture).is_file() for picture in rows["picture"])
    run = server.api("POST", "flow_runs/filter", {"flows": {"name": {"any_": ["edit"]}}, "sort": "START_TIME_DESC"})[0]
    assert run["name"] == f"edit-{root.name}"
    said = [log["message"] for log in server.logs(run["id"])]
    assert any(f"in {root}: 5 images x 2 directions, 0 images done before" in message for message in said)
    assert any(message.endswith(f"are complete: 5 images in {root}") for message in said)
    shown = server.artifacts(run["id"])
    assert shown["edit-progress"]["data"] == 100
    medians = json.loads(shown["pti-edits"]["data"])
    assert [(row["direction"], row["strength"]) for row in medians] == [
        ("pca-0", "-2"),
        ("pca-0", "+2"),
        ("sefa-0-coarse", "-2"),
        ("sefa-0-coarse", "+2"),
    ]
    assert shown["pti-edits-sheet"]["data"].startswith("data:image/jpeg;base64,")

    # From a shell: another strength is added, on the same server.
    command = [sys.executable, "-m", "flows.cli", "edit", str(root), "-d", "pca:0", "-s", "3"]
    typed = subprocess.run(command, env=server.env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert typed.returncode == 0, typed.stdout + typed.stderr
    assert "edits of 5 images, medians" in typed.stdout
    assert "edits.png" in typed.stdout
    assert len(pd.read_parquet(root / "edits")) == 5 * 2 * 2 + 5


@pytest.mark.slow
def test_a_deployment_run_that_cannot_work_fails_with_its_sentence(server, root, tiny_checkpoint, tmp_path):
    assert "has no image 'nobody.png'" in server.refused("edit/demo", {"root": str(root), "images": ["nobody.png"]})
    np.save(tmp_path / "long.npy", np.ones(25, np.float32))
    message = server.refused("edit/demo", {"root": str(root), "directions": [str(tmp_path / "long.npy")]})
    assert "direction 'long' has the shape [25]; this generator takes [24]" in message
    nothing = freeze(str(tmp_path / "data"), str(tmp_path / "noop"), tiny_checkpoint, configure("noop"), limit=2)
    measure_shard(nothing, 0, invert_shard(nothing, 0)["files"])
    assert "made by the engine 'noop'" in server.refused("edit/demo", {"root": str(tmp_path / "noop")})
    assert not (root / "edits").exists()
