"""The inputs of a part as targets; what cannot be read or decoded as rows of the rejects table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import torch

from pti_core import images
from pti_core.connections import LARGEST, OutOfResources, TooLarge, too_large
from pti_core.datasets import read_bytes
from pti_core.inversions import Target
from pti_core.runs import Run
from pti_core.tables import Row

_AGAIN: Final = "`--retry-rejects` (retry_rejects=true) tries it again"
_PROBES: Final = 3  # inputs of other parts that are tried where none of a part can be read


class InputsUnreadable(OSError):
    """Inputs cannot be read, and are not at fault: the data set is away, or this machine is out of something."""


@dataclass
class Inputs:
    """What was read."""

    targets: list[Target] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)  # of the targets' files, by image_id
    rejects: list[dict[str, Any]] = field(default_factory=list)


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
            found.rejects.append(reject(row, "read", type(error).__name__, message, final, before))
        except MemoryError:
            message = f"image_id {row['image_id']!r}: not enough memory to decode it; {_AGAIN}"
            found.rejects.append(reject(row, "decode", "MemoryError", message, False, before))
        else:
            found.sha256[row["image_id"]] = one.sha256
            image = torch.from_numpy(images.to_float(one.pixels[None]))[0]
            found.targets.append(Target(row["image_id"], row["group"], image))
    return found


def check_not_all_unreadable(run: Run, rows: Sequence[Row], found: Inputs) -> None:
    """Raise InputsUnreadable where none of a part's inputs could be read, nor any of a few others of the run.

    A missing mount or bucket must not turn a data set into rejects; a dead link that has a part to itself is one.
    """
    if found.targets or any(row["stage"] != "read" or row["permanent"] for row in found.rejects):
        return
    own = {row["uri"] for row in rows}
    others = (uri for uri in run.manifest.drawn(_PROBES + len(own)) if uri not in own)
    probes = list(islice(others, _PROBES))  # by chance: a part that met dead links alone asks others when it is retried
    for uri in probes:
        try:
            read_bytes(uri)
        except OSError:
            continue
        return
    first = found.rejects[0]
    tried = f"none of {len(rows) + len(probes)} images can be read" if len(own) > 1 or probes else "it cannot be read"
    raise InputsUnreadable(
        f"data set {run.dataset!r}: {tried}, the first with {first['error']}: "
        f"{first['message'].removesuffix(f'; {_AGAIN}')}; check that it is there, then run the same command again"
    )


def reject(row: Row, stage: str, error: str, message: str, permanent: bool, before: int = 0) -> dict[str, Any]:
    """A row of the rejects table; `before`: how often the image was tried before."""
    return {
        "image_id": row["image_id"],
        "uri": row["uri"],
        "stage": stage,
        "error": error,
        "message": message,
        "permanent": permanent,
        "attempts": before + 1,
    }
