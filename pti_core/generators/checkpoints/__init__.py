"""Generators from files: one reader a format, chosen by what the file holds; nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from pti_core.addresses import redact
from pti_core.connections import file_system, harmless, without_secrets
from pti_core.generators.base import Generator
from pti_core.generators.cache import FETCHABLE_NAMES, cached
from pti_core.generators.checkpoints.errors import CheckpointError, reason
from pti_core.generators.checkpoints.lazy import LazyTensor
from pti_core.generators.checkpoints.nvidia_pickle import load_nvidia
from pti_core.generators.checkpoints.own import load_own, save_generator
from pti_core.generators.checkpoints.rosinality import is_rosinality, read_rosinality
from pti_core.generators.checkpoints.state_dict import is_state_dict, read_state_dict
from pti_core.generators.checkpoints.torch_file import LEGACY, ZIP, read_torch
from pti_core.generators.checkpoints.weights import Read

__all__ = ["BUILT_IN", "CheckpointError", "LoadedGenerator", "load_generator", "save_generator"]

ASSETS = Path(__file__).parents[2] / "assets"
BUILT_IN = {"pocket-ffhq-128": ASSETS / "pocket-ffhq-128.safetensors"}
ALIASES = {"pocket": "pocket-ffhq-128"}
HEAD = 64  # bytes of a file that tell its format


def load_torch(path: Path) -> Read:
    """The generator in a file of `torch.save`, in any of `LAYOUTS`. Raises CheckpointError where there is none."""
    with path.open("rb") as file:
        content = read_torch(file)
        if not isinstance(content, dict):
            kind = "lone tensor" if isinstance(content, LazyTensor) else type(content).__name__
            raise CheckpointError(
                f"a torch file with a {kind}; rosinality's dict with `g_ema` or a state dict expected"
            )
        for matches, read in LAYOUTS:
            if matches(content):
                return read(content, file)
    keys = ", ".join(str(key)[:40] for key in list(content)[:5]) or "nothing"
    raise CheckpointError(
        f"a torch file without a generator (rosinality's `g_ema`, or a state dict): it holds {keys}; "
        "give the training's .pt or .pkl"
    )


def _is_pickle(head: bytes) -> bool:
    # Protocols 2 to 5 say which they are; 0 and 1 begin with the first object, which is no dict of networks.
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


READERS: list[tuple[Callable[[bytes], bool], Callable[[Path], Read]]] = [
    (lambda head: head[8:9] == b"{", load_own),
    (lambda head: head.startswith((ZIP, LEGACY)), load_torch),
    (_is_pickle, load_nvidia),
]
"""Can a file that begins like this be of its kind, and its reader. The first that matches reads."""
LAYOUTS = [(is_rosinality, read_rosinality), (is_state_dict, read_state_dict)]
"""Of torch files: does the content look like it, and its reader."""


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator and where it came from."""

    generator: Generator
    kind: str
    sha256: str  # of the file's bytes, hex
    source: str
    format: str = ""  # safetensors, pickle, rosinality or state-dict
    notes: dict[str, str] = field(default_factory=dict)  # origin, licence: whatever the file says of itself


def load_generator(ref: str) -> LoadedGenerator:
    """Load a built-in generator by its name, or a checkpoint by path or any fsspec URL; float32, eval, no gradients.

    A remote file is copied to disk first, so that no more of it than its generator is ever in memory. Raises
    CheckpointError, with one sentence, for whatever is no generator that can be read.
    """
    built_in = BUILT_IN.get(ALIASES.get(ref, ref)) or (cached(ref) if ref in FETCHABLE_NAMES else None)
    source = ref if built_in else redact(ref)
    try:
        if built_in is not None and not built_in.exists():
            raise CheckpointError(f"not on this machine yet; `pti generator fetch {ref}` gets it")
        with _local(str(built_in or ref)) as path:
            with path.open("rb") as file:
                head = file.read(HEAD)
                reader = next((reader for matches, reader in READERS if matches(head)), None)
                if reader is None:
                    raise CheckpointError(f"{_what(head)}; own safetensors, NVIDIA's .pkl and torch files can be read")
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            read = reader(path)
    except CheckpointError as error:
        raise CheckpointError(f"generator {source!r}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"generator {source!r}: {_unreadable(error)}") from harmless(error)
    except (ValueError, OverflowError, RuntimeError, MemoryError) as error:  # of a structure that makes no sense
        what = f"damaged, truncated or no checkpoint ({reason(error)})"
        raise CheckpointError(f"generator {source!r}: {what}; fetch it again") from None
    return LoadedGenerator(read.generator, read.generator.kind, sha256, source, read.format, read.notes)


@contextmanager
def _local(ref: str) -> Iterator[Path]:
    """The file on this machine's disk, for as long as it is needed."""
    names = ", ".join([*sorted(BUILT_IN), *FETCHABLE_NAMES])
    missing = f"no such file; give the path of a checkpoint or a built-in name ({names})"
    try:
        fs, inner = file_system(ref)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(_unreadable(error)) from harmless(error)
    if isinstance(fs, LocalFileSystem):
        path = Path(inner)
        if not path.exists():
            raise CheckpointError(missing)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or pipe"
            raise CheckpointError(f"{kind}, not a file; give the path of a checkpoint")
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="pti-generator-") as copy:
        try:
            with fs.open(inner, "rb") as file:
                shutil.copyfileobj(file, copy, 2**20)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            why = error.__cause__  # of fsspec, whose FileNotFoundError is of hosts that do not answer as well
            raise CheckpointError(_unreadable(why, "fetched") if isinstance(why, Exception) else missing) from None
        except Exception as error:  # each file system has its own
            raise CheckpointError(_unreadable(error)) from harmless(error)
        copy.flush()
        yield Path(copy.name)


def _unreadable(error: Exception, done: str = "read") -> str:
    why = without_secrets(redact(reason(error)))
    return f"cannot be {done} ({type(error).__name__}: {why}); check the path or the address"


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
