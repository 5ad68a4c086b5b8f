"""The project's own format: safetensors, with the architecture in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.errors import CheckpointError

FORMAT = "pti-generator/1"
MAX_NAMED = 3  # tensors named in a message


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


def load_own(data: bytes, source: str) -> Generator:
    """A generator from the bytes of a file, float32, eval mode, without gradients. Raises CheckpointError."""
    metadata = _metadata(data, source)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "no format in its metadata")
        raise CheckpointError(f"{source}: safetensors with {found!r}, {FORMAT!r} expected; convert it first")
    known = families()
    if metadata.get("kind") not in known:
        raise CheckpointError(f"{source}: generator of kind {metadata.get('kind')!r}, one of {sorted(known)} expected")
    try:
        config = json.loads(metadata["config"])
        with torch.device("meta"):
            generator = known[metadata["kind"]](**config)
        state = safetensors.torch.load(data)
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{source}: damaged ({error}); fetch or convert it again") from error
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    fill(generator, state, source)
    return generator  # type: ignore[return-value]


def fill(generator: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Give a generator all its weights; every name, shape and value is checked. Raises CheckpointError."""
    expected = generator.state_dict()
    for problem, names in (
        ("lacks", [n for n in expected if n not in state]),
        ("has the unknown", [n for n in state if n not in expected]),
        ("has the wrong shape for", [n for n in state if n in expected and state[n].shape != expected[n].shape]),
        ("has NaN or infinite values in", [n for n in state if n in expected and not bool(state[n].isfinite().all())]),
    ):
        if names:
            listed = ", ".join(names[:MAX_NAMED]) + (
                f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            )
            raise CheckpointError(
                f"{source}: {problem} {listed}; it is not a generator of this architecture, or damaged"
            )
    generator.load_state_dict(dict(state), assign=True)
    generator.eval().requires_grad_(False)


def _metadata(data: bytes, source: str) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 + size or size > 100 * 2**20:
        raise CheckpointError(f"{source}: safetensors file that ends before its header does; fetch it again")
    try:
        header = json.loads(data[8 : 8 + size])
        return dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{source}: safetensors file with a damaged header; fetch it again") from error
