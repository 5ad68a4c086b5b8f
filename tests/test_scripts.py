"""The scripts that the figures of the documentation come from, as their pages call them, on a tiny generator."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS
from PIL import Image

ROOT = Path(__file__).parents[1]
METHODS = ["W", "W+", "PTI without locality", "PTI"]
NO_DATA, NO_WHEEL = "nodata' does not exist; check", "'no.whl' does not exist; `pip download --no-deps random-face=="

pytestmark = [pytest.mark.slow, pytest.mark.computing]


@pytest.fixture
def script(tiny_checkpoint, dataset, tmp_path):
    data = dataset(4)
    settings = [text for name, value in QUICK_SETTINGS.items() for text in ("--set", f"{name}={value}")]

    def call(name, *options):
        command = [sys.executable, str(ROOT / "scripts" / name), str(data), "--generator", tiny_checkpoint, *options]
        done = subprocess.run([*command, *settings], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return call


def first_cells(text):
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]


def test_quality_and_trade_off_share_their_runs(script, tmp_path):
    table = script("quality.py", "--output", "out", "--group", "2")
    grouped = ["PTI in groups of 2 without locality", "PTI in groups of 2"]
    assert first_cells(table) == ["method", "---", *METHODS, *grouped]
    rows = pd.read_parquet(tmp_path / "out/quality.parquet")
    assert rows.groupby("method")["image_id"].nunique().tolist() == [4] * 6
    runs = {path.name for path in (tmp_path / "out/runs").iterdir()}
    found = script("tradeoff.py", "--output", "out", "--direction", "pca:0", "--samples", "100")
    assert {path.name for path in (tmp_path / "out/runs").iterdir()} == runs
    assert first_cells(found) == ["method", "---", *METHODS, "magnitude along", "---", *METHODS]
    assert "correlation: PTI above W+ on " in found
    assert "of 4 images (Wilcoxon, p = " in found
    assert Image.open(tmp_path / "out/tradeoff.png").width > 1000


def test_group_sizes(script, tmp_path):
    table = script("group_sizes.py", "--output", "out", "--sizes", "1", "2", "4")
    assert first_cells(table) == ["images a generator", "---", "1", "2", "4"]
    sizes = pd.read_parquet(tmp_path / "out/group_sizes.parquet").groupby("group_size")["delta_bytes"].mean()
    assert sizes.is_monotonic_decreasing
    assert Image.open(tmp_path / "out/group_sizes.png").width > 1000


def test_sweep(script):
    table = script("sweep.py", "--vary", "tuning.lr=0.001,0.01", "--vary", "pivot.steps=2")
    assert first_cells(table)[2:] == ["demo", "tuning.lr 0.001", "tuning.lr 0.01", "pivot.steps 2"]
    alone = script("sweep.py", "--pivots-only", "--vary", "pivot.lr=0.05")
    assert first_cells(alone)[2:] == ["demo", "pivot.lr 0.05"]


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        (["-m", "benchmarks.steps", "--rounds", "1"], ["search: one image", "tuning: one image", "Adam, fused"]),
        (["-m", "benchmarks.decoding", "--repeats", "1"], ["pocket-ffhq-128", "StyleGAN2 config-f, 1024"]),
    ],
)
def test_benchmarks_that_time_single_things_print_their_tables(command, rows):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(rows) <= set(first_cells(done.stdout))
    cells = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert all(float(row[-1]) > 0 for row in cells)


@pytest.mark.parametrize("command", [["scripts/sweep.py", "demo"], ["scripts/quality.py"], ["-m", "benchmarks.bench"]])
def test_a_setting_that_is_none_ends_in_one_sentence(command):
    done = subprocess.run([sys.executable, *command, "--set", "tuning.steps"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "argument --set: --set 'tuning.steps': NAME=VALUE expected" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["-m", "benchmarks.small", "--images", "nodata"], NO_DATA),
        (["-m", "benchmarks.codecs", "nodata"], "nodata"),
        (["-m", "benchmarks.decoding", "nodata"], "nodata"),
        (["scripts/tradeoff.py", "nodata"], NO_DATA),
        (["scripts/sweep.py", "nodata"], NO_DATA),
        (["scripts/group_sizes.py", "nodata"], NO_DATA),
        (["scripts/make_faces64.py", "--wheel", "no.whl"], NO_WHEEL),
        (["scripts/make_demo_faces.py", "--wheel", "no.whl"], NO_WHEEL),
    ],
)
def test_what_is_not_there_ends_in_one_sentence(command, says, tmp_path):
    """In a folder of its own: a script may have written before it fails."""
    if command[0] != "-m":
        command = [str(ROOT / command[0]), *command[1:]]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert says in said
    assert "Traceback" not in done.stderr
