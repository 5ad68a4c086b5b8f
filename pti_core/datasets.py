"""What a dataset is: a folder, a glob, an archive or one file behind any fsspec URL, or the packaged `demo`.

Scanning lists names, sizes and etags; no image is opened here.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pti_core.addresses import DEMO, canonical, local_path, redact, refusal, secret_in, split_chain, without_query
from pti_core.reading import DEMO_FOLDER, DEMO_URL, read_bytes

__all__ = ["DEMO", "DEMO_FOLDER", "EXTENSIONS", "DatasetError", "Entry", "inputs_digest", "natural_key"]
__all__ += ["read_bytes", "redact", "scan"]

_WEB = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".avif"})
_OTHER = frozenset({".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".j2k"})
EXTENSIONS: Final = _WEB | _OTHER
"""Files that count as images, in any case; what is inside is judged by `images.decode`."""

_ARCHIVES = {".zip": "zip", ".tar": "tar", ".tgz": "tar", ".tar.gz": "tar"}
_CHECKSUMS = ("ETag", "etag", "md5Hash", "md5", "checksum", "crc32c", "CRC")  # S3, GCS, Azure, zip
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "modified", "date_time")


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Entry:
    """One input. `image_id` is its POSIX path below the dataset's root and is unique in the dataset."""

    image_id: str
    uri: str  # for `read_bytes`; without secrets, since tables hold it
    bytes: int
    etag: str  # the file system's checksum, or "size-mtime": changes when the file does
    group: str  # images that share one tuned generator in mode `multi`


def scan(
    dataset: str,
    limit: int | None = None,
    group_by_folder: bool = False,
    storage_options: dict[str, Any] | None = None,
    without: str | None = None,
) -> list[Entry]:
    """List the images of a dataset in natural order (`2.png` before `10.png`), the first `limit` of them.

    `dataset`: `demo`; a folder, read with all its subfolders; a glob; one file; a .zip or .tar; each as a path or any
    fsspec URL. A file counts by its extension (`EXTENSIONS`); hidden files and folders and `__MACOSX` do not.
    `group` is the first folder below the root with `group_by_folder` (where there is one), the image_id otherwise.
    `storage_options` go to the file system; credentials are better left to the environment. `without` is a folder
    whose files are left out: the output, where it lies in the dataset.

    Raises DatasetError where nothing usable is found, with the reason, and for an address that holds a secret.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"limit {limit}: at least 1 expected; leave it out for all images")
    if not dataset.strip():
        raise DatasetError("dataset '': a folder, file, glob, URL or 'demo' expected")
    if refused := refusal("dataset", dataset):
        raise DatasetError(refused)
    files = _demo_files() if dataset == DEMO else _find(dataset, storage_options or {}, without)
    images: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, file in files:
        if _extension(name) not in EXTENSIONS or _hidden(name):
            continue
        if name in images:
            raise DatasetError(f"dataset {redact(dataset)!r}: two files have the image_id {name!r}; rename one of them")
        images[name] = file
    if not images:
        raise DatasetError(_nothing_found(dataset, [name for name, _ in files]))
    entries = []
    for name in sorted(images, key=natural_key)[:limit]:
        uri, info = images[name]
        try:
            f"{name}{uri}".encode()
        except UnicodeEncodeError:
            raise DatasetError(f"file {os.fsencode(name)!r}: its name is not UTF-8; rename it") from None
        if ("?" in uri or "@" in uri) and (secret := secret_in(uri)):
            raise DatasetError(
                f"file {name!r} of dataset {redact(dataset)!r}: its address holds {secret}, which a run would store; "
                "copy the files to a place that needs none"
            )
        group = name.split("/")[0] if group_by_folder else name
        entries.append(Entry(name, uri, int(info.get("size") or 0), _etag(info), group))
    return entries


def inputs_digest(entries: Sequence[Entry]) -> str:
    """SHA-256 (hex) of what is read: ids, sizes, etags and groups, not the place. A changed file changes it."""
    digest = hashlib.sha256()
    for e in entries:
        digest.update(f"{e.image_id}\0{e.bytes}\0{e.etag}\0{e.group}\n".encode())
    return digest.hexdigest()


def natural_key(name: str) -> tuple[Any, ...]:
    """Sort key of a path: folder by folder, numbers by value, letters without case, ties by the exact name."""
    parts = [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece.casefold()) for piece in re.split(r"(\d+)", part)]
        for part in name.split("/")
    ]
    return parts, name  # type: ignore[return-value]


_File = tuple[str, tuple[str, dict[str, Any]]]  # name below the root; URI and what the file system says about it


def _demo_files() -> list[_File]:
    """The demo's URIs hold no path of this machine, so that workers elsewhere can read them."""
    if not DEMO_FOLDER.is_dir():
        raise DatasetError("dataset 'demo': its images are missing from this installation; install pti_core again")
    return [
        # the time of installation is no property of the image
        (path.name, (f"{DEMO_URL}{path.name}", {"size": path.stat().st_size, "etag": _sha256(path)}))
        for path in DEMO_FOLDER.iterdir()
    ]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _find(dataset: str, storage_options: dict[str, Any], without: str | None) -> list[_File]:
    """All files of a dataset, images or not."""
    name, dataset = redact(dataset), canonical(dataset)
    address = without_query(dataset).lower()
    archive = next((kind for ext, kind in _ARCHIVES.items() if address.endswith(ext)), None)
    if archive and not split_chain(dataset):
        if "::" in dataset:
            raise DatasetError(f"dataset {name!r}: an archive cannot be read with '::' in its path; rename it")
        dataset = f"{archive}://::{dataset}"
    try:
        path = local_path(dataset)
        fs, path = (LocalFileSystem(), path) if path is not None else url_to_fs(dataset, **storage_options)
        fs.invalidate_cache()
        return list(_list(fs, path if "?" in path else path.rstrip("/"), dataset, without))
    except DatasetError:
        raise
    except ImportError as error:
        raise DatasetError(f"dataset {name!r}: a package for this protocol is missing ({error})") from error
    except FileNotFoundError as error:
        raise DatasetError(f"dataset {name!r} does not exist; check the path or bucket") from error
    except PermissionError as error:
        raise DatasetError(f"dataset {name!r}: access denied; check credentials and permissions") from error
    except ValueError as error:
        raise DatasetError(f"dataset {name!r}: {redact(str(error))}; a path or an fsspec URL expected") from error
    except Exception as error:  # each file system has its own errors (botocore's are not OSErrors)
        reason = f"{type(error).__name__}: {redact(str(error))}"
        raise DatasetError(
            f"dataset {name!r} cannot be listed ({reason}); check the address and credentials"
        ) from error


def _list(fs: Any, path: str, dataset: str, without: str | None) -> Iterator[_File]:
    local, address = isinstance(fs, LocalFileSystem), without_query(path)
    root, found = path, {}
    if fs.isfile(path):
        root, found = address.rpartition("/")[0], {path: fs.info(path)}
        if _extension(address) not in EXTENSIONS:
            raise DatasetError(f"dataset {redact(dataset)!r}: this file is not an image by its name; {_looked_for()}")
    elif fs.isdir(path) or (path == "" and split_chain(dataset)):
        found = dict(_local_files(Path(path or "/"), frozenset())) if local else fs.find(path, detail=True)
    elif re.search(r"[*?\[]", address):
        root = path[: re.search(r"[^/]*[*?\[]", path).start()].rstrip("/")  # type: ignore[union-attr]
        found = {k: v for k, v in fs.glob(path, detail=True).items() if v["type"] != "directory"}
        if not found:
            raise DatasetError(f"dataset {redact(dataset)!r}: nothing matches; quote it and check the pattern")
    else:
        raise FileNotFoundError(path)
    left_out = _left_out(fs, root, without)
    head, chain = split_chain(dataset) or ("", "")
    for file, info in found.items():
        if file.endswith("/") or left_out(file):  # objects that stand for folders; the output
            continue
        name = str(PurePosixPath(without_query(file)[len(root) :].lstrip("/")))
        if local:
            info = _local_info(file)
        yield name, (f"{head.split('://')[0]}://{file}::{chain}" if chain else fs.unstrip_protocol(file), info)


def _left_out(fs: Any, root: str, without: str | None) -> Callable[[str], bool]:
    """Which files below a dataset's root lie in the folder `without`.

    Where the dataset lies in that folder, or is that folder, only the pictures that runs wrote at its top are left out.
    """
    if without is None:
        return lambda file: False
    folder = _real(*url_to_fs(canonical(without)) if local_path(without) is None else (LocalFileSystem(), without))
    top = _real(fs, root)
    if top == folder:
        return lambda file: bool(re.match("runs/[^/]+/report/", file[len(root) :].lstrip("/")))
    if top.startswith(f"{folder}/"):
        return lambda file: False
    real = functools.cache(lambda parent: _real(fs, parent))
    return lambda file: f"{real(file.rpartition('/')[0])}/".startswith(f"{folder}/")


def _real(fs: Any, path: str) -> str:
    """A folder's one address, behind all links."""
    if isinstance(fs, LocalFileSystem):
        path = os.path.realpath(canonical(path) or "/")
    return str(fs.unstrip_protocol(path)).rstrip("/")


def _local_info(path: str) -> dict[str, Any]:
    """Size and time of a file to the nanosecond. A dead link has neither: it is a reject later, not a gap now."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path for each of a million files takes longer than the stat)
    except OSError:
        return {"size": 0}
    return {"size": status.st_size, "mtime": status.st_mtime_ns}


def _local_files(folder: Path, above: frozenset[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All files below a local folder. Linked folders are followed (fsspec does not), loops of links are not."""
    above |= {folder.resolve()}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield entry.path, {}
            elif Path(entry.path).resolve() not in above:
                yield from _local_files(Path(entry.path), above)


def _extension(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    # a web address may end in a query
    return suffix if suffix in EXTENSIONS else PurePosixPath(name.partition("?")[0]).suffix.lower()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _etag(info: dict[str, Any]) -> str:
    for key in _CHECKSUMS:
        if info.get(key):
            return str(info[key]).strip('"')
    modified = next((info[key] for key in _MODIFIED if info.get(key)), "")
    return f"{info.get('size') or 0}-{modified}"


def _looked_for() -> str:
    return f"files named {' '.join(sorted(EXTENSIONS))} are looked for"


def _nothing_found(dataset: str, names: Sequence[str]) -> str:
    kinds = Counter(_extension(name) or "without extension" for name in names if not _hidden(name))
    hidden = sum(map(_hidden, names))
    there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no file"
    there += f", {hidden} hidden" if hidden else ""
    return f"dataset {redact(dataset)!r} holds no image ({there}); {_looked_for()}"
