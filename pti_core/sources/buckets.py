"""S3 buckets listed page by page: fsspec's own listing keeps a dictionary an object, over a gigabyte for a million."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Entry = tuple[str, Mapping[str, Any]]
"""Path of a file, and what its file system says about it."""


def is_bucket(fs: Any, path: str) -> bool:
    """Whether this is a place on S3."""
    return "s3" in fs.protocol and path.strip("/") != ""


def objects(fs: Any, start: str, folders: list[str] | None = None) -> Iterator[Entry]:
    """The objects whose paths begin with `bucket/key`; with `folders` those of this folder alone, others go there.

    Raises FileNotFoundError for an unknown bucket, PermissionError, and what s3fs raises.
    """
    bucket, _, key = start.partition("/")
    more = {"Bucket": bucket, "Prefix": key} | ({} if folders is None else {"Delimiter": "/"})
    while True:
        page = fs.call_s3("list_objects_v2", fs.req_kw, **more)
        for item in page.get("Contents", ()):
            yield f"{bucket}/{item['Key']}", {"size": item["Size"], "ETag": item["ETag"]}
        if folders is not None:
            folders += [f"{bucket}/{found['Prefix']}" for found in page.get("CommonPrefixes", ())]
        if not page.get("IsTruncated"):
            return
        more["ContinuationToken"] = page["NextContinuationToken"]


def beginnings(folders: Sequence[str], most: int) -> list[str]:
    """What the folders' paths begin with, as long as there are at most so many; none is the beginning of another.

    Listing by these takes a request for every thousand objects, where each of many small folders would take its own.
    """
    different = set(folders)
    shared = os.path.commonprefix(list(different))  # noqa: RUF071 (letter by letter is meant)
    found, length = {shared}, len(shared)
    while len(found) < len(different):
        length += 1
        longer = {folder[:length] for folder in different}
        if len(longer) > most:
            break
        found = longer
    return sorted(found)
