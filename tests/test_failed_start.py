"""Where a server or cluster does not answer, no run is left behind: it would be the newest, which all commands take."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows import cli, runners
from flows.pti import pti
from flows.runners import RunnerError
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure

ROOT = Path(__file__).parents[1]


@pytest.fixture
def nobody():
    """An address that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


def configs(out):
    return list(out.glob("runs/*/config.json"))


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_flow_whose_cluster_does_not_answer(runner, nobody, dataset, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "CONNECT", 1.0)
    asked = {"dataset": str(dataset(1)), "output": str(tmp_path / "out"), "generator": tiny_checkpoint}
    address = f"tcp://{nobody}" if runner == "dask" else nobody
    with (
        temporary_settings({PREFECT_API_URL: f"http://{nobody}/api"}),
        pytest.raises(RunnerError, match=f"answers at {address}"),
    ):
        pti.fn(**asked, preset="noop", runner=runner, address=address)
    assert not configs(tmp_path / "out")


def test_a_command_whose_server_does_not_answer_says_what_to_do(nobody, dataset, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    options = ["--output", str(out), "--generator", tiny_checkpoint, "--preset", "noop"]
    with temporary_settings({PREFECT_API_URL: f"http://{nobody}/api"}):
        result = CliRunner().invoke(cli.app, ["run", str(dataset(1)), *options])
    assert result.exit_code == 1
    (said,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert f"http://{nobody}/api" in said
    assert said.endswith("; start the server with `prefect server start`, or unset PREFECT_API_URL to work without one")
    assert not configs(out)


@pytest.mark.slow
def test_a_command_whose_cluster_does_not_answer(server, nobody, dataset, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "flows.cli", "run", str(dataset(1)), "--output", str(out), "--preset", "noop"]
    command += ["--generator", tiny_checkpoint, "--runner", "ray", "--address", nobody]
    done = subprocess.run(command, env=os.environ | server.env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"error: no Ray cluster answers at {nobody}" in done.stderr
    assert not configs(out)


def test_what_is_there_stays_where_a_new_start_is_not_ready(dataset, tiny_checkpoint, tmp_path):
    data, out = str(dataset(2)), tmp_path / "out"

    def refuse():
        raise RunnerError("not now")

    def start(seed, existing="resume", **options):
        return freeze(data, str(out), tiny_checkpoint, configure("noop", {"seed": seed}), existing=existing, **options)

    first = start(1)
    (written,) = configs(out)
    before = written.read_bytes()
    for seed, existing in ((2, "resume"), (1, "overwrite")):
        with pytest.raises(RunnerError):
            start(seed, existing, ready=refuse)
    assert start(1, ready=refuse).name == first.name  # which begins nothing
    assert configs(out) == [written]
    assert written.read_bytes() == before
