"""The same flow against a real server: work pools, deployments of prefect.yaml, a worker, `prefect deployment run`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PREFECT = [sys.executable, "-m", "prefect"]


def prefect(env, *args, timeout=240):
    return subprocess.run(
        [*PREFECT, *args], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )


def post(env, path, body):
    request = urllib.request.Request(
        f"{env['PREFECT_API_URL']}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


def stop(process):
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with the deployments of prefect.yaml and a worker for pti/demo; the environment to reach it."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    with (home / "log").open("w") as log:
        start = {"env": env, "cwd": ROOT, "stdout": log, "stderr": log}
        running = [subprocess.Popen([*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port], **start)]
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"{env['PREFECT_API_URL']}/health", timeout=2)
                    break
                except OSError:
                    time.sleep(1)
            for pool in ("pti-cpu", "pti-gpu"):
                made = prefect(env, "work-pool", "create", pool, "--type", "process", "--overwrite")
                assert made.returncode == 0, made.stderr
            deployed = prefect(env, "--no-prompt", "deploy", "--all")
            assert deployed.returncode == 0, deployed.stdout + deployed.stderr
            running.append(subprocess.Popen([*PREFECT, "worker", "start", "--pool", "pti-cpu"], **start))
            yield env
        finally:
            for process in reversed(running):
                stop(process)


def test_deployment_run_of_the_demo_ends_completed_with_tables_and_artifacts(
    server, dataset, tmp_path, tiny_checkpoint
):
    parameters = {
        "dataset": str(dataset(5)),
        "output": str(tmp_path / "out"),
        "generator": tiny_checkpoint,
        "shard_size": 2,
        "settings": json.dumps(QUICK_SETTINGS),
    }
    arguments = [arg for name, value in parameters.items() for arg in ("-p", f"{name}={value}")]
    result = prefect(server, "deployment", "run", "pti/demo", *arguments, "--watch")
    assert result.returncode == 0, result.stdout + result.stderr
    assert pd.read_parquet(tmp_path / "out/metrics")["image_id"].nunique() == 5
    assert len(list((tmp_path / "out/runs").rglob("done/*.json"))) == 3
    artifacts = {a["key"]: a for a in post(server, "artifacts/latest/filter", {})}
    stages = [row["stage"] for row in json.loads(artifacts["pti-medians"]["data"])]
    assert stages == ["pivot", "tuned", "stored"]
    assert "contact_sheet.png" in artifacts["pti-summary"]["data"]


def test_a_run_that_cannot_work_fails_with_its_sentence(server, tmp_path, tiny_checkpoint):
    arguments = [
        "-p",
        f"dataset={tmp_path}/nowhere",
        "-p",
        f"output={tmp_path}/out",
        "-p",
        f"generator={tiny_checkpoint}",
    ]
    result = prefect(server, "deployment", "run", "pti/demo", *arguments, "--watch")
    assert result.returncode == 1
    (run,) = post(server, "flow_runs/filter", {"limit": 1, "sort": "START_TIME_DESC"})
    assert "nowhere" in run["state"]["message"]


def test_deployed_as_prefect_yaml_says(server):
    deployments = {d["name"]: d for d in post(server, "deployments/filter", {})}
    (schedule,) = deployments["ffhq"]["schedules"]
    assert schedule["active"] is False
    assert deployments["ffhq"]["work_pool_name"] == "pti-gpu"
    described = deployments["demo"]["parameter_openapi_schema"]["properties"]
    assert all(p.get("description") for p in described.values())
