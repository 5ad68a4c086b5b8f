"""Secrets in addresses: refused before anything is written, and never found in a file, a table or what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import QUICK_SETTINGS
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.options import check_runner
from flows.run_names import run_name
from pti_core.addresses import canonical, redact, secret_in
from pti_core.alignment import align
from pti_core.datasets import DatasetError, scan
from pti_core.directions.files import read_vectors
from pti_core.directions.learned import read_scores
from pti_core.directions.specs import parse
from pti_core.encoder.making import make
from pti_core.export import export_images
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.reading import read_bytes
from pti_core.status import run_status
from pti_core.storage.files import StoreError
from pti_core.storage.known_runs import RunError
from pti_core.storage.store import Store
from pti_core.tables import PARTS

SECRET = "wJalrXUtnFEMIbPxRfiCY"

WITH_SECRETS = [
    f"http://host/0.png?X-Amz-Signature={SECRET}",
    f"http://host/0.png?width=5&X-Amz-Security-Token={SECRET}",
    f"https://host/0.png?sv=2024&sig={SECRET}",
    f"https://host/0.png?Expires=1&Signature={SECRET}&Key-Pair-Id=K",
    f"https://host/0.png?access_token={SECRET}",
    f"https://host/0.png?apikey={SECRET}",
    f"https://host/0.png?x=eyJ{SECRET}",
    f"https://host/0.png#token={SECRET}",
    f"https://user:{SECRET}@host/0.png",
    f"https://{SECRET}@host/0.png",
    f"s3://key:{SECRET}@bucket/x",
    f"s3://key:a/{SECRET}@bucket/x",
    f"s3://key:a@{SECRET}@bucket/x",
    f"ftp://user:{SECRET}@host/x",
    f"az://container/0.png?sv=2024&sig={SECRET}",
    f"zip://*.png::https://user:{SECRET}@host/a.zip",
    f"zip://::https://host/a.zip?token={SECRET}",
    f"simplecache::s3://key:{SECRET}@bucket/x",
]
WITHOUT = [
    "demo",
    "/data/a:b@c.png",
    "/data/0.png?token=x",
    "s3://bucket/photo:a@2x.png",
    "s3://arn:aws:s3:us-west-2:1:accesspoint/x/a@b.png",
    "abfs://container@account.dfs.core.windows.net/p",
    "github://org:repo@main/x",
    "sftp://user@host:22/a@b",
    "http://host:8080/a@2x.png",
    "https://host/a.png?width=512",
    "https://host/a.png?v=d41d8cd98f00b204e9800998ecf8427e",
    "https://host/monkey.png?keyword=face&author=x&design=3",
    "zip://a::/x/b.zip",
    "zip://team:a@2x.png::/x/b.zip",
]


@pytest.mark.parametrize("address", WITH_SECRETS)
def test_an_address_with_a_secret_is_refused_without_it(address: str, tmp_path: Path, tiny_checkpoint: str) -> None:
    assert SECRET not in redact(f"cannot open {address}")
    config, out = configure("demo", QUICK_SETTINGS), tmp_path / "out"
    with pytest.raises(RunError, match="dataset") as as_dataset:
        freeze(address, str(out), tiny_checkpoint, config)
    with pytest.raises(RunError, match="generator") as as_generator:
        freeze("demo", str(out), address, config)
    with pytest.raises(DatasetError) as as_scan:
        scan(address)
    with pytest.raises(StoreError, match="output") as as_output:
        Store(address)
    for caught in (as_dataset, as_generator, as_scan, as_output):
        message = str(caught.value)
        assert SECRET not in message
        assert "\n" not in message
        assert "AWS_PROFILE" in message
        assert "fsspec's configuration" in message
        assert caught.value.__cause__ is None
    assert not out.exists()


@pytest.mark.parametrize("address", WITH_SECRETS)
def test_so_is_that_of_what_an_edit_an_alignment_and_a_training_are_given(address: str, tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: parse(address),
        lambda: parse(f"{address}:name=smile"),
        lambda: parse(f"learned:{address}:layers=coarse"),
        lambda: read_vectors(address),
        lambda: read_scores(address),
        lambda: align("demo", address, tmp_path / "out"),
        lambda: make(address, 16, 0),
        lambda: check_runner("threads", address, None),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"the address holds .*AWS_PROFILE") as caught:
            call()
        assert SECRET not in str(caught.value)
    for call in (
        lambda: align("demo", "points.csv", f"s3://key:{SECRET}@bucket/x"),
        lambda: make("pocket", 16, 0, folder=f"s3://key:{SECRET}@bucket/x"),
        lambda: export_images("out", f"s3://key:{SECRET}@bucket/x"),
    ):
        with pytest.raises(ValueError, match="a folder on this machine expected") as caught:
            call()
        assert SECRET not in str(caught.value)


def test_the_commands_refuse_it_before_prefect_is_started(tmp_path: Path) -> None:
    address, place = f"http://bob:{SECRET}@host/g.safetensors", f"s3://key:{SECRET}@bucket/g.pt"
    for arguments, says in (
        (["train-encoder", address], "generator 'http://host/g.safetensors': the address holds"),
        (["train-encoder", "pocket", "--folder", place], "folder 's3://bucket/g.pt': a folder on this machine"),
        (["generator", "inspect", address], "generator 'http://host/g.safetensors': the address holds"),
        (["generator", "convert", address, f"{tmp_path}/g.pt"], "generator 'http://host/g.safetensors': the address"),
        (["generator", "convert", "pocket", place], "s3://bucket/g.pt: a file on this machine expected"),
        (["export", str(tmp_path), "1.png", "-o", place], "s3://bucket/g.pt: a file on this machine expected"),
        (["align", "demo", "points.csv", "-o", place], "s3://bucket/g.pt: a folder on this machine expected"),
        (["edit", str(tmp_path), "-d", f"learned:{address}"], "direction 'http://host/g.safetensors': the address"),
        (["edit", str(tmp_path), "--address", place], "address 's3://bucket/g.pt': the address holds"),
    ):
        result = CliRunner().invoke(app, arguments)
        printed = " ".join(result.output.split())
        assert result.exit_code == 1, printed
        assert says in printed
        assert SECRET not in printed


@pytest.mark.parametrize("address", WITH_SECRETS)
def test_so_is_a_run_s_name(address: str) -> None:
    assert run_name("pti-{preset}", "dataset", {"preset": "fast", "dataset": address}) == "pti-fast"


@pytest.mark.parametrize("address", WITHOUT)
def test_other_addresses_are_fine(address: str) -> None:
    assert parse(address).source == parse(f"{address}:name=smile").source == address
    assert secret_in(address) is None
    assert secret_in(canonical(address)) is None
    assert run_name("edit", "root", {"root": address}).startswith("edit-")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("photos/", "pti-photos"),
        ("s3://bucket/faces/*.png", "pti-faces"),
        ("zip://*.png::https://host/a.zip?width=3", "pti-a.zip"),
        ("s3://", "pti"),
        ("two\n lines", "pti-two lines"),
        ("x" * 300, "pti-" + "x" * 60),
        ("{preset}", "pti-{preset}"),
    ],
)
def test_a_run_is_named_by_the_last_part_of_an_address(address: str, name: str) -> None:
    assert run_name("pti", "dataset", {"dataset": address}) == name


class Handler(BaseHTTPRequestHandler):
    """Pictures by their path, and an index with links; the ones below /closed/ only with a header."""

    pictures: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        index = f'<a href="/list/0.png?X-Amz-Signature={SECRET}">0</a>'.encode() if path == "/list/" else None
        body = index or self.pictures.get(path.rpartition("/")[2], b"")
        closed = path.startswith("/closed/") and self.headers["Authorization"] != f"Bearer {SECRET}"
        missing = not body or path == "/list/*.png"
        self.send_response(403 if closed else 404 if missing else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def web(pictures: list[Any]) -> Iterator[str]:
    buffer = BytesIO()
    Image.fromarray(pictures[0]).save(buffer, "PNG")
    Handler.pictures = {"0.png": buffer.getvalue()}
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_plain_web_address_works_and_its_query_is_no_part_of_the_id(web: str) -> None:
    (plain,) = scan(f"{web}/0.png").to_pylist()
    (sized,) = scan(f"{web}/a/0.png?width=40/1").to_pylist()
    assert (plain["image_id"], sized["image_id"]) == ("0.png", "0.png")
    assert sized["uri"] == f"{web}/a/0.png?width=40/1"
    assert read_bytes(sized["uri"]) == read_bytes(plain["uri"]) == Handler.pictures["0.png"]


def test_status_shows_no_secret_that_an_older_version_has_recorded(tmp_path: Path, tiny_checkpoint: str) -> None:
    run = freeze("demo", str(tmp_path), tiny_checkpoint, configure("demo", QUICK_SETTINGS), limit=1)
    path = tmp_path / f"runs/{run.name}/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": WITH_SECRETS[0]}))
    assert run_status(run.store, run.name).dataset == "http://host/0.png"


def test_signed_links_of_a_listing_are_refused(web: str) -> None:
    with pytest.raises(DatasetError, match=r"'0\.png' of dataset .* a signature or token") as caught:
        scan(f"{web}/list/*.png*")
    assert SECRET not in str(caught.value)


GROUPS = [
    f"https://host/0.jpg?X-Amz-Signature={SECRET}",
    f"https://bob:{SECRET}@host/0.jpg",
    f"s3://key:{SECRET}@bucket/0.jpg",
    f"0.jpg?sv=2024&sig={SECRET}",
    f"see https://bob:{SECRET}@host/0.jpg",
]


@pytest.mark.parametrize("value", [*GROUPS, {"a": GROUPS[1]}, [GROUPS[0], "b"]])
def test_groups_whose_names_hold_a_secret_are_refused(tmp_path: Path, pictures: list[Any], value: Any) -> None:
    for name in ("0.png", "1.png"):
        Image.fromarray(pictures[0]).save(tmp_path / name)
    data = [(tmp_path / f"{i}.png").read_bytes() for i in range(2)]
    places = pa.array([value, value]) if isinstance(value, dict) else pa.array([None, value])
    pq.write_table(pa.table({"image": data, "id": ["a", "b"], "url": places}), tmp_path / "faces.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["1.png", value]]}))
    with tarfile.open(tmp_path / "faces.tar", "w") as archive:
        archive.add(tmp_path / "1.png", "1.png")
        (tmp_path / "1.json").write_text(json.dumps({"url": value}))
        archive.add(tmp_path / "1.json", "1.json")
    kinds = {"faces.parquet": ("url", "[ab]"), "": ("label", "1.png"), "faces.tar": ("url", "1.png")}
    for dataset, (column, image) in kinds.items():
        with pytest.raises(DatasetError, match=f"group_by 'column:{column}': of image '{image}' it is") as caught:
            scan(str(tmp_path / dataset), group_by=f"column:{column}")
        assert SECRET not in str(caught.value)


def test_groups_that_are_plain_addresses_stay(tmp_path: Path) -> None:
    values = ["https://host/0.jpg?width=512", "bob@host.org", "a & b; c: d@e", "s3://bucket/photo:a@2x"]
    pq.write_table(pa.table({"image": [b"1"] * 4, "url": values}), tmp_path / "faces.parquet")
    found = scan(str(tmp_path / "faces.parquet"), group_by="column:url")
    assert found["group"].to_pylist() == values


def pti(home: Path, *args: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, args)]
    environment = os.environ | {"PREFECT_HOME": str(home)} | more
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def holds_secret(*folders: Path) -> list[Path]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if SECRET.encode() in path.read_bytes() or SECRET in str(path)]


def settings(checkpoint: str) -> list[str]:
    pairs = [arg for name, value in QUICK_SETTINGS.items() for arg in ("--set", f"{name}={value}")]
    return ["--generator", checkpoint, "--preset", "demo", *pairs]


def test_the_command_refuses_a_signed_address_and_writes_nothing_of_it(
    web: str, tmp_path: Path, tiny_checkpoint: str
) -> None:
    data, out = f"{web}/0.png?X-Amz-Signature={SECRET}", tmp_path / "out"
    result = pti(tmp_path / "prefect", "run", data, "-o", out, *settings(tiny_checkpoint))
    assert result.returncode == 1
    assert f"dataset '{web}/0.png': the address holds a signature" in result.stderr
    assert SECRET not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert holds_secret(tmp_path) == []


def test_credentials_of_the_environment_read_the_data_and_are_stored_nowhere(
    web: str, tmp_path: Path, tiny_checkpoint: str
) -> None:
    """The way out that the refusal names: the same data behind a header, from fsspec's configuration."""
    out, home, data = tmp_path / "out", tmp_path / "prefect", f"{web}/closed/0.png?width=40"
    options = {"client_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}}}
    refused = pti(home, "run", data, "-o", tmp_path / "no", *settings(tiny_checkpoint))
    assert refused.returncode == 1
    result = pti(home, "run", data, "-o", out, *settings(tiny_checkpoint), FSSPEC_HTTP=json.dumps(options))
    assert result.returncode == 0, result.stderr
    status = pti(home, "status", out)
    assert status.returncode == 0
    printed = "".join(r.stdout + r.stderr for r in (refused, result, status))
    assert SECRET not in printed
    assert holds_secret(tmp_path) == []
    pivots = pd.read_parquet(out / "pivots")
    assert pivots["image_id"].tolist() == ["0.png"]
    assert pivots["uri"].tolist() == [data]
    for table in PARTS:
        assert SECRET not in pd.read_parquet(out / table).to_csv()
    config = json.loads(next((out / "runs").glob("*/config.json")).read_text())
    assert config["dataset"] == f"{web}/closed/0.png"
    assert next((out / "runs").glob("*/report/contact_sheet.png")).stat().st_size
