"""Images of a listing and of a run, by whole columns: the same as one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pti_core.addresses import lasting
from pti_core.freezing.matching import are_in, differ, last_places, lasting_column, texts

ADDRESSES = [
    "/data/a.png",
    "s3://bucket/a::b.png",
    "parquet://image!id=7!12::/data/x.parquet",
    "parquet://image!id=7!12::https://host/a!5::b.parquet",
    "parquet://image!path=a%3A%3Ab!12::s3://bucket/x.parquet",
    "parquet://im!age!id=7!12::/data/x.parquet",
    "parquet://image!größe=7!12::/data/x.parquet",
    "parquet://image!12::/data/x.parquet",
    "tar://a/b.png!512+1000::/data/x.tar",
    "tar://a/b.png!gz:512+1000::/data/x.tgz",
    "zip://what!.png!512+1000::/data/x.zip",
    "zip://a%25b%3A.png!512+1000::/data/x.zip",
    "zip://no place::/data/x.zip",
    "tar://a!512+1000::/data/line\nbreak.tar",
    "zip://a.png!1+2::",
    "",
]


@pytest.mark.parametrize("picked", [*([address] for address in ADDRESSES), ADDRESSES, ADDRESSES[:4] * 3])
def test_lasting_addresses_are_those_of_each(picked, monkeypatch):
    monkeypatch.setattr("pti_core.freezing.matching._AT_ONCE", 3)
    column = pa.chunked_array([picked[:2], picked[2:]], pa.string())
    found = lasting_column(column)
    assert (found.to_pylist(), found.type) == ([lasting(address) for address in picked], pa.large_string())
    assert list(texts(found)) == found.to_pylist()


def test_the_last_place_counts():
    among = pa.array(["a", "b", "a", "c"], pa.large_string())
    assert last_places(pa.array(["a", "x", "c", "b"], pa.large_string()), among).tolist() == [2, -1, 3, 1]
    assert last_places(pa.array(["a"], pa.large_string()), among[:0]).tolist() == [-1]
    assert len(last_places(among[:0], among)) == 0


def test_columns_of_any_kind_of_string_are_compared():
    names = pa.chunked_array([["a"], ["b", "c"]], pa.string())
    assert are_in(names, pa.array(["c", "a"], pa.large_string())).tolist() == [True, False, True]
    assert are_in(names, pa.array([], pa.string())).tolist() == [False] * 3


def test_nulls_differ_from_values_only():
    one, other = (pa.chunked_array([values], pa.int64()) for values in ([1, 2, None, None, 5], [1, 3, None, 4, None]))
    assert differ(one, other).tolist() == [False, True, False, True, True]
    assert differ(one[:0], other[:0]).dtype == np.bool_
