"""Tar archives, among them WebDataset shards: listed once, each image read later by its place in the file.

An address is `tar://NAME!OFFSET+SIZE::URL`: the header of the member starts at byte OFFSET. The name is the truth and
the place a hint: where another member is there now, the archive is searched. A compressed tar cannot be read here and
there, so it is unpacked once a process to a temporary file, and OFFSET (`!gz:OFFSET+SIZE`) counts in that.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import posixpath
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, NamedTuple

import pyarrow as pa

from pti_core.addresses import place_in
from pti_core.sources.base import (
    CHUNK,
    EXTENSIONS,
    Container,
    DatasetError,
    Kept,
    Listed,
    extension,
    images_in,
    joined,
    opened,
    piece,
    quoted,
    table,
    text,
)
from pti_core.sources.groups import field_of, label
from pti_core.sources.unpacking import compression, unpacked

_BLOCK = 512  # bytes of a header
_LONG = 4 * _BLOCK  # bytes before a header in which the name stands where it does not fit into it
_READ_AHEAD = 1 << 17  # bytes; where images are larger, most of a remote archive is skipped
_LABEL_BYTES = 1 << 24
_NO_UTF8 = re.compile("[\ud800-\udfff]")
_SCAN = threading.Lock()  # an unpacked file has one position for all


_Row = tuple[str, str, int, int, str]  # name, name of what it links to, place, size, etag


class _Member(NamedTuple):
    """What a header says."""

    name: str
    start: int  # of the header, bytes
    size: int
    mtime: float
    link: str = ""  # name of what it is a link to


def listing(tar: Container, column: str | None = None) -> Listed:
    """The images of an archive. `column`: what `label` holds, from the other files of an image's sample.

    A sample is what has the same path up to the first dot of its name: `7.jpg`, `7.cls`, `7.json`. DatasetError for an
    archive that is damaged or cut off.
    """
    try:
        with opened(tar.url, tar.options, _READ_AHEAD) as file:
            if not (packed := compression(file)):
                return _listed(tar, file, "", column)
        with _SCAN:
            return _listed(tar, unpacked(tar.url, tar.options), f"{packed}:", column)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, UnicodeError) as error:
        raise DatasetError(f"{tar.url!r} is no whole tar archive ({error}); fetch or make it again") from error


def read(inside: str, url: str, options: Mapping[str, Any] | None) -> bytes:
    """The content of a member; `inside` is the first part of its address. Raises OSError, FileNotFoundError."""
    options, name = options or {}, inside
    if place := place_in(inside):
        name = place.name
        if (data := _at(name, place.start, place.size, place.packed, url, options)) is not None:
            return data
    for _ in range(2):
        index = _index(url, options)
        if name not in index:
            raise FileNotFoundError(f"{url!r} has no member {name!r}")
        if (data := _at(name, *index[name], url, options, known=True)) is not None:
            return data
        _index.forget()
    raise OSError(f"{url!r}: the member {name!r} is damaged")


def _listed(tar: Container, file: IO[bytes], packed: str, column: str | None) -> Listed:
    parts: list[Listed] = []
    rows: list[_Row] = []
    links: dict[str, str] = {}
    labels: dict[str, str] = {}
    fields: set[str] = set()
    for member in _members(file):
        name, start, size, mtime, link = member
        if link:
            links[name] = link
        else:
            rows.append((name, name, start, size, f"{size}-{mtime}"))
            if column:
                _note_label(file, member, column, labels, fields)
        if len(rows) >= CHUNK and not column:
            parts.append(_images(tar, rows, packed, None))
            rows.clear()
    rows += _linked(file, links)
    parts.append(_images(tar, rows, packed, labels if column else None))
    return Listed.of([*parts, Listed(fields=fields)])


def _linked(file: IO[bytes], links: dict[str, str]) -> Iterator[_Row]:
    """Members that are links to others, at the place of these."""
    targets: dict[str, str] = {}
    links = {posixpath.normpath(name): target for name, target in links.items()}
    for name in links:
        target, passed = links[name], {name}
        while target in links and target not in passed:
            passed.add(target)
            target = links[target]
        targets[name] = target
    wanted, normal = set(targets.values()), posixpath.normpath
    places = {normal(m.name): m for m in _members(file) if not m.link and normal(m.name) in wanted} if wanted else {}
    for name, target in targets.items():
        if found := places.get(target):
            yield name, found.name, found.start, found.size, f"{found.size}-{found.mtime}"


def _images(tar: Container, rows: list[_Row], packed: str, labels: Any) -> Listed:
    others = Counter(_shown(row[0]) for row in rows if _is_odd(row[0]))
    if others:
        rows = [row for row in rows if not _is_odd(row[0])]
    names, own_names, starts, sizes, etags = zip(*rows, strict=True) if rows else ((),) * 5
    name, start, size = text(own_names), pa.array(starts, pa.int64()), pa.array(sizes, pa.int64())
    place = (f"!{packed}", start.cast(pa.large_string()), "+", size.cast(pa.large_string()))
    columns = {"name": text(names), "uri": joined("tar://", quoted(name), *place, f"::{tar.url}"), "bytes": size}
    columns |= {"etag": text(etags)}
    if labels is not None:
        columns["label"] = text([labels.get(_sample(n)) for n in names])
    found = images_in(table(columns), tar.inside)
    found.others += others
    return found


def _is_odd(name: str) -> bool:
    """Whether this is no image and has a name that is not UTF-8, which only an image's name has to be."""
    return not name.isascii() and extension(name) not in EXTENSIONS and _NO_UTF8.search(name) is not None


def _shown(name: str) -> str:
    """The extension of a name that is not UTF-8."""
    return extension(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _members(file: IO[bytes]) -> Iterator[_Member]:
    """Files and links in their order. Raises tarfile.ReadError for damage, which tarfile itself takes for the end."""
    total, start = file.seek(0, os.SEEK_END), 0
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        archive.next()  # read when it was opened
        while True:
            file.seek(start)
            plain = None if archive.pax_headers else _plain(file.read(_BLOCK), start)
            if plain:
                yield plain
                start += _BLOCK + -(-plain.size // _BLOCK) * _BLOCK
                continue
            file.seek(start)
            archive.offset = start
            if (info := archive.next()) is None:
                break
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            start = archive.offset
            if info.islnk() or info.issym():
                folder = posixpath.dirname(info.name) if info.issym() else ""
                yield _Member(info.name, 0, 0, 0, posixpath.normpath(posixpath.join(folder, info.linkname)))
            elif info.isreg() and not info.issparse():
                yield _Member(info.name, info.offset_data - _BLOCK, info.size, info.mtime)
        file.seek(start)
        if start > total:
            raise tarfile.ReadError(f"cut off at byte {total}")
        if file.read(_BLOCK).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {start}")


def _plain(header: bytes, start: int) -> _Member | None:
    """A file's header without anything special, five times as fast as by tarfile; None for all others."""
    special = len(header) < _BLOCK or header[156] not in b"0\0" or header[345]
    if special or 256 + sum(header) - sum(header[148:156]) != _octal(header[148:156]):
        return None
    size, mtime = _octal(header[124:136]), _octal(header[136:148])
    name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return None if size is None or mtime is None or name[-1:] in ("", "/") else _Member(name, start, size, mtime)


def _octal(field: bytes) -> int | None:
    try:
        return int(field.partition(b"\0")[0], 8)
    except ValueError:
        return None


def _sample(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _note_label(file: IO[bytes], member: _Member, column: str, labels: dict[str, str], fields: set[str]) -> None:
    """Keep what a file says of its sample: its content where it is named like the column, else that key of a .json."""
    kind = member.name.rpartition("/")[2].partition(".")[2]
    if kind not in (column, "json") or member.size > _LABEL_BYTES:
        fields |= {kind} if extension(member.name) not in EXTENSIONS and not _NO_UTF8.search(kind) else set()
        return
    file.seek(member.start + _BLOCK)
    data = file.read(member.size)
    with suppress(ValueError, RecursionError):  # a damaged label leaves its image alone in a group
        if kind == column:
            if said := data.decode().strip():  # an empty one is none
                labels[_sample(member.name)] = said
        elif (found := label(field_of(content := json.loads(data), column))) is not None:
            labels.setdefault(_sample(member.name), found)
        elif isinstance(content, dict):
            fields.update(content)


def _at(
    name: str,
    start: int,
    size: int,
    packed: str | None,
    url: str,
    options: Mapping[str, Any],
    known: bool = False,
) -> bytes | None:
    """The member at a place; None where it is not there, or cannot be told from others unless the place is `known`."""
    fits = name.isascii() and len(name) <= 100  # or it may stand before the header
    first, stop = start if fits else max(0, start - _LONG), start + _BLOCK + size
    if packed:
        plain = unpacked(url, options)  # held, since another thread may have it replaced and so closed meanwhile
        data = os.pread(plain.fileno(), stop - first, first)
    else:
        data = piece(url, first, stop, options)
    content = data[start - first + _BLOCK :]
    try:
        info = _header(data[start - first :])
    except tarfile.HeaderError:
        return None
    other = info.name != name and (fits or not (known or _long_name(data[: start - first + _BLOCK]) == name))
    return None if other or info.size != size or len(content) < size else content


def _header(data: bytes) -> tarfile.TarInfo:
    return tarfile.TarInfo.frombuf(data[:_BLOCK], "utf-8", "surrogateescape")


def _long_name(blocks: bytes) -> str | None:
    """The name of the member whose own header is the last of these blocks, by an extended one just before it."""
    own = len(blocks) - _BLOCK
    for start in range(own - 2 * _BLOCK, -1, -_BLOCK):
        with suppress(tarfile.TarError):
            info = _header(blocks[start:])
            extended = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
            if extended and start + _BLOCK + -(-info.size // _BLOCK) * _BLOCK == own:
                with tarfile.open(fileobj=io.BytesIO(blocks[start:]), mode="r:") as archive:
                    return archive.firstmember.name  # type: ignore[attr-defined, no-any-return]  # of no stub
    return None


@Kept
def _index(url: str, options: Mapping[str, Any]) -> dict[str, tuple[int, int, str | None]]:
    """Place, size and compression of all members, by name."""
    with opened(url, options, _READ_AHEAD) as file:
        packed = compression(file)
        plain = unpacked(url, options) if packed else file
        with _SCAN:
            return {m.name: (m.start, m.size, packed) for m in _members(plain) if not m.link}
