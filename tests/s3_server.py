"""A real S3 server (moto) in a process of its own: started once, by the first test that asks, and ended with pytest."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

KEY, SECRET = "AKIATESTKEY00000", "SecretTestKey0000"
REGION = "us-east-1"

_numbers = itertools.count()


class S3Server:
    """The server's address, and what tests do to it from outside, as its owner."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = functools.partial(
            boto3.client, endpoint_url=url, region_name=REGION, aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        self.s3 = self._client("s3")
        self._names: dict[str, str] = {}  # of users, by their keys

    def bucket(self, name: str = "") -> str:
        """A new bucket."""
        name = name or f"bucket-{next(_numbers)}"
        self.s3.create_bucket(Bucket=name)
        return name

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """The files of a folder; the address of the copy."""
        for path in folder.iterdir():
            self.s3.put_object(Bucket=bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
        return f"s3://{bucket}/{prefix}"

    def keys(self, bucket: str) -> dict[str, int]:
        """Sizes of all objects of a bucket."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}

    def user(self, policy: str) -> dict[str, str]:
        """Credentials, as environment variables, of a new user whom this IAM policy allows what it allows."""
        iam, name = self._client("iam"), f"user-{next(_numbers)}"
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy)
        made: Any = iam.create_access_key(UserName=name)["AccessKey"]
        self._names[made["AccessKeyId"]] = name
        return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}

    def change_policy(self, credentials: dict[str, str], policy: str) -> None:
        """From now on the user of these credentials may do what this policy allows; while `checking_credentials`."""
        name = self._names[credentials["AWS_ACCESS_KEY_ID"]]
        self._requests_without_a_check(10**9)  # the administrator has no credentials that would be checked
        try:
            self._client("iam").put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy)
        finally:
            self._requests_without_a_check(0)

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Signatures and policies count, as they do at AWS; else the server lets everybody in."""
        self._requests_without_a_check(0)
        try:
            yield
        finally:
            self._requests_without_a_check(10**9)

    def _requests_without_a_check(self, count: int) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", str(count).encode(), plain)
        with urllib.request.urlopen(request, timeout=10):
            pass


@functools.cache
def s3_server() -> S3Server:
    """The one server of this test session."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the server)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=plain)

    def stop() -> None:
        process.kill()
        process.wait()

    atexit.register(stop)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return S3Server(f"http://127.0.0.1:{port}")
        if process.poll() is not None:
            break
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"the S3 server does not start: {log.read().decode()[-2000:]}")


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def use(monkeypatch: Any, url: str, **more: str) -> None:
    """What a user sets: endpoint and credentials by the environment, and nothing else. Empty values are left out."""
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nowhere = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
    mine = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": REGION}
    for name, value in {**nowhere, **mine, "AWS_ENDPOINT_URL": url, **more}.items():
        if value:
            monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the environment that it was made in
