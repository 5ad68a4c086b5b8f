"""Which of a node's GPUs and how many of its cores a task works on, where its cluster says so."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from pti_core.machine.device import use_device
from pti_core.machine.out_of_memory import free_memory
from pti_core.machine.parallel import use_cores
from pti_core.runs import forget_engine


def use_own_share() -> None:
    """In a worker of Ray, work on the GPU and on as many cores as this task has been given; anywhere else as before."""
    if cores := given_cores():
        use_cores(cores)
    index = given_gpu()
    if index is not None and torch.cuda.is_available():
        now = f"cuda:{index}"
        before = use_device(now)
        if before != now:
            forget_engine()  # what it holds on another GPU is somebody else's room now
            if before is not None:
                free_memory(torch.device(before))


def given_cores() -> int:
    """How many cores this task has of its node; 0 where nothing gives them out.

    Without this each of a node's tasks would use all cores, and as much memory.
    """
    context = _ray_task()
    return 0 if context is None else int(context.get_assigned_resources().get("CPU", 0))


def given_gpu() -> int | None:
    """The number of this task's GPU among those that the process sees; None where nothing gives one out."""
    context = _ray_task()
    given = None if context is None else context.get_accelerator_ids().get("GPU")
    if not given:
        return None
    visible = os.environ.get("HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES")
    return visible.split(",").index(given[0]) if visible else int(given[0])


def _ray_task() -> Any:
    """What Ray knows of the task at work in this process; None in any other process."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context if context.worker.mode == ray.WORKER_MODE else None
