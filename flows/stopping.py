"""Ctrl-C in `pti run`: stop at once. What is finished is in the store, and no file there is ever half."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

GRACE = 1.0  # seconds for jobs to notice


@contextlib.contextmanager
def stop_at_once(say: Callable[[str], None]) -> Iterator[None]:
    """While this lasts, SIGINT ends the process with 130.

    Prefect would wait for its tasks, with a server that the same Ctrl-C has ended: its own ending takes minutes.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        from pti_core.parallel import stop_all

        stop_all()
        say("stopped; the same command goes on where it was")
        time.sleep(GRACE)
        _end_ephemeral_server()
        os._exit(128 + number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_ephemeral_server() -> None:
    """End the server that Prefect may have started for this process; it would outlive a process that just exits."""
    with contextlib.suppress(Exception):
        from prefect.server.api.server import SubprocessASGIServer

        for server in list(SubprocessASGIServer._instances.values()):
            process = server.server_process
            if process is not None:
                process.kill()
