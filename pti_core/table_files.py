"""Reading the Parquet files of a table, thousands of them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset as pads

from pti_core.files import Files

_AT_ONCE: Final = 1000  # files that are read at once

_PARTITIONS = pads.partitioning(pa.schema([("run", pa.string()), ("shard", pa.int32())]), flavor="hive")


def read_files(
    files: Files, table: str, sizes: Mapping[str, int], columns: list[str] | None, where: Any = None
) -> pa.Table:
    """The rows of these files of a table (`sizes`, as `Files.find` tells them), with `run` and `shard`.

    StoreError where one cannot be read.
    """
    options = {"format": "parquet", "partitioning": _PARTITIONS, "partition_base_dir": files.at(table)}
    paths, found = [files.at(file) for file in sizes], []
    arrow = files.arrow(sizes)
    for i in range(0, len(paths), _AT_ONCE):  # a data set keeps the footers of all its files in memory

        def rows(some: list[str] = paths[i : i + _AT_ONCE]) -> pa.Table:
            return pads.dataset(some, filesystem=arrow, **options).to_table(columns=columns, filter=where)

        with files.explained("read"):
            found.append(files.again(rows))
    return pa.concat_tables(found)


def one_shard(filters: Any) -> int | None:
    """The shard that filters as `[("shard", "==", 3), ...]` are about, if they name one."""
    rules = filters if isinstance(filters, list) else []
    shards = [rule[2] for rule in rules if isinstance(rule, tuple) and rule[:2] in (("shard", "=="), ("shard", "="))]
    return int(shards[0]) if len(shards) == 1 else None
