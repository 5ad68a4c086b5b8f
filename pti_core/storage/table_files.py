"""Reading the Parquet files of a table, thousands of them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset as pads

from pti_core.storage.files import Files
from pti_core.storage.layout import checked, shard_folder

_AT_ONCE: Final = 1000  # files that are read at once
_FEW: Final = 32  # shards that are listed one by one

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


def listed(files: Files, table: str, run: str | None, filters: Any = None) -> dict[str, int]:
    """Sizes of a table's files, of one run or all; where filters name shards, of these alone, in order of their names.

    Few are listed one by one, since the others' files may be a hundred thousand; of many the run is listed once.
    """
    shards = None if run is None else _named_shards(filters)
    if run is None or shards is None:
        found = files.find(table if run is None else f"{table}/run={checked(run)}")
    else:
        folders = sorted({shard_folder(table, run, shard) for shard in shards})
        if len(folders) <= _FEW:
            found = {path: size for folder in folders for path, size in files.find(folder).items()}
        else:
            wanted = set(folders)
            found = files.find(f"{table}/run={run}")
            found = {path: size for path, size in found.items() if path.rpartition("/")[0] in wanted}
    return {path: size for path, size in found.items() if path.endswith(".parquet")}


def _named_shards(filters: Any) -> list[int] | None:
    """The shards that filters as `[("shard", "in", [3, 5]), ...]` are about, if they name them."""
    rules = filters if isinstance(filters, list) else []
    found = [rule for rule in rules if isinstance(rule, tuple) and rule[0] == "shard"]
    if len(found) != 1 or found[0][1] not in ("==", "=", "in"):
        return None
    _, how, shards = found[0]
    return list(map(int, shards)) if how == "in" else [int(shards)]
