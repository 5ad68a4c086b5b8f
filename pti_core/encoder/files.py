"""Encoders as files: safetensors, named after the SHA-256 of their generator, in the user's cache or in the package."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pti_core.encoder.network import Encoder, EncoderShape
from pti_core.generators.cache import encoder_folder
from pti_core.generators.checkpoints import LoadedGenerator
from pti_core.generators.checkpoints.errors import CheckpointError, reason
from pti_core.generators.checkpoints.own import read_metadata
from pti_core.generators.checkpoints.tensor_files import save_tensors
from pti_core.generators.checkpoints.whole import whole

FORMAT = "pti-encoder/1"
PACKAGED = Path(__file__).parents[1] / "assets" / "encoders"
LARGEST = 64 * 2**20  # bytes of a file; with the architecture's bounds, no file asks for more memory than this


class EncoderError(ValueError):
    """An encoder that is not there or is refused; the message says why and what to do."""


class _Architecture(BaseModel):
    """`EncoderShape` as it stands in a file, within sane bounds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    img_resolution: int = Field(ge=4, le=8192)
    img_channels: Literal[1, 3]
    w_dim: int = Field(ge=1, le=4096)
    components: int = Field(ge=1, le=2048)
    squeezed: int = Field(ge=1, le=512)
    hidden: int = Field(ge=1, le=4096)


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and where it came from."""

    encoder: Encoder  # on the CPU, float32, eval mode, no gradients
    sha256: str  # of the file's bytes, hex
    where: str  # its path or address
    notes: dict[str, Any]  # figures of its training
    content: bytes = field(repr=False)  # of the file


def file_name(generator_sha256: str) -> str:
    """Of the encoder of a generator."""
    return f"{generator_sha256}.safetensors"


def find_encoder(generator_sha256: str) -> Path | None:
    """The file of a generator's encoder: the user's own, else the package's; None where there is neither."""
    for folder in (encoder_folder(), PACKAGED):
        if (path := folder / file_name(generator_sha256)).is_file():
            return path
    return None


def save_encoder(encoder: Encoder, generator_sha256: str, notes: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write an encoder (float16) where `find_encoder` looks, or into another folder; it appears whole or not at all.

    `notes` (JSON types) go into the metadata. Raises OSError where it cannot be written.
    """
    path = (folder or encoder_folder()) / file_name(generator_sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().to("cpu", torch.float16).contiguous() for name, value in encoder.state_dict().items()
    }
    metadata = {
        "format": FORMAT,
        "generator_sha256": generator_sha256,
        "architecture": json.dumps(encoder.shape.as_dict()),
        "notes": json.dumps(dict(notes)),
    }
    with whole(path) as part:
        save_tensors(tensors, part, metadata)
    return path


def load_encoder(generator: LoadedGenerator) -> LoadedEncoder:
    """The encoder of a generator. Raises EncoderError where there is none, or the file is not what it should be."""
    path = find_encoder(generator.sha256)
    if path is None:
        raise EncoderError(
            f"generator {generator.source!r} has no encoder on this machine; "
            f"`pti train-encoder {generator.source}` makes one, or copy {file_name(generator.sha256)} "
            f"into {encoder_folder()}"
        )
    return read_encoder(path, generator)


def encoder_for(generator: LoadedGenerator, start: Literal["auto", "w_avg", "encoder"]) -> LoadedEncoder | None:
    """What `pivot.start` asks for: None is w_avg. Raises EncoderError as `load_encoder`."""
    if start == "w_avg" or (start == "auto" and find_encoder(generator.sha256) is None):
        return None
    return load_encoder(generator)


def read_encoder(path: Path, generator: LoadedGenerator) -> LoadedEncoder:
    """The encoder in a file, whose every tensor is checked. Raises EncoderError with one sentence."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise EncoderError(f"encoder {path}: cannot be read ({error})") from error
    return parse_encoder(content, str(path), generator)


def parse_encoder(content: bytes, where: str, generator: LoadedGenerator, again: str | None = None) -> LoadedEncoder:
    """The encoder in the bytes of a file, which `where` names in errors, whose every tensor is checked.

    Raises EncoderError with one sentence, which ends in `again`, or in how to train one.
    """
    again = again or f"`pti train-encoder {generator.source} --overwrite` makes it anew"
    if len(content) > LARGEST:
        raise EncoderError(f"encoder {where}: more than {LARGEST:,} bytes; {again}")
    try:
        metadata = read_metadata(io.BytesIO(content), len(content))
        if metadata.get("format") != FORMAT:
            raise EncoderError(f"encoder {where}: format {metadata.get('format', 'none')[:60]!r}, {FORMAT!r} expected")
        if metadata.get("generator_sha256") != generator.sha256:
            theirs = metadata.get("generator_sha256", "")[:12]
            raise EncoderError(
                f"encoder {where}: it belongs to the generator with SHA-256 {theirs}…, "
                f"{generator.source!r} has {generator.sha256[:12]}…; {again}"
            )
        shape = EncoderShape(**_Architecture.model_validate_json(metadata.get("architecture", "")).model_dump())
        notes = json.loads(metadata.get("notes", "{}"))
        tensors = safetensors.torch.load(content)
    except (
        CheckpointError,
        safetensors.SafetensorError,
        ValidationError,
        RecursionError,
        json.JSONDecodeError,
    ) as error:
        raise EncoderError(f"encoder {where}: damaged or truncated ({reason(error)}); {again}") from None
    g = generator.generator
    if (shape.img_resolution, shape.img_channels, shape.w_dim) != (g.img_resolution, g.img_channels, g.w_dim):
        raise EncoderError(f"encoder {where}: made for another architecture than that of {generator.source!r}; {again}")
    encoder = _filled(shape, tensors, where, again)
    return LoadedEncoder(encoder, hashlib.sha256(content).hexdigest(), where, notes, content)


def _filled(shape: EncoderShape, tensors: Mapping[str, torch.Tensor], where: str, again: str) -> Encoder:
    """An encoder with these tensors; their names, shapes and values are checked first."""
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in Encoder(shape).state_dict().items()}
    found = {name: value.shape for name, value in tensors.items()}
    if found != wanted:
        odd = next(name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name))
        raise EncoderError(f"encoder {where}: tensor {odd!r} is missing, left over or of another shape; {again}")
    state = {name: value.float() for name, value in tensors.items()}
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise EncoderError(f"encoder {where}: some of its numbers are NaN or infinite; {again}")
    encoder = Encoder(shape)
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)
