"""The project's own format: safetensors, with the architecture in the metadata."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.architecture import check_config
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.weights import fill

FORMAT = "pti-generator/1"
MAX_HEADER = 16 * 2**20  # bytes; a generator's is about 30 KiB
OWN_KEYS = ("format", "kind", "config")  # of the metadata; the rest are notes


def families() -> dict[str, type[nn.Module]]:
    """The generators that can be stored, by `kind`."""
    from pti_core.generators.mobilestylegan import MobileStyleGAN
    from pti_core.generators.stylegan2 import StyleGAN2

    return {family.kind: family for family in (StyleGAN2, MobileStyleGAN)}


def save_generator(
    generator: Generator, path: str | Path, notes: Mapping[str, str] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a generator; `dtype=torch.float16` halves the file. `notes` (origin, licence) go into the metadata."""
    state = {
        name: value.detach().cpu().to(dtype if dtype is not None and value.is_floating_point() else value.dtype)
        for name, value in generator.state_dict().items()  # type: ignore[attr-defined]
    }
    metadata = {"format": FORMAT, "kind": generator.kind, "config": json.dumps(dict(generator.config))}
    tensors = {name: value.contiguous() for name, value in state.items()}
    safetensors.torch.save_file(tensors, str(path), metadata=dict(notes or {}) | metadata)


def load_own(path: Path, source: str) -> tuple[Generator, dict[str, str]]:
    """A generator from a file, float32, eval mode, without gradients, and the notes in its metadata.

    Raises CheckpointError, naming `source`, for anything else.
    """
    with path.open("rb") as file:
        metadata = _metadata(file, path.stat().st_size, source)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        what = f"the format {str(found)[:60]!r}" if found is not None else "no format in its metadata"
        raise CheckpointError(
            f"{source}: safetensors with {what}, {FORMAT!r} expected; "
            "convert the checkpoint that it was made from (`pti generator convert`)"
        )
    known = families()
    kind = metadata.get("kind")
    if kind not in known:
        raise CheckpointError(
            f"{source}: generator of kind {str(kind)[:60]!r}, one of {sorted(known)} expected; convert it again"
        )
    try:
        config = json.loads(metadata.get("config", "null"))
        check_config(kind, config)
        with torch.device("meta"):
            generator = known[kind](**config)
    except (TypeError, ValueError, RuntimeError) as error:  # RecursionError is a RuntimeError
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"{source}: an architecture that is not possible ({reason}); convert it again") from None
    try:
        with safetensors.safe_open(str(path), framework="pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118

        def read(name: str) -> Tensor:
            # The library maps the file; opened anew for each tensor, no more than one is in memory twice.
            with safetensors.safe_open(str(path), framework="pt") as tensors:
                return tensors.get_tensor(name).clone()

        fill(generator, shapes, read, source)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{source}: a damaged or truncated file ({error}); fetch or convert it again") from None
    notes = {k: v for k, v in metadata.items() if k not in OWN_KEYS}
    return generator, notes  # type: ignore[return-value]


def _metadata(file: BinaryIO, total: int, source: str) -> dict[str, str]:
    """The texts in the header, read before the library sees the file."""
    head = file.read(8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if size > min(MAX_HEADER, total - 8):
        raise CheckpointError(
            f"{source}: a safetensors header of {size:,} bytes in a file of {total:,}; it is truncated, fetch it again"
        )
    try:
        header: Any = json.loads(file.read(size))
        metadata = header.get("__metadata__", {})
        return {str(k): v for k, v in metadata.items() if isinstance(v, str)}
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{source}: a safetensors file with a damaged header; fetch it again") from None
