"""As many images at once as memory has room for."""

import ctypes
import gc
import logging
import os
import resource
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from pti_core.engine import Engine
from pti_core.machine import parallel
from pti_core.machine.device import UnfitMachine
from pti_core.machine.malloc import keep_freed_memory
from pti_core.machine.parallel import Stopped, allow_all, in_parallel, stop_all
from pti_core.machine.room import available_memory, images_at_once, peak, room_beside
from pti_core.presets import configure

MIB = 2**20
IMAGE = 100 * MIB  # more than the 64 MiB of a thread's own arena, which this thread has where malloc has failed before
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells")


def machine(root: Path, available: int, cgroup: str, **files: str) -> Path:
    """Files as the kernel shows them, under another root; `a__b` names the file a/b under sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def limits(place: str, limit: object, used: int, cached: int) -> dict[str, str]:
    return {
        f"{place}memoryDOTmax": f"{limit}\n",
        f"{place}memoryDOTcurrent": f"{used}\n",
        f"{place}memoryDOTstat": f"anon 1\nactive_file 0\ninactive_file {cached}\n",
    }


def test_a_machine_without_limits_has_what_is_available(tmp_path):
    root = machine(tmp_path, 700 * MIB, "0::/user\n", **limits("user__", "max", 3 * MIB, 0))
    assert available_memory(root) == 700 * MIB


def test_a_container_s_limit_counts_without_the_files_that_it_has_in_memory(tmp_path):
    root = machine(tmp_path, 700 * MIB, "0::/\n", **limits("", 500 * MIB, 300 * MIB, 100 * MIB))
    assert available_memory(root) == 300 * MIB


def test_the_limit_of_a_group_s_parent_counts_too(tmp_path):
    files = limits("job__step__", "max", 9 * MIB, 0) | limits("job__", 200 * MIB, 50 * MIB, 0)
    assert available_memory(machine(tmp_path, 700 * MIB, "0::/job/step\n", **files)) == 150 * MIB


def test_a_container_that_sees_the_host_s_path_and_version_1(tmp_path):
    files = {
        "memory__memoryDOTlimit_in_bytes": f"{100 * MIB}\n",
        "memory__memoryDOTusage_in_bytes": f"{40 * MIB}\n",
        "memory__memoryDOTstat": f"inactive_file 5\ntotal_active_file {4 * MIB}\ntotal_inactive_file {6 * MIB}\n",
    }
    root = machine(tmp_path, 700 * MIB, "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/\n", **files)
    assert available_memory(root) == 70 * MIB


def test_more_used_than_allowed_is_nothing_left(tmp_path):
    root = machine(tmp_path, 700 * MIB, "0::/\n", **limits("", 100 * MIB, 130 * MIB, 0))
    assert available_memory(root) == 0


def test_a_system_that_tells_nothing_sets_no_limit(tmp_path):
    assert available_memory(tmp_path) is None
    assert images_at_once(5 * MIB, None, 8) == images_at_once(None, 5 * MIB, 8) == 8


@pytest.mark.parametrize(("free", "expected"), [(0, 1), (4, 1), (12, 2), (1000, 8)])
def test_as_many_as_go_in_with_some_to_spare_and_one_in_any_case(free, expected):
    assert images_at_once(5 * MIB, free * MIB, 8) == expected


@LINUX
def test_this_machine_tells():
    assert 0 < available_memory() < 2**50


@LINUX
def test_an_address_space_that_is_limited_counts():
    code = (
        "import resource; from pti_core.machine.room import available_memory, _own;"
        "resource.setrlimit(resource.RLIMIT_AS, (_own('VmSize') + 300 * 2**20, resource.RLIM_INFINITY));"
        "print(available_memory())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(found.stdout) <= 300 * MIB
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@LINUX
def test_the_peak_is_of_the_work_alone_and_of_memory_that_earlier_work_had_given_back():
    def work(n: int) -> None:
        block = ctypes.create_string_buffer(n * MIB)
        ctypes.memset(block, 1, n * MIB)

    work(300)
    for n in (200, 80):
        grown = peak(lambda n=n: work(n))
        assert 0.9 * n * MIB < grown < 1.1 * n * MIB + 20 * MIB


@LINUX
def test_memory_is_given_back_though_another_library_has_taken_some_behind_it():
    code = """
import ctypes
from pti_core.machine.malloc import keep_freed_memory
from pti_core.machine.room import peak
def work(size):
    ctypes.memset(ctypes.create_string_buffer(size), 1, size)
keep_freed_memory()
work(300 * 2**20)
sbrk = ctypes.CDLL("libc.so.6").sbrk
sbrk.argtypes, sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
sbrk(2**16)
print(peak(lambda: work(100 * 2**20)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 90 * MIB < int(found.stdout) < 130 * MIB


@LINUX
def test_too_few_bytes_for_all_cores_are_told(tmp_path, caplog):
    root = machine(tmp_path, 3 * IMAGE, "0::/\n")
    with caplog.at_level(logging.WARNING):
        assert room_beside(lambda: ctypes.memset(ctypes.create_string_buffer(IMAGE), 1, IMAGE), 4, root) == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("2 of 4 cores work on images: one takes 0.1 GB of memory, and 0.3 GB are")


@LINUX
def test_garbage_of_earlier_work_is_no_room_for_the_first_image(tmp_path):
    keep_freed_memory()

    class Cycle:
        def __init__(self):
            self.itself, self.buffer = self, ctypes.create_string_buffer(IMAGE)
            ctypes.memset(self.buffer, 1, IMAGE)

    def first():
        gc.collect()  # as it can come at any time: what is freed now would be taken, and the process would not grow
        ctypes.memset(ctypes.create_string_buffer(IMAGE), 1, IMAGE)

    Cycle()
    assert room_beside(first, 4, machine(tmp_path, 3 * IMAGE, "0::/\n")) == 2


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_no_room_for_one_image_is_a_sentence(error):
    def work():
        raise error

    with pytest.raises(UnfitMachine, match="out of memory with one image alone; use a smaller generator"):
        room_beside(work, 4)


def test_other_errors_of_the_first_image_stay_what_they_are():
    def work():
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        room_beside(work, 4)


@pytest.fixture
def two_workers(monkeypatch):
    """The process has two workers, whatever cores the machine has; jobs that a test stopped may run again after it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.delenv(parallel.CORES, raising=False)
    parallel._pool.cache_clear()
    yield
    allow_all()
    parallel._pool.cache_clear()


def meetings(seconds):
    """A job that waits so long for another one, and gives its item; and the list of those that met."""
    barrier, met = threading.Barrier(2, timeout=seconds), []

    def job(item, check):
        check()
        with suppress(threading.BrokenBarrierError):  # nobody came, and later jobs no more wait
            barrier.wait()
            met.append(item)
        return item

    return job, met


def test_calls_that_share_room_keep_to_it(two_workers):
    def met_with(room, seconds):
        job, met = meetings(seconds)
        calls = [in_parallel(job, range(n, n + 20), torch.device("cpu"), room=room) for n in (0, 100)]
        results = [[], []]
        threads = [threading.Thread(target=lambda i=i: results[i].extend(calls[i])) for i in (0, 1)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert results == [list(range(20)), list(range(100, 120))]
        return met

    assert met_with(threading.Semaphore(1), 0.3) == []
    assert len(met_with(threading.Semaphore(2), 20)) == 40


def test_a_call_that_waits_for_room_can_be_stopped(two_workers):
    gate = threading.Semaphore(1)
    with gate:
        threading.Timer(0.3, stop_all).start()
        with pytest.raises(Stopped):
            list(in_parallel(lambda item, check: item, range(1), torch.device("cpu"), room=gate))


@LINUX
@pytest.mark.parametrize(("free", "expected"), [(0, 0), (2**40, 8)])
def test_an_engine_works_on_no_more_images_than_there_is_room_for(
    free, expected, two_workers, tiny_generator, tmp_path, monkeypatch
):
    monkeypatch.setattr("pti_core.engine.room_beside", partial(room_beside, root=machine(tmp_path, free, "0::/\n")))
    engine = Engine(tiny_generator, configure("demo", {"pivot.w_samples": 100}))
    engine.prepare()
    job, met = meetings(20 if expected else 0.3)
    assert list(engine.in_parallel(job, range(8))) == list(range(8))
    assert len(met) == expected
