"""Directions as files: `.npy`, `.npz` and `.pt`, read as plain numbers. Nothing in them is executed."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from pti_core.addresses import redact, refusal
from pti_core.directions.direction import DirectionError
from pti_core.reading import read_bytes

MAX_BYTES: Final = 64 * 2**20
"""Of a file, and of what is in it: some thousand times what a direction needs."""


def read_vectors(uri: str) -> dict[str, Tensor]:
    """The arrays of numbers in a direction's file (any fsspec URL), by name; of a file with a single one, `""`.

    Raises DirectionError for another kind of file, a damaged one, one that is too large, one with anything but
    numbers, and an address with a secret.
    """
    if refused := refusal("direction", uri):
        raise DirectionError(refused)
    name = redact(uri)
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix not in READERS:
        raise DirectionError(
            f"direction {name!r}: a file {', '.join(READERS)} expected, or pca:K, sefa:K, learned:TABLE"
        )
    try:
        data = read_bytes(uri)
    except OSError as error:
        raise DirectionError(f"direction {name!r} cannot be read ({error}); check its path") from error
    try:
        _check_size(data)
        found = READERS[suffix](data)
    except DirectionError as error:
        raise DirectionError(f"direction {name!r}: {error}") from None
    except Exception as error:  # a hostile file can make numpy, torch and zipfile raise nearly anything
        reason = f"{type(error).__name__}: {str(error)[:120]}"
        raise DirectionError(
            f"direction {name!r} holds more than plain numbers, or is damaged ({reason}); "
            "it is refused, nothing of it was run"
        ) from None
    if not found:
        raise DirectionError(f"direction {name!r} holds no array of numbers")
    return found


def choose(vectors: dict[str, Tensor], uri: str, key: str | None, fits: Callable[[Tensor], bool]) -> Tensor:
    """The one that is asked for; without a key the only one, or the only one that fits. Raises DirectionError."""
    names = ", ".join(sorted(vectors))
    if key is not None:
        if key not in vectors:
            raise DirectionError(f"direction {redact(uri)!r} has no array {key!r}; there are: {names or 'none'}")
        return vectors[key]
    fitting = vectors if len(vectors) == 1 else {name: v for name, v in vectors.items() if fits(v)}
    if len(fitting) != 1:
        raise DirectionError(f"direction {redact(uri)!r} holds several arrays ({names}); choose one with :key=NAME")
    return next(iter(fitting.values()))


def _check_size(data: bytes) -> None:
    size = len(data)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = max(size, sum(record.file_size for record in archive.infolist()))
    if size > MAX_BYTES:
        raise DirectionError(f"{size / 2**20:.0f} MiB; a direction has at most {MAX_BYTES // 2**20}")


def _numpy(data: bytes) -> dict[str, Tensor]:
    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        return {name: torch.from_numpy(a.astype(np.float32)) for name, a in arrays.items() if a.dtype.kind in "fiu"}


def _torch(data: bytes) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged file makes torch warn before it makes it raise
        loaded: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    tensors = loaded if isinstance(loaded, dict) else {"": loaded}
    return {
        str(name): t.detach().float()
        for name, t in tensors.items()
        if isinstance(t, Tensor) and not t.is_complex() and t.layout == torch.strided
    }


READERS: Final[dict[str, Callable[[bytes], dict[str, Tensor]]]] = {".npy": _numpy, ".npz": _numpy, ".pt": _torch}
