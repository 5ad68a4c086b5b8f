"""Ctrl-C, SIGTERM and SIGKILL in the middle of real runs, cancelled runs, and the same again after each."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pti_core.status import run_status
from pti_core.storage.notes import read_notes
from pti_core.storage.store import Store

pytestmark = pytest.mark.slow
PTI = [sys.executable, "-m", "flows.cli"]
ROOT = Path(__file__).parents[1]
IMAGES = 6
SETTINGS = {"batch": 1, "pivot.steps": 150, "pivot.w_samples": 300, "tuning.steps": 3, "measure.z_samples": 1}
"""Parts of one image that take a second or more: time to stop in the middle of one."""


def session_members(session: int) -> list[str]:
    """Command lines of the live processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile
    return found


def alive(process: int) -> bool:
    """Whether it runs; one that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def process_of(flow_run: str) -> int:
    """The process of a flow run that a worker has started."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PREFECT__FLOW_RUN_ID={flow_run}" in environ.read_text().split("\0"):
                return int(environ.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no process of {flow_run}")


def parts(out: Path) -> dict[Path, int]:
    """The parts that are inverted, by their seals, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("metrics/**/part-*.parquet")}


def until(what: Callable[[], object], of: str, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until something is true; fails where it cannot become so."""
    for _ in range(1200):
        if what():
            return
        assert alive(), of
        time.sleep(0.1)
    pytest.fail(f"after two minutes: {of}")


def check_whole(out: Path, kept: dict[Path, int]) -> None:
    """All is done, and what was done before a stop was not done again."""
    assert {path: written for path, written in parts(out).items() if path in kept} == kept
    store = Store(str(out))
    (run,) = store.runs()
    assert store.check_complete(run) == {"manifest": IMAGES, "pivots": IMAGES, "rejects": 0}
    assert [problem for marker in store.done(run).values() for problem in store.verify(marker)] == []
    assert len(pd.read_parquet(out / "metrics")) == IMAGES * 3


@pytest.mark.parametrize(
    ("told", "anew", "which"),
    [
        (signal.SIGINT, [], "the same command"),
        (signal.SIGTERM, ["--overwrite"], "the same command without --overwrite"),
    ],
)
def test_a_command_that_is_told_to_end_does_so_and_the_same_command_goes_on(
    told, anew, which, dataset, tmp_path, tiny_checkpoint, server
):
    out = tmp_path / "out"
    command = [*PTI, "run", dataset(IMAGES), "--output", out, "--generator", tiny_checkpoint, "--preset", "demo"]
    command += ["--shard-size", "4", *(x for k, v in SETTINGS.items() for x in ("--set", f"{k}={v}"))]
    alone = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    into = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*command, *anew], cwd=ROOT, env=alone, start_new_session=True, **into)
    until(lambda: parts(out), "no part is written", lambda: process.poll() is None)
    if told == signal.SIGINT:
        os.killpg(process.pid, told)  # as a terminal does: every process of the group
    else:
        process.send_signal(told)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + told, said
    assert f"stopped; {which} goes on where it was" in said
    assert "Traceback" not in said
    assert session_members(process.pid) == []  # no server is left behind
    kept = parts(out)
    assert 0 < len(kept) < IMAGES
    store = Store(str(out))
    found = run_status(store, *store.runs())
    assert (found.state, found.failed) == ("unfinished", [])  # it was stopped, nothing went wrong
    notes = read_notes(store.files, found.run, range(found.shards))
    assert notes and {note.state for note in notes} == {"stopped"}
    done = subprocess.run(command, cwd=ROOT, env=server.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check_whole(out, kept)


def start(server, parameters) -> str:
    """Have the worker run `pti/demo`; the id of the flow run."""
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return server.api("POST", f"deployments/{server.deployment('demo')['id']}/create_flow_run", body)["id"]


def test_a_workers_run_that_is_killed_or_cancelled_ends_and_the_next_one_goes_on(
    dataset, tmp_path, tiny_checkpoint, server
):
    out, kept = tmp_path / "out", {}
    parameters = {"dataset": str(dataset(IMAGES)), "output": str(out), "generator": tiny_checkpoint}
    parameters |= {"preset": "demo", "shard_size": 4, "settings": SETTINGS}
    for how, expected in (("SIGKILL", "CRASHED"), ("cancel", "CANCELLED")):
        run = start(server, parameters)
        until(lambda kept=kept: parts(out).keys() - kept.keys(), f"no new part before {how}")
        process = process_of(run)
        if how == "SIGKILL":
            os.kill(process, signal.SIGKILL)
        else:
            server.api("POST", f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
        (ended,) = server.wait([run], 60)
        assert ended["state_type"] == expected, (how, ended["state"])
        assert not Path(f"/proc/{process}").exists(), how
        kept = parts(out)
        assert len(kept) < IMAGES
    (ended,) = server.wait([start(server, parameters)])
    assert ended["state_type"] == "COMPLETED", ended["state"]
    check_whole(out, kept)


def test_a_worker_that_is_told_to_end_has_its_runs_end(dataset, tmp_path, tiny_checkpoint, server):
    """As by `docker stop`, systemd, or Slurm, whose shells start it with SIGINT ignored."""
    out = tmp_path / "out"
    parameters = {"dataset": str(dataset(IMAGES)), "output": str(out), "generator": tiny_checkpoint}
    parameters |= {"preset": "demo", "shard_size": 4, "settings": SETTINGS}
    script = f"{sys.executable} deployments/worker.py --pool pti-gpu --limit 1 & echo $!; wait"
    shell = subprocess.Popen(["sh", "-c", script], cwd=ROOT, env=server.env, stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    worker = int(shell.stdout.readline())
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    deployment = server.deployment("ffhq")["id"]  # no other worker takes from its pool
    runs = [server.api("POST", f"deployments/{deployment}/create_flow_run", body)["id"] for _ in range(2)]
    until(lambda: parts(out), "no part is written", lambda: shell.poll() is None)
    first = next(run for run in runs if server.api("GET", f"flow_runs/{run}")["state_type"] == "RUNNING")
    process = process_of(first)
    os.kill(worker, signal.SIGTERM)
    shell.communicate(timeout=120)
    assert not alive(worker)
    assert not alive(process)
    (ended,) = server.wait([first], 60)
    assert ended["state_type"] == "CRASHED", ended["state"]
    (other,) = (run for run in runs if run != first)
    assert server.api("GET", f"flow_runs/{other}")["state_type"] in ("SCHEDULED", "PENDING")  # the worker took no more
    server.api("POST", f"flow_runs/{other}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    kept = parts(out)
    assert 0 < len(kept) < IMAGES


def test_a_run_that_is_starting_when_its_worker_is_told_to_end_has_ended_too(
    dataset, tmp_path, tiny_checkpoint, server
):
    """Its process has no way to say so yet; it would hold its deployment's place for a quarter of an hour."""
    command = [sys.executable, "deployments/worker.py", "--pool", "pti-gpu", "--limit", "1"]
    worker = subprocess.Popen(command, cwd=ROOT, env=server.env)
    parameters = {"dataset": str(dataset(1)), "output": str(tmp_path / "out"), "generator": tiny_checkpoint}
    body = {"parameters": parameters | {"preset": "noop"}, "state": {"type": "SCHEDULED"}}
    deployment = server.deployment("ffhq")["id"]
    run = server.api("POST", f"deployments/{deployment}/create_flow_run", body)["id"]

    def started() -> bool:
        with contextlib.suppress(AssertionError):
            return process_of(run) > 0
        return False

    until(started, "no process is started", lambda: worker.poll() is None)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 128 + signal.SIGTERM
    ended = server.api("GET", f"flow_runs/{run}")
    assert ended["state_type"] == "CRASHED", ended["state"]
    assert "its worker was told to end" in ended["state"]["message"]


def test_a_run_that_is_told_to_end_does_so_though_a_task_does_not_notice(dataset, tmp_path, tiny_checkpoint, server):
    out = tmp_path / "out"
    endless = {"pivot.steps": 2, "measure.z_samples": 1_000_000}  # the locality check of one image looks up at its end
    parameters = {"dataset": str(dataset(1)), "output": str(out), "generator": tiny_checkpoint}
    run = start(server, parameters | {"preset": "demo", "settings": SETTINGS | endless})
    tasks = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}

    def measuring() -> bool:
        return any(task["name"].startswith("measure") for task in server.api("POST", "task_runs/filter", tasks))

    until(measuring, "nothing is measured")
    process = process_of(run)
    os.kill(process, signal.SIGTERM)
    until(lambda: not alive(process), "it does not end")  # long before the locality check would
    (ended,) = server.wait([run], 60)
    assert ended["state_type"] == "CRASHED"


class Line:
    """A line to a server that can be cut."""

    def __init__(self, target: int) -> None:
        self.target, self.listening, self.ends = target, socket.create_server(("127.0.0.1", 0)), list[socket.socket]()
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ends = self.listening.accept()[0], socket.create_connection(("127.0.0.1", self.target))
                self.ends += ends
                for one, other in (ends, ends[::-1]):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(2**16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for end in (self.listening, *self.ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_a_server_that_is_lost_costs_no_work_and_ends_the_command_soon_with_a_sentence(
    server, dataset, tiny_checkpoint, tmp_path
):
    line, out = Line(int(server.env["PREFECT_API_URL"].rpartition(":")[2].partition("/")[0])), tmp_path / "out"
    # Prefect would ask for a minute, each time that there is something to tell.
    lost = {"PREFECT_API_URL": f"http://127.0.0.1:{line.port}/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    command = [*PTI, "run", dataset(12), "-o", out, "--generator", tiny_checkpoint, "--preset", "demo"]
    command += [f"--set={name}={value}" for name, value in SETTINGS.items()] + ["--shard-size", "1"]
    process = subprocess.Popen(
        list(map(str, command)), env=server.env | lost, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until(lambda: parts(out), "no image is done", lambda: process.poll() is None)
        line.cut()
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        line.cut()
    assert process.returncode == 1, said
    assert "the Prefect server was lost, or refuses (" in said
    assert "the same command goes on where it was" in said
    assert "Traceback" not in said
    (run,) = Store(str(out)).runs()
    assert run_status(Store(str(out)), run).state == "done"
