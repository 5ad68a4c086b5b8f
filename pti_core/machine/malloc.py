"""Freed memory, kept in the process or given back: on a CPU, page faults can cost more than the arithmetic."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from contextlib import suppress
from typing import ClassVar

from pti_core.once import once

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # malloc.h
TOP_PAD = 256 * 2**20


@once()
def keep_freed_memory() -> bool:
    """Tell glibc's malloc not to return large blocks to the kernel; True where that was possible.

    By default it maps every large block afresh and unmaps it when freed, so each training step pays for zeroed
    pages again. At 1024 a step then takes 1.6 times as long, at 128 about as long (`benchmarks/steps.py`). Does nothing
    on other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # One arena: the others, which threads would get, give back memory all the same.
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD), (M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)


def give_back() -> None:
    """Give freed memory back to the system; glibc only (`keep_freed_memory` keeps it)."""
    gc.collect()  # or what it freed later would be taken again, and not be seen
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.malloc_trim(0)
            _empty_top(libc)


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in (*"abcdefghi", "keepcost")]


def _empty_top(libc: ctypes.CDLL) -> None:
    """Give back the pages of the heap's last free block; it stays, without memory behind it.

    `malloc_trim` shortens the heap by it, but can not where another library has taken what lies behind the heap.
    """
    libc.mallinfo2.restype, libc.malloc.restype = _Mallinfo, ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page, size = mmap.PAGESIZE, libc.mallinfo2().keepcost - mmap.PAGESIZE
    if size < 2 * page or not (block := libc.malloc(size)):
        return
    start = -(-block // page) * page
    libc.madvise(start, (block + size - start) // page * page, mmap.MADV_DONTNEED)
    libc.free(block)
