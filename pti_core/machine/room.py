"""How many images a machine's memory has room for at once: what one takes is seen while the first is done alone.

A core has an image of its own, so a machine of many cores and little memory would be out of it, and the kernel ends a
process that takes more than there is: nothing in the process would see it come.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from pti_core.machine.device import UnfitMachine, reason_of
from pti_core.machine.malloc import give_back
from pti_core.machine.out_of_memory import shortage

SPARE: Final = 0.1
"""Of the free memory, what is left to others: images are decoded and tables written meanwhile."""


def room_beside(first: Callable[[], None], cores: int, root: Path = Path("/")) -> int:
    """How many images `cores` can work on at once, after `first` has shown what one takes. A warning where not all can.

    UnfitMachine where there is not memory enough for one. `root` is that of `available_memory`.
    """
    try:
        one = peak(first)
    except (RuntimeError, MemoryError) as error:
        raise too_small_for_one(error) from None
    give_back()
    free = available_memory(root)
    at_once = images_at_once(one, free, cores)
    if one and free is not None and at_once < cores:
        words = "%d of %d cores work on images: one takes %.1f GB of memory, and %.1f GB are free"
        logging.getLogger(__name__).warning(words, at_once, cores, one / 1e9, free / 1e9)
    return at_once


def too_small_for_one(error: RuntimeError | MemoryError) -> UnfitMachine:
    """What to raise where not even one image fits; an error that is not out of memory is raised again."""
    words = reason_of(shortage(error))
    advice = "use a smaller generator or more memory, or free what others hold"
    return UnfitMachine(f"out of memory with one image alone; {advice} ({words})")


def images_at_once(one: int | None, free: int | None, most: int) -> int:
    """How many images of `one` byte count each go into `free` bytes, 1 to `most`; `most` where either is unknown."""
    if not one or free is None:
        return most
    return max(1, min(most, int((1 - SPARE) * free / one)))


def peak(work: Callable[[], None]) -> int | None:
    """Do the work; by how many bytes the process' memory grew meanwhile at most, None where the kernel tells no peak.

    What earlier work has left to the process is given back first, or it would be used and not be counted; all but what
    a thread's own arena may keep (64 MiB at most, and none in a process that has only the main arena).
    """
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _own("VmRSS")
    except (OSError, ValueError):
        work()
        return None
    work()
    return max(0, _own("VmHWM") - before)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, its container (cgroup) and its `ulimit -v`.

    None where none of them is known. `root` is where /proc and /sys are.
    """
    found = [*_of_machine(root), *_of_cgroups(root), *_of_process()]
    return max(0, min(found)) if found else None


def _of_machine(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):
        yield _kilobytes(root / "proc/meminfo", "MemAvailable")


def _of_cgroups(root: Path) -> Iterator[int]:
    """What each group that has a limit leaves, version 2 and 1; a group's parents limit it too."""
    names = {
        "": ("sys/fs/cgroup", "memory.max", "memory.current", ""),
        "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    }
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in names:
                place, limit, used, prefix = names[controller]
                # In a container the path may be the host's, and what is mounted the group itself: its parents then.
                for group in (own := PurePosixPath(path.lstrip("/")), *own.parents):
                    with suppress(OSError, ValueError):  # "max" is no number: no limit
                        folder = root / place / group
                        most, now = (int((folder / name).read_text()) for name in (limit, used))
                        yield most - now + _cached(folder / "memory.stat", prefix)


def _of_process() -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):
            yield limit - _own("VmSize")


def _cached(stat: Path, prefix: str) -> int:
    """Files in memory, which the kernel drops where memory is short."""
    values = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
    return sum(int(values.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def _own(name: str) -> int:
    return _kilobytes(Path("/proc/self/status"), name)


def _kilobytes(path: Path, name: str) -> int:
    """A line `Name:  123 kB`, in bytes. ValueError where there is none."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{path} has no {name}")
