"""A Prefect worker that can be stopped: `python deployments/worker.py --pool pti-gpu --type process --limit 1`.

Prefect's own kills its runs when it is told to end (SIGTERM: `docker stop`, systemd with KillMode=mixed, a job of Slurm
whose time is over), and the server is told nothing: such a run is shown as *Running*, and holds its deployment's place.
This one has the worker take no more runs, tells each run to end, which writes down what it has and says so to the
server, and ends the worker after that. A run that cannot say so, since it was only starting or did not end in time, is
*Crashed* then. Arguments are those of `prefect worker start`. Only on Linux.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

PATIENCE = 90  # seconds that runs have to end: a part in the making is given up long before
TELLING = 20  # seconds for the server to be told how they ended
HELD = ("PENDING", "RUNNING", "CANCELLING")  # states in which a run holds its deployment's place


def children(parent: int) -> list[int]:
    """The processes that a process has started and that still work."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, of = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # gone meanwhile
            continue
        if int(of) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return found


def run_of(process: int) -> str | None:
    """The id of the flow run that a process was started for."""
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == b"PREFECT__FLOW_RUN_ID":
                return value.decode()
    return None


def tell_of(run: str) -> None:
    """Have the server know that a run has ended, where it has not said so itself: it would hold its place."""
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    ended = Crashed(message="its worker was told to end; the same run again goes on where this one was")
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(run)).state
            if state is None or state.type.value in HELD:
                client.set_flow_run_state(UUID(run), ended, force=True)
    except Exception as error:
        print(f"the server could not be told that run {run} has ended: {error}", file=sys.stderr)


def main() -> int:
    """Start the worker with this program's arguments; its exit status, or 143 after it was told to end."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    worker = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]], start_new_session=True
    )
    while not told.wait(0.5):
        if worker.poll() is not None:
            return worker.returncode
    worker.send_signal(signal.SIGSTOP)  # or it would take the next run
    runs = {process: run_of(process) for process in children(worker.pid)}
    for process in runs:
        _send(process, signal.SIGTERM)
    end, tellers = time.monotonic() + PATIENCE, list[threading.Thread]()
    while runs:
        time.sleep(0.2)
        at_work = set(children(worker.pid))
        for process in [process for process in runs if process not in at_work]:
            # At once: a run that is taken up again, by another worker, is not to be told of.
            if run := runs.pop(process):
                tellers.append(threading.Thread(target=tell_of, args=(run,), daemon=True))
                tellers[-1].start()
        if time.monotonic() > end:
            for process in runs:
                _send(process, signal.SIGKILL)
    worker.kill()
    worker.wait()
    end = time.monotonic() + TELLING
    for teller in tellers:
        teller.join(max(0.0, end - time.monotonic()))
    return 128 + signal.SIGTERM


def _send(process: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, what)


if __name__ == "__main__":
    sys.exit(main())
