"""What a run takes where nothing is said; apart, so that a command has it before anything large is imported."""

from __future__ import annotations

from typing import Final

DEFAULT_GENERATOR: Final = "pocket-ffhq-128"
"""A built-in one."""

SHARD_SIZE: Final = 64
"""Images in a shard."""
