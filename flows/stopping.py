"""Ctrl-C and SIGTERM: end within ten seconds. What is computed is in the store, and no file there is ever half.

What is being computed is given up at its next step, a part that is computed is written; the next run does the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import httpx
from prefect.exceptions import TerminationSignal

WRITING: Final = 4.0
"""Seconds for computed parts, and what `pti status` tells of their shards, to be written."""

TELLING: Final = 4.0
"""Seconds for tasks to notice, and for the server to be told."""

_take_over: Callable[[], None] | None = None  # of a command that ends at once; see `stop_at_once`


@contextlib.contextmanager
def stop_at_once(say: Callable[[str], None], again: str = "the same command") -> Iterator[None]:
    """For a command in a terminal: while this lasts, SIGINT and SIGTERM end the process with 130 and 143.

    `again`: what goes on where it was.

    Prefect would wait for its tasks, with a server that the same Ctrl-C has ended: its own ending takes minutes. So it
    does where a server is lost, to tell it of each task; the process then ends with 1.
    """
    global _take_over

    def stop(number: int, frame: FrameType | None) -> None:
        say(f"stopped; {again} goes on where it was")
        give_up()
        _tell_server(signal.Signals(number).name)
        _end_ephemeral_server()
        os._exit(128 + number)

    def take_over() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    take_over()
    _take_over = take_over
    try:
        yield
    except httpx.HTTPError as error:
        lost = f"the Prefect server was lost, or refuses ({error})"
        say(f"{lost}; what is computed is in the store, and {again} goes on where it was")
        give_up()
        _end_ephemeral_server()
        os._exit(1)
    finally:
        _take_over = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def end_when_told() -> Iterator[None]:
    """Around the work of a flow, within all that waits for tasks: when it is told to end, its tasks end too.

    Prefect raises TerminationSignal in the main thread for SIGTERM (also where a run is cancelled), Python
    KeyboardInterrupt for Ctrl-C; whoever holds the tasks would then wait for the end of their shards.
    """
    from pti_core.machine.parallel import allow_all

    if _take_over is not None and threading.current_thread() is threading.main_thread():
        _take_over()  # Prefect has set a handler of its own meanwhile
    allow_all()  # a run before this one, in the same process, may have been stopped
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        give_up()
        if isinstance(error, TerminationSignal):
            # Prefect now tells the server how the run ended. Tasks that do not notice must not hold the process, nor
            # a server that does not answer. (After Ctrl-C the process, maybe a notebook's, may have more to do.)
            watchdog = threading.Timer(TELLING, os._exit, (128 + signal.SIGTERM,))
            watchdog.daemon = True
            watchdog.start()
        raise


@contextlib.contextmanager
def jobs_allowed_again() -> Iterator[None]:
    """Around a flow's work: who goes on in this process after it has been given up (a notebook) may compute again."""
    from pti_core.machine.parallel import allow_all

    try:
        yield
    finally:
        allow_all()


def give_up() -> None:
    """Stop all jobs of this process at their next step; wait for parts that are computed, and notes, to be written."""
    from pti_core.machine.overlap import finish_writes
    from pti_core.machine.parallel import stop_all
    from pti_core.storage.notes import stop_all_notes

    end = time.monotonic() + WRITING
    noted = stop_all_notes()  # first: a shard whose jobs have stopped is no more in work
    stop_all()
    time.sleep(0.2)  # a part that has just been computed goes to its writer
    finish_writes(end - time.monotonic())
    noted(max(0.5, end - time.monotonic()))


def _tell_server(why: str) -> None:
    """Let a server that is there to stay know that this run has ended; it would show it as running for ever."""
    from prefect.context import FlowRunContext
    from prefect.settings import PREFECT_API_URL

    context = FlowRunContext.get()
    if not PREFECT_API_URL.value() or context is None or context.flow_run is None:
        return
    teller = threading.Thread(target=_set_state, args=(context.flow_run.id, why), daemon=True)
    teller.start()
    teller.join(TELLING)


def _set_state(flow_run: Any, why: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run, Cancelled(message=f"stopped by {why}"), force=True)


def _end_ephemeral_server() -> None:
    """End the server that Prefect may have started for this process; it would outlive a process that just exits."""
    with contextlib.suppress(Exception):
        from prefect.server.api.server import SubprocessASGIServer

        for server in list(SubprocessASGIServer._instances.values()):
            process = server.server_process
            if process is not None:
                process.kill()
