"""The flow against a real server: deployments of prefect.yaml, a worker, schedules, and what the run's page shows."""

import base64
import hashlib
import io
import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS
from PIL import Image
from prefect_server import prefect_server

from tasks.page import key_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with prefect_server(tmp_path_factory.mktemp("prefect")) as running:
        yield running


@pytest.fixture
def parameters(dataset, tmp_path, tiny_checkpoint):
    """A small job: five pictures in three shards."""
    return {
        "dataset": str(dataset(5)),
        "output": str(tmp_path / "out"),
        "generator": tiny_checkpoint,
        "shard_size": 2,
        "settings": QUICK_SETTINGS,
    }


def test_deployment_run_of_the_demo_ends_completed_with_tables_and_artifacts(server, parameters):
    result = server.run("pti/demo", parameters)
    assert result.returncode == 0, result.stdout + result.stderr
    out = Path(parameters["output"])
    assert pd.read_parquet(out / "metrics")["image_id"].nunique() == 5
    assert len(list((out / "runs").rglob("done/*.json"))) == 3

    run = server.flow_runs(name={"any_": ["pti-demo-" + Path(parameters["dataset"]).name]})[-1]
    shown = server.artifacts(run["id"])
    assert shown["pti-progress"]["data"] == 100
    assert shown["pti-progress"]["description"].startswith("5 of 5 images")
    medians = json.loads(shown[key_of("pti-medians", parameters["dataset"])]["data"])
    assert [row["stage"] for row in medians] == ["pivot", "tuned", "stored"]
    assert float(medians[0]["LPIPS"]) > 0
    assert "contact_sheet.png" in shown[key_of("pti-summary", parameters["dataset"])]["data"]
    kind, _, data = shown[key_of("pti-contact-sheet", parameters["dataset"])]["data"].partition(";base64,")
    assert kind == "data:image/jpeg"
    picture = base64.b64decode(data)
    (sheet,) = out.glob("runs/*/report/contact_sheet.png")
    small, full = Image.open(io.BytesIO(picture)), Image.open(sheet)
    assert len(picture) < 300_000
    said = [log["message"] for log in server.logs(run["id"])]
    (name,) = (path.name for path in out.glob("runs/*"))
    assert f"run {name} in {out}: 5 images, 0 of them done before, 3 shards to do" in said
    assert any(
        message.startswith(f"run {name} is complete: 5 images inverted, 0 rejected; medians") for message in said
    )
    assert small.width / small.height == pytest.approx(full.width / full.height, rel=0.01)


def test_a_run_that_cannot_work_fails_with_its_sentence(server, parameters, tmp_path):
    settings = parameters["settings"] | {"locality.alpha": 0}
    for asked, words in (
        ({"dataset": f"{tmp_path}/nowhere"}, "nowhere"),
        ({"settings": settings}, "locality.alpha 0: Input should be greater than 0"),
    ):
        said = server.refused("pti/demo", parameters | asked)
        assert words in said
        assert "\n" not in said
        (run, *_) = sorted(server.flow_runs(), key=lambda run: run["created"], reverse=True)
        errors = [log["message"] for log in server.logs(run["id"]) if log["level"] >= logging.ERROR]
        assert errors
        assert all(words in error and "Traceback" not in error for error in errors), errors
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_group_of_one_image_is_inverted_with_a_remark(server, parameters):
    result = server.run("pti/demo", parameters | {"mode": "multi"})  # a folder of images: no two share a group
    assert result.returncode == 0, result.stdout + result.stderr
    run = server.flow_runs(state={"type": {"any_": ["COMPLETED"]}})[-1]
    said = [log["message"] for log in server.logs(run["id"])]
    assert any("5 of 5 groups have one image and get a generator of their own" in message for message in said)


def test_a_key_in_an_address_is_refused_before_the_server_has_it(server, parameters):
    asked = parameters | {"dataset": "s3://key:SeCrEt@bucket/x"}
    result = server.run("pti/demo", asked)
    assert result.returncode == 1
    assert "Validation failed for field 'dataset'" in result.stdout + result.stderr
    assert [run for run in server.flow_runs() if "SeCrEt" in str(run)] == []


@pytest.mark.parametrize("name", ["demo", "ffhq"])
def test_deployed_as_prefect_yaml_says(server, name):
    deployed = server.deployment(name)
    (schedule,) = deployed["schedules"]
    assert schedule["active"] is False
    assert schedule["parameters"] == {"existing": "extend", "retry_rejects": True}
    assert deployed["global_concurrency_limit"]["limit"] == 1
    assert deployed["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert deployed["work_pool_name"] == {"demo": "pti-cpu", "ffhq": "pti-gpu"}[name]
    assert all(p.get("description") for p in deployed["parameter_openapi_schema"]["properties"].values())


def test_two_runs_of_a_deployment_never_overlap(server, parameters):
    deployment = server.deployment("demo")["id"]
    body = {"parameters": parameters | {"preset": "noop"}, "state": {"type": "SCHEDULED"}}
    both = [server.api("POST", f"deployments/{deployment}/create_flow_run", body)["id"] for _ in range(2)]
    first, second = sorted(server.wait(both), key=lambda run: run["start_time"])
    assert first["state_type"] == second["state_type"] == "COMPLETED"
    assert first["end_time"] <= second["start_time"]


def test_a_schedule_adds_what_is_new_in_the_data_set_and_does_nothing_twice(server, parameters, pictures):
    data, out = Path(parameters["dataset"]), Path(parameters["output"])
    assert server.run("pti/demo", parameters).returncode == 0
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in out.rglob("part-*.parquet")}
    Image.fromarray(pictures[7]).save(data / "7.png")  # new
    Image.fromarray(pictures[8]).save(data / "0.png")  # changed

    deployment = server.deployment("demo")["id"]
    every = {"interval": 20, "anchor_date": datetime.now(UTC).isoformat()}
    weekly = {"existing": "extend", "retry_rejects": True}
    schedule = {"schedule": every, "active": True, "parameters": parameters | weekly}
    (created,) = server.api("POST", f"deployments/{deployment}/schedules", [schedule])
    try:
        ended = server.wait(server.scheduled(deployment, 2))
    finally:
        server.api("DELETE", f"deployments/{deployment}/schedules/{created['id']}")
    assert [run["state_type"] for run in ended] == ["COMPLETED", "COMPLETED"]
    assert ended[0]["end_time"] <= ended[1]["start_time"]

    pivots = pd.read_parquet(out / "pivots")
    assert sorted(pivots["image_id"]) == ["0.png", "0.png@2", "1.png", "2.png", "3.png", "4.png", "7.png"]
    assert len(list(out.glob("runs/*"))) == 1
    after = {path: hashlib.sha256(path.read_bytes()).digest() for path in before}
    assert after == before
    assert len(list(out.rglob("done/*.json"))) == 4
