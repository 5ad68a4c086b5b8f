"""The `pti` command as a person runs it: its own process, the real flow, no server."""

import io
import json
import re
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS

SETTINGS = [arg for name, value in QUICK_SETTINGS.items() for arg in ("--set", f"{name}={value}")]


def pti(*args: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def run(data, output, checkpoint, *more: object) -> subprocess.CompletedProcess[str]:
    return pti("run", data, "--output", output, "--generator", checkpoint, "--preset", "demo", *SETTINGS, *more)


@pytest.fixture(scope="module")
def finished(pictures, tiny_checkpoint, tmp_path_factory):
    """One real run through Prefect's ephemeral mode, which the tests of this file share."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("cli")
    (folder / "data").mkdir()
    for i in range(5):
        Image.fromarray(pictures[i]).save(folder / "data" / f"{i}.png")
    (folder / "data/broken.png").write_text("no image")
    result = run(folder / "data", folder / "out", tiny_checkpoint, "--shard-size", 3, "--workers", 1)
    return folder, result


def test_run_ends_with_tables_a_summary_and_no_noise(finished):
    folder, result = finished
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr == ""
    for text in ("pivot", "tuned", "stored", "LPIPS", "1 image was rejected", "broken.png", "contact_sheet.png"):
        assert text in result.stdout
    assert f'pandas.read_parquet("{folder}/out/metrics")' in result.stdout
    assert re.search(r"\d of 6 images, ", result.stdout)  # progress, as lines, since this is no terminal
    frame = pd.read_parquet(folder / "out/metrics")
    assert frame.groupby("stage", observed=True)["image_id"].nunique().to_dict() == {
        "pivot": 5,
        "stored": 5,
        "tuned": 5,
    }
    assert frame["shard"].nunique() == 2


def times(output):
    """When each part, marker and config was written."""
    found = [*output.rglob("part-*.parquet"), *(output / "runs").rglob("*.json")]
    assert found
    return {path: path.stat().st_mtime_ns for path in found}


def test_a_second_run_finds_everything_done_at_once(finished, tiny_checkpoint):
    folder, first = finished
    written = times(folder / "out")
    again = run(folder / "data", folder / "out", tiny_checkpoint, "--shard-size", 3)
    assert again.returncode == 0, again.stderr
    assert "everything is done already" in again.stdout
    assert times(folder / "out") == written
    table = first.stdout[first.stdout.index("┏") : first.stdout.index("└")]
    assert table in again.stdout


def test_status_and_show(finished):
    folder, first = finished
    status = pti("status", folder / "out")
    assert status.returncode == 0, status.stderr
    assert "done" in status.stdout
    assert "6 / 6" in status.stdout
    assert "2 / 2" in status.stdout
    show = pti("show", folder / "out")
    assert show.returncode == 0, show.stderr
    assert first.stdout[first.stdout.index("┏") : first.stdout.index("└")] in show.stdout


def test_status_tells_what_is_left(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    next((tmp_path / "out/runs").rglob("done/00001.json")).unlink()
    status = pti("status", tmp_path / "out")
    assert "unfinished" in status.stdout
    assert "3 / 6" in status.stdout
    assert "1 / 2" in status.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("{nowhere}", "-o", "{out}"), ["nowhere"]),
        (("{data}", "-o", "{out}", "--generator", "{data}/0.png"), ["0.png", "PNG"]),
        (("{data}", "-o", "{out}", "--generator", "{nowhere}.pkl"), ["nowhere.pkl", "pocket-ffhq-128"]),
        (("{data}", "-o", "{data}/0.png/out"), ["0.png"]),
        (("{data}", "-o", "{out}", "--set", "tuning.step=3"), ["tuning.step", "tuning.steps"]),
        (("{data}", "-o", "{out}", "--set", "tuning.steps"), ["NAME=VALUE"]),
        (("{data}", "-o", "{out}", "--set", "tuning.steps=0"), ["tuning.steps", "0"]),
        (("{data}", "-o", "{out}", "--set", "locality.alpha=-1"), ["locality.alpha", "-1"]),
        (("{data}", "-o", "{out}", "--set", "locality.alpha=0"), ["locality.alpha 0: Input should be greater than 0"]),
        (
            ("{data}", "-o", "{out}", "--set", "measure.alphas=[30,0]"),
            ["error: measure.alphas [30.0, 0.0]: numbers above 0"],
        ),
        (("{data}", "-o", "{out}", "--set", "measure.alphas=15"), ["error: measure.alphas 15: a list expected"]),
        (("{data}", "-o", "{out}", "--resource", "GPU=all"), ["error: --resource 'GPU=all': a number expected"]),
        (("{data}", "-o", "{out}", "--resource", "GPU"), ["error: --resource 'GPU': NAME=VALUE expected, e.g. GPU=1"]),
        (("{data}", "-o", "{out}", "--limit", "0"), ["--limit", "1"]),
        (("{data}", "-o", "{out}", "--preset", "slow"), ["slow", "fast"]),
    ],
)
def test_what_a_person_gets_wrong_is_one_sentence(finished, tmp_path, tiny_checkpoint, arguments, parts):
    folder, _ = finished
    places = {"data": folder / "data", "out": tmp_path / "out", "nowhere": tmp_path / "nowhere"}
    filled = [a.format(**places) for a in arguments]
    if "--generator" not in filled:
        filled += ["--generator", tiny_checkpoint]
    result = pti("run", *filled, timeout=60)
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stdout + result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr


def test_status_and_show_of_a_place_without_runs(tmp_path):
    for command in ("status", "show"):
        result = pti(command, tmp_path)
        assert result.returncode == 1
        assert "no run there" in result.stderr
        assert "Traceback" not in result.stderr


def test_damage_that_keeps_the_size_is_found_by_check_and_done_again(finished, tmp_path, tiny_checkpoint):
    folder, _ = finished
    out = shutil.copytree(folder / "out", tmp_path / "out")  # what is done again took other seconds
    part = next((out / "deltas").rglob("shard=00000/*.parquet"))
    good = part.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    assert "2 shards read" in pti("check", out).stdout
    part.write_bytes(bytes(bad))
    found = pti("check", out)
    assert found.returncode == 1
    assert part.name in found.stdout
    assert "1 shard is not as written" in found.stderr
    assert "unfinished" in pti("status", out).stdout
    (of_run,) = (out / "runs").iterdir()
    note = {"shard": 0, "state": "running", "time": time.time() - 120, "images": 1.0, "where": "there:7", "error": ""}
    (of_run / "notes").mkdir(exist_ok=True)
    (of_run / "notes/00000.json").write_text(json.dumps(note))
    assert "shard 0 is at work on there:7, last heard of 2 min ago" in pti("status", out).stdout
    again = run(folder / "data", out, tiny_checkpoint, "--shard-size", 3)
    assert again.returncode == 0, again.stderr
    assert "shard 0 is at work on there:7, last heard of" in " ".join((again.stdout + again.stderr).split())
    # By tensor, so that a difference is told from another by its place.
    columns = ["owner", "tensor", "scale", "payload"]
    before, after = (pd.read_parquet(data, columns=columns) for data in (io.BytesIO(good), part))
    pd.testing.assert_frame_equal(after, before)
    assert part.read_bytes() == good
    assert pti("check", out).returncode == 0
