"""What cannot work on S3 is said in one sentence when a run is frozen, before any model or image is touched."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK_SETTINGS
from faulty_proxy import Proxy, proxy_to
from s3_server import KEY, SECRET, free_port, s3_server, use

from pti_core.datasets import DatasetError
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.storage.files import StoreError
from pti_core.storage.store import Store


@pytest.fixture
def begin(tiny_checkpoint: str) -> Callable[[Any, Any], Run]:
    return lambda data, out: freeze(str(data), str(out), tiny_checkpoint, configure("demo", QUICK_SETTINGS))


def policy(*actions: str) -> str:
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def check(message: str, *secrets: str) -> None:
    """One sentence, without anything that must not be seen."""
    assert "\n" not in message
    assert "Traceback" not in message
    for secret in (KEY, SECRET, *secrets):
        assert secret not in message


def asked(proxy: Proxy) -> int:
    """How many requests there were since the last call."""
    count = proxy.requests.total()
    proxy.reset()
    return count


def connections(listening: socket.socket) -> int:
    """How often somebody has connected since the last call."""
    listening.setblocking(False)
    count = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


FEW = 6  # requests that a listing takes; with the tries of what may pass they would be more
WRONG = {
    "unknown key": "access denied",
    "wrong secret": "access denied",
    "no credentials": "[Cc]redentials",
    "no rights": "access denied",
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.timeout(120)
def test_wrong_credentials(
    case: str, begin: Any, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, folder = s3_server(), dataset(2)
    bucket = server.bucket()
    data, out = server.upload(folder, bucket, "data"), f"s3://{bucket}/out"
    mine: dict[str, str] = {
        "unknown key": lambda: {},
        "wrong secret": lambda: server.user(policy("s3:*")) | {"AWS_SECRET_ACCESS_KEY": "WrongSecretKey00"},
        "no credentials": lambda: {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        "no rights": lambda: server.user(policy("iam:GetUser")),
    }[case]()
    with (
        server.checking_credentials(),
        socket.create_server(("127.0.0.1", 0)) as silent,
        proxy_to(server.url) as proxy,
    ):
        metadata = f"http://127.0.0.1:{silent.getsockname()[1]}"  # of a machine that has no such service
        use(monkeypatch, proxy.url, AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata, **mine)
        refused = f"output '{out}' cannot be written: .*{WRONG[case]}"
        with pytest.raises(StoreError, match=refused) as of_output:
            begin(folder, out)
        nobody = case == "no credentials"
        assert asked(proxy) == (0 if nobody else 1)
        assert connections(silent) <= (3 if nobody else 0)
        with pytest.raises(DatasetError, match=f"dataset '{data}'.*{WRONG[case]}") as of_data:
            begin(data, tmp_path / "out")
        assert asked(proxy) <= (0 if nobody else FEW)
        with pytest.raises(StoreError, match=WRONG[case]) as of_runs:  # and not: there are none
            Store(out).runs()
    for caught in (of_output, of_data, of_runs):
        check(str(caught.value), *filter(None, mine.values()))
    assert not list((tmp_path / "out").rglob("*.json"))
    assert not [key for key in server.keys(bucket) if key.startswith("out/")]


def test_a_bucket_that_may_only_be_read_and_one_that_may_only_be_written(
    begin: Any, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, folder = s3_server(), dataset(2)
    bucket = server.bucket()
    data, out = server.upload(folder, bucket, "data"), f"s3://{bucket}/out"
    reader = server.user(policy("s3:GetObject", "s3:ListBucket"))
    writer = server.user(policy("s3:PutObject", "s3:ListBucket"))
    with server.checking_credentials():
        use(monkeypatch, server.url, **reader)
        with pytest.raises(StoreError, match=f"output '{out}' cannot be written: access denied"):
            begin(folder, out)
        assert begin(data, tmp_path / "read").manifest.rows == 2
        use(monkeypatch, server.url, **writer)
        with pytest.raises(StoreError, match=f"output '{out}' cannot be written: access denied"):
            begin(folder, out)  # what is written has to be read again
        with pytest.raises(DatasetError, match=f"can be listed but not read: '{data}/0.png' .*: Access Denied"):
            begin(data, tmp_path / "unread")


def test_a_bucket_that_does_not_exist(
    begin: Any, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "output 's3://nowhere/out' cannot be written: the bucket does not exist"
    with proxy_to(s3_server().url) as proxy:
        use(monkeypatch, proxy.url)
        with pytest.raises(StoreError, match=missing):
            begin(dataset(1), "s3://nowhere/out")
        assert asked(proxy) == 1
        with pytest.raises(DatasetError, match="dataset 's3://nowhere/data' does not exist"):
            begin("s3://nowhere/data", tmp_path / "out")
        assert asked(proxy) <= FEW


def test_the_command_says_so_after_one_try(
    dataset: Any, tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, folder = s3_server(), dataset(1)
    out = f"s3://{server.bucket()}/out"
    with server.checking_credentials(), proxy_to(server.url) as proxy:
        use(monkeypatch, proxy.url, AWS_SECRET_ACCESS_KEY="WrongSecretKey00")
        command = [sys.executable, "-m", "flows.cli", "run", folder, "-o", out, "--generator", tiny_checkpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert asked(proxy) == 1
    assert done.returncode == 1
    *_, sentence = done.stderr.splitlines()  # after the lines of progress
    assert sentence.startswith(f"error: output '{out}' cannot be written: access denied")
    check(sentence, "WrongSecretKey00")
    assert "WrongSecretKey00" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", ["refused", "no such host", "silent"])
def test_a_wrong_endpoint(case: str, begin: Any, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pti_core.connections.CHECK_SECONDS", 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if case == "silent" else free_port()
        use(monkeypatch, f"http://{'no-such-host.invalid' if case == 'no such host' else '127.0.0.1'}:{port}")
        with pytest.raises(
            StoreError, match=r"output 's3://x/out' cannot be written: no connection .*; check"
        ) as caught:
            begin(dataset(1), "s3://x/out")
        assert connections(silent) == (case == "silent")
        check(str(caught.value))
        what = r"TimeoutError: no answer within 5 s" if case == "silent" else ""
        with pytest.raises(
            DatasetError, match=rf"dataset 's3://x/data' cannot be listed \(.*{what}.*; check"
        ) as of_data:
            begin("s3://x/data", tmp_path / "out")
        assert connections(silent) == (case == "silent")
        check(str(of_data.value))
