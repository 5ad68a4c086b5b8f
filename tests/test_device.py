"""Which device is chosen, and what is said of one that cannot be used."""

import os
import subprocess
import sys

import pytest
import torch

from pti_core.machine.device import UnfitMachine, best_device, check_alive
from pti_core.machine.out_of_memory import halved, is_out_of_memory, shortage


def test_the_environment_names_a_device(monkeypatch):
    monkeypatch.setenv("PTI_DEVICE", "cpu")
    assert best_device() == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU")
@pytest.mark.parametrize("device", ["cuda:1", "nonsense", "cpu:x"])
def test_a_device_that_cannot_be_used_is_a_sentence_and_never_the_cpu_instead(monkeypatch, device):
    monkeypatch.setenv("PTI_DEVICE", device)
    sentence = rf"^PTI_DEVICE '{device}' cannot be used \(.+\); PTI_DEVICE=cpu uses the CPU$"
    with pytest.raises(UnfitMachine, match=sentence):
        best_device()


UNSEEN = """
import logging
from pathlib import Path
from pti_core.machine import device
logging.basicConfig(format="%(message)s")
device.DRIVER = Path({driver!r})
assert device.best_device() == device.best_device() == "cpu"
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="without a GPU")
@pytest.mark.parametrize(
    ("gpus", "environment", "warnings"),
    [
        (["0000:01:00.0"], {}, 1),
        ([], {}, 0),
        (["0"], {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (["0"], {"PTI_DEVICE": "cpu"}, 0),
    ],
)
def test_a_gpu_that_the_driver_sees_and_torch_does_not_is_worth_a_warning(tmp_path, gpus, environment, warnings):
    for gpu in gpus:
        (tmp_path / gpu).mkdir()
    unset = {name: value for name, value in os.environ.items() if name not in ("PTI_DEVICE", "CUDA_VISIBLE_DEVICES")}
    code = UNSEEN.format(driver=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=unset | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has a GPU of NVIDIA that torch") == warnings


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_a_device_that_has_failed_makes_the_machine_unfit_and_not_each_shard_in_turn():
    check_alive("cpu")
    with pytest.raises(UnfitMachine, match=r"device 'cuda' has failed \(.*\); start the worker or the command again"):
        check_alive("cuda")


EXACT = """
import multiprocessing, sys, torch
from pti_core.machine.device import exact_float32
def older():
    # what older programs read; None where torch refuses to say
    found = {}
    for name, read in {
        "cudnn": lambda: torch.backends.cudnn.allow_tf32,
        "cublas": lambda: torch.backends.cuda.matmul.allow_tf32,
        "products": torch.get_float32_matmul_precision,
    }.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = None
    return found
def shown():
    places = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    return [place.fp32_precision for place in places], older()
def look(chosen):
    exec(chosen)
    before = shown()
    with exact_float32(torch.device("cpu")):
        assert shown() == before
    with exact_float32(torch.device("cuda")):
        newer, inside = shown()
        assert "tf32" not in newer, (chosen, newer)
        unsaid = [name for name, value in inside.items() if value is None]
        assert all(before[1][name] is None for name in unsaid), (chosen, before, inside)
        exact = {"cudnn": False, "cublas": False, "products": "highest"}
        assert all(inside[name] == exact[name] for name in exact if name not in unsaid), (chosen, inside)
    assert shown() == before, (chosen, before, shown())
    try:
        with exact_float32(torch.device("cuda")):
            raise KeyError
    except KeyError:
        pass
    assert shown() == before, (chosen, before, shown())
for chosen in sys.argv[1:]:  # each in a process of its own: the settings depend on what was set before
    one = multiprocessing.get_context("fork").Process(target=look, args=(chosen,))
    one.start()
    one.join()
    assert one.exitcode == 0, chosen
"""
CHOICES = (
    "",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize("override", ["0", "1"])  # NVIDIA's containers set it
def test_products_are_exact_for_a_while_on_nvidia_s_gpus_whatever_has_been_chosen(override):
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": override}
    done = subprocess.run([sys.executable, "-c", EXACT, *CHOICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ON_A_GPU = """
import torch
from torch.nn import functional as F
from pti_core.machine.device import exact_float32
def flags():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
def off(work, *tensors):
    there = work(*(t.cuda() for t in tensors)).cpu().double()
    exact = work(*(t.double() for t in tensors))
    return float((there - exact).norm() / exact.norm())
x, weight, matrix = torch.randn(2, 64, 33, 33), torch.randn(64, 64, 3, 3), torch.randn(512, 512)
works = {
    "conv2d": (F.conv2d, x, weight),
    "conv_transpose2d": (lambda a, b: F.conv_transpose2d(a, b, stride=2), x, weight),
    "matmul": (torch.matmul, matrix, matrix.flip(0)),
}
before = flags()
print("as torch rounds:", {name: off(*work) for name, work in works.items()})
with exact_float32(torch.device("cuda")):
    found = {name: off(*work) for name, work in works.items()}
assert max(found.values()) < 1e-5, found
assert flags() == before
try:
    with exact_float32(torch.device("cuda")):
        raise KeyError
except KeyError:
    assert flags() == before
print("exact:", found)
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="without a GPU of NVIDIA")
def test_a_gpu_s_products_are_as_exact_as_a_cpu_s_where_they_are_asked_to_be():
    """In a process of its own, with what torch chooses by itself."""
    done = subprocess.run([sys.executable, "-c", ON_A_GPU], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
        "Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false.",
        "numel needs to be smaller than int32_t max; otherwise, please use packed_accessor64",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_the_words_of_memory_that_is_short(words):
    assert is_out_of_memory(RuntimeError(words))
    with pytest.raises(RuntimeError) as raised:
        raise RuntimeError(words)
    assert shortage(raised.value) is raised.value
    assert raised.value.__traceback__ is None


def test_other_errors_are_raised_again():
    error = RuntimeError("expected scalar type Half but found Float")
    with pytest.raises(RuntimeError, match="expected scalar type") as raised:
        shortage(error)
    assert raised.value is error


def test_what_does_not_fit_is_done_with_half_as_many_at_once() -> None:
    tried: list[int] = []

    def call(at_once: int) -> str:
        tried.append(at_once)
        if at_once > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert halved(call, 9, torch.device("cpu")) == ("done", 2)
    assert tried == [9, 4, 2]

    def never(at_once: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        halved(never, 4, torch.device("cpu"))

    def wrong(at_once: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        halved(wrong, 4, torch.device("cpu"))
