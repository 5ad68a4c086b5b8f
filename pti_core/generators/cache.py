"""Where generators that were fetched, and encoders that were trained, are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

FETCHABLE_NAMES = ("mobile-ffhq",)


def cache_folder() -> Path:
    """The user's cache folder, or `PTI_CACHE` of the environment."""
    return Path(os.environ.get("PTI_CACHE") or platformdirs.user_cache_path("pti")) / "generators"


def encoder_folder() -> Path:
    """Beside it, the folder of the encoders that were trained on this machine."""
    return cache_folder().with_name("encoders")


def cached(name: str) -> Path:
    """The file of a fetchable generator; there only after `fetch.fetch`."""
    return cache_folder() / f"{name}.safetensors"
