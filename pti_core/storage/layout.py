"""Where things lie below a store's root, and what a run may be called."""

from __future__ import annotations

import re
from typing import Final

from pti_core.storage.files import StoreError

RUN_ID_DIGITS: Final = 12
CLEARING: Final = "clearing"
"""A file in a run's folder while it is removed: its config, which goes first, is not lost."""


def run_id(digest: str) -> str:
    """The default name of a run: the first 12 hex digits of its config digest that do not read as a number.

    pandas and others guess the type of a partition column from its values: `run=000000000012` becomes 12 in pandas,
    `123456789012` and `1e5000000000` are numbers to other readers. For those, fewer than one digest in a hundred, the
    window moves on to the first 12 neighbouring digits that read as text. (pandas shows `run` as a categorical of
    str, `Store.read` as str.)
    """
    for start in range(len(digest) - RUN_ID_DIGITS + 1):
        candidate = digest[start : start + RUN_ID_DIGITS]
        if not _is_number(candidate):
            return candidate
    raise StoreError(f"digest {digest!r}: at least {RUN_ID_DIGITS} hex digits expected, not all of them decimal")


def checked(run: str) -> str:
    """A run's name, if it can be a folder on every file system and is no number to any reader."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run) or _is_number(run):
        rule = "letters, digits, '.', '_' and '-' expected, beginning with a letter or digit, and not a number"
        raise StoreError(f"run {run!r}: {rule}; choose another name")
    return run


def _is_number(text: str) -> bool:
    try:
        float(text)  # also "1e5", "nan" and "inf"
    except ValueError:
        return False
    return True


def shard_folder(table: str, run: str, shard: int) -> str:
    """The folder of a shard's parts of a table."""
    return f"{table}/run={checked(run)}/shard={shard:05d}"


def marker_path(run: str, shard: int) -> str:
    """The file that says that a shard is done."""
    return f"runs/{checked(run)}/done/{shard:05d}.json"
