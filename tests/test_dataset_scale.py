"""Two thousand images through server, worker and S3, the worker killed midway: every image accounted for."""

from __future__ import annotations

import io
import re
import subprocess
import time
import zipfile

import numpy as np
import pandas as pd
import psutil
import pytest
import s3_server
from PIL import Image
from prefect_server import PREFECT, ROOT, prefect_server

from pti_core.status import run_status
from pti_core.storage.store import Store

pytestmark = pytest.mark.slow
IMAGES, BROKEN = 2000, 400


@pytest.fixture
def bucket(monkeypatch):
    server = s3_server.s3_server()
    s3_server.use(monkeypatch, server.url)
    return server, server.bucket()


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


BAD = [
    lambda picture: encoded(picture)[:60],
    lambda picture: b"",
    lambda picture: b"this is no image",
    lambda picture: encoded(picture.convert("L")),
    lambda picture: encoded(picture.convert("P")),
    lambda picture: encoded(Image.merge("RGBA", (*picture.split(), picture.convert("L")))),
    lambda picture: encoded(picture.convert("CMYK"), "JPEG"),
    lambda picture: encoded(Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 256)),
]


def archive() -> bytes:
    """A zip of pictures, every fifth of them bad in one way or another."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(IMAGES):
            picture = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).resize((64, 64))
            make = BAD[i // 5 % len(BAD)] if i % 5 == 2 else encoded
            file.writestr(f"{i // 500}/{i:04d}.png", make(picture))
    return buffer.getvalue()


def kill_worker(api: str) -> int:
    """SIGKILL the worker of this server and the flow runs that it started; how many processes that were."""
    killed = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            command = process.info["cmdline"] or []
            if "worker" in command and "start" in command and process.environ().get("PREFECT_API_URL") == api:
                killed += [*process.children(recursive=True), process]
        except psutil.Error:
            continue
    for process in killed:
        process.kill()
    psutil.wait_procs(killed, timeout=10)
    return len(killed)


def test_two_thousand_images_with_a_killed_worker_are_all_accounted_for(bucket, tmp_path):
    s3, name = bucket
    s3.s3.put_object(Bucket=name, Key="data/faces.zip", Body=archive())
    root = f"s3://{name}/out"
    parameters = {"dataset": f"s3://{name}/data/faces.zip", "output": root, "preset": "noop", "shard_size": 50}

    def markers() -> list[str]:
        return [key for key in s3.keys(name) if "/done/" in key]

    with prefect_server(tmp_path) as server:
        deployment = server.deployment("demo")["id"]
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        first = server.api("POST", f"deployments/{deployment}/create_flow_run", body)["id"]
        until = time.monotonic() + 120
        while len(markers()) < 5:
            assert time.monotonic() < until, server.log.read_text()[-3000:]
            time.sleep(0.2)
        assert kill_worker(server.env["PREFECT_API_URL"]) >= 2  # the worker and its flow run
        finished = markers()
        assert 5 <= len(finished) < IMAGES // 50
        (run,) = Store(root).runs()
        assert run_status(Store(root), run).shards_done == len(finished)
        written = {key: s3.s3.head_object(Bucket=name, Key=key)["LastModified"] for key in finished}

        # Nobody tells the server that a killed run has ended. Its place is free again after five minutes, or by the
        # command of docs/server.md.
        (told,) = re.findall(r"curl -X POST .*\n.*force.*", (ROOT / "docs/server.md").read_text())
        subprocess.run(["sh", "-c", told.replace("/ID/", f"/{first}/")], env=server.env, check=True)
        assert server.api("GET", f"flow_runs/{first}")["state_type"] == "CRASHED"
        command = [*PREFECT, "worker", "start", "--pool", "pti-cpu"]
        with (tmp_path / "worker").open("wb") as log:
            worker = subprocess.Popen(command, env=server.env, cwd=ROOT, stdout=log, stderr=log)
        try:
            result = server.run("pti/demo", parameters)
        finally:
            worker.kill()  # it is of no more use; a busy machine lets it take a minute to end by itself
            worker.wait()
        assert result.returncode == 0, result.stdout + result.stderr

    store = Store(root)
    assert store.check_complete(run) == {"manifest": IMAGES, "pivots": IMAGES - BROKEN, "rejects": BROKEN}
    assert all(store.verify(marker) == [] for marker in store.done(run).values())
    status = run_status(store, run)
    assert (status.state, status.images_done, status.rejected) == ("done", IMAGES, BROKEN)
    assert {key: s3.s3.head_object(Bucket=name, Key=key)["LastModified"] for key in finished} == written
    rejects = store.read("rejects")
    assert rejects["permanent"].all()
    assert rejects["message"].str.replace(r"\S+\.png", "", regex=True).nunique() >= len(BAD)
    metrics = pd.read_parquet(f"{root}/metrics", columns=["image_id", "stage"])
    assert metrics.value_counts().max() == 1
    assert len(metrics) == 3 * (IMAGES - BROKEN)
