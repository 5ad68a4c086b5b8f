"""What all kinds of inputs have in common: the columns of a listing, and reading pieces of files."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import has_magic
from fsspec.utils import glob_translate

from pti_core.addresses import local_path
from pti_core.connections import file_system

Made = TypeVar("Made")

_WEB = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".avif"})
_OTHER = frozenset({".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".j2k"})
EXTENSIONS: Final = _WEB | _OTHER
"""Files that count as images, in any case; what is inside is judged by `images.decode`."""

LISTED: Final = pa.schema(
    [
        ("name", pa.large_string()),  # below the data set's root, as it is written there
        ("uri", pa.large_string()),
        ("bytes", pa.int64()),
        ("etag", pa.large_string()),
        ("label", pa.large_string()),  # of `group_by="column:..."`; null where there is none
    ]
)
"""What each kind of inputs gives. (Large strings: a plain column of them ends at 2 GB.)"""

CHUNK: Final = 65_536
"""Rows that are turned into columns together."""

_SMALL: Final = 4_096  # rows; tables below are put together

_IMAGE = rf"(?i)\.(?:{'|'.join(sorted(e[1:] for e in EXTENSIONS))})$"
_HIDDEN = r"(?:^|/)(?:\.[^./]|\.\.[^/]|__MACOSX(?:/|$))"  # `..` of a member of an archive hides nothing


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Container:
    """A file that holds images: an archive, or a Parquet file."""

    name: str  # path below the data set's root
    url: str
    bytes: int
    etag: str
    inside: str = ""  # what of it is asked for: a folder or pattern of an archive, a column of a Parquet file
    options: Mapping[str, Any] = field(default_factory=dict)  # of its file system

    @property
    def stem(self) -> str:
        """Its name without extensions: what tells the images of several containers apart."""
        return re.sub(r"(?i)(\.tar)?\.[^./]+$", "", self.name)


@dataclass
class Listed:
    """What was found in one or more places."""

    images: pa.Table = field(default_factory=lambda: LISTED.empty_table())  # as `LISTED`
    others: Counter[str] = field(default_factory=Counter)  # files that are no images, by extension or "hidden"
    fields: set[str] = field(default_factory=set)  # what `group_by="column:..."` may name
    files: dict[str, list[Container]] = field(default_factory=dict)  # by kind; what they hold is not listed yet
    one_file: bool = False  # whether it is one that was named
    in_order: bool = False  # whether the images have an order of their own, as rows of a table

    @classmethod
    def of(cls, parts: Iterable[Listed]) -> Listed:
        """All of them together."""
        found, tables = cls(), []
        for part in parts:
            tables.append(part.images)
            found.others += part.others
            found.fields |= part.fields
            found.in_order |= part.in_order
            for kind, files in part.files.items():
                found.files.setdefault(kind, []).extend(files)
        found.images = pa.concat_tables(_in_larger_pieces(tables)) if tables else found.images
        return found


def _in_larger_pieces(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in their order; thousands of small tables take long to sort, and more room than what they hold."""
    small: list[pa.Table] = []
    rows = 0
    for part in tables:
        if is_small := len(part) < _SMALL:
            small.append(part)
            rows += len(part)
        if small and (not is_small or rows >= CHUNK):
            yield pa.concat_tables(small).combine_chunks()
            small, rows = [], 0
        if not is_small:
            yield part
    if small:
        yield pa.concat_tables(small).combine_chunks()


def text(values: Sequence[str | None]) -> pa.Array:
    """A column of text. DatasetError for a name that is not UTF-8."""
    try:
        return pa.array(values, pa.large_string())
    except UnicodeEncodeError:
        for value in values:
            if value is not None and re.search("[\ud800-\udfff]", value):
                raise DatasetError(f"file {os.fsencode(value)!r}: its name is not UTF-8; rename it") from None
        raise


def joined(*pieces: Any) -> Any:
    """Columns and constants, row by row one text."""
    columns = [p if isinstance(p, pa.Array | pa.ChunkedArray) else pa.scalar(p, pa.large_string()) for p in pieces]
    return pc.binary_join_element_wise(*columns, pa.scalar("", pa.large_string()))


def table(columns: Mapping[str, Any]) -> pa.Table:
    """Columns of `LISTED` as a table; without labels where there are none."""
    columns = {"label": pa.nulls(len(columns["name"]), pa.large_string())} | dict(columns)
    return pa.table({name: columns[name] for name in LISTED.names}).cast(LISTED)


def images_in(listed: pa.Table, inside: str = "") -> Listed:
    """The visible images of a listing, by their names; `inside`: of this folder, or that match this pattern."""
    listed = listed.set_column(0, "name", plain_names(listed["name"]))
    listed = _inside(listed, inside.strip("/")) if inside.strip("/") else listed
    names = listed["name"]
    hidden, image = pc.match_substring_regex(names, _HIDDEN), pc.match_substring_regex(names, _IMAGE)
    keep = pc.and_not(image, hidden)
    others = Counter(map(extension, names.filter(pc.invert(pc.or_(image, hidden))).to_pylist()))
    others["hidden"] = pc.sum(hidden).as_py() or 0
    return Listed(listed.filter(keep), others)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder in its path is hidden, as for `images_in`."""
    return bool(re.search(_HIDDEN, name))


def extension(name: str) -> str:
    """A file's extension in small letters, for messages."""
    return PurePosixPath(name).suffix.lower() or "without extension"


def plain_names(names: Any) -> Any:
    """Paths without `./`, doubled and outer slashes."""
    odd = pc.match_substring_regex(names, r"//|^/|(?:^|/)\.(?:/|$)")
    if not pc.any(odd).as_py():
        return names
    rows = zip(names.to_pylist(), odd.to_pylist(), strict=True)
    plain = text([str(PurePosixPath(name.lstrip("/"))) if is_odd else name for name, is_odd in rows])
    return plain if isinstance(names, pa.Array) else pa.chunked_array([plain])


def _inside(listed: pa.Table, inside: str) -> pa.Table:
    """The rows in a folder of an archive, or that match a pattern; names are then relative to it."""
    names = listed["name"].to_pylist()
    if has_magic(inside):
        root, matches = re.split(r"[^/]*[*?\[]", inside, maxsplit=1)[0], re.compile(glob_translate(inside))
        rows = [i for i, name in enumerate(names) if matches.match(name)]
    else:
        root = f"{inside}/" if inside not in names else inside.rpartition("/")[0]
        rows = [i for i, name in enumerate(names) if name == inside or name.startswith(f"{inside}/")]
    found = listed.take(pa.array(rows, pa.int64()))
    return found.set_column(0, "name", text([name[len(root) :].lstrip("/") for name in found["name"].to_pylist()]))


def quoted(names: Any) -> Any:
    """Names as they stand in an address (`addresses.place_in`), where `::` ends the part that belongs to an archive."""
    return pc.replace_substring(pc.replace_substring(names, "%", "%25"), "::", "%3A%3A")


def opened(url: str, options: Mapping[str, Any], block: int | None = None) -> Any:
    """A file for reading and seeking. `block`: bytes that are read ahead over a network, 0 for none."""
    if (path := local_path(url)) is not None:
        return open(os.path.expanduser(path), "rb")  # noqa: PTH111 (a name may begin with ~)
    fs, path = file_system(url, options)
    more: dict[str, Any] = {} if block is None else {"block_size": block} if block else {"cache_type": "none"}
    return fs.open(path, "rb", **more)


def piece(url: str, start: int, stop: int, options: Mapping[str, Any]) -> bytes:
    """The bytes [start, stop) of a file, fewer at its end, by one request. Nothing stays open: any thread may call."""
    if (path := local_path(url)) is not None:
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
    fs, path = file_system(url, options)
    data = bytes(fs.cat_file(path, start=start, end=stop))
    return data if len(data) <= stop - start else data[start:stop]  # a web server that ignores ranges sent all


def _state(url: str, options: Mapping[str, Any]) -> str:
    """What another file at this address would have otherwise: size and date, or ETag; empty where it is not told."""
    try:
        if (path := local_path(url)) is not None:
            found = Path(path).expanduser().stat()
            return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
        fs, path = file_system(url, options)
        fs.invalidate_cache(path)
        told = {name: value for name, value in fs.info(path).items() if name != "url"}  # where it led, perhaps signed
        return str(sorted(told.items()))
    except Exception:  # each file system has errors of its own; what reads the file tells of them
        return ""


_LOOK_AGAIN: Final = 60.0
"""Seconds after which a file that is not on this machine is looked at again: a request each time."""


class Kept(Generic[Made]):
    """The last two results of a function of a file's address and its options, such as what is open.

    Made anew where the file has been replaced: a process may live longer than what it has read. Apart for
    each process, since a file handle shared over a fork would share its position.
    """

    def __init__(self, make: Callable[[str, Mapping[str, Any]], Made]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: OrderedDict[tuple[int, str, str], tuple[Made, str, float]] = OrderedDict()

    def __call__(self, url: str, options: Mapping[str, Any] | None) -> Made:
        """What was made before, or is made now; other threads wait for it."""
        key = (os.getpid(), url, repr(sorted((options or {}).items())))
        local = local_path(url) is not None
        with self._lock:
            made, state, looked = self._made.get(key, (None, "", 0.0))
            if made is None or local or time.monotonic() - looked > _LOOK_AGAIN:
                now = _state(url, options or {})
                if made is None or now not in ("", state):
                    made = self._make(url, options or {})
                self._made[key] = made, now or state, time.monotonic()
            self._made.move_to_end(key)
            while len(self._made) > 2:
                self._made.popitem(last=False)
            return made

    def forget(self) -> None:
        """Drop all: what is open may be what is broken."""
        with self._lock:
            self._made.clear()
