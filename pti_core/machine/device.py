"""Which device the work is done on, and how exactly."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from pti_core.machine.out_of_memory import is_out_of_memory
from pti_core.once import once

CHOICE = "PTI_DEVICE"
"""Environment variable that names a device as torch does: `cpu`, `cuda:1`."""

DRIVER: Final = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver tells of its GPUs, whatever torch sees."""

_given: str | None = None


class UnfitMachine(RuntimeError):
    """No image can be inverted on this machine as it is: its device cannot be used, or its memory is too small."""


def use_device(device: str | None) -> str | None:
    """Work on this device from now on, unless the environment names one; for a process that is told which is its own.

    Returns the one that it was told of before; None for the first.
    """
    global _given
    before, _given = _given, device
    return before


def best_device() -> str:
    """The device that `PTI_DEVICE` names; else the accelerator that torch finds (a GPU: `cuda`, `xpu`), or the CPU.

    One without float64, in which bases and deltas are computed, is left alone (Apple's, some of Intel's). Raises
    UnfitMachine where a device that is named or found cannot be used: nobody would want a CPU to do its work instead.
    Warns where torch finds none and the driver does.
    """
    if named := os.environ.get(CHOICE):
        if not _adds_doubles(named, f"{CHOICE} {named!r}"):
            raise UnfitMachine(f"{CHOICE} {named!r} has no float64, which is needed; {CHOICE}=cpu uses the CPU")
        return named
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        _warn_of_unused()
        return "cpu"
    device = _given or found.type
    return device if _adds_doubles(device, f"device {device!r}") else "cpu"


def reason_of(error: BaseException) -> str:
    """The first line of what an error says: torch and its libraries may say pages."""
    return str(error).strip().split("\n")[0][:150]


@once()
def _warn_of_unused() -> None:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")
    there = False
    with suppress(OSError):
        there = any(DRIVER.iterdir())
    if there and not hidden:
        logging.getLogger(__name__).warning(
            "this machine has a GPU of NVIDIA that torch %s does not see, so the CPU does the work: nvidia-smi tells "
            "whether its driver works; some builds of torch are for CPUs only, and a container or job has the GPU only "
            "if it was started with it; %s=cpu ends this warning",
            torch.__version__,
            CHOICE,
        )


def seconds_since(start: float, device: torch.device) -> float:
    """Seconds since a `perf_counter`, once the device has done all that it was told; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


@once(keep=16)
def _adds_doubles(device: str, what: str) -> bool:
    """Whether it has float64. UnfitMachine with a sentence where it cannot be used at all."""
    try:
        torch.ones(2, dtype=torch.float64, device=device).sum().item()
    except TypeError:
        return False
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        if any(word in str(error) for word in ("float64", "fp64")):
            return False
        reason = reason_of(error)
        raise UnfitMachine(f"{what} cannot be used ({reason}); {CHOICE}=cpu uses the CPU") from error
    return True


def check_alive(device: str) -> None:
    """After an error: UnfitMachine where the device does nothing any more, as a GPU after a fault.

    Until the process ends another try would fail like the last one, and so would all other images.
    """
    try:
        torch.ones(2, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):  # also where another process has filled it, which is no error of torch's own
            return
        reason = reason_of(error)
        raise UnfitMachine(f"device {device!r} has failed ({reason}); start the worker or the command again") from error


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products in float32 on NVIDIA's GPUs too, where factors may be rounded to TF32's 10 bits.

    By default cuDNN rounds them, and cuBLAS where the environment says so (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, as in
    NVIDIA's containers). For measures, deltas and bases; losses are as good with the quick ones. It is a setting of the
    process, whose shards take turns on a GPU.
    """
    if device.type != "cuda":
        yield
        return
    rounding = [(choose, found, exact) for read, choose, exact in _roundings() if (found := _read(read)) in _COARSE]
    for choose, _, exact in rounding:
        choose(exact)
    try:
        yield
    finally:
        for choose, found, _ in reversed(rounding):
            choose(found)


_COARSE: Final = (True, "tf32", "high", "medium")
_Setting = tuple[Callable[[], Any], Callable[[Any], None], Any]


def _roundings() -> Iterator[_Setting]:
    """What rounds factors, of cuDNN and cuBLAS: how to read it, how to choose it, and what rounds nothing.

    By the names that torch has had for long, and where it has them (since 2.9) by the newer ones too: those alone end a
    rounding that was chosen for all of torch. Where only the newer were set, torch would raise as soon as somebody
    reads the older.
    """

    def of(place: Any, name: str, exact: Any) -> _Setting:
        return partial(getattr, place, name), partial(setattr, place, name), exact

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    yield of(cudnn, "allow_tf32", False)
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    if hasattr(torch.backends, "fp32_precision"):
        for place in (cudnn.conv, cudnn.rnn, matmul):  # type: ignore[attr-defined]
            yield of(place, "fp32_precision", "ieee")


def _read(setting: Callable[[], Any]) -> Any:
    """What is chosen; None where torch refuses to say, since somebody has chosen something else by the newer names."""
    try:
        return setting()
    except RuntimeError:
        return None
