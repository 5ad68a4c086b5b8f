"""What may go wrong with an output, each in one sentence that says what to do and gives no credentials away."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Final

import pyarrow

from pti_core.names import file_in_the_way

_DAMAGE: Final = re.compile(r"thrift|parquet|page header|end of stream|corrupt|decompress", re.IGNORECASE)
_DAMAGED_FILE: Final = re.compile(r".*Could not open Parquet input source '([^']*)': ")
"""What pyarrow says of a Parquet file that is not as it was written; of one whose end is, it does not say which."""


class StoreError(RuntimeError):
    """An output that cannot be used or does not hold together; the message names it, never its credentials."""


class MissingFile(StoreError):
    """A file that is not there."""


class DamagedFile(StoreError):
    """A file that is there, but not as it was written."""


class OutputRefused(StoreError):
    """An output that takes nothing: full, read-only, or access denied. No other try helps until a person has helped."""


def explanation(error: Exception, text: str, doing: str, name: str, base: str, local: bool) -> StoreError:
    """What a file system raised, as a StoreError of the output `name`, whose files lie below `base`.

    `text`: the error's words, without secrets; `doing`: what could not be done, such as `read`.
    """
    sentence = f"output {name!r} cannot be {doing}: {_reason(error, ' '.join(text.split()), doing, base, local)}"
    if _is_refusal(error, doing, local):
        return OutputRefused(f"{sentence}. With this output the same run goes on where it was")
    return (DamagedFile if _is_damage(error, text) else StoreError)(sentence)


def _is_refusal(error: Exception, doing: str, local: bool) -> bool:
    if isinstance(error, PermissionError):
        return not (local and doing == "read")  # on a disk that may be one file's
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return full or "NoCredentials" in type(error).__name__


def _is_damage(error: Exception, text: str) -> bool:
    return isinstance(error, pyarrow.ArrowInvalid | OSError) and _DAMAGE.search(text) is not None


def _reason(error: Exception, text: str, doing: str, base: str, local: bool) -> str:
    kind = type(error).__name__
    if isinstance(error, ImportError):
        return f"a package for this protocol is missing ({text})"
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        way_out = "choose another output" if doing == "written" else "check the address"
        place = Path(error.filename) if local and error.filename else Path(base)
        return file_in_the_way(place, way_out) or f"{base!r} is no folder that takes files; {way_out}"
    if isinstance(error, FileNotFoundError) and doing == "read":
        return "a file of it is gone; if another process does the run anew, wait for its end, and try it again"
    if isinstance(error, FileNotFoundError) and not local:
        return "the bucket does not exist; create it or choose another output"
    if isinstance(error, PermissionError):
        return f"access denied ({text}); check the permissions and credentials"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENOENT):
        return "this place is read-only or takes no new folders; make it writable or choose another output"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space is left; free some or choose another output"
    if "Credentials" in kind:
        return "no credentials are found; set them in the environment"
    if any(word in kind for word in ("Connect", "Timeout", "DNS")):
        return f"no connection ({text or 'no answer in time'}); check the address and the network"
    if _is_damage(error, text):
        found = _DAMAGED_FILE.match(text)
        which = f"file {found[1].removeprefix(base).lstrip('/')!r}" if found else "a Parquet file"
        reason = text[found.end() :] if found else text
        return f"{which} is damaged ({reason}); `pti check` finds it, and the command that made it does it again"
    return f"{kind}: {text}; check the address and credentials"
