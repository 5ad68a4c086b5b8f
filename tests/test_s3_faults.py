"""S3 over a bad line: errors, lost connections, cut answers and silence, by a proxy before a real server."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec.config
import pandas as pd
import pytest
from conftest import QUICK_SETTINGS
from faulty_proxy import KINDS, Proxy, outage, proxy_to, some
from s3_server import s3_server, use

from pti_core import connections, tables
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.reading import ReadError, read_bytes
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.files import StoreError
from pti_core.storage.store import Store


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, named by the environment, and time limits that suit a test."""
    with proxy_to(s3_server().url) as state:
        use(monkeypatch, state.url)
        monkeypatch.setattr("fsspec.config.conf", {"s3": {"config_kwargs": {"connect_timeout": 1, "read_timeout": 1}}})
        connections.set_defaults()
        state.stall = 1.5
        yield state


SLOW_KINDS = ("stalled", "500", "503")  # the client waits


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow if k in SLOW_KINDS else ()) for k in KINDS])
def test_every_way_to_use_the_files_survives_every_kind_of_fault(kind: str, proxy: Proxy) -> None:
    """The first request of each method to each path fails, again and again."""
    bucket = s3_server().bucket()
    store = Store(f"s3://{bucket}/out")
    proxy.fault = outage(1, kind)
    info = store.write_part("rejects", "abc", 0, 0, tables.table("rejects", []))
    assert store.parts("rejects", "abc", 0) == {0: info.path}
    assert store.read_table(info.path)[0] == info
    proxy.fault = outage(1, kind)
    assert store.files.get_all([info.path, "nothing"])["nothing"] is None
    assert len(read_bytes(f"{store.root}/{info.path}")) == info.bytes
    proxy.fault = outage(1, kind)
    assert len(store.read("rejects", "abc")) == 0
    proxy.fault = outage(1, kind)
    with store.files.open(info.path) as file:
        assert len(file.read()) == info.bytes
    proxy.fault = outage(1, kind)
    store.files.remove("rejects")
    assert s3_server().keys(bucket) == {}
    assert proxy.faults[kind] >= 8


@pytest.fixture
def _no_tries_of_the_client(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf["s3"]["config_kwargs"], "retries", {"total_max_attempts": 1})
    monkeypatch.setattr("pti_core.storage.files.UPLOAD_WAITS", (0.0, 0.1))
    monkeypatch.setattr("pti_core.storage.files.READ_WAITS", (0.0, 0.1))
    monkeypatch.setattr("pti_core.reading.READ_WAITS", (0.0, 0.1))


@pytest.mark.usefixtures("_no_tries_of_the_client")
def test_what_the_clients_own_tries_do_not_outlast_is_tried_again(proxy: Proxy) -> None:
    store = Store(f"s3://{s3_server().bucket()}/out")
    proxy.fault = outage(2, "500")
    info = store.files.put("runs/abc/config.json", b"{}")
    assert (proxy.requests["PUT"], proxy.faults["500"]) == (3, 2)
    ways = [
        (lambda: list(store.files.find("runs/abc")), [info.path]),
        (lambda: list(store.files.find("runs/abc", maxdepth=1)), [info.path]),
        (lambda: store.files.get(info.path, ""), b"{}"),
        (lambda: store.files.get_all([info.path]), {info.path: b"{}"}),
        (lambda: read_bytes(f"{store.root}/{info.path}"), b"{}"),
    ]
    for way, expected in ways:
        proxy.fault = outage(2, "500")
        assert way() == expected


@pytest.mark.usefixtures("_no_tries_of_the_client")
def test_an_outage_is_never_taken_for_emptiness(proxy: Proxy) -> None:
    """What cannot be listed is there: a finished run is not done again, and nothing of it is removed."""
    store = Store(f"s3://{s3_server().bucket()}/out")
    info = store.write_config("abc", {"digest": "0"})
    for broken in ("out%2F", "abc%2F", "config.json"):  # at the first level; further down; the file itself

        def fault(method: str, path: str, broken: str = broken) -> str | None:
            return "500" if broken in path else None

        proxy.fault = fault
        ways = [store.runs, lambda: store.files.find("runs/abc")]
        if broken == "config.json":
            ways = [lambda: store.read_config("abc"), lambda: store.files.get_all([info.path])]
        for way in ways:
            with pytest.raises(StoreError, match=r"output 's3://bucket-\d+/out' cannot be (listed|read): "):
                way()
    with pytest.raises(ReadError, match=r"config\.json' cannot be read \(OSError: .*check the file and the connection"):
        read_bytes(f"{store.root}/{info.path}")


def run_of(data: str, out: str, checkpoint: str) -> Run:
    run = freeze(data, out, checkpoint, configure("demo", QUICK_SETTINGS | {"batch": 2}), shard_size=4)
    for shard in run.to_do().shards:
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    return run


@pytest.mark.slow
def test_a_run_over_a_bad_line_ends_like_one_over_a_good_line(proxy: Proxy, dataset, tiny_checkpoint: str) -> None:
    """One request in ten fails, each in its own way, those for the inputs too."""
    server = s3_server()
    bucket = server.bucket("bad-line")
    data = server.upload(dataset(8), bucket, "data")
    good = run_of(data, f"s3://{bucket}/good", tiny_checkpoint)
    proxy.fault = some(0.1, seed=5)
    proxy.reset()
    bad = run_of(data, f"s3://{bucket}/bad", tiny_checkpoint)
    faults = dict(proxy.faults)
    proxy.fault = outage(0, "500")
    assert all(faults.get(kind) for kind in KINDS)
    assert bad.store.check_complete(bad.name) == {"manifest": 8, "pivots": 8, "rejects": 0}
    assert all(bad.store.verify(marker) == [] for marker in bad.store.done(bad.name).values())
    for table in tables.PARTS:
        frames = [r.store.read(table, run=r.name).drop(columns="seconds", errors="ignore") for r in (good, bad)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    names = [{key.partition("/")[2] for key in server.keys(bucket) if key.startswith(top)} for top in ("good", "bad")]
    assert names[0] == names[1]
