"""Local folders, listed fast: a million files take some seconds. And what in a folder is a run's output, no input."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pti_core.addresses import DEMO, canonical, local_path, split_chain
from pti_core.connections import file_system
from pti_core.sources.base import CHUNK, EXTENSIONS, Container, Listed, extension, is_hidden, joined, table, text
from pti_core.tables import TABLES

KINDS: Final = {".tar": "tar", ".tgz": "tar", ".tar.gz": "tar", ".tar.bz2": "tar", ".tar.xz": "tar"} | {
    ".zip": "zip",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""Files that hold images, by extension."""

_LAST = frozenset(ending[ending.rindex(".") :] for ending in KINDS)
_WRITTEN = re.compile(rf"runs/[^/]+/(?:report|edits)(?:/|$)|(?:{'|'.join(TABLES)})/run=")
"""What runs leave that could be taken for images, at the top of their output."""
_OF_A_RUN = re.compile(
    rf"(?P<root>.*)/(?:runs/(?P<a>[^/]+)/(?:report|edits)|(?:{'|'.join(TABLES)})/run=(?P<b>[^/]+))(?=/|$)", re.S
)
_NAMES_A_RUN = re.compile(r"(?:^|/)runs/[^/]+/|/run=")
_MANIFEST = re.compile(r"(?:.*/)?runs/[^/]+/manifest(?:-\d+)?\.parquet")

LeftOut = Callable[[str], bool]
"""Whether the files of a folder, by its path, are left out."""


def kind_of(name: str) -> str | None:
    """`tar`, `zip` or `parquet` by a file's name; None for other files, and for the list of a run's inputs."""
    lower = name.lower()
    kind = next((kind for ending, kind in KINDS.items() if lower.endswith(ending)), None)
    return None if kind == "parquet" and _MANIFEST.fullmatch(name) else kind


def walk(folder: str, root: str, left_out: LeftOut, options: Mapping[str, Any], pattern: str = "") -> Iterator[Listed]:
    """All files below a local folder, or those that match; named from `root`, which is the folder or above it.

    Linked folders are followed, loops of links are not.
    """
    depth = None if not pattern or "**" in pattern else pattern.count("/")
    matches = re.compile(glob_translate(pattern)).match if pattern else None
    root, folder, rest = root.rstrip("/"), folder.rstrip("/"), Listed()
    top = f"{folder[len(root) + 1 :]}/".lstrip("/")
    names: list[str] = []
    sizes: list[int] = []
    times: list[int | None] = []
    folders = [("", 0, frozenset({os.path.realpath(folder or "/")}))]
    while folders:
        below, level, above = folders.pop()
        path = f"{folder}/{below}"
        if left_out(path.rstrip("/")):
            continue
        with os.scandir(path) as entries:
            for entry in entries:  # a few microseconds each: there may be a million
                name = entry.name
                hidden = name[0] == "." or name == "__MACOSX"
                if entry.is_dir():
                    if not hidden and level != depth and (real := os.path.realpath(entry.path)) not in above:
                        folders.append((f"{below}{name}/", level + 1, above | {real}))
                    continue
                if matches and not matches(below + name):
                    continue
                suffix = name[name.rfind(".") :].lower()
                kind = "image" if suffix in EXTENSIONS else kind_of(f"{top}{below}{name}") if suffix in _LAST else None
                if hidden or kind is None:
                    rest.others["hidden" if hidden else extension(name)] += 1
                    continue
                if (found := size_and_time(entry)) is None:
                    rest.others["pipe or device"] += 1
                    continue
                size, time = found
                if kind == "image":
                    names.append(f"{top}{below}{name}")
                    sizes.append(size)
                    times.append(time)
                else:
                    file = Container(f"{top}{below}{name}", path + name, size, f"{size}-{time or ''}", options=options)
                    rest.files.setdefault(kind, []).append(file)
        if len(names) >= CHUNK:
            yield _images(root, names, sizes, times)
            names, sizes, times = [], [], []
    yield _images(root, names, sizes, times)
    yield rest


def size_and_time(entry: Any) -> tuple[int, int | None] | None:
    """Bytes, and ns since 1970, of a file; None for a pipe or device, which might never end.

    A dead link has neither: it is a reject later, not a gap now.
    """
    try:
        status = entry.stat()
    except OSError:
        return 0, None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _images(root: str, names: list[str], sizes: list[int], times: list[int | None]) -> Listed:
    name, size = text(names), pa.array(sizes, pa.int64())
    time = pc.coalesce(pa.array(times, pa.int64()).cast(pa.large_string()), pa.scalar("", pa.large_string()))
    etag = joined(size.cast(pa.large_string()), "-", time)
    return Listed(table({"name": name, "uri": joined(f"file://{root}/", name), "bytes": size, "etag": etag}))


def written(fs: Any, root: str, without: str | None, pattern: str = "") -> LeftOut:
    """Which folders below a dataset's root hold what runs have written: they lie in the folder `without`, a run's
    output, or are what could be taken for images in that of another run.

    Where the dataset lies in the folder `without`, or is that folder, only what runs wrote at its top is left out. And
    whoever names a folder of another run, or a `pattern` of such, means it.
    """
    own = _output_in(fs, root, without)
    if _NAMES_A_RUN.search(pattern):
        return own

    @functools.cache
    def frozen(manifest: str) -> bool:
        try:
            return bool(fs.exists(manifest))
        except OSError:  # a bucket may be listed where this may not be asked
            return False

    @functools.cache
    def left_out(folder: str) -> bool:
        if own(folder):
            return True
        found = _OF_A_RUN.match(folder)
        if found is None or found.end() <= len(root.rstrip("/")):
            return False
        return frozen(f"{found['root']}/runs/{found['a'] or found['b']}/manifest.parquet")

    return left_out


def listed_with(dataset: str, folder: str | Path, output: str | None = None, names: Sequence[str] = ()) -> bool:
    """Whether PNG anywhere below a folder, or files of these `names` in it, would be inputs of a data set.

    So it is where that is a folder around this one, or a pattern that reaches it; nothing is asked of a bucket for it.
    False where a listing leaves the folder out, which is hidden or what a run has written. `output`: that of its run.
    """
    chain = split_chain(dataset)
    if chain and names and chain[0].startswith("parquet"):
        dataset, chain = chain[1], None
    if chain or dataset == DEMO or not dataset:
        return False
    (fs, top), (own_fs, own) = (_opened(address) for address in (dataset, str(folder)))
    if type(fs) is not type(own_fs):
        return False
    local, plain = isinstance(fs, LocalFileSystem), re.sub(r"\{[^{}]*\}", "*", top)
    root, pattern = top, ""
    if not (local and Path(top).is_dir()):
        if magic := re.search(r"[^/]*[*?\[]", plain):
            root, pattern = plain[: magic.start()], plain[magic.start() :]
        elif local:
            root, _, pattern = top.rpartition("/")
    left_out, above, path = written(fs, root, output, pattern and plain), Path(root or "/"), Path(own)
    pairs = [(above, path)] + ([(above.resolve(), path.resolve())] if local else [])  # links are followed when listed
    for one, other in pairs:
        if other.is_relative_to(one):
            below = other.relative_to(one)
            reached = not pattern or _reaches(pattern, below, names)
            if reached and not is_hidden(below.as_posix()) and not left_out(str(above / below)):
                return True
    return False


def _opened(address: str) -> tuple[Any, str]:
    path = local_path(address)
    fs, path = (LocalFileSystem(), canonical(path)) if path is not None else file_system(address)
    return fs, path.rstrip("/")


def _reaches(pattern: str, below: Path, names: Sequence[str]) -> bool:
    """Whether a pattern may match PNG anywhere below a folder, or matches one of these `names` in it."""
    if names:
        return any(re.match(glob_translate(pattern), (below / name).as_posix()) for name in names)
    *folders, last = re.sub(r"\*\*$", "**/*", pattern).split("/")
    ending = re.split(r"[*?\]]", last)[-1].lower()
    if not (".png".endswith(ending) or ending.endswith(".png")):
        return False
    before = folders[: folders.index("**")] if "**" in folders else folders
    fit = all(fnmatchcase(part, own) for part, own in zip(below.parts, before, strict=False))
    return fit and (before != folders or len(below.parts) <= len(folders))


def _output_in(fs: Any, root: str, without: str | None) -> LeftOut:
    if without is None:
        return lambda folder: False
    output = _real(*file_system(canonical(without)) if local_path(without) is None else (LocalFileSystem(), without))
    top = _real(fs, root)
    if top == output:
        return lambda folder: bool(_WRITTEN.match(folder[len(root.rstrip("/")) :].lstrip("/")))
    if top.startswith(f"{output}/"):
        return lambda folder: False
    return lambda folder: f"{_real(fs, folder)}/".startswith(f"{output}/")


def _real(fs: Any, path: str) -> str:
    """A folder's one address, behind all links."""
    if isinstance(fs, LocalFileSystem):
        path = os.path.realpath(canonical(path) or "/")
    return str(fs.unstrip_protocol(path)).rstrip("/")
