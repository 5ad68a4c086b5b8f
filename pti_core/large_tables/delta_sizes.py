"""How many bytes each owner's delta takes, by the footers of the deltas table: no payload is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow.parquet as pq

from pti_core.storage.files import Files

_AT_ONCE: Final = 16  # footers that are read at the same time


def delta_bytes(files: Files, parts: Sequence[str]) -> dict[str, int]:
    """Bytes of the payloads in these parts of the deltas table, as stored, by owner.

    Where a footer does not name the owner of a row group (one with a name of some thousand bytes), that column is read.
    StoreError where a part cannot be read.
    """
    found: Counter[str] = Counter()
    with files.explained("read"), ThreadPoolExecutor(_AT_ONCE, "pti-deltas") as pool:
        for sizes in pool.map(lambda path: files.again(lambda: _of_part(files, path)), parts):
            found.update(sizes)
    return dict(found)


def _of_part(files: Files, path: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    with files.open(path) as file:
        content = pq.ParquetFile(file)
        metadata = content.metadata
        owner, payload = (metadata.schema.names.index(name) for name in ("owner", "payload"))
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            named = group.column(owner).statistics
            if named is not None and named.has_min_max and named.min == named.max:
                found[named.min] += group.column(payload).total_compressed_size
            elif group.num_rows:
                rows = content.read_row_group(i, columns=["owner", "payload"])
                for name, data in zip(rows["owner"].to_pylist(), rows["payload"].to_pylist(), strict=True):
                    found[name] += len(data)
    return dict(found)
