"""A Prefect worker that can be stopped: `python deployments/worker.py --pool pti-gpu --type process --limit 1`.

Prefect's own kills its runs when it is told to end (SIGTERM: `docker stop`, systemd, a job of Slurm whose time is
over), and the server is told nothing: such a run is shown as *Running*, and holds its deployment's place. This one has
the worker take no more runs, tells each run to end, which writes down what it has and says so to the server, and ends
the worker after that. Arguments are those of `prefect worker start`. Only on Linux; nothing but Python is needed.
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

PATIENCE = 90  # seconds that runs have to end: a part in the making is given up long before


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
    for run in children(worker.pid):
        _send(run, signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while children(worker.pid) and time.monotonic() < end:
        time.sleep(0.2)
    for run in children(worker.pid):
        _send(run, signal.SIGKILL)
    worker.kill()
    worker.wait()
    return 128 + signal.SIGTERM


def _send(process: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, what)


if __name__ == "__main__":
    sys.exit(main())
