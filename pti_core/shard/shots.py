"""The tuned image as the generator in memory drew it: a small picture (`images.shot`), kept for the report.

That generator is gone when its delta is stored; what the tables hold draws the stored image. A file a part, beside the
report: of use to eyes alone, so no table, and a report without it has an empty place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pti_core.runs import Run
from pti_core.storage.files import MissingFile

_SCHEMA: Final = pa.schema([("image_id", pa.string()), ("tuned", pa.binary())])


def write_shots(run: Run, shard: int, part: int, shots: Mapping[str, bytes], more: bool) -> None:
    """Write the shots of a part by image_id; with `more` those that are there stay as well."""
    kept = {**_read(run, _path(shard, part)), **shots} if more else dict(shots)
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays([list(kept), list(kept.values())], schema=_SCHEMA)
    pq.write_table(table, sink, compression="none")
    run.store.write_report(run.name, _path(shard, part), bytes(sink.getvalue()))


def read_shots(run: Run, shard: int) -> dict[str, bytes]:
    """The shots of a shard by image_id: of all its images, or of none where another version made the run."""
    folder = f"runs/{run.name}/report"
    paths = run.store.files.find(f"{folder}/{_folder(shard)}")
    found: dict[str, bytes] = {}
    for path in sorted(paths):
        found |= _read(run, path.removeprefix(f"{folder}/"))
    return found


def _folder(shard: int) -> str:
    return f"tuned/shard={shard:05d}"


def _path(shard: int, part: int) -> str:
    return f"{_folder(shard)}/part-{part}.parquet"


def _read(run: Run, path: str) -> dict[str, bytes]:
    """Nothing where the file is missing, or no whole one."""
    try:
        data = run.store.files.get(f"runs/{run.name}/report/{path}", "no shots")
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(data)).to_pylist()
        return {row["image_id"]: row["tuned"] for row in rows}
    except (MissingFile, pa.ArrowException, OSError, KeyError):
        return {}
