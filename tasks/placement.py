"""Which of a node's GPUs a task works on, where its cluster says so."""

from __future__ import annotations

import gc
import os
import sys

import torch

from pti_core.device import use_device
from pti_core.runs import forget_engine


def use_own_gpu() -> None:
    """In a worker of Ray, work on the GPU that this task has been given; anywhere else as before."""
    index = given_gpu()
    if index is not None and torch.cuda.is_available() and use_device(f"cuda:{index}"):
        forget_engine()  # what it holds on another GPU is somebody else's room now
        gc.collect()
        torch.cuda.empty_cache()


def given_gpu() -> int | None:
    """The number of this task's GPU among those that the process sees; None where nothing gives one out."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or (context := ray.get_runtime_context()).worker.mode != ray.WORKER_MODE:
        return None
    given = context.get_accelerator_ids().get("GPU")
    if not given:
        return None
    visible = os.environ.get("HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES")
    return visible.split(",").index(given[0]) if visible else int(given[0])
