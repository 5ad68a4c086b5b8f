"""Ctrl-C in the middle of a real run, and the run after it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow
PTI = [sys.executable, "-m", "flows.cli"]
ROOT = Path(__file__).parents[1]


def session_members(session: int) -> list[str]:
    """Command lines of the live processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile
    return found


def test_ctrl_c_ends_the_run_and_the_next_run_finishes_it(dataset, tmp_path, tiny_checkpoint):
    folder, out = dataset(4), tmp_path / "out"
    command = [*PTI, "run", folder, "--output", out, "--generator", tiny_checkpoint, "--preset", "demo"]
    command += ["--set", "batch=1", "--set", "pivot.w_samples=300", "--set", "measure.z_samples=1"]
    slow = [*command, "--set", "pivot.steps=100000"]
    process = subprocess.Popen(
        slow, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if "pivot LPIPS" in line:
            break
    else:
        pytest.fail("".join(said))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "stopped; the same command goes on where it was" in rest
    assert "Traceback" not in rest
    assert session_members(process.pid) == []  # no server is left behind
    # The same job again, with steps that end.
    done = subprocess.run(
        [*command, "--set", "pivot.steps=3", "--set", "tuning.steps=3"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_parquet(out / "metrics")) == 4 * 3
