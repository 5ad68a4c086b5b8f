"""Safetensors whose bytes depend on nothing but their content: a file is known by its SHA-256, on every machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

_LENGTH = 8  # bytes of the header's length, little endian, before it


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata. Raises OSError where the file cannot be written.

    The library writes the metadata in the order of a hash map with a seed of its own, another one each time; here they
    are sorted, in place.
    """
    safetensors.torch.save_file(dict(tensors), path, metadata=dict(metadata))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(_LENGTH), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > size:
            raise AssertionError(f"{path}: a header of {len(text)} bytes in place of {size}")
        file.seek(_LENGTH)
        file.write(text.ljust(size))
