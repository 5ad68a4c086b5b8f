"""Dask and Ray clusters of two workers on this machine, each worker with one `slot`, for tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prefect_server import free_port

ROOT = Path(__file__).parents[1]
_RAY = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "resources": {"slot": 1}}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
cluster.add_node(**node)
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass
class Workers:
    """A cluster: its address, and the logs of the processes that do tasks."""

    runner: str
    address: str
    logs: Path
    scheduler: subprocess.Popen[bytes] | None = None
    pids: dict[str, int] = field(default_factory=dict)  # of Dask's workers, by their logs' names

    def at_work(self) -> dict[str, str]:
        """Which task each process has begun and not finished, by its log. Fails where one has two."""
        found = {}
        for log in self.logs.glob("worker-*"):
            text = log.read_text(errors="replace")
            for name, state in re.findall(r"Task run '(\w+-\d+)' - (shard \d+: 0\.0 of|Finished)", text):
                if state == "Finished":
                    found.pop(log.name, None)
                else:
                    assert found.get(log.name) in (None, name), f"{log.name}: {name} beside {found[log.name]}"
                    found[log.name] = name
        return found

    def processes(self) -> int:
        """Processes that have done tasks."""
        return sum("Task run" in log.read_text(errors="replace") for log in self.logs.glob("worker-*.err"))

    def kill_one(self) -> None:
        """SIGKILL a process in the middle of a task."""
        log = sorted(self.at_work())[0]
        os.kill(self.pids.get(log) or int(log.removesuffix(".err").rpartition("-")[2]), signal.SIGKILL)


@contextlib.contextmanager
def dask_cluster(folder: Path, env: Mapping[str, str]) -> Iterator[Workers]:
    """A scheduler and two workers, each a process with one thread."""
    address, dask, running = f"tcp://127.0.0.1:{free_port()}", [sys.executable, "-m", "dask"], []

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (folder / name).open("wb") as log:
            running.append(subprocess.Popen([*dask, *arguments], env=env, cwd=ROOT, stdout=log, stderr=log))
        return running[-1]

    try:
        port = address.rpartition(":")[2]
        scheduler = start("scheduler.err", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--resources", "slot=1"]
        names = ["worker-1.err", "worker-2.err"]
        pids = {name: start(name, "worker", address, *options, "--local-directory", str(folder)).pid for name in names}
        for name in names:
            _until_logged(folder / name, "Starting established connection")
        yield Workers("dask", address, folder, scheduler, pids)
    finally:
        _end(running)


@contextlib.contextmanager
def ray_cluster(folder: Path, env: Mapping[str, str]) -> Iterator[Workers]:
    """A head and another node, each with one CPU."""
    with tempfile.TemporaryDirectory(prefix="pti-ray-") as short:  # Ray has sockets there: their paths are short
        with (folder / "cluster.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _RAY],
                env={**env, "RAY_TMPDIR": short, "RAY_DISABLE_IMPORT_WARNING": "1"},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        try:
            _until_logged(folder / "cluster.log", r"^address ")
            address = re.findall(r"^address (\S+)", (folder / "cluster.log").read_text(), re.MULTILINE)[0]
            (logs,) = Path(short).glob("**/session_2*/logs")
            yield Workers("ray", address, logs)
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=30)  # closes its input
            _end([process])


def _until_logged(log: Path, pattern: str) -> None:
    for _ in range(600):
        if re.search(pattern, log.read_text(), re.MULTILINE):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{log.name}: {log.read_text()[-2000:]}")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        process.kill()
        process.wait()
