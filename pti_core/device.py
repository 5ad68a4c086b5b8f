"""Which device the work is done on."""

from __future__ import annotations

import torch


def best_device() -> str:
    """The accelerator that torch finds here (a GPU: `cuda`, `xpu`), or the CPU.

    One without float64, in which bases and deltas are computed, is left alone (Apple's, some of Intel's).
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return "cpu"
    try:
        torch.ones(2, dtype=torch.float64, device=found).sum().item()
    except (RuntimeError, TypeError):
        return "cpu"
    return found.type
