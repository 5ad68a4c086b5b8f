"""The inputs of a part as targets; what cannot be read or decoded as rows of the rejects table."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, TypeVar

import torch

from pti_core import images
from pti_core.connections import LARGEST, OutOfResources, TooLarge, too_large
from pti_core.datasets import DatasetError, scan
from pti_core.inversions import Target
from pti_core.reading import read_bytes
from pti_core.runs import Run
from pti_core.tables import Row

Item = TypeVar("Item")

_AGAIN: Final = "`--retry-rejects` (retry_rejects=true) tries it again"
_PROBES: Final = 3  # other inputs, of each kind, that are tried where none of a part can be read
_KEPT: Final = 100  # of a listing, to try some of them later

MISSING: Final = FileNotFoundError.__name__
"""The `error` of a reject whose file was not there."""

MISSING_TRIES: Final = 3
"""So often a file that is not there is looked for: by the run, and by each one that tries rejects again."""

MOST_TRIES: Final = 10
"""So often an image is tried that fails for another passing reason."""

_listed: dict[tuple[str, str], list[str]] = {}  # inputs that data sets had when this process listed them


class InputsUnreadable(OSError):
    """Inputs cannot be read, and are not at fault: the data set is away, or this machine is out of something."""


@dataclass
class Inputs:
    """What was read."""

    targets: list[Target] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)  # of the targets' files, by image_id
    rejects: list[dict[str, Any]] = field(default_factory=list)
    unread: int = 0  # of the rejects: files that could not be read, for a reason that may pass


def read_inputs(run: Run, rows: Sequence[Row], resolution: int, tries: Mapping[str, int]) -> Inputs:
    """Read and decode the inputs of manifest rows. `tries`: how often an image was tried before, by image_id.

    Raises InputsUnreadable where this machine cannot read now, whatever the image.
    """
    found = Inputs()
    for row in rows:
        before = tries.get(row["image_id"], 0)
        try:
            if (row["bytes"] or 0) > LARGEST:
                raise TooLarge(f"image {row['image_id']!r}: {too_large(row['bytes'])}")
            one = run.read_input(row["uri"], row["image_id"], resolution)
        except images.ImageError as error:
            found.rejects.append(reject(row, "decode", type(error).__name__, str(error), True, before))
        except OutOfResources as error:
            raise InputsUnreadable(f"data set {run.dataset!r}: {error}; then run the same command again") from error
        except OSError as error:
            final = isinstance(error, TooLarge)
            message = str(error) if final else f"{error}; {_AGAIN}"
            kind = MISSING if isinstance(error, FileNotFoundError) else type(error).__name__
            found.rejects.append(reject(row, "read", kind, message, final, before))
            found.unread += not final
        except MemoryError:
            message = f"image_id {row['image_id']!r}: not enough memory to decode it; {_AGAIN}"
            found.rejects.append(reject(row, "decode", "MemoryError", message, False, before))
        else:
            found.sha256[row["image_id"]] = one.sha256
            image = torch.from_numpy(images.to_float(one.pixels[None]))[0]
            found.targets.append(Target(row["image_id"], row["group"], image))
    return found


def check_not_all_unreadable(run: Run, rows: Sequence[Row], found: Inputs) -> None:
    """Raise InputsUnreadable where none of a part's inputs could be read, and the data set seems to be away.

    A missing mount or bucket must not turn a data set into rejects; files that are gone while others are there are
    rejects, though they may have a part to themselves.
    """
    tried = _unreadable(run, rows, found)
    if tried is None:
        return
    first = found.rejects[0]
    none = f"none of {tried} images can be read" if tried > 1 else "it cannot be read"
    raise InputsUnreadable(
        f"data set {run.dataset!r}: {none}, the first with {first['error']}: "
        f"{first['message'].removesuffix(f'; {_AGAIN}')}; check that it is there, then run the same command again"
    )


def seems_away(run: Run, rows: Sequence[Row], found: Inputs) -> bool:
    """Whether none of these manifest rows could be read, and the data set seems to be away."""
    return _unreadable(run, rows, found) is not None


def _unreadable(run: Run, rows: Sequence[Row], found: Inputs) -> int | None:
    """How many images were tried in vain where the data set seems to be away; None where it seems to be there.

    It is there where any of a few other inputs can be read: some of all, then some of the last shard, since old files
    may be deleted by rule; and where the inputs are missing, rather than out of reach, some that it lists now.
    """
    if found.targets or found.unread < len(found.rejects):
        return None
    own = {row["uri"] for row in rows}
    others = (uri for uri in run.manifest.drawn(_PROBES + len(own)) if uri not in own)
    probes = list(islice(others, _PROBES))  # by chance: a part that met dead links alone asks others when it is retried
    last = (row["uri"] for row in run.manifest.shard(run.manifest.shards - 1))
    probes += _drawn(uri for uri in last if uri not in own | set(probes))
    if _any_is_read(probes):
        return None
    if all(row["error"] == MISSING for row in found.rejects) and _any_listed_is_read(run):
        return None
    return len(own) + len(probes)


def _any_is_read(uris: Iterable[str]) -> bool:
    for uri in uris:
        with suppress(OSError):
            read_bytes(uri)
            return True
    return False


def _any_listed_is_read(run: Run) -> bool:
    """Whether the data set lists inputs of which some can be read; they need not be the run's.

    Listed once a process, as long as what it listed can be read: a million names take a while.
    """
    key = (run.dataset, run.store.root)
    if _any_is_read(_drawn(_listed.get(key, ()))):
        return True
    try:
        found = scan(run.dataset, without=run.store.root)["uri"]
    except DatasetError:
        return False
    _listed[key] = [found[i].as_py() for i in _drawn(range(len(found)), _KEPT)]
    return _any_is_read(_drawn(_listed[key]))


def _drawn(among: Iterable[Item], most: int = _PROBES) -> list[Item]:
    """A few of them, by chance."""
    there = among if isinstance(among, Sequence) else list(among)
    return random.SystemRandom().sample(there, min(most, len(there)))


def reject(row: Row, stage: str, error: str, message: str, permanent: bool, before: int = 0) -> dict[str, Any]:
    """A row of the rejects table; `before`: how often the image was tried before.

    What failed for a passing reason is permanent, too, once it has been tried often enough.
    """
    attempts = before + 1
    if not permanent and attempts >= (MISSING_TRIES if error == MISSING else MOST_TRIES):
        permanent, back = True, "`--extend` (existing=extend) appends it once it is there"
        if error != MISSING:
            back = "`--overwrite` (existing=overwrite) does, and `--extend` where its file is another"
        message = f"{message.removesuffix(f'; {_AGAIN}')}; tried {attempts} times, and not again: {back}"
    return {
        "image_id": row["image_id"],
        "uri": row["uri"],
        "stage": stage,
        "error": error,
        "message": message,
        "permanent": permanent,
        "attempts": attempts,
    }
