"""Credentials from a Prefect block: they open S3 for this process, and are found nowhere afterwards."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import pytest
from conftest import QUICK_SETTINGS
from prefect.blocks.system import Secret
from prefect.testing.utilities import prefect_test_harness
from s3_server import s3_server, use

from pti_core.connections import S3_TIMES, use_options, without_secrets
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.files import StoreError
from pti_core.storage.store import Store
from tasks.credentials import CredentialsError, use_credentials

ALL_OF_S3 = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]})


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    yield
    use_options({})


def test_options_replace_those_given_before_and_end_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"s3": {"anon": True, "config_kwargs": {"read_timeout": 7}}}
    monkeypatch.setattr("fsspec.config.conf", own)
    before = json.dumps(own, sort_keys=True)
    use_options({"s3": {"key": "AKIAFIRST", "config_kwargs": {"connect_timeout": 2}}, "ftp": {"host": "h"}})
    assert own["s3"]["config_kwargs"] == {"read_timeout": 7, "connect_timeout": 2}
    assert Store("s3://x").files.fs.key == "AKIAFIRST"
    use_options({"s3": {"secret": "second"}})
    assert own == {"s3": {"anon": True, "secret": "second", "config_kwargs": {"read_timeout": 7}}}
    for wrong in ({"s33": {}}, {"s3": {"key": "a", "username": "b"}}):
        with pytest.raises((ValueError, KeyError)):
            use_options(wrong)
        assert own["s3"]["secret"] == "second"
    use_options({})
    assert json.dumps(own, sort_keys=True) == before


def test_texts_lose_what_the_configuration_the_environment_and_options_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = {
        "s3": {"secret": "conf-secret", "client_kwargs": {"endpoint_url": "http://host", "aws_token": "deep-one"}}
    }
    monkeypatch.setattr("fsspec.config.conf", {"s3": nested})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    text = "conf-secret deep-one env-secret own-secret http://host auto"
    assert without_secrets(text, {"password": "own-secret", "mode_": "auto"}) == "*** *** *** *** http://host auto"


@pytest.fixture(scope="module")
def _prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


WRONG: dict[str, Any] = {
    "a-text": "wJalrXUtnFEMIbPxRfiCY",
    "a-list": ["wJalrXUtnFEMIbPxRfiCY"],
    "empty": {},
    "flat": {"key": "AKIA0000", "secret": "wJalrXUtnFEMIbPxRfiCY"},
    "unknown-protocol": {"s33": {"secret": "wJalrXUtnFEMIbPxRfiCY"}},
    "both-names": {"s3": {"secret": "wJalrXUtnFEMIbPxRfiCY", "password": "wJalrXUtnFEMIbPxRfiCY"}},
    "no-object": '{"s3": {"secret": "wJalrXUtnFEMIbPxRfiCY"',
}


@pytest.mark.slow
@pytest.mark.usefixtures("_prefect")
def test_blocks_that_are_missing_or_malformed() -> None:
    before = json.dumps(fsspec.config.conf, sort_keys=True)
    with pytest.raises(CredentialsError, match="credentials block 'none-such': Prefect has no Secret block"):
        use_credentials("none-such")
    for name, value in WRONG.items():
        Secret(value=value).save(name, overwrite=True)
        with pytest.raises(CredentialsError, match=f"credentials block '{name}'.*(expected|check)") as caught:
            use_credentials(name)
        shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.__context__)
        assert "wJalr" not in shown
        assert "\n" not in str(caught.value)
    assert json.dumps(fsspec.config.conf, sort_keys=True) == before


def test_secrets_in_place_of_a_block_s_name_are_refused_and_not_repeated():
    with pytest.raises(CredentialsError, match="name of a Prefect Secret block expected") as caught:
        use_credentials('{"s3": {"key": "AKIAEXAMPLE", "secret": "hush-hush"}}')
    assert "hush" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("_prefect")
@pytest.mark.parametrize("as_text", [True, False])
def test_a_run_with_credentials_from_a_block_leaves_them_nowhere(
    as_text: bool,
    dataset: Any,
    tmp_path: Path,
    tiny_checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = s3_server()
    bucket = server.bucket()
    data, out = server.upload(dataset(2), bucket, "data"), f"s3://{bucket}/out"
    user = server.user(ALL_OF_S3)
    key, secret = user["AWS_ACCESS_KEY_ID"], user["AWS_SECRET_ACCESS_KEY"]
    options = {"s3": {"key": key, "secret": secret, "client_kwargs": {"endpoint_url": server.url}}}
    Secret(value=json.dumps(options) if as_text else options).save("mine", overwrite=True)
    use(monkeypatch, server.url, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_ENDPOINT_URL="")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    caplog.set_level(logging.DEBUG)
    config = configure("demo", QUICK_SETTINGS)
    with server.checking_credentials():
        with pytest.raises(StoreError, match="no credentials"):
            freeze(data, out, tiny_checkpoint, config)
        use_credentials("mine")
        assert fsspec.config.conf["s3"]["config_kwargs"]["read_timeout"] == S3_TIMES["read_timeout"]
        for place in (out, str(tmp_path / "out")):
            run = freeze(data, place, tiny_checkpoint, config)
            inverted = invert_shard(run, 0)
            measure_shard(run, 0, inverted["files"], inverted["seconds"])
            assert run.to_do().shards == []
        use_options({"s3": {**options["s3"], "secret": f"{secret}-wrong"}})
        with pytest.raises(StoreError, match="access denied") as refused:
            Store(out).runs()
        use_credentials(None)
        with pytest.raises(StoreError, match="no credentials"):
            Store(out).runs()
    printed = capfd.readouterr()
    shown = "".join([*traceback.format_exception(refused.value), *printed, caplog.text, repr(run), repr(run.store)])
    assert "GET" in caplog.text or "s3fs" in caplog.text
    stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    stored += [server.s3.get_object(Bucket=bucket, Key=name)["Body"].read() for name in server.keys(bucket)]
    assert len(stored) > 16
    for word in (key, secret):
        assert word not in shown
        assert not [content for content in stored if word.encode() in content]
