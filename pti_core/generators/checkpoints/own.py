"""The project's own format: safetensors, with the architecture in the metadata."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.architecture import FAMILIES, build
from pti_core.generators.checkpoints.errors import CheckpointError, reason
from pti_core.generators.checkpoints.tensor_files import save_tensors
from pti_core.generators.checkpoints.weights import Read, fill
from pti_core.generators.checkpoints.whole import whole

FORMAT = "pti-generator/1"
MAX_HEADER = 16 * 2**20  # bytes; a generator's is about 30 KiB
OWN_KEYS = ("format", "kind", "config")  # of the metadata; the rest are notes


def save_generator(
    generator: Generator, path: str | Path, notes: Mapping[str, str] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a generator; the file appears whole or not at all, and replaces one of that name.

    The same generator makes the same bytes. `dtype=torch.float16` halves the file. `notes` (origin, licence) go into
    the metadata. Raises OSError where it cannot be written.
    """
    state: dict[str, Tensor] = generator.state_dict()  # type: ignore[attr-defined]
    tensors = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in state.items()
    }
    metadata = {"format": FORMAT, "kind": generator.kind, "config": json.dumps(dict(generator.config))}
    with whole(Path(path)) as part:
        save_tensors(tensors, part, dict(notes or {}) | metadata)


def load_own(path: Path) -> Read:
    """A generator from a file, float32, eval mode, without gradients, and the notes in its metadata.

    Raises CheckpointError for anything else.
    """
    with path.open("rb") as file:
        metadata = read_metadata(file, path.stat().st_size)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        what = f"the format {str(found)[:60]!r}" if found is not None else "no format in its metadata"
        raise CheckpointError(
            f"safetensors with {what}, {FORMAT!r} expected; "
            "convert the checkpoint that it was made from (`pti generator convert`)"
        )
    kind = metadata.get("kind", "")
    if kind not in FAMILIES:
        raise CheckpointError(f"generator of kind {kind[:60]!r}, one of {sorted(FAMILIES)} expected; convert it again")
    try:
        config = json.loads(metadata.get("config", "null"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"an architecture that is no JSON ({reason(error)}); convert it again") from None
    generator = build(kind, config, "convert it again")
    try:
        with safetensors.safe_open(path, framework="pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118

        def read(name: str) -> Tensor:
            # The library maps the file; opened anew for each tensor, no more than one is in memory twice.
            with safetensors.safe_open(path, framework="pt") as tensors:
                return tensors.get_tensor(name).clone()

        fill(generator, shapes, read)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"a damaged or truncated file ({reason(error)}); fetch or convert it again") from None
    return Read("safetensors", generator, {k: v for k, v in metadata.items() if k not in OWN_KEYS})


def read_metadata(file: BinaryIO, total: int) -> dict[str, str]:
    """The texts in the header, read before the library sees the file."""
    head = file.read(8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if size > min(MAX_HEADER, total - 8):
        raise CheckpointError(
            f"a safetensors header of {size:,} bytes in a file of {total:,}; it is truncated, fetch it again"
        )
    try:
        header: Any = json.loads(file.read(size))
        metadata = header.get("__metadata__", {})
        return {str(k): v for k, v in metadata.items() if isinstance(v, str)}
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError("a safetensors file with a damaged header; fetch it again") from None
