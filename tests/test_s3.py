"""Runs whose data set and output lie on S3: through s3fs, over HTTP, from a server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK_SETTINGS, finish
from faulty_proxy import Proxy, proxy_to
from s3_server import S3Server, s3_server, use

from pti_core import tables
from pti_core.freezing.freeze import freeze
from pti_core.large_tables.gathering import GatherError, gather
from pti_core.presets import configure
from pti_core.runs import Run, engine_for, load_run, read_stored
from pti_core.status import run_status
from pti_core.storage.files import Files
from pti_core.storage.store import Store


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, found by the environment."""
    use(monkeypatch, s3_server().url)
    return s3_server()


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, which the environment names instead."""
    with proxy_to(server.url) as state:
        use(monkeypatch, state.url)
        yield state


@pytest.fixture
def begin(tiny_checkpoint: str) -> Callable[..., Run]:
    def freeze_into(data: str, out: str) -> Run:
        return freeze(data, out, tiny_checkpoint, configure("demo", QUICK_SETTINGS | {"batch": 2}), shard_size=4)

    return freeze_into


def test_large_tables_of_a_run_on_s3(server: S3Server, dataset: Any, tiny_checkpoint: str) -> None:
    bucket = server.bucket()
    out, large = f"s3://{bucket}/out", f"s3://{bucket}/large/of"
    folder = dataset(5)
    (folder / "broken.png").write_text("no image")
    finish(freeze(str(folder), out, tiny_checkpoint, configure("noop"), shard_size=2))
    (folder / "own.csv").write_text("image_id,label\n0.png,cat\n")
    own = f"{server.upload(folder, bucket, 'own')}/own.csv"
    for _ in range(2):  # the second takes the place of the first
        gather(out, large, join=own, window=2)
        names = {f"{table}.parquet" for table in ("images", "pivots", "metrics", "locality", "rejects")}
        keys = {key for key in server.keys(bucket) if key.startswith("large/")}
        assert keys == {f"large/of/{name}" for name in names}
    images = pd.read_parquet(f"{large}/images.parquet").set_index("image_id")
    assert images["status"].value_counts().to_dict() == {"inverted": 5, "rejected": 1}
    assert images["label"].dropna().to_dict() == {"0.png": "cat"}
    with pytest.raises(GatherError, match="lies in 'metrics'"):
        gather(out, f"{out}/metrics/large")


def test_a_run_from_s3_to_s3(server: S3Server, begin: Any, dataset: Any) -> None:
    bucket = server.bucket()
    data, out = server.upload(dataset(5), bucket, "data"), f"s3://{bucket}/out"
    run = finish(begin(data, out))
    assert run.store.check_complete(run.name) == {"manifest": 5, "pivots": 5, "rejects": 0}
    assert all(run.store.verify(marker) == [] for marker in run.store.done(run.name).values())
    for table in tables.PARTS:
        frame = pd.read_parquet(f"{out}/{table}")
        assert [c for c in frame.columns if c not in ("run", "shard")] == list(tables.COLUMNS[table]), table
    one = pd.read_parquet(f"{out}/deltas", filters=[("shard", "==", 0), ("owner", "==", "3.png")])
    assert set(one["owner"]) == {"3.png"}
    assert set(pd.read_parquet(f"{out}/pivots")["uri"]) == {f"{data}/{i}.png" for i in range(5)}
    assert run_status(run.store, run.name).state == "done"

    written = server.keys(bucket)
    again = begin(data, f"{out}/")
    assert (again.name, again.to_do().shards) == (run.name, [])
    assert server.keys(bucket) == written
    assert not [key for key in written if ".write-check" in key]
    opened = load_run(out, run.name)
    stored = read_stored(opened, engine_for(opened), tables.records(opened.store.read("pivots", run=run.name))[3])
    assert stored.generator.synthesis(stored.ws, noise=stored.noise).shape == (1, 3, 32, 32)

    for lost in ("pivots", "locality"):
        server.s3.delete_object(Bucket=bucket, Key=f"out/{opened.store.part_path(lost, run.name, 0, 1)}")
        assert opened.to_do().shards == [0]
        finish(opened)
        assert server.keys(bucket).keys() == written.keys()
    opened.store.clear_run(run.name)
    assert not [key for key in server.keys(bucket) if key.startswith("out/")]


def test_the_endpoint_by_fsspecs_own_configuration(server: S3Server) -> None:
    bucket = server.bucket()
    Store(f"s3://{bucket}/out").check_writable()
    Files(f"s3://{bucket}/out").put("runs/abc/config.json", b"{}")
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}
    mine = {"FSSPEC_S3_ENDPOINT_URL": server.url, "FSSPEC_S3_CONFIG_KWARGS": '{"read_timeout": 7}'}
    script = f"""
import fsspec.config
from pti_core.storage.store import Store
store = Store("s3://{bucket}/out")
assert store.runs() == ["abc"]
config = store.files.fs.s3.meta.config
assert (config.read_timeout, config.connect_timeout, config.retries["mode"]) == (7, 5, "standard")
"""
    subprocess.run([sys.executable, "-c", script], env=environment | mine, check=True, timeout=60)


@pytest.mark.parametrize("root", ["out", "some [2024] b*", "deep/er"])
def test_names_that_look_like_patterns(server: S3Server, root: str) -> None:
    bucket = server.bucket()
    files = Files(f"s3://{bucket}/{root}")
    files.put("runs/b/config.json", b"b")
    server.s3.put_object(Bucket=bucket, Key="some 2 bc/runs/a/config.json", Body=b"kept")
    for name in ("x", "y"):
        files.put(f"runs/a/{name}", name.encode())
    assert files.get_all(["runs/a/x", "runs/a/y", "runs/a/z"]) == {"runs/a/x": b"x", "runs/a/y": b"y", "runs/a/z": None}
    files.remove("runs/a")
    assert list(files.find("")) == ["runs/b/config.json"]
    files.remove("runs/a")
    assert "some 2 bc/runs/a/config.json" in server.keys(bucket)


def test_a_file_is_created_only_where_there_is_none(server: S3Server) -> None:
    files = Files(f"s3://{server.bucket()}/out")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: files.create("runs/a/config.json", str(number).encode()), range(4)))
    assert True in answers
    there = files.get("runs/a/config.json", "no config")
    assert files.create("runs/a/config.json", b"other") is False
    assert files.create("runs/a/config.json", there) is True
    assert files.get("runs/a/config.json", "no config") == there
    with pytest.raises(FileExistsError):  # what decides where two have found nothing there
        files.fs.pipe_file(files.at("runs/a/config.json"), b"other", mode="create")


def test_of_files_that_begin_so_no_others_are_listed(proxy: Proxy) -> None:
    files = Files(f"s3://{s3_server().bucket()}/out")
    for name in (*(f"00001-{i:04d}-a/pivots.part" for i in range(40)), "00002-0000-b/x", "00002-c", "000021-0000-d/x"):
        files.put(f"runs/abc/staged/{name}", b"")
    proxy.reset()
    assert list(files.find("runs/abc/staged", begin="00002-")) == [
        f"runs/abc/staged/{name}" for name in ("00002-0000-b/x", "00002-c")
    ]
    assert proxy.requests == {"GET": 1}
    assert proxy.received["GET"] < 2000  # an object takes about 300
    assert files.find("runs/abc/staged", begin="00003-") == {}


# --- what is read of it --------------------------------------------------------------------------------------------

IMAGES, TENSORS, TENSOR_BYTES = 8, 30, 350_000  # a part of the pocket generator's deltas: 10.5 MB per image
OWN = TENSORS * TENSOR_BYTES


@pytest.fixture
def shards(proxy: Proxy) -> Store:
    """Two shards of run `abc`: a full part of 84 MB, and one image."""
    store, rng = Store(f"s3://{s3_server().bucket()}/out"), np.random.default_rng(0)
    payloads = [rng.bytes(TENSOR_BYTES) for _ in range(TENSORS)]
    rest: dict[str, Any] = {"shape": [10], "codec": "c", "scale": 1.0, "base_sha256": "0" * 64}
    rows = [
        {"owner": f"{image}.png", "tensor": f"t{i}", "payload": payload, **rest}
        for image in range(IMAGES)
        for i, payload in enumerate(payloads)
    ]
    for shard, some in enumerate((rows[:TENSORS], rows)):
        store.write_part("deltas", "abc", shard, 0, tables.table("deltas", some))
    proxy.reset()
    return store


def test_one_images_delta_costs_little_more_than_its_own_bytes(shards: Store, proxy: Proxy) -> None:
    filters, place = [("shard", "==", 1), ("owner", "==", "2.png")], f"{shards.root}/deltas"
    ways: dict[str, Callable[[], pd.DataFrame]] = {
        "Store.read of a run": lambda: shards.read("deltas", "abc", filters=filters),
        "Store.read": lambda: shards.read("deltas", filters=filters),
        "pandas": lambda: pd.read_parquet(place, filters=filters),
        "pandas by fsspec": lambda: pd.read_parquet(
            place, filters=filters, storage_options={"default_cache_type": "none"}
        ),
    }
    for way, read in ways.items():
        proxy.reset()
        frame = read()
        assert len(frame) == TENSORS
        assert frame["payload"].map(len).sum() == OWN
        assert proxy.received["GET"] < 1.05 * OWN + 500_000, way
        assert proxy.requests.total() <= 16, way
    proxy.reset()
    assert len(shards.read("deltas", "abc", columns=["tensor"], filters=filters)) == TENSORS
    assert proxy.received["GET"] < 500_000


def test_markers_are_read_by_one_request_each(proxy: Proxy) -> None:
    files = Files(f"s3://{s3_server().bucket()}/out")
    names = [f"runs/abc/done/{shard:05d}.json" for shard in range(40)]
    for name in names:
        files.put(name, b"{}")
    proxy.reset()
    assert list(files.find("runs/abc/done")) == names
    assert set(files.get_all(names).values()) == {b"{}"}
    assert proxy.requests == {"GET": 41}
