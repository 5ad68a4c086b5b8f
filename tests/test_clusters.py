"""The flow on real clusters of two workers: counted resources, killed workers, a scheduler that is lost."""

import ast
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from clusters import ROOT, Workers, dask_cluster, ray_cluster
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.runners import RunnerError, started
from pti_core.storage.store import Store

pytestmark = pytest.mark.slow
IMAGES = 8
SETTINGS = {"batch": 1, "pivot.steps": 60, "pivot.w_samples": 300, "tuning.steps": 3, "measure.z_samples": 1}


@pytest.fixture(scope="module", params=[dask_cluster, ray_cluster], ids=["dask", "ray"])
def cluster(request, server, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("cluster"), server.env) as workers:
        yield workers


@pytest.fixture
def begin(dataset, tmp_path, tiny_checkpoint, server):
    """A function that starts `pti run` with more options."""
    command = [sys.executable, "-m", "flows.cli", "run", dataset(IMAGES), "--output", tmp_path / "out"]
    command += ["--generator", tiny_checkpoint, "--preset", "demo", "--shard-size", "2"]
    command += [x for k, v in SETTINGS.items() for x in ("--set", f"{k}={v}")]

    def run(*options: str) -> subprocess.Popen[str]:
        into = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*command, *options], cwd=ROOT, env=server.env, **into)

    return run


def on(cluster: Workers) -> list[str]:
    return ["--runner", cluster.runner, "--address", cluster.address, "--resource", "slot=1"]


def parts(out: Path) -> dict[Path, int]:
    """The parts that are inverted, by their seals, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("metrics/**/part-*.parquet")}


def until_a_part_is_there(out: Path, process: subprocess.Popen[str], cluster: Workers) -> None:
    while not (parts(out) and cluster.at_work()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def check_whole(out: Path, kept: dict[Path, int]) -> None:
    """All is done, and what was done before was not done again."""
    assert {path: written for path, written in parts(out).items() if path in kept} == kept
    store = Store(str(out))
    (run,) = store.runs()
    assert store.check_complete(run) == {"manifest": IMAGES, "pivots": IMAGES, "rejects": 0}
    assert [problem for marker in store.done(run).values() for problem in store.verify(marker)] == []
    assert len(store.done(run)) == IMAGES // 2


def test_the_window_is_what_the_cluster_has_room_for_and_half_as_many(cluster, server):
    handler = signal.getsignal(signal.SIGTERM)
    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        for resources, workers, window in (({"slot": 1}, None, 3), ({"slot": 0.5}, None, 6), ({"slot": 1}, 1, 1)):
            with started(cluster.runner, workers, cluster.address, resources) as runner:
                assert runner.window() == window
                assert signal.getsignal(signal.SIGTERM) is handler  # Prefect's, in a flow that can be cancelled
        with (
            pytest.raises(RunnerError, match=r"no worker with GPU=1 is there"),
            started(cluster.runner, None, cluster.address, {"GPU": 1}),
        ):
            pass


def test_one_task_a_slot_and_a_killed_worker_costs_its_part_only(cluster, begin, tmp_path):
    process = begin(*on(cluster))
    until_a_part_is_there(tmp_path / "out", process, cluster)
    kept = parts(tmp_path / "out")
    cluster.kill_one()
    while process.poll() is None:
        cluster.at_work()  # never two tasks in one process
        time.sleep(0.2)
    assert process.returncode == 0, process.communicate()[0]
    check_whole(tmp_path / "out", kept)
    # Processes stay for the next task: two for eight tasks, and one more where Ray has replaced what was killed.
    assert 2 <= cluster.processes() <= 3


@pytest.mark.parametrize("cluster", [dask_cluster], ids=["dask"], indirect=True)
def test_a_scheduler_that_is_lost_ends_the_run_with_a_sentence_and_the_next_one_goes_on(cluster, begin, tmp_path):
    process = begin(*on(cluster))  # on the worker that is left
    until_a_part_is_there(tmp_path / "out", process, cluster)
    cluster.scheduler.kill()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "is gone" in said
    assert "Traceback" not in said
    kept = parts(tmp_path / "out")
    again = begin()
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    check_whole(tmp_path / "out", kept)


GPUS = """
import os, time
import ray
from flows.runners import ray_options
from pti_core.machine.parallel import available_cores
from tasks.placement import given_gpu, use_own_share

assert given_gpu() is None
ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
assert given_gpu() is None  # no worker
use_own_share()
assert available_cores() == len(os.sched_getaffinity(0))

def cores():
    use_own_share()
    return available_cores()

assert ray.get(ray.remote(**ray_options({})[1])(cores).remote()) == 1  # all tasks of a node together have all cores
_, options = ray_options({"GPU": 1})

def work(seconds):
    time.sleep(seconds)
    return os.getpid(), given_gpu(), os.environ.get("CUDA_VISIBLE_DEVICES")

def other(seconds):
    return work(seconds)

kinds = [ray.remote(**options)(work), ray.remote(**options)(other)]
for turn in range(12):  # with lulls in which both GPUs are given back
    found = ray.get([kinds[(turn + i) % 2].remote(0.1 + 0.1 * i * (turn % 3)) for i in range(2)])
    print(*found, sep=";", flush=True)
    time.sleep(0.1 + 1.2 * (turn % 2))
"""


def test_two_tasks_of_a_node_never_share_a_gpu_though_their_processes_stay(tmp_path):
    """Ray only counts GPUs, so these need not be there."""
    with tempfile.TemporaryDirectory(prefix="pti-ray-") as short:
        env = {**os.environ, "RAY_TMPDIR": short, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", GPUS], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    turns = [[ast.literal_eval(one) for one in line.split(";")] for line in done.stdout.splitlines()]
    assert len(turns) == 12
    assert len({pid for turn in turns for pid, _, _ in turn}) == 2
    assert all({gpu for _, gpu, _ in turn} == {0, 1} for turn in turns)
    assert {visible for turn in turns for _, _, visible in turn} == {os.environ.get("CUDA_VISIBLE_DEVICES")}
