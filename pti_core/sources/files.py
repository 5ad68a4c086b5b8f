"""The files of a data set on any file system: a folder with its subfolders, a glob, several by braces, or one file."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

import pyarrow as pa
from fsspec.asyn import AsyncFileSystem
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pti_core import connections
from pti_core.addresses import local_path, redact, split_chain, without_query
from pti_core.connections import file_system
from pti_core.reading import persistent
from pti_core.sources import base, buckets
from pti_core.sources.base import EXTENSIONS, Container, DatasetError, Listed, extension, images_in, table, text
from pti_core.sources.buckets import Entry
from pti_core.sources.folders import KINDS, LeftOut, kind_of, size_and_time, walk, written

LOOKED_FOR: Final = f"files named {' '.join(sorted(EXTENSIONS))} are looked for, or {' '.join(KINDS)} with images"

_CHECKSUMS = ("ETag", "etag", "md5Hash", "md5", "checksum", "crc32c", "CRC")  # S3, GCS, Azure, archives
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "modified", "date_time")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_NO_BUCKET = ("s3://", "s3a://", "gs://", "gcs://")
_MOST = 1_000_000  # files that braces may name
_CHUNK = 16_384  # entries that are held at the same time by one thread
_AT_ONCE = 16
_FOLDERS = 2_000  # of a bucket that are listed one by one; of more, those whose names begin alike together
_BEGINNINGS = 256

Result = TypeVar("Result")
_Lister = Callable[..., Listed]


def listing(address: str, options: Mapping[str, Any], without: str | None, kind: str | None = None) -> Listed:
    """Images and containers at an address; `kind`: the one file there is such a container, whatever its name.

    Files in the folder `without` are left out. What may pass is tried again. Raises FileNotFoundError and what the file
    system raises.
    """
    names = _expanded(address)
    _split(names[0], options)[0].invalidate_cache()
    if len(names) > 1:
        return _all_of(names, _above_braces(address, names[0], options), options, without, kind)
    return persistent(names[0], lambda: _at(names[0], options, without, kind))


def _all_of(
    names: Sequence[str], root: str, options: Mapping[str, Any], without: str | None, kind: str | None
) -> Listed:
    """What several addresses name, most of them files: on a network side by side, each tried again by itself."""
    parts: list[Listed] = []

    def look(name: str) -> Entry | Listed:
        fs, path = _split(name, options)
        if (info := _file(fs, path, name, kind)) is None:
            return _within(fs, path, name, options, without, root)
        one = path, info
        return _files(fs, name, options, root, [one], _none, kind) if split_chain(name) else one

    def entries(found: Iterable[Entry | Listed]) -> Iterator[Entry]:
        for one in found:
            if isinstance(one, Listed):
                parts.append(one)
            else:
                yield one

    def asked(name: str) -> Entry | Listed:
        return _one_of(names, name, lambda: persistent(name, lambda: look(name)))

    fs = _split(names[0], options)[0]
    with ThreadPoolExecutor(1 if isinstance(fs, LocalFileSystem) else _AT_ONCE, "pti-scan") as pool:
        # In pieces, since a pool makes a job of each name at once.
        pieces = (names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK))
        found = itertools.chain.from_iterable(pool.map(asked, piece) for piece in pieces)
        parts.append(_files(fs, names[0], options, root, entries(found), _none, kind))
    return Listed.of(parts)


def _above_braces(address: str, name: str, options: Mapping[str, Any]) -> str:
    """The path of the folder before the first braces, which all names share; empty where they name buckets.

    What a `name` has from the braces on is cut off its path, since an address that ends before a bucket is none.
    """
    path, own = _split(name, options)[1], name[address.partition("{")[0].rfind("/") + 1 :]
    return path[: max(0, len(path) - len(own))].rstrip("/")


def _one_of(names: Sequence[str], name: str, look: Callable[[], Result]) -> Result:
    """What one of several files is; DatasetError where it is not there, since all of them were asked for."""
    try:
        return look()
    except FileNotFoundError:
        raise DatasetError(
            f"dataset {redact(name)!r}, one of {len(names):,} that the braces name, does not exist; check the path or "
            "bucket, or name those that are there"
        ) from None


def check_answers(address: str, options: Mapping[str, Any]) -> None:
    """One request with a time limit and without back-off, since a person waits. TimeoutError where nobody answers."""
    if local_path(address) is not None:
        return
    fs, path = _split(_expanded(address)[0], options)
    if isinstance(fs, AsyncFileSystem):
        try:
            fs.exists(path, timeout=connections.CHECK_SECONDS)
        except FSTimeoutError:
            raise TimeoutError(f"no answer within {connections.CHECK_SECONDS} s") from None
        except Exception:  # an answer too; the listing is told the same, and tries again where that may help
            return


def _expanded(address: str) -> list[str]:
    """`x-{00..03}.tar` and `{a,b}.tar` as the addresses that are meant; a file may be so named as well."""
    path, pieces = local_path(address), _BRACES.split(address)
    if len(pieces) == 1 or (path is not None and os.path.lexists(path)):
        return [address]
    choices, count = [[pieces[0]]], 1
    for first, last, words, rest in zip(*(pieces[i::4] for i in (1, 2, 3, 4)), strict=True):
        count *= words.count(",") + 1 if words else abs(int(last) - int(first)) + 1
        if count > _MOST:
            raise DatasetError(f"dataset {redact(address)!r}: the braces name over {_MOST:,} files; take fewer")
        choices += [words.split(",") if words else _numbers(first, last), [rest]]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _numbers(first: str, last: str) -> list[str]:
    step = 1 if int(first) <= int(last) else -1
    return [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + step, step)]


def _split(address: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """File system, and path in it."""
    path = local_path(address)
    if address in _NO_BUCKET:
        raise DatasetError(f"dataset {address!r}: no bucket is named; name a bucket, as in {address}faces")
    fs, path = (LocalFileSystem(), path) if path is not None else file_system(address, options)
    return fs, path if "?" in path else path.rstrip("/")


def _at(address: str, options: Mapping[str, Any], without: str | None, kind: str | None) -> Listed:
    """What one address names."""
    fs, path = _split(address, options)
    if (info := _file(fs, path, address, kind)) is None:
        return _within(fs, path, address, options, without)
    found = _files(fs, address, options, without_query(path).rpartition("/")[0], [(path, info)], _none, kind)
    found.one_file = True
    return found


def _file(fs: Any, path: str, address: str, kind: str | None) -> Mapping[str, Any] | None:
    """What a file system says of a file; None where there is none. DatasetError for one that is no image by its name.

    On S3 this is one request, and what may pass is raised. Others may have ways of their own to tell files, as HTTP
    has, whose servers answer HEAD for what cannot be read.
    """
    try:
        if not buckets.is_bucket(fs, path) and not fs.isfile(path):
            return None
        info: Mapping[str, Any] = fs.info(path)
    except (FileNotFoundError, PermissionError):  # a pattern, perhaps, or a bucket of which only a part may be read
        return None
    if info["type"] != "file":
        return None
    name = without_query(path).rpartition("/")[2]
    if not (kind or kind_of(name) or extension(name) in EXTENSIONS):
        raise DatasetError(f"dataset {redact(address)!r}: this file is not an image by its name; {LOOKED_FOR}")
    return info


def _within(
    fs: Any, path: str, address: str, options: Mapping[str, Any], without: str | None, above: str | None = None
) -> Listed:
    """What is in a folder, or matches a pattern. `above`: names are relative to this path, else to that folder."""
    local, plain = isinstance(fs, LocalFileSystem), without_query(path)
    files: _Lister = functools.partial(_files, fs, address, options)

    def top(own: str) -> str:
        return own if above is None else above

    if buckets.is_bucket(fs, path):
        in_bucket = _in_bucket(fs, path, top(path), files, written(fs, path, without))
        if in_bucket is not None:
            return in_bucket
    elif fs.isdir(path) or (path == "" and split_chain(address)):
        left_out = written(fs, path, without)
        if local:
            return Listed.of(walk(path, top(path), left_out, options))
        return files(top(path), fs.find(path, detail=True).items(), left_out)
    if not (magic := re.search(r"[^/]*[*?\[]", plain)):
        raise FileNotFoundError(path)
    folder = path[: magic.start()].rstrip("/")
    left_out = written(fs, folder, without, plain)
    if local:
        there = Path(folder or "/").is_dir()
        found = Listed.of(walk(folder, top(folder), left_out, options, path[magic.start() :]) if there else ())
        matched = bool(len(found.images) or found.files or found.others)
    else:
        paths = iter(_matching(fs, path))
        first = next(paths, None)
        found, matched = files(top(folder), itertools.chain([first] if first else [], paths), left_out), bool(first)
    if not matched:
        raise DatasetError(f"dataset {redact(address)!r}: nothing matches; quote it and check the pattern")
    return found


def _in_bucket(fs: Any, path: str, root: str, files: _Lister, left_out: LeftOut) -> Listed | None:
    """A folder of a bucket, its own folders side by side; None where nothing is there."""
    folders: list[str] = []
    parts = [files(root, buckets.objects(fs, f"{path}/", folders), left_out)]
    starts = folders if len(folders) <= _FOLDERS else buckets.beginnings(folders, _BEGINNINGS)
    if len(starts) < min(_AT_ONCE, len(folders)):  # of too many letters: too few for the pool
        starts = folders

    def below(start: str) -> Listed:
        found = buckets.objects(fs, start)  # files beside the folders may begin alike, and are there already
        return files(root, (entry for entry in found if "/" in entry[0][len(path) + 1 :]), left_out)

    if starts:
        with ThreadPoolExecutor(_AT_ONCE, "pti-scan") as pool:
            parts += pool.map(below, starts)
    found = Listed.of(parts)
    return found if folders or len(found.images) or found.files or found.others or "/" not in path else None


def _matching(fs: Any, pattern: str) -> Iterable[Entry]:
    """Files that match."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    if not buckets.is_bucket(fs, fixed) or "/" not in fixed:
        return [(path, info) for path, info in fs.glob(pattern, detail=True).items() if info["type"] != "directory"]
    matches, flat = re.compile(glob_translate(pattern)).match, "/" not in pattern[len(fixed) :] and "**" not in pattern
    return (entry for entry in buckets.objects(fs, fixed, [] if flat else None) if matches(entry[0]))


def _none(folder: str) -> bool:
    """Nothing is left out: whoever names a file means it."""
    return False


def _files(
    fs: Any,
    address: str,
    options: Mapping[str, Any],
    root: str,
    entries: Iterable[Entry],
    left_out: LeftOut,
    kind: str | None = None,
) -> Listed:
    """Files that a file system has listed, with what it says about them."""
    head, chain = split_chain(address) or ("", "")
    parts, items, local = [], iter(entries), isinstance(fs, LocalFileSystem)
    while chunk := list(itertools.islice(items, _CHUNK)):
        rows, part = [], Listed()
        for path, info in chunk:
            if path.endswith("/") or left_out(path.rpartition("/")[0]):  # objects that stand for folders; the output
                continue
            name = str(PurePosixPath(without_query(path)[len(root) :].lstrip("/")))
            uri = f"{head.partition('://')[0]}://{path}::{chain}" if chain else fs.unstrip_protocol(path)
            size, etag = _size_and_etag(path if local else None, info)
            if (is_a := kind or kind_of(name)) and left_out is not _none and base.is_hidden(name):
                part.others["hidden"] += 1
            elif is_a:
                file = Container(name, path if local else uri, size, etag, options=options)
                part.files.setdefault(is_a, []).append(file)
            else:
                rows.append((name, uri, size, etag))
        names, uris, sizes, etags = zip(*rows, strict=True) if rows else ((),) * 4
        columns = {"name": text(names), "uri": text(uris), "bytes": pa.array(sizes, pa.int64()), "etag": text(etags)}
        parts += [part, images_in(table(columns))]
    return Listed.of(parts)


def _size_and_etag(local: str | None, info: Mapping[str, Any]) -> tuple[int, str]:
    if local is not None:
        size, time = size_and_time(Path(local)) or (0, None)
        return size, f"{size}-{time or ''}"
    size = int(info.get("size") or 0)
    for key in _CHECKSUMS:
        if info.get(key):
            return size, str(info[key]).strip('"')
    return size, f"{size}-{next((info[key] for key in _MODIFIED if info.get(key)), '')}"
