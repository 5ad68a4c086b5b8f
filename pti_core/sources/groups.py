"""Groups of images that share one tuned generator: by folder, column or label, pattern of their ids, or by number."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.addresses import secret_in_name
from pti_core.sources.base import DatasetError, text


@dataclass(frozen=True)
class Grouping:
    """A parsed `group_by`."""

    column: str | None = None
    pattern: re.Pattern[str] | None = None
    by_folder: bool = False
    count: int | None = None

    @classmethod
    def parse(cls, spec: str | None) -> Grouping:
        """`folder`, `column:NAME`, `regex:PATTERN`, `count:N`, or None for no groups. DatasetError for others."""
        if spec is None:
            return cls()
        kind, _, value = spec.partition(":")
        if spec == "folder":
            return cls(by_folder=True)
        if kind == "column" and value:
            return cls(column=value)
        if kind == "regex" and value:
            return cls(pattern=_compiled(spec, value))
        if kind == "count" and value:
            return cls(count=_positive(spec, value))
        raise DatasetError(f"group_by {spec!r}: 'folder', 'column:NAME', 'regex:PATTERN' or 'count:N' expected")

    def groups(self, ids: pa.ChunkedArray, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        """The group of each image, of a listing in its final order; the image_id where it has none.

        DatasetError where a column's value holds a password or signature: groups are stored, and name files.
        """
        if self.count is not None:
            return pa.chunked_array([text([f"group-{i // self.count:05d}" for i in range(len(ids))])])
        if self.by_folder:
            return pc.replace_substring_regex(ids, r"(?s)^([^/]*)/.*", r"\1")
        if self.column is not None:
            self._check_secrets(ids, labels)
            return _with_own(labels, ids)
        if self.pattern is not None:
            matched = [text([self._matched(i) for i in part.to_pylist()]) for part in ids.chunks]
            return _with_own(pa.chunked_array(matched, pa.large_string()), ids)
        return ids

    def _check_secrets(self, ids: pa.ChunkedArray, labels: pa.ChunkedArray) -> None:
        """Not cleaned instead: without their queries, addresses of several groups may be one."""
        suspects = labels.filter(pc.match_substring_regex(labels, "[@?&;#~]")).unique()
        for value in suspects.drop_null().to_pylist():
            if secret := secret_in_name(value):
                image = ids[pc.index(labels, pa.scalar(value, labels.type)).as_py()].as_py()
                raise DatasetError(
                    f"group_by 'column:{self.column}': of image {image!r} it is an address with {secret}, which tables "
                    "and file names would show; group by another column, or regex:PATTERN of the image_id"
                )

    def _matched(self, image_id: str) -> str | None:
        assert self.pattern is not None
        match = self.pattern.search(image_id)
        found = match["group" if "group" in self.pattern.groupindex else 1] if match else None
        return found or None


def _with_own(groups: pa.ChunkedArray, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """An image without a group has one of its own: its image_id, or `1@2` where others are in a group `1`."""
    own, named = ids.filter(pc.is_null(groups)), groups.unique()
    same = own.filter(pc.is_in(own, named))
    if not len(same):
        return pc.coalesce(groups, ids)
    taken, free = {*named.to_pylist(), *ids.to_pylist()}, {}
    for image_id in same.to_pylist():
        free[image_id] = next(name for n in count(2) if (name := f"{image_id}@{n}") not in taken)
        taken.add(free[image_id])
    names = [group or free.get(i, i) for group, i in zip(groups.to_pylist(), ids.to_pylist(), strict=True)]
    return pa.chunked_array([text(names)])


def _positive(spec: str, number: str) -> int:
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise DatasetError(f"group_by {spec!r}: a whole number from 1 expected, as in 'count:4'")
    return int(number)


def _compiled(spec: str, pattern: str) -> re.Pattern[str]:
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"group_by {spec!r}: not a regular expression ({error}); correct it") from error
    if not found.groups:
        raise DatasetError(f"group_by {spec!r}: no capture group; put what names a group into (...)")
    return found


def label(value: Any) -> str | None:
    """A value of a JSON file as the name of a group: text as it is, anything else as JSON; None for a blank one.

    None also for NaN, and for text that no table can hold: half of a surrogate pair, where one was cut off.
    """
    if value is None or isinstance(value, str):
        return value if value and value.strip() and not re.search("[\ud800-\udfff]", value) else None
    return None if value != value else json.dumps(value, sort_keys=True)


def field_of(content: Any, name: str) -> Any:
    """A value of a JSON object; `a.b` is `b` in the object `a`, unless a key is so named. None where there is none."""
    if not isinstance(content, dict) or name in content:
        return content.get(name) if isinstance(content, dict) else None
    head, dot, rest = name.partition(".")
    return field_of(content.get(head), rest) if dot else None
