"""What is out of memory, how it is told, and half as much at once where it is."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

_SHORT = (  # in the messages of torch and of its libraries
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",  # of the CUDA driver, where another process has filled the device
    "ALLOC_FAILED",  # of cuBLAS and cuDNN
    "ALLOCATION_FAILED",  # of cuDNN 9, on the device and on the host
    "NOT_INITIALIZED when calling `cublasCreate",  # where torch itself has taken all of the device
    "INTERNAL_ERROR, when calling `cusolverDnCreate",
    "unable to find an engine",  # of cuDNN, where no way to convolve has got the memory it works in
    "canUse32BitIndexMath",  # of CUDA kernels that count in 32 bits: too many numbers in one tensor, half as many fit
    "smaller than int32_t max",
)
_kept: list[Callable[[], object]] = []  # what drops it


def is_out_of_memory(error: BaseException) -> bool:
    """True for an allocation that failed: where torch says so, or raises a plain RuntimeError of such words.

    Also for a tensor of more numbers than a kernel can count, which a GPU's memory may have room for.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT)


def shortage(error: RuntimeError | MemoryError) -> RuntimeError | MemoryError:
    """An error that is out of memory, without its traceback, whose frames hold tensors; any other is raised again."""
    if not is_out_of_memory(error):
        raise error
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def drop_when_short(drop: Callable[[], object]) -> None:
    """`drop` is called where memory is to be freed: by a module that keeps tensors between images."""
    _kept.append(drop)


def free_memory(device: torch.device) -> None:
    """Give back what no tensor holds any more, and what is only kept to be quick, before another try."""
    for drop in _kept:
        drop()
    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):  # or torch would set up the first GPU as well, which may be full
            torch.cuda.empty_cache()


def halved(call: Callable[[int], Result], at_once: int, device: torch.device) -> tuple[Result, int]:
    """`call(at_once)`, and again with half as many at once as long as they do not fit into memory; and how many fitted.

    Raises what is out of memory with one alone, and any other error.
    """
    while True:
        try:
            return call(at_once), at_once
        except (RuntimeError, MemoryError) as error:
            short = shortage(error)
        if at_once == 1:
            raise short
        free_memory(device)  # only here: the error held the frames of what failed, and they their tensors
        at_once //= 2
