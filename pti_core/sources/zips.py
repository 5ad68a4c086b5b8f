"""Zip archives, among them those of NVIDIA's dataset_tool: listed once, each image read later by its place in the file.

An address is `zip://NAME!OFFSET+SIZE::URL`: the local header of the member starts at byte OFFSET, and SIZE bytes follow
it, compressed. So a worker reads one image by one request, without the archive's directory (minutes and a gigabyte for
a million members). The name is the truth and the place a hint: where it does not fit, the directory is read after all.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pti_core.addresses import place_in
from pti_core.connections import LARGEST, TooLarge, too_large
from pti_core.sources.base import (
    CHUNK,
    Container,
    DatasetError,
    Kept,
    Listed,
    images_in,
    joined,
    opened,
    piece,
    quoted,
    table,
    text,
)
from pti_core.sources.groups import label

LABELS: Final = "dataset.json"
"""The file in which dataset_tool keeps labels: `{"labels": [["00000/img00000000.png", 6], ...]}`, or null."""

_HEADER = struct.Struct("<4s5H3L2H")
_EXTRA = 64  # bytes of the header's extra field that are read at once; it is rarely longer
_ENCRYPTED, _SIZES_FOLLOW = 0x1, 0x8


def listing(archive: Container, column: str | None = None) -> Listed:
    """The images of an archive; `column` `label` is that of its `dataset.json`. DatasetError for a damaged archive."""
    try:
        with opened(archive.url, archive.options) as file, zipfile.ZipFile(file) as content:
            infos = content.infolist()
            has_labels = column == "label" and LABELS in content.namelist()
            labels = labels_in(content.read(LABELS), archive.url) if has_labels else {}
            backslashes = _by_backslashes(infos)
            parts = [_images(archive, infos[i : i + CHUNK], labels, backslashes) for i in range(0, len(infos), CHUNK)]
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeError) as error:
        raise DatasetError(f"{archive.url!r} is no whole zip archive ({error}); fetch or make it again") from error
    return Listed.of(parts)


def labels_in(content: bytes, place: str) -> dict[str, str]:
    """The labels of a `dataset.json` by image. DatasetError where it is something else."""
    try:
        pairs = json.loads(content)["labels"] or []
        return {name: found for name, value in pairs if (found := label(value)) is not None}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        expected = 'expected is {"labels": [["00000/img00000000.png", 6], ...]}'
        raise DatasetError(f"{LABELS} of {place!r} is none of dataset_tool ({error}); {expected}") from error


def read(inside: str, url: str, options: Mapping[str, Any] | None) -> bytes:
    """The content of a member; `inside` is the first part of its address. Raises FileNotFoundError, BadZipFile, ..."""
    options, name = options or {}, inside
    if place := place_in(inside):
        name = place.name
        if (data := _at(name, place.start, place.size, url, options)) is not None:
            return data
    try:
        archive = _archive(url, options)
        if name not in archive.NameToInfo and (other := name.replace("\\", "/")) in archive.NameToInfo:
            name = other  # the archive was made again, by a tool that separates folders as it should
        if (size := archive.getinfo(name).file_size) > LARGEST:
            raise TooLarge(too_large(size))
        return archive.read(name)
    except TooLarge:
        raise
    except KeyError:
        raise FileNotFoundError(f"{url!r} has no member {name!r}") from None
    except Exception:
        _archive.forget()
        raise


def _by_backslashes(infos: Sequence[zipfile.ZipInfo]) -> bool:
    r"""Whether the names in an archive are `anna\0.png`, as some tools of Windows write them, and none has a `/`."""
    return any("\\" in i.filename for i in infos) and not any("/" in i.filename for i in infos)


def _images(
    archive: Container, infos: Sequence[zipfile.ZipInfo], labels: Mapping[str, str], backslashes: bool
) -> Listed:
    """With `backslashes` the images are named as if these were `/`; their addresses have the names that are there."""
    infos = [i for i in infos if not i.is_dir() and not (backslashes and i.filename.endswith("\\"))]
    names = [i.filename for i in infos]
    shown = [name.replace("\\", "/") for name in names] if backslashes else names
    name, start = text(names), pa.array([i.header_offset for i in infos], pa.int64())
    size = pa.array([i.compress_size for i in infos], pa.int64())
    place = ("!", start.cast(pa.large_string()), "+", size.cast(pa.large_string()))
    columns = {"name": text(shown), "uri": joined("zip://", quoted(name), *place, f"::{archive.url}")}
    columns |= {"bytes": pa.array([i.file_size for i in infos], pa.int64()), "etag": text([str(i.CRC) for i in infos])}
    if labels:
        columns["label"] = text([labels.get(n) for n in shown])
    return images_in(table(columns), archive.inside)


def _at(name: str, start: int, size: int, url: str, options: Mapping[str, Any]) -> bytes | None:
    """The member at a place; None where it is not there, or not plainly stored or deflated."""
    data = piece(url, start, start + _HEADER.size + len(name.encode()) + _EXTRA + size, options)
    if len(data) < _HEADER.size:
        return None
    magic, _, flags, method, _, _, crc, _, _, name_length, extra_length = _HEADER.unpack_from(data)
    if magic != b"PK\x03\x04" or flags & (_ENCRYPTED | _SIZES_FOLLOW):
        return None
    begin = _HEADER.size + name_length + extra_length
    own_name = data[_HEADER.size : _HEADER.size + name_length]
    if own_name != name.encode("utf-8" if flags & 0x800 or name.isascii() else "cp437", "replace"):
        return None
    if len(data) < begin + size:
        data += piece(url, start + len(data), start + begin + size, options)
    content = data[begin : begin + size]
    try:
        if method == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-15).decompress(content, LARGEST + 1)
        elif method != zipfile.ZIP_STORED:
            return None
    except zlib.error:
        return None
    if len(content) > LARGEST:
        raise TooLarge(too_large())
    return content if zlib.crc32(content) == crc else None


@Kept
def _archive(url: str, options: Mapping[str, Any]) -> zipfile.ZipFile:
    """An open archive, which several threads may read."""
    return zipfile.ZipFile(opened(url, options))
