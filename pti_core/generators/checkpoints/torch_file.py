"""Files of `torch.save`, as plain weights or not at all."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.plain_pickle import PickleError, PlainUnpickler

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's older files begin, storages in pickles too
LEGACY_PICKLES = 5  # magic number, protocol, system, content, names of storages; the raw values follow
MAX_PICKLE, MAX_RECORDS = 32 * 2**20, 20_000
REASONS = r"(Unsupported (global|class|operand)|PytorchStreamReader|Trying to)[^\n]{0,120}"  # of torch's long messages


def load_torch(path: Path, source: str) -> dict[Any, Any]:
    """The dict in a torch file, read with `weights_only=True`; its tensors are mapped where the format allows.

    Raises CheckpointError, naming `source`, for a file with anything else, a damaged one, and a zip bomb.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _check_zip(path)
        else:
            with path.open("rb") as file:
                check_legacy(file, path.stat().st_size)
        # argparse's Namespace: the options that a training keeps; plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file makes torch warn before it makes it raise
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except Exception as error:  # a hostile file can make torch and zipfile raise nearly anything
        found = re.search(REASONS, str(error))
        reason = found.group() if found else type(error).__name__
        raise CheckpointError(
            f"{source}: a torch file that holds more than plain weights, or is damaged ({reason}); "
            "it is refused, nothing of it was run"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{source}: a torch file with a {type(content).__name__}; rosinality's dict with `g_ema` expected"
        )
    return content


def _check_zip(path: Path) -> None:
    """Refuse what torch never writes: compression (a bomb), records larger than the file, absurd structure."""
    total = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size for r in records)
        if packed or len(records) > MAX_RECORDS or sum(r.file_size for r in records) > total:
            raise CheckpointError(
                "a zip archive with compressed or overlapping records, which torch never writes; "
                "it is refused, unpack it if it holds a checkpoint"
            )
        pickles = [r for r in records if r.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise CheckpointError("a zip archive that is no torch file; give rosinality's .pt")
        with archive.open(pickles[0]) as file:
            _check_structure(file, pickles[0].file_size)


class _AnyName(dict[tuple[str, str], Callable[..., Any]]):
    """Every name stands for nothing here; which are allowed is decided by torch, afterwards."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: tuple[str, str]) -> Callable[..., Any]:
        return (lambda *_: {}) if key == ("collections", "OrderedDict") else (lambda *_: None)


def check_legacy(file: IO[bytes], size: int) -> None:
    """The same for one of torch's older files, which is a row of pickles. Raises CheckpointError."""
    _check_structure(file, size, LEGACY_PICKLES)


def _check_structure(file: IO[bytes], size: int, pickles: int = 1) -> None:
    """Read a pickle as plain data first: torch's reader hashes whatever key it is given, which may take for ever."""
    try:
        for _ in range(pickles):
            PlainUnpickler(file, size, _AnyName(), lambda module, name: PickleError(name)).load()
    except (PickleError, ValueError) as error:
        raise CheckpointError(
            f"a torch file with a damaged or hostile structure ({error}); it is refused, nothing of it was run"
        ) from None
