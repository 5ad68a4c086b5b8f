"""Generators into files of other tools, and what can be said of a generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints import LoadedGenerator
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.own import save_generator
from pti_core.generators.checkpoints.rosinality import to_rosinality
from pti_core.generators.checkpoints.state_dict import unseen
from pti_core.generators.checkpoints.whole import whole
from pti_core.sampling import w_statistics

W_SAMPLES = 10_000


def _write_own(generator: Generator, path: Path, notes: Mapping[str, str]) -> list[str]:
    save_generator(generator, path, notes)
    return []


def _write_rosinality(generator: Generator, path: Path, notes: Mapping[str, str]) -> list[str]:
    content, remarks = to_rosinality(generator)
    _save(content, path)
    return remarks


def _write_state_dict(generator: Generator, path: Path, notes: Mapping[str, str]) -> list[str]:
    state: Mapping[str, torch.Tensor] = generator.state_dict()  # type: ignore[attr-defined]
    _save({name: value.detach().cpu() for name, value in state.items()}, path)
    return unseen(generator)


def _save(content: dict[str, Any], path: Path) -> None:
    with whole(path) as part, part.open("wb") as file:  # by its name the archive would hold that of the hidden file
        torch.save(content, file)


WRITERS: dict[str, Callable[[Generator, Path, Mapping[str, str]], list[str]]] = {
    "safetensors": _write_own,
    "rosinality": _write_rosinality,
    "state-dict": _write_state_dict,
}
"""Format: its writer, which gives remarks on what a reader of the file will do differently."""
SUFFIXES = {"safetensors": ".safetensors", "rosinality": ".pt", "state-dict": ".pth"}


def format_for(path: str | Path) -> str:
    """The format that a file's name asks for. Raises CheckpointError for a name that asks for none."""
    suffix = Path(path).suffix.lower()
    found = next((name for name, known in SUFFIXES.items() if known == suffix), None)
    if found is None:
        known = ", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items())
        raise CheckpointError(f"{path}: a name that ends in {known} expected, or --format")
    return found


def check_free(path: str | Path, overwrite: bool) -> None:
    """Raise CheckpointError where a file must not, or a folder cannot, be replaced, or its folder is not there."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} is there already; choose another name or give --overwrite")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: there is no folder {path.parent}; make it first")


def write_generator(
    generator: Generator,
    path: str | Path,
    format: str | None = None,
    overwrite: bool = False,
    notes: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a generator in a format of `WRITERS` (default: what the name asks for); remarks for its user, if any.

    `safetensors` is the project's own and keeps everything; `rosinality` a `.pt` of stylegan2-pytorch; `state-dict`
    a torch file with the tensors alone, under NVIDIA's names for StyleGAN2. The file appears whole or not at all.
    Raises CheckpointError where the file is there already or the format cannot express the generator.
    """
    path = Path(path)
    format = format_for(path) if format is None else format
    if format not in WRITERS:
        raise CheckpointError(f"format {format!r}: one of {', '.join(WRITERS)} expected")
    check_free(path, overwrite)
    return WRITERS[format](generator, path, notes or {})


def describe(loaded: LoadedGenerator, w_samples: int = W_SAMPLES) -> dict[str, Any]:
    """What can be said of a generator, JSON types only; W is measured on `w_samples` samples with a fixed seed."""
    generator = loaded.generator
    tensors: dict[str, torch.Tensor] = dict(generator.named_parameters())  # type: ignore[attr-defined]
    statistics = w_statistics(generator, w_samples)
    stored = generator.mapping.w_avg
    return {
        "source": loaded.source,
        "format": loaded.format,
        "kind": loaded.kind,
        "sha256": loaded.sha256,
        "resolution": generator.img_resolution,
        "channels": generator.img_channels,
        "num_ws": generator.num_ws,
        "z_dim": generator.z_dim,
        "w_dim": generator.w_dim,
        "c_dim": generator.c_dim,
        "noise_maps": len(generator.noise_shapes),
        "parameters": sum(p.numel() for p in tensors.values()),
        "tunable_parameters": sum(p.numel() for p in generator.tunable().values()),
        "w": {
            "samples": w_samples,
            "w_avg_norm": statistics.w_avg.norm().item(),
            "w_std": statistics.w_std,
            "mean_distance": statistics.mean_distance,
            "stored_w_avg_norm": stored.norm().item(),
            "stored_w_avg_distance": (stored - statistics.w_avg).norm().item(),
        },
        "config": dict(generator.config),
        "notes": dict(loaded.notes),
    }
