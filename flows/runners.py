"""Where tasks run: threads of this process, a Dask or a Ray cluster; and the window of shards in flight."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.options import RunnerError, check_runner
from flows.stopping import jobs_allowed_again
from pti_core.machine.parallel import CORES, available_cores
from tasks.tries import ShardsLeft

RunnerName = Literal["threads", "dask", "ray"]

CONNECT: Final = 10.0
"""Seconds for a cluster to answer, also where the connection was lost."""

LOOK_UP: Final = 1.0
"""Seconds after which whoever waits for a task looks up."""

ASK_EVERY: Final = 2.0
"""Seconds between two questions for the size of a cluster."""

SEE_ALL_GPUS: Final = {f"RAY_EXPERIMENTAL_NOSET_{maker}_VISIBLE_DEVICES": "1" for maker in ("CUDA", "HIP")}
"""For processes of Ray's workers. They stay from task to task, and a task can be given another GPU than the last one.

Ray says which by CUDA_VISIBLE_DEVICES, which CUDA reads once in a process: two processes could end on one GPU, and
another idle. So all see all of a node's, and each task takes what it is given (`tasks.placement`); where that is
another than before, which is rare, the process loads its generator anew.
"""


class Runner:
    """A started task runner, and how many tasks it can take."""

    def __init__(
        self,
        tasks: TaskRunner[Any],
        name: str,
        room: Callable[[], int],
        options: Callable[[], AbstractContextManager[Any]] = nullcontext,
        most: int | None = None,
        cancel: Callable[[Any], object] = lambda future: future.cancel(),
    ) -> None:
        """`room()`: tasks that can run at once; `options()`: around a submission; `most` tasks at all in flight.

        `cancel`: how the runner's own futures are cancelled.
        """
        self._tasks, self._name, self._room, self._options, self._most = tasks, name, room, options, most
        self._cancel = cancel
        self._known, self._asked = 0, -math.inf

    def window(self) -> int:
        """Tasks to have in flight: those that can run now, and half as many that wait for their turn.

        The cluster is asked again and again, since it may grow and shrink. Raises RunnerError where it is gone.
        """
        if time.monotonic() - self._asked > ASK_EVERY:
            with self._there():
                self._known = self._room()
            self._asked = time.monotonic()
        running = max(1, self._known)
        window = running + math.ceil(running / 2)
        return window if self._most is None else min(window, self._most)

    def doubt(self) -> None:
        """A task has failed: the next `window` finds out whether the cluster is still there."""
        self._asked = -math.inf

    def submit(self, task: Task[..., Any], parameters: dict[str, Any]) -> PrefectFuture[Any]:
        """Start a task. Raises RunnerError where the cluster is gone."""
        with self._there(), self._options():
            return self._tasks.submit(task, parameters)

    def cancel(self, future: PrefectFuture[Any]) -> None:
        """Nobody waits for this task any more; one that waits for its turn does not start."""
        with suppress(Exception):  # a cluster that is gone has nothing to cancel
            self._cancel(future.wrapped_future)  # type: ignore[attr-defined] # all these runners' futures have it

    @contextmanager
    def _there(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise RunnerError(
                f"{self._name} is gone ({_text(error)}); the same run again finishes what is left"
            ) from error


@contextmanager
def started(
    name: RunnerName,
    workers: int | None = None,
    address: str | None = None,
    resources: Mapping[str, float] | None = None,
) -> Iterator[Runner]:
    """Connect to a cluster, or make a pool of threads.

    `workers`: tasks at work at the same time; 1, or all that the cluster has room for, where it is None. A pool of
    threads has half as many more, which read what is next while the others compute.
    `resources`: what a task takes of its worker, such as `{"GPU": 1}`. Raises RunnerError.
    """
    check_runner(name, address, resources)
    with jobs_allowed_again():  # once the pool has ended: it waits for its tasks, which may have been given up
        if name == "threads":
            count = workers or 1
            pool: Any = ThreadPoolTaskRunner(max_workers=count + math.ceil(count / 2))  # its types know only coroutines
            with pool as tasks:
                yield Runner(tasks, "the pool of threads", lambda: count)
            return
        with (_dask if name == "dask" else _ray)(address, dict(resources or {}), workers) as runner:
            yield runner


@contextmanager
def _dask(address: str | None, resources: dict[str, float], workers: int | None) -> Iterator[Runner]:
    try:
        from dask.base import annotate
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise RunnerError("runner 'dask': install it with `pip install '.[dask]'` in the project's folder") from error

    def room() -> int:
        found = tasks.client.scheduler_info(n_workers=-1)
        if "workers" not in found:
            raise ConnectionError("its scheduler does not answer")
        return sum(_fits(worker["resources"], resources, worker["nthreads"]) for worker in found["workers"].values())

    # A temporary cluster has a process for each worker, with one thread.
    share = max(1, available_cores() // (workers or available_cores()))
    cluster: dict[str, Any] = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    cluster["env"] = {CORES: str(share)}  # of this machine, which they share
    runner = DaskTaskRunner(
        address=address, cluster_kwargs=None if address else cluster, client_kwargs={"timeout": CONNECT}
    )
    with ExitStack() as stack:
        with _reached("Dask scheduler", address):
            tasks = stack.enter_context(runner)
            found = room()
        if address and not workers:
            _check_room(found, "Dask cluster", address, resources)
        options = (lambda: annotate(resources=resources)) if resources else nullcontext
        yield Runner(tasks, f"the Dask cluster {address or ''}".strip(), room, options, workers if address else None)


@contextmanager
def _ray(address: str | None, resources: dict[str, float], workers: int | None) -> Iterator[Runner]:
    try:
        import ray
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise RunnerError("runner 'ray': install it with `pip install '.[ray]'` in the project's folder") from error
    # Each of a temporary cluster's workers has its share of this machine's cores; of another cluster's, a core a task.
    share = 1 if address or not workers else max(1, available_cores() // workers)
    wanted, options = ray_options(resources, share)

    def room() -> int:
        return sum(_fits(node["Resources"], wanted, 1) for node in ray.nodes() if node["Alive"])

    # What workers log goes to the server and to Ray's own logs, not also into this terminal.
    own: dict[str, Any] = {} if address else {"num_cpus": workers and workers * share, "include_dashboard": False}
    runner = RayTaskRunner(address=address, init_kwargs={"log_to_driver": False, **own})
    with ExitStack() as stack:
        # Ray sends its token to no address that is named, unless it is told to.
        hint = "" if os.environ.get("RAY_AUTH_MODE") else "; one that wants a token needs RAY_AUTH_MODE=token here too"
        with _reached("Ray cluster", address, hint), _signals_kept():
            if address and (place := urlsplit(address if "://" in address else f"//{address}")).port:
                socket.create_connection((place.hostname, place.port), CONNECT).close()  # Ray itself tries for minutes
            tasks = stack.enter_context(runner)
        if address and not workers:
            _check_room(room(), "Ray cluster", address, resources)
        most = workers if address else None
        name = f"the Ray cluster {address or ''}".strip()
        yield Runner(tasks, name, room, lambda: remote_options(**options), most, ray.cancel)


def ray_options(resources: Mapping[str, float], cores: int = 1) -> tuple[dict[str, float], dict[str, Any]]:
    """What a task takes of a node (`cores` where nothing else is said), and Ray's options for it."""
    wanted = {"CPU": 0.0 if resources else float(cores), **resources}
    # A process stays for the next task and keeps its generator (`max_calls=0`; with GPUs Ray would start a new one).
    options: dict[str, Any] = {"max_calls": 0, "num_cpus": wanted["CPU"]}
    if "GPU" in wanted:
        options |= {"num_gpus": wanted["GPU"], "runtime_env": {"env_vars": SEE_ALL_GPUS}}
    options |= {"resources": {k: v for k, v in wanted.items() if k not in ("CPU", "GPU")}}
    return wanted, options


def _fits(has: Mapping[str, float], wanted: Mapping[str, float], otherwise: int) -> int:
    """How many tasks a worker has room for."""
    counts = [int(has.get(name, 0) // amount) for name, amount in wanted.items() if amount]
    return min(counts, default=otherwise)


def _check_room(found: int, what: str, address: str, resources: Mapping[str, float]) -> None:
    """RunnerError where no worker could ever take a task: it would wait for ever, and nobody be told."""
    if not found:
        asked = f" with {', '.join(f'{name}={amount:g}' for name, amount in resources.items())}" if resources else ""
        raise RunnerError(
            f"{what} {address}: no worker{asked} is there; start some, or say how many there will be: workers"
        )


@contextmanager
def _reached(what: str, address: str | None, hint: str = "") -> Iterator[None]:
    """One sentence where a cluster does not answer, or cannot be started."""
    try:
        yield
    except Exception as error:
        if address is None:
            raise RunnerError(f"no temporary {what} could be started here: {_text(error)}") from error
        raise RunnerError(
            f"no {what} answers at {address} ({_text(error)}); check the address and that it runs{hint}"
        ) from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets a handler for SIGTERM of its own; Prefect's is needed to cancel a run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _text(error: BaseException) -> str:
    """The first line of a message."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def in_window(
    runner: Runner,
    steps: Sequence[Task[..., Any]],
    chunks: Iterable[Any],
    parameters: Callable[[int, Any], dict[str, Any]],
) -> Generator[tuple[Any, Any, Exception | None], None, None]:
    """Take each chunk through the steps, each a task, a window of chunks at a time; each is asked for when it begins.

    `parameters(step, content)` are those of a chunk's next task: `content` is the chunk at first, then what the task
    before returned. Yields, as they end, each chunk with what its last task returned and None, or with what it failed
    of. What a task with ShardsLeft has done goes on to the next step, or is yielded with it. Memory does not grow with
    the chunks' number. Where it is closed or ended, what has not started yet never does. RunnerError where the cluster
    is gone.
    """
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    at_work: dict[Any, tuple[int, Any, PrefectFuture[Any]]] = {}  # by task run: which step of which chunk
    waiting = iter(chunks)

    def start(step: int, chunk: Any, content: Any) -> None:
        future = runner.submit(steps[step], parameters(step, content))
        at_work[future.task_run_id] = (step, chunk, future)  # a cluster forgets a task whose future nobody holds
        future.add_done_callback(ended.put)

    def fill() -> None:
        while len(at_work) < runner.window():
            chunk = next(waiting, None)
            if chunk is None:
                return
            start(0, chunk, chunk)

    try:
        fill()
        while at_work:
            step, chunk, future = at_work.pop(_next(ended).task_run_id)
            result, error = _outcome(future)
            if error is not None:
                runner.doubt()
            goes_on = step + 1 < len(steps) and (error is None or bool(result))
            if goes_on:
                start(step + 1, chunk, result)
            if error is not None or not goes_on:
                yield chunk, None if goes_on else result, error
            fill()
    except RunnerError:  # nobody is there to be told
        raise
    except BaseException:  # closed, or told to end (TerminationSignal, Ctrl-C, a place that is lost)
        for _, _, left in at_work.values():
            runner.cancel(left)
        raise


def _next(ended: SimpleQueue[PrefectFuture[Any]]) -> PrefectFuture[Any]:
    """The next future that has ended, looking up now and then.

    How Prefect ends a run whose place is lost, an exception set in this thread, does not arrive in one that only waits.
    """
    while True:
        with suppress(Empty):
            return ended.get(timeout=LOOK_UP)


def _outcome(future: PrefectFuture[Any]) -> tuple[Any, Exception | None]:
    try:
        return future.result(), None
    except ShardsLeft as error:
        return error.done, error
    except Exception as error:  # of the task, or of the cluster: a worker that died too often
        return None, error
