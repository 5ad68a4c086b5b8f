"""The server on a real Postgres, as in deployments/: migrations, a deployment's run, a schedule, many tasks at once."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS
from prefect_server import free_port, prefect_server

from tasks.page import key_of

pytestmark = pytest.mark.slow
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
# Postgres refuses to run as root; Debian's package makes this user.
OTHER_USER = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


class Postgres:
    """A cluster in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.binaries = folder, free_port(), BINARIES[-1].parent
        self.url = f"postgresql+asyncpg://prefect@127.0.0.1:{self.port}/postgres"

    def command(self, name, *arguments):
        done = subprocess.run(
            [self.binaries / name, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            **OTHER_USER,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self):
        self.command("initdb", "-D", "data", "-U", "prefect", "-A", "trust", "-E", "UTF8")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        # Its own log: a pipe that the server inherits would never end.
        self.command("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def query(self, sql):
        return self.command("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "prefect", "-Atc", sql, "postgres")


@pytest.fixture(scope="module")
def postgres():
    if not BINARIES:
        pytest.skip("no Postgres here; Debian and Ubuntu: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pti-postgres-"))  # pytest's own folders are closed to other users
    try:
        if OTHER_USER:
            shutil.chown(folder, "postgres", "postgres")
        database = Postgres(folder)
        database.start()
        try:
            yield database
        finally:
            database.command("pg_ctl", "-D", "data", "-m", "fast", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home, PREFECT_API_DATABASE_CONNECTION_URL=postgres.url) as running:
        yield running


def test_a_deployment_runs_through_a_server_on_postgres(server, postgres, dataset, tmp_path, tiny_checkpoint):
    parameters = {
        "dataset": str(dataset(4)),
        "output": str(tmp_path / "out"),
        "generator": tiny_checkpoint,
        "shard_size": 2,
        "settings": QUICK_SETTINGS,
    }
    result = server.run("pti/demo", parameters)
    assert result.returncode == 0, result.stdout + result.stderr
    assert pd.read_parquet(tmp_path / "out/metrics")["image_id"].nunique() == 4
    name = "pti-demo-" + Path(parameters["dataset"]).name
    assert postgres.query(f"select state_type from flow_run where name = '{name}'").split() == ["COMPLETED"]
    kept = postgres.query("select key from artifact where key is not null order by key").split()
    of_data_set = [key_of(what, parameters["dataset"]) for what in ("pti-contact-sheet", "pti-medians", "pti-summary")]
    assert sorted(kept) == sorted([*of_data_set, "pti-progress"])


def test_many_tasks_at_once_and_a_schedule_leave_no_error_in_the_servers_log(
    server, postgres, dataset, tmp_path, tiny_checkpoint
):
    parameters = {
        "dataset": str(dataset(12)),
        "output": str(tmp_path / "out"),
        "generator": tiny_checkpoint,
        "preset": "noop",
        "shard_size": 1,
        "workers": 4,
    }
    deployment = server.deployment("demo")["id"]
    schedule = {"schedule": {"cron": "* * * * *"}, "active": True, "parameters": parameters}
    (created,) = server.api("POST", f"deployments/{deployment}/schedules", [schedule])
    try:
        (ended,) = server.wait(server.scheduled(deployment, 1))
    finally:
        server.api("DELETE", f"deployments/{deployment}/schedules/{created['id']}")
    assert ended["state_type"] == "COMPLETED"
    # Freeze, 12 times invert and measure, publish; the server records them a little after they have ended.
    done = f"select count(*) from task_run where state_type = 'COMPLETED' and flow_run_id = '{ended['id']}'"
    until = time.monotonic() + 60
    while (count := int(postgres.query(done))) < 26 and time.monotonic() < until:
        time.sleep(1)
    assert count == 26
    log = server.log.read_text()
    assert "Traceback" not in log, log[-3000:]
