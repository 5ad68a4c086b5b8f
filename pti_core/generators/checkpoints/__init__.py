"""Generators from files: one reader a format, chosen by what the file holds; nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from pti_core.datasets import redact
from pti_core.generators.base import Generator
from pti_core.generators.cache import FETCHABLE_NAMES, cached
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.nvidia_pickle import load_nvidia
from pti_core.generators.checkpoints.own import load_own, save_generator
from pti_core.generators.checkpoints.rosinality import load_rosinality
from pti_core.generators.checkpoints.torch_file import LEGACY

__all__ = ["BUILT_IN", "CheckpointError", "LoadedGenerator", "load_generator", "save_generator"]

ASSETS = Path(__file__).parents[2] / "assets"
BUILT_IN = {"pocket-ffhq-128": ASSETS / "pocket-ffhq-128.safetensors"}
ALIASES = {"pocket": "pocket-ffhq-128"}
HEAD = 64  # bytes of a file that tell its format


def _is_pickle(head: bytes) -> bool:
    # Protocols 2 to 5 say which they are; 0 and 1 begin with the first object, which is no dict of networks.
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


Reader = Callable[[Path, str], tuple[Any, dict[str, str]]]
READERS: dict[str, tuple[Callable[[bytes], bool], Reader]] = {
    "safetensors": (lambda head: head[8:9] == b"{", load_own),
    "rosinality": (lambda head: head.startswith((b"PK\x03\x04", LEGACY)), load_rosinality),
    "pickle": (_is_pickle, load_nvidia),
}
"""Format: does a file that begins like this have it, and its reader. The first that matches reads."""


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator and where it came from."""

    generator: Generator
    kind: str
    sha256: str  # of the file's bytes, hex
    source: str
    format: str = ""  # a key of `READERS`
    notes: dict[str, str] = field(default_factory=dict)  # origin, licence: whatever the file says of itself


def load_generator(ref: str) -> LoadedGenerator:
    """Load a built-in generator by its name, or a checkpoint by path or any fsspec URL.

    A remote file is copied to disk first, so that no more of it than its generator is ever in memory. Raises
    CheckpointError, with one sentence, for whatever is no generator that can be read.
    """
    built_in = BUILT_IN.get(ALIASES.get(ref, ref))
    if ref in FETCHABLE_NAMES:
        built_in = cached(ref)
        if not built_in.exists():
            raise CheckpointError(f"generator {ref!r}: not on this machine yet; `pti generator fetch {ref}` gets it")
    source = ref if built_in else redact(ref)
    with _local(str(built_in or ref), source) as path:
        try:
            with path.open("rb") as file:
                head = file.read(HEAD)
                name = next((name for name, (matches, _) in READERS.items() if matches(head)), None)
                if name is None:
                    known = "own safetensors, NVIDIA's .pkl and rosinality's .pt can be read"
                    raise CheckpointError(f"generator {source!r}: {_what(head)}; {known}")
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"generator {source!r}: cannot be read ({error}); check the path") from None
        generator, notes = READERS[name][1](path, source)
    return LoadedGenerator(generator, generator.kind, sha256, source, name, notes)


@contextmanager
def _local(ref: str, source: str) -> Iterator[Path]:
    """The file on this machine's disk, for as long as it is needed."""
    names = ", ".join([*sorted(BUILT_IN), *FETCHABLE_NAMES])
    missing = f"generator {source!r}: no such file; give the path of a checkpoint or a built-in name ({names})"
    try:
        fs, inner = fsspec.core.url_to_fs(ref)
        if isinstance(fs, LocalFileSystem):
            path = Path(inner)
            if path.exists() and not path.is_file():
                kind = "a folder" if path.is_dir() else "a device or pipe"
                raise CheckpointError(f"generator {source!r}: {kind}, not a file; give the path of a checkpoint")
            if not path.exists():
                raise CheckpointError(missing)
        else:
            path = None
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(missing) from None
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(source, error) from error
    if path is not None:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="pti-generator-") as copy:
        try:
            with fs.open(inner, "rb") as file:
                shutil.copyfileobj(file, copy, 2**20)
            copy.flush()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise CheckpointError(missing) from None
        except (OSError, ValueError, ImportError) as error:
            raise _unreadable(source, error) from error
        yield Path(copy.name)


def _unreadable(source: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"generator {source!r}: cannot be read ({type(error).__name__}: {error}); check the address")


def _what(head: bytes) -> str:
    """What a file that nothing reads seems to be."""
    kinds = {
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"\x1f\x8b": "a gzip file (unpack it first)",
        b"\x89HDF": "an HDF5 file",
        b"<": "a web page or XML text (an interrupted download or a login page?)",
        b"version https://git-lfs": "a Git LFS pointer, not the file itself (`git lfs pull` fetches it)",
    }
    if not head:
        return "an empty file (an interrupted download?)"
    text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    other = "a text file" if text else "a file of unknown kind"
    return next((kind for start, kind in kinds.items() if head.startswith(start)), other)
