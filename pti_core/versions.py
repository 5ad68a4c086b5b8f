"""With what a run, and each of its parts, was made."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Final

import torch

from pti_core import __version__

VERSIONS: Final = ("torch", "lpips", "prefect", "pyarrow", "pandas", "numpy", "pillow", "zstandard")


def versions() -> dict[str, str]:
    """Of Python, this program and its libraries, for `config.json`."""
    found = {name: importlib.metadata.version(name) for name in VERSIONS}
    return {"python": platform.python_version(), "pti": __version__} | found


def made_with(device: torch.device) -> dict[str, str]:
    """What the numbers of a part may depend on beside its settings: device, GPU, and versions; for its seal."""
    made = {"device": device.type, "pti": __version__, "torch": importlib.metadata.version("torch")}
    return made | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})
