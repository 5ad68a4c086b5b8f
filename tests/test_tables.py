"""The tables: columns as documented, rows checked, Parquet files laid out for reading one image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pti_core.datasets import LISTING
from pti_core.tables import COLUMNS, PARTS, TableError, assign_shards, docs, schema, table, to_parquet

DOCUMENTED = {  # as in docs/tables.md; who reads the tables relies on the names and their order
    "manifest": "image_id, uri, shard, group, bytes, etag",
    "pivots": "image_id, uri, sha256, group, space, w, noise, lpips, mse, steps, seconds, seed",
    "deltas": "owner, tensor, shape, codec, scale, payload, base_sha256",
    "metrics": "image_id, group, stage, lpips, mse, psnr, ssim, ms_ssim, identity, steps, seconds",
    "locality": "image_id, seed, where, alpha, radius, t, lpips, mse",
    "rejects": "image_id, uri, stage, error, message, permanent, attempts",
}
METRIC: dict[str, Any] = {
    "image_id": "a.png",
    "group": "a.png",
    "stage": "tuned",
    "lpips": np.float32(0.5),
    "mse": 0.25,
    "psnr": float("inf"),
    "ssim": 1.0,
    "ms_ssim": None,
    "identity": None,
    "steps": np.int64(7),
    "seconds": 1,
}


def delta(owner: str, tensor: str, size: int = 100_000) -> dict[str, Any]:
    payload = np.random.default_rng(0).bytes(size)
    row = {"owner": owner, "tensor": tensor, "shape": np.array([2, 3]), "codec": "fp16", "scale": 0.5}
    return row | {"payload": payload, "base_sha256": "00"}


def test_columns_are_the_documented_ones_in_their_order() -> None:
    columns = {name: ", ".join(schema(name).names) for name in COLUMNS}
    assert {name: columns[name] for name in DOCUMENTED} == DOCUMENTED
    assert set(PARTS) == set(DOCUMENTED) - {"manifest"}
    with pytest.raises(TableError, match="table 'pivot': one of"):
        schema("pivot")


def test_docs_name_every_column() -> None:
    text = docs()
    for name, columns in COLUMNS.items():
        assert f"### `{name}`" in text
        assert all(f"| `{column}` |" in text for column in columns)
    assert all(column.doc for columns in COLUMNS.values() for column in columns.values())
    assert "| `w` | list of float |" in text


@pytest.mark.parametrize("name", list(COLUMNS))
def test_empty_tables_round_trip(name: str) -> None:
    data = to_parquet(name, table(name, []))
    read = pq.read_table(io.BytesIO(data))
    assert read.schema.equals(schema(name))
    assert list(pd.read_parquet(io.BytesIO(data)).columns) == schema(name).names


def test_rows_round_trip_with_their_metadata() -> None:
    content = table("metrics", [METRIC], {"lpips_net": "alex"})
    data = to_parquet("metrics", content)
    assert pq.read_schema(io.BytesIO(data)).metadata[b"lpips_net"] == b"alex"
    frame = pd.read_parquet(io.BytesIO(data))
    assert frame.attrs == {"lpips_net": "alex"}
    assert frame.loc[0, "psnr"] == np.inf
    assert frame["ms_ssim"].isna().all()
    assert frame.loc[0, "lpips"] == 0.5


def test_pivot_keeps_float32_exactly() -> None:
    w = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    row = {"image_id": "a", "uri": "u", "sha256": "0", "group": "a", "space": "w", "w": w, "noise": b"\0\xff"}
    row |= {"lpips": 0.1, "mse": 0.1, "steps": 1, "seconds": 0.5, "seed": 2**63 - 1}
    frame = pd.read_parquet(io.BytesIO(to_parquet("pivots", table("pivots", [row]))))
    np.testing.assert_array_equal(np.asarray(frame.loc[0, "w"]), w)
    assert frame.loc[0, "noise"] == b"\0\xff"
    assert frame.loc[0, "seed"] == 2**63 - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lpips": None}, "column 'lpips': a row has None"),
        ({"lpips": "bad"}, "column 'lpips': double expected"),
        ({"steps": 1.5}, "column 'steps': int64 expected"),
        ({"image_id": "\udcff"}, "column 'image_id': string expected"),
        ({"lpisp": 1}, r"\['lpisp'\] unknown"),
    ],
)
def test_wrong_rows_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        table("metrics", [METRIC, METRIC | change])


def test_missing_columns_are_refused() -> None:
    with pytest.raises(TableError, match=r"columns \['mse'\] missing"):
        table("metrics", [{k: v for k, v in METRIC.items() if k != "mse"}])
    with pytest.raises(TableError, match="make it with"):
        to_parquet("metrics", table("rejects", []))


def test_one_owner_s_delta_is_read_without_the_others() -> None:
    owners = [f"{i}.png" for i in range(8)]
    content = table("deltas", [delta(owner, tensor) for owner in owners for tensor in ("a", "b")])
    data = to_parquet("deltas", content)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    assert metadata.num_row_groups == 8
    columns = {metadata.row_group(3).column(i).path_in_schema: metadata.row_group(3).column(i) for i in range(7)}
    assert columns["owner"].statistics.min == columns["owner"].statistics.max == "3.png"
    assert columns["payload"].statistics is None
    assert columns["payload"].compression == "UNCOMPRESSED"
    assert columns["tensor"].compression == "ZSTD"

    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            self.count += len(found)
            return found

    file = Counting(data)
    frame = pd.read_parquet(file, filters=[("owner", "==", "3.png")])
    assert list(frame["tensor"]) == ["a", "b"]
    assert file.count < len(data) / 3
    assert pq.read_table(io.BytesIO(data)).equals(content)


def listing(groups: list[str]) -> pa.Table:
    rows = [(f"{i}.png", f"u/{i}.png", group or f"{i}.png", i, "e") for i, group in enumerate(groups)]
    return pa.Table.from_pylist([dict(zip(LISTING.names, row, strict=True)) for row in rows], schema=LISTING)


def test_shards() -> None:
    manifest = assign_shards(listing([""] * 10), 4)
    assert manifest.schema.equals(schema("manifest"))
    assert manifest["shard"].to_pylist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert manifest["image_id"].to_pylist() == [f"{i}.png" for i in range(10)]
    assert assign_shards(listing([]), 4).num_rows == 0
    assert assign_shards(listing([""] * 3), 2, first_shard=7)["shard"].to_pylist() == [7, 7, 8]
    with pytest.raises(TableError, match="columns \\['etag'\\] missing"):
        assign_shards(listing([""]).drop_columns("etag"), 4)
    with pytest.raises(TableError, match="shard_size 0"):
        assign_shards(listing([]), 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_groups_stay_whole(size: int) -> None:
    manifest = assign_shards(listing(["a", "", "b", "a", "b", "b", "", "a"]), size).to_pandas()
    assert (manifest.groupby("group")["shard"].nunique() == 1).all()
    assert sorted(manifest["shard"].unique()) == list(range(manifest["shard"].max() + 1))
    assert sorted(manifest["image_id"]) == [f"{i}.png" for i in range(8)]
    whole = manifest.groupby("shard").agg(rows=("image_id", "size"), groups=("group", "nunique"))
    assert ((whole["rows"] <= size) | (whole["groups"] == 1)).all()


def test_schema_has_no_partition_columns() -> None:
    assert all("run" not in columns for columns in COLUMNS.values())
    assert [name for name in COLUMNS if "shard" in COLUMNS[name]] == ["manifest"]
    assert isinstance(schema("metrics"), pa.Schema)


def test_the_documentation_lists_the_columns_that_the_code_writes():
    page = (Path(__file__).parents[1] / "docs" / "tables.md").read_text()
    assert page.endswith(docs())
