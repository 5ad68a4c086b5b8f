"""Generators from files: one reader a format, chosen by what the file holds; nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fsspec

from pti_core.datasets import redact
from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.nvidia_pickle import load_nvidia
from pti_core.generators.checkpoints.own import load_own, save_generator

__all__ = ["BUILT_IN", "CheckpointError", "LoadedGenerator", "load_generator", "save_generator"]

ASSETS = Path(__file__).parents[2] / "assets"
BUILT_IN = {"pocket-ffhq-128": ASSETS / "pocket-ffhq-128.safetensors"}

READERS: dict[str, tuple[Callable[[bytes], bool], Callable[[bytes, str], Generator]]] = {
    "safetensors": (lambda head: head[8:9] == b"{", load_own),
    "pickle": (lambda head: head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05", load_nvidia),
}
"""Format: does a file that begins like this have it, and its reader."""


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator and where it came from."""

    generator: Generator
    kind: str
    sha256: str  # of the file's bytes, hex
    source: str


def load_generator(ref: str) -> LoadedGenerator:
    """Load a built-in generator by its name, or a checkpoint by path or any fsspec URL.

    Raises CheckpointError, with one sentence, for whatever is no generator that can be read.
    """
    path = str(BUILT_IN.get(ref, ref))
    source = ref if ref in BUILT_IN else redact(ref)
    names = ", ".join(sorted(BUILT_IN))
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()  # type: ignore[attr-defined]
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise CheckpointError(
            f"generator {source!r}: no such file; give the path of a checkpoint or a built-in name ({names})"
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"generator {source!r}: cannot be read ({type(error).__name__}: {error})") from error
    for matches, read in READERS.values():
        if matches(data[:16]):
            generator = read(data, source)
            return LoadedGenerator(generator, generator.kind, hashlib.sha256(data).hexdigest(), source)
    raise CheckpointError(f"generator {source!r}: {_what(data)}; {', '.join(READERS)} can be read")


def _what(data: bytes) -> str:
    """What a file that nothing reads seems to be."""
    kinds = {
        b"": "an empty file",
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"PK\x03\x04": "a zip archive (a rosinality .pt, perhaps)",
        b"\x1f\x8b": "a gzip file",
        b"<": "a text file or web page (an interrupted download?)",
        b"version https://git-lfs": "a Git LFS pointer, not the file itself (`git lfs pull` fetches it)",
    }
    if not data:
        return kinds[b""]
    return next((kind for head, kind in kinds.items() if head and data.startswith(head)), "a file of unknown kind")
