"""Which device the work is done on."""

from __future__ import annotations

import torch


def best_device() -> str:
    """The accelerator that torch finds here (a GPU: `cuda`, `xpu`), or the CPU.

    Apple's is left alone: it has no float64, in which bases and deltas are computed.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None or found.type == "mps" else found.type
