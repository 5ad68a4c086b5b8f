"""A real Prefect server with the deployments of prefect.yaml and a worker for `pti/demo`, for tests."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PREFECT = [sys.executable, "-m", "prefect"]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A running server: `env` is what a command needs to reach it."""

    env: dict[str, str]
    log: Path

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `prefect ...` in the root of the project."""
        return subprocess.run(
            [*PREFECT, *arguments],
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def run(self, deployment: str, parameters: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """`prefect deployment run ... --watch`, as a person would."""
        given = [x for k, v in parameters.items() for x in ("-p", f"{k}={v if isinstance(v, str) else json.dumps(v)}")]
        return self.command("deployment", "run", deployment, *given, "--watch")

    def refused(self, deployment: str, parameters: dict[str, Any]) -> str:
        """Why a deployment run of these parameters failed; it is asserted that it did."""
        result = self.run(deployment, parameters)
        assert result.returncode == 1, result.stdout + result.stderr
        query = {"flows": {"name": {"any_": [deployment.partition("/")[0]]}}, "sort": "START_TIME_DESC", "limit": 1}
        (run,) = self.api("POST", "flow_runs/filter", query)
        return str(run["state"]["message"])

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One request to the API; its answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.env['PREFECT_API_URL']}/{path}", data, {"Content-Type": "application/json"}, method=method
        )
        for pause in (1, 2, 4, 8, None):  # SQLite under load answers 503; Prefect's own client tries again, too
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.loads(response.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or pause is None:
                    raise
                time.sleep(pause)

    def deployment(self, name: str) -> dict[str, Any]:
        return self.api("GET", f"deployments/name/pti/{name}")

    def flow_runs(self, **where: Any) -> list[dict[str, Any]]:
        """Flow runs by conditions of the API's filter, oldest start first."""
        return self.api("POST", "flow_runs/filter", {"flow_runs": where, "sort": "START_TIME_ASC"})

    def scheduled(self, deployment: str, count: int) -> list[str]:
        """The ids of the first runs that a deployment's schedules have made, by the time that they are for."""
        where = {"deployment_id": {"any_": [deployment]}, "tags": {"all_": ["auto-scheduled"]}}
        query = {"flow_runs": where, "sort": "EXPECTED_START_TIME_ASC", "limit": count}
        until = time.monotonic() + 120
        while len(found := self.api("POST", "flow_runs/filter", query)) < count:
            assert time.monotonic() < until, f"{len(found)} of {count} runs scheduled"
            time.sleep(1)
        return [run["id"] for run in found]

    def logs(self, flow_run: str) -> list[dict[str, Any]]:
        """What a flow run and its tasks have logged."""
        asked = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
        return list(self.api("POST", "logs/filter", asked))

    def artifacts(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """The artifacts of a flow run by key. Fails where a key is there twice."""
        where = {"artifacts": {"flow_run_id": {"any_": [flow_run]}, "key": {"exists_": True}}}
        found = self.api("POST", "artifacts/filter", where)
        by_key = {artifact["key"]: artifact for artifact in found}
        assert len(by_key) == len(found), [artifact["key"] for artifact in found]
        return by_key

    def wait(self, ids: list[str], seconds: float = 240) -> list[dict[str, Any]]:
        """The flow runs once all have ended, in the order of `ids`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            runs = [self.api("GET", f"flow_runs/{id_}") for id_ in ids]
            if all(run["state_type"] in ENDED for run in runs):
                return runs
            time.sleep(1)
        raise TimeoutError(f"after {seconds:.0f} s: {[(run['name'], run['state']['name']) for run in runs]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_healthy(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(180):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, urllib.error.URLError):
            if server.api("GET", "health") is True:
                return
        time.sleep(1)
    raise RuntimeError(f"the server did not start: {server.log.read_text()[-3000:]}")


@contextlib.contextmanager
def prefect_server(home: Path, **settings: str) -> Iterator[Server]:
    """Start a server, make the work pools, deploy, start a worker for `pti-cpu`; stop all at the end."""
    port = free_port()
    # Importing the `pti` command in another test has quietened Prefect in this process.
    quiet = ("PREFECT_LOGGING_LEVEL", "PREFECT_LOGGING_SERVER_LEVEL")
    env = {name: value for name, value in os.environ.items() if name not in quiet} | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Answers within seconds, where a minute would do in earnest.
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
        "DO_NOT_TRACK": "1",
        **settings,
    }
    server, running = Server(env, home / "log"), []
    with server.log.open("wb") as log:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            running.append(subprocess.Popen([*PREFECT, *arguments], env=env, cwd=ROOT, stdout=log, stderr=log))
            return running[-1]

        try:
            _wait_until_healthy(server, start("server", "start", "--host", "127.0.0.1", "--port", str(port)))
            for pool in ("pti-cpu", "pti-gpu"):
                made = server.command("work-pool", "create", pool, "--type", "process", "--overwrite")
                assert made.returncode == 0, made.stderr
            deployed = server.command("--no-prompt", "deploy", "--all")
            assert deployed.returncode == 0, deployed.stdout + deployed.stderr
            start("worker", "start", "--pool", "pti-cpu")
            yield server
        finally:
            for process in reversed(running):
                _stop(process)
